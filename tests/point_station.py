"""A station without a simulator for tests: a point that must visit two places.

The scene's seed moves the start by a few centimetres; an action is (dx, dy, dz) in units of 1 cm a
step and a gripper effort, as on the Meta-World station.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from components.errors import UserError
from components.stations.station import Float, Observation

PLACES_M = {  # task -> what must be visited in order, within REACHED_M
    "press": ((0.3, 0.0, 0.2), (0.3, 0.0, 0.05)),
    "push": ((0.0, 0.3, 0.05), (0.2, 0.3, 0.05)),
}
PLANS = {
    "press the button": ["move above the button", "move down"],
    "push the puck": ["move behind the puck", "move forward"],
}
TARGETS = {
    "move above the button": [0.3, 0.0, 0.2, 0.0],
    "move down": [0.3, 0.0, 0.05, 0.0],
    "move behind the puck": [0.0, 0.3, 0.05, 0.0],
    "move forward": [0.2, 0.3, 0.05, 0.0],
}
REACHED_M = 0.012


class PointStation:
    """See `components.stations.station.Station`."""

    embodiment = "point"
    fps = 20.0
    state_names: tuple[str, ...] = ("ee_x", "ee_y", "ee_z", "gripper")
    action_names: tuple[str, ...] = ("dx", "dy", "dz", "gripper")
    cameras: tuple[str, ...] = ("top", "wrist")
    tasks: Mapping[str, str] = {"press": "press the button", "push": "push the puck"}

    def __init__(self) -> None:
        self._task, self._reached = "", 0
        self._place_m = np.zeros(3, np.float32)

    def reset(self, task: str, seed: int) -> None:
        if task not in PLACES_M:
            raise UserError(f"point: unknown task {task!r}.")
        self._task, self._reached = task, 0
        self._place_m = np.random.default_rng(seed).uniform(-0.05, 0.05, 3).astype(np.float32)

    def observe(self) -> Observation:
        images = {
            c: np.full((8, 8, 3), int(self._place_m[0] * 500) % 256, np.uint8) for c in self.cameras
        }
        return Observation(images, np.append(self._place_m, np.float32(0)))

    def step(self, action: Float) -> None:
        self._place_m = self._place_m + np.clip(action[:3], -1, 1) * np.float32(0.01)
        places = PLACES_M[self._task]
        if self._reached < len(places):
            gap_m = np.abs(self._place_m - np.asarray(places[self._reached])).max()
            self._reached += int(gap_m < REACHED_M)

    def succeeded(self) -> bool:
        return self._reached == len(PLACES_M[self._task])

    def close(self) -> None:
        """Nothing to free."""


class MortalStation(PointStation):
    """Kills its process once, at its 200th step; `mark` remembers that it did."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self._mark, self._steps = mark, 0

    def step(self, action: Float) -> None:
        self._steps += 1
        if self._steps == 200 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().step(action)
