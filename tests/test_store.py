"""Bytes between folders and an S3 server in another process, with faults injected by a proxy."""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from components import store
from components.errors import DataError, TemporaryError, UserError
from tests.servers import KEYS, REGION, free_port, s3

PAGE = "7"  # objects in one page of a listing


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3(MOTO_S3_DEFAULT_MAX_KEYS=PAGE) as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of its own for each test, reached through the environment as in production."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    direct = {"AWS_ENDPOINT_URL": server, "DIRECT": server}
    for name, value in (KEYS | REGION | direct).items():
        monkeypatch.setenv(name, value)
    name = f"b{abs(hash(request.node.name))}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def put(bucket: str, **objects: bytes) -> None:
    client = boto3.client("s3", endpoint_url=os.environ["DIRECT"])  # past any proxy
    for key, body in objects.items():
        client.put_object(Bucket=bucket, Key=key.replace("__", "/"), Body=body)


class Proxy:
    """In front of S3: answers the next requests with a status, or cuts bodies after some bytes."""

    def __init__(self, server: str) -> None:
        self.failing: list[int] = []
        self.cuts: list[int] = []
        self.ranges: list[str] = []
        proxy, target = self, urlsplit(server).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if "Range" in self.headers:
                    proxy.ranges.append(self.headers["Range"])
                if proxy.failing:
                    self.send_response(proxy.failing.pop(0))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection(target, timeout=30)
                connection.request("GET", self.path, headers=dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if proxy.cuts:
                    self.wfile.write(body[: proxy.cuts.pop(0)])
                    self.close_connection = True
                    return
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def proxy(bucket: str, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    found = Proxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    monkeypatch.setattr(store, "PART_BYTES", 1000)
    yield found
    found.http.shutdown()
    found.http.server_close()


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_what_is_uploaded_comes_back_the_same(bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "empty").write_bytes(b"")
    (source / "data" / "ä b+c%.bin").write_bytes(bytes(range(256)) * 20)
    assert store.upload(source, f"s3://{bucket}/set") == ["data/ä b+c%.bin", "empty"]
    listed = store.list_objects(f"s3://{bucket}/set/")
    assert [(o["path"], o["size"]) for o in listed] == [("data/ä b+c%.bin", 5120), ("empty", 0)]
    paths = store.download(f"s3://{bucket}/set", tmp_path / "back")
    assert files(tmp_path / "back") == files(source), "nothing else is left there"
    assert [p.name for p in paths] == ["ä b+c%.bin", "empty"]


def test_a_single_file_goes_below_the_address(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    assert store.upload(tmp_path / "model.bin", f"s3://{bucket}") == ["model.bin"]
    assert [o["path"] for o in store.list_objects(f"s3://{bucket}")] == ["model.bin"]


def test_listings_have_as_many_pages_as_it_takes(bucket: str) -> None:
    client = boto3.client("s3")
    assert client.list_objects_v2(Bucket=bucket)["MaxKeys"] == int(PAGE), "pages are small here"
    for n in range(25):
        client.put_object(Bucket=bucket, Key=f"set/{n:03d}", Body=b"x")
    client.put_object(Bucket=bucket, Key="set/", Body=b"")  # what a console makes for a folder
    client.put_object(Bucket=bucket, Key="settings/other", Body=b"")  # a neighbour, not below
    listed = store.list_objects(f"s3://{bucket}/set")
    assert [o["path"] for o in listed] == [f"{n:03d}" for n in range(25)]


def test_the_version_changes_with_the_content(bucket: str) -> None:
    put(bucket, a=b"one")
    (before,) = store.list_objects(f"s3://{bucket}")
    put(bucket, a=b"two")
    (after,) = store.list_objects(f"s3://{bucket}")
    assert before["size"] == after["size"]
    assert before["version"] != after["version"]


def test_503_and_cut_bodies_are_repeated_and_the_bytes_are_right(
    bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    body = bytes(n % 251 for n in range(2500))
    put(bucket, x=body)
    proxy.failing += [503]
    listed = store.list_objects(f"s3://{bucket}")
    proxy.failing += [503]
    proxy.cuts += [10]
    store.download(f"s3://{bucket}", tmp_path, listed)
    assert files(tmp_path) == {"x": body}
    assert not proxy.failing
    assert not proxy.cuts


def test_a_stopped_download_goes_on_where_it_ended(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(n % 251 for n in range(2500))
    put(bucket, x=body)
    listed = store.list_objects(f"s3://{bucket}")
    monkeypatch.setattr(store, "ATTEMPTS", 1)
    real = store._body
    calls: list[int] = []

    def once(*arguments: object) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            proxy.failing.append(503)
        return real(*arguments)

    monkeypatch.setattr(store, "_body", once)
    with pytest.raises(TemporaryError):
        store.download(f"s3://{bucket}", tmp_path, listed)
    assert not (tmp_path / "x").exists(), "nothing is visible before it is whole"
    monkeypatch.setattr(store, "_body", real)
    proxy.ranges.clear()
    store.download(f"s3://{bucket}", tmp_path, listed)
    assert proxy.ranges == ["bytes=1000-1999", "bytes=2000-2499"]
    assert files(tmp_path) == {"x": body}, "no partial file stays"


def test_what_is_there_with_equal_content_is_not_fetched_again(
    bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    put(bucket, x=b"1234", y=b"5678")
    store.download(f"s3://{bucket}", tmp_path)
    (tmp_path / "y").write_bytes(b"9999")  # same size, other content
    proxy.ranges.clear()
    store.download(f"s3://{bucket}", tmp_path)
    assert len(proxy.ranges) == 1
    assert files(tmp_path) == {"x": b"1234", "y": b"5678"}


def test_an_object_that_changed_after_the_listing_is_refused(bucket: str, tmp_path: Path) -> None:
    put(bucket, x=b"old", y=b"gone")
    first, second = store.list_objects(f"s3://{bucket}")
    put(bucket, x=b"new")
    boto3.client("s3").delete_object(Bucket=bucket, Key="y")
    for listed in (first, second):
        with pytest.raises(DataError, match="changed or vanished"):
            store.download(f"s3://{bucket}", tmp_path, [listed])
    assert not (tmp_path / "x").exists()


def test_a_server_that_stays_away_is_a_temporary_failure(
    bucket: str, monkeypatch: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 2)
    proxy.failing += [503] * 2
    with pytest.raises(TemporaryError, match=bucket):
        store.list_objects(f"s3://{bucket}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TemporaryError, match=bucket):
        store.list_objects(f"s3://{bucket}")


def test_a_missing_bucket_and_missing_keys_are_the_users_error(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="NoSuchBucket"):
        store.list_objects("s3://nobody-made-this/x")
    with pytest.raises(UserError, match="nobody"):
        (tmp_path / "f").write_bytes(b"x")
        store.upload(tmp_path / "f", "s3://nobody-made-this/x")
    with pytest.raises(UserError, match=r"s3://bucket/prefix"):
        store.list_objects("s3://")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store._connected.cache_clear()
    with pytest.raises(UserError, match=r"[Cc]redentials"):
        store.list_objects(f"s3://{bucket}")
    store._connected.cache_clear()


def test_no_message_repeats_a_secret(bucket: str) -> None:
    with pytest.raises(UserError) as caught:
        store.list_objects("s3://key:hush-hush@bucket/x")
    assert "hush" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        store.list_objects("s3://nobody-made-this")
    assert not any(secret in str(caught.value) for secret in KEYS.values() if len(secret) > 8)


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "a//x", "./x", "a\\..\\x", "", "..", "a/\0"]
)
def test_a_listed_name_never_leaves_the_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outside"):
        store.inside(tmp_path / "in", path, "s3://bucket")


def test_a_hostile_listing_writes_nothing(bucket: str, tmp_path: Path) -> None:
    put(bucket, good=b"x")
    boto3.client("s3").put_object(Bucket=bucket, Key="set/../../escaped", Body=b"evil")
    with pytest.raises(DataError, match="escaped"):
        store.download(f"s3://{bucket}", tmp_path / "in")
    assert files(tmp_path) == {}


def test_a_link_in_the_folder_leads_nobody_out(bucket: str, tmp_path: Path) -> None:
    put(bucket, link__x=b"evil")
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match="outside"):
        store.download(f"s3://{bucket}", tmp_path / "in")
    assert files(tmp_path / "out") == {}


def test_an_object_that_would_be_file_and_folder_is_refused(bucket: str, tmp_path: Path) -> None:
    put(bucket, a=b"1", a__b__c=b"2")
    with pytest.raises(DataError, match="both"):
        store.download(f"s3://{bucket}", tmp_path)


def test_folders_are_an_address_too(tmp_path: Path) -> None:
    (tmp_path / "from" / "sub").mkdir(parents=True)
    (tmp_path / "from" / "sub" / "x").write_bytes(b"1")
    uri = str(tmp_path / "from")
    listed = store.list_objects(uri)
    assert [(o["path"], o["size"]) for o in listed] == [("sub/x", 1)]
    store.download(uri, tmp_path / "to")
    store.upload(tmp_path / "to", str(tmp_path / "again"))
    assert files(tmp_path / "again") == {"sub/x": b"1"}
    (tmp_path / "from" / "sub" / "x").write_bytes(b"22")
    with pytest.raises(DataError, match="changed"):
        store.download(uri, tmp_path / "to", listed)
    with pytest.raises(UserError, match="no such"):
        store.list_objects(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no such"):
        store.upload(tmp_path / "none", uri)
