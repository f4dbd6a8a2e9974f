"""How far a trial came, 0 to 100: five phases in order, seen in the simulator, for scoring only.

Near (the hand within 5 cm of the object), touched, moved (2 cm from where it was), half way (the
object's distance to its goal is half of what it was), done (Meta-World's own success). A phase
counts once all before it have been seen, in one step or earlier; done counts as all of them. Each
is worth 20 points. Written down before any trial was looked at, and the same for every arm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.stations.metaworld import MetaworldStation

NEAR_M = 0.05
MOVED_M = 0.02
PHASES = ("near", "touched", "moved", "half way", "done")

Point = npt.NDArray[np.float64]


class Moment(NamedTuple):
    """What matters of one control step."""

    hand_m: Point  # (3,)
    object_m: Point  # (3,)
    goal_m: Point  # (3,)
    contact: bool
    success: bool


def moment(station: MetaworldStation) -> Moment:
    """The present one, read from the simulator."""
    env = station.env
    return Moment(
        np.array(env.tcp_center, dtype=np.float64),
        np.array(env._get_pos_objects()[:3], dtype=np.float64),
        np.array(env._target_pos, dtype=np.float64),
        station.truth().contact,
        station.succeeded(),
    )


class Progress:
    """Collects the moments of one trial."""

    def __init__(self) -> None:
        self._first: Moment | None = None
        self.reached = 0  # phases, in order

    def see(self, now: Moment) -> None:
        """One control step."""
        first = self._first = self._first or now
        holds = (
            bool(np.linalg.norm(now.hand_m - now.object_m) <= NEAR_M),
            now.contact,
            bool(np.linalg.norm(now.object_m - first.object_m) >= MOVED_M),
            _way(now) <= _way(first) / 2,
            now.success,
        )
        while self.reached < len(PHASES) and holds[self.reached]:
            self.reached += 1
        if now.success:
            self.reached = len(PHASES)

    @property
    def points(self) -> float:
        """0 to 100."""
        return 100.0 * self.reached / len(PHASES)


def _way(now: Moment) -> float:
    return float(np.linalg.norm(now.object_m - now.goal_m))
