"""An episode as a reader gives it: signals with canonical names, before any check."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from components.calibration import Calibration
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
    units: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # of dimensions, as said
    limits: tuple[tuple[str, float, float], ...] = field(default=(), compare=False)  # of the state
    taken: tuple[tuple[str, ...], ...] = field(default=(), compare=False)  # for state, for action
    calibration: tuple[tuple[str, Calibration], ...] = field(default=(), compare=False)  # by camera

    @property
    def signature(self) -> dict[str, Any]:
        """JSON of all that changes what is measured or copied."""
        return {key: value for key, value in asdict(self).items() if key != "calibration"}


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
    notes: dict[str, Any] = field(default_factory=dict)  # JSON; what `Reader.recall` wants to know


class Reader(Protocol):
    """What every format gives."""

    format: str  # for people
    layout: Layout
    indices: list[int]

    @property
    def warnings(self) -> list[str]:
        """One sentence for each oddity; what only rows show is there once they were read."""
        ...

    def read(self, index: int) -> RawEpisode:
        """One episode; what cannot be read is said in its `problem`."""
        ...

    def version(self, index: int) -> str:
        """Digest of the files that an episode is read from, as they were listed."""
        ...

    def identity(self, index: int) -> Any:
        """JSON that decides all that `read` gives but address, version and task.

        It names the listed digests of files, so nothing is read for it.
        """
        ...

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """Take note of an episode that an earlier run read (`RawEpisode.notes`); its task."""
        ...

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """`robot_serial` and `operator` of an episode, where the recording says them."""
        ...

    def spans(self, index: int) -> dict[str, Span] | None:
        """The videos of an episode by camera; None where only `read` can make them."""
        ...


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
