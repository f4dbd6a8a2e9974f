"""Segmentation: cut each episode where the behaviour changes. data/episodes in, data/events out.

Boundaries come from the gripper and from the motion of the arm (`boundaries.py`), relative to each
episode's own range and noise. Every boundary carries its evidence.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from components import outputs, records
from components.episodes import Episode, Episodes
from components.segmentation.boundaries import Event, Limits, cut


class Config(BaseModel, frozen=True, extra="forbid"):
    """What bounds an event."""

    min_event_s: float = Field(ge=0.05, le=5, description="Shortest event, seconds.")
    max_event_s: float = Field(
        ge=0.5, le=120, description="Longest event, seconds; idle ones may be longer."
    )
    min_idle_s: float = Field(
        ge=0.1, le=60, description="Shortest rest that is an event of its own, seconds."
    )
    cut_price: float = Field(
        gt=0,
        lt=1,
        description="What a cut must explain: share of the motion's energy within max_event_s.",
    )

    @model_validator(mode="after")
    def _bounds_meet(self) -> Config:
        if self.max_event_s < 2 * self.min_event_s:
            raise ValueError(
                f"max_event_s ({self.max_event_s}) must be at least twice min_event_s "
                f"({self.min_event_s}), or some durations cannot be cut"
            )
        return self


class Report(BaseModel):
    """What came out."""

    episodes: int
    events: int
    kinds: dict[str, int]
    episodes_with_events: dict[str, int]  # number of events -> number of episodes
    boundaries_by_signal: dict[str, int]
    median_event_s: float
    same_kinds: dict[str, float]  # task -> share of episodes with its most common row of kinds


def run(episodes: Path, events: Path, *, config: Config) -> Report:
    """Cut every episode of `episodes` and write `events/events.parquet` (`records.EVENTS`).

    Rows are sorted by episode and time. DataError when an episode cannot be read.
    """
    limits = Limits(**config.model_dump())
    recordings = Episodes(episodes)
    rows: list[dict[str, object]] = []
    cuts: list[tuple[str, list[Event]]] = []
    for episode_id in recordings.ids:
        episode = recordings[episode_id]
        found = cut(episode, limits)
        rows += event_rows(episode, found)
        cuts.append((episode.task, found))
    rows.sort(key=lambda row: (row["episode_id"], row["start_frame"]))
    with outputs.whole_folder(events) as out:
        table = pa.Table.from_pylist(rows, schema=records.EVENTS)
        outputs.write_table(out / "events.parquet", table)
    return summary(cuts, rows)


def event_rows(episode: Episode, events: list[Event]) -> list[dict[str, object]]:
    """One episode's rows of `records.EVENTS`, in time order."""
    times = episode.timestamps_s
    rows: list[dict[str, object]] = []
    for event in events:
        start_s = float(times[event.start])
        end_s = float(times[min(event.end, len(times) - 1)])
        rows.append(
            {
                "event_id": records.event_id(episode.episode_id, start_s, end_s),
                "episode_id": episode.episode_id,
                "start_s": start_s,
                "end_s": end_s,
                "start_frame": event.start,
                "end_frame": event.end,
                "kind": event.kind,
                "score": event.score,
                "evidence": json.dumps(event.votes, sort_keys=True),
            }
        )
    return rows


def summary(cuts: list[tuple[str, list[Event]]], rows: list[dict[str, object]]) -> Report:
    """Counts for a person; `cuts` are the task and the events of each episode."""
    sequences: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for task, events in cuts:
        sequences[task][tuple(event.kind for event in events)] += 1
    numbers = Counter(len(events) for _, events in cuts)
    lengths = [float(str(row["end_s"])) - float(str(row["start_s"])) for row in rows]
    return Report(
        episodes=len(cuts),
        events=len(rows),
        kinds=dict(sorted(Counter(e.kind for _, events in cuts for e in events).items())),
        episodes_with_events={str(n): numbers[n] for n in sorted(numbers)},
        boundaries_by_signal=dict(
            sorted(Counter(s for _, events in cuts for e in events for s in e.votes).items())
        ),
        median_event_s=round(float(np.median(lengths)), 4) if lengths else 0.0,
        same_kinds={
            task: round(max(found.values()) / found.total(), 4)
            for task, found in sorted(sequences.items())
        },
    )
