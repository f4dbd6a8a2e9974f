"""Reads LeRobot v2.0 and v2.1: one Parquet file and one video per camera for each episode.

Files are found by their names on disk (`episode_000003.parquet`, `.mp4`), not by the templates in
info.json, which published data sets often get wrong. Format: huggingface/lerobot, version v2.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from components.ingestion import declared, metadata, who
from components.ingestion.raw import Layout, RawEpisode
from components.ingestion.reasons import Problem, Reason
from components.ingestion.rows import Rows
from components.ingestion.source import Source
from components.packets import Span

DATA = re.compile(r"^(?!meta/).*?episode_(\d+)\.parquet$")
VIDEO = re.compile(r"^videos?/(?:.*/)?episode_(\d+)\.(?:mp4|mkv|avi|mov|webm)$")


def holds(source: Source) -> bool:
    """Whether the source's files are laid out this way."""
    return "meta/info.json" in source.listed and any(map(DATA.match, source.listed))


class Reader:
    """All episodes of one v2.0 or v2.1 data set."""

    def __init__(self, source: Source, min_camera_share: float) -> None:
        self.source = source
        self._found: list[str] = []
        self._info = info = metadata.info(source)
        self.format = f"LeRobot {info.get('codebase_version') or 'v2'}"
        self._twice: dict[int, str] = {}  # episode -> what is there twice
        self._data: dict[int, str] = {}
        for path in sorted(source.listed):
            if match := DATA.match(path):
                self._take(self._data, int(match[1]), path)
        self._listed = self._episodes()
        self._tasks = {
            int(row["task_index"]): str(row["task"])
            for row in self._lines("meta/tasks.jsonl", "task_index", "task")
        }
        self.indices = sorted(self._data.keys() | self._listed.keys())
        self._videos = self._find_videos(info, min_camera_share)
        self._rows = Rows.infer(info, (self._table(i) for i in self.indices), source.said)
        self.layout: Layout = metadata.layout(source, info, self._rows, tuple(sorted(self._videos)))
        self._found += metadata.claims(info, len(self.indices)) + self._rows.warnings
        self._found += declared.oddities(source, info, list(self._data))
        if self._listed.keys() == self._data.keys():
            lengths = [row.get("length") for row in self._listed.values()]
            known = [length for length in lengths if isinstance(length, int)]
            self._found += declared.totals(info, known if len(known) == len(lengths) else [])

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
            table=self._duplicate(index) or self._table(index),
            tasks=self._tasks,
            named=self._named(index),
            videos=self.spans(index),
        )

    def _take(self, files: dict[int, str], index: int, path: str) -> None:
        """The file of an episode; another one with other bytes makes it ambiguous."""
        first = files.setdefault(index, path)
        if not self.source.same(first, path):
            self._twice[index] = f"{first} and {path} differ"

    def _duplicate(self, index: int) -> Problem | None:
        said = self._twice.get(index)
        return (
            Problem(Reason.DUPLICATE_INDEX, f"two files of one episode: {said}") if said else None
        )

    def version(self, index: int) -> str:
        """Digest of the files that an episode is read from."""
        return self.source.version(["meta/info.json", *self._files(index)])

    def identity(self, index: int) -> Any:
        """What decides all that `read` gives but address, version and task."""
        files = {path: self.source.listed[path].version for path in self._files(index)}
        places = [self._data.get(index), self._paths(index), self._twice.get(index)]
        return [self._rows.signature, places, files]

    def spans(self, index: int) -> dict[str, Span]:
        """The videos of an episode by camera."""
        return {key: Span(self.source.file(path)) for key, path in self._paths(index).items()}

    def recall(self, index: int, notes: dict[str, Any]) -> str | None:
        """Take note of an episode that an earlier run read; its task."""
        return self._rows.recall(index, notes, self._tasks, self._named(index))

    def who(self, index: int, notes: dict[str, Any]) -> dict[str, str]:
        """Robot and operator by `meta/episodes.jsonl`, else by info.json."""
        return who.of(self._listed.get(index, {}), metadata.said(self._info))

    def _paths(self, index: int) -> dict[str, str]:
        return {key: files[index] for key, files in self._videos.items() if index in files}

    def _files(self, index: int) -> list[str]:
        return [p for p in (self._data.get(index), *self._paths(index).values()) if p is not None]

    def _named(self, index: int) -> Any:
        return self._listed.get(index, {}).get("tasks")

    def _table(self, index: int) -> pa.Table | Problem:
        if index not in self._data:
            return Problem(Reason.MISSING_DATA, f"no file episode_{index:06d}.parquet is listed")
        return metadata.table(self.source, self._data[index])

    def _episodes(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        twice = 0
        for row in self._lines("meta/episodes.jsonl", "episode_index"):
            twice += int(row["episode_index"]) in found
            found.setdefault(int(row["episode_index"]), row)
        if twice:
            self._found.append(
                f"meta/episodes.jsonl lists {twice} episodes twice; the first counts"
            )
        return found

    def _lines(self, path: str, *keys: str) -> Iterator[dict[str, Any]]:
        if path in self.source.listed:
            yield from metadata.json_lines(self.source, path, keys, self._found)

    def _find_videos(self, info: dict[str, Any], share: float) -> dict[str, dict[int, str]]:
        found: dict[str, dict[int, str]] = {}
        for path in sorted(self.source.listed):
            if match := VIDEO.match(path):
                folders = [p for p in path.split("/")[1:-1] if not p.startswith("chunk-")]
                self._take(found.setdefault("/".join(folders), {}), int(match[1]), path)
        return metadata.cameras(self.source, info, found, self.indices, share, self._found)
