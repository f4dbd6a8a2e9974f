"""Events within what they are part of: segment, action, subtask, task.

The action is the event. A subtask runs from where a gripper begins to close or open to where one
does again: the approach, the handling, the retreat. The task is the episode. Segments are finer:
cuts inside an action where a change of behaviour is less likely, at half the price of an event's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from components.segmentation.corrected import Row

Node = dict[str, Any]


def nodes(rows: list[Row], finer: list[int], times_s: list[float]) -> Iterator[Node]:
    """Nodes (`records.HIERARCHY`) of one episode from its events in time order.

    `finer` are control steps of further cuts, and `times_s` their times, seconds.
    """
    task = node("task", "", rows, 0.0)
    yield task
    begins = [i for i, row in enumerate(rows) if i == 0 or row["kind"] in ("grasp", "release")]
    for first, stop in pairwise([*begins, len(rows)]):
        subtask = node("subtask", task["node_id"], rows[first:stop], rows[first]["score"])
        yield subtask
        for row in rows[first:stop]:
            action = node("action", subtask["node_id"], [row], row["score"])
            action["node_id"] = row["event_id"]
            yield action
            yield from segments(row, finer, times_s)


def segments(row: Row, finer: list[int], times_s: list[float]) -> Iterator[Node]:
    """The pieces of one event; the event itself where no finer cut lies within."""
    inner = [
        (step, at)
        for step, at in zip(finer, times_s, strict=True)
        if row["start_frame"] < step < row["end_frame"]
    ]
    marks = [(row["start_frame"], row["start_s"]), *inner, (row["end_frame"], row["end_s"])]
    for (start, start_s), (end, end_s) in pairwise(marks):
        span = {"start_frame": start, "start_s": start_s, "end_frame": end, "end_s": end_s}
        score = row["score"] if start == row["start_frame"] else 0.0
        yield node("segment", row["event_id"], [row | span], score)


def node(level: str, parent: str, rows: list[Row], score: float) -> Node:
    """What lies from the first to the last of some rows."""
    first, last = rows[0], rows[-1]
    said = f"{first['episode_id']}:{level}:{first['start_s']:.6f}:{last['end_s']:.6f}"
    return {
        "node_id": hashlib.sha256(said.encode()).hexdigest()[:20],
        "parent_id": parent,
        "episode_id": first["episode_id"],
        "level": level,
        "start_s": first["start_s"],
        "end_s": last["end_s"],
        "start_frame": first["start_frame"],
        "end_frame": last["end_frame"],
        "score": score,
    }
