"""Captioning: say each event in words, on four levels. Episodes and events in, data/captions out.

The offline captioner (`words.py`) speaks from kinematics and the task's own sentence; every text is
checked against what arm and gripper did (`checks.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from components import corrections as overlay
from components import outputs, records
from components.captioning import corrected, words
from components.captioning import kinematics as kinematics_rules
from components.captioning.checks import checks
from components.captioning.corrected import Row
from components.captioning.kinematics import OPPOSITE, Frame, gripper_states, kinematics
from components.episodes import Episode, Episodes
from components.errors import DataError

Direction = Literal["forward", "back", "left", "right", "up", "down"]
CAPTIONER = "kinematics"


class Config(BaseModel, frozen=True, extra="forbid"):
    """How directions are called, and how long a text may be."""

    frames: dict[str, tuple[Direction, Direction, Direction]] = Field(
        description="What +x, +y and +z of the end effector mean, by the start of an embodiment's "
        "name; `default` for all others."
    )
    longest_words: int = Field(ge=5, le=500, description="A caption with more words is flagged.")

    @model_validator(mode="after")
    def _frames_are_frames(self) -> Config:
        if "default" not in self.frames:
            raise ValueError(f"frames lacks 'default'; it has {', '.join(self.frames) or 'none'}")
        for name, axes in self.frames.items():
            if len({frozenset((axis, OPPOSITE[axis])) for axis in axes}) < 3:
                raise ValueError(f"frames.{name}: expected three different axes, got {axes}")
        return self


class People(BaseModel):
    """What people said instead, and how often the machine says the same."""

    corrections: int
    captions: int  # that stand in people's words
    corrections_of_other_episodes: int  # not in these recordings, so without effect
    unplaced: int  # corrections of spans that are no event now, superseded ones not counted
    same_texts: float | None  # share of people's texts, accepted ones included


class Report(BaseModel):
    """What came out."""

    captions: int
    levels: dict[str, int]
    flagged: int
    flags: dict[str, int]  # what is wrong -> captions
    action_texts: int  # distinct captions of the action level
    same_actions: dict[str, float]  # task -> share of episodes with its most common row of actions
    usual_actions: dict[str, list[str]]  # task -> that row
    people: People


def run(
    episodes: Path, events: Path, corrections: Path, captions: Path, *, config: Config
) -> Report:
    """Write `captions/captions.parquet` (`records.CAPTIONS`): one row per event and level.

    What people said (`corrections`, a file of `CaptionCorrection`) stands in place of the machine's
    words. Rows are sorted by event and level. DataError when an episode or the events cannot be
    read, UserError for a malformed correction.
    """
    said = overlay.read(corrections, overlay.CaptionCorrection)
    recordings = Episodes(episodes)
    table = records.read(events / "events.parquet", records.EVENTS)
    by_episode: dict[str, list[Row]] = defaultdict(list)
    for row in table.sort_by("start_frame").to_pylist():
        by_episode[row["episode_id"]].append(row)
    rows: list[Row] = []
    actions: list[tuple[str, tuple[str, ...]]] = []
    unplaced = 0
    for episode_id in sorted(by_episode):
        episode = recordings[episode_id]
        words_of_people, strays = corrected.placed(by_episode[episode_id], said.get(episode_id, []))
        found = caption_rows(episode, by_episode[episode_id], config, words_of_people)
        rows += found
        unplaced += strays
        told = tuple(row["text"] for row in found if row["level"] == "action")
        actions.append((episode.task, told))
    rows.sort(key=lambda row: (row["event_id"], words.LEVELS.index(row["level"])))
    with outputs.whole_folder(captions) as out:
        outputs.write_table(
            out / "captions.parquet", pa.Table.from_pylist(rows, schema=records.CAPTIONS)
        )
    here = sum(len(each) for episode_id, each in said.items() if episode_id in by_episode)
    corrections_read = sum(map(len, said.values()))
    people = People(
        corrections=corrections_read,
        captions=sum(row["captioner"] == corrected.PERSON for row in rows),
        corrections_of_other_episodes=corrections_read - here,
        unplaced=unplaced,
        same_texts=corrected.same_share(rows),
    )
    return summary(rows, actions, people)


def caption_rows(
    episode: Episode, events: list[Row], config: Config, said: corrected.Placed | None = None
) -> list[Row]:
    """Rows of `records.CAPTIONS` for one episode's `events`, which are in time order.

    `said` is what people said of them (`corrected.placed`).
    """
    if events[-1]["end_frame"] != len(episode):
        raise DataError(
            f"events of episode {episode.episode_id}: expected {len(episode)} "
            f"control steps, its length; got {events[-1]['end_frame']}. Run segmentation again."
        )
    frame = frame_of(episode.embodiment, config)
    states = gripper_states([event["kind"] for event in events])
    facts = [
        kinematics(episode, event["start_frame"], event["end_frame"], event["kind"], state, frame)
        for event, state in zip(events, states, strict=True)
    ]
    texts = words.captions(episode.task, facts, [event["event_id"] for event in events])
    task = words.sentence(episode.task)
    fact_of = {event["event_id"]: fact for event, fact in zip(events, facts, strict=True)}

    def verdict(event_id: str, level: str, text: str) -> str:
        found = checks(text, level, task, fact_of[event_id], config.longest_words)
        return json.dumps(found, sort_keys=True)

    rows = [
        {
            "event_id": event["event_id"],
            "level": level,
            "text": text[level],
            "captioner": CAPTIONER,
            "model_digest": RULES,
            "prompt_digest": TEMPLATES[level],
            "checks": verdict(event["event_id"], level, text[level]),
        }
        for event, text in zip(events, texts, strict=True)
        for level in words.LEVELS
    ]
    return corrected.retold(rows, said or {}, verdict)


def frame_of(embodiment: str, config: Config) -> Frame:
    """The entry with the longest name that `embodiment` starts with, else `default`."""
    names = [name for name in config.frames if embodiment.startswith(name)]
    return config.frames[max(names, key=len) if names else "default"]


def summary(rows: list[Row], actions: list[tuple[str, tuple[str, ...]]], people: People) -> Report:
    """Counts for a person; `actions` are the task and the action captions of each episode."""
    sequences: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for task, said in actions:
        sequences[task][said] += 1
    usual = {task: found.most_common(1)[0] for task, found in sorted(sequences.items())}
    wrong = [[v for v in json.loads(row["checks"]).values() if v != "ok"] for row in rows]
    return Report(
        captions=len(rows),
        levels={level: sum(row["level"] == level for row in rows) for level in words.LEVELS},
        flagged=sum(bool(found) for found in wrong),
        flags=dict(sorted(Counter(v for found in wrong for v in found).items())),
        action_texts=len({row["text"] for row in rows if row["level"] == "action"}),
        same_actions={t: round(n / sequences[t].total(), 4) for t, (_, n) in usual.items()},
        usual_actions={task: list(said) for task, (said, _) in usual.items()},
        people=people,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


RULES = _digest("".join(Path(str(m.__file__)).read_text() for m in (kinematics_rules, words)))
TEMPLATES = {level: _digest("\n".join(texts)) for level, texts in words.TEMPLATES.items()}
