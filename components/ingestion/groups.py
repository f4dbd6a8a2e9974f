"""Which accepted episodes share an output file, and finished files of earlier runs.

A group of neighbours becomes one file of signals and one video for each camera. Where a group ends
is decided by the content of its last episode alone, and by a full file (content-defined chunking:
Muthitacharoen et al., LBFS, 2001), so that episodes added or gone change the files next to them and
no others. Finished groups lie in the shard store; only their positions are written anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components import lerobot, lerobot_files
from components.ingestion.measure import Facts
from components.ingestion.raw import Layout, Reader
from components.lerobot_files import Files, Recording
from components.outputs import write_table
from components.shards import Shards, key

SHARE = 0.25  # mean size of a file, of its limit: so few files are cut by the limit, which shifts


@dataclass(frozen=True)
class Limits:
    """A file is closed before it has more bytes; a single larger episode has one of its own."""

    data_mb: int
    video_mb: int


def split(items: list[Facts], widths: int, limits: Limits) -> list[list[Facts]]:
    """Neighbours that share files; `widths` numbers a row."""
    found: list[list[Facts]] = []
    data_bytes, video_bytes = limits.data_mb * 1e6, limits.video_mb * 1e6
    data = video = 0
    ended = True
    for item in items:
        own_data = item.n_frames * (widths + 4) * 4
        own_video = max((e.size for e in item.encoded.values()), default=0)
        full = data + own_data > data_bytes or video + own_video > video_bytes
        if ended or full or _parameters(found[-1][-1]) != _parameters(item):
            found.append([])
            data = video = 0
        found[-1].append(item)
        data, video = data + own_data, video + own_video
        filled = max(own_data / data_bytes, own_video / video_bytes)
        ended = int(item.episode_id, 16) / 16.0 ** len(item.episode_id) < filled / SHARE
    return found


def _parameters(item: Facts) -> dict[str, str]:
    return {camera: encoded.parameters for camera, encoded in item.encoded.items()}


@dataclass
class Groups:
    """Gives finished groups, from the store or from the sources."""

    shards: Shards
    readers: list[Reader]
    scratch: Path

    def finish(self, root: Path, layout: Layout, groups: list[list[Facts]]) -> Iterator[Files]:
        """The files of each group in order, its videos put in `root` under the group's number."""
        names = [self._name(layout, members) for members in groups]
        with ThreadPoolExecutor(1) as keeper:  # digests of what was written, beside the next group
            yield from self._finish(root, layout, groups, names, keeper)

    def _finish(
        self,
        root: Path,
        layout: Layout,
        groups: list[list[Facts]],
        names: list[str],
        keeper: ThreadPoolExecutor,
    ) -> Iterator[Files]:
        waiting: list[Future[None]] = []
        for number, (name, members) in enumerate(zip(names, groups, strict=True)):
            known = self.shards.recall([name]).get(name)
            paths = {c: root / lerobot.video_path(c, number) for c in layout.cameras}
            signals = self.scratch / f"{name}.parquet"
            parts = {f"{name}-signals": signals, **{_film(name, c): p for c, p in paths.items()}}
            if known is None or not self._linked(parts):
                known, rows = lerobot_files.join(self._recordings(members), paths)
                write_table(signals, rows)
                where = {_rows(f): [name, n] for n, f in enumerate(members)}
                waiting.append(keeper.submit(self._keep, parts, {name: known, **where}))
            while len(waiting) > 1:
                waiting.pop(0).result()
            yield Files(**known, rows=pq.read_table(signals))
        for kept in waiting:
            kept.result()

    def _keep(self, parts: dict[str, Path], values: dict[str, Any]) -> None:
        for part, path in parts.items():
            self.shards.keep_file(part, path)
        self.shards.keep(values)

    def _linked(self, parts: dict[str, Path]) -> bool:
        """All parts of a group, or none."""
        if all(self.shards.link(part, path) for part, path in parts.items()):
            return True
        for path in parts.values():
            path.unlink(missing_ok=True)
        return False

    def _recordings(self, members: list[Facts]) -> Iterator[Recording]:
        """The episodes, signals and stats from an earlier group that held them where one did."""
        known = self.shards.recall(_rows(item) for item in members)
        earlier: dict[str, list[Recording]] = {}
        for item in members:
            reader = self.readers[item.source]
            group, row = known.get(_rows(item), ("", 0))
            if group not in earlier:
                earlier[group] = self._earlier(group)
            kept = earlier[group][row] if earlier[group] else None
            spans = None if kept is None else reader.spans(item.index)
            if kept is None or spans is None:
                raw = reader.read(item.index)
                kept, spans = Recording("", raw.timestamps_s, raw.state, raw.action), raw.videos
            yield replace(kept, spans={camera: spans[camera] for camera in reader.layout.cameras})

    def _earlier(self, group: str) -> list[Recording]:
        """Signals and stats of all episodes of a group that an earlier run finished."""
        path = self.scratch / f"earlier-{group}.parquet"
        path.unlink(missing_ok=True)
        said = self.shards.recall([group]).get(group) if group else None
        if said is None or not self.shards.link(f"{group}-signals", path):
            return []
        kept = lerobot_files.recordings_of(pq.read_table(path))
        return [replace(item, stats=s) for item, s in zip(kept, said["stats"], strict=True)]

    def _name(self, layout: Layout, members: list[Facts]) -> str:
        return key("group", layout.signature, [_content(item) for item in members])


def _film(name: str, camera: str) -> str:
    return key(name, camera)


def _rows(item: Facts) -> str:
    return key("rows", *_content(item))


def _content(item: Facts) -> list[Any]:
    """All that an episode's rows, packets and stats depend on."""
    return [item.episode_id, {c: e.sha256 for c, e in item.encoded.items()}]
