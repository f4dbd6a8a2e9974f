"""What arm and gripper did in one event: the only facts that captions may state.

Directions are those of the end effector's net displacement in the robot's frame; without an end
effector there are joints only. What the gripper did comes from the event's kind, found by
segmentation, and from who moved it (`phases.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.captioning.phases import Phase
from components.episodes import Episode

OPPOSITE = {
    "forward": "back",
    "back": "forward",
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
}
DOMINATES = 0.5  # a direction is named from this share of the largest one on
IN_PLACE = 0.1  # a net displacement under this share of the episode's range is no direction
SMALLEST = 1e-9
ROUNDABOUT = 0.3  # nor is one under this share of the way really travelled

Frame = tuple[str, str, str]


@dataclass(frozen=True)
class Kinematics:
    """One event's facts; lengths in metres, None where the state has no end effector."""

    kind: str  # motion, grasp, release or idle
    phase: Phase
    duration_s: float
    displacement_m: dict[str, float] | None  # direction -> positive metres, all three axes
    travelled_m: float | None
    directions: tuple[str, ...]  # those that dominate, in the frame's order; empty for none
    moving: tuple[str, ...]  # joints that moved, farthest first; empty for an end effector


def kinematics(
    episode: Episode, start: int, end: int, kind: str, phase: Phase, frame: Frame
) -> Kinematics:
    """Facts of control steps `start` to `end` (exclusive); `frame` names +x, +y and +z."""
    stop = min(end, len(episode) - 1)
    duration_s = float(episode.timestamps_s[stop] - episode.timestamps_s[start])
    place = episode.end_effector_m
    if place is None:
        return Kinematics(
            kind, phase, duration_s, None, None, (), moving_joints(episode, start, stop)
        )
    way = place[start : stop + 1].astype(np.float64)
    net = way[-1] - way[0]
    travelled = float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum())
    reach = float(np.ptp(place.astype(np.float64), axis=0).max())
    named = [name if d >= 0 else OPPOSITE[name] for name, d in zip(frame, net, strict=True)]
    size = np.abs(net)
    clear = np.linalg.norm(net) > max(IN_PLACE * reach, ROUNDABOUT * travelled)
    directions = tuple(
        n for n, d in zip(named, size, strict=True) if clear and d >= DOMINATES * size.max()
    )
    displacement = dict(zip(named, size.tolist(), strict=True))
    return Kinematics(kind, phase, duration_s, displacement, travelled, directions, ())


def moving_joints(episode: Episode, start: int, stop: int) -> tuple[str, ...]:
    """Joints that moved a tenth of the widest range in the episode, farthest first."""
    names = episode.motion_names
    moved = np.ptp(episode.motion[start : stop + 1], axis=0)
    widest = float(np.ptp(episode.motion, axis=0).max(initial=0.0))
    order = np.argsort(-moved, kind="stable")
    return tuple(names[i] for i in order if moved[i] >= max(IN_PLACE * widest, SMALLEST))
