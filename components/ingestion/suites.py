"""Suites of checks as data: YAML files beside this one, and changes of them in params.yaml.

`suites/default.yaml` holds for every robot, `suites/<name>.yaml` changes it for robots whose name
starts so, `ingestion.checks` (`default`, or the start of a name) has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError

from components.errors import UserError
from components.ingestion.reasons import Reason

FOLDER = Path(__file__).parent / "suites"
DEFAULT = "default"


class Check(BaseModel, frozen=True, extra="forbid"):
    """Bounds of one fact; a word is the name of a value of the section."""

    name: str
    fact: str
    min: float | str | None = None
    max: float | str | None = None
    severity: Literal["blocking", "warning", "off"]
    reason: Reason


class Change(BaseModel, frozen=True, extra="forbid"):
    """What `ingestion.checks` says of one check; what it leaves out stays as it is."""

    fact: str | None = None
    min: float | str | None = None
    max: float | str | None = None
    severity: Literal["blocking", "warning", "off"] | None = None
    reason: Reason | None = None


Changes = Mapping[str, Mapping[str, Change]]  # start of a robot's name -> check -> change


def suite(robot: str, changes: Changes, values: Mapping[str, Any], known: set[str]) -> list[Check]:
    """The checks for one robot, words replaced by `values`; those that are off are left out.

    UserError names a check that is incomplete, a fact that nobody measures, or an unknown word.
    """
    merged: dict[str, dict[str, Any]] = {}
    for layer in [*_files(robot), *_of(robot, changes)]:
        for name, fields in layer.items():
            merged.setdefault(name, {}).update(fields)
    checks = [_check(name, fields, values, known) for name, fields in merged.items()]
    return [check for check in checks if check.severity != "off"]


def _files(robot: str) -> list[dict[str, dict[str, Any]]]:
    files = {path.stem: path for path in FOLDER.glob("*.yaml")}
    return [dict(yaml.safe_load(files[name].read_text())) for name in _applying(robot, list(files))]


def _of(robot: str, changes: Changes) -> list[dict[str, dict[str, Any]]]:
    return [
        {name: change.model_dump(exclude_none=True) for name, change in changes[start].items()}
        for start in _applying(robot, list(changes))
    ]


def _applying(robot: str, starts: list[str]) -> list[str]:
    """`default`, then starts of the robot's name, the longest last."""
    ours = [start for start in starts if robot.lower().startswith(start.lower())]
    default = [DEFAULT] if DEFAULT in starts else []
    return default + sorted((s for s in ours if s != DEFAULT), key=lambda s: (len(s), s))


def _check(name: str, fields: dict[str, Any], values: Mapping[str, Any], known: set[str]) -> Check:
    where = f"params.yaml: ingestion.checks: {name}"
    fields = {"reason": name, **fields}
    for bound in ("min", "max"):
        if isinstance(word := fields.get(bound), str):
            if not isinstance(values.get(word), int | float):
                raise UserError(
                    f"{where}: {bound}: expected a number or a value of `ingestion`; got {word!r}."
                )
            fields[bound] = float(values[word])
    try:
        check = Check(name=name, **fields)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(
            f"{where}: {said}. Expected fact, min or max, severity (blocking, warning, off) and, "
            "for a check of your own, reason."
        ) from None
    if check.fact not in known:
        raise UserError(f"{where}: no fact {check.fact!r}; there are {', '.join(sorted(known))}.")
    if check.min is None and check.max is None:
        raise UserError(f"{where}: expected min or max, got neither.")
    return check
