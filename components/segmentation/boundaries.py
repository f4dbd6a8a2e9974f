"""Where to cut episodes, and which signals say so: read this file first.

`signals.py` and `video.py` make traces without units, `evidence.py` the chance of a boundary at and
near each control step, `partition.py` the best cuts. Cuts that must be: one near each gripper
transition, and the edges of rests. Episodes of one embodiment go through together (`flat.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from components.episodes import Episode
from components.segmentation import evidence, video
from components.segmentation.evidence import Fusion, Single
from components.segmentation.flat import Array, Flat, Index, Mask
from components.segmentation.gripper import Transition, levels, transitions
from components.segmentation.partition import EXACT_S, Candidate, best, peaks, shortened, within
from components.segmentation.rest import dwells, rests, stays, still
from components.segmentation.signals import motion_traces

SMALLEST_VOTE = 0.1
SHARPNESS = f"velocity:{evidence.SPANS[0]}"
NEAR_TRANSITION_S = 0.2  # a cut this near to a gripper transition is the transition's
SHARP = 0.6  # of the brisk speed: where the velocity changes by more at once, there is the cut
CORNER = 1.0  # a right angle is 1.4, a sudden stop 1
CORNER_CHANCE = 0.4  # of sharp corners so many are changes on the development tasks (LOG.md)
SHARPER = 1e-3  # of two corners the sharper is likelier, so that rounding decides nothing
EVENTS_PER_TRANSITION = 3  # a subtask, from one gripper transition to the next, has few actions
FINER = 0.5  # of the price of an event's cut is a segment's
BATCH_ROWS = 65536  # control steps that go through together


@dataclass(frozen=True)
class Limits:
    """What bounds an event, and the least chance of a change nearby that is worth a cut."""

    min_event_s: float
    min_event_share: float  # of the episode's crossing time
    max_event_s: float
    min_idle_s: float
    cut_price: float
    video: bool


@dataclass(frozen=True)
class Event:
    """Control steps `start` to `end` (exclusive) and the votes for the boundary at `start`."""

    start: int
    end: int
    kind: str  # motion, grasp, release or idle
    score: float  # of the boundary at the start, 0 to 1
    votes: dict[str, float]  # signal -> 0 to 1
    finer: tuple[int, ...] = ()  # control steps within it where a part of it may end


class Evidence(NamedTuple):
    """A batch's evidence: contrasts in standard deviations, their reach, the chance of a cut."""

    signals: Single  # (M, F)
    seen: Single | None  # (M, G)
    reach: Array  # (E,)
    crossing_s: Array  # (E,)
    shift: Array  # (E,), what the usual number of changes adds to the log-odds
    chance: Array  # (M,), of a change at the step: where a cut that must be is best
    near: Array  # (M,), of a change near the step: what a cut is worth that may be
    sharp: Array  # (M,), change of velocity, brisk speed 1
    place: Array  # (M, D), ranges from the start
    still: Mask  # (M,)
    gripper: list[list[Transition]]


def cut(episode: Episode, limits: Limits) -> list[Event]:
    """One episode's events in order, without gaps; one event where it is shorter than two."""
    return cut_all([episode], limits)[0]


def cut_all(
    episodes: Sequence[Episode], limits: Limits, learned: Fusion | None = None
) -> list[list[Event]]:
    """The events of each episode, with our weights or others. DataError for a damaged video."""
    learned = learned or evidence.learned()
    found: list[list[Event]] = []
    for group in batches(episodes):
        batch = Flat(group)
        seen = [video.looked(e) if limits.video else None for e in group]
        found += cut_batch(batch, seen, limits, learned)
    return found


def batches(episodes: Sequence[Episode]) -> list[list[Episode]]:
    """Neighbours that go through together: equal columns, BATCH_ROWS control steps or one more."""
    groups: list[list[Episode]] = []
    rows = 0
    for episode in episodes:
        names = (episode.state_names, episode.action_names)
        same = groups and (groups[-1][0].state_names, groups[-1][0].action_names) == names
        if not same or rows > BATCH_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(episode)
        rows += len(episode)
    return groups


def cut_batch(
    batch: Flat, seen: list[dict[str, Array] | None], limits: Limits, learned: Fusion
) -> list[list[Event]]:
    """The events of each episode of a batch; `seen` is `video.looked` of each."""
    found = weigh(batch, seen, limits, learned)
    pieces = [pieces_of(batch, found, k, limits, learned) for k in range(len(batch.start))]
    return events(batch, found, pieces, learned)


def weigh(
    batch: Flat, seen: list[dict[str, Array] | None], limits: Limits, learned: Fusion
) -> Evidence:
    """The chance of a boundary at every control step of a batch."""
    measured, commanded = levels(batch, True), levels(batch, False)
    traces = motion_traces(batch)
    numbers = traces.numbers | evidence.gripper_traces(batch, traces.crossing, measured, commanded)
    contrasts = evidence.contrasts(
        batch,
        traces._replace(numbers=numbers),
        evidence.whereabouts(batch, traces, measured, commanded),
    )
    signals = learned.signals.standard(contrasts)
    odds = learned.signals.logits(batch, signals, contrasts.reach)
    standard = None
    known = [each for each in seen if each is not None]
    if len(known) == len(batch.start):
        numbers, vectors = video.joined(batch, known)
        looks = evidence.contrasts(batch, traces._replace(numbers=numbers, vectors=vectors))
        standard = learned.video.standard(looks)
        odds = learned.fused(odds, learned.video.logits(batch, standard, looks.reach))
    crossings = (batch.count - 1) / np.maximum(traces.crossing, 1e-9)
    shift = evidence.usual_shift(batch, odds, contrasts.reach, learned.expected(crossings))
    odds = odds + shift[batch.owner]
    sharp = contrasts.values[:, contrasts.names.index(SHARPNESS)]
    corners = np.where(sharp > CORNER, CORNER_CHANCE + SHARPER * sharp, 0.0)
    chance = evidence.chance(odds)
    return Evidence(
        signals,
        standard,
        contrasts.reach,
        traces.crossing * batch.step_s,
        shift,
        np.maximum(evidence.smoothed(batch, chance, contrasts.reach), corners),
        np.maximum(evidence.near(batch, chance, contrasts.reach), corners),
        sharp,
        traces.place,
        still(batch, traces.place, limits.min_event_s),
        transitions(batch, measured, commanded),
    )


class Pieces(NamedTuple):
    """One episode's cuts with what made each, its rests, and its transitions by cut."""

    cuts: list[int]
    reasons: dict[int, dict[str, float]]
    idle: list[tuple[int, int]]
    gripper: dict[int, Transition]  # control step of the cut, or of the transition without one
    finer: list[int]  # cuts at FINER of the price, the cuts themselves left out


def pieces_of(batch: Flat, found: Evidence, k: int, limits: Limits, learned: Fusion) -> Pieces:
    """The best cuts of the batch's k-th episode."""
    own = slice(int(batch.start[k]), int(batch.start[k] + batch.count[k]))
    times, chances, near = batch.times_s[own], found.chance[own], found.near[own]
    gripper = found.gripper[k]
    idle = rests(found.still[own], times, gripper, limits.min_event_s, limits.min_idle_s)
    idle = [run for run in idle if run == (0, len(times)) or stays(found.place[own], *run)]
    least_s = float(
        np.clip(
            limits.min_event_share * found.crossing_s[k], limits.min_event_s, limits.max_event_s / 2
        )
    )
    crossings = (times[-1] - times[0]) / max(found.crossing_s[k], 1e-9)
    usual = learned.most_cuts(crossings)
    most = EVENTS_PER_TRANSITION * len(gripper) or max(usual, 2 * len(idle))  # cuts in all
    edges = [step for run in sorted(idle, key=lambda r: r[0] - r[1]) for step in run]
    edges += dwells(found.still[own], times, gripper, least_s, limits.min_event_s)
    sharp, side = found.sharp[own], round(found.reach[k])
    edges = [corner(step, sharp, step - side, step + side + 1) for step in edges]
    musts, reasons, moved = anchors(
        times, chances, sharp, side, gripper, edges, limits.min_event_s, least_s, most
    )
    room = (times >= times[0] + least_s - EXACT_S) & (times <= times[-1] - least_s + EXACT_S)
    tops = peaks(
        np.where(room, near, 0.0), max(int(found.reach[k] / 2), 1), FINER * limits.cut_price
    )
    inner = np.flatnonzero(room)
    gains: dict[int, float] = {}
    for p in tops[np.argsort(near[tops], kind="stable")].tolist():
        low, stop = max(p - side, int(inner[0])), min(p + side, int(inner[-1])) + 1
        gains[corner(p, sharp, low, stop)] = float(near[p])
    places = [Candidate(p, float(times[p]), gains[p] - limits.cut_price) for p in sorted(gains)]
    last = len(times) - 1
    spans = [
        (a, b) for a, b in pairwise([0, *musts, last]) if not rests_here(idle, a, b)
    ]  # a rest is left whole
    open_places = within(places, spans, times, least_s)
    left = max(most - len(musts), 0)
    while True:  # what the longest event asks for wins; likely changes yield to it
        free = best(open_places, least_s, left)
        further = too_long(times, chances, spans, sorted([*musts, *free]), limits)
        left = len(free) - 1
        if left < 0 or len(musts) + len(free) + len(further) <= most:
            break
    reasons |= {step: {"length": 1.0} for step in further}
    cuts = [*musts, *free, *further]
    cuts.sort()
    halves = [Candidate(c.step, c.time_s, c.gain + limits.cut_price) for c in places]
    marks = [0, *cuts, last]
    parts = [(a, b) for a, b in pairwise(marks) if not rests_here(idle, a, b)]
    finer = best(within(halves, parts, times, limits.min_event_s), limits.min_event_s)
    return Pieces(cuts, reasons, idle, moved, finer)


def corner(step: int, sharp: Array, low: int, high: int) -> int:
    """Where the velocity changes most at once, from `low` to before `high`; else the step."""
    low = max(low, 0)
    if low >= min(high, len(sharp)):
        return step
    top = low + int(sharp[low:high].argmax())
    return top if sharp[top] > SHARP else step


def too_long(
    times_s: Array, chances: Array, spans: list[tuple[int, int]], cuts: list[int], limits: Limits
) -> list[int]:
    """Further cuts, so that no event within `spans` exceeds the longest."""
    found: list[int] = []
    for a, b in spans:
        if times_s[b] - times_s[a] > limits.max_event_s:
            inner = [step - a for step in cuts if a < step < b]
            own = slice(a, b + 1)
            found += [
                a + step
                for step in shortened(
                    inner, chances[own], times_s[own], limits.min_event_s, limits.max_event_s
                )
            ]
    return found


def rests_here(idle: list[tuple[int, int]], a: int, b: int) -> bool:
    """Whether most of control steps `a` to `b` is rest."""
    return (
        bool(idle) and 2 * sum(max(0, min(b, stop) - max(a, start)) for start, stop in idle) > b - a
    )


def anchors(
    times_s: Array,
    chances: Array,
    sharp: Array,
    side: int,
    gripper: list[Transition],
    edges: list[int],
    min_s: float,
    least_s: float,
    most: int,
) -> tuple[list[int], dict[int, dict[str, float]], dict[int, Transition]]:
    """Cuts that must be; why each; and what transition each has, if any.

    A transition's cut is where a boundary is likeliest nearby; then come the `edges` of rests.
    Transitions are `min_s` apart or more, edges `least_s` from all else; `most` in all.
    """
    kept: list[int] = []
    reasons: dict[int, dict[str, float]] = {}
    moved: dict[int, Transition] = {}
    fixed = [times_s[0], times_s[-1]]

    def keep(step: int, reason: str, apart_s: float) -> bool:
        if min(abs(times_s[step] - f) for f in fixed) < apart_s - EXACT_S:
            return False
        kept.append(step)
        fixed.append(times_s[step])
        reasons[step] = {reason: 1.0}
        return True

    for each in gripper:
        at = times_s[each.frame]
        low, high = np.searchsorted(times_s, [at - NEAR_TRANSITION_S, at + NEAR_TRANSITION_S])
        low, high = min(int(low), each.frame), max(int(high), each.frame + 1)
        likeliest = low + int(chances[low:high].argmax())
        likeliest = corner(
            likeliest, sharp, max(low, likeliest - side), min(high, likeliest + side + 1)
        )
        spot = next((s for s in (likeliest, each.frame) if keep(s, each.signal, min_s)), each.frame)
        moved.setdefault(spot, each)
    for edge in edges:
        if edge < len(times_s) and len(kept) < most:
            keep(edge, "rest", least_s)
    return sorted(kept), reasons, moved


def events(
    batch: Flat, found: Evidence, pieces: list[Pieces], learned: Fusion
) -> list[list[Event]]:
    """Events with kinds and votes."""
    rows = np.array(
        [start + c for start, p in zip(batch.start.tolist(), pieces, strict=True) for c in p.cuts],
        dtype=np.intp,
    )
    voted = iter(votes(batch, found, rows, learned))
    score = iter(found.near[rows].tolist())
    made: list[list[Event]] = []
    for count, piece in zip(batch.count.tolist(), pieces, strict=True):
        own: list[Event] = []
        for start, end in zip([0, *piece.cuts], [*piece.cuts, count], strict=True):
            said: dict[str, float] = {}
            strength = 0.0
            if start:
                said, strength = next(voted) | piece.reasons.get(start, {}), next(score)
                strength = max(strength, *(piece.reasons.get(start, {"": 0.0}).values()))
            finer = tuple(step for step in piece.finer if start < step < end)
            own.append(Event(start, end, kind(start, end, piece), round(strength, 4), said, finer))
        made.append(own)
    return made


def votes(batch: Flat, found: Evidence, rows: Index, learned: Fusion) -> list[dict[str, float]]:
    """Which signals speak for a boundary at each of `rows` (K,): the chance lost without each."""
    odds = learned.signals.without(batch, found.signals, found.reach, rows)
    if found.seen is not None:
        looks = learned.video.without(batch, found.seen, found.reach, rows)
        full = odds[""]
        odds = {name: learned.fused(value, looks[""]) for name, value in odds.items()}
        odds |= {name: learned.fused(full, value) for name, value in looks.items() if name}
    shift = found.shift[batch.owner[rows]]
    full = evidence.chance(odds.pop("") + shift)
    said: list[dict[str, float]] = [{} for _ in rows]
    for name, value in odds.items():
        lost = np.round(full - evidence.chance(value + shift), 4)
        for k in np.flatnonzero(lost >= SMALLEST_VOTE).tolist():
            said[k][name] = float(lost[k])
    for k in np.flatnonzero(found.sharp[rows] > CORNER).tolist():
        said[k]["direction_change"] = max(said[k].get("direction_change", 0.0), CORNER_CHANCE)
    return said


def kind(start: int, end: int, piece: Pieces) -> str:
    """What the event is: by the gripper's first transition within it, else whether it rests."""
    inside = [t for at, t in sorted(piece.gripper.items()) if start <= at < end]
    if inside:
        return "grasp" if inside[0].closes else "release"
    return "idle" if rests_here(piece.idle, start, end) else "motion"
