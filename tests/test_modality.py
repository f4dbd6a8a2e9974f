"""Names of dimensions from `meta/modality.json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.ingestion import modality
from components.ingestion.source import Object
from tests import made_episodes as made

COUNTED = ("motor_0", "motor_1", "motor_2")


def named(folder: Path, parts: object, known: tuple[str, ...] = COUNTED) -> tuple[str, ...]:
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta/modality.json").write_text(json.dumps(parts))
    listed = [Object(path="meta/modality.json", size=1, sha256="")]
    return modality.names(made.Folder(uri=str(folder), name="x", objects=listed), "state", known)


def test_spans_name_dimensions_that_are_only_counted(tmp_path: Path) -> None:
    parts = {"state": {"arm": {"start": 0, "end": 2}, "hand": {"start": 2, "end": 3}}}
    assert named(tmp_path, parts) == ("arm_0", "arm_1", "hand")
    assert named(tmp_path, {"state": {"arm": {"start": 1, "end": 2}}})[0] == "motor_0"


def test_names_that_say_something_stay(tmp_path: Path) -> None:
    known = ("shoulder", "elbow", "gripper")
    assert named(tmp_path, {"state": {"arm": {"start": 0, "end": 3}}}, known) == known


@pytest.mark.parametrize(
    "parts",
    [
        [],
        {},
        {"state": 3},
        {"state": {"arm": {"start": 0, "end": 9}}},
        {"state": {"arm": {"start": 2, "end": 1}}},
        {"state": {"arm": {"start": "?", "end": 1}}},
        {"state": {"arm": None}},
        {"state": {"motor_2": {"start": 0, "end": 1}}},
    ],
)
def test_what_makes_no_sense_changes_nothing(tmp_path: Path, parts: object) -> None:
    assert named(tmp_path, parts) == COUNTED


def test_a_humanoid_has_hands() -> None:
    for episode in made.real("gr1-pick-place"):
        assert episode.gripper is not None and episode.gripper.shape[1] == 12
        assert episode.gripper_command is not None
