"""Captioning: say each event in words, on four levels. Episodes and events in, data/captions out.

The offline captioner (`words.py`) speaks from kinematics and the task's own sentence. A
vision-language model can say some levels instead (`questions.py`): one of `transformers` from a
folder, or one behind an OpenAI-compatible endpoint (`components/vlm`). Every text is checked
against what arm and gripper did (`checks.py`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from components import corrections as overlay
from components import outputs, records, report
from components.captioning import corrected, questions, words
from components.captioning.kinematics import OPPOSITE
from components.captioning.rows import Asked, Captioned, caption_rows, told
from components.episodes import Episodes
from components.events_by_episode import EventsByEpisode
from components.row_shards import (
    PIECE,
    RowShards,
    chosen,
    counts,
    encoded,
    marked,
    numbers,
    plain,
    spans,
    values,
)
from components.shards import key
from components.vlm.asking import Asking, model_of
from components.vlm.dialogue import Model, all_answered, commonest

Said = dict[str, list[overlay.CaptionCorrection]]  # by episode
Direction = Literal["forward", "back", "left", "right", "up", "down"]
Level = Literal["task", "subtask", "action", "segment"]
MADE = pa.schema(  # and what a model's texts cost
    [*records.CAPTIONS, ("input_tokens", pa.int64()), ("output_tokens", pa.int64())]
)
AT_ONCE = 2048  # episodes after which what is done is kept
ASKED_AT_ONCE = 16  # where a model is asked about their events


class Rules(BaseModel, frozen=True, extra="forbid"):
    """Who captions, and how directions are called."""

    captioner: Literal["kinematics", "transformers", "openai"] = Field(
        description="kinematics: rules, offline. transformers: a model in a local folder. openai: "
        "any OpenAI-compatible endpoint; its key is read from $WAMFLOW_CAPTIONING_KEY."
    )
    frames: dict[str, tuple[Direction, Direction, Direction]] = Field(
        description="What +x, +y and +z of the end effector mean, by the start of an embodiment's "
        "name; `default` for all others."
    )
    longest_words: int = Field(ge=5, le=500, description="A caption with more words is flagged.")
    vlm_levels: list[Level] = Field(min_length=1, description="Levels that the model says.")

    @model_validator(mode="after")
    def _frames_are_frames(self) -> Rules:
        if "default" not in self.frames:
            raise ValueError(f"frames lacks 'default'; it has {', '.join(self.frames) or 'none'}")
        for name, axes in self.frames.items():
            if len({frozenset((axis, OPPOSITE[axis])) for axis in axes}) < 3:
                raise ValueError(f"frames.{name}: expected three different axes, got {axes}")
        return self


class Config(Asking, Rules, frozen=True, extra="forbid"):  # forms show Rules' fields first
    """Who captions, how directions are called, and how a model is asked."""

    @model_validator(mode="after")
    def _a_model_is_named(self) -> Config:
        self.check(self.captioner, "captioning")
        return self


class People(BaseModel):
    """What people said instead, and how often the machine says the same."""

    corrections: int
    captions: int  # that stand in people's words
    corrections_of_other_episodes: int  # not in these recordings, so without effect
    unplaced: int  # corrections of spans that are no event now
    same_texts: float | None  # share of people's texts, accepted ones included


class Report(BaseModel):
    """What came out."""

    captions: int
    levels: dict[str, int]
    captioners: dict[str, int]
    flagged: int
    flags: dict[str, int]  # what is wrong -> captions
    fallbacks: dict[str, int]  # why a model's text is missing -> captions that the rule said
    input_tokens: int  # what a model's texts cost when they were made
    output_tokens: int
    cost_usd: float
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
    read, UserError for a malformed correction or a model that cannot be used, TemporaryError when
    the model's endpoint does not answer, or not every question.
    """
    said = overlay.read(corrections, overlay.CaptionCorrection)
    recordings = Episodes(episodes)
    by_episode = EventsByEpisode(records.read(events / "events.parquet", records.EVENTS))
    made = captioned(recordings, by_episode, said, config)
    with outputs.whole_folder(captions) as out:
        outputs.write_table(out / "captions.parquet", in_order(made))
    return summary(made, recordings.column("task"), people(said, by_episode, made), config)


def captioned(
    recordings: Episodes, by_episode: EventsByEpisode, said: Said, config: Config
) -> pa.Table:
    """Captions of all episodes (`MADE`); those made before of the same inputs come from the store.

    Rows of an episode stand together, in time order, and carry its id as `piece`.
    """
    model = model_of(config, config.captioner, "captioning")
    template = questions.prompt(config.prompt) if model else ""
    kept = RowShards("captioning", _settings(config, model, template))
    asked = Asked(model, template, kept) if model else None
    names = _names(recordings, by_episode, said)
    made = kept.recall_rows(names.values(), MADE)
    done = set(values(made[PIECE])[0])
    left = [i for i in by_episode if names[i] not in done]
    step = ASKED_AT_ONCE if asked else AT_ONCE
    tables = [_renamed(made, {name: i for i, name in names.items()})]
    for some in (left[at : at + step] for at in range(0, len(left), step)):
        episodes = [told(recordings[i], by_episode[i], said.get(i, []), config) for i in some]
        new = caption_rows(episodes, config, asked)
        kept.keep_rows(_table({names[i]: each for i, each in new.items()}))
        tables.append(encoded(_table(new)))
        print(f"captioning: {sum(map(_pieces, tables))} of {len(names)} episodes", flush=True)
    if model and (sent := model.sent()):
        outputs.write_json(report.folder("captioning") / "requests.json", sent)
    all_answered(asked.problems if asked else [], "captioning", "event")
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _names(recordings: Episodes, by_episode: EventsByEpisode, said: Said) -> dict[str, str]:
    """Of each episode the name of its captions in the store: all that they depend on."""
    texts = by_episode.texts("event_id", "start_frame", "end_frame", "kind", "evidence")
    tasks, embodiments = recordings.column("task"), recordings.column("embodiment")
    if others := [i for i in texts if i not in tasks]:
        recordings.row(others[0])  # says what is wrong
    columns = {name: _columns(recordings, name) for name in {embodiments[i] for i in texts}}
    return {
        i: key(i, tasks[i], columns[embodiments[i]], text, overlay.lines(said.get(i, [])))
        for i, text in texts.items()
    }


def _table(made: dict[str, Captioned]) -> pa.Table:
    """`MADE` of some episodes' captions; what an episode cost stands in its first row."""
    rows = [
        {
            **row,
            PIECE: name,
            "input_tokens": 0 if place else each.input_tokens,
            "output_tokens": 0 if place else each.output_tokens,
        }
        for name, each in made.items()
        for place, row in enumerate(each.rows)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([pa.field(PIECE, pa.string()), *MADE]))


def _renamed(made: pa.Table, names: dict[str, str]) -> pa.Table:
    """The same with other names of the pieces."""
    found, places = values(made[PIECE])
    pieces = pa.DictionaryArray.from_arrays(
        numbers(places), pa.array([names[f] for f in found], pa.string())
    )
    return made.set_column(made.column_names.index(PIECE), PIECE, pieces)


def _pieces(made: pa.Table) -> int:
    return len(values(made[PIECE])[0])


def in_order(made: pa.Table) -> pa.Table:
    """`records.CAPTIONS`, by event and level."""
    events, of_event = values(made["event_id"])
    levels, of_level = values(made["level"])
    event_rank = np.argsort(np.argsort(np.array(events)))
    level_rank = np.array([words.LEVELS.index(level) for level in levels], dtype=np.int64)
    order = np.argsort(event_rank[of_event] * len(words.LEVELS) + level_rank[of_level])
    table = made.select(records.CAPTIONS.names).take(numbers(order))
    return plain(table).cast(records.CAPTIONS)


def _columns(recordings: Episodes, embodiment: str) -> tuple[str, list[str], list[str]]:
    features = recordings.embodiment(embodiment).info["features"]
    return embodiment, features["observation.state"]["names"], features["action"]["names"]


def _settings(config: Config, model: Model | None, template: str) -> dict[str, Any]:
    """What captions depend on beside episodes and events."""
    names = ["frames", "longest_words"]
    if model is None:
        return config.model_dump(mode="json", include=set(names))
    names += ["captioner", "vlm_levels", "pictures", "picture_px", "asks"]
    settings = config.model_dump(mode="json", include=set(names))
    return settings | {"model": model.digest, "decoding": model.decoding, "prompt": template}


def people(said: Said, by_episode: EventsByEpisode, made: pa.Table) -> People:
    """What became of what people said."""
    here = {i: each for i, each in said.items() if i in by_episode}
    corrections = sum(map(len, said.values()))
    theirs = chosen(made, marked(made["captioner"], [records.PERSON]))
    return People(
        corrections=corrections,
        captions=theirs.num_rows,
        corrections_of_other_episodes=corrections - sum(map(len, here.values())),
        unplaced=sum(corrected.placed(by_episode[i], each)[1] for i, each in here.items()),
        same_texts=corrected.same_share(theirs.to_pylist()),
    )


def summary(made: pa.Table, tasks: dict[str, str], said: People, config: Config) -> Report:
    """Counts for a person; `made` as `captioned` gives it, `tasks` each episode's sentence."""
    actions = chosen(made, marked(made["level"], ["action"]))
    usual = usual_actions(actions, tasks)
    levels = counts(made["level"])
    fallbacks: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    flagged = 0
    for checks, number in counts(made["checks"]).items():
        verdicts = json.loads(checks)
        if reason := verdicts.pop("fallback", ""):
            fallbacks[reason] += number
        wrong = [verdict for verdict in verdicts.values() if verdict != "ok"]
        flagged += number * bool(wrong)
        flags.update(dict.fromkeys(wrong, number))
    tokens = [pc.sum(made[name]).as_py() or 0 for name in ("input_tokens", "output_tokens")]
    return Report(
        captions=made.num_rows,
        levels={level: levels[level] for level in words.LEVELS},
        captioners=dict(sorted(counts(made["captioner"]).items())),
        flagged=flagged,
        flags=dict(sorted(flags.items())),
        fallbacks=commonest(fallbacks),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost_usd=config.cost_usd(*tokens),
        action_texts=len(counts(actions["text"])),
        same_actions={task: share for task, (_, share) in usual.items()},
        usual_actions={task: list(texts) for task, (texts, _) in usual.items()},
        people=said,
    )


def usual_actions(
    actions: pa.Table, tasks: dict[str, str]
) -> dict[str, tuple[tuple[str, ...], float]]:
    """Of each task the most common row of actions and its share of the task's episodes.

    `actions` are captions of the action level, an episode's together in time order.
    """
    texts, of_row = values(actions["text"])
    sequences: dict[str, Counter[bytes]] = defaultdict(Counter)
    for episode_id, span in sorted(spans(actions[PIECE]).items()):
        sequences[tasks[episode_id]][of_row[slice(*span)].tobytes()] += 1
    usual = {task: found.most_common(1)[0] for task, found in sorted(sequences.items())}
    return {
        task: (
            tuple(texts[place] for place in np.frombuffer(row, of_row.dtype)),
            round(count / sequences[task].total(), 4),
        )
        for task, (row, count) in usual.items()
    }
