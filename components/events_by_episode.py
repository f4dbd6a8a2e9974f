"""Rows of data/events by episode, read as columns; rows become dicts only where one asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class EventsByEpisode:
    """A mapping from episode id, ascending, to its events' rows in time order."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.sort_by([("episode_id", "ascending"), ("start_frame", "ascending")])
        ids = self._table["episode_id"].to_numpy()
        different = ids[1:] != ids[:-1]
        first = [0, *(np.flatnonzero(different) + 1).tolist()] if len(ids) else []
        stops = [*first[1:], len(ids)]
        self._spans = {
            str(ids[start]): (int(start), int(stop))
            for start, stop in zip(first, stops, strict=False)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, episode_id: object) -> bool:
        return episode_id in self._spans

    def __getitem__(self, episode_id: str) -> list[dict[str, Any]]:
        start, stop = self._spans[episode_id]
        rows: list[dict[str, Any]] = self._table.slice(start, stop - start).to_pylist()
        return rows

    def texts(self, *names: str) -> dict[str, str]:
        """Of each episode its events' values of these columns as one text, for a key."""
        columns = [self._table[name].cast(pa.string()) for name in names]
        joined = pc.binary_join_element_wise(
            *columns, "\0", null_handling="replace", null_replacement="\1"
        ).to_pylist()
        return {i: "\n".join(joined[start:stop]) for i, (start, stop) in self._spans.items()}
