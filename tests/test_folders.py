"""Folders to S3 and back: whole, resumed, and never outside of where they belong."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from components import download, folders, store
from components.errors import DataError, TemporaryError, UserError
from tests.faulty_s3 import FaultyS3
from tests.servers import put


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_what_is_uploaded_comes_back_the_same(bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "empty").write_bytes(b"")
    (source / "data" / "ä b+c%.bin").write_bytes(bytes(range(256)) * 20)
    assert folders.upload(source, f"s3://{bucket}/set") == ["data/ä b+c%.bin", "empty"]
    listed = store.list_objects(f"s3://{bucket}/set/")
    assert [(o["path"], o["size"]) for o in listed] == [("data/ä b+c%.bin", 5120), ("empty", 0)]
    paths = folders.download(f"s3://{bucket}/set", tmp_path / "back")
    assert files(tmp_path / "back") == files(source), "nothing else is left there"
    assert [p.name for p in paths] == ["ä b+c%.bin", "empty"]
    assert folders.upload(source / "empty", f"s3://{bucket}") == ["empty"]
    store.remove(f"s3://{bucket}/set")
    assert [o["path"] for o in store.list_objects(f"s3://{bucket}")] == ["empty"]
    with pytest.raises(UserError, match="no such"):
        folders.upload(tmp_path / "none", f"s3://{bucket}")
    with pytest.raises(UserError, match="NoSuchBucket"):
        folders.upload(source, "s3://nobody-made-this")


def test_what_is_there_with_equal_content_is_not_fetched_again(
    bucket: str, faulty: FaultyS3, s3_server: str, tmp_path: Path
) -> None:
    put(s3_server, bucket, {"x": b"1234", "y": b"5678"})
    folders.download(f"s3://{bucket}", tmp_path / "in")
    (tmp_path / "in/y").write_bytes(b"9999")  # same size, other content
    faulty.forget()
    folders.download(f"s3://{bucket}", tmp_path / "in")
    assert faulty.ranges == [("y", 0, 4)]
    assert files(tmp_path / "in") == {"x": b"1234", "y": b"5678"}


def test_a_stopped_download_goes_on_where_it_ended(
    bucket: str,
    faulty: FaultyS3,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "PART_BYTES", 1000)
    monkeypatch.setattr(download, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(folders, "WORKERS", 1)
    body = bytes(n % 251 for n in range(2500))
    put(s3_server, bucket, {"x": body})
    faulty.cuts = [1000, *[0] * download.TRIES]
    with pytest.raises(TemporaryError):
        folders.download(f"s3://{bucket}", tmp_path / "in")
    assert not (tmp_path / "in/x").exists()
    faulty.forget()
    folders.download(f"s3://{bucket}", tmp_path / "in")
    assert 0 not in [first for _, first, _ in faulty.ranges], "it was there"
    assert files(tmp_path / "in") == {"x": body}


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "a//x", "./x", "a\\..\\x", "", "..", "a/\0"]
)
def test_a_listed_name_never_leaves_the_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outside"):
        folders.inside(tmp_path / "in", path, "s3://bucket")


def test_a_hostile_listing_writes_nothing(bucket: str, s3_server: str, tmp_path: Path) -> None:
    put(s3_server, bucket, {"good": b"x", "set/../../escaped": b"evil"})
    with pytest.raises(DataError, match="escaped"):
        folders.download(f"s3://{bucket}", tmp_path / "in")
    assert files(tmp_path) == {}


def test_a_link_in_the_folder_leads_nobody_out(bucket: str, s3_server: str, tmp_path: Path) -> None:
    put(s3_server, bucket, {"link/x": b"evil"})
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match="outside"):
        folders.download(f"s3://{bucket}", tmp_path / "in")
    assert files(tmp_path / "out") == {}


def test_what_changed_after_the_listing_is_refused(
    bucket: str, s3_server: str, tmp_path: Path
) -> None:
    put(s3_server, bucket, {"x": b"old"})
    listed = store.list_objects(f"s3://{bucket}")
    boto3.client("s3").put_object(Bucket=bucket, Key="x", Body=b"new")
    with pytest.raises(DataError, match="changed or vanished"):
        folders.download(f"s3://{bucket}", tmp_path / "in", listed)
    assert not (tmp_path / "in/x").exists()
