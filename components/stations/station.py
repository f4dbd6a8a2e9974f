"""What every robot station offers: seeded resets, what a policy may see, control steps, a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]


class Observation(NamedTuple):
    """All that a policy may see: pictures and proprioception, never the state of objects."""

    images: dict[str, npt.NDArray[np.uint8]]  # camera -> (H, W, 3), RGB
    state: Float  # (S,), named by the station's state_names


class Station(Protocol):
    """One robot, real or simulated."""

    embodiment: str
    fps: float  # control steps per second
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: tuple[str, ...]  # those that `observe` shows
    tasks: Mapping[str, str]  # task name -> the sentence that is said to the policy

    def reset(self, task: str, seed: int) -> None:
        """Begin a trial of `task`; equal seeds give equal scenes. UserError for an unknown task."""

    def observe(self) -> Observation:
        """Take a picture with every camera and read the proprioception."""

    def step(self, action: Float) -> None:
        """One control step (A,), in the units of action_names, clipped to their bounds."""

    def succeeded(self) -> bool:
        """Whether the task is done: for scoring only, no policy is told."""

    def close(self) -> None:
        """Free the renderer."""
