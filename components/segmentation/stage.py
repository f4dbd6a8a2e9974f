"""Segmentation: cut each episode where the behaviour changes. data/episodes in, data/events out.

Boundaries come from the gripper and from the motion of the arm (`boundaries.py`), relative to each
episode's own range and noise. Every boundary carries its evidence.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from components import corrections as overlay
from components import outputs, records
from components.episodes import Episode, Episodes
from components.segmentation.agreement import Agreement, agreement
from components.segmentation.boundaries import Event, Limits, cut
from components.segmentation.corrected import TOLERANCE_S, Overlay, Row


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


class People(BaseModel):
    """What people corrected, and how far the machine's own cut agrees with them."""

    corrections: int
    corrected_episodes: int
    corrections_of_other_episodes: int  # not in these recordings, so without effect
    boundary_f1: float | None  # in the corrected spans, accepted events included
    tolerance_s: float
    same_kinds: float | None  # share of the judged kinds that the machine says, too


class Report(BaseModel):
    """What came out."""

    episodes: int
    events: int
    kinds: dict[str, int]
    episodes_with_events: dict[str, int]  # number of events -> number of episodes
    boundaries_by_signal: dict[str, int]
    median_event_s: float
    same_kinds: dict[str, float]  # task -> share of episodes with its most common row of kinds
    people: People


def run(episodes: Path, corrections: Path, events: Path, *, config: Config) -> Report:
    """Cut every episode of `episodes` and write `events/events.parquet` (`records.EVENTS`).

    What people said (`corrections`, a file of `EventCorrection`) stands over the machine's cut.
    Rows are sorted by episode and time. DataError when an episode cannot be read, UserError for a
    malformed correction.
    """
    limits = Limits(**config.model_dump())
    said = overlay.read(corrections, overlay.EventCorrection)
    recordings = Episodes(episodes)
    rows: list[Row] = []
    tasks: dict[str, str] = {}
    agreed = Agreement()
    for episode_id in recordings.ids:
        episode = recordings[episode_id]
        machine = event_rows(episode, cut(episode, limits))
        people = Overlay(episode.timestamps_s, said.get(episode_id, []))
        rows += people.applied(machine, config.min_event_s)
        agreed += agreement(people, machine)
        tasks[episode_id] = episode.task
    rows.sort(key=lambda row: (row["episode_id"], row["start_frame"]))
    with outputs.whole_folder(events) as out:
        table = pa.Table.from_pylist(rows, schema=records.EVENTS)
        outputs.write_table(out / "events.parquet", table)
    return summary(tasks, rows, people_of(said, set(tasks), agreed))


def people_of(
    said: Mapping[str, list[overlay.EventCorrection]], known: set[str], agreed: Agreement
) -> People:
    """Counts of corrections; `known` are the episodes that there are."""
    here = [each for episode_id, each in said.items() if episode_id in known]
    corrections = sum(map(len, said.values()))
    return People(
        corrections=corrections,
        corrected_episodes=len(here),
        corrections_of_other_episodes=corrections - sum(map(len, here)),
        boundary_f1=agreed.f1,
        tolerance_s=TOLERANCE_S,
        same_kinds=agreed.kind_share,
    )


def event_rows(episode: Episode, events: list[Event]) -> list[Row]:
    """One episode's rows of `records.EVENTS`, in time order."""
    times = episode.timestamps_s
    rows: list[Row] = []
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


def summary(tasks: Mapping[str, str], rows: list[Row], people: People) -> Report:
    """Counts for a person; `tasks` has every episode's task, `rows` are by episode and time."""
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(tasks, ())
    for row in rows:
        kinds[row["episode_id"]] += (row["kind"],)
    sequences: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for episode_id, task in tasks.items():
        sequences[task][kinds[episode_id]] += 1
    numbers = Counter(len(found) for found in kinds.values())
    signals = Counter(signal for row in rows for signal in json.loads(row["evidence"]))
    lengths = [row["end_s"] - row["start_s"] for row in rows]
    return Report(
        episodes=len(tasks),
        events=len(rows),
        kinds=dict(sorted(Counter(row["kind"] for row in rows).items())),
        episodes_with_events={str(n): numbers[n] for n in sorted(numbers)},
        boundaries_by_signal=dict(sorted(signals.items())),
        median_event_s=round(float(np.median(lengths)), 4) if lengths else 0.0,
        same_kinds={
            task: round(max(found.values()) / found.total(), 4)
            for task, found in sorted(sequences.items())
        },
        people=people,
    )
