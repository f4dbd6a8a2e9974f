"""How the machine's own cut compares with what people said, in the spans that they corrected."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from components.segmentation.corrected import (
    EXACT_S,
    TOLERANCE_S,
    Overlay,
    Row,
    Seconds,
    away_s,
    shared,
)

JUDGES_KINDS = ("kind", "accept")  # other corrections only carry the kinds along


@dataclass(frozen=True)
class Agreement:
    """Counts: people's boundaries, the machine's own there, pairs of both within the tolerance.

    `kinds` are the events whose kind somebody judged, `same_kinds` those the machine called alike.
    """

    people: int = 0
    machine: int = 0
    pairs: int = 0
    kinds: int = 0
    same_kinds: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def f1(self) -> float | None:
        """Boundary F1 of the machine against people; None where there is nothing to compare."""
        total = self.people + self.machine
        return round(2 * self.pairs / total, 4) if total else None

    @property
    def kind_share(self) -> float | None:
        """Share of judged kinds that the machine had said, too."""
        return round(self.same_kinds / self.kinds, 4) if self.kinds else None


def agreement(overlay: Overlay, rows: list[Row]) -> Agreement:
    """The machine's `rows` of one episode, before the overlay, against people's judgements.

    A boundary that nobody judged, an outer one of a correction, counts on neither side.
    """
    if not overlay.pieces:
        return Agreement()
    times_s, last = overlay.times_s, len(overlay.times_s)
    judged = {
        step
        for span, piece in overlay.pieces.items()
        for step, vouched in zip(span, piece.vouched, strict=True)
        if vouched
    }
    people = np.array(sorted(judged - {0, last}), dtype=np.int64)
    others_s = times_s[np.setdiff1d(overlay.edges, people)]
    cuts = np.array([row["start_frame"] for row in rows[1:]], dtype=np.int64)
    near = away_s(times_s[cuts], times_s[people]) <= TOLERANCE_S + EXACT_S
    unjudged = away_s(times_s[cuts], others_s) <= TOLERANCE_S + EXACT_S
    own = cuts[near | (overlay.inside(cuts) & ~unjudged)]
    kinds = [(s, p.kind) for s, p in overlay.pieces.items() if p.said.did in JUDGES_KINDS]
    same = sum(max(rows, key=lambda row: shared(row, *s))["kind"] == kind for s, kind in kinds)
    pairs = _pairs(times_s[people], times_s[own])
    return Agreement(len(people), len(own), pairs, len(kinds), same)


def _pairs(ours_s: Seconds, theirs_s: Seconds) -> int:
    """The most pairs of one of each, none used twice, within the tolerance; both ascending."""
    i = j = pairs = 0
    while i < len(ours_s) and j < len(theirs_s):
        apart_s = float(ours_s[i] - theirs_s[j])
        if abs(apart_s) <= TOLERANCE_S + EXACT_S:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif apart_s < 0:
            i += 1
        else:
            j += 1
    return pairs
