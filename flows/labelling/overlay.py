"""The checkout's lists of corrections on disk: read, and added to without losing anybody's lines.

Whoever saves says which version of the episode's corrections they had seen; where somebody else
has added to it since, or a line cannot be applied, nothing is written. Files are replaced whole,
under a lock.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from components import corrections
from components.corrections import CaptionCorrection, Correction, EventCorrection
from components.errors import UserError
from components.segmentation import corrected
from components.segmentation.corrected import TOLERANCE_S, Seconds
from flows import locks

NEXT = timedelta(milliseconds=1)  # the least by which what is said later is later


@dataclass(frozen=True)
class Said:
    """What people said of one episode, in the order in which it counts."""

    events: list[EventCorrection]
    captions: list[CaptionCorrection]

    @property
    def every(self) -> list[Correction]:
        """All of it."""
        return [*self.events, *self.captions]

    @property
    def version(self) -> str:
        """Digest of all of it."""
        text = corrections.lines(self.every)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def last_author(self) -> str:
        """Who said the last of it; empty where nobody said anything."""
        return max(self.every, key=lambda one: one.time).author if self.every else ""


class ChangedError(Exception):
    """Somebody else added to the episode's corrections; `said` is what there is now."""

    def __init__(self, said: Said) -> None:
        super().__init__("the corrections of this episode have changed")
        self.said = said


class Overlay:
    """Both lists of one checkout; `shared` keeps the lock."""

    def __init__(self, project: Path, shared: Path) -> None:
        self.events, self.captions = project / corrections.EVENTS, project / corrections.CAPTIONS
        self._lock = shared / "locks" / "corrections.lock"

    def read(self) -> dict[str, Said]:
        """Every corrected episode. UserError names the lines that are malformed."""
        events = corrections.read(self._there(self.events), EventCorrection)
        captions = corrections.read(self._there(self.captions), CaptionCorrection)
        ids = sorted({*events, *captions})
        return {i: Said(events.get(i, []), captions.get(i, [])) for i in ids}

    def of(self, episode_id: str) -> Said:
        """One episode's corrections."""
        return self.read().get(episode_id, Said([], []))

    def add(
        self,
        episode_id: str,
        version: str,
        events: Sequence[EventCorrection],
        captions: Sequence[CaptionCorrection],
        times_s: Seconds,
    ) -> None:
        """Add lines; `times_s` (T,) are the episode's control steps.

        Whoever saves has seen what is there, so where the clocks say otherwise, all the new lines
        are made later by as much as it takes. ChangedError when the episode's corrections are not
        those of `version`, UserError when the next run could not apply the new ones.
        """
        with locks.waited(self._lock):
            now = self.of(episode_id)
            if now.version != version:
                raise ChangedError(now)
            corrected.Overlay(times_s, [*now.events, *events])
            _within(float(times_s[-1]), captions)
            by = _late(now.every, [*events, *captions])
            for path, more in ((self.events, events), (self.captions, captions)):
                if more:
                    _append(path, corrections.lines(_shifted(each, by) for each in more))

    @staticmethod
    def _there(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path


def _within(end_s: float, captions: Sequence[CaptionCorrection]) -> None:
    """UserError when words are for time beyond the episode's end."""
    for said in captions:
        if said.end_s > end_s + TOLERANCE_S:
            raise UserError(
                f"words for episode {said.episode_id}: expected a span up to the episode's end "
                f"({end_s:.3f} s); got {said.start_s:.3f} to {said.end_s:.3f}."
            )


def _late(said: Sequence[Correction], new: Sequence[Correction]) -> timedelta:
    """How much too early the first of the new lines is to come after all that was said."""
    if not said or not new:
        return timedelta()
    first = max(each.time for each in said) + NEXT
    return max(first - min(each.time for each in new), timedelta())


def _shifted(said: Correction, by: timedelta) -> Correction:
    return said.model_copy(update={"time": said.time + by})


def _append(path: Path, lines: str) -> None:
    """Replace the file by itself and more lines; it is never half-written."""
    text = path.read_text(encoding="utf-8")
    ending = "" if not text or text.endswith("\n") else "\n"
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text + ending + lines)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
