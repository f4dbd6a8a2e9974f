"""What the page shows of an episode: its events with evidence and words, and its signals.

The run's own tables, with what people say now laid over them as the next run will do. Where the run
has what people no longer say, the machine's words hold, and the event is `undecided`: what the
machine's own cut is there, the next run finds out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components import records
from components.captioning.corrected import SAME_EVENT, placed
from components.episodes import Episode, Episodes
from components.records import PERSON
from components.segmentation.corrected import Overlay, Row
from flows.labelling.found import Found
from flows.labelling.overlay import Said

POINTS = 2000  # of a signal's curve, at most
SMOOTHED_S = 0.1  # of the speed, so that noise does not hide it
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Words:
    """One text of one event on one level, and who said it."""

    text: str
    captioner: str
    author: str = ""
    time: str = ""
    machine_text: str = ""
    start_s: float | None = None  # what a person's words are anchored to
    end_s: float | None = None
    wrong: str = ""  # what the checks found
    undecided: bool = False  # the run has a person's words that hold no longer


class View:
    """The tables of one run, read once; an episode at a time for the page."""

    def __init__(self, found: Found) -> None:
        data = found.folder / "data"
        self.run, self.min_event_s, self.root = found.name, found.min_event_s, data / "episodes"
        self._episodes, self._lock = Episodes(self.root), Lock()
        events = records.read(data / "events" / "events.parquet", records.EVENTS)
        self._events = events.sort_by([("episode_id", "ascending"), ("start_frame", "ascending")])
        ids, first, count = np.unique(
            np.asarray(self._events["episode_id"].to_pylist(), dtype=object).astype(str),
            return_index=True,
            return_counts=True,
        )
        self._places = {str(i): (int(a), int(n)) for i, a, n in zip(ids, first, count, strict=True)}
        captions = data / "captions" / "captions.parquet"
        self._captions = pq.read_table(captions) if captions.is_file() else None

    def listed(self, said: dict[str, Said]) -> list[Row]:
        """One row for each episode that has events, in the order of tasks."""
        rows = [row for row in self._episodes.manifest.to_pylist() if row["episode_id"] in self]
        rows.sort(key=lambda row: (row["task"], row["source_uri"], row["episode_index"]))
        wanted = ("episode_id", "task", "embodiment", "duration_s", "n_frames", "source_uri")
        return [
            {
                **{name: row[name] for name in wanted},
                "events": self._places[row["episode_id"]][1],
                "corrections": len(each.events) + len(each.captions) if each else 0,
            }
            for row in rows
            for each in [said.get(row["episode_id"])]
        ]

    def episode(self, episode_id: str) -> Episode:
        """One episode; the reader remembers a file, so one request at a time."""
        with self._lock:
            return self._episodes[episode_id]

    def __contains__(self, episode_id: object) -> bool:
        return episode_id in self._places

    def shown(self, episode_id: str, said: Said) -> Row:
        """All that the page needs of one episode but its video."""
        episode = self.episode(episode_id)
        first, count = self._places[episode_id]
        machine = self._events.slice(first, count).to_pylist()
        overlay = Overlay(episode.timestamps_s, said.events)
        rows = overlay.applied(machine, self.min_event_s)
        words = self._words(machine, rows, said)
        return {
            "episode_id": episode_id,
            "task": episode.task,
            "embodiment": episode.embodiment,
            "version": said.version,
            "times_s": episode.timestamps_s.tolist(),
            "cameras": [name.removeprefix("observation.images.") for name in sorted(episode.clips)],
            "signals": signals(episode),
            "events": [_event(row, words[row["event_id"]], overlay) for row in rows],
        }

    def _words(
        self, machine: list[Row], rows: list[Row], said: Said
    ) -> dict[str, dict[str, Words]]:
        """Of each event, its text by level: the run's, and what people said since.

        An event with other ends than in the run keeps the words of the one it mostly is, if any.
        """
        told = self._told([row["event_id"] for row in machine])
        found = {row["event_id"]: dict(told.get(_origin(row, machine), {})) for row in rows}
        by_people, _ = placed(rows, said.captions)
        for (event_id, level), one in by_people.items():
            before = found[event_id].get(level)
            about = one.said()
            found[event_id][level] = Words(
                text=one.text,
                captioner=PERSON,
                author=about["author"],
                time=about["time"],
                machine_text=before.text if before else "",
                start_s=one.start_s,
                end_s=one.end_s,
            )
        return found

    def _told(self, event_ids: list[str]) -> dict[str, dict[str, Words]]:
        """The machine's texts in the run by event and level; an older run may lack some columns."""
        found: dict[str, dict[str, Words]] = {}
        if self._captions is None:
            return found
        mine = pc.is_in(self._captions["event_id"], value_set=pa.array(event_ids))
        for row in self._captions.filter(mine).to_pylist():
            of_event = found.setdefault(row["event_id"], {})
            if row["captioner"] == PERSON:
                machines = row.get("machine_text") or ""
                of_event[row["level"]] = Words(machines, "machine", undecided=True)
                continue
            verdicts = json.loads(row.get("checks") or "{}")
            of_event[row["level"]] = Words(
                text=row["text"],
                captioner=row["captioner"],
                wrong="; ".join(v for k, v in verdicts.items() if v != "ok" and k != "fallback"),
            )
        return found


def _event(row: Row, words: dict[str, Words], overlay: Overlay) -> Row:
    """One event for the page."""
    evidence = json.loads(row["evidence"])
    person = evidence.pop(PERSON, None)
    void = bool(person) and not _stands(row, person, overlay)
    return {
        **{k: row[k] for k in ("start_frame", "end_frame", "kind", "score")},
        "evidence": evidence,
        "person": None if void else person,
        "undecided": void or any(each.undecided for each in words.values()),
        "words": {level: vars(each) for level, each in words.items()},
    }


def _stands(row: Row, person: dict[str, str], overlay: Overlay) -> bool:
    """Whether people still say what the row's evidence says of them."""
    if person.get("of") == "boundary":
        return row["start_frame"] in overlay.edges
    return (row["start_frame"], row["end_frame"]) in overlay.pieces


def _origin(row: Row, machine: list[Row]) -> str:
    """Id of the run's event that shares more than half of what both cover; empty for none."""
    for each in machine:
        shared = min(row["end_s"], each["end_s"]) - max(row["start_s"], each["start_s"])
        covered = max(row["end_s"], each["end_s"]) - min(row["start_s"], each["start_s"])
        if row["event_id"] == each["event_id"] or shared > SAME_EVENT * covered:
            return str(each["event_id"])
    return ""


def signals(episode: Episode) -> list[Row]:
    """Curves for the timeline, each 0 to 1 of its own range, with what its top means."""
    times_s = episode.timestamps_s
    places = np.unique(np.linspace(0, len(episode) - 1, min(len(episode), POINTS)).round())
    steps = places.astype(np.int64)
    speed, unit = speed_of(episode)
    curves: list[tuple[str, str, Array]] = [("arm speed", unit, speed)]
    for name, values in (
        ("gripper", episode.gripper),
        ("gripper command", episode.gripper_command),
    ):
        if values is not None and values.shape[1] and np.ptp(values) > 0:
            curves.append((name, "", values[:, 0].astype(np.float64)))
    return [
        {
            "name": name,
            "top": f"{values.max():.3g} {unit}".strip(),
            "times_s": times_s[steps].tolist(),
            "values": ((values - low) / span if span > 0 else values * 0)[steps].round(4).tolist(),
        }
        for name, unit, values in curves
        for low in [0.0 if name == "arm speed" else float(values.min())]
        for span in [float(values.max()) - low]
    ]


def speed_of(episode: Episode) -> tuple[Array, str]:
    """Speed at each control step (T,), smoothed, and its unit."""
    times_s, place = episode.timestamps_s, episode.motion.astype(np.float64)
    unit = "m/s" if episode.end_effector_m is not None else "units/s"
    if len(times_s) < 2:
        return np.zeros(len(times_s)), unit
    half = max(round(SMOOTHED_S / 2 / float(np.median(np.diff(times_s)))), 1)
    index = np.arange(len(times_s))
    before, after = np.maximum(index - half, 0), np.minimum(index + half, len(index) - 1)
    elapsed_s = np.maximum(times_s[after] - times_s[before], 1e-9)
    return np.linalg.norm(place[after] - place[before], axis=1) / elapsed_s, unit
