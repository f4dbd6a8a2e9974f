"""Segmentation: cut each episode where the behaviour changes. data/episodes in, data/events out.

Boundaries come from all signals there are (`boundaries.py`), relative to each episode's own range,
speed and noise. Every boundary carries its evidence. Only episodes that are new are cut
(`components/shards.py`). A vision-language model can look them over (`looks.py`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from components import corrections as overlay
from components import outputs, records
from components.episodes import Episode, Episodes
from components.row_shards import PIECE, RowShards, counts, spans, values
from components.segmentation import tables
from components.segmentation.agreement import Agreement, agreement
from components.segmentation.boundaries import BATCH_ROWS, Event, Limits, cut_all
from components.segmentation.corrected import TOLERANCE_S, Overlay, Row
from components.segmentation.evidence import WEIGHTS
from components.segmentation.refinement import Refined, Refinement
from components.shards import key

if TYPE_CHECKING:
    from components.segmentation.looks import Looks

Said = Mapping[str, list[overlay.EventCorrection]]  # by episode


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
        description="The least chance of a change of behaviour nearby that is worth a cut; half of "
        "the F1 that can be reached makes F1 largest.",
    )
    video: bool = Field(description="Whether the pictures are looked at, too.")
    refinement: Refinement = Field(
        description="A vision-language model that looks over the cuts, if any."
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
    refinement: Refined | None  # what a vision-language model said, where one was asked


def run(episodes: Path, corrections: Path, events: Path, *, config: Config) -> Report:
    """Cut every episode of `episodes` and write `events/events.parquet` (`records.EVENTS`).

    What people said (`corrections`, a file of `EventCorrection`) stands over the machine's cut.
    Rows are sorted by episode and time. `hierarchy.parquet` (`records.HIERARCHY`) says what each is
    part of, and its finer parts. `refinement.parquet` (`records.REFINEMENT`), where a model was
    asked, says what it said. DataError when an episode cannot be read, UserError for a malformed
    correction or a model that cannot be used, TemporaryError when its endpoint does not answer, or
    not every question.
    """
    said = overlay.read(corrections, overlay.EventCorrection)
    recordings = Episodes(episodes)
    ids = sorted(recordings.ids)
    looks = looks_of(config)
    found = tables.joined(machine(recordings, config), ids)
    if looks:
        seen = looks.over(recordings, tables.every(found), config.min_event_s, config.max_event_s)
        found = tables.joined([tables.without(found, seen), tables.table(seen.items())], ids)
    known = said.keys() & set(ids)
    agreed = Agreement()
    if known:
        theirs, agreed = corrected(found, recordings, {i: said[i] for i in sorted(known)}, config)
        found = tables.joined([tables.without(found, known), theirs], ids)
    cut = tables.events(found)
    with outputs.whole_folder(events) as out:
        outputs.write_table(out / "events.parquet", cut)
        outputs.write_table(out / "hierarchy.parquet", tables.hierarchy(found))
        if looks:
            outputs.write_table(out / "refinement.parquet", looks.table())
    people = people_of(said, set(ids), agreed)
    return summary(recordings.column("task"), found, people, looks.report() if looks else None)


def looks_of(config: Config) -> Looks | None:
    """The model that looks over the cuts, if any. UserError when it cannot be used."""
    if config.refinement.refiner == "none":
        return None
    from components.segmentation.looks import Looks

    return Looks(config.refinement)


def machine(recordings: Episodes, config: Config) -> Iterator[pa.Table]:
    """The machine's cut of all episodes (`tables.NODES`); what was cut before is in the store."""
    settings = config.model_dump(exclude={"refinement"}) | {"weights": outputs.sha256(WEIGHTS)}
    kept = RowShards("segmentation", settings)
    embodiments = recordings.column("embodiment")
    signals = {name: key(columns(recordings, name)) for name in set(embodiments.values())}
    names = {i: f"{i}-{signals[name]}" for i, name in embodiments.items()}
    recalled = kept.recall_rows(names.values(), tables.NODES)
    yield recalled
    found = set(values(recalled[PIECE])[0])
    count = len(found)
    for some in portions(recordings, [i for i in recordings.ids if names[i] not in found]):
        episodes = [recordings[i] for i in some]
        cut = cut_all(episodes, limits(config))
        new = tables.table(
            (names[e.episode_id], made(e, own)) for e, own in zip(episodes, cut, strict=True)
        )
        kept.keep_rows(new)
        yield new
        count += len(some)
        print(f"segmentation: {count} of {len(names)} episodes", flush=True)


def made(episode: Episode, events: list[Event]) -> tables.Made:
    """One episode's rows and finer cuts."""
    finer = [step for event in events for step in event.finer]
    return tables.Made(event_rows(episode, events), finer, episode.timestamps_s[finer].tolist())


def corrected(
    found: pa.Table, recordings: Episodes, said: Said, config: Config
) -> tuple[pa.Table, Agreement]:
    """What people made of the machine's cut of these episodes, and how far the two agree."""
    own = tables.only(found, said)
    agreed = Agreement()
    done: list[tuple[str, tables.Made]] = []
    for episode_id, corrections in said.items():
        machines = tables.made(own, episode_id)
        people = Overlay(recordings[episode_id].timestamps_s, corrections)
        agreed += agreement(people, machines.rows)
        rows = people.applied(machines.rows, config.min_event_s)
        done.append((episode_id, machines._replace(rows=rows)))
    return tables.table(done), agreed


def columns(recordings: Episodes, embodiment: str) -> list[Any]:
    """What an embodiment's signals and cameras are called."""
    features = recordings.embodiment(embodiment).info["features"]
    return [[name, feature.get("names")] for name, feature in sorted(features.items())]


def portions(recordings: Episodes, ids: list[str]) -> Iterator[list[str]]:
    """Episodes of one embodiment each, BATCH_ROWS control steps or one more at a time."""
    embodiments, places, frames = map(
        recordings.column, ("embodiment", "episode_index", "n_frames")
    )
    in_order = sorted(ids, key=lambda i: (embodiments[i], places[i]))
    for _, group in groupby(in_order, key=embodiments.__getitem__):
        some: list[str] = []
        rows = 0
        for episode_id in group:
            some.append(episode_id)
            rows += frames[episode_id]
            if rows >= BATCH_ROWS:
                yield some
                some, rows = [], 0
        if some:
            yield some


def limits(config: Config) -> Limits:
    """The section's values as the algorithm takes them."""
    return Limits(**config.model_dump(exclude={"refinement"}))


def people_of(said: Said, known: set[str], agreed: Agreement) -> People:
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


def summary(
    tasks: Mapping[str, str], found: pa.Table, people: People, refined: Refined | None = None
) -> Report:
    """Counts for a person; `tasks` has every episode's task, `found` is `tables.joined`."""
    events = tables.actions(found)
    _, kinds = values(events["kind"])
    sequences: dict[str, Counter[bytes]] = defaultdict(Counter)
    numbers: Counter[int] = Counter()
    bounds = spans(events["episode_id"])
    for episode_id, task in tasks.items():
        own = kinds[slice(*bounds.get(episode_id, (0, 0)))]
        sequences[task][own.tobytes()] += 1
        numbers[len(own)] += 1
    signals: Counter[str] = Counter()
    for said, count in counts(events["signals"]).items():
        signals.update(dict.fromkeys(json.loads(said), count))
    lengths = events["end_s"].to_numpy() - events["start_s"].to_numpy()
    return Report(
        episodes=len(tasks),
        events=len(events),
        kinds=dict(sorted(counts(events["kind"]).items())),
        episodes_with_events={str(n): numbers[n] for n in sorted(numbers)},
        boundaries_by_signal=dict(sorted(signals.items())),
        median_event_s=round(float(np.median(lengths)), 4) if len(lengths) else 0.0,
        same_kinds={
            task: round(max(found.values()) / found.total(), 4)
            for task, found in sorted(sequences.items())
        },
        people=people,
        refinement=refined,
    )
