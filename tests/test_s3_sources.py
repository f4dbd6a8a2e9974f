"""Recordings in S3, end to end: listed, ingested, inspected, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components import params
from components.errors import DataError
from components.ingestion import inspect as inspecting
from components.ingestion import mirror, source
from components.ingestion.stage import Config, Report, run
from flows import snapshot
from tests.conftest import ROOT, wamflow
from tests.faulty_s3 import FaultyS3
from tests.servers import KEYS, put
from tests.test_ingestion import dataset_v21
from tests.test_readers import json_timeline, mcap_json

CONFIG = params.section(params.load(ROOT / "params.yaml"), "ingestion", Config)


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three episodes with a camera, one video a file."""
    return dataset_v21(tmp_path / "local" / "robot")


def send(folder: Path, url: str, bucket: str, prefix: str) -> str:
    """All files of a folder below a prefix; the address."""
    files = (p for p in folder.rglob("*") if p.is_file())
    put(url, bucket, {f"{prefix}/{p.relative_to(folder)}": p.read_bytes() for p in files})
    return f"s3://{bucket}/{prefix}"


def ingest(out: Path, *sources: str) -> Report:
    (out / "shared").mkdir(parents=True, exist_ok=True)
    listing = snapshot.write(list(sources), out, out / "inputs/sources.json", out / "shared")
    return run(listing, out / "episodes", out / "quarantine", config=CONFIG)


def manifest(out: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(out / "episodes/manifest.parquet").to_pylist()
    return found


def digests(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_folder_and_bucket_give_the_same_episodes(
    bucket: str, faulty: FaultyS3, s3_server: str, recordings: Path, tmp_path: Path
) -> None:
    """One episode id wherever it lies, duplicates collapse, only new objects are downloaded."""
    uri = send(recordings, s3_server, bucket, "fleet/robot")
    put(s3_server, bucket, {"fleet/robot/../../x.mp4": b"evil"})
    here, there, both = (ingest(tmp_path / n, *s) for n, s in {
        "here": [str(recordings)], "there": [uri], "both": [str(recordings), uri],
    }.items())  # fmt: skip
    assert here.episodes == there.episodes == both.episodes == 3
    assert both.duplicates == 3
    ids = [[row["episode_id"] for row in manifest(tmp_path / n)] for n in ("here", "there", "both")]
    assert ids[0] == ids[1] == ids[2]
    for row in manifest(tmp_path / "both"):
        assert len(row["origins"]) == 2 and row["origins"][1].startswith(f"{uri}#")
    for name in ("there", "both"):
        assert digests(tmp_path / name / "episodes/tester") == digests(
            tmp_path / "here/episodes/tester"
        )
    assert there.reasons == {"unsafe_name": 1}
    (aside,) = pq.read_table(tmp_path / "there/quarantine/quarantine.parquet").to_pylist()
    assert aside["source_uri"] == f"{uri}/../../x.mp4" and "leaves the source" in aside["detail"]
    whole = sum(p.stat().st_size for p in recordings.rglob("*") if p.is_file())
    assert faulty.sent <= whole + 64 * 20, "once for all three"
    secrets = [value.encode() for value in KEYS.values() if len(value) > 8]
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(secret in p.read_bytes() for p in written for secret in secrets)


def test_the_version_says_what_was_pinned(
    bucket: str, s3_server: str, recordings: Path, tmp_path: Path
) -> None:
    uri = send(recordings, s3_server, bucket, "robot")
    ingest(tmp_path / "first", uri)
    changed = recordings / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(changed), changed, compression="gzip")
    send(recordings, s3_server, bucket, "robot")
    ingest(tmp_path / "second", uri)
    versions = [
        {row["source_uri"]: row["source_version"] for row in manifest(tmp_path / name)}
        for name in ("first", "second")
    ]
    differ = [key for key in versions[0] if versions[0][key] != versions[1][key]]
    assert differ == [f"{uri}#1"]
    assert [r["episode_id"] for r in manifest(tmp_path / "first")] == [
        r["episode_id"] for r in manifest(tmp_path / "second")
    ], "the content did not change"


def test_an_object_that_changed_since_the_snapshot_ends_the_stage(
    bucket: str, s3_server: str, recordings: Path, tmp_path: Path
) -> None:
    uri = send(recordings, s3_server, bucket, "robot")
    listing = snapshot.write([uri], tmp_path, tmp_path / "inputs/sources.json", tmp_path)
    put(s3_server, bucket, {"robot/meta/info.json": b"{}"})
    with pytest.raises(DataError, match=r"'meta/info.json' changed or vanished.*wamflow snapshot"):
        run(listing, tmp_path / "e", tmp_path / "q", config=CONFIG)
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_the_stage_ends_with_75_and_goes_on_where_it_stopped(
    bucket: str, faulty: FaultyS3, s3_server: str, recordings: Path, tmp_path: Path
) -> None:
    uri = send(recordings, s3_server, bucket, "robot")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    snapshot.write([uri], tmp_path, tmp_path / "inputs/sources.json", tmp_path)

    def stage() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "components", "ingestion", "inputs/sources.json", "e", "q"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "WAMFLOW_FAILURE": str(tmp_path / "why")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    faulty.cuts = [10**6] * 5 + [0] * 200
    code, said = stage()
    assert code == 75, said
    why = json.loads((tmp_path / "why").read_text())
    assert why["kind"] == "temporary" and bucket in why["message"]
    there = len(list(mirror.folder().glob("??/*/[!.]*")))
    assert there >= 1 and not (tmp_path / "e").exists()
    faulty.cuts = []
    faulty.forget()
    code, said = stage()
    assert code == 0, said
    assert f"; {there} were here already" in said
    assert len(faulty.ranges) == len(list(mirror.folder().glob("??/*/[!.]*"))) - there


def test_inspect_downloads_what_it_shows_only(
    bucket: str, faulty: FaultyS3, s3_server: str, recordings: Path
) -> None:
    uri = send(recordings, s3_server, bucket, "robot")
    here, there = inspecting.inspect(str(recordings), 1), inspecting.inspect(uri, 1)
    assert there.model_dump() == here.model_dump() | {"uri": uri}
    videos = {key for key, *_ in faulty.ranges if key.endswith(".mp4")}
    assert len(videos) == 1, "of three"


def test_the_command_inspects_an_address(bucket: str, s3_server: str, tmp_path: Path) -> None:
    mcap_json(tmp_path / "fr3/one.mcap", json_timeline())
    uri = send(tmp_path / "fr3", s3_server, bucket, "fr3")
    process = wamflow(ROOT, "inspect", uri, "--json", WAMFLOW_STORE=str(tmp_path / "store"))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(out)["format"] == "MCAP (JSON)"
    nowhere = wamflow(ROOT, "inspect", f"s3://{bucket}/typo", WAMFLOW_STORE=str(tmp_path / "store"))
    out, errors = nowhere.communicate(timeout=60)
    assert nowhere.returncode == 10 and "no object below this address" in errors, errors


def test_a_listing_keeps_folders_and_buckets_apart(bucket: str, tmp_path: Path) -> None:
    objects = [{"path": "x", "size": 1, "etag": "e"}]
    listed = {"sources": [{"uri": f"s3://{bucket}/a", "name": "a", "objects": objects}]}
    (tmp_path / "sources.json").write_text(json.dumps(listed))
    (found,) = source.load(tmp_path / "sources.json")
    assert type(found).__name__ == "Bucket"
    before = found.version(["x"])
    assert not mirror.folder().exists(), "a version asks nobody"
    listed["sources"][0]["objects"][0]["etag"] = "f"
    (tmp_path / "sources.json").write_text(json.dumps(listed))
    assert source.load(tmp_path / "sources.json")[0].version(["x"]) != before
