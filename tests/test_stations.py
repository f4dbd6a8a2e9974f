"""The Meta-World station: seeded scenes, hidden goals, cheap pictures; and the recorder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("MUJOCO_GL", "osmesa")
pytest.importorskip("mujoco")
try:
    import mujoco

    mujoco.GLContext(16, 16).free()
except Exception as error:  # without libosmesa6 there is nothing to test here
    pytest.skip(f"no software rendering on this machine: {error}", allow_module_level=True)

from components.episodes import _LeRobot
from components.errors import UserError
from components.stations import recording
from components.stations.metaworld import SENTENCES, MetaworldStation


@pytest.fixture(scope="module")
def station() -> Iterator[MetaworldStation]:
    station = MetaworldStation()
    yield station
    station.close()


def test_equal_seeds_give_equal_scenes(station: MetaworldStation) -> None:
    seen = []
    for seed in (7, 8, 7):
        station.reset("drawer-open", seed)
        for _ in range(5):
            station.step(station.expert())
        seen.append(station.observe())
    assert np.array_equal(seen[0].images["top"], seen[2].images["top"])
    assert np.array_equal(seen[0].state, seen[2].state)
    assert not np.array_equal(seen[0].images["top"], seen[1].images["top"])


def test_a_policy_sees_pictures_and_the_arm_only(station: MetaworldStation) -> None:
    station.reset("drawer-open", 3)
    seen = station.observe()
    assert set(seen.images) == set(station.cameras)
    assert all(i.shape == (96, 96, 3) and i.dtype == np.uint8 for i in seen.images.values())
    assert np.allclose(seen.state[:3], station.env.get_endeff_pos(), atol=1e-5)
    station.env._target_pos = station.env._target_pos + 0.3  # moving the goal moves nothing we see
    for site in station.env._target_site_config:
        station.env._set_pos_site(*site)
    moved = station.observe()
    assert all(np.array_equal(seen.images[c], moved.images[c]) for c in station.cameras)
    assert np.array_equal(seen.state, moved.state)


def test_a_frame_costs_less_than_15_ms(station: MetaworldStation) -> None:
    station.reset("door-open", 0)
    station.observe()
    costs = []
    for _ in range(10):
        start = time.process_time()
        station.observe()
        costs.append((time.process_time() - start) / len(station.cameras))
    assert np.median(costs) < 0.015


def test_every_sentence_is_a_task_of_metaworld() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"{task}-v3" for task in SENTENCES} <= set(ALL_V3_ENVIRONMENTS)


def test_truth_comes_from_the_simulator(station: MetaworldStation) -> None:
    station.reset("button-press-topdown", 0)
    assert station.truth() == (False, False, False, False)
    truth = []
    while not station.succeeded():
        station.step(station.expert())
        truth.append(station.truth())
    assert truth[-1].contact and truth[-1].success
    assert any(moment.object_moving for moment in truth)


def test_wrong_tasks_and_actions_say_what_was_expected(station: MetaworldStation) -> None:
    with pytest.raises(UserError, match=r"unknown task 'fly'; expected one of assembly"):
        station.reset("fly", 0)
    station.reset("door-open", 0)
    with pytest.raises(UserError, match=r"4 numbers; got shape \(3,\)"):
        station.step(np.zeros(3, np.float32))
    with pytest.raises(UserError, match="unknown station"):
        recording.record("mars", ["door-open"], 1, Path("nowhere"))
    with pytest.raises(UserError, match="unknown tasks"):
        recording.record("metaworld", ["fly"], 1, Path("nowhere"))


def test_recorded_actions_replay_to_the_same_end(tmp_path: Path) -> None:
    """The recording is what happened: its actions, from its seed, succeed again."""
    out = recording.record("metaworld", ["button-press-topdown"], 2, tmp_path / "rec", seed=5)

    episode = _LeRobot(out, "metaworld-sawyer").episode(1, "x")
    assert episode.task == SENTENCES["button-press-topdown"]
    station = MetaworldStation()
    station.reset("button-press-topdown", 6)
    for state, action in zip(episode.state, episode.action, strict=True):
        assert np.allclose(station.state(), state, atol=1e-5)
        station.step(action)
    assert station.succeeded()
    station.close()
    frames = episode.clips["observation.images.top"].frames(episode.timestamps_s)
    assert frames.shape == (len(episode), 96, 96, 3)
    (camera,) = _LeRobot(out, "metaworld-sawyer").calibration()
    assert camera == "observation.images.top", "the one at the wrist moves"
    assert (tmp_path / "rec.truth" / "truth.parquet").is_file()
    with pytest.raises(UserError, match="exists already"):
        recording.record("metaworld", ["button-press-topdown"], 2, out)
