"""What is known of a camera that stands still: how it projects, and where it stands.

No format of robot recordings has one place for it: ROS and MCAP carry intrinsics and leave the pose
to transforms, DROID's metadata has poses without intrinsics, LeRobot neither
(huggingface/lerobot#4417). So it stands in `ingestion.mappings`, or under `KEY` in the `info` of a
camera's feature in a LeRobot `info.json`, where our recorder and ingestion write it and LeRobot
leaves it alone. A camera that rides on the arm has no pose of its own and is not calibrated here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator

KEY = "calibration"
TURNED = 1e-3  # poses are written with a few digits
Matrix = tuple[tuple[float, ...], ...]


class Calibration(BaseModel, frozen=True, extra="forbid"):
    """A pinhole camera; lens distortion is small or was taken out of the pictures."""

    size_px: tuple[PositiveInt, PositiveInt] = Field(
        description="Height and width of the recorded pictures, pixels."
    )
    intrinsics: Matrix = Field(
        description="3 x 3 [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in their pixels, as OpenCV: the "
        "centre of the first pixel is 0, 0."
    )
    pose: Matrix = Field(
        description="4 x 4 camera to the robot's base (or any place that all its cameras share), "
        "metres; OpenCV axes: x right, y down, z into the picture."
    )

    @field_validator("intrinsics", mode="before")
    @classmethod
    def _projects(cls, value: Any) -> Any:
        k = _matrix(value, 3)
        if k[0, 0] <= 0 or k[1, 1] <= 0 or k[1, 0] or list(k[2]) != [0, 0, 1]:
            raise ValueError(
                f"expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy above 0 pixels, got "
                f"{k.tolist()}"
            )
        return k.tolist()

    @field_validator("pose", mode="before")
    @classmethod
    def _stands(cls, value: Any) -> Any:
        pose = _matrix(value, 4)
        turn = pose[:3, :3]
        off = np.abs(turn @ turn.T - np.eye(3)).max()
        if off > TURNED or np.linalg.det(turn) < 0 or list(pose[3]) != [0, 0, 0, 1]:
            raise ValueError(
                "expected a rotation (rows of length 1 at right angles, determinant 1), metres in "
                f"the last column and a last row [0, 0, 0, 1], got {pose.tolist()}, whose rotation "
                f"is off by {off:.3g} with determinant {np.linalg.det(turn):.3g}"
            )
        return pose.tolist()


def _matrix(value: Any, size: int) -> np.ndarray:
    """(size, size) float64, or ValueError."""
    try:
        found = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"expected {size} rows of {size} numbers, got {value!r:.200}") from None
    if found.shape != (size, size) or not np.isfinite(found).all():
        raise ValueError(f"expected {size} x {size} finite numbers, got {found.tolist()!r:.200}")
    return found


def of(feature: Any) -> Calibration | None:
    """What a camera's feature of `info.json` says; None where nothing. ValueError if wrong."""
    info = feature.get("info") if isinstance(feature, dict) else None
    if not isinstance(info, dict) or KEY not in info:
        return None
    try:
        return Calibration.model_validate(info[KEY])
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"info.{KEY}: {'; '.join(wrong)}") from None


def agreed(said: Iterable[Mapping[str, Calibration]]) -> dict[str, Calibration]:
    """Of each camera, where all say the same of it."""
    first, *others = list(said) or [{}]
    return {name: c for name, c in first.items() if all(o.get(name) == c for o in others)}
