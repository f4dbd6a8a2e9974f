"""What both LeRobot readers need: info.json, tables, JSON lines, and the cameras of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from components import calibration
from components.calibration import Calibration
from components.errors import DataError
from components.ingestion import columns, declared, modality
from components.ingestion.raw import Layout
from components.ingestion.reasons import Problem, Reason
from components.ingestion.source import Source

if TYPE_CHECKING:
    from components.ingestion.rows import Rows

V = TypeVar("V")
FREE_BYTES, RATIO = 2**28, 64  # a Parquet file may unpack to so much, or so many times its size
MAX_FPS = 1e5


def info(source: Source) -> dict[str, Any]:
    """`meta/info.json`. DataError when it is no mapping or has no rate of frames."""
    try:
        values = json.loads(source.file("meta/info.json").read_bytes())
        if 0 < float(values["fps"]) <= MAX_FPS and isinstance(values.get("features", {}), dict):
            return dict(values)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    raise damaged(source, "meta/info.json", "a JSON mapping with fps above 0 and features")


def said(values: dict[str, Any]) -> dict[str, Any]:
    """What info.json says beside the features, whose names are columns."""
    return {key: value for key, value in values.items() if key != "features"}


def damaged(source: Source, path: str, expected: str) -> DataError:
    """The error for metadata without which no episode of a source can be told."""
    return DataError(
        f"ingestion: source {source.uri}: {path} is damaged: expected {expected}; "
        "repair the file, or take the source out of ingestion.sources."
    )


def layout(source: Source, values: dict[str, Any], rows: Rows, cameras: tuple[str, ...]) -> Layout:
    """What all episodes share."""
    return Layout(
        robot_type=str(values.get("robot_type") or "unknown"),
        fps=source.said.fps or float(values["fps"]),
        state_names=modality.names(source, "state", rows.state.names),
        action_names=modality.names(source, "action", rows.action.names),
        cameras=cameras,
        taken=(rows.state.columns, rows.action.columns),
        calibration=tuple(sorted(_calibrated(source, values, cameras).items())),
    )


def _calibrated(
    source: Source, values: dict[str, Any], cameras: tuple[str, ...]
) -> dict[str, Calibration]:
    """By canonical camera, where info.json has it."""
    found = {}
    for name, feature in values.get("features", {}).items():
        try:
            said = calibration.of(feature)
        except ValueError as error:
            raise damaged(source, "meta/info.json", f"a calibration of {name} ({error})") from None
        if said is not None and (camera := columns.camera(name)) in cameras:
            found[camera] = said
    return found


def claims(values: dict[str, Any], episodes: int) -> list[str]:
    """What info.json claims and the files do not hold."""
    found = []
    total = values.get("total_episodes")
    if isinstance(total, int) and total != episodes:
        found.append(f"info.json claims {total} episodes, {episodes} are here")
    splits = values.get("splits")
    for name, span in sorted(splits.items()) if isinstance(splits, dict) else []:
        start, _, end = str(span).partition(":")
        if start.isdigit() and end.isdigit() and int(end) > episodes:
            claimed = int(end) - int(start)
            found.append(f"split {name} ({span}) claims {claimed} episodes, {episodes} are here")
    return found


def table(source: Source, path: str) -> pa.Table | Problem:
    """A Parquet file, or why it cannot be read."""
    try:
        local = source.file(path)
        texts = [f.name for f in pq.read_schema(local) if pa.types.is_string(f.type)]
        file = pq.ParquetFile(local, read_dictionary=texts)  # equal texts are kept once
        if (size := _unpacked_bytes(file.metadata)) > max(FREE_BYTES, RATIO * local.stat().st_size):
            return Problem(
                Reason.UNREADABLE_DATA, f"{path}: unpacks to {size} bytes; never unpacked"
            )
        found = file.read()
        if len(set(found.column_names)) == len(found.column_names):
            return found
        return Problem(Reason.UNREADABLE_DATA, f"{path}: a column is there twice")
    except (pa.ArrowException, OSError) as error:
        return Problem(Reason.UNREADABLE_DATA, f"{path}: {' '.join(str(error).split())[:200]}")


def _unpacked_bytes(found: pq.FileMetaData) -> int:
    """What a file holds in memory: its pages, or eight bytes a value where runs are stored once."""
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    chunks = [group.column(c) for group in groups for c in range(group.num_columns)]
    return sum(max(c.total_uncompressed_size, 8 * c.num_values) for c in chunks)


def json_lines(
    source: Source, path: str, keys: tuple[str, ...], warnings: list[str]
) -> Iterator[dict[str, Any]]:
    """Rows of a `.jsonl` file that have the keys; a line that has not becomes a warning."""
    text = source.file(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            int(row[keys[0]])
            yield {**row, **{key: row[key] for key in keys}}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            warnings.append(f"{path} line {number} is no mapping with {', '.join(keys)}; skipped")


def _path(videos: dict[int, V]) -> str:
    """Of the first episode's video."""
    first = videos[min(videos)]
    return first if isinstance(first, str) else str(first[0])  # type: ignore[index]


def cameras(
    source: Source,
    values: dict[str, Any],
    found: dict[str, dict[int, V]],
    indices: list[int],
    share: float,
    warnings: list[str],
) -> dict[str, dict[int, V]]:
    """Canonical camera -> {episode: its video}, without cameras that too few episodes have."""
    features = values.get("features", {})
    said = [k for k, f in features.items() if isinstance(f, dict) and f.get("dtype") == "video"]
    warnings += [
        f"camera {k} is declared but has no video; dropped" for k in said if not found.get(k)
    ]
    kept: dict[str, dict[int, V]] = {}
    warnings += declared.videos(source, values, {k: _path(v) for k, v in found.items() if v})
    for key, videos in sorted(found.items()):
        have = len(videos.keys() & set(indices))
        if key not in said:
            warnings.append(f"camera {key} has videos but is not declared; taken")
        if have and have < share * len(indices):
            warnings.append(
                f"camera {key}: {have} of {len(indices)} episodes have a video; dropped"
            )
        elif have:
            kept[columns.camera(key)] = videos
    return kept
