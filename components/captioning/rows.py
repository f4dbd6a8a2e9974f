"""Rows of `records.CAPTIONS` for some episodes: the rule's words, and a model's where one is asked.

The rule captions every level. Of the levels that a model shall say, its text replaces the rule's;
where no reply was usable the rule's stays, and the check `fallback` says why. What people said
stands before both. An episode with an event that the model's server left without an answer has no
rows: the stage ends with that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.captioning import checks as check_rules
from components.captioning import corrected, questions, words
from components.captioning import kinematics as kinematics_rules
from components.captioning import phases as phase_rules
from components.captioning.corrected import Row
from components.captioning.kinematics import Frame, Kinematics, kinematics
from components.corrections import CaptionCorrection
from components.episodes import Episode
from components.errors import DataError
from components.shards import Shards, key
from components.vlm.dialogue import NO_ANSWER, Answer, Dialogue, Model, Question, ask, digest
from components.vlm.sheet import contact_sheet

if TYPE_CHECKING:
    from PIL.Image import Image

    from components.captioning.stage import Config

CAPTIONER = "kinematics"
Said = Answer[dict[str, str]]  # text by level


@dataclass(frozen=True)
class Asked:
    """A model, its prompt, and where answers are kept.

    `problems` has what is wrong with the answer to each question asked in this run.
    """

    model: Model
    template: str
    kept: Shards
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """One episode with its events in time order, their facts and the rule's texts by level."""

    episode: Episode
    events: list[Row]
    facts: list[Kinematics]
    texts: list[dict[str, str]]
    said: corrected.Placed  # what people said instead


@dataclass(frozen=True)
class Captioned:
    """One episode's rows in time order, and what the model's texts among them cost, tokens."""

    rows: list[Row]
    input_tokens: int = 0
    output_tokens: int = 0


def told(
    episode: Episode, events: list[Row], said: Iterable[CaptionCorrection], config: Config
) -> Told:
    """What the rule says. DataError when the events are not this episode's."""
    if events[-1]["end_frame"] != len(episode):
        raise DataError(
            f"events of episode {episode.episode_id}: expected {len(episode)} "
            f"control steps, its length; got {events[-1]['end_frame']}. Run segmentation again."
        )
    frame = frame_of(episode.embodiment, config)
    found = phase_rules.phases(episode, events, words.verb_of(episode.task))
    facts = [
        kinematics(episode, event["start_frame"], event["end_frame"], event["kind"], phase, frame)
        for event, phase in zip(events, found, strict=True)
    ]
    texts = words.captions(episode.task, facts, [event["event_id"] for event in events])
    return Told(episode, events, facts, texts, corrected.placed(events, said)[0])


def caption_rows(episodes: list[Told], config: Config, asked: Asked | None) -> dict[str, Captioned]:
    """By episode one row for each event and level; without episodes that lack an answer."""
    answers = iter(_answers(episodes, config, asked) if asked else [])
    found = {}
    for each in episodes:
        mine = [next(answers, None) for _ in each.events]
        known = [answer for answer in mine if answer]
        if any(answer.problem.startswith(NO_ANSWER) for answer in known):
            continue
        rows = [
            _said(_rule(each, place, level, config), each, config, asked, answer)
            for place, answer in enumerate(mine)
            for level in words.LEVELS
        ]
        found[each.episode.episode_id] = Captioned(
            corrected.retold(rows, each.said, partial(_checks, each, config)),
            sum(answer.input_tokens for answer in known),
            sum(answer.output_tokens for answer in known),
        )
    return found


def _rule(each: Told, place: int, level: str, config: Config) -> Row:
    event_id, text = each.events[place]["event_id"], each.texts[place][level]
    return {
        "event_id": event_id,
        "level": level,
        "text": text,
        "captioner": CAPTIONER,
        "model_digest": RULES,
        "prompt_digest": TEMPLATES[level],
        "decoding": "{}",
        "checks": _checks(
            each, config, each.events[place]["event_id"], level, each.texts[place][level]
        ),
    }


def _said(row: Row, each: Told, config: Config, asked: Asked | None, answer: Said | None) -> Row:
    """A row of the rule's with the model's text, where there shall be one."""
    if asked is None or answer is None or row["level"] not in config.vlm_levels:
        return row
    if answer.said is None:
        verdicts = json.loads(row["checks"])
        verdicts["fallback"] = f"{asked.model.captioner}: {answer.problem}"
        return row | {"checks": json.dumps(verdicts, sort_keys=True)}
    text = answer.said[row["level"]]
    return row | {
        "text": text,
        "captioner": asked.model.captioner,
        "model_digest": asked.model.digest,
        "prompt_digest": digest(asked.template),
        "decoding": asked.model.decoding,
        "checks": _checks(each, config, row["event_id"], row["level"], text),
    }


def _checks(each: Told, config: Config, event_id: str, level: str, text: str) -> str:
    fact = each.facts[[event["event_id"] for event in each.events].index(event_id)]
    task = words.sentence(each.episode.task)
    verdicts = check_rules.checks(text, level, task, fact, config.longest_words)
    return json.dumps(verdicts, sort_keys=True)


def _answers(episodes: list[Told], config: Config, asked: Asked) -> list[Said]:
    """An answer for each event of each episode; what was answered before is not asked again."""
    places = [(each, place) for each in episodes for place in range(len(each.events))]
    texts = [_text(each, place, config, asked.template) for each, place in places]
    names = [_name(each, place, text) for (each, place), text in zip(places, texts, strict=True)]
    found = {name: Said(**value) for name, value in asked.kept.recall(names).items()}
    new = {}
    for name, text, (each, place) in zip(names, texts, places, strict=True):
        if not each.episode.clips:
            found[name] = Said(None, "no camera")
        elif name not in found:
            new[name] = Dialogue(Question(text, _picture(each, place, config)))
    read = partial(questions.read, levels=config.vlm_levels)
    correction = partial(questions.correction, levels=config.vlm_levels)
    dialogues = list(new.values())
    answered = ask(asked.model, dialogues, [read] * len(dialogues), correction, config.asks)
    made = dict(zip(new, answered, strict=True))
    asked.problems.extend(answer.problem for answer in answered)
    asked.kept.keep({n: asdict(a) for n, a in made.items() if not a.problem.startswith(NO_ANSWER)})
    return [(found | made)[name] for name in names]


def _name(each: Told, place: int, text: str) -> str:
    event = each.events[place]
    return key(each.episode.episode_id, event["start_s"], event["end_s"], text)


def _text(each: Told, place: int, config: Config, template: str) -> str:
    return questions.filled(
        template,
        config.vlm_levels,
        task=words.sentence(each.episode.task) or "not said",
        facts=words.segment(each.facts[place], 0),
        rule=words.action(each.facts[place], words.deeds(each.episode.task, each.facts)[place]),
        longest_words=str(config.longest_words),
    )


def _picture(each: Told, place: int, config: Config) -> Image:
    start_s, end_s = each.events[place]["start_s"], each.events[place]["end_s"]
    times_s = np.linspace(start_s, end_s, config.pictures)
    return contact_sheet(each.episode, times_s, config.picture_px, config.pictures, start_s)


def frame_of(embodiment: str, config: Config) -> Frame:
    """The entry with the longest name that `embodiment` starts with, else `default`."""
    names = [name for name in config.frames if embodiment.startswith(name)]
    return config.frames[max(names, key=len) if names else "default"]


def _source(module: Any) -> str:
    return Path(str(module.__file__)).read_text()


RULES = digest("".join(_source(module) for module in (kinematics_rules, phase_rules, words)))
TEMPLATES = {level: digest("\n".join(texts)) for level, texts in words.TEMPLATES.items()}
