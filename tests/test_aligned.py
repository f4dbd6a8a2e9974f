"""Correcting a lag: rows meet the pictures that show them, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components import lerobot
from components.episodes import Episodes
from components.ingestion import aligned
from components.ingestion.measure import Facts
from components.ingestion.stage import Config, Report, run
from tests import grown
from tests.test_ingestion import CONFIG
from tests.test_lag import FPS, LAYOUT, T, film, path

CAMERA = LAYOUT.cameras[0]
LOOKING = CONFIG.model_copy(update={"lag_pictures": T, "sampled_pictures": 0})
CORRECTING = LOOKING.model_copy(update={"correct_lag": True})


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def recorded(root: Path, late: dict[int, int]) -> Path:
    """A v3.0 data set of episodes (seed -> lag); key pictures every 10, so spans begin between."""
    writer = lerobot.Writer(
        root,
        robot_type="arm",
        fps=FPS,
        state_names=LAYOUT.state_names,
        action_names=LAYOUT.action_names,
        data_file_mb=10,
        video_file_mb=10,
    )
    root.parent.mkdir(parents=True, exist_ok=True)
    for seed, steps in late.items():
        places = path(seed).astype(np.float32)
        video = film(root.parent / f"{root.name}-{seed}.mp4", places[10 - steps : T + 10 - steps])
        state, action = places[10 : T + 10], places[12 : T + 12]
        times = np.arange(T) / FPS
        writer.add(lerobot.Recording(f"reach {seed}", times, state, action, {CAMERA: video.path}))
    writer.close()
    return root


def ingest(out: Path, *folders: Path, config: Config) -> Report:
    listing = grown.listing(out / "sources.json", *folders)
    return run(listing, out / "episodes", out / "quarantine", config=config)


def manifest(out: Path) -> dict[str, dict[str, Any]]:
    """By task, which is each episode's own."""
    rows = pq.read_table(out / "episodes/manifest.parquet").to_pylist()
    return {f"{row['source']} {row['task']}": row for row in rows}


def off(out: Path, episode_id: str) -> float:
    """How far, in pixels, the disc lies from where the rows say, the median over them."""
    episode = Episodes(out / "episodes")[episode_id]
    images = episode.clips[CAMERA].frames(episode.timestamps_s)[..., 0]
    bright = images > 170
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    weight = bright.sum(axis=(1, 2))
    seen = np.stack([(bright * axis).sum(axis=(1, 2)) / weight for axis in (columns, rows)], axis=1)
    return float(np.median(np.linalg.norm(seen - (6 + episode.state * [52, 36]), axis=1)))


def test_a_corrected_lag_is_gone_and_other_episodes_are_as_they_were(tmp_path: Path) -> None:
    """A late recorder, and one that is right but for a single early episode."""
    late = recorded(tmp_path / "late", dict.fromkeys(range(1, 6), 4))
    right = recorded(tmp_path / "right", {11: 0, 12: 0, 13: 0, 14: 0, 15: -3})
    before = ingest(tmp_path / "a", late, right, config=LOOKING)
    after = ingest(tmp_path / "b", late, right, config=CORRECTING)
    assert (before.episodes, before.lag_corrected) == (10, 0)
    assert (after.episodes, after.lag_corrected) == (10, 6)
    assert before.video_lag_s["late"] == pytest.approx(4 / FPS, abs=1 / FPS)
    assert after.video_lag_s["late"] == pytest.approx(0, abs=1 / FPS)
    was, now = manifest(tmp_path / "a"), manifest(tmp_path / "b")
    for name, row in now.items():
        steps = 4 if name.startswith("late") else -3 if name.endswith("15") else 0
        assert row["lag_corrected_steps"] == steps
        assert row["n_frames"] == T - abs(steps) == was[name]["n_frames"] - abs(steps)
        assert (row["episode_id"] == was[name]["episode_id"]) == (steps == 0)
        assert off(tmp_path / "b", row["episode_id"]) < 1
        if steps:
            assert abs(row["video_lag_s"]) <= 0.5 / FPS
            assert off(tmp_path / "a", was[name]["episode_id"]) > 1


def found(index: int, steps: float | None, spread: float = 0.3) -> Facts:
    told = {} if steps is None else {"video_lag_steps": steps, "video_lag_spread": spread}
    return Facts(0, index, "", "arm", numbers=told)


def moved(*facts: tuple[float | None, float]) -> dict[int, int]:
    return aligned.steps([found(n, steps, spread) for n, (steps, spread) in enumerate(facts)])


def test_a_source_speaks_for_its_unsure_episodes_and_not_for_others() -> None:
    three = [(3.2, 0.3), (2.9, 0.4), (3.1, 0.2)]
    assert moved(*three, (None, 0.0), (1.0, 1.8)) == dict.fromkeys(range(5), 3)
    assert moved(*three, (-2.0, 0.4)) == {0: 3, 1: 3, 2: 3, 3: -2}, "sure of another"
    assert moved(*three, (0.2, 0.4)) == {0: 3, 1: 3, 2: 3}, "sure of none"
    assert moved(*three, (3.9, 0.9)) == dict.fromkeys(range(4), 3), "not another, only noisier"


def test_what_is_not_sure_is_not_moved() -> None:
    assert moved((4.0, 1.6), (4.0, 1.6), (4.0, 1.6), (None, 0.0)) == {}
    assert moved((4.0, 0.3), (None, 0.0)) == {0: 4}, "one says nothing of another"
    assert moved((1.4, 0.9)) == {}, "no further from 0 than it errs"
    assert moved((4.0, 0.3), (0.0, 0.3), (-4.0, 0.3), (None, 0.0)) == {0: 4, 2: -4}


def test_what_has_no_pictures_to_read_is_left_as_it_is() -> None:
    three = [found(n, 3.0) for n in range(3)]
    broken = Facts(0, 3, "", "arm", videos_unreadable=1)
    assert aligned.steps([*three, broken]) == {0: 3, 1: 3, 2: 3}


def test_a_recording_in_two_sources_is_moved_alike() -> None:
    """The second source is too small to speak for itself."""
    ids = ["a", "b", "c", "d"]
    first = [replace(found(n, 3.0), episode_id=ids[n]) for n in range(4)]
    second = [replace(found(n, None), source=1, episode_id=ids[n]) for n in range(2)]
    readers: list[Any] = [SimpleNamespace(format="f", layout=None, indices=[]) for _ in range(2)]
    one, two = list(aligned.corrected(readers, [first, second]))
    assert isinstance(one, aligned.Aligned) and one.late == dict.fromkeys(range(4), 3)
    assert isinstance(two, aligned.Aligned) and two.late == {0: 3, 1: 3}


def test_correcting_without_looking_is_refused() -> None:
    with pytest.raises(ValueError, match="correct_lag needs lag_pictures of 34 or more, got 0"):
        Config.model_validate(CORRECTING.model_dump() | {"lag_pictures": 0})
