"""When the gripper begins to close or to open, from its command and from what is measured.

A transition is a crossing of the middle third of the episode's own range (a Schmitt trigger), dated
at the first control step that has left the old side. Which side is closed comes from the signal's
name, else from how the measured opening follows the command, else from the start: a gripper starts
open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.episodes import GRIPPER, Episode
from components.segmentation.signals import Array, control_step_s, noise_std

CLOSED_IS_LARGE = re.compile(r"clos|effort|force", re.IGNORECASE)
OPEN_IS_LARGE = re.compile(r"open|width|aperture", re.IGNORECASE)
RATE = re.compile(r"vel|speed|rate", re.IGNORECASE)
LOW, HIGH = 1 / 3, 2 / 3
DELAY_S = 1.0  # within this time a measured transition is the answer to a commanded one
NOISE_LEVELS = 8.0  # a range within this many standard deviations of noise is no movement


@dataclass(frozen=True)
class Transition:
    """The gripper begins to close (or to open) at control step `frame`."""

    frame: int
    closes: bool
    signal: str  # gripper_command or gripper_measured


def transitions(episode: Episode) -> tuple[Transition, ...]:
    """Closings and openings in time order; a measured one only where no command explains it."""
    width = max(round(DELAY_S / control_step_s(episode)), 1)
    measured = level(episode.gripper, episode.state_names)
    command = level(episode.gripper_command, episode.action_names)
    found: list[Transition] = []
    if command is not None:
        closed_is_high = named(episode.action_names)
        if closed_is_high is None:
            closed_is_high = closes_when_high(command, measured, width, episode)
        found = crossings(command, closed_is_high, "gripper_command")
    if measured is not None:
        answers = crossings(measured, named(episode.state_names) is True, "gripper_measured")
        told = np.array([t.frame for t in found])
        found += [a for a in answers if not np.any((told <= a.frame) & (a.frame <= told + width))]
    return tuple(sorted(found, key=lambda t: t.frame))


def level(values: npt.NDArray[np.float32] | None, names: tuple[str, ...]) -> Array | None:
    """Where the gripper is within its own range, 0 to 1 (T,); None where it does not move.

    Several fingers are averaged after turning them the way of the one that moves most.
    """
    if values is None or len(values) < 2:
        return None
    own = [name for name in names if GRIPPER.search(name)]
    places = [i for i, name in enumerate(own) if not RATE.search(name)] or list(range(len(own)))
    columns = values[:, places].astype(np.float64)
    first = columns[:, int(np.argmax(np.ptp(columns, axis=0)))]
    centred = columns - columns.mean(axis=0)
    signs = np.where((first - first.mean()) @ centred < 0, -1.0, 1.0)
    joined = (columns * signs).sum(axis=1)
    span = float(np.ptp(joined))
    if span <= max(NOISE_LEVELS * noise_std(joined[:, None]), 1e-9 * float(np.abs(joined).max())):
        return None
    return np.asarray((joined - joined.min()) / span)


def named(names: tuple[str, ...]) -> bool | None:
    """Whether a larger value means closed, when the gripper's own name says so."""
    own = " ".join(name for name in names if GRIPPER.search(name))
    if CLOSED_IS_LARGE.search(own):
        return True
    return False if OPEN_IS_LARGE.search(own) else None


def closes_when_high(command: Array, measured: Array | None, delay: int, episode: Episode) -> bool:
    """Whether a high command closes: the measured opening falls after it, else it started low."""
    rises = crossings(command, True, "")
    if measured is not None and rises:
        last = len(measured) - 1
        change = sum(
            (measured[min(t.frame + delay, last)] - measured[t.frame]) * (1 if t.closes else -1)
            for t in rises
        )
        if abs(change) > LOW:
            return bool((change < 0) != (named(episode.state_names) is True))
    return bool(command[0] < 0.5)


def crossings(value: Array, closed_is_high: bool, signal: str) -> list[Transition]:
    """Every change from below LOW to above HIGH or back, where `value` (T,) leaves its side."""
    sides = np.where(value >= HIGH, 1, np.where(value <= LOW, -1, 0))
    known = np.flatnonzero(sides)
    turned = np.flatnonzero(np.diff(sides[known]))
    return [
        Transition(int(known[i] + 1), bool((sides[known[i + 1]] > 0) == closed_is_high), signal)
        for i in turned
    ]
