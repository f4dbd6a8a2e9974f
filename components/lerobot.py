"""The LeRobot v3.0 data set format on disk: the writer that recorder and ingestion share.

Format: many episodes in one Parquet file, one row a frame, and in one video file; `meta/episodes`
says where each episode's rows and video spans lie (huggingface/lerobot, `codebase_version` "v3.0").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from components import lerobot_stats
from components.calibration import KEY, Calibration
from components.lerobot_files import Files, rows_of, stats_of
from components.lerobot_files import Recording as Recording  # noqa: PLC0414  (writers use both)
from components.outputs import write_json, write_table
from components.packets import Joiner, Shape, Span, video_stream

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK_FILES = 1000
DATA_FILE_MB, VIDEO_FILE_MB = 100, 500  # LeRobot's own


def write(
    root: Path,
    recordings: list[Recording],
    *,
    robot_type: str,
    fps: float,
    state_names: tuple[str, ...],
    action_names: tuple[str, ...],
    calibration: Mapping[str, Calibration] | None = None,
) -> None:
    """Write a whole data set to the folder `root`; `calibration` by camera's feature."""
    writer = Writer(
        root,
        robot_type=robot_type,
        fps=fps,
        state_names=state_names,
        action_names=action_names,
        calibration=calibration,
    )
    for recording in recordings:
        writer.add(recording)
    writer.close()


class Writer:
    """Adds episodes one at a time to a data set in `root`; `close` writes its metadata.

    One data file's rows and one episode's packets are held in memory. Signals may hold NaN and a
    video of `videos` may be damaged (a recorder keeps what it got); a span must be readable.
    """

    def __init__(
        self,
        root: Path,
        *,
        robot_type: str,
        fps: float,
        state_names: tuple[str, ...],
        action_names: tuple[str, ...],
        data_file_mb: int = DATA_FILE_MB,
        video_file_mb: int = VIDEO_FILE_MB,
        calibration: Mapping[str, Calibration] | None = None,
    ) -> None:
        self.root, self.robot_type = root, robot_type
        self.fps = int(fps) if float(fps).is_integer() else float(fps)
        self.state_names, self.action_names = state_names, action_names
        self.data_file_mb, self.video_file_mb = data_file_mb, video_file_mb
        self._calibration = calibration or {}
        self._tasks: dict[str, int] = {}
        self._count = 0  # of episodes
        self._open: list[dict[str, Any]] = []  # rows of meta/episodes of the file being written
        self._written: list[pa.Table] = []  # those of finished files
        self._joiners: dict[str, Joiner] = {}
        self._cameras: dict[str, dict[str, Any]] = {}
        self._rows: list[pa.Table] = []
        self._files = self._frames = 0

    def add(self, recording: Recording) -> int:
        """Append one episode; return its index. av.FFmpegError when a span cannot be read."""
        rows = rows_of(recording)
        pictures = {**{k: Span(p) for k, p in recording.videos.items()}, **recording.spans}
        stats = stats_of(rows, pictures)
        videos = self._add_videos(recording)
        self._register([recording.task], [rows.num_rows], rows, [stats], [videos])
        if sum(table.nbytes for table in self._rows) >= self.data_file_mb * 1e6:
            self._flush()
        return self._count - 1

    def take(self, files: Files, tasks: list[str]) -> None:
        """Append the episodes of finished files, whose videos lie under this writer's next number.

        The number is `files_written`; see `video_path`.
        """
        number = self.files_written
        videos: list[dict[str, Any]] = [{} for _ in tasks]
        for key, spans in sorted(files.spans.items()):
            for place, (start_s, end_s) in zip(videos, spans, strict=True):
                times = {"from_timestamp": start_s, "to_timestamp": end_s}
                place.update(_place(f"videos/{key}", number))
                place.update({f"videos/{key}/{name}": value for name, value in times.items()})
        self._register(tasks, files.lengths, files.rows, files.stats, videos)
        for key in files.spans:
            if key not in self._cameras:
                path = self.root / video_path(key, number)
                if feature := _camera(path, self.fps):
                    self._cameras[key] = feature
        self._flush()

    @property
    def files_written(self) -> int:
        """How many files of signals are finished, and so the number of the next."""
        return self._files

    def _register(
        self,
        tasks: list[str],
        lengths: list[int],
        rows: pa.Table,
        stats: list[dict[str, Any]],
        videos: list[dict[str, Any]],
    ) -> None:
        """Give episodes, whose rows follow one another, their positions in the data set."""
        first, start = self._count, self._frames
        numbers = [self._tasks.setdefault(task, len(self._tasks)) for task in tasks]
        for index, own in enumerate(lengths):
            end = self._frames + own
            placed = {
                "episode_index": lerobot_stats.of_constant(first + index, own),
                "index": lerobot_stats.of_range(self._frames, end),
                "task_index": lerobot_stats.of_constant(numbers[index], own),
            }
            signals = {name: stats[index][name] for name in rows.column_names}
            every = {**signals, **placed, **stats[index]}
            self._open.append(
                {
                    "episode_index": first + index,
                    "tasks": [tasks[index]],
                    "length": own,
                    **_place("data", self._files),
                    "dataset_from_index": self._frames,
                    "dataset_to_index": end,
                    **videos[index],
                    **{f"stats/{n}/{k}": every[n][k] for n in every for k in lerobot_stats.KEYS},
                }
            )
            self._frames = end
        self._count += len(tasks)
        columns = {
            "episode_index": np.repeat(np.arange(first, first + len(tasks)), lengths),
            "index": np.arange(start, self._frames),
            "task_index": np.repeat(np.array(numbers), lengths),
        }
        for name, values in columns.items():
            rows = rows.append_column(name, pa.array(values))
        self._rows.append(rows)

    def close(self) -> None:
        """Finish open files and write `meta/`."""
        self._flush()
        for joiner in self._joiners.values():
            joiner.close()
        write_json(self.root / "meta/info.json", self._info())
        episodes = self._episode_table()
        write_json(self.root / "meta/stats.json", lerobot_stats.join(episodes))
        write_table(self.root / "meta/tasks.parquet", _task_table(list(self._tasks)))
        write_table(self.root / "meta/episodes/chunk-000/file-000.parquet", episodes)

    def _add_videos(self, recording: Recording) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for key in sorted({*recording.videos, *recording.spans}):
            joiner = self._joiners.setdefault(key, self._joiner(key))
            if key in recording.spans:
                span, rows_s = recording.spans[key], recording.timestamps_s
                source = span.path
                file, start_s, end_s = joiner.append(span, rows_s)
            else:
                source = recording.videos[key]
                file, start_s, end_s = joiner.keep(source, len(recording.timestamps_s) / self.fps)
            if key not in self._cameras and (feature := _camera(source, self.fps)):
                self._cameras[key] = feature
            row |= _place(f"videos/{key}", file)
            row |= {f"videos/{key}/from_timestamp": start_s, f"videos/{key}/to_timestamp": end_s}
        return row

    def _joiner(self, key: str) -> Joiner:
        def name(number: int) -> Path:
            return self.root / video_path(key, number)

        return Joiner(name, self.video_file_mb * 1_000_000)

    def _flush(self) -> None:
        """Write the rows held so far as one data file."""
        if self._rows:
            chunk, file = divmod(self._files, CHUNK_FILES)
            path = DATA_PATH.format(chunk_index=chunk, file_index=file)
            write_table(self.root / path, pa.concat_tables(self._rows))
            self._rows, self._files = [], self._files + 1
            names = dict.fromkeys(key for row in self._open for key in row)
            self._written.append(pa.table({n: [r.get(n) for r in self._open] for n in names}))
            self._open = []

    def _info(self) -> dict[str, Any]:
        for key in self._cameras.keys() & self._calibration.keys():
            self._cameras[key]["info"][KEY] = self._calibration[key].model_dump(mode="json")
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self._count,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": self.data_file_mb,
            "video_files_size_in_mb": self.video_file_mb,
            "fps": self.fps,
            "splits": {"train": f"0:{self._count}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": {
                "observation.state": _vector(self.state_names),
                "action": _vector(self.action_names),
                **dict(sorted(self._cameras.items())),
                "timestamp": {"dtype": "float32", "shape": [1], "names": None},
                **{
                    key: {"dtype": "int64", "shape": [1], "names": None}
                    for key in ("frame_index", "episode_index", "index", "task_index")
                },
            },
        }

    def _episode_table(self) -> pa.Table:
        """All rows of `meta/episodes`; statistics after what every episode has."""
        whole = pa.concat_tables(self._written or [pa.table({})], promote_options="permissive")
        names = sorted(whole.column_names, key=lambda name: name.startswith("stats/"))
        whole = whole.select(names).combine_chunks()
        for name in _place("meta/episodes", 0):
            whole = whole.append_column(name, pa.array(np.zeros(len(whole), np.int64)))
        return whole


def video_path(key: str, number: int) -> str:
    """Where the file with a number of one camera lies in a data set."""
    chunk, file = divmod(number, CHUNK_FILES)
    return VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)


def _place(what: str, number: int) -> dict[str, int]:
    chunk, file = divmod(number, CHUNK_FILES)
    return {f"{what}/chunk_index": chunk, f"{what}/file_index": file}


def _task_table(tasks: list[str]) -> pa.Table:
    """Sentences are the pandas index, as `pandas.read_parquet` and so LeRobot expect it."""
    column = {"metadata": None, "numpy_type": "int64", "pandas_type": "int64"}
    index = {"metadata": None, "numpy_type": "object", "pandas_type": "unicode"}
    index_name = "__index_level_0__"
    pandas = {
        "index_columns": [index_name],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **column},
            {"name": None, "field_name": index_name, **index},
        ],
        "creator": {"library": "wamflow", "version": "1"},
        "pandas_version": "2.3.3",
    }
    table = pa.table(
        {"task_index": np.arange(len(tasks)), index_name: pa.array(tasks, pa.string())}
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _vector(names: tuple[str, ...]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}


def _camera(path: Path, fps: float) -> dict[str, Any] | None:
    """The feature of a camera by what its video really is; None where the video is damaged."""
    try:
        with av.open(str(path)) as container:
            shape = Shape.of(video_stream(container))
    except (av.FFmpegError, IndexError, ValueError):
        return None
    return {
        "dtype": "video",
        "shape": [shape.height, shape.width, 3],
        "names": ["height", "width", "channel"],
        "info": {
            "video.height": shape.height,
            "video.width": shape.width,
            "video.codec": shape.codec,
            "video.pix_fmt": shape.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,  # only pictures are copied
        },
    }
