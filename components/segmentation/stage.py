"""Segmentation: cut each episode where the behaviour changes. data/episodes in, data/events out.

Boundaries come from all signals there are (`boundaries.py`), relative to each episode's own range,
speed and noise. Every boundary carries its evidence. Only episodes that are new are cut
(`components/shards.py`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from components import corrections as overlay
from components import outputs, records
from components.episodes import Episode, Episodes
from components.segmentation.agreement import Agreement, agreement
from components.segmentation.boundaries import BATCH_ROWS, Event, Limits, cut_all
from components.segmentation.corrected import TOLERANCE_S, Overlay, Row
from components.segmentation.evidence import WEIGHTS
from components.segmentation.hierarchy import Node, nodes
from components.shards import Shards, key


class Config(BaseModel, frozen=True, extra="forbid"):
    """What bounds an event."""

    min_event_s: float = Field(ge=0.05, le=5, description="Shortest event, seconds.")
    max_event_s: float = Field(
        ge=0.5, le=120, description="Longest event, seconds; idle ones may be longer."
    )
    min_idle_s: float = Field(
        ge=0.1, le=60, description="Shortest rest that is an event of its own, seconds."
    )
    min_event_share: float = Field(
        ge=0,
        le=2,
        description="Shortest event that no gripper ends, share of the episode's crossing time: "
        "how long the arm takes across its whole range at its usual speed.",
    )
    cut_price: float = Field(
        gt=0,
        lt=1,
        description="The least chance of a change of behaviour that is worth a cut.",
    )
    video: bool = Field(description="Whether the pictures are looked at, too.")

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
    Rows are sorted by episode and time. `hierarchy.parquet` (`records.HIERARCHY`) says what each is
    part of, and its finer parts. DataError when an episode cannot be read, UserError for a
    malformed correction.
    """
    said = overlay.read(corrections, overlay.EventCorrection)
    recordings = Episodes(episodes)
    found = machine(recordings, config)
    rows: list[Row] = []
    tree: list[Node] = []
    agreed = Agreement()
    for episode_id in sorted(recordings.ids):
        own = found[episode_id]["rows"]
        if episode_id in said:
            people = Overlay(recordings[episode_id].timestamps_s, said[episode_id])
            agreed += agreement(people, own)
            own = people.applied(own, config.min_event_s)
        rows += own
        tree += nodes(own, found[episode_id]["finer"], found[episode_id]["finer_s"])
    with outputs.whole_folder(events) as out:
        table = pa.Table.from_pylist(rows, schema=records.EVENTS)
        outputs.write_table(out / "events.parquet", table)
        table = pa.Table.from_pylist(tree, schema=records.HIERARCHY)
        outputs.write_table(out / "hierarchy.parquet", table)
    tasks = dict(zip(recordings.ids, recordings.manifest["task"].to_pylist(), strict=True))
    return summary(tasks, rows, people_of(said, set(tasks), agreed))


def machine(recordings: Episodes, config: Config) -> dict[str, dict[str, Any]]:
    """Of each episode the machine's rows and finer cuts; what was cut before comes from the store.

    Keys: `rows` (`records.EVENTS`), `finer` (control steps) and `finer_s` (their times, seconds).
    """
    kept = Shards("segmentation", config.model_dump() | {"weights": outputs.sha256(WEIGHTS)})
    embodiments = recordings.column("embodiment")
    signals = {name: columns(recordings, name) for name in set(embodiments.values())}
    names = {i: key(i, signals[name]) for i, name in embodiments.items()}
    recalled = kept.recall(names.values())
    found = {i: recalled[name] for i, name in names.items() if name in recalled}
    for some in portions(recordings, [i for i in recordings.ids if i not in found]):
        episodes = [recordings[i] for i in some]
        cut = cut_all(episodes, limits(config))
        new = {e.episode_id: kept_of(e, own) for e, own in zip(episodes, cut, strict=True)}
        kept.keep({names[i]: each for i, each in new.items()})
        found |= new
        print(f"segmentation: {len(found)} of {len(names)} episodes", flush=True)
    return found


def columns(recordings: Episodes, embodiment: str) -> list[Any]:
    """What an embodiment's signals and cameras are called."""
    features = recordings.embodiment(embodiment).info["features"]
    return [[name, feature.get("names")] for name, feature in sorted(features.items())]


def portions(recordings: Episodes, ids: list[str]) -> Iterator[list[str]]:
    """Episodes of one embodiment each, BATCH_ROWS control steps or one more at a time."""
    about = {row["episode_id"]: row for row in recordings.manifest.to_pylist()}
    for _, group in groupby(
        sorted(ids, key=lambda i: (about[i]["embodiment"], about[i]["episode_index"])),
        key=lambda i: about[i]["embodiment"],
    ):
        some: list[str] = []
        for episode_id in group:
            some.append(episode_id)
            if sum(about[i]["n_frames"] for i in some) >= BATCH_ROWS:
                yield some
                some = []
        if some:
            yield some


def limits(config: Config) -> Limits:
    """The section's values as the algorithm takes them."""
    return Limits(**config.model_dump())


def kept_of(episode: Episode, events: list[Event]) -> dict[str, Any]:
    """One episode's rows and finer cuts, as the store keeps them."""
    finer = [step for event in events for step in event.finer]
    return {
        "rows": event_rows(episode, events),
        "finer": finer,
        "finer_s": episode.timestamps_s[finer].tolist(),
    }


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
