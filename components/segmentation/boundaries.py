"""Where to cut an episode, and which signals say so.

Anchors first: the gripper begins to close or open, the arm comes to rest or leaves it. Between
anchors the trajectory is cut into pieces of steady motion (`partition.py`). Then every cut is put
to the vote.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.episodes import Episode
from components.segmentation.gripper import Transition, transitions
from components.segmentation.partition import EXACT_S, partition
from components.segmentation.signals import Array, Mask, Motion, motion

SMALLEST_VOTE = 0.1


@dataclass(frozen=True)
class Limits:
    """What bounds an event, seconds, and what a cut costs, a share of the energy nearby."""

    min_event_s: float
    max_event_s: float
    min_idle_s: float
    cut_price: float


@dataclass(frozen=True)
class Event:
    """Control steps `start` to `end` (exclusive) and the votes for the boundary at `start`."""

    start: int
    end: int
    kind: str  # motion, grasp, release or idle
    votes: dict[str, float]  # signal -> 0 to 1

    @property
    def score(self) -> float:
        """Strength of the boundary at the start: the chance that one vote or more is right."""
        return round(1.0 - float(np.prod([1.0 - vote for vote in self.votes.values()])), 4)


def cut(episode: Episode, limits: Limits) -> list[Event]:
    """The episode's events in order, without gaps; one event where it is shorter than two."""
    moved = motion(episode, limits.min_event_s)
    gripper = transitions(episode)
    idle = idle_steps(moved, gripper, limits)
    cuts = cut_steps(moved, gripper, idle, limits)
    return [
        Event(
            start,
            end,
            kind(start, end, gripper, idle),
            votes(start, moved, gripper, idle, limits.min_event_s) if start else {},
        )
        for start, end in zip([0, *cuts], [*cuts, len(episode)], strict=True)
    ]


def cut_steps(
    moved: Motion, gripper: tuple[Transition, ...], idle: Mask, limits: Limits
) -> list[int]:
    """Where every event but the first starts: the anchors, and the best cuts between them."""
    anchors = anchor_steps(moved.times_s, gripper, idle, limits.min_event_s)
    prices = cut_prices(moved, limits)
    cuts = list(anchors)
    for start, stop in zip([0, *anchors], [*anchors, len(idle) - 1], strict=True):
        if idle[start : stop + 1].mean() > 0.5:
            continue  # an idle event is left whole, however long
        span = slice(start, stop + 1)
        inner = partition(
            moved.position[span],
            moved.energy[span],
            moved.times_s[span],
            prices[span],
            limits.min_event_s,
            limits.max_event_s,
        )
        cuts += [start + step for step in inner]
    return sorted(cuts)


def idle_steps(moved: Motion, gripper: tuple[Transition, ...], limits: Limits) -> Mask:
    """Control steps where nothing, the gripper included, moves for `min_idle_s` (T,)."""
    times, still = moved.times_s, moved.still.copy()
    for start, stop in runs(~still):  # a twitch does not end a rest
        if times[min(stop, len(still) - 1)] - times[start] < limits.min_event_s:
            still[start:stop] = True
    idle = np.zeros_like(still)
    for start, stop in runs(still):
        # what follows a transition is the gripper at work
        first = next((t.frame for t in gripper if start <= t.frame < stop), stop)
        if times[min(first, len(still) - 1)] - times[start] >= limits.min_idle_s:
            idle[start:first] = True
    if still.all() and not gripper:
        idle[:] = True  # nothing moves in the whole episode, however short it is
    return idle


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Stretches of True as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def anchor_steps(
    times_s: Array, gripper: tuple[Transition, ...], idle: Mask, min_s: float
) -> list[int]:
    """Cuts that must be: gripper transitions, then edges of rests; `min_s` apart or more."""
    edges = [step for run in runs(idle) for step in run]
    kept: list[int] = []
    fixed = [times_s[0], times_s[-1]]
    for step in [*(t.frame for t in gripper), *edges]:
        if step < len(times_s) and min(abs(times_s[step] - f) for f in fixed) >= min_s - EXACT_S:
            kept.append(step)
            fixed.append(times_s[step])
    return sorted(kept)


def cut_prices(moved: Motion, limits: Limits) -> Array:
    """What a cut costs (T,): a share of the energy nearby, and more than noise can save."""
    times, reach = moved.times_s, limits.max_event_s
    nearby = np.interp(times + reach, times, moved.energy)
    nearby -= np.interp(times - reach, times, moved.energy)
    return np.asarray(limits.cut_price * nearby + 2 * np.log(len(times)) * moved.noise_energy)


def kind(start: int, end: int, gripper: tuple[Transition, ...], idle: Mask) -> str:
    """What the event is: by the gripper's first transition within it, else whether it rests."""
    inside = [t for t in gripper if start <= t.frame < end]
    if inside:
        return "grasp" if inside[0].closes else "release"
    return "idle" if idle[start:end].mean() > 0.5 else "motion"


def votes(
    at: int, moved: Motion, gripper: tuple[Transition, ...], idle: Mask, window_s: float
) -> dict[str, float]:
    """Which signals speak for a boundary at control step `at`, each 0 to 1; empty for none."""
    times = moved.times_s
    a, b = np.searchsorted(times, [times[at] - window_s, times[at] + window_s])
    b = min(int(b), len(times) - 1)
    before, after = moved.position[at] - moved.position[a], moved.position[b] - moved.position[at]
    product = float(np.linalg.norm(before) * np.linalg.norm(after))
    turn = (1 - float(before @ after) / product) / 2 if product > 0 else 0.0
    fast, slow = float(moved.speed[a : b + 1].max()), float(moved.speed[a : b + 1].min())
    near = [t for t in gripper if abs(times[t.frame] - times[at]) <= window_s]
    found = {
        **{t.signal: 1.0 for t in near},
        "direction_change": turn,
        "speed_change": 1 - slow / fast if fast > 0 else 0.0,
        "rest": float(idle[at] != idle[at - 1]),
    }
    return {name: round(value, 4) for name, value in found.items() if value >= SMALLEST_VOTE}
