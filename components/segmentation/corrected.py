"""What people said of boundaries and kinds, laid over the machine's cut.

Within a corrected span people's events stand, whatever their length; outside it the machine's do,
except for a boundary nearer than `min_event_s` to one of people's. Applying the same corrections
twice is applying them once. Rows are those of `records.EVENTS` for one episode, in time order.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from components import records
from components.corrections import EventCorrection
from components.errors import UserError

Row = dict[str, Any]
Seconds = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

EXACT_S = 1e-6  # what two timestamps may differ by through rounding
TOLERANCE_S = 0.1  # within which people and machine mean the same boundary


@dataclass(frozen=True)
class Piece:
    """One event as people want it; `vouched` says of its start and end whether they were judged."""

    start_s: float
    end_s: float
    kind: str
    said: EventCorrection
    vouched: tuple[bool, bool]


def pieces(corrections: Iterable[EventCorrection]) -> list[Piece]:
    """Disjoint pieces in time order; a later correction takes its span from earlier ones."""
    held: list[Piece] = []
    for said in corrections:
        low, high = said.times_s[0], said.times_s[-1]
        first = bisect_right(held, low + EXACT_S, key=lambda piece: piece.end_s)
        last = bisect_left(held, high - EXACT_S, key=lambda piece: piece.start_s)
        outside = list(_outside(held[first:last], low, high))
        before = [piece for piece in outside if piece.start_s < low]
        after = [piece for piece in outside if piece.start_s >= low]
        held[first:last] = [*before, *_pieces_of(said), *after]
    return held


def _outside(touched: list[Piece], low: float, high: float) -> Iterator[Piece]:
    """What is left of pieces to the sides of a span; the new edge is nobody's judgement."""
    for piece in touched:
        if piece.start_s < low - EXACT_S:
            yield replace(piece, end_s=low, vouched=(piece.vouched[0], False))
        if piece.end_s > high + EXACT_S:
            yield replace(piece, start_s=high, vouched=(False, piece.vouched[1]))


def _pieces_of(said: EventCorrection) -> Iterator[Piece]:
    all_of_it, last = said.did == "accept", len(said.kinds) - 1
    for i, kind in enumerate(said.kinds):
        vouched = (all_of_it or i > 0, all_of_it or i < last)
        yield Piece(said.times_s[i], said.times_s[i + 1], kind, said, vouched)


class Overlay:
    """One episode's pieces at its control steps `times_s` (T,), seconds from its start.

    UserError when a correction speaks of time beyond the episode's end.
    """

    def __init__(self, times_s: Seconds, corrections: Sequence[EventCorrection]) -> None:
        self.times_s = times_s
        end_s = float(times_s[-1])
        for said in corrections:
            if said.times_s[-1] > end_s + TOLERANCE_S:
                raise UserError(
                    f"correction of episode {said.episode_id} by {said.author} at {said.time}: "
                    f"expected times up to the episode's end ({end_s:.3f} s); got "
                    f"{said.times_s[-1]:.3f}. Remove that line, or name the right episode."
                )
        self.pieces = {
            (start, end): piece
            for piece in pieces(corrections)
            for start, end in [(self._step(piece.start_s), self._step(piece.end_s))]
            if start < end
        }
        inner = {step for span in self.pieces for step in span} - {0, len(times_s)}
        self.edges = np.array(sorted(inner), dtype=np.int64)

    def _step(self, at_s: float) -> int:
        """The nearest control step; the last one is where the episode ends, no event's start."""
        after = int(np.clip(np.searchsorted(self.times_s, at_s), 1, max(len(self.times_s) - 1, 1)))
        if len(self.times_s) < 2:
            return len(self.times_s)
        nearer_before = at_s - self.times_s[after - 1] <= self.times_s[after] - at_s
        step = after - 1 if nearer_before else after
        return len(self.times_s) if step >= len(self.times_s) - 1 else step

    def applied(self, rows: list[Row], min_event_s: float) -> list[Row]:
        """The machine's rows with people's events in their places; again a gap-free cover."""
        if not self.pieces:
            return rows
        machine = np.array([row["start_frame"] for row in rows])
        starts = sorted({0, *machine[self._stand(machine, min_event_s)], *self.edges})
        ends = [*starts[1:], len(self.times_s)]
        return [
            self._row(overlapping(rows, machine, start, end), int(start), int(end))
            for start, end in zip(starts, ends, strict=True)
        ]

    def _stand(self, steps: Steps, min_event_s: float) -> npt.NDArray[np.bool_]:
        """Which of the machine's boundaries are outside of corrected spans and not near to one."""
        far = away_s(self.times_s[steps], self.times_s[self.edges]) >= min_event_s - EXACT_S
        return np.asarray(np.isin(steps, self.edges) | (far & ~self.inside(steps)))

    def inside(self, steps: Steps) -> npt.NDArray[np.bool_]:
        """Which control steps lie within a piece and are not its start or end."""
        spans = np.array(list(self.pieces))
        place = np.maximum(np.searchsorted(spans[:, 0], steps) - 1, 0)
        return np.asarray((spans[place, 0] < steps) & (steps < spans[place, 1]))

    def _row(self, touched: list[Row], start: int, end: int) -> Row:
        """The event from `start` to `end`: a person's, the machine's own, or one with new ends."""
        most = max(touched, key=lambda row: shared(row, start, end))
        begins = touched[0] if touched[0]["start_frame"] == start else None
        piece = self.pieces.get((start, end))
        if piece is None and (most["start_frame"], most["end_frame"]) == (start, end):
            return most
        evidence = json.loads(begins["evidence"]) if begins else {}
        if piece:
            evidence["person"] = {**piece.said.said(), "of": "event"}
        elif begins is None:
            evidence["person"] = {**self._ending(start).said.said(), "of": "boundary"}
        start_s, end_s = (self.times_s[min(i, len(self.times_s) - 1)].item() for i in (start, end))
        return {
            **most,
            "event_id": records.event_id(most["episode_id"], start_s, end_s),
            "start_s": start_s,
            "end_s": end_s,
            "start_frame": start,
            "end_frame": end,
            "kind": piece.kind if piece else rest_of(most, start),
            "score": begins["score"] if begins and not piece else 1.0,
            "evidence": json.dumps(evidence, sort_keys=True),
        }

    def _ending(self, step: int) -> Piece:
        return next(piece for (_, end), piece in self.pieces.items() if end == step)


def away_s(times_s: Seconds, others_s: Seconds) -> Seconds:
    """How far each of (N,) is from the nearest of (M,), ascending; infinite where M is 0."""
    padded = np.concatenate([[-np.inf], others_s, [np.inf]])
    after = np.searchsorted(padded, times_s)
    return np.asarray(np.minimum(times_s - padded[after - 1], padded[after] - times_s))


def overlapping(rows: list[Row], starts: Steps, start: int, end: int) -> list[Row]:
    """The rows, in time order and without gaps, that share control steps with a span."""
    first = int(np.searchsorted(starts, start, side="right")) - 1
    return rows[first : int(np.searchsorted(starts, end))]


def shared(row: Row, start: int, end: int) -> int:
    """Control steps that a row and a span have in common."""
    return int(min(row["end_frame"], end) - max(row["start_frame"], start))


def rest_of(row: Row, start: int) -> str:
    """What is left of a row that began before `start`: the gripper's work was at its beginning."""
    began = row["start_frame"] < start and row["kind"] in ("grasp", "release")
    return "motion" if began else str(row["kind"])
