"""Files of a LeRobot v3.0 data set that several episodes share, made apart from their positions.

Where an episode stands in the data set (`index`, `episode_index`, `task_index`) is written later,
so that the same files serve in data sets that other episodes joined or left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components import lerobot_stats
from components.packets import Joiner, Span


@dataclass(frozen=True)
class Recording:
    """One episode to write: T frames of signals and a video for each camera, as file or as span."""

    task: str
    timestamps_s: npt.NDArray[np.float64]  # (T,)
    state: npt.NDArray[np.float32]  # (T, S)
    action: npt.NDArray[np.float32]  # (T, A)
    videos: dict[str, Path] = field(default_factory=dict)  # feature name -> file, kept as it is
    spans: dict[str, Span] = field(default_factory=dict)  # feature name -> a picture a row
    stats: dict[str, Any] = field(default_factory=dict)  # of signals and pictures, if known already


@dataclass(frozen=True)
class Files:
    """One file of signals and one video for each camera, of N episodes."""

    lengths: list[int]  # rows of each episode
    spans: dict[str, list[list[float]]]  # camera -> start and end of each episode's video, seconds
    stats: list[dict[str, Any]]  # of signals and pictures; those of positions come later
    rows: pa.Table  # of all episodes, as `rows_of`


def join(
    recordings: Iterable[Recording], paths: dict[str, Path]
) -> tuple[dict[str, Any], pa.Table]:
    """Write the spans of all episodes to `paths` (by camera); lengths, spans and stats, and rows.

    The videos' parameters must agree. One episode's packets are held in memory. av.FFmpegError
    when a video is damaged.
    """
    joiners = {camera: _joiner(path) for camera, path in sorted(paths.items())}
    rows: list[pa.Table] = []
    spans: dict[str, list[list[float]]] = {camera: [] for camera in paths}
    stats = []
    for recording in recordings:
        rows.append(rows_of(recording))
        for camera, joiner in joiners.items():
            placed = joiner.append(recording.spans[camera], recording.timestamps_s)
            spans[camera].append([placed.start_s, placed.end_s])
        stats.append(recording.stats or stats_of(rows[-1], recording.spans))
    for joiner in joiners.values():
        joiner.close()
    said = {"lengths": [table.num_rows for table in rows], "spans": spans, "stats": stats}
    return json.loads(json.dumps(said)), pa.concat_tables(rows)


def stats_of(rows: pa.Table, pictures: dict[str, Span]) -> dict[str, Any]:
    """Of each column, and of the first picture of each camera where it can be decoded."""
    stats = {name: lerobot_stats.of_rows(rows[name]) for name in rows.column_names}
    for camera, span in sorted(pictures.items()):
        if (found := lerobot_stats.of_first_picture(span)) is not None:
            stats[camera] = found
    return stats


def _joiner(path: Path) -> Joiner:
    return Joiner(lambda _: path, sys.maxsize)


def rows_of(recording: Recording) -> pa.Table:
    """The columns of T rows that say nothing of positions in a data set."""
    return pa.table(
        {
            "observation.state": _vectors(recording.state),
            "action": _vectors(recording.action),
            "timestamp": recording.timestamps_s.astype(np.float32),
            "frame_index": np.arange(len(recording.timestamps_s)),
        }
    )


def recordings_of(rows: pa.Table) -> list[Recording]:
    """The episodes in the rows of `join`, without task and videos; exactly what was written."""
    starts = np.flatnonzero(rows["frame_index"].to_numpy() == 0)
    ends = [*starts[1:], rows.num_rows]
    times, state, action = (rows[name] for name in ("timestamp", "observation.state", "action"))
    return [
        Recording(
            "",
            times[start:end].to_numpy().astype(np.float64),
            _matrix(state[start:end]),
            _matrix(action[start:end]),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def _vectors(values: npt.NDArray[np.float32]) -> pa.Array:
    """(T, D) as T lists of exactly D numbers."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    flat = column.combine_chunks().flatten().to_numpy()
    return np.asarray(flat, np.float32).reshape(len(column), -1)
