"""How a vision-language model is asked: a picture and words, its reply, and a second try.

What counts as an answer is the asker's: it reads each reply, and what it cannot use is asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from components.errors import TemporaryError, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_REPLY = 20_000  # characters; a reply over it is not read
NO_ANSWER = "no answer"  # how a problem begins that is the network's, not the question's
PROBLEMS = 20  # that a report tells apart
QUOTED = 1_000  # characters of an unusable reply that the model is shown again


@dataclass(frozen=True)
class Question:
    """`text` is the prompt, filled in; `picture` what it is about."""

    text: str
    picture: Image


@dataclass(frozen=True)
class Turn:
    """What the model replied, and what it is told next."""

    reply: str
    then: str


@dataclass(frozen=True)
class Dialogue:
    """A question and what was said since."""

    question: Question
    turns: tuple[Turn, ...] = ()

    def goes_on(self, reply: str, then: str) -> Dialogue:
        """The same with one turn more."""
        return Dialogue(self.question, (*self.turns, Turn(reply, then)))


@dataclass(frozen=True)
class Reply:
    """Raw text of a model, or why there is none and never will be; and what it cost, tokens."""

    text: str = ""
    refused: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


class Model(Protocol):
    """A vision-language model; `decoding` is JSON."""

    captioner: str
    digest: str
    decoding: str

    def replies(self, dialogues: list[Dialogue]) -> list[Reply]:
        """One reply for each dialogue, in their order."""

    def sent(self) -> dict[str, int]:
        """What this run has asked of a network so far; empty for none."""


T = TypeVar("T")
Read = Callable[[str], tuple[T | None, str]]  # a reply -> what it says, or what is wrong with it


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What was said; None where no reply was usable, and `problem` says why.

    `reply` is the last one as it came; tokens are those of all tries.
    """

    said: T | None
    problem: str = ""
    reply: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


def ask(
    model: Model,
    dialogues: Sequence[Dialogue],
    reads: Sequence[Read[T]],
    correction: Callable[[str], str],
    asks: int,
) -> list[Answer[T]]:
    """An answer to each dialogue, read by its own of `reads`.

    A reply that cannot be read is asked for again, `asks` times in all, with `correction` of what
    is wrong.
    """
    now = list(dialogues)
    answers: list[Answer[T]] = [Answer(None, "not asked") for _ in now]
    left = list(range(len(now)))
    for _ in range(asks):
        again = []
        replies = model.replies([now[i] for i in left]) if left else []
        for i, reply in zip(left, replies, strict=True):
            said, problem = (None, reply.refused) if reply.refused else reads[i](reply.text)
            answers[i] = Answer(
                said,
                problem,
                reply.text[:LONGEST_REPLY],
                answers[i].input_tokens + reply.input_tokens,
                answers[i].output_tokens + reply.output_tokens,
            )
            if problem and not reply.refused:
                now[i] = now[i].goes_on(reply.text[:QUOTED], correction(problem))
                again.append(i)
        left = again
    return answers


def all_answered(problems: Sequence[str], section: str, each: str) -> None:
    """TemporaryError where a server left a question without an answer.

    Of each question asked in this run `problems` has what is wrong, empty for nothing; `section` of
    the values and what each question is about are named in the message.
    """
    silent = [problem for problem in problems if problem.startswith(NO_ANSWER)]
    if silent:
        raise TemporaryError(
            f"{section}: {len(silent)} of {len(problems)} questions, one for each {each}, got "
            f"{silent[-1]}. What was answered is kept and not paid for again. Run again, later if "
            f"it stays so: only each {each} without an answer is asked about."
        )


def prompt(path: Path, places: Sequence[str], setting: str) -> str:
    """Text of a prompt file. UserError names the prompts there are, or what it lacks."""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.md")))
        raise UserError(
            f"{setting}: no prompt {path.stem!r}; there are {known}. Write yours to "
            f"{'/'.join(path.parts[-4:])} and commit it: a run keeps it in its history."
        )
    text = path.read_text()
    if missing := [place for place in places if f"{{{place}}}" not in text]:
        raise UserError(f"{path}: lacks {', '.join(f'{{{place}}}' for place in missing)}.")
    return text


def filled(template: str, **places: str) -> str:
    """The prompt with its places filled; braces in what is filled in stay as they are."""
    parts = {f"{{{name}}}": value for name, value in places.items()}
    found, rest = "", template
    while True:
        at, place = min(((rest.find(p), p) for p in parts if p in rest), default=(-1, ""))
        if at < 0:
            return found + rest
        found, rest = found + rest[:at] + parts[place], rest[at + len(place) :]


def json_object(reply: str) -> tuple[dict[str, Any] | None, str]:
    """The one JSON object of a reply, or what is wrong with the reply."""
    if len(reply) > LONGEST_REPLY:
        return None, "reply too long"
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        found = None
    return (found, "") if isinstance(found, dict) else (None, "reply is no JSON object")


def one_line(text: str) -> str:
    """A model's words as one line of what can be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def digest(text: str) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def commonest(problems: Counter[str]) -> dict[str, int]:
    """How often each was; beyond the most common all together, as a server may word each anew."""
    said = Counter(dict(sorted(problems.items()))).most_common(PROBLEMS)
    others = problems.total() - sum(number for _, number in said)
    return dict(sorted(said)) | ({"others": others} if others else {})
