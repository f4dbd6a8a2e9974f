"""Events and their hierarchy as columns, so that episodes cut before cost next to nothing.

One row for each node (`records.HIERARCHY`), an episode's together and in the order of
`hierarchy.nodes`; an action is an event, and has what else `records.EVENTS` wants. Both outputs are
columns of it. Rows are dicts only where an episode is new, or was corrected by people.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from components import records
from components.row_shards import PIECE, chosen, encoded, marked, numbers, plain, values
from components.segmentation.corrected import Row
from components.segmentation.hierarchy import Node, nodes

NODES = pa.schema(
    [
        *records.HIERARCHY,
        records.EVENTS.field("kind"),
        records.EVENTS.field("evidence"),
        pa.field("signals", pa.string()),  # JSON: names of the evidence
    ]
)


class Made(NamedTuple):
    """One episode's events (`records.EVENTS`), and control steps and seconds of finer cuts."""

    rows: list[Row]
    finer: list[int]
    finer_s: list[float]


def table(episodes: Iterable[tuple[str, Made]]) -> pa.Table:
    """`piece` and NODES of some episodes, each with the name of its piece."""
    rows = [node | {PIECE: name} for name, made in episodes for node in _nodes(made)]
    return pa.Table.from_pylist(rows, schema=pa.schema([pa.field(PIECE, pa.string()), *NODES]))


def _nodes(made: Made) -> Iterator[Node]:
    of = {row["event_id"]: row for row in made.rows}
    for node in nodes(*made):
        if node["level"] == "action":
            row = of[node["node_id"]]
            signals = json.dumps(sorted(json.loads(row["evidence"])))
            node |= {"kind": row["kind"], "evidence": row["evidence"], "signals": signals}
        yield node


def joined(tables: Iterable[pa.Table], ids: list[str]) -> pa.Table:
    """NODES of all episodes, in the order of `ids`."""
    whole = pa.concat_tables([encoded(each.select(NODES.names)) for each in tables])
    whole = whole.unify_dictionaries().combine_chunks()
    found, places = values(whole["episode_id"])
    rank = {episode_id: place for place, episode_id in enumerate(ids)}
    ranks = np.array([rank[episode_id] for episode_id in found], dtype=np.int64)[places]
    return whole.take(numbers(np.argsort(ranks, kind="stable")))


def events(whole: pa.Table) -> pa.Table:
    """`records.EVENTS`."""
    names = ["node_id" if name == "event_id" else name for name in records.EVENTS.names]
    found = plain(actions(whole).select(names)).rename_columns(records.EVENTS.names)
    return found.cast(records.EVENTS).combine_chunks()


def hierarchy(whole: pa.Table) -> pa.Table:
    """`records.HIERARCHY`."""
    return plain(whole.select(records.HIERARCHY.names)).cast(records.HIERARCHY).combine_chunks()


def actions(whole: pa.Table) -> pa.Table:
    """Rows that are events."""
    return whole.filter(whole["kind"].is_valid())


def only(whole: pa.Table, ids: Collection[str]) -> pa.Table:
    """Rows of these episodes."""
    return chosen(whole, marked(whole["episode_id"], ids))


def without(whole: pa.Table, ids: Collection[str]) -> pa.Table:
    """Rows of the other episodes."""
    return chosen(whole, ~marked(whole["episode_id"], ids))


def every(whole: pa.Table) -> dict[str, Made]:
    """The rows of each episode again."""
    found: dict[str, Made] = {}
    starts = set()
    for row in events(whole).to_pylist():
        found.setdefault(row["episode_id"], Made([], [], [])).rows.append(row)
        starts.add((row["episode_id"], row["start_frame"]))
    for row in whole.select(["episode_id", "level", "start_frame", "start_s"]).to_pylist():
        place = row["episode_id"], row["start_frame"]
        if row["level"] == "segment" and place not in starts:
            found[row["episode_id"]].finer.append(row["start_frame"])
            found[row["episode_id"]].finer_s.append(row["start_s"])
    return found


def made(whole: pa.Table, episode_id: str) -> Made:
    """One episode's rows again."""
    return every(only(whole, [episode_id]))[episode_id]
