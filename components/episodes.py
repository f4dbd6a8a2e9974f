"""Episodes as stages see them, and the reader of `data/episodes`.

`data/episodes/manifest.parquet` names every episode; `data/episodes/<embodiment>/` is one LeRobot
v3.0 data set (one folder for each robot, since a LeRobot data set has one set of features).
Columns are `observation.state`, `action` and `observation.images.<camera>`; every dimension has a
name.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components import calibration, records
from components.calibration import Calibration
from components.errors import DataError

Float = npt.NDArray[np.float32]
Seconds = npt.NDArray[np.float64]
Frames = npt.NDArray[np.uint8]

GRIPPER = re.compile(r"grip|finger|claw|jaw|(?<![a-z])hand(_\d+)?$", re.IGNORECASE)
NO_PLACE = re.compile(r"vel|speed|rate|effort|torque|force|current", re.IGNORECASE)
SIDE = re.compile(r"left|right|(?<![a-z])[lr](?=_)", re.IGNORECASE)
FINGER = re.compile(r"finger|knuckle", re.IGNORECASE)
WHEEL = re.compile(r"wheel", re.IGNORECASE)
TURNS = (2 * math.pi, 360.0)  # a full turn in radians and in degrees
WRAPS = (0.75, 1.02)  # a step of so much of a full turn is a wrapped angle: the turn less a motion
END_EFFECTOR = (("ee_x", "ee_y", "ee_z"), ("eef_x", "eef_y", "eef_z"), ("x", "y", "z"))
SIGNALS = ["episode_index", "task_index", "timestamp", "observation.state", "action"]
WORTH_A_SEEK = 2  # frames whose decoding takes longer than a seek


@dataclass(frozen=True)
class Clip:
    """One camera of one episode: a span of a video file."""

    path: Path
    start_s: float  # of the episode within the file
    end_s: float = math.inf  # what is shown from here on belongs to the next episode

    def frames(self, times_s: Seconds, size: tuple[int, int] | None = None) -> Frames:
        """The frames shown at `times_s` (N,) from the episode's start: uint8 (N, H, W, 3), RGB.

        The nearest frame by presentation time, the earlier of two as near; far from a wanted time
        nothing is decoded. `size` is (height, width). DataError when the file is no readable video.
        """
        import av
        from av.video.reformatter import VideoReformatter

        wanted = np.asarray(times_s, dtype=np.float64) + self.start_s
        order = np.argsort(wanted, kind="stable")
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise ValueError("no decoder for it")
                stream.codec_context.thread_count = 1
                height, width = size or (stream.codec_context.height, stream.codec_context.width)
                images = np.empty((len(wanted), height, width, 3), np.uint8)
                shown = _nearest(container, stream, wanted[order], self.end_s)
                scaler = VideoReformatter()  # one thread: for small frames several cost more
                for index, frame in zip(order, shown, strict=True):
                    image = scaler.reformat(
                        frame, width, height, format="rgb24", interpolation="AREA", threads=1
                    )
                    images[index] = image.to_ndarray()
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise DataError(f"{self.path}: not a readable video: {error}") from error
        return images


def _nearest(container: Any, stream: Any, wanted: Seconds, end_s: float) -> Iterator[Any]:
    """One frame for each time (N,), ascending seconds of the file; only ever walks forward."""
    base, end = float(stream.time_base), end_s / float(stream.time_base) - 0.5
    before = after = decoded = None
    for want in np.minimum(wanted / base, end):
        if decoded is None or (after is not None and _is_far(stream, after.pts, want)):
            decoded = _decoded(container, stream, int(want + 1e-3), end)
            before, after = None, next(decoded, None)
        while after is not None and after.pts < want:
            before, after = after, next(decoded, None)
        if before is None and after is None:
            raise ValueError(f"no frame could be decoded at {want * base:.3f} s")
        if after is None or (before is not None and want - before.pts <= after.pts - want):
            yield before
        else:
            yield after


def _is_far(stream: Any, now: int, want: float) -> bool:
    """Whether enough frames lie between tick `now` and the key frame that `want` needs."""
    index = stream.index_entries
    here = index.search_timestamp(now, any_frame=True)
    return want > now and bool(index.search_timestamp(int(want)) - here > WORTH_A_SEEK)


def _decoded(container: Any, stream: Any, ticks: int, end: float) -> Iterator[Any]:
    """Frames before tick `end` in the order they are shown, the first one not after `ticks`."""
    for packet in _packets(container, stream, ticks):
        for frame in packet.decode():
            if frame.pts is None:
                raise ValueError("a frame without presentation time")
            if frame.pts >= end:
                return
            yield frame


def _packets(container: Any, stream: Any, ticks: int) -> Iterator[Any]:
    """Packets from the last key frame shown at or before `ticks`, or from the first of the file.

    A file is sought by decoding times, and a key frame may be decoded before `ticks` and shown
    after it; then an earlier one is taken.
    """
    target = max(ticks, 0)
    while True:
        container.seek(target, stream=stream, backward=True)
        packets = container.demux(stream)
        first = next(packets)
        earlier = max((first.dts or 0) - 1, 0)
        if first.pts is None or first.pts <= ticks or earlier >= target:
            return itertools.chain([first], packets)
        target = earlier


@dataclass(frozen=True)
class Episode:
    """One recording: T control steps with their signals and one clip for each camera."""

    episode_id: str
    embodiment: str
    task: str
    fps: float
    timestamps_s: Seconds  # (T,), starts at 0
    state: Float  # (T, S)
    action: Float  # (T, A)
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    clips: dict[str, Clip] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.timestamps_s)

    @property
    def duration_s(self) -> float:
        """From the first to the last control step, seconds."""
        return float(self.timestamps_s[-1] - self.timestamps_s[0])

    @cached_property
    def gripper(self) -> Float | None:
        """Measured gripper (T, G): its places among the state, else its rest; None where none."""
        return _columns(self.state, self.state_names)

    @cached_property
    def gripper_command(self) -> Float | None:
        """Commanded gripper (T, G), of the action in the same way; None where none."""
        return _columns(self.action, self.action_names)

    @cached_property
    def end_effector_m(self) -> Float | None:
        """End effector (T, 3), metres in the robot's frame; None where the state has none."""
        for names in END_EFFECTOR:
            if all(name in self.state_names for name in names):
                return self.state[:, [self.state_names.index(name) for name in names]]
        return None

    @cached_property
    def motion(self) -> Float:
        """What moves (T, D): the end effector where known, else the arm, angles without wraps."""
        if self.end_effector_m is not None:
            return self.end_effector_m
        return _unwrapped(self.state[:, [self.state_names.index(n) for n in self.motion_names]])

    @cached_property
    def motion_names(self) -> tuple[str, ...]:
        """Names of the dimensions of `motion`: places, and rates and forces where nothing else."""
        for names in END_EFFECTOR:
            if all(name in self.state_names for name in names):
                return names
        return tuple(_places([name for name in self.state_names if not GRIPPER.search(name)]))

    def hand_of(self, name: str) -> str:
        """Whose a gripper's dimension is: `l`, `r`, or empty for the only hand.

        Left and right fingers of a robot whose arms have no sides are of one hand.
        """
        side = SIDE.search(name)
        fingers = FINGER.search(name) and not self._arms_have_sides
        return side[0][0].lower() if side and not fingers else ""

    @cached_property
    def _arms_have_sides(self) -> bool:
        names = [n for n in (*self.state_names, *self.action_names) if not GRIPPER.search(n)]
        return any(SIDE.search(name) and not WHEEL.search(name) for name in names)


def gripper_names(names: Sequence[str]) -> list[str]:
    """Those of a gripper: where it tells places, no rates and forces."""
    return _places([name for name in names if GRIPPER.search(name)])


def _places(names: list[str]) -> list[str]:
    return [name for name in names if not NO_PLACE.search(name)] or names


def _columns(values: Float, names: tuple[str, ...]) -> Float | None:
    index = [names.index(name) for name in gripper_names(names)]
    return values[:, index] if index else None


def _unwrapped(places: Float) -> Float:
    """Places (T, D) without the jumps of angles that start again after a full turn."""
    largest = np.abs(np.diff(places, axis=0)).max(axis=0, initial=0.0)
    for turn in TURNS:
        wraps = (largest > WRAPS[0] * turn) & (largest < WRAPS[1] * turn)
        if wraps.any():
            places = places.copy()
            places[:, wraps] = np.unwrap(places[:, wraps], axis=0, period=turn)
    return places


class Episodes:
    """All episodes of `data/episodes`, read one at a time; DataError names what is damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = records.read(root / "manifest.parquet", records.MANIFEST)
        self.ids: list[str] = self.manifest["episode_id"].to_pylist()
        self._places = {episode_id: place for place, episode_id in enumerate(self.ids)}
        self._sets: dict[str, _LeRobot] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Episode]:
        return (self[episode_id] for episode_id in self.ids)

    def __getitem__(self, episode_id: str) -> Episode:
        row = self.row(episode_id)
        return self.embodiment(row["embodiment"]).episode(row["episode_index"], episode_id)

    def row(self, episode_id: str) -> dict[str, Any]:
        """The manifest's row of an episode. DataError when it has none."""
        if episode_id not in self._places:
            raise DataError(f"{self.root}: no episode {episode_id}; it has {len(self.ids)} others.")
        rows: list[dict[str, Any]] = self.manifest.slice(self._places[episode_id], 1).to_pylist()
        return rows[0]

    def column(self, name: str) -> dict[str, Any]:
        """One column of the manifest, by episode."""
        return dict(zip(self.ids, self.manifest[name].to_pylist(), strict=True))

    def embodiment(self, name: str) -> _LeRobot:
        """The LeRobot data set of one embodiment."""
        if name not in self._sets:
            self._sets[name] = _LeRobot(self.root / name, name)
        return self._sets[name]


class _LeRobot:
    """One LeRobot v3.0 data set as ingestion writes it."""

    def __init__(self, root: Path, embodiment: str) -> None:
        self.root, self.embodiment = root, embodiment
        self.info: dict[str, Any] = json.loads((root / "meta/info.json").read_text())
        files = sorted((root / "meta/episodes").rglob("*.parquet"))
        self._places = pa.concat_tables([_placed(f) for f in files])
        self._row_of = {
            index: row for row, index in enumerate(self._places["episode_index"].to_pylist())
        }
        tasks = pq.ParquetFile(root / "meta/tasks.parquet").read().to_pydict()
        names = tasks.get("task") or tasks["__index_level_0__"]
        self.tasks: dict[int, str] = dict(zip(tasks["task_index"], names, strict=True))
        self._data: tuple[str, pa.Table, npt.NDArray[np.int64]] | None = None

    @property
    def cameras(self) -> list[str]:
        """Names of the video features, with their `observation.images.` prefix."""
        return sorted(k for k, f in self.info["features"].items() if f["dtype"] == "video")

    def calibration(self) -> dict[str, Calibration]:
        """Of the cameras that stand still and whose place is known, by feature."""
        said = {key: calibration.of(self.info["features"][key]) for key in self.cameras}
        return {key: found for key, found in said.items() if found is not None}

    def episode(self, index: int, episode_id: str) -> Episode:
        """Read the signals of one episode; video is only named, not opened."""
        (row,) = self._places.slice(self._row_of[index], 1).to_pylist()
        rows = self._rows(row, index)
        features = self.info["features"]
        clips = {
            key: Clip(
                self.root
                / self.info["video_path"].format(
                    video_key=key,
                    chunk_index=row[f"videos/{key}/chunk_index"],
                    file_index=row[f"videos/{key}/file_index"],
                ),
                row[f"videos/{key}/from_timestamp"],
                row[f"videos/{key}/to_timestamp"],
            )
            for key in self.cameras
            if row.get(f"videos/{key}/file_index") is not None
        }
        times = rows["timestamp"].to_numpy().astype(np.float64)
        return Episode(
            episode_id=episode_id,
            embodiment=self.embodiment,
            task=self.tasks[rows["task_index"][0].as_py()],
            fps=float(self.info["fps"]),
            timestamps_s=times - times[0],
            state=_matrix(rows["observation.state"]),
            action=_matrix(rows["action"]),
            state_names=tuple(features["observation.state"]["names"]),
            action_names=tuple(features["action"]["names"]),
            clips=clips,
        )

    def _rows(self, place: dict[str, Any], index: int) -> pa.Table:
        """An episode's rows of its data file, which stand together and in the order of episodes.

        The last file read is kept.
        """
        name = self.info["data_path"].format(
            chunk_index=place["data/chunk_index"], file_index=place["data/file_index"]
        )
        if self._data is None or self._data[0] != name:
            table = pq.ParquetFile(self.root / name).read(columns=SIGNALS).combine_chunks()
            self._data = (name, table, _ascending(table["episode_index"].to_numpy(), name))
        _, table, of = self._data
        first, last = np.searchsorted(of, [index, index + 1])
        return table.slice(first, last - first)


def _ascending(of: npt.NDArray[np.int64], name: str) -> npt.NDArray[np.int64]:
    """The same numbers of episodes, one of each row. DataError where one falls."""
    if (falls := np.flatnonzero(np.diff(of) < 0)).size:
        row = int(falls[0]) + 1
        raise DataError(
            f"{name}: row {row}: expected episode_index {of[row - 1]} or more, got {of[row]}; "
            "episodes must stand one after the other. Run ingestion again."
        )
    return of


def _placed(path: Path) -> pa.Table:
    """Where episodes lie; their statistics are most of the table, and left out."""
    with pq.ParquetFile(path) as file:
        names = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
        return file.read(columns=names)


def _matrix(column: pa.ChunkedArray) -> Float:
    """A column of lists (T rows of D numbers) as float32 (T, D)."""
    flat = np.asarray(column.combine_chunks().flatten(), dtype=np.float32)
    return flat.reshape(len(column), -1)
