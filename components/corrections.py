"""What people corrected: `inputs/corrections/events.jsonl` and `captions.jsonl`, one line each.

A correction names no event but an episode and a span of its time, so it holds after segmentation
with other parameters. Lines are only ever added, and their order in the file means nothing: they
count by (time, author), and where two speak of the same moment the later one wins. Two files, so
that other words leave the boundaries as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from components.errors import UserError

FOLDER = Path("inputs/corrections")
EVENTS, CAPTIONS = FOLDER / "events.jsonl", FOLDER / "captions.jsonl"
SHOWN_ERRORS = 10

Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^\P{Cc}+$")]
Words = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=2000, pattern=r"^\P{Cc}*$")
]
Kind = Literal["motion", "grasp", "release", "idle"]
Level = Literal["task", "subtask", "action", "segment"]
Second = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Correction(BaseModel):
    """Who said it, when, and of which episode."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    author: Line = Field(max_length=200)
    time: AwareDatetime
    episode_id: Line

    def said(self) -> dict[str, str]:
        """Author, time (ISO 8601) and deed, as evidence and tables carry them."""
        row = self.model_dump(mode="json", include={"author", "time", "did"})
        return {key: str(value) for key, value in row.items()}


class EventCorrection(Correction):
    """From the first to the last of `times_s` the events are these: boundaries there, none between.

    `times_s` are seconds from the episode's start, one more than `kinds`. `accept` vouches for
    every boundary, the others for the inner ones only. `revert` has two times and no kinds: what
    people said of that span is void, and the machine's word holds again.
    """

    did: Literal["move", "split", "merge", "kind", "accept", "revert"]
    times_s: tuple[Second, ...] = Field(min_length=2)
    kinds: tuple[Kind, ...]

    @model_validator(mode="after")
    def _fits(self) -> EventCorrection:
        if any(a >= b for a, b in pairwise(self.times_s)):
            raise ValueError(f"times_s: expected increasing seconds; got {list(self.times_s)}")
        wanted = 0 if self.did == "revert" else len(self.times_s) - 1
        if len(self.kinds) != wanted:
            raise ValueError(
                f"kinds: expected {wanted}, one for each span of times_s (none for a revert); "
                f"got {len(self.kinds)}"
            )
        return self


class CaptionCorrection(Correction):
    """The event at about `start_s` to `end_s` is told on one level in these words.

    `accept` is the machine's own text that a person found right; `revert` has none.
    """

    did: Literal["rename", "accept", "revert"]
    start_s: Second
    end_s: Second
    level: Level
    text: Words

    @model_validator(mode="after")
    def _fits(self) -> CaptionCorrection:
        if self.start_s >= self.end_s:
            raise ValueError(
                f"end_s: expected more than start_s ({self.start_s}); got {self.end_s}"
            )
        if (self.did == "revert") == bool(self.text):
            raise ValueError(f"text: expected words, or none for a revert; got {self.text!r}")
        return self


C = TypeVar("C", bound=Correction)


def read(path: Path, kind: type[C]) -> dict[str, list[C]]:
    """Corrections of each episode by (time, author). UserError with every wrong line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; expected corrections, one in each line, or an empty file where "
            f"there are none. Make one: `mkdir -p {path.parent} && touch {path}`."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text; {error}.") from None
    found: dict[str, list[C]] = defaultdict(list)
    wrong: list[str] = []
    numbers = {line: number for number, line in reversed(list(enumerate(lines, 1))) if line.strip()}
    for line, number in reversed(numbers.items()):  # each once: a merge may have doubled some
        try:
            correction = kind.model_validate_json(line)
            found[correction.episode_id].append(correction)
        except ValidationError as error:
            wrong += [f"  {path}:{number}: {said}" for said in _wrong(error)]
    if wrong:
        more = [f"  ... and {len(wrong) - SHOWN_ERRORS} more"] if len(wrong) > SHOWN_ERRORS else []
        raise UserError(
            f"{path}: {len(wrong)} wrong value(s); correct or remove these lines:\n"
            + "\n".join(wrong[:SHOWN_ERRORS] + more)
        )
    return {episode: sorted(each, key=_order) for episode, each in sorted(found.items())}


def check(project: Path) -> None:
    """Read both lists of a project, where it has them; UserError for what is wrong there."""
    if (project / EVENTS).is_file():
        read(project / EVENTS, EventCorrection)
    if (project / CAPTIONS).is_file():
        read(project / CAPTIONS, CaptionCorrection)


def _order(correction: Correction) -> tuple[float, str, str]:
    """The rule of conflicts: time, then author, then the rest, so that any file order is equal."""
    return correction.time.timestamp(), correction.author, correction.model_dump_json()


def _wrong(error: ValidationError) -> Iterable[str]:
    for each in error.errors(include_url=False):
        place = ".".join(map(str, each["loc"])) or "the line"
        got = "" if each["type"] == "value_error" else f" (got {str(each['input'])[:120]!r})"
        yield f"{place}: {each['msg']}{got}"


def lines(corrections: Iterable[Correction]) -> str:
    """Corrections as they stand in the file."""
    return "".join(f"{correction.model_dump_json()}\n" for correction in corrections)
