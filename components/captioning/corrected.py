"""What people said of captions, in place of the machine's words.

A correction names a span of time. It holds for the event that shares more than half of what both
cover together (never two), so it follows its event through other boundaries, or waits unplaced.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from components.corrections import CaptionCorrection
from components.records import PERSON

Row = dict[str, Any]
Placed = dict[tuple[str, str], CaptionCorrection]  # by event id and level
Verdict = Callable[[str, str, str], str]  # event id, level, text -> the row's `checks`

SAME_EVENT = 0.5  # of what span and event cover together, more than this must be common


def placed(events: Sequence[Row], corrections: Iterable[CaptionCorrection]) -> tuple[Placed, int]:
    """What people said, by event id and level, and how many corrections found no event.

    `events` of one episode are in time order. The last of several corrections wins; a `revert`
    voids what was said before.
    """
    found: Placed = {}
    unplaced = 0
    starts = [event["start_s"] for event in events]
    for said in corrections:
        middle_s = (said.start_s + said.end_s) / 2  # an event with over half in common contains it
        event = events[max(bisect_right(starts, middle_s) - 1, 0)]
        if _common(event, said) <= SAME_EVENT:
            unplaced += 1
            continue
        found.pop((event["event_id"], said.level), None)
        if said.did != "revert":
            found[event["event_id"], said.level] = said
    return found, unplaced


def _common(event: Row, said: CaptionCorrection) -> float:
    """Shared time over covered time (Jaccard), 0 to 1."""
    shared = min(event["end_s"], said.end_s) - max(event["start_s"], said.start_s)
    covered = max(event["end_s"], said.end_s) - min(event["start_s"], said.start_s)
    return float(shared / covered)


def retold(rows: Iterable[Row], said: Placed, verdict: Verdict) -> list[Row]:
    """Rows of `records.CAPTIONS` with people's words where they said some.

    The machine's own text stays beside them in `machine_text`.
    """
    nobody = {"author": "", "time": "", "machine_text": ""}
    return [
        _row(row, said[key], verdict) if (key := _key(row)) in said else nobody | row
        for row in rows
    ]


def _key(row: Row) -> tuple[str, str]:
    return row["event_id"], row["level"]


def _row(row: Row, said: CaptionCorrection, verdict: Verdict) -> Row:
    about = said.said()
    return {
        "event_id": row["event_id"],
        "level": row["level"],
        "text": said.text,
        "captioner": PERSON,
        "model_digest": "",
        "prompt_digest": "",
        "decoding": "{}",
        "checks": verdict(row["event_id"], row["level"], said.text),
        "author": about["author"],
        "time": about["time"],
        "machine_text": row["machine_text"] if row["captioner"] == PERSON else row["text"],
    }


def same_share(rows: Iterable[Row]) -> float | None:
    """Of the texts that people gave or accepted, the share that the machine says, too."""
    same = [row["text"] == row["machine_text"] for row in rows if row["captioner"] == PERSON]
    return round(sum(same) / len(same), 4) if same else None
