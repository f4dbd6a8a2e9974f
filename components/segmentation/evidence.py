"""How likely the behaviour changes at each control step, and which signals say so.

Each trace is compared before and after the step, over a half, one and two reaches (a reach is a
tenth of the crossing time). A small fixed network (`weights.json`: 5 moments, a reach apart, one
hidden layer) turns these contrasts, where the arm and its gripper are, and how noisy the episode
is, into a chance; what is seen adds its own log-odds. It was fitted once, to simulated tasks, by
`python -m tests.benchmarks.segmentation_weights`; its inputs have no units, so it serves every
robot. What an episode unlike all that was learned shows is weak throughout, so each episode's
log-odds are moved towards the number of changes that is usual for its length. A signal's vote is
the chance that would be lost without it.
"""

from __future__ import annotations

import json
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from components.segmentation.flat import Array, Flat, Index
from components.segmentation.gripper import Level
from components.segmentation.signals import Traces, lengths

WEIGHTS = Path(__file__).with_name("weights.json")
REACH_SHARE = 0.1  # of the crossing time; of 0.07, 0.1, 0.14 the best on the development tasks
SHORTEST_REACH = 2.0  # control steps
SPANS = (0.5, 1.0, 2.0)  # reaches that are compared before and after
OFFSETS = (-2, -1, 0, 1, 2)  # moments that the network sees, reaches from the step
CLIP = 4.0  # standard deviations; what is stranger than all that was learned counts no more
USUAL = 0.9
TRUST = 0.8  # in the usual number of changes; the rest in the episode's own (0.7 to 1 as good)
ROUNDS = 8  # of Newton's method, each a step of LEAP or less in log-odds
LEAP = 2.0
MOST_ROWS = 0.5  # are expected to be at a change, a reach wide: events last two reaches or more
NEAR_S = 0.0625  # a cut this near to a change hits it, however short a reach is
LONGEST = 100.0  # crossing times: beyond, the number of changes is not extrapolated
NO_WAY = 1e-6  # of the range: an episode that ends where it began has no direction
NEW_COMMAND = 0.3  # of the command's range in one step
FADES = 3.0  # reaches until a command is a third as new
SIGNALS = {  # trace -> the signal that votes
    "velocity": "direction_change",
    "speed": "speed_change",
    "command": "command_change",
    "commanded": "command_change",
    "lag": "lag",
    "lagging": "lag",
    "slip": "lag",
    "slipping": "lag",
    "opening": "gripper",
    "moving": "gripper",
    "grip_command": "gripper",
    "height": "place",
    "from_start": "place",
    "along": "place",
    "grip": "gripper",
    "grip_wish": "gripper",
    "since_wish": "gripper",
    "share": "seen",
    "map": "seen",
}


Single = npt.NDArray[np.float32]


class Contrasts(NamedTuple):
    """Features (M, F) with their names, and each episode's reach (E,), control steps."""

    values: Array
    names: tuple[str, ...]
    reach: Array


def reach(traces: Traces) -> Array:
    """How far a step looks to either side (E,), control steps."""
    return np.maximum(REACH_SHARE * traces.crossing, SHORTEST_REACH)


def gripper_traces(
    batch: Flat, crossing: Array, measured: list[Level], commanded: list[Level]
) -> dict[str, Array]:
    """Opening speed with its sign, without, and the command (M,); of all hands together."""
    zero = np.zeros(len(batch))
    speed = batch.diff(sum((each.value for each in measured), zero)) * crossing[batch.owner]
    command = sum((each.value for each in commanded), zero)
    return {"opening": speed, "moving": np.abs(speed), "grip_command": command}


def whereabouts(
    batch: Flat, traces: Traces, measured: list[Level], commanded: list[Level]
) -> dict[str, Array]:
    """What is told as it is, not as a contrast: place, gripper and how new its command is (M,).

    Height above the episode's lowest point, way from its start, and the part of it towards its end,
    in ranges. The height is NaN, so unknown, where the motion is not the end effector's.
    """
    place = traces.place
    if batch.first.end_effector_m is None:
        height = np.full(len(batch), np.nan)
    else:
        height = place[:, 2] - np.minimum.reduceat(place[:, 2], batch.start)[batch.owner]
    net = place[batch.start + batch.count - 1]
    net = net / np.maximum(lengths(net), NO_WAY)[:, None]
    zero = np.zeros(len(batch))
    wish = sum((each.value for each in commanded), zero)
    new = np.abs(batch.diff(wish)) > NEW_COMMAND
    last = np.maximum.accumulate(np.where(new | (batch.row == batch.low), batch.row, 0))
    age = (batch.row - last) / (FADES * reach(traces))[batch.owner]
    return {
        "height": height,
        "from_start": lengths(place),
        "along": np.einsum("md,md->m", place, net[batch.owner]),
        "grip": sum((each.value for each in measured), zero),
        "grip_wish": wish,
        "since_wish": np.where(new[last], np.exp(-age), 0.0),
    }


def contrasts(batch: Flat, traces: Traces, levels: dict[str, Array] | None = None) -> Contrasts:
    """After minus before of each trace at each span: signed for numbers, the length for vectors.

    `levels` (M,) are told as they are.
    """
    reaches = reach(traces)
    columns = [values[:, None] for values in traces.numbers.values()]
    columns += list(traces.vectors.values())
    sums = np.concatenate(
        (
            np.zeros((1, sum(c.shape[1] for c in columns))),
            np.cumsum(np.concatenate(columns, axis=1), axis=0),
        )
    )
    found: dict[str, Array] = {}
    for span in SPANS:
        half = np.maximum(np.rint(span * reaches), 1).astype(np.intp)[batch.owner]
        before, after = around(batch, sums, half)
        change, at = after - before, 0
        for name in traces.numbers:
            absolute = name == "grip_command"
            found[f"{name}:{span}"] = np.abs(change[:, at]) if absolute else change[:, at]
            if span == 1.0 and name not in ("grip_command", "opening"):
                found[f"{name}:before"] = before[:, at]
            at += 1
        for name, values in traces.vectors.items():
            part = change[:, at : at + values.shape[1]]
            found[f"{name}:{span}"] = np.sqrt(np.einsum("md,md->m", part, part))
            at += values.shape[1]
    found["noise"] = traces.noise[batch.owner]
    found |= levels or {}
    return Contrasts(np.stack(list(found.values()), axis=1), tuple(found), reaches)


def around(batch: Flat, sums: Array, half: Index) -> tuple[Array, Array]:
    """Means over up to `half` rows before and from each row on; `sums` (M + 1, C) are running."""
    first = np.maximum(batch.row - half, batch.low)
    stop = np.minimum(batch.row + half, batch.last + 1)
    here = sums[:-1]
    after, before = np.take(sums, stop, axis=0), np.take(sums, first, axis=0)
    after -= here
    after /= (stop - batch.row)[:, None]
    np.subtract(here, before, out=before)
    before /= np.maximum(batch.row - first, 1)[:, None]
    alone = np.flatnonzero(batch.row == first)
    before[alone] = after[alone]
    return before, after


class Network:
    """One hidden layer over F contrasts at the moments of OFFSETS."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.names = tuple(weights["features"])
        self.mean = np.array(weights["mean"], dtype=np.float32)
        self.scale = np.array(weights["scale"], dtype=np.float32)
        self.hidden = np.array(weights["hidden"], dtype=np.float32)  # (taps * F, H)
        self.bias = np.array(weights["bias"], dtype=np.float32)
        self.out = np.array(weights["out"], dtype=np.float32)
        self.intercept = float(weights["intercept"])

    def standard(self, found: Contrasts) -> Single:
        """Contrasts (M, F) in standard deviations of what was learned, bounded."""
        if found.names != self.names:
            raise ValueError(f"weights are for {self.names}; got contrasts {found.names}")
        standard = found.values.astype(np.float32)
        standard -= self.mean
        standard /= self.scale
        np.clip(standard, -CLIP, CLIP, out=standard)
        unknown = np.isnan(standard[0])
        standard[:, unknown] = 0.0  # as it is on average
        return standard

    def with_hidden(self, hidden: Single) -> Network:
        """This network with other first-layer weights (taps * F, H)."""
        other = copy(self)
        other.hidden = hidden
        return other

    def logits(self, batch: Flat, standard: Single, reaches: Array) -> Array:
        """Log-odds of a boundary at every row (M,)."""
        layers = self.hidden.reshape(len(OFFSETS), len(self.names), -1)
        total = np.tile(self.bias, (len(batch), 1))
        for layer, offset in zip(layers, OFFSETS, strict=True):
            total += np.take(standard @ layer, moment(batch, batch.row, reaches, offset), axis=0)
        return self._odds(total)

    def without(
        self, batch: Flat, standard: Single, reaches: Array, rows: Index
    ) -> dict[str, Array]:
        """Log-odds at `rows` (K,) were each signal in turn as it is on average; "" with all."""
        seen = np.stack([standard[moment(batch, rows, reaches, o)] for o in OFFSETS], axis=1)
        layers = self.hidden.reshape(len(OFFSETS), len(self.names), -1)
        total = seen.reshape(len(rows), len(self.hidden)) @ self.hidden + self.bias
        found = {"": self._odds(total)}
        owners = np.array([SIGNALS.get(name.split(":")[0], "") for name in self.names])
        for signal in sorted({str(owner) for owner in owners} - {""}):
            own = np.flatnonzero(owners == signal)
            part = seen[:, :, own].reshape(len(rows), len(OFFSETS) * len(own))
            found[signal] = self._odds(total - part @ layers[:, own].reshape(part.shape[1], -1))
        return found

    def _odds(self, total: Single) -> Array:
        """From the hidden layer (K, H) to log-odds (K,)."""
        return np.asarray(np.maximum(total, 0.0) @ self.out + self.intercept, dtype=np.float64)


def moment(batch: Flat, rows: Index, reaches: Array, offset: float) -> Index:
    """Rows `offset` reaches away, within the episode."""
    owners = batch.owner[rows]
    moved = rows + np.rint(offset * reaches).astype(np.intp)[owners]
    return np.asarray(np.clip(moved, batch.low[rows], batch.last[rows]))


class Fusion(NamedTuple):
    """The networks, and how their log-odds add up."""

    signals: Network
    video: Network
    share_video: float
    base: float  # log-odds of a boundary at any step: what pictures say that say nothing
    changes: tuple[float, float]  # expected in an episode: at first, and per crossing time

    def expected(self, crossings: Array) -> Array:
        """Changes in episodes of so many crossing times (E,)."""
        return self.changes[0] + self.changes[1] * np.minimum(crossings, LONGEST)

    def most_cuts(self, crossings: float) -> int:
        """What USUAL of the episodes of this length do not exceed, were changes Poisson's."""
        expected = float(self.expected(np.array(crossings)))
        count, chance = 0, float(np.exp(-expected))
        total = chance
        while total < USUAL:
            count += 1
            chance *= expected / count
            total += chance
        return count

    def fused(self, signals: Array, video: Array) -> Array:
        """Log-odds from both; pictures without information change nothing."""
        return signals + self.share_video * (video - self.base)


@cache
def learned() -> Fusion:
    """The fixed weights."""
    return fusion(json.loads(WEIGHTS.read_text()))


def fusion(weights: dict[str, Any]) -> Fusion:
    """Weights as `tests/benchmarks/segmentation_weights.py` writes them."""
    joined, changes = weights["fusion"], weights["changes"]
    return Fusion(
        Network(weights["signals"]),
        Network(weights["video"]),
        float(joined["video"]),
        float(joined["base"]),
        (float(changes["base"]), float(changes["per_crossing"])),
    )


def chance(logits: Array) -> Array:
    """Log-odds to probability."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30))))


def usual_shift(batch: Flat, odds: Array, reaches: Array, expected: Array) -> Array:
    """What to add to each episode's log-odds (E,), so that its number of changes is usual.

    The evidence's own number is its chances' sum over a change's width, a reach. The wanted one is
    the geometric mean of it and of `expected` (E,), weighed by TRUST: empirical Bayes with a prior
    on the count, since the evidence is told well within an episode and badly between unlike tasks.
    """
    total = batch.total(chance(odds)) / reaches
    wanted = np.maximum(total, 1e-9) ** (1 - TRUST) * expected**TRUST
    wanted = np.minimum(wanted, MOST_ROWS * batch.count / reaches)
    shift = np.zeros(len(batch.start))
    for _ in range(ROUNDS):
        chances = chance(odds + shift[batch.owner])
        total = np.maximum(batch.total(chances), 1e-9)
        slope = np.maximum(batch.total(chances * (1 - chances)), 1e-12) / total
        shift += np.clip(np.log(wanted * reaches / total) / slope, -LEAP, LEAP)
    return shift


def smoothed(batch: Flat, values: Array, reaches: Array) -> Array:
    """Mean over half a reach to either side of each row (M,)."""
    total, rows = summed(batch, values, reaches / 2)
    return np.asarray(total / rows)


def near(batch: Flat, chances: Array, reaches: Array) -> Array:
    """The chance that a change lies near each row (M,), so that a cut there hits it.

    Near is within a reach, and NEAR_S at the least. A change is a reach wide, so its `chances` (M,)
    over a reach are the number of changes expected; 1 - exp(-n) is the chance of any (Poisson).
    """
    total, _ = summed(batch, chances, np.maximum(reaches, NEAR_S / batch.step_s))
    return np.asarray(-np.expm1(-total / reaches[batch.owner]))


def summed(batch: Flat, values: Array, half: Array) -> tuple[Array, Index]:
    """Sums over up to `half` (E,) rows to either side of each row, and of how many rows: (M,)."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    wide = np.rint(half).astype(np.intp)[batch.owner]
    first = np.maximum(batch.row - wide, batch.low)
    stop = np.minimum(batch.row + wide, batch.last) + 1
    return np.asarray(sums[stop] - sums[first]), stop - first
