"""Episodes whose rows are moved against their pictures, so that a camera's lag is gone.

Picture k of a camera that is L steps late shows row k - L, so the first L pictures and the last L
rows have no partner and go; of a camera that is early, the first rows and the last pictures. The
clock stays that of the rows, relative to the first row that is left; pictures are shown by it. No
picture is encoded anew: a video is only a shorter span of the same packets.

A lag belongs to a recorder, so where the sure episodes of a source agree, it is corrected in all of
them; one that is sure of another keeps its own. Where nothing is sure, nothing is moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from components.ingestion.measure import Facts
from components.ingestion.raw import RawEpisode, Reader, relative_s
from components.packets import Span, cut

SURE = 1.0  # steps: the largest standard error of a lag that is acted upon
ENOUGH = 3  # sure episodes that can speak for their source
AGREED = 2 / 3  # of them lie within a step of their median
APART = 2.0  # standard errors: what is nearer is not another lag
NOTE = "lag_corrected_steps"


def steps(found: list[Facts]) -> dict[int, int]:
    """By how many steps each episode of one source is moved, where it is: index -> steps."""
    found = [f for f in found if f.read_problem is None and not f.videos_unreadable]
    sure = {
        facts.index: (facts.numbers["video_lag_steps"], facts.numbers["video_lag_spread"])
        for facts in found
        if "video_lag_steps" in facts.numbers and facts.numbers["video_lag_spread"] <= SURE
    }
    shared = _shared([late for late, _ in sure.values()])
    moved = {facts.index: shared or 0.0 for facts in found}
    for index, (late, spread) in sure.items():
        base = 0.0 if shared is None else shared
        if abs(late - base) > max(1.0 if shared is not None else 0.0, APART * spread):
            moved[index] = late
    return {index: round(late) for index, late in moved.items() if round(late)}


def _shared(late: list[float]) -> float | None:
    """The lag of a source, in steps, from that of its sure episodes; None where they disagree."""
    if len(late) < ENOUGH:
        return None
    middle = median(late)
    near = sum(abs(value - middle) <= 1 for value in late)
    return middle if near >= AGREED * len(late) else None


class Aligned:
    """A reader whose episodes with an index in `late` come moved by so many steps."""

    def __init__(self, reader: Reader, late: dict[int, int]) -> None:
        self.reader, self.late = reader, late
        self.format, self.layout, self.indices = reader.format, reader.layout, reader.indices

    @property
    def warnings(self) -> list[str]:
        """As the reader says, and how many episodes were moved."""
        said = sorted(set(self.late.values()))
        span = f"{said[0]:+d}" if len(said) == 1 else f"{said[0]:+d} to {said[-1]:+d}"
        line = f"{len(self.late)} of {len(self.indices)} episodes had their rows moved by {span}"
        return [*self.reader.warnings, f"{line} steps against their pictures (correct_lag)"]

    def read(self, index: int) -> RawEpisode:
        """One episode, moved."""
        raw, late = self.reader.read(index), self.late.get(index, 0)
        return moved(raw, late) if late and raw.problem is None else raw

    def version(self, index: int) -> str:
        """Of the same files."""
        return self.reader.version(index)

    def identity(self, index: int) -> Any:
        """What is moved is another episode."""
        known, late = self.reader.identity(index), self.late.get(index, 0)
        return [known, NOTE, late] if late and known is not None else known

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """As the reader."""
        return self.reader.recall(index, notes)

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """As the reader."""
        return self.reader.who(index, notes)

    def spans(self, index: int) -> dict[str, Span] | None:
        """The videos, shorter."""
        spans, late = self.reader.spans(index), self.late.get(index, 0)
        return spans and {name: _shorter(span, late) for name, span in spans.items()}


def moved(raw: RawEpisode, late: int) -> RawEpisode:
    """An episode whose pictures are `late` steps late (early where below 0), put right."""
    rows = slice(max(-late, 0), len(raw.timestamps_s) - max(late, 0))
    return replace(
        raw,
        timestamps_s=relative_s(raw.timestamps_s[rows]),
        state=raw.state[rows],
        action=raw.action[rows],
        videos={name: _shorter(span, late) for name, span in raw.videos.items()},
        notes=raw.notes | {NOTE: late},
    )


def _shorter(span: Span, late: int) -> Span:
    """Without the first `late` pictures, or without the last ones where it is below 0."""
    if not late:
        return span
    with cut(span) as found:
        tick_s, frame = float(found.time_base), found.frame_ticks
        shown = np.sort(found.track.pts[found.inside])
    if len(shown) <= abs(late):
        return span
    between = shown[late - 1 : late + 1] if late > 0 else shown[late - 1 :][:2]
    edge_s = float(between.mean() + frame / 2) * tick_s  # a span counts from half a frame before
    return replace(span, start_s=edge_s) if late > 0 else replace(span, end_s=edge_s)


def corrected(readers: list[Reader], found: list[list[Facts]]) -> Iterator[Reader]:
    """The readers of sources with their facts, those that need it aligned."""
    decided: dict[str, int] = {}  # a recording in several sources is moved as in the first one
    for reader, facts in zip(readers, found, strict=True):
        own = steps(facts)
        ids = {f.index: f.episode_id for f in facts if f.episode_id}
        late = own | {i: decided.setdefault(e, own.get(i, 0)) for i, e in ids.items()}
        late = {index: by for index, by in late.items() if by}
        yield Aligned(reader, late) if late else reader
