"""What a vision-language model is asked about one event, and what counts as an answer.

A question is a contact sheet with times on it, the measured facts and the task's sentence, put into
a prompt file of `prompts/`. An answer is one JSON object with a text for each wanted level.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from components.episodes import Episode
from components.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPTS = Path(__file__).parent / "prompts"
PLACES = ("task", "facts", "rule", "levels", "longest_words")
LEVELS = {
    "task": "what the whole recording is about",
    "subtask": "which part of the task this event is, such as reaching, grasping, placing",
    "action": "what arm and gripper do, in the imperative, in as few words as will do",
    "segment": "everything that happens in this event, with directions, distances and times",
}
LONGEST_REPLY = 20_000  # characters; a reply over it is not read
LONGEST_TEXT = 2_000
NO_ANSWER = "no answer"  # how a problem begins that is the network's, not the question's
QUOTED = 1_000  # characters of an unusable reply that the model is shown again
CAMERAS = 2  # rows of a contact sheet, at most
MARGIN_PX = 14  # above each frame, for its time


@dataclass(frozen=True)
class Question:
    """One event: `text` is the prompt, filled in; `picture` the contact sheet."""

    text: str
    picture: Image


@dataclass(frozen=True)
class Turn:
    """What was answered before, and why that was no answer."""

    reply: str
    problem: str


@dataclass(frozen=True)
class Dialogue:
    """A question and what was said since."""

    question: Question
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Reply:
    """Raw text of a model, or why there is none and never will be; and what it cost, tokens."""

    text: str = ""
    refused: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """Text by level, empty where no reply was usable; then `problem` says why."""

    texts: dict[str, str]
    problem: str
    input_tokens: int
    output_tokens: int


class Model(Protocol):
    """A vision-language model; `decoding` is JSON."""

    captioner: str
    digest: str
    decoding: str

    def replies(self, dialogues: list[Dialogue]) -> list[Reply]:
        """One reply for each dialogue, in their order."""

    def sent(self) -> dict[str, int]:
        """What this run has asked of a network so far; empty for none."""


def prompt(name: str) -> str:
    """Text of `prompts/<name>.md`. UserError names the prompts there are, or what it lacks."""
    path = PROMPTS / f"{name}.md"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.md")))
        raise UserError(
            f"captioning.prompt: no prompt {name!r}; there are {known}. Write yours to "
            f"components/captioning/prompts/{name}.md and commit it: a run keeps it in its history."
        )
    text = path.read_text()
    if missing := [place for place in PLACES[:4] if f"{{{place}}}" not in text]:
        raise UserError(f"{path}: lacks {', '.join(f'{{{place}}}' for place in missing)}.")
    return text


def filled(template: str, levels: Sequence[str], **places: str) -> str:
    """The prompt with its places filled; braces in what is filled in stay as they are."""
    wanted = "\n".join(f'- "{level}": {LEVELS[level]}' for level in levels)
    parts = {f"{{{name}}}": value for name, value in {**places, "levels": wanted}.items()}
    found, rest = "", template
    while True:
        at, place = min(((rest.find(p), p) for p in parts if p in rest), default=(-1, ""))
        if at < 0:
            return found + rest
        found, rest = found + rest[:at] + parts[place], rest[at + len(place) :]


def contact_sheet(episode: Episode, start_s: float, end_s: float, count: int, px: int) -> Image:
    """`count` moments from `start_s` to `end_s` of at most two cameras, `px` wide each.

    DataError when a video cannot be read; ValueError for an episode without cameras.
    """
    from PIL import Image, ImageDraw

    if not episode.clips:
        raise ValueError("no camera")
    times = np.linspace(start_s, end_s, count)
    rows = []
    for camera in sorted(episode.clips)[:CAMERAS]:
        frames = episode.clips[camera].frames(times)
        height = max(round(frames.shape[1] / frames.shape[2] * px), 1)
        rows.append((height, frames))
    sheet = Image.new("RGB", (count * px, sum(h + MARGIN_PX for h, _ in rows)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for height, frames in rows:
        for column, (time_s, frame) in enumerate(zip(times, frames, strict=True)):
            pen.text((column * px + 3, top + 1), f"{time_s - start_s:.2f} s", fill="black")
            scaled = Image.fromarray(frame).resize((px, height), Image.Resampling.BICUBIC)
            sheet.paste(scaled, (column * px, top + MARGIN_PX))
        top += height + MARGIN_PX
    return sheet


def ask(model: Model, questions: list[Question], levels: Sequence[str], asks: int) -> list[Answer]:
    """An answer to each question; one that cannot be read is asked again, `asks` times in all."""
    dialogues = [Dialogue(question) for question in questions]
    answers = [Answer({}, "not asked", 0, 0) for _ in questions]
    left = list(range(len(questions)))
    for _ in range(asks):
        again = []
        replies = model.replies([dialogues[i] for i in left]) if left else []
        for i, reply in zip(left, replies, strict=True):
            texts, problem = ({}, reply.refused) if reply.refused else read(reply.text, levels)
            answers[i] = Answer(
                texts,
                problem,
                answers[i].input_tokens + reply.input_tokens,
                answers[i].output_tokens + reply.output_tokens,
            )
            if problem and not reply.refused:
                turn = Turn(reply.text[:QUOTED], problem)
                dialogues[i] = Dialogue(questions[i], (*dialogues[i].turns, turn))
                again.append(i)
        left = again
    return answers


def read(reply: str, levels: Sequence[str]) -> tuple[dict[str, str], str]:
    """(text by level, ''), or ({}, what is wrong with the reply)."""
    if len(reply) > LONGEST_REPLY:
        return {}, "reply too long"
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return {}, "reply is no JSON object"
    texts = {}
    for level in levels:
        text = found.get(level)
        if not isinstance(text, str):
            return {}, f"reply lacks {level}"
        texts[level] = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        if not texts[level]:
            return {}, f"{level} is empty"
        if len(texts[level]) > LONGEST_TEXT:
            return {}, f"{level} is over {LONGEST_TEXT} characters"
    return texts, ""


def correction(problem: str, levels: Sequence[str]) -> str:
    """What a model is told of a reply that was no answer."""
    keys = ", ".join(f'"{level}"' for level in levels)
    return f"That cannot be used: {problem}. Answer with one JSON object with the keys {keys} only."


def digest(text: str) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
