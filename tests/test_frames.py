"""The training view: only frames that are used, decoded once, read without mapping them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from components.episodes import Episodes
from components.errors import DataError, TemporaryError
from components.pretraining import view
from components.pretraining.frame_files import FrameFiles
from components.pretraining.frames import decoding
from components.pretraining.frames.decoding import Job, joined, lay_out
from tests.made_training import CONFIG, EPISODES, FRAMES, write

CAMERA = "observation.images.top"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


def jobs(data: Path, folder: Path, spans: decoding.Spans = ((0, 40),)) -> list[Job]:
    ids = Episodes(data / "episodes").ids
    folder.mkdir()
    return [
        Job(data / "episodes", e, (CAMERA, "none"), spans, 24, folder / f"{row:08d}.u8")
        for row, e in enumerate(ids)
    ]


def test_only_wanted_frames_are_decoded_and_they_are_the_episodes_own(
    data: Path, tmp_path: Path
) -> None:
    made = jobs(data, tmp_path / "a", ((3, 6), (30, 40)))
    assert lay_out(made, 60.0) == EPISODES
    files = FrameFiles(tmp_path / "a", (2, 24, 24, 3))
    assert files.path(1).stat().st_size == 13 * files.bytes
    wanted = np.array([[0, 12], [3, 3]])
    read = files.read(np.array([0, 4]), wanted)
    episodes = Episodes(data / "episodes")
    for row, (episode, frames) in enumerate(((0, [3, 39]), (4, [30, 30]))):
        whole = episodes[episodes.ids[episode]]
        expected = whole.clips[CAMERA].frames(whole.timestamps_s, (24, 24))
        assert (read[row, :, 0] == expected[frames]).all()
        assert (read[row, :, 1] == 0).all()  # a camera that this robot lacks


def test_what_was_decoded_is_not_decoded_again(data: Path, tmp_path: Path) -> None:
    first = jobs(data, tmp_path / "a")
    assert lay_out(first[:3], 60.0) == 3
    again = jobs(data, tmp_path / "b")
    assert lay_out(again, 60.0) == EPISODES - 3
    assert first[0].target.read_bytes() == again[0].target.read_bytes()
    kept = [p for p in (tmp_path.with_name(f"{tmp_path.name}.store")).rglob("*") if p.is_file()]
    largest = max(kept, key=lambda p: p.stat().st_size)
    largest.chmod(0o644)
    largest.write_bytes(b"spoiled")
    assert lay_out(jobs(data, tmp_path / "c"), 60.0) == 1


def test_a_resumed_training_takes_the_view_as_it_is(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [data / name for name in ("episodes", "captions", "plan")]
    view.build(*paths, tmp_path, CONFIG)
    assert f"frames of {EPISODES} episodes, {EPISODES} of them newly" in capsys.readouterr().out
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    view.build(*paths, tmp_path, CONFIG)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    (tmp_path / "view.json").unlink()  # killed before it was whole
    view.build(*paths, tmp_path, CONFIG)
    assert f"frames of {EPISODES} episodes, 0 of them newly" in capsys.readouterr().out


def test_spans_join_events_that_touch() -> None:
    starts, ends = np.array([20, 0, 50, 52]), np.array([40, 20, 60, 55])
    assert joined(starts, ends) == ((0, 40), (50, 60))
    assert joined(starts[:0], ends[:0]) == ()


def test_a_frame_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = FrameFiles(tmp_path, (1, 2, 2, 3))
    files.path(0).write_bytes(bytes(5 * files.bytes + 3))
    assert files.read(np.array([0]), np.array([[4]])).shape == (1, 1, 1, 2, 2, 3)
    for frame in (5, -1):
        with pytest.raises(DataError, match=f"no frame {frame}; expected one of 5 frames"):
            files.read(np.array([0]), np.array([[frame]]))


def test_memory_does_not_grow_with_what_was_read(tmp_path: Path) -> None:
    files = FrameFiles(tmp_path, (1, 64, 64, 3))
    for episode in range(20):
        files.path(episode).write_bytes(bytes(100 * files.bytes))  # 1.2 MB each
    statm = Path("/proc/self/statm")
    before = int(statm.read_text().split()[1])
    for episode in range(20):
        files.read(np.full(100, episode), np.arange(100)[:, None])
    assert int(statm.read_text().split()[1]) - before < 8 * 2**20 / os.sysconf("SC_PAGESIZE")


def _kill_oneself(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _sleep(job: Job) -> None:
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decode", "said"),
    [
        (_kill_oneself, "a process that decodes video was killed, near episode 0"),
        (_sleep, r"no episode was decoded within pretraining\.timeout_s \(3 s\)"),
    ],
)
def test_dead_and_stuck_decoding_is_reported(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: object, said: str
) -> None:
    monkeypatch.setattr(decoding, "decode", decode)
    with pytest.raises(TemporaryError, match=said):
        lay_out(jobs(data, tmp_path / "a")[:1], 3.0)
    assert FRAMES == 40
