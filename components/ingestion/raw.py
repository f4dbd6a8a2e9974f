"""An episode as a reader gives it: signals with canonical names, before any check."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from components.ingestion.reasons import Problem
from components.packets import Span

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """What all episodes of one source share."""

    robot_type: str
    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: tuple[str, ...]  # feature names, `observation.images.<camera>`


@dataclass(frozen=True)
class RawEpisode:
    """T rows of one recording. Where `problem` is set, signals may be missing (T = 0)."""

    index: int  # the source's own number of the episode
    uri: str
    version: str  # digest of the files it was read from
    task: str | None = None
    timestamps_s: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # (T,)
    state: Float = field(default_factory=lambda: np.empty((0, 0), np.float32))  # (T, S)
    action: Float = field(default_factory=lambda: np.empty((0, 0), np.float32))  # (T, A)
    videos: dict[str, Span] = field(default_factory=dict)
    problem: Problem | None = None


def relative_s(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Seconds from the first row, as a LeRobot `timestamp` (float32) holds them.

    Cast first, then subtracted, so that float64 and float32 copies of one recording agree to the
    bit; a clock that counts from an epoch is made relative before it would lose its digits.
    """
    if not len(times):
        return times
    if abs(times[0]) > 1e5:
        times = times - times[0]
    cast = times.astype(np.float32).astype(np.float64)
    steps: npt.NDArray[np.float64] = (cast - cast[0]).astype(np.float32).astype(np.float64)
    return steps
