"""From a table of rows to an episode: signals, clock, task. The same for every LeRobot version."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from components.ingestion import columns, declared
from components.ingestion.columns import Signal
from components.ingestion.raw import RawEpisode, relative_s
from components.ingestion.reasons import Problem, Reason
from components.ingestion.said import Said
from components.packets import Span

KNOWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")
SHOWN = 5  # names in a warning


@dataclass(frozen=True)
class Rows:
    """How the columns of a data set become state and action."""

    state: Signal
    action: Signal
    warnings: list[str] = field(default_factory=list)
    starts_s: dict[int, float] = field(default_factory=dict)  # first timestamps as recorded

    @classmethod
    def infer(cls, info: dict[str, Any], tables: Iterable[pa.Table | Problem], said: Said) -> Rows:
        """Look at the first table that has rows. UserError when it has not what is said."""
        features = info.get("features", {})
        readable = (t for t in tables if not isinstance(t, Problem) and t.num_rows)
        table = next(readable, None)
        if table is None:
            return cls(Signal((), (), ()), Signal((), (), ()))
        state = columns.find("state", features, table, said.state)
        action = columns.find("action", features, table, said.action)
        taken = {*state.columns, *action.columns, *KNOWN}
        left = [name for name in table.column_names if name not in taken]
        return cls(
            state, action, [*_unusual(state, action), *declared.columns(table), *_left(left)]
        )

    def late_starts(self, fps: float) -> list[str]:
        """One warning when recordings start after 0, or between two frames."""
        late = [start for start in self.starts_s.values() if start > 1e-4]
        if not late:
            return []
        off = max(abs(start * fps - round(start * fps)) for start in late)
        low, high = (f"{value:.3f}".rstrip("0") for value in (min(late), max(late)))
        where = f"at {low} s" if low == high else f"at {low} to {high} s"
        between = ", between two frames" if off > 0.05 else ""
        count = f"{len(late)} of {len(self.starts_s)} episodes"
        return [f"timestamps start {where}{between} ({count}); taken relative to the first row"]

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
        notes: dict[str, Any] = {"task_index": _task_index(table)}
        if len(times) and abs(times[0, 0]) < 1e5:
            notes["start_s"] = float(times[0, 0])
        return RawEpisode(
            index=index,
            uri=uri,
            version=version,
            task=self.recall(index, notes, tasks, named),
            notes=notes,
            timestamps_s=relative_s(times[:, 0]),
            state=state,
            action=action,
            videos=videos,
        )

    @property
    def signature(self) -> list[Any]:
        """How signals are taken, for the identity of an episode."""
        return [self.state.columns, self.state.widths, self.action.columns, self.action.widths]

    def recall(
        self, index: int, notes: dict[str, Any], tasks: dict[int, str], named: Any
    ) -> str | None:
        """Take note of an episode that was read, now or in an earlier run; its task."""
        if "start_s" in notes:
            self.starts_s[index] = notes["start_s"]
        return _task(notes.get("task_index"), tasks, named)

    def _missing(self, table: pa.Table) -> Problem | None:
        if "timestamp" not in table.column_names:
            return Problem(Reason.MISSING_COLUMN, f"no timestamp among {table.column_names}")
        if table.num_rows == 0:
            return Problem(Reason.EMPTY_EPISODE, "the episode has no rows")
        return None


def _unusual(state: Signal, action: Signal) -> list[str]:
    """Where a signal was found, when not in the column that LeRobot names."""
    return [
        f"no column {name}: joined from {len(signal.columns)} columns, {_short(signal.columns)}"
        if len(signal.columns) > 1
        else f"no column {name}: taken from {signal.columns[0]}"
        for name, signal in (("observation.state", state), ("action", action))
        if signal.columns and signal.columns != (name,)
    ]


def _left(columns: list[str]) -> list[str]:
    return [f"columns not taken over: {_short(columns)}"] if columns else []


def _short(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _task_index(table: pa.Table) -> int | None:
    if "task_index" not in table.column_names or not table.num_rows:
        return None
    number = table["task_index"][0].as_py()
    return number if isinstance(number, int) else None


def _task(number: int | None, tasks: dict[int, str], named: Any) -> str | None:
    """By the first row's task_index; else the first sentence that the metadata name."""
    text = None if number is None else tasks.get(number)
    if text and text.strip():
        return text.strip()
    first = named[0] if isinstance(named, list) and named else named
    return first.strip() or None if isinstance(first, str) else None
