"""What params.yaml says of a source replaces what is inferred; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components.episodes import Episodes
from components.errors import UserError
from components.ingestion import embodiments, formats, unlisted
from components.ingestion.inspect import inspect
from components.ingestion.raw import Reader
from components.ingestion.said import Said
from tests import test_readers as readers
from tests.test_ingestion import CONFIG, dataset_v21, ingest, rejected, signals


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def opened(folder: Path, **values: Any) -> Reader:
    source = unlisted.opened(str(folder))
    source.said = Said(**values)
    return formats.open_source(source, 0.5)


def lerobot(folder: Path) -> Path:
    return dataset_v21(folder, 2)


def hdf5(folder: Path) -> Path:
    return readers.robomimic(folder / "low.hdf5").parent


def rlds(folder: Path) -> Path:
    return readers.rlds(folder, [readers.framed(readers.example(readers.steps(0)))])


def bags(folder: Path) -> Path:
    messages = readers.timeline()
    more = [
        (at, "/hand/joint_states", kind, readers.joints(n, ["thumb", "index"], 9.0))
        for n, (at, topic, kind, _) in enumerate(messages)
        if topic == "/arm/joint_states"
    ]
    readers.mcap_cdr(folder / "one.mcap", sorted([*messages, *more], key=lambda m: m[0]))
    return folder


JOINED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], int]] = {
    "LeRobot": (lerobot, ("action", "observation.state"), 5),
    "HDF5": (hdf5, ("obs/robot0_joint_vel", "obs/robot0_joint_pos"), 14),
    "RLDS": (rlds, ("steps/action", "steps/observation/state"), 15),
    "MCAP": (bags, ("/arm/joint_states", "/hand/joint_states"), 5),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_is_said_is_joined_in_every_format(name: str, tmp_path: Path) -> None:
    build, columns, width = JOINED[name]
    reader = opened(build(tmp_path / "panda"), state=columns, fps=25.0)
    assert reader.layout.taken[0] == columns
    assert (len(reader.layout.state_names), reader.layout.fps) == (width, 25.0)
    episode = reader.read(reader.indices[0])
    assert episode.problem is None and episode.state.shape[1] == width
    assert episode.action.shape[1] == len(reader.layout.action_names)


@pytest.mark.parametrize("name", JOINED)
def test_what_is_not_there_is_refused_with_what_is(name: str, tmp_path: Path) -> None:
    build, columns, _ = JOINED[name]
    folder = build(tmp_path / "panda")
    with pytest.raises(UserError, match=rf"mappings: state: no nothing; there are .*{columns[1]}"):
        opened(folder, state=("nothing",))


def test_topics_that_are_joined_keep_their_own_times(tmp_path: Path) -> None:
    folder = bags(tmp_path / "panda")
    reader = opened(folder, state=("/arm/joint_states", "/hand/joint_states"))
    assert reader.layout.state_names == ("a", "b", "c", "thumb", "index")
    episode, plain = reader.read(0), opened(folder).read(0)
    assert np.array_equal(episode.state[:, :3], plain.state)
    assert (np.diff(episode.state[:, 3]) > 0).all() and episode.state[0, 3] > 8.9


def test_names_gripper_units_limits_and_cameras(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 2)
    said = Said(
        robot="my arm",
        state_names=("j0", "j1", "jaw_angle"),
        gripper=("j1",),
        units={"j0": "deg"},
        limits={"j0": (-0.5, 0.5)},
        cameras={"front": "wrist"},
    )
    mapped = CONFIG.model_copy(update={"mappings": {"d": said}, "score_only": True})
    report = ingest(tmp_path / "out", root, config=mapped)
    assert report.embodiments == {"my-arm": 2} and report.flagged["beyond_limits"] == 2
    episode = next(iter(Episodes(tmp_path / "out/episodes")))
    assert episode.state_names == ("j0", "j1_gripper", "jaw_angle")
    assert list(episode.clips) == ["observation.images.wrist"]
    assert episode.gripper is not None and episode.gripper.shape[1] == 2
    with pytest.raises(Exception, match="beyond_limits"):
        ingest(tmp_path / "b", root, config=mapped.model_copy(update={"score_only": False}))
    wide = CONFIG.model_copy(update={"mappings": {str(root): Said(limits={"x": (-9, 9)})}})
    assert (
        ingest(tmp_path / "c", root, config=wide).episodes == 2 and rejected(tmp_path / "c") == {}
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cameras": {"top": "a"}}, "cameras: no top; there are front"),
        ({"gripper": ("claw",)}, "gripper: no claw; there are gripper, lift, x, y, z"),
        ({"units": {"q": "rad"}}, "units: no q"),
        ({"limits": {"lift": (0, 1)}}, "limits: no lift; there are x, y, z"),
        ({"state_names": ("a", "b")}, r"state_names: expected 3 names \(x, y, z\), got 2"),
        ({"action_names": ("a", "a")}, "action_names: a name is there twice"),
    ],
)
def test_what_does_not_fit_is_refused(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        opened(dataset_v21(tmp_path / "d", 1), **values)


def test_a_mapping_is_typed() -> None:
    for wrong in ({"fps": 0}, {"colour": "red"}, {"limits": {"x": [1]}}, {"state": "x"}):
        with pytest.raises(ValidationError):
            Said(**wrong)


def test_inspection_shows_where_signals_come_from_and_what_was_said(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 1)
    plain = inspect(str(root), 5)
    assert (plain.state_from, plain.action_from) == (["observation.state"], ["action"])
    found = inspect(str(root), 5, mappings={"d": Said(state=("action",), units={"lift": "mm"})})
    assert found.state_from == ["action"] and found.state[0].unit == "mm"


def test_embodiments_have_names_units_masks_and_quantiles(tmp_path: Path) -> None:
    mapped = {"d": Said(units={"x": "m"})}
    ingest(tmp_path, dataset_v21(tmp_path / "d", 3), config=CONFIG.model_copy(
        update={"mappings": mapped}))  # fmt: skip
    (robot,) = json.loads((tmp_path / "episodes/embodiments.json").read_text()).items()
    assert robot[0] == "tester" and (robot[1]["episodes"], robot[1]["frames"]) == (3, 72)
    state = robot[1]["state"]
    assert state["names"] == ["x", "y", "z"] and state["units"][0] == "m"
    assert state["mask"] == [True, True, True] and robot[1]["action"]["gripper"] == [1]
    every = np.concatenate(
        [np.array(signals(i)["observation.state"], np.float32) for i in range(3)]
    )
    assert state["q01"] == pytest.approx(np.quantile(every, 0.01, axis=0), abs=1e-6)
    assert state["q99"] == pytest.approx(np.quantile(every, 0.99, axis=0), abs=1e-6)
    assert robot[1]["cameras"] == {"front": [32, 48]}


def test_quantiles_of_many_rows_are_of_evenly_spread_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    (tmp_path / "data").mkdir()
    for name, some in (("a", rows[:33]), ("b", rows[33:])):
        column = pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), 2)
        pq.write_table(pa.table({"action": column}), tmp_path / f"data/{name}.parquet")
    assert (embodiments._rows(tmp_path, "action", 2) == rows).all()
    monkeypatch.setattr(embodiments, "MOST_NUMBERS", 30)
    assert (embodiments._rows(tmp_path, "action", 2) == rows[::7]).all()
