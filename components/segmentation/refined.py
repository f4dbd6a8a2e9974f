"""A model's times of change beside the signals' cuts of one episode.

Each time goes with one cut, the nearest, or becomes a cut of its own. The model sees pictures some
time apart, so it knows a time to half of that: a cut as near stays where the signals put it, and a
new one goes to where they see a weaker change. Cuts farther away, up to a reach, are moved. Those
of gripper transitions and rests are measured and stay, a rest stays whole, no cut is taken away,
and events keep their bounds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from components import records
from components.segmentation.boundaries import EVENTS_PER_TRANSITION
from components.segmentation.corrected import EXACT_S, Row, Seconds, rest_of

VOTE = "vlm"  # in a boundary's evidence
Verdict = dict[str, Any]  # says_s, what, did (confirmed, moved, added or left out), at_s, why


@dataclass(frozen=True)
class Bounds:
    """How long events may be, how far cuts may move, and how well the model knows a time."""

    min_event_s: float
    max_event_s: float
    reach_s: float
    sure_s: float


@dataclass(frozen=True)
class Mark:
    """An event's start: that of row `row`, or a new one within it."""

    row: int
    voted: bool = False
    new: bool = False


class Beside:
    """One episode's rows (`records.EVENTS`, in time order) with a model's times `says` in them.

    `says` are (seconds, what changes) in time order, `times_s` (T,) the control steps, `finer`
    control steps of the signals' weaker changes. Then `rows` are a gap-free cover again, and
    `verdicts` say of each time what became of it.
    """

    def __init__(
        self,
        rows: list[Row],
        says: list[tuple[float, str]],
        times_s: Seconds,
        finer: list[int],
        bounds: Bounds,
    ) -> None:
        self.machine, self.times_s, self.finer, self.bounds = rows, times_s, finer, bounds
        self.marks = {row["start_frame"]: Mark(i) for i, row in enumerate(rows)}
        near = self._nearest([at_s for at_s, _ in says])
        found = {k: self._met(near[k], at_s) for k, (at_s, _) in enumerate(says) if k in near}
        found |= {k: self._alone(at_s) for k, (at_s, _) in enumerate(says) if k not in near}
        self.verdicts: list[Verdict] = [
            {"says_s": at_s, "what": what, **found[k]} for k, (at_s, what) in enumerate(says)
        ]
        self.rows = self._rows()

    def _nearest(self, says_s: list[float]) -> dict[int, int]:
        """Place of a time -> the row whose start goes with it; the nearest pairs first."""
        reach_s = max(self.bounds.reach_s, self.bounds.sure_s)
        pairs = sorted(
            (away_s, k, i)
            for k, at_s in enumerate(says_s)
            for i, row in enumerate(self.machine[1:], 1)
            if (away_s := abs(row["start_s"] - at_s)) <= reach_s + EXACT_S
        )
        found: dict[int, int] = {}
        for _, k, i in pairs:
            if k not in found and i not in found.values():
                found[k] = i
        return found

    def _met(self, i: int, at_s: float) -> Verdict:
        """A time that goes with the start of row `i`."""
        at = self.machine[i]["start_frame"]
        away_s = abs(self.machine[i]["start_s"] - at_s)
        if away_s > self.bounds.sure_s + EXACT_S and not self._measured(i):
            to = self._step(at_s)
            others = sorted(self.marks.keys() - {at})
            passes = any(min(at, to) <= step <= max(at, to) for step in others)
            if not passes and self._fits(others, to, self.bounds.max_event_s):
                del self.marks[at]
                self.marks[to] = Mark(i, voted=True)
                return self._did("moved", to)
        self.marks[at] = Mark(i, voted=True)
        return self._did("confirmed", at)

    def _alone(self, at_s: float) -> Verdict:
        """A time without a cut near it."""
        to = self._step(at_s)
        i = self.marks[max(step for step in self.marks if step <= to)].row
        transitions = sum(row["kind"] in ("grasp", "release") for row in self.machine)
        if self.machine[i]["kind"] == "idle":
            why = "in a rest"
        elif transitions and len(self.marks) > EVENTS_PER_TRANSITION * transitions:
            why = "too many events for the gripper's transitions"
        elif not self._fits(sorted(self.marks), to):
            why = "too near to another boundary"
        else:
            self.marks[to] = Mark(i, voted=True, new=True)
            return self._did("added", to)
        return {"did": "left out", "at_s": None, "why": why}

    def _did(self, did: str, step: int) -> Verdict:
        return {"did": did, "at_s": float(self.times_s[step]), "why": ""}

    def _measured(self, i: int) -> bool:
        """Whether the gripper or a rest says where row `i` begins."""
        before, kind = (str(row["kind"]) for row in self.machine[i - 1 : i + 1])
        return kind != "motion" or before == "idle"

    def _step(self, at_s: float) -> int:
        """The signals' weaker change as near as the model can know, else the nearest step."""
        sure_s = self.bounds.sure_s + EXACT_S
        near = [s for s in self.finer if abs(self.times_s[s] - at_s) <= sure_s]
        steps = np.array(near or range(len(self.times_s)))
        return int(steps[np.abs(self.times_s[steps] - at_s).argmin()])

    def _fits(self, others: list[int], to: int, longest_s: float = np.inf) -> bool:
        """Whether a cut leaves events of a lawful length to its sides."""
        ends = [*others, len(self.times_s) - 1]
        before_s = self.times_s[to] - self.times_s[max(s for s in ends if s <= to)]
        after_s = self.times_s[min(s for s in ends if s >= to)] - self.times_s[to]
        shortest_s = self.bounds.min_event_s - EXACT_S
        return bool(
            min(before_s, after_s) >= shortest_s and max(before_s, after_s) <= longest_s + EXACT_S
        )

    def _rows(self) -> list[Row]:
        starts = [*sorted(self.marks), len(self.times_s)]
        return [self._row(self.marks[a], a, b) for a, b in pairwise(starts)]

    def _row(self, mark: Mark, start: int, end: int) -> Row:
        row = self.machine[mark.row]
        if not mark.voted and (start, end) == (row["start_frame"], row["end_frame"]):
            return row
        start_s, end_s = (float(self.times_s[min(s, len(self.times_s) - 1)]) for s in (start, end))
        evidence = {} if mark.new else json.loads(row["evidence"])
        return {
            **row,
            "event_id": records.event_id(row["episode_id"], start_s, end_s),
            "start_s": start_s,
            "end_s": end_s,
            "start_frame": start,
            "end_frame": end,
            "kind": rest_of(row, start) if mark.new else row["kind"],
            "score": 0.0 if mark.new else row["score"],
            "evidence": json.dumps(evidence | ({VOTE: 1.0} if mark.voted else {}), sort_keys=True),
        }
