"""When a gripper begins to close or to open, from its command and from what is measured.

A transition is a crossing of the middle third of the episode's own range (a Schmitt trigger), dated
at the first control step that has left the old side. Which side is closed comes from the signal's
name, else from two fingers that move apart, else from where the fingers stop short of what they are
told: at what they hold. Else a measured value is an opening, large is open, and a command is what
it follows; without one, and for hands of many joints, a gripper starts open. The hands of a robot
with several are told apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.episodes import GRIPPER, NO_PLACE
from components.segmentation.flat import Array, Flat

CLOSED_IS_LARGE = re.compile(r"clos|effort|force", re.IGNORECASE)
OPEN_IS_LARGE = re.compile(r"open|width|aperture", re.IGNORECASE)
LOW, HIGH = 1 / 3, 2 / 3
DELAY_S = 1.0  # within this time what is measured has answered a command
NOISE_LEVELS = 8.0  # a range within this many standard deviations of noise is no movement
SECOND_DIFFERENCE = 1.4826 / np.sqrt(6.0)  # median |second difference| of white noise -> its std
SHORT, FAR = 0.1, 0.75  # of the command's range: fingers that stay so far from it hold something,
NEAR = 0.05  # where on its other side they come so near
APART = 0.9  # fingers whose distance follows the joined signal this closely (correlation) mirror


@dataclass(frozen=True)
class Transition:
    """The gripper begins to close (or to open) at control step `frame`."""

    frame: int
    closes: bool
    signal: str  # gripper_command or gripper_measured


class Level(NamedTuple):
    """One hand's gripper, 0 to 1 of its own range (M,); all 0 where it does not move."""

    hand: str  # as `Episode.hand_of` says
    value: Array
    moves: npt.NDArray[np.bool_]  # (E,)
    high: npt.NDArray[np.intp]  # (E,): what is high: 1 closed, -1 open, 0 unknown
    place: Array  # (M,), in its own unit


def levels(batch: Flat, measured: bool) -> list[Level]:
    """Each hand's measured or commanded gripper; empty where the robot tells none."""
    first = batch.first
    names = first.state_names if measured else first.action_names
    values = batch.state if measured else batch.action
    hands: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if GRIPPER.search(name):
            hands.setdefault(first.hand_of(name), []).append(i)
    return [
        level(batch, values[:, own], [names[i] for i in own], hand)
        for hand, own in sorted(hands.items())
    ]


def level(batch: Flat, values: Array, names: list[str], hand: str) -> Level:
    """Columns (M, C) of one hand as one; fingers are turned the way of the one that moves most."""
    places = [i for i, name in enumerate(names) if not NO_PLACE.search(name)] or list(
        range(len(names))
    )
    columns = values[:, places]
    joined, mirrored = columns[:, 0], np.zeros(len(batch.start), dtype=np.intp)
    if len(places) > 1:
        joined, mirrored = join(batch, columns)
    low = np.minimum.reduceat(joined, batch.start)
    span = np.maximum.reduceat(joined, batch.start) - low
    bend = np.abs(batch.diff(batch.diff(joined)))
    noise = batch.quantile(bend, 0.5, skip=2) * SECOND_DIFFERENCE
    size = np.maximum.reduceat(np.abs(joined), batch.start)
    moves = span > np.maximum(NOISE_LEVELS * noise, 1e-6 * size)
    scaled = (joined - low[batch.owner]) / np.where(moves, span, 1.0)[batch.owner]
    value = np.where(moves[batch.owner], scaled, 0.0)
    told = named([names[i] for i in places])
    if told:
        mirrored = np.full_like(mirrored, told)
    elif len(places) > 2:  # joints of a hand or a linkage: which way they close differs
        mirrored = np.where(value[batch.start] < 0.5, 1, -1)
    return Level(hand, value, moves, mirrored, joined)


def join(batch: Flat, columns: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """Fingers (M, C) as one signal (M,); for two that move apart, -1 (E,): large is open."""
    centred = columns - batch.mean(columns)[batch.owner]
    most = batch.extent(columns).argmax(axis=1)
    leader = centred[batch.row, most[batch.owner]]
    signs = np.where(batch.total(leader[:, None] * centred) < 0, -1.0, 1.0)
    joined = (columns * signs[batch.owner]).sum(axis=1)
    apart = np.abs(columns).sum(axis=1)
    a, b = (x - batch.mean(x)[batch.owner] for x in (joined, apart))
    follows = batch.total(a * b) / np.sqrt(batch.total(a * a) * batch.total(b * b) + 1e-18)
    mirrored = (columns.shape[1] == 2) & (signs < 0).any(axis=1) & (np.abs(follows) > APART)
    return joined, np.where(mirrored, -np.sign(follows), 0).astype(np.intp)


def named(names: list[str]) -> int:
    """1 where a larger value means closed, -1 where open, by the gripper's own name; else 0."""
    own = " ".join(names)
    if CLOSED_IS_LARGE.search(own):
        return 1
    return -1 if OPEN_IS_LARGE.search(own) else 0


def transitions(
    batch: Flat, measured: list[Level], commanded: list[Level]
) -> list[list[Transition]]:
    """Each episode's closings and openings in time order; measured ones of hands without command.

    What is measured answers the command, be it one that holds from the start.
    """
    found: list[list[Transition]] = [[] for _ in batch.start]
    answers = {m.hand: m for m in measured}
    for command in commanded:
        frames, rises = crossings(batch, command)
        closes = closing(batch, command, answers.pop(command.hand, None), frames, rises)
        add(found, batch, frames, rises == closes[batch.owner[frames]], "gripper_command")
    for each in answers.values():
        frames, rises = crossings(batch, each)
        add(found, batch, frames, rises == (each.high > 0)[batch.owner[frames]], "gripper_measured")
    return [sorted(each, key=lambda t: t.frame) for each in found]


def add(
    found: list[list[Transition]],
    batch: Flat,
    rows: npt.NDArray[np.intp],
    closes: npt.NDArray[np.bool_],
    signal: str,
) -> None:
    """Rows (K,) of a batch become transitions of their episodes."""
    owners = batch.owner[rows]
    frames = rows - batch.start[owners]
    for owner, frame, close in zip(owners.tolist(), frames.tolist(), closes.tolist(), strict=True):
        found[owner].append(Transition(frame, close, signal))


def crossings(batch: Flat, one: Level) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Rows (K,) where the value leaves its side for the other one, and whether it rises."""
    sides = np.where(one.value >= HIGH, 1, np.where(one.value <= LOW, -1, 0))
    sides[~one.moves[batch.owner]] = 0
    known = np.flatnonzero(sides)
    same = batch.owner[known[1:]] == batch.owner[known[:-1]]
    turned = np.flatnonzero(same & (np.diff(sides[known]) != 0))
    return known[turned] + 1, sides[known[turned + 1]] > 0


def closing(
    batch: Flat,
    command: Level,
    answer: Level | None,
    frames: npt.NDArray[np.intp],
    rises: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Whether a high command closes (E,): by its name, the measured answer, else the start."""
    starts_low = command.value[batch.start] < 0.5
    if answer is None:
        return np.where(command.high != 0, command.high > 0, starts_low)
    later = frames + np.rint(DELAY_S / batch.step_s[batch.owner[frames]]).astype(np.intp)
    change = answer.value[np.minimum(later, batch.last[frames])] - answer.value[frames]
    response = np.bincount(
        batch.owner[frames], np.where(rises, change, -change), minlength=len(batch.start)
    )
    closes = np.where(answer.high > 0, response > 0, response < 0)
    short = stops_short(batch, command, answer)
    closes = np.where((answer.high == 0) & (short != 0) & (response > 0), short > 0, closes)
    measured = np.where(np.abs(response) > LOW, closes, starts_low)
    return np.where(command.high != 0, command.high > 0, measured)


def stops_short(batch: Flat, command: Level, answer: Level) -> npt.NDArray[np.intp]:
    """What is high (E,) where the fingers stay away from a command that has stood for `DELAY_S`.

    They hold something, so on that side they are closed: 1 for the high one, -1 for the low one, 0
    where they follow on both or on none, or are told in another unit than they are measured in.
    """
    lowest, highest = (f.reduceat(command.place, batch.start) for f in (np.minimum, np.maximum))
    span = np.where(highest > lowest, highest - lowest, 1.0)
    one_unit = (
        (np.abs(lowest + highest) > NEAR * span)  # -1 to 1 is no place of fingers
        & (np.minimum.reduceat(answer.place, batch.start) >= lowest - NEAR * span)
        & (np.maximum.reduceat(answer.place, batch.start) <= highest + NEAR * span)
    )
    if not one_unit.any():
        return np.zeros(len(one_unit), dtype=np.intp)
    sides = np.where(command.value >= HIGH, 1, np.where(command.value <= LOW, -1, 0))
    turned = batch.diff(sides.astype(np.float64)) != 0
    since = np.maximum.accumulate(np.where(turned, batch.row, batch.low))
    stands = batch.times_s - batch.times_s[since] >= DELAY_S
    left = (command.place - answer.place) / span[batch.owner]
    high, low = (side * mean_of(batch, left, stands & (sides == side)) for side in (1, -1))
    short, other = np.maximum(high, low), np.abs(np.minimum(high, low))
    clear = one_unit & (short > SHORT) & (short < FAR) & (other < NEAR)
    return np.where(clear, np.where(high > low, 1, -1), 0).astype(np.intp)


def mean_of(batch: Flat, values: Array, rows: npt.NDArray[np.bool_]) -> Array:
    """Mean (E,) of `values` (M,) over those rows of each episode; 0 where there are none."""
    return batch.total(values * rows) / np.maximum(batch.total(rows.astype(np.float64)), 1.0)
