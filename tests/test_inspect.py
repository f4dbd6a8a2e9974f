"""`wamflow inspect`: each shared folder in one screen, with every oddity that its README lists."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from components.errors import DataError, UserError
from components.ingestion.inspect import inspect
from components.ingestion.units import unit
from flows import inspection
from tests.conftest import ROOT, wamflow
from tests.test_ingestion import dataset_v21, shared, video_file
from tests.test_readers import json_timeline, mcap_json

LINES, COLUMNS = 40, 80  # of a screen

ODDITIES = {  # the column "what is odd about it" of ../shared/data/README.md, in our words
    "cr5-banana": (
        "timestamps are irregular",
        "gaps over 0.15 s",
        "between two frames",
        "the video runs on an exact 0.1 s grid",
        "the action has a gripper (gripper), the state has none",
        "camera top moves with the robot: it seems to sit on the hand",
    ),
    "gr1-pick-place": (
        "egoview is declared but has no video",
        "claims 100 episodes, 5 are here",
        "timestamps start at 0.05 s",
    ),
    "franka-pick-place": (
        "no column observation.state: joined from 10 columns, state.joints",
        "no column action: joined from 16 columns, action.joints",
        "columns not taken over: annotation.",
        "video.base_view_2 is declared but has no video",
        "video.base_view: 1 of 4 episodes have a video",
    ),
    "so101-still": ("nothing moves: state and action are constant",),
    "franka-stack-hdf5": (
        "no camera",
        "generated_dataset_small_failed.hdf5 holds failures only: success is false in all 16",
    ),
    "bridge-rlds": (
        "val is train again in another order: 25 of 25",
        "camera image_3 is black",
        "is_last and is_terminal never set",
    ),
    "franka-teach-mcap": (
        "log_time 0 mixed with time since 1970",
        "naive duration would be 1.7e9 s",
        "/robot_state.joint_velocities",
    ),
    "ats-ros2-mcap": (
        "joints of the state are q0, q1, q2, of the commands q1, q2, q3",
        "rates differ per topic",
    ),
}


@pytest.mark.parametrize("name", ODDITIES)
def test_a_shared_folder_is_one_screen_that_names_its_oddities(name: str) -> None:
    found = inspect(str(shared(name)), 100)
    for words in ODDITIES[name]:
        assert any(words in line for line in found.warnings), (words, found.warnings)
    out = io.StringIO()
    Console(file=out, width=COLUMNS).print(inspection.render(found))
    text = out.getvalue()
    assert len(text.splitlines()) <= LINES, text
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert found.format in text and found.robot in text


def test_what_is_shown_is_what_is_there() -> None:
    found = inspect(str(shared("bridge-rlds")), 100)
    assert (found.episodes, found.frames, found.fps, found.robot) == (50, 500, 5.0, "widowx")
    assert [(c.name, c.height, c.width) for c in found.cameras] == [
        (f"image_{i}", 64, 64) for i in range(4)
    ]
    assert [d.unit for d in found.state] == ["m"] * 3 + ["rad"] * 3 + ["0..1"]
    assert found.gripper_action == ["gripper"] and found.end_effector == ["x", "y", "z"]
    assert len(found.tasks) == 4
    part = inspect(str(shared("bridge-rlds")), 10)
    assert (part.episodes, part.looked_at, part.frames) == (50, 10, 100)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    mcap_json(tmp_path / "fr3/one.mcap", json_timeline())
    table = wamflow(ROOT, "inspect", str(tmp_path / "fr3"))
    out, errors = table.communicate(timeout=60)
    assert (table.returncode, errors) == (0, ""), errors
    assert "MCAP (JSON)" in out and "log_time 0 mixed" in out
    document = wamflow(ROOT, "inspect", str(tmp_path / "fr3"), "--json")
    values = json.loads(document.communicate(timeout=60)[0])
    assert values["episodes"] == 1 and values["format"] == "MCAP (JSON)"
    assert [d["name"] for d in values["state"]] == ["a", "b"]


def test_nothing_is_said_of_sound_recordings(tmp_path: Path) -> None:
    """But what is true of these: they start late, and have two actions for three joints."""
    found = inspect(str(dataset_v21(tmp_path / "d")), 100)
    assert (found.episodes, found.kept_aside) == (3, {})
    assert [line.split(":")[0][:24] for line in found.warnings] == [
        "the action has a gripper",
        "state and action differ ",
        "timestamps start at 0.05",
    ]


def test_what_would_be_kept_aside_is_said_before_anybody_ingests(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d")
    video_file(root, 1).write_bytes(b"")
    (root / "data/chunk-000/episode_000002.parquet").write_bytes(b"PAR1")
    found = inspect(str(root), 100)
    assert found.kept_aside == {"unreadable_data": 1}
    assert any("1 of 3 episodes have a video that cannot be read" in w for w in found.warnings)


def test_an_address_without_recordings_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        inspect(str(tmp_path / "nothing"), 10)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="no known format"):
        inspect(str(tmp_path), 10)


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("joint_0", -3.0, 3.1, "rad"),
        ("shoulder_joint", -170.0, 90.0, "deg?"),
        ("joint_0_vel", -1.0, 1.0, "rad/s"),
        ("eef_x", -0.4, 0.6, "m"),
        ("eef_quat_3", -1.0, 1.0, "1"),
        ("gripper", 0.0, 1.0, "0..1"),
        ("gripper", -1.0, 1.0, "-1..1"),
        ("state_4", 0.0, 1.0, ""),
        ("joint_0", 0.0, 0.0, ""),
    ],
)
def test_units_by_name_and_range(name: str, low: float, high: float, expected: str) -> None:
    assert unit(name, low, high) == expected
