"""What a person says of a source where inference is wrong: `ingestion.mappings` of params.yaml.

Columns, arrays and topics go by the names that `wamflow inspect` shows; dimensions by the names
they get from them. What is not said stays inferred.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from pydantic import BaseModel, Field

from components.calibration import Calibration
from components.errors import UserError

Names = tuple[str, ...]


class Said(BaseModel, frozen=True, extra="forbid"):
    """Of one source; all of it optional."""

    robot: str | None = Field(default=None, description="Name of the embodiment.")
    fps: float | None = Field(
        default=None, gt=0, le=1e5, description="Rate of rows, where no clock says."
    )
    state: Names = Field(
        default=(), description="Columns, arrays or topics that are joined to the state."
    )
    action: Names = Field(default=(), description="The same for the action.")
    state_names: Names = Field(default=(), description="Names of the state's dimensions, in order.")
    action_names: Names = Field(
        default=(), description="Names of the action's dimensions, in order."
    )
    gripper: Names = Field(default=(), description="Dimensions that are the gripper.")
    cameras: dict[str, str] = Field(
        default={}, description="Camera -> its name; others are left out."
    )
    calibration: dict[str, Calibration] = Field(
        default={},
        description="Camera that stands still, by the name it gets -> size_px [height, width] of "
        "its pictures, intrinsics (3 x 3, pixels) and pose (4 x 4 camera to base, metres, OpenCV "
        "axes), so that patches that cannot see a common point need not attend to each other.",
    )
    units: dict[str, str] = Field(default={}, description="Dimension -> its unit.")
    limits: dict[str, tuple[float, float]] = Field(
        default={}, description="Dimension of the state -> smallest and largest value that can be."
    )
    task: str | None = Field(default=None, description="The sentence of every episode without one.")


def of(mappings: Mapping[str, Said], name: str, uri: str) -> Said:
    """What is said of a source, by its address or its name."""
    return mappings.get(uri) or mappings.get(name) or Said()


def chosen(kind: str, wanted: Names, there: Iterable[str]) -> Names:
    """`wanted`, all of which are there. UserError lists what is."""
    names = list(there)
    if missing := [name for name in wanted if name not in names]:
        refuse(kind, f"no {', '.join(missing)}; there are {', '.join(sorted(names)[:40])}")
    return wanted


def refuse(kind: str, what: str) -> NoReturn:
    """The error for a mapping that does not fit its source."""
    raise UserError(f"params.yaml: ingestion.mappings: {kind}: {what}.")
