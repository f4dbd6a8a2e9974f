"""Writes accepted episodes as LeRobot v3.0, one data set for each robot, and the manifest.

Episodes of one robot type with other signals, rates or pictures get a folder of their own
(`cr5-2`), since a LeRobot data set has one set of features.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from components import lerobot, records
from components.ingestion import aligned, calibrated, embodiments
from components.ingestion.groups import Groups, Limits, split
from components.ingestion.measure import Facts
from components.ingestion.raw import Layout, Reader

MANIFEST = records.MANIFEST.append(
    pa.field("lag_corrected_steps", pa.int64())  # rows that `correct_lag` moved; 0 where none
)


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


def folders(accepted: list[Accepted], readers: list[Reader]) -> dict[str, list[Accepted]]:
    """Episodes by the folder they go to, one for each set of features, by first appearance."""
    names: dict[tuple[Any, ...], str] = {}
    found: dict[str, list[Accepted]] = {}
    for item in accepted:
        layout = readers[item.facts.source].layout
        features = (layout, tuple(sorted(item.facts.picture_shapes.items())))
        if features not in names:
            names[features] = _name(layout.robot_type, set(found))
        found.setdefault(names[features], []).append(item)
    return found


def _name(robot_type: str, taken: set[str]) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", robot_type.lower()).strip("-") or "unknown"
    names = (slug if i == 1 else f"{slug}-{i}" for i in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def write(
    root: Path,
    accepted: list[Accepted],
    readers: list[Reader],
    names: list[str],
    groups: Groups,
    limits: Limits,
) -> list[dict[str, Any]]:
    """Write all episodes and `manifest.parquet` to the existing folder `root`; return the rows."""
    rows: list[dict[str, Any]] = []
    grouped = folders(accepted, readers)
    layouts: dict[str, Layout] = {}
    for folder, items in grouped.items():
        layout = layouts[folder] = readers[items[0].facts.source].layout
        writer = lerobot.Writer(
            root / folder,
            robot_type=layout.robot_type,
            fps=layout.fps,
            state_names=layout.state_names,
            action_names=layout.action_names,
            data_file_mb=limits.data_mb,
            video_file_mb=limits.video_mb,
            calibration=calibrated.of(items, readers),
        )
        width = len(layout.state_names) + len(layout.action_names)
        parts = split([item.facts for item in items], width, limits)
        tasks = iter([str(item.facts.task) for item in items])
        for files in groups.finish(root / folder, layout, parts):
            writer.take(files, list(itertools.islice(tasks, len(files.lengths))))
        writer.close()
        rows += [_row(item, folder, index, readers, names) for index, item in enumerate(items)]
    embodiments.write(root, layouts, {name: len(items) for name, items in grouped.items()})
    records.write(root / "manifest.parquet", rows, MANIFEST, sort_by="episode_id")
    return rows


def _row(
    item: Accepted, folder: str, index: int, readers: list[Reader], names: list[str]
) -> dict[str, Any]:
    facts, reader = item.facts, readers[item.facts.source]
    found = reader.who(facts.index, facts.notes)
    return {
        "episode_id": facts.episode_id,
        "source": names[facts.source],
        "source_uri": facts.uri,
        "source_version": reader.version(facts.index),
        "embodiment": folder,
        "episode_index": index,
        "task": facts.task,
        "n_frames": facts.n_frames,
        "duration_s": facts.duration_s,
        "fps": reader.layout.fps,
        "robot_serial": found.get("robot_serial", ""),
        "operator": found.get("operator", ""),
        "origins": item.origins,
        "video_lag_s": facts.numbers.get("video_lag_s"),
        "action_lag_s": facts.numbers.get("action_lag_s"),
        "lag_corrected_steps": facts.notes.get(aligned.NOTE, 0),
        "checks": json.dumps(item.warnings, sort_keys=True),
    }
