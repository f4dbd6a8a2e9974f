"""The listing of the sources against an independent one, and what is wrong with sources."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import boto3
import pytest

from components import outputs, store
from components.errors import TemporaryError, UserError
from flows import snapshot
from tests.servers import KEYS, free_port, put


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of files that are older than the snapshot's distrust."""
    folder = tmp_path / "recordings" / "robot"
    (folder / "meta").mkdir(parents=True)
    (folder / "b.bin").write_bytes(b"b" * 1000)
    (folder / "meta" / "info.json").write_text("{}")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("no data")
    old = time.time() - 100
    for path in folder.rglob("*"):
        os.utime(path, (old, old))
    return folder


def write(tmp_path: Path, *sources: str) -> dict[str, list[dict[str, object]]]:
    shared = tmp_path / ".wamflow"
    shared.mkdir(exist_ok=True)
    target = snapshot.write(list(sources), tmp_path, tmp_path / "inputs/sources.json", shared)
    listed: dict[str, list[dict[str, object]]] = json.loads(target.read_text())
    return listed


def test_every_object_is_listed_with_its_digest(tmp_path: Path, source: Path) -> None:
    said = subprocess.run(
        ["sha256sum", "b.bin", "meta/info.json"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = {line.split()[1]: line.split()[0] for line in said.splitlines()}
    (listed,) = write(tmp_path, "recordings/robot")["sources"]
    assert (listed["uri"], listed["name"]) == (str(source), "robot")
    objects = listed["objects"]
    assert isinstance(objects, list)
    assert {o["path"]: o["sha256"] for o in objects} == expected
    assert [o["path"] for o in objects] == ["b.bin", "meta/info.json"]
    assert [o["size"] for o in objects] == [1000, 2]


def test_a_second_snapshot_reads_nothing_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path, str(source))
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return outputs.sha256(path)

    monkeypatch.setattr(snapshot, "sha256", noted)
    assert write(tmp_path, str(source)) == first
    assert read == []
    (source / "b.bin").write_bytes(b"c" * 1000)
    changed = write(tmp_path, str(source))
    assert read == [source / "b.bin"]
    digest = hashlib.sha256(b"c" * 1000).hexdigest()
    assert digest in json.dumps(changed)


def test_a_file_that_just_changed_is_not_trusted(tmp_path: Path, source: Path) -> None:
    """Same size, same time stamp, other content: possible within a clock tick only."""
    path = source / "b.bin"
    path.write_bytes(b"1" * 10)
    stamp = path.stat().st_mtime_ns
    write(tmp_path, str(source))
    with path.open("r+b") as file:
        file.write(b"2" * 10)
    os.utime(path, ns=(stamp, stamp))
    digest = hashlib.sha256(b"2" * 10).hexdigest()
    assert digest in json.dumps(write(tmp_path, str(source)))


def test_a_file_with_its_old_time_put_back_is_read_again(tmp_path: Path, source: Path) -> None:
    """As `cp -p` or `rsync -t` leave it: size, time stamp and inode are those of before."""
    path = source / "b.bin"
    before = path.stat()
    write(tmp_path, str(source))
    time.sleep(0.05)  # more than a tick of the file system's clock
    with path.open("r+b") as file:
        file.write(b"c" * 1000)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    digest = hashlib.sha256(b"c" * 1000).hexdigest()
    assert digest in json.dumps(write(tmp_path, str(source)))


def test_objects_of_s3_are_listed_with_their_pins(
    tmp_path: Path, source: Path, bucket: str, s3_server: str
) -> None:
    """Beside a folder; without keys, server or clock, and the same when listed again."""
    objects = {
        "robot/b.bin": b"b" * 1000,
        "robot/meta/info.json": b"{}",
        "robot/.git/x": b"no data",
    }
    put(s3_server, bucket, objects | {"robot/../up": b"evil", "robot/meta/": b""})
    listed = write(tmp_path, str(source), f"s3://{bucket}/robot/")["sources"]
    md5 = {name: hashlib.md5(body).hexdigest() for name, body in objects.items()}
    assert listed[1] == {
        "uri": f"s3://{bucket}/robot",
        "name": "robot",
        "objects": [
            {"path": "b.bin", "size": 1000, "etag": md5["robot/b.bin"]},
            {"path": "meta/info.json", "size": 2, "etag": md5["robot/meta/info.json"]},
        ],
        "aside": [
            {"path": "../up", "detail": "its name leaves the source, or ends as a folder's does"}
        ],
    }
    target = tmp_path / "inputs/sources.json"
    before = target.read_bytes()
    write(tmp_path, str(source), f"s3://{bucket}/robot")
    assert target.read_bytes() == before
    assert not any(word.encode() in before for word in (*KEYS.values(), s3_server))
    versions = {"Status": "Enabled"}
    boto3.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versions)
    put(s3_server, bucket, objects)
    (again,) = write(tmp_path, f"s3://{bucket}/robot")["sources"]
    assert all(o["version_id"] and o["etag"] for o in again["objects"])
    assert not (tmp_path / "store").exists(), "nothing is downloaded"


def test_what_is_wrong_with_a_source_in_s3_is_said(
    tmp_path: Path, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3_server, bucket, {"robot/.hidden": b"no data"})
    for missing in ("nowhere", "robot"):
        with pytest.raises(UserError, match=f"{bucket}/{missing}: no object below.*correct"):
            write(tmp_path, f"s3://{bucket}/{missing}")
    with pytest.raises(UserError, match=r"nobody-made-this.*NoSuchBucket"):
        write(tmp_path, "s3://nobody-made-this")
    monkeypatch.setattr(store, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TemporaryError, match=bucket):
        write(tmp_path, f"s3://{bucket}")
    assert not (tmp_path / "inputs/sources.json").exists(), "no half-written listing"


def test_what_is_wrong_with_a_source_is_said(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "inputs/sources.json"
    with pytest.raises(UserError, match="no such folder"):
        write(tmp_path, "recordings/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        write(tmp_path, str(source), "empty")
    with pytest.raises(UserError, match=r"source gs://bucket/set: expected a folder or s3://"):
        write(tmp_path, "gs://bucket/set")
    assert not target.exists(), "no half-written listing"
