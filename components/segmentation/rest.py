"""Where an arm rests: neither it nor its gripper moves for some time."""

from __future__ import annotations

import numpy as np

from components.segmentation.flat import Array, Flat, Mask
from components.segmentation.gripper import SECOND_DIFFERENCE, Transition
from components.segmentation.signals import lengths

STILL_SHARE = 0.05  # slower than this share of the episode's own brisk speed is still
DRIFT = 0.1  # of the range: an arm that creeps farther does not rest, however slow or shaky it is
NOISE_LEVELS = 5.0  # movement within this many standard deviations of noise is no movement


def still(batch: Flat, place: Array, window_s: float) -> Mask:
    """Rows (M,) where nothing of the arm moves; `place` (M, D) in ranges."""
    half = np.maximum(np.rint(window_s / 2 / batch.step_s), 1).astype(np.intp)
    before = np.maximum(batch.row - half[batch.owner], batch.low)
    after = np.minimum(batch.row + half[batch.owner], batch.last)
    elapsed = np.maximum(batch.times_s[after] - batch.times_s[before], 1e-9)
    speed = lengths(place[after] - place[before]) / elapsed
    brisk = batch.quantile(speed, 0.9)
    bend = np.abs(batch.diff(batch.diff(place)))
    none = np.zeros(len(half))  # a robot that is all gripper has no place
    noise = np.stack([none, *(batch.quantile(b, 0.5, skip=2) for b in bend.T)]) * SECOND_DIFFERENCE
    shaken = NOISE_LEVELS * np.sqrt((noise**2).sum(axis=0)) / (2 * half * batch.step_s)
    return np.asarray(speed <= np.maximum(STILL_SHARE * brisk, shaken)[batch.owner])


def rests(
    still: Mask, times_s: Array, gripper: list[Transition], min_event_s: float, min_idle_s: float
) -> list[tuple[int, int]]:
    """One episode's stretches of rest as (first step, one past the last)."""
    if still.all():
        if not gripper:
            return [(0, len(still))]  # nothing moves in the whole episode, however short it is
    elif not still.any():
        return []
    calm = still.copy()
    last = len(calm) - 1
    for start, stop in runs(~calm):  # a twitch does not end a rest
        if times_s[min(stop, last)] - times_s[start] < min_event_s:
            calm[start:stop] = True
    found = []
    for start, stop in runs(calm):
        # what follows a transition is the gripper at work
        first = next((t.frame for t in gripper if start <= t.frame < stop), stop)
        if times_s[min(first, last)] - times_s[start] >= min_idle_s:
            found.append((start, first))
    return found


def stays(place: Array, start: int, stop: int) -> bool:
    """Whether `place` (T, D), in ranges, ends a stretch about where it began; eighths are averaged.

    Jitter can hide a slow motion from `still`: 10 cm in 2.5 s were called a rest.
    """
    part = max((stop - start) // 8, 1)
    way = place[stop - part : stop].mean(axis=0) - place[start : start + part].mean(axis=0)
    return float(np.linalg.norm(way)) <= DRIFT


def dwells(
    still: Mask, times_s: Array, gripper: list[Transition], min_s: float, window_s: float
) -> list[int]:
    """Control steps where an arm moves on that waited `min_s` or longer for its gripper.

    `still` looks half of `window_s` ahead, so the arm moves that much later.
    """
    found: list[int] = []
    if not gripper or not still.any():
        return found
    for start, stop in runs(still):
        if stop < len(still) and any(
            t.frame < stop
            and times_s[start] - times_s[t.frame] <= min_s
            and times_s[stop] - times_s[t.frame] >= min_s
            for t in gripper
        ):
            found.append(int(np.searchsorted(times_s, times_s[stop - 1] + window_s / 2)))
    return [step for step in found if step < len(still)]


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Stretches of True as (first, one past the last)."""
    edges = (np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist()
    marks = [0, *edges, len(mask)] if len(mask) and mask[0] else [*edges, len(mask)]
    marks = marks if len(mask) and mask[-1] else marks[:-1]
    return list(zip(marks[::2], marks[1::2], strict=True))
