"""ingestion again: what an earlier run did is not done twice, and nothing of the past shows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components import shards
from components.episodes import Episodes
from components.errors import DataError
from components.ingestion import digests as remembered
from components.ingestion import groups, measure, source, stage
from components.outputs import sha256_folder
from flows import snapshot
from tests import grown

CONFIG = stage.Config(
    sources=["any"],
    min_frames=8,
    max_video_frames_off=1,
    min_camera_share=0.5,
    mappings={},
    sampled_pictures=4,
    lag_pictures=0,
    correct_lag=False,
    checks={},
    score_only=False,
    data_file_mb=1,
    video_file_mb=1,
)


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


class Counted:
    """How many episodes were measured and how many groups were written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measured = self.joined = 0
        from components import lerobot_files
        from components.ingestion import memory

        real_measure, real_join = measure.measure, lerobot_files.join

        def measuring(*arguments: object, **named: object) -> object:
            self.measured += 1
            return real_measure(*arguments, **named)  # type: ignore[arg-type]

        def joining(*arguments: object) -> object:
            self.joined += 1
            return real_join(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(memory, "measure", measuring)
        monkeypatch.setattr(groups.lerobot_files, "join", joining)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def ingest(out: Path, *folders: Path) -> stage.Report:
    where = grown.listing(out / "sources.json", *folders)
    return stage.run(where, out / "episodes", out / "quarantine", config=CONFIG)


def afresh(out: Path, monkeypatch: pytest.MonkeyPatch, *folders: Path) -> tuple[str, stage.Report]:
    """Digest and report of an ingestion that knows nothing."""
    with monkeypatch.context() as patch:
        patch.setenv("WAMFLOW_STORE", str(out / "empty"))
        report = ingest(out, *folders)
    return sha256_folder(out / "episodes") + sha256_folder(out / "quarantine"), report


def digests(out: Path) -> str:
    return sha256_folder(out / "episodes") + sha256_folder(out / "quarantine")


KINDS = {"v3": grown.lerobot_v3, "hdf5": grown.hdf5}


@pytest.mark.parametrize("kind", KINDS)
def test_new_recordings_cost_what_is_new_and_give_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    source = KINDS[kind](tmp_path / "panda", range(12))
    ingest(tmp_path / "one", source)
    assert counted.measured == 12
    shutil.rmtree(source)
    KINDS[kind](source, range(13))
    counted.measured = 0
    report = ingest(tmp_path / "two", source)
    assert counted.measured < 6, "the last file of a v3.0 data set grew"
    assert afresh(tmp_path / "fresh", monkeypatch, source) == (digests(tmp_path / "two"), report)


def test_nothing_new_measures_and_writes_nothing(tmp_path: Path, counted: Counted) -> None:
    source = grown.lerobot_v3(tmp_path / "panda", range(6))
    first = ingest(tmp_path / "one", source)
    counted.measured = counted.joined = 0
    assert ingest(tmp_path / "two", source) == first
    assert (counted.measured, counted.joined) == (0, 0)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_what_vanished_is_gone_and_history_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [grown.hdf5(tmp_path / f"panda_{n}", range(4 * n, 4 * n + 4)) for n in range(3)]
    ingest(tmp_path / "all", *sources)
    (sources[1] / "panda_0005.hdf5").unlink()
    for chosen in (sources, sources[1:], sources[::-1]):
        out = tmp_path / "-".join(s.name for s in chosen)
        report = ingest(out, *chosen)
        ids = set(Episodes(out / "episodes").ids)
        assert report.episodes == len(ids) == 4 * len(chosen) - 1
        assert afresh(out / "fresh", monkeypatch, *chosen) == (digests(out), report)


def test_a_damaged_store_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = grown.hdf5(tmp_path / "panda", range(6))
    first = ingest(tmp_path / "one", source)
    random = np.random.default_rng(0)
    for path in (shards.place() / "shards").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[int(random.integers(len(data)))] ^= 0xFF
            path.chmod(0o644)
            path.write_bytes(data)
    wanted = afresh(tmp_path / "fresh", monkeypatch, source)
    capsys.readouterr()
    assert ingest(tmp_path / "two", source) == first
    assert "shard store:" in capsys.readouterr().out
    assert (digests(tmp_path / "two"), first) == wanted


def test_an_edited_output_never_comes_back(tmp_path: Path) -> None:
    source = grown.lerobot_v3(tmp_path / "panda", range(4))
    ingest(tmp_path / "one", source)
    wanted = digests(tmp_path / "one")
    for path in (tmp_path / "one/episodes").rglob("*.mp4"):
        path.chmod(0o644)
        path.write_bytes(b"edited")
    ingest(tmp_path / "two", source)
    assert digests(tmp_path / "two") == wanted


def test_files_stay_below_their_limit_and_neighbours_do_not_move() -> None:
    def facts(number: int) -> measure.Facts:
        name = shards.key(number)[:20]
        size = 100_000 + 1000 * (number % 7)
        encoded = {"c": measure.Encoded(size, "same", name)}
        return measure.Facts(0, number, "", "", n_frames=50, encoded=encoded, episode_id=name)

    limits = groups.Limits(1, 2)
    whole = groups.split([facts(n) for n in range(400)], 5, limits)
    assert max(sum(f.encoded["c"].size for f in part) for part in whole) <= 2e6
    assert [f.index for part in whole for f in part] == list(range(400))
    assert len(whole) < 200, "files are not one for each episode"
    for gone in (0, 57, 399):
        less = groups.split([facts(n) for n in range(400) if n != gone], 5, limits)
        same = {tuple(f.index for f in part) for part in whole}
        moved = [part for part in less if tuple(f.index for f in part) not in same]
        assert len(moved) <= 3, "the file that lost it and at most its neighbours"


def test_videos_of_other_parameters_do_not_share_a_file() -> None:
    def facts(number: int, parameters: str) -> measure.Facts:
        encoded = {"c": measure.Encoded(10, parameters, str(number))}
        return measure.Facts(0, number, "", "", encoded=encoded, episode_id="f" * 20)

    parts = groups.split([facts(0, "a"), facts(1, "a"), facts(2, "b")], 5, groups.Limits(1, 1))
    assert [[f.index for f in part] for part in parts] == [[0, 1], [2]]


def test_rows_of_every_file_say_their_position(tmp_path: Path) -> None:
    ingest(tmp_path / "out", grown.lerobot_v3(tmp_path / "panda", range(9)))
    root = tmp_path / "out/episodes/grower"
    files = sorted(root.glob("data/*/*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["index"] for row in rows] == list(range(9 * 40))
    assert [row["episode_index"] for row in rows] == [n for n in range(9) for _ in range(40)]


def test_a_file_that_the_snapshot_digested_is_not_read_again_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "panda").mkdir()
    file = tmp_path / "panda" / "a.bin"
    file.write_bytes(b"signals")
    store = shards.place()
    store.mkdir()
    monkeypatch.setattr(snapshot, "SETTLED_S", -1.0)
    listing = snapshot.write([str(tmp_path / "panda")], tmp_path, tmp_path / "l.json", store)
    (item,) = source.load(listing)
    assert remembered.is_known(file, item.objects[0].sha256)
    assert not remembered.is_known(file, "0" * 64)
    state = file.stat()
    file.write_bytes(b"SIGNALS")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not remembered.is_known(file, item.objects[0].sha256), "the inode's change time differs"
    with pytest.raises(DataError, match=r"a\.bin: expected sha256"):
        item.file("a.bin")
