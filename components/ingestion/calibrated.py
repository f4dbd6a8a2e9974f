"""Which cameras of a robot are calibrated: those of which all its sources say the same.

A LeRobot data set has one set of features, so a robot has one calibration of a camera. Where
sources differ, or one says nothing, the camera may have been moved and counts as not calibrated;
another `robot` in `ingestion.mappings` keeps such cells apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.calibration import Calibration, agreed
from components.errors import UserError

if TYPE_CHECKING:
    from components.ingestion.raw import Reader
    from components.ingestion.writing import Accepted


def of(items: list[Accepted], readers: list[Reader]) -> dict[str, Calibration]:
    """By camera, for the episodes of one folder. UserError for pictures of another size."""
    for camera, said in _said(items, readers):
        got = items[0].facts.picture_shapes.get(camera, said.size_px)
        if got != said.size_px:
            raise UserError(
                f"ingestion: calibration of {camera}: expected size_px {list(got)}, the height and "
                f"width of its pictures, got {list(said.size_px)}; scale size_px and intrinsics to "
                "the recorded pictures."
            )
    sources = {item.facts.source for item in items}
    return agreed(dict(readers[source].layout.calibration) for source in sorted(sources))


def warnings(grouped: dict[str, list[Accepted]], readers: list[Reader]) -> list[str]:
    """One sentence for each camera of which sources say different things."""
    lines = []
    for folder, items in grouped.items():
        known = of(items, readers)
        lines += [
            f"{folder}: sources do not agree on where {camera} stands; it counts as not calibrated"
            for camera in sorted({camera for camera, _ in _said(items, readers)} - known.keys())
        ]
    return lines


def _said(items: list[Accepted], readers: list[Reader]) -> list[tuple[str, Calibration]]:
    sources = sorted({item.facts.source for item in items})
    return [pair for source in sources for pair in readers[source].layout.calibration]
