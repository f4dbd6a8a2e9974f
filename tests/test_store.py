"""Listing and reading pinned objects of an S3 server in another process; whose fault what is."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from components import store
from components.errors import DataError, TemporaryError, UserError, WamflowError
from tests.faulty_s3 import FaultyS3
from tests.servers import KEYS, free_port, put, s3

PAGE = "7"  # objects in one page of a listing


def test_listings_have_as_many_pages_as_it_takes(bucket: str, s3_server: str) -> None:
    """1000 are a page; put without signatures, which the emulator does not ask for."""
    connection = http.client.HTTPConnection(urlsplit(s3_server).netloc)
    for number in range(1005):
        connection.request("PUT", f"/{bucket}/set/{number:04d}", b"x", {"Host": "localhost"})
        connection.getresponse().read()
    connection.close()
    put(s3_server, bucket, {"set/": b"", "settings/other": b""})  # a console's folder; a neighbour
    first = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix="set/")
    assert first["IsTruncated"], "one page is not enough here"
    for uri in (f"s3://{bucket}/set", f"s3://{bucket}/set/"):
        listed = store.list_objects(uri)
        assert [o["path"] for o in listed] == [f"{n:04d}" for n in range(1005)]
    assert {(o["size"], o["version_id"]) for o in listed} == {(1, "")}


def test_versions_are_listed_by_page_too(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3(MOTO_S3_DEFAULT_MAX_KEYS=PAGE) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        client = boto3.client("s3")
        client.create_bucket(Bucket="old")
        client.put_bucket_versioning(Bucket="old", VersioningConfiguration={"Status": "Enabled"})
        for _ in range(2):
            put(url, "old", {f"set/{n:02d}": b"x" for n in range(20)})
        client.delete_object(Bucket="old", Key="set/07")
        listed = store.list_objects("s3://old/set")
        current = {n: client.head_object(Bucket="old", Key=f"set/{n}") for n in ("00", "19")}
    assert [o["path"] for o in listed] == [f"{n:02d}" for n in range(20) if n != 7]
    assert {n: current[n]["VersionId"] for n in current} == {
        o["path"]: o["version_id"] for o in listed if o["path"] in current
    }


def test_the_pin_changes_with_the_content(bucket: str, s3_server: str) -> None:
    put(s3_server, bucket, {"a": b"one"})
    (before,) = store.list_objects(f"s3://{bucket}")
    put(s3_server, bucket, {"a": b"two"})
    (after,) = store.list_objects(f"s3://{bucket}")
    assert (before["size"], before["path"]) == (after["size"], after["path"])
    assert before["etag"] != after["etag"]


def test_503_is_repeated(bucket: str, faulty: FaultyS3, s3_server: str) -> None:
    put(s3_server, bucket, {"x": b"1"})
    faulty.failing += [503, 500]
    assert len(store.list_objects(f"s3://{bucket}")) == 1
    assert not faulty.failing


def test_a_server_that_stays_away_is_a_temporary_failure(
    bucket: str, monkeypatch: pytest.MonkeyPatch, faulty: FaultyS3
) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 2)
    faulty.failing += [503] * 2
    with pytest.raises(TemporaryError, match=bucket):
        store.list_objects(f"s3://{bucket}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TemporaryError, match=f"{bucket}.*AWS_ENDPOINT_URL"):
        store.list_objects(f"s3://{bucket}")


def test_what_changed_or_vanished_is_never_read(bucket: str, s3_server: str) -> None:
    uri = f"s3://{bucket}"
    put(s3_server, bucket, {"x": b"old", "y": b"gone"})
    changed, vanished = store.list_objects(uri)
    put(s3_server, bucket, {"x": b"new"})
    boto3.client("s3").delete_object(Bucket=bucket, Key="y")
    for wanted in (changed, vanished):
        got = bytearray()
        with pytest.raises(DataError, match=f"'{wanted['path']}' changed or vanished"):
            store.read(uri, wanted, 0, 3, got.extend, within_s=9)
        assert got == b""


def test_a_body_that_breaks_off_says_so(bucket: str, faulty: FaultyS3, s3_server: str) -> None:
    put(s3_server, bucket, {"x": bytes(range(100))})
    (wanted,) = store.list_objects(f"s3://{bucket}")

    def read() -> tuple[bytes, str]:
        got = bytearray()
        with pytest.raises(store.CutError) as caught:
            store.read(f"s3://{bucket}", wanted, 10, 60, got.extend, within_s=0.5)
        return bytes(got), str(caught.value)

    faulty.cuts = [20]
    assert read()[0] == bytes(range(10, 30)), "what came before is good"
    faulty.lies = [-5]
    assert "offered 45" in read()[1]
    faulty.lies = [5]
    assert "offered 55" in read()[1]
    faulty.trickle_s = 0.05
    began = time.monotonic()
    assert "too slow" in read()[1]
    assert time.monotonic() - began < 2


def test_a_connection_that_falls_silent_is_cut(
    bucket: str, faulty: FaultyS3, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SILENCE_S", 0.3)
    put(s3_server, bucket, {"x": bytes(range(100))})
    (wanted,) = store.list_objects(f"s3://{bucket}")
    faulty.stalls = [20]
    got = bytearray()
    began = time.monotonic()
    with pytest.raises(store.CutError, match="connection broke"):
        store.read(f"s3://{bucket}", wanted, 0, 100, got.extend, within_s=60)
    assert got == bytes(range(20)) and time.monotonic() - began < 2


def test_a_missing_bucket_and_wrong_addresses_are_the_users_error(bucket: str) -> None:
    with pytest.raises(UserError, match=r"NoSuchBucket.*Correct the bucket's name"):
        store.list_objects("s3://nobody-made-this/x")
    for wrong in ("s3://", "s3:///x", "s3://a b/c", "http://x/y"):
        with pytest.raises(UserError, match=r"s3://bucket/prefix"):
            store.list_objects(wrong)


def test_missing_keys_and_a_wrong_endpoint_say_what_to_set(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(UserError, match="Correct AWS_ENDPOINT_URL"):
        store.list_objects(f"s3://{bucket}")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"[Cc]redentials.*Set AWS_ACCESS_KEY_ID"):
        store.list_objects(f"s3://{bucket}")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"nobody.*AWS_PROFILE"):
        store.list_objects(f"s3://{bucket}")


def test_wrong_keys_are_the_users_error_without_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator checks keys once its first calls are through; then none of ours is known."""
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAWRONGWRONGWRONG1", "AWS_SECRET_ACCESS_KEY": "hush" * 10}
    with s3(INITIAL_NO_AUTH_ACTION_COUNT="0") as url:
        for name, value in (secrets | {"AWS_ENDPOINT_URL": url}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"keys are wrong.*AWS_ACCESS_KEY_ID") as caught:
            store.list_objects("s3://bucket/x")
    assert not any(secret in everything(caught.value) for secret in secrets.values())


def test_no_message_repeats_a_secret(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "-".join(["hush"] * 2)
    with pytest.raises(UserError) as caught:
        store.list_objects(f"s3://key:{secret}@bucket/x")
    assert secret not in everything(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{secret}@127.0.0.1:{free_port()}")
    monkeypatch.setattr(store, "ATTEMPTS", 1)
    with pytest.raises(TemporaryError) as caught_later:
        store.list_objects(f"s3://{bucket}")
    assert secret not in everything(caught_later.value)


def everything(error: WamflowError) -> str:
    """What a log would show of an error: its message and those that a traceback adds."""
    import traceback

    return "".join(traceback.format_exception(error))
