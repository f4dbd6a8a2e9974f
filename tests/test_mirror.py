"""Objects of S3 as local files: resumed, checked, once; from a server in another process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import pytest

from components import download, store
from components.errors import DataError, OutOfSpaceError, TemporaryError, UserError
from components.ingestion import bucket as buckets
from components.ingestion import mirror, room
from tests.conftest import ROOT
from tests.faulty_s3 import FaultyS3
from tests.servers import put

PART = 1000


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PART_BYTES", PART)
    monkeypatch.setattr(download, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(mirror, "PARTS", 4)


def body(size: int, seed: int = 0) -> bytes:
    return bytes((n * 7 + n // 251 + seed) % 251 for n in range(size))


def visible() -> dict[str, bytes]:
    """Files that a reader could be shown."""
    found = [p for p in mirror.folder().glob("??/*/*") if not p.name.startswith(".")]
    return {p.name: p.read_bytes() for p in found}


def test_objects_come_whole_and_with_their_digest(bucket: str, s3_server: str) -> None:
    objects = {"set/ä b+c%.bin": body(5120), "set/empty": b"", "set/a/b": b"1", "set/a": b"2"}
    put(s3_server, bucket, objects)
    source = buckets.listed(f"s3://{bucket}/set/")
    source.fetch()
    for item in source.objects:
        file = source.file(item.path)
        assert file.read_bytes() == objects[f"set/{item.path}"]
        assert mirror.sha256(file) == hashlib.sha256(objects[f"set/{item.path}"]).hexdigest()
        assert not os.access(file, os.W_OK) or os.geteuid() == 0
    left = {p.name for p in mirror.folder().rglob(".*")}
    assert left == {mirror.LOCK, mirror.RECORD}, "nothing partial stays"


def test_faults_are_repeated_and_the_bytes_are_right(
    bucket: str, faulty: FaultyS3, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, a cut body, silence, wrong lengths and a slow start, in one download of six parts."""
    monkeypatch.setattr(store, "SILENCE_S", 0.3)
    put(s3_server, bucket, {"x": body(5500)})
    source = buckets.listed(f"s3://{bucket}")
    faulty.failing, faulty.cuts, faulty.stalls = [503, 500], [10, 500], [30]
    faulty.lies, faulty.late = [0, 7, -7], [0.2]
    assert source.file("x").read_bytes() == body(5500)
    assert not (faulty.failing + faulty.cuts + faulty.stalls + faulty.lies)
    assert faulty.sent < 5500 + 7 * PART, "a cut costs a part at most"


def test_a_cut_goes_on_at_the_byte_where_it_was(
    bucket: str, faulty: FaultyS3, s3_server: str
) -> None:
    put(s3_server, bucket, {"x": body(800)})
    faulty.cuts = [100] * 7  # more cuts than tries: each one brought something
    assert buckets.listed(f"s3://{bucket}").file("x").read_bytes() == body(800)
    assert [first for _, first, _ in faulty.ranges] == [0, 100, 200, 300, 400, 500, 600, 700]


def test_a_stopped_download_goes_on_where_it_ended(
    bucket: str, faulty: FaultyS3, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3_server, bucket, {"x": body(2500)})
    source = buckets.listed(f"s3://{bucket}")
    monkeypatch.setattr(mirror, "PARTS", 1)
    faulty.cuts = [PART, *[0] * download.TRIES]
    with pytest.raises(TemporaryError):
        source.fetch()
    assert visible() == {}, "nothing is visible before it is whole"
    faulty.forget()
    source.fetch()
    assert ("x", 1000, 2000) in faulty.ranges
    assert ("x", 0, 1000) not in faulty.ranges, "it was there"
    assert source.file("x").read_bytes() == body(2500)


KILLED = """
import sys
from pathlib import Path
from components import download
from components.ingestion import bucket, mirror
download.PART_BYTES, mirror.PARTS, mirror.OBJECTS = 1000, 2, 2
bucket.listed(sys.argv[1]).fetch()
"""


def test_sigkill_costs_no_more_than_the_parts_under_way(
    bucket: str, faulty: FaultyS3, s3_server: str
) -> None:
    objects = {"a": body(6000), "b": body(6000, 1), "c": body(500)}
    put(s3_server, bucket, objects)
    faulty.part_s = 0.2
    command = [sys.executable, "-c", KILLED, f"s3://{bucket}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while faulty.sent < 5 * PART:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert set(visible()) <= {"c"}
    faulty.part_s = 0.0
    before = faulty.sent
    faulty.forget()
    source = buckets.listed(f"s3://{bucket}")
    source.fetch()
    again = before + faulty.sent - sum(map(len, objects.values()))
    assert again <= 4 * PART, "two under way, and two that came in the meantime"
    assert faulty.sent <= sum(map(len, objects.values())) - 3 * PART
    assert {name: source.file(name).read_bytes() for name in objects} == objects


def test_parts_that_rotted_on_the_disk_are_fetched_again(
    bucket: str, faulty: FaultyS3, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3_server, bucket, {"x": body(2500)})
    source = buckets.listed(f"s3://{bucket}")
    monkeypatch.setattr(mirror, "PARTS", 1)
    faulty.cuts = [PART, PART, *[0] * download.TRIES]
    with pytest.raises(TemporaryError):
        source.fetch()
    (partial,) = mirror.folder().rglob(download.PARTIAL)
    with partial.open("r+b") as file:
        file.write(b"\0" * 10)
    faulty.forget()
    assert source.file("x").read_bytes() == body(2500)
    assert sorted(first for _, first, _ in faulty.ranges) == [0, 2000]


def test_only_what_is_new_is_downloaded(bucket: str, faulty: FaultyS3, s3_server: str) -> None:
    put(s3_server, bucket, {f"set/{n:02d}": body(300, n) for n in range(20)})
    buckets.listed(f"s3://{bucket}/set").fetch()
    put(s3_server, bucket, {"set/20": body(300, 20), "set/03": body(300, 99)})
    faulty.forget()
    source = buckets.listed(f"s3://{bucket}/set")
    source.fetch()
    assert sorted(faulty.ranges) == [("set/03", 0, 300), ("set/20", 0, 300)]
    assert source.file("03").read_bytes() == body(300, 99)


def test_what_the_snapshot_pinned_is_read_or_nothing(bucket: str, s3_server: str) -> None:
    put(s3_server, bucket, {"x": b"old", "y": b"gone"})
    source = buckets.listed(f"s3://{bucket}")
    put(s3_server, bucket, {"x": b"new"})
    boto3.client("s3").delete_object(Bucket=bucket, Key="y")
    for path in ("x", "y"):
        with pytest.raises(DataError, match=f"{bucket}.*'{path}' changed or vanished"):
            source.file(path)
    assert visible() == {}


def test_a_pinned_version_outlives_what_overwrites_it(bucket: str, s3_server: str) -> None:
    client = boto3.client("s3")
    put(s3_server, bucket, {"z": b"before there were versions"})
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put(s3_server, bucket, {"x": b"old", "y": b"kept"})
    source = buckets.listed(f"s3://{bucket}")
    put(s3_server, bucket, {"x": b"new", "z": b"after"})
    client.delete_object(Bucket=bucket, Key="y")
    assert all(item.version_id for item in source.objects)
    read = {item.path: source.file(item.path).read_bytes() for item in source.objects}
    assert read == {"x": b"old", "y": b"kept", "z": b"before there were versions"}
    later = buckets.listed(f"s3://{bucket}")
    assert {i.path: later.file(i.path).read_bytes() for i in later.objects} == {
        "x": b"new", "z": b"after",
    }  # fmt: skip


def test_bytes_that_are_not_what_the_etag_says_are_refused(
    bucket: str, faulty: FaultyS3, s3_server: str
) -> None:
    put(s3_server, bucket, {"x": body(2500)})
    source = buckets.listed(f"s3://{bucket}")
    faulty.damage = lambda found: bytes(len(found))
    with pytest.raises(DataError, match="came twice with MD5"):
        source.fetch()
    assert visible() == {}
    faulty.damage = bytes
    assert source.file("x").read_bytes() == body(2500)


def test_objects_whose_etag_is_no_md5_come_too(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploaded in parts, or encrypted with a key of KMS: size and pin are all there is."""
    client = boto3.client("s3")
    put(s3_server, bucket, {"plain": b"p"})
    client.put_object(
        Bucket=bucket, Key="kms", Body=b"k", ServerSideEncryption="aws:kms", SSEKMSKeyId="key"
    )
    upload = client.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    made = [
        client.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=n, Body=part)
        for n, part in ((1, body(5 * 2**20)), (2, b"end"))
    ]
    parts = [{"PartNumber": n, "ETag": m["ETag"]} for n, m in enumerate(made, start=1)]
    client.complete_multipart_upload(
        Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    monkeypatch.setattr(download, "PART_BYTES", 2**20)
    source = buckets.listed(f"s3://{bucket}")
    assert "-" in source.listed["parts"].etag
    assert source.file("parts").read_bytes() == body(5 * 2**20) + b"end"
    assert source.file("kms").read_bytes() == b"k"
    assert not store.has_md5(source.uri, buckets._pinned(source.listed["kms"]))
    assert store.has_md5(source.uri, buckets._pinned(source.listed["plain"]))


def test_a_file_that_rotted_in_the_mirror_is_fetched_again(bucket: str, s3_server: str) -> None:
    put(s3_server, bucket, {"x": body(500)})
    uri = f"s3://{bucket}"
    file = buckets.listed(uri).file("x")
    file.chmod(0o644)
    file.write_bytes(body(500, 1))
    assert buckets.listed(uri).file("x").read_bytes() == body(500)


@pytest.mark.parametrize(
    "key", ["../../x", "/etc/x", "a//x", "./x", "a/../x", "full/", "tab\tx", "a/.."]
)
def test_names_that_lead_elsewhere_are_set_aside(bucket: str, s3_server: str, key: str) -> None:
    put(s3_server, bucket, {f"set/{key}": b"evil", "set/good": b"x", "set/.hidden/y": b"no data"})
    source = buckets.listed(f"s3://{bucket}/set")
    assert [item.path for item in source.objects] == ["good"]
    assert [item.path for item in source.aside] == [key]


@pytest.mark.parametrize("key", ["é" * 400, "d\\..\\x", "x..", "a" * 1000, "%2e%2e%2fx", "🤖.mcap"])
def test_strange_names_stay_in_the_mirror(
    bucket: str, s3_server: str, key: str, tmp_path: Path
) -> None:
    put(s3_server, bucket, {f"d/{key}": b"1"})
    source = buckets.listed(f"s3://{bucket}")
    (item,) = [*source.objects, *source.aside]
    if source.objects:
        file = source.file(item.path)
        assert file.read_bytes() == b"1" and file.is_relative_to(mirror.folder())
    others = [p for p in tmp_path.rglob("*") if p.is_file() and "store" not in p.parts]
    assert others == []


def test_two_downloads_of_one_object_are_one(bucket: str, faulty: FaultyS3, s3_server: str) -> None:
    put(s3_server, bucket, {"x": body(2500)})
    faulty.part_s = 0.05
    found: list[bytes] = []

    def fetch() -> None:
        found.append(buckets.listed(f"s3://{bucket}").file("x").read_bytes())

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [body(2500)] * 4
    assert faulty.sent == 2500


def test_what_was_used_longest_ago_makes_room(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = 300_000
    monkeypatch.setattr(download, "PART_BYTES", 10**6)
    put(s3_server, bucket, {f"old/{n}": body(big, n) for n in range(4)} | {"new": body(big, 9)})
    source = buckets.listed(f"s3://{bucket}/old")
    source.fetch()
    for age_s, path in enumerate("2013"):  # 3 is the oldest
        for file in source.file(path).parent.iterdir():
            os.utime(file, (1e9 - age_s, 1e9 - age_s))
    monkeypatch.setenv("WAMFLOW_MIRROR_GB", "0.0013")
    fresh = buckets.listed(f"s3://{bucket}")
    fresh.file("new")
    assert len(visible()) == 5, "what this process has used stays"
    os.close(room._hold(mirror.folder(), os.getpid()))
    for cached in (room._hold, room._used):
        cached.cache_clear()  # as another process, later
    put(s3_server, bucket, {"newer": body(big, 10)})
    fresh = buckets.listed(f"s3://{bucket}")
    fresh.file("newer")
    assert set(visible()) == {"2", "0", "new", "newer"}
    monkeypatch.setenv("WAMFLOW_MIRROR_GB", "much")
    with pytest.raises(UserError, match="WAMFLOW_MIRROR_GB=much"):
        fresh.fetch()


def test_a_disk_without_room_is_said_before_anything_comes(
    bucket: str, faulty: FaultyS3, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3_server, bucket, {"x": body(500)})
    usage = (10**9, 10**9, 100)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: os_usage(*usage))
    with pytest.raises(OutOfSpaceError, match="Make room"):
        buckets.listed(f"s3://{bucket}").fetch()
    assert faulty.ranges == []


def os_usage(total: int, used: int, free: int) -> object:
    from shutil import _ntuple_diskusage

    return _ntuple_diskusage(total, used, free)


def test_first_bytes_cost_no_whole_object(bucket: str, faulty: FaultyS3, s3_server: str) -> None:
    put(s3_server, bucket, {"x": body(5000), "y": b"ab"})
    source = buckets.listed(f"s3://{bucket}")
    assert (source.head("x", 8), source.head("y", 8)) == (body(8), b"ab")
    assert faulty.sent == buckets.HEAD_BYTES + 2
