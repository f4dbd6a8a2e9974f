"""Forms, changes and the params.yaml of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from components.errors import UserError
from flows import values
from tests.conftest import ROOT


class Config(BaseModel, frozen=True, extra="forbid"):
    temperature: float = Field(gt=0, le=1, description="How even.")
    names: list[str]


FORM = {
    "sampling": values._filled("sampling", Config(temperature=0.5, names=["a"])),
    "own": {"x": 1},
}


def test_the_form_shows_bounds_descriptions_and_present_values() -> None:
    section = FORM["sampling"]
    assert isinstance(section, Config)
    shown = type(section).model_json_schema()["properties"]["temperature"]
    assert shown["default"] == 0.5
    assert (shown["exclusiveMinimum"], shown["maximum"]) == (0, 1)
    assert shown["description"] == "How even."
    assert type(section)().model_dump() == {"temperature": 0.5, "names": ["a"]}
    with pytest.raises(ValueError, match="less than or equal to 1"):
        type(section)(temperature=2)


def test_every_stage_of_this_project_has_a_form() -> None:
    form = values.form(ROOT)
    assert all(isinstance(section, BaseModel) for section in form.values()), form


def test_only_what_differs_counts_as_changed() -> None:
    chosen = values.chosen(FORM, {"sampling": {"temperature": 0.25}})
    assert values.changed(FORM, chosen) == {"sampling": {"temperature": 0.25}}
    assert values.changed(FORM, values.chosen(FORM, {})) == {}


def test_assignments_are_yaml() -> None:
    given = ["sampling.temperature=1e-3", "sampling.names=[b, c]", "own.x=null"]
    assert values.parse(given) == {
        "sampling": {"temperature": 0.001, "names": ["b", "c"]},
        "own": {"x": None},
    }


def test_a_nested_value_is_set_alone(tmp_path: Path) -> None:
    nested = {"own": {"x": {"y": 1, "z": [2]}}}
    changes = values.parse(["own.x.y=3"])
    assert values.chosen(nested, changes) == {"own": {"x": {"y": 3, "z": [2]}}}
    assert nested == {"own": {"x": {"y": 1, "z": [2]}}}, "the form itself stays"
    path = tmp_path / "params.yaml"
    path.write_text("own:\n  x:  # so\n    y: 1\n    z: [2]\n")
    values.apply(path, changes)
    assert path.read_text() == "own:\n  x:  # so\n    y: 3\n    z: [2]\n"
    with pytest.raises(UserError, match=r"did you mean own\.x\.y\?"):
        values.apply(path, {"own": {"x.yy": 1}})
    form = values.form(ROOT)
    robots = {"own": {"frames": {"arm": 1, "arm.v2": 2}}}
    assert values.chosen(robots, values.parse(["own.frames.arm.v2=3"])) == {
        "own": {"frames": {"arm": 1, "arm.v2": 3}}
    }
    assert [values.at(robots["own"], f"frames.{name}") for name in ("arm", "arm.v2")] == [1, 2]
    refined = values.chosen(form, {"segmentation": {"refinement.pictures": 12}})["segmentation"]
    assert refined.refinement.pictures == 12
    with pytest.raises(UserError, match=r"segmentation\.refinement\.pictures.*got 1"):
        values.chosen(form, {"segmentation": {"refinement.pictures": 1}})


@pytest.mark.parametrize("given", ["sampling", "sampling=1", "=1", ".x=1", "a.=1", "a.b=[1"])
def test_assignments_of_another_form_are_refused(given: str) -> None:
    with pytest.raises(UserError, match="--set"):
        values.parse([given])


def test_unknown_names_are_all_listed_with_what_was_meant() -> None:
    wrong = {"sampling": {"temperatur": 1}, "smapling": {"x": 1}}
    with pytest.raises(UserError) as failure:
        values.chosen(FORM, wrong)
    assert "did you mean sampling.temperature?" in str(failure.value)
    assert "did you mean sampling?" in str(failure.value)


def test_wrong_values_are_refused_by_their_path() -> None:
    with pytest.raises(UserError, match=r"sampling\.temperature.*got 7"):
        values.chosen(FORM, {"sampling": {"temperature": 7}})


def test_comments_order_and_other_values_stay(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = "# top\nb:\n  x: 1.0  # units\n  y: [1, 2]\na:\n  z: 'quoted'\n"
    path.write_text(text)
    values.apply(path, {"b": {"x": 2.5}})
    assert path.read_text() == text.replace("1.0", "2.5")
    values.apply(path, {})
    assert path.read_text() == text.replace("1.0", "2.5")
    with pytest.raises(UserError, match="unknown"):
        values.apply(path, {"b": {"new": 1}})
