"""From a table of rows to an episode: signals, clock, task. The same for every LeRobot version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from components.ingestion import columns
from components.ingestion.columns import Signal
from components.ingestion.raw import RawEpisode, relative_s
from components.ingestion.reasons import Problem, Reason
from components.packets import Span

KNOWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True)
class Rows:
    """How the columns of a data set become state and action."""

    state: Signal
    action: Signal
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def infer(cls, info: dict[str, Any], tables: Iterable[pa.Table | Problem]) -> Rows:
        """Look at the first table that has rows."""
        features = info.get("features", {})
        readable = (t for t in tables if not isinstance(t, Problem) and t.num_rows)
        table = next(readable, None)
        if table is None:
            return cls(Signal((), (), ()), Signal((), (), ()))
        state = columns.find("state", features, table)
        action = columns.find("action", features, table)
        taken = {*state.columns, *action.columns, *KNOWN}
        left = [name for name in table.column_names if name not in taken]
        return cls(state, action, [f"columns not taken over: {', '.join(left)}"] if left else [])

    def episode(
        self,
        *,
        index: int,
        uri: str,
        version: str,
        table: pa.Table | Problem,
        tasks: dict[int, str],
        named: Any,
        videos: dict[str, Span],
    ) -> RawEpisode:
        """The episode in a table of its T rows; `named` is what the metadata says of its task."""
        problem = table if isinstance(table, Problem) else self._missing(table)
        if problem is not None or isinstance(table, Problem):
            return RawEpisode(index, uri, version, problem=problem)
        state, action = self.state.read(table), self.action.read(table)
        if isinstance(state, Problem) or isinstance(action, Problem):
            fault = state if isinstance(state, Problem) else action
            assert isinstance(fault, Problem)
            return RawEpisode(index, uri, version, problem=fault)
        times = columns.matrix(table["timestamp"])
        if times is None or times.shape[1] != 1:
            fault = Problem(Reason.MISSING_COLUMN, "timestamp: expected one number a row")
            return RawEpisode(index, uri, version, problem=fault)
        return RawEpisode(
            index=index,
            uri=uri,
            version=version,
            task=_task(table, tasks, named),
            timestamps_s=relative_s(times[:, 0]),
            state=state,
            action=action,
            videos=videos,
        )

    def _missing(self, table: pa.Table) -> Problem | None:
        if "timestamp" not in table.column_names:
            return Problem(Reason.MISSING_COLUMN, f"no timestamp among {table.column_names}")
        if table.num_rows == 0:
            return Problem(Reason.EMPTY_EPISODE, "the episode has no rows")
        return None


def _task(table: pa.Table, tasks: dict[int, str], named: Any) -> str | None:
    """By the first row's task_index; else the first sentence that the metadata name."""
    if "task_index" in table.column_names and table.num_rows:
        number = table["task_index"][0].as_py()
        text = tasks.get(number) if isinstance(number, int) else None
        if text and text.strip():
            return text.strip()
    first = named[0] if isinstance(named, list) and named else named
    return first.strip() or None if isinstance(first, str) else None
