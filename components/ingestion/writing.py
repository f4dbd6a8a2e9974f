"""Writes accepted episodes as LeRobot v3.0, one data set for each robot, and the manifest.

Episodes of one robot type with other signals, rates or pictures get a folder of their own
(`cr5-2`), since a LeRobot data set has one set of features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from components import lerobot, records
from components.ingestion.measure import Facts
from components.ingestion.raw import Layout, RawEpisode


class Reader(Protocol):
    """What every format gives."""

    format: str  # for people
    layout: Layout
    indices: list[int]

    @property
    def warnings(self) -> list[str]:
        """One sentence for each oddity; what only rows show is there once they were read."""
        ...

    def read(self, index: int) -> RawEpisode:
        """One episode."""
        ...


@dataclass
class Accepted:
    """One episode to write, with every address that held the same content."""

    facts: Facts
    warnings: dict[str, str] = field(default_factory=dict)  # check -> sentence
    origins: list[str] = field(default_factory=list)


def unique(passed: list[tuple[Facts, dict[str, str]]]) -> list[Accepted]:
    """Equal content is one episode; the first address stays, the others are its origins."""
    found: dict[str, Accepted] = {}
    for item, warnings in passed:
        found.setdefault(item.episode_id, Accepted(item, warnings)).origins.append(item.uri)
    return list(found.values())


@dataclass
class Writers:
    """One LeRobot writer for each set of features, in order of first appearance."""

    root: Path
    data_file_mb: int
    video_file_mb: int
    open: dict[tuple[Any, ...], tuple[str, lerobot.Writer]] = field(default_factory=dict)

    def of(self, layout: Layout, facts: Facts) -> tuple[str, lerobot.Writer]:
        """Folder name and writer for an episode."""
        key = (layout, tuple(sorted(facts.picture_shapes.items())))
        if key not in self.open:
            name = self._name(layout.robot_type)
            self.open[key] = (
                name,
                lerobot.Writer(
                    self.root / name,
                    robot_type=layout.robot_type,
                    fps=layout.fps,
                    state_names=layout.state_names,
                    action_names=layout.action_names,
                    data_file_mb=self.data_file_mb,
                    video_file_mb=self.video_file_mb,
                ),
            )
        return self.open[key]

    def _name(self, robot_type: str) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", robot_type.lower()).strip("-") or "unknown"
        taken = {name for name, _ in self.open.values()}
        names = (slug if i == 1 else f"{slug}-{i}" for i in range(1, len(taken) + 2))
        return next(name for name in names if name not in taken)


def write(
    root: Path,
    accepted: list[Accepted],
    readers: list[Reader],
    names: list[str],
    *,
    data_file_mb: int,
    video_file_mb: int,
) -> list[dict[str, Any]]:
    """Write all episodes and `manifest.parquet` to the existing folder `root`; return the rows."""
    writers = Writers(root, data_file_mb, video_file_mb)
    rows = list(_rows(accepted, readers, names, writers))
    for _, writer in writers.open.values():
        writer.close()
    records.write(root / "manifest.parquet", rows, records.MANIFEST, sort_by="episode_id")
    return rows


def _rows(
    accepted: list[Accepted], readers: list[Reader], names: list[str], writers: Writers
) -> Iterator[dict[str, Any]]:
    for item in accepted:
        reader = readers[item.facts.source]
        raw = reader.read(item.facts.index)
        folder, writer = writers.of(reader.layout, item.facts)
        assert raw.task is not None
        index = writer.add(
            lerobot.Recording(
                task=raw.task,
                timestamps_s=raw.timestamps_s,
                state=raw.state,
                action=raw.action,
                spans={camera: raw.videos[camera] for camera in reader.layout.cameras},
            )
        )
        yield {
            "episode_id": item.facts.episode_id,
            "source": names[item.facts.source],
            "source_uri": raw.uri,
            "source_version": raw.version,
            "embodiment": folder,
            "episode_index": index,
            "task": raw.task,
            "n_frames": len(raw.timestamps_s),
            "duration_s": float(raw.timestamps_s[-1]),
            "fps": reader.layout.fps,
            "operator": "",
            "origins": item.origins,
            "checks": json.dumps(item.warnings, sort_keys=True),
        }
