"""Reads LeRobot v3.0: many episodes in a Parquet file and in a video; `meta/episodes` says where.

Files are found by their numbers on disk (`chunk-000/file-001`), not by the templates in info.json.
Format: huggingface/lerobot, version v3.0.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.ingestion import declared, metadata, who
from components.ingestion.raw import Layout, RawEpisode
from components.ingestion.reasons import Problem, Reason
from components.ingestion.rows import Rows
from components.ingestion.source import Source
from components.packets import Span

EPISODES = re.compile(r"^meta/episodes/.*\.parquet$")
DATA = re.compile(r"^data/(?:.*/)?chunk-(\d+)/file-(\d+)\.parquet$")
VIDEO = re.compile(r"^videos?/(.+)/chunk-(\d+)/file-(\d+)\.\w+$")
Place = tuple[int, int]  # numbers of chunk and file


def holds(source: Source) -> bool:
    """Whether the source's files are laid out this way."""
    return "meta/info.json" in source.listed and any(map(EPISODES.match, source.listed))


class Reader:
    """All episodes of one v3.0 data set; the Parquet file read last is kept in memory."""

    def __init__(self, source: Source, min_camera_share: float) -> None:
        self.source = source
        self._found: list[str] = []
        self._info = info = metadata.info(source)
        self.format = f"LeRobot {info.get('codebase_version') or 'v3.0'}"
        self._listed = self._episodes()
        self._tasks = self._read_tasks()
        self.indices = sorted(self._listed)
        self._data = {
            (int(m[1]), int(m[2])): path for path in source.listed if (m := DATA.match(path))
        }
        self._kept: tuple[str, pa.Table | Problem] | None = None
        self._ordered: npt.NDArray[np.int64] | None = None  # episode_index of the kept file's rows
        self._videos = self._find_videos(info, min_camera_share)
        self._rows = Rows.infer(info, (self._table(i) for i in self.indices), source.said)
        self.layout: Layout = metadata.layout(source, info, self._rows, tuple(sorted(self._videos)))
        self._found += metadata.claims(info, len(self.indices)) + self._rows.warnings
        self._found += declared.oddities(source, info, [])
        lengths = [n for row in self._listed.values() if isinstance(n := row.get("length"), int)]
        self._found += declared.totals(info, lengths if len(lengths) == len(self._listed) else [])

    @property
    def warnings(self) -> list[str]:
        """What was found in the metadata, and in the rows read so far."""
        return self._found + self._rows.late_starts(self.layout.fps)

    def read(self, index: int) -> RawEpisode:
        """One episode; what cannot be read is said in its `problem`."""
        return self._rows.episode(
            index=index,
            uri=f"{self.source.uri}#{index}",
            version=self.version(index),
            table=self._table(index),
            tasks=self._tasks,
            named=self._listed[index].get("tasks"),
            videos=self.spans(index),
        )

    def version(self, index: int) -> str:
        """Digest of the files that an episode is read from."""
        return self.source.version(["meta/info.json", *self._files(index)])

    def identity(self, index: int) -> Any:
        """What decides all that `read` gives but address, version and task.

        Rows go by their content, since recorders append episodes to a file of signals that is
        there; videos by their file.
        """
        places = self._places(index)
        videos = {path: self.source.listed[path].version for path, *_ in places.values()}
        table = self._table(index)
        rows = table if isinstance(table, Problem) else _digest(table)
        return [self._rows.signature, rows, places, videos]

    def spans(self, index: int) -> dict[str, Span]:
        """The videos of an episode by camera."""
        return {
            key: Span(self.source.file(path), start_s, end_s)
            for key, (path, start_s, end_s) in self._places(index).items()
        }

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """Take note of an episode that an earlier run read; its task."""
        return self._rows.recall(index, notes, self._tasks, self._listed[index].get("tasks"))

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """Robot and operator by `meta/episodes`, else by info.json."""
        return who.of(self._listed[index], metadata.said(self._info))

    def _places(self, index: int) -> dict[str, tuple[str, float, float]]:
        return {key: files[index] for key, files in self._videos.items() if index in files}

    def _files(self, index: int) -> list[str]:
        data = self._data.get(_place(self._listed[index], "data") or (-1, -1))
        return [p for p in (data, *(p for p, *_ in self._places(index).values())) if p]

    def _table(self, index: int) -> pa.Table | Problem:
        place = _place(self._listed[index], "data")
        if place is None or place not in self._data:
            return Problem(Reason.MISSING_DATA, f"data file {place} of the episode is not listed")
        path = self._data[place]
        if self._kept is None or self._kept[0] != path:
            self._kept = (path, metadata.table(self.source, path))
            self._ordered = _ordered(self._kept[1])
        whole = self._kept[1]
        if isinstance(whole, Problem):
            return whole
        if not _is_integer(whole, "episode_index"):
            return Problem(Reason.MISSING_COLUMN, f"{path}: no column episode_index of integers")
        if self._ordered is None:
            return whole.filter(pc.field("episode_index") == index)
        first, end = np.searchsorted(self._ordered, [index, index + 1])
        return whole.slice(first, end - first)

    def _episodes(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        twice = 0
        for path in sorted(filter(EPISODES.match, self.source.listed)):
            table = metadata.table(self.source, path)
            if isinstance(table, Problem) or not _is_integer(table, "episode_index"):
                raise metadata.damaged(self.source, path, "a Parquet file with episode_index")
            wanted = [name for name in table.column_names if not name.startswith("stats/")]
            for row in table.select(wanted).to_pylist():
                if row["episode_index"] is None:
                    raise metadata.damaged(self.source, path, "an episode_index in every row")
                twice += row["episode_index"] in found
                found.setdefault(row["episode_index"], row)
        if twice:
            self._found.append(f"meta/episodes lists {twice} episodes twice; the first counts")
        return found

    def _read_tasks(self) -> dict[int, str]:
        if "meta/tasks.parquet" not in self.source.listed:
            return {}
        table = metadata.table(self.source, "meta/tasks.parquet")
        names = [] if isinstance(table, Problem) else table.column_names
        text = next((name for name in ("task", "__index_level_0__") if name in names), None)
        if isinstance(table, Problem) or text is None or "task_index" not in names:
            raise metadata.damaged(self.source, "meta/tasks.parquet", "columns task_index and task")
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))

    def _find_videos(
        self, info: dict[str, Any], share: float
    ) -> dict[str, dict[int, tuple[str, float, float]]]:
        files: dict[str, dict[Place, str]] = {}
        for path in self.source.listed:
            if match := VIDEO.match(path):
                files.setdefault(match[1], {})[int(match[2]), int(match[3])] = path
        found = {
            key: {
                index: (paths[place], *_span(row, f"videos/{key}"))
                for index, row in self._listed.items()
                if (place := _place(row, f"videos/{key}")) in paths and place is not None
            }
            for key, paths in files.items()
        }
        rows = {i: n for i, row in self._listed.items() if isinstance(n := row.get("length"), int)}
        for key, spans in found.items():
            found[key], short = declared.lengthened(spans, rows, float(info["fps"]))
            if short:
                said = f"camera {key}: to_timestamp is one frame short in {short} of {len(spans)}"
                self._found.append(f"{said} episodes; the last picture is taken where it is theirs")
        return metadata.cameras(self.source, info, found, self.indices, share, self._found)


def _ordered(table: pa.Table | Problem) -> npt.NDArray[np.int64] | None:
    """The column episode_index where it ascends, so that episodes are slices."""
    if isinstance(table, Problem) or not _is_integer(table, "episode_index"):
        return None
    column = table["episode_index"]
    numbers = None if column.null_count else column.to_numpy().astype(np.int64)
    return numbers if numbers is not None and (np.diff(numbers) >= 0).all() else None


def _digest(table: pa.Table) -> str:
    """Digest of an episode's rows but for its position in the data set."""
    kept = [name for name in table.column_names if name not in ("index", "episode_index")]
    sink = pa.BufferOutputStream()
    rows = table.select(kept).replace_schema_metadata().combine_chunks()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _is_integer(table: pa.Table, name: str) -> bool:
    return name in table.column_names and pa.types.is_integer(table.schema.field(name).type)


def _place(row: dict[str, Any], what: str) -> Place | None:
    chunk, file = row.get(f"{what}/chunk_index"), row.get(f"{what}/file_index")
    return None if chunk is None or file is None else (int(chunk), int(file))


def _span(row: dict[str, Any], what: str) -> tuple[float, float]:
    start, end = row.get(f"{what}/from_timestamp"), row.get(f"{what}/to_timestamp")
    return float(start or 0.0), float("inf") if end is None else float(end)
