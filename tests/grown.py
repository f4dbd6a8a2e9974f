"""Recordings to grow: a real data set repeated, and made ones in three formats, as sources.

Every episode differs in its state, so that none is a duplicate of another.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components import lerobot
from components.encoding import encode
from components.outputs import sha256

CAMERA = "observation.images.front"


def listing(path: Path, *folders: Path) -> Path:
    """`inputs/sources.json` for some folders."""
    sources = [
        {
            "uri": str(folder),
            "name": folder.name,
            "objects": [
                {"path": str(p.relative_to(folder)), "size": p.stat().st_size, "sha256": sha256(p)}
                for p in sorted(q for q in folder.rglob("*") if q.is_file())
            ],
        }
        for folder in folders
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sources": sources}))
    return path


def film(path: Path, seed: int, rows: int, side: int = 64, fps: float = 20.0) -> Path:
    """A video of noise that moves."""
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, (np.roll(noise, row, axis=0) for row in range(rows)), fps)
    return path


def signals(number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """State (T, 3) and action (T, 2) of one episode."""
    random = np.random.default_rng(number)
    walk = np.cumsum(random.normal(0, 0.01, (rows, 3)), axis=0).astype(np.float32)
    return walk, (walk[:, :2] + 0.01).astype(np.float32)


def lerobot_v3(
    root: Path, numbers: range, *, rows: int = 40, side: int = 64, video_file_mb: int = 1
) -> Path:
    """A v3.0 data set; more numbers from the same start give the same files and some more."""
    writer = lerobot.Writer(
        root,
        robot_type="grower",
        fps=20.0,
        state_names=("x", "y", "gripper"),
        action_names=("dx", "dy"),
        data_file_mb=1,
        video_file_mb=video_file_mb,
    )
    for number in numbers:
        state, action = signals(number, rows)
        video = film(root.parent / f"films/{number}-{rows}-{side}.mp4", number, rows, side)
        times = np.arange(rows) / 20.0
        writer.add(lerobot.Recording(f"task {number % 3}", times, state, action, {CAMERA: video}))
    writer.close()
    return root


def hdf5(root: Path, numbers: range, *, rows: int = 40, side: int = 64) -> Path:
    """A robomimic file with pictures for each episode."""
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        state, action = signals(number, rows)
        noise = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
        with h5py.File(root / f"panda_{number:04d}.hdf5", "w") as file:
            file.create_group("data").attrs["control_freq"] = 20.0
            demo = file.create_group("data/demo_0")
            demo["actions"], demo["obs/joint_pos"] = action, state
            demo["obs/agentview_image"] = np.stack([np.roll(noise, r, axis=0) for r in range(rows)])
    return root


def repeated(source: Path, root: Path, copies: int, first: int = 0) -> Path:
    """A LeRobot v2 data set several times in one: videos as they are, the first state shifted."""
    rows = sorted(source.rglob("episode_*.parquet"))
    shutil.copytree(source / "meta", root / "meta", dirs_exist_ok=True)
    for copy in range(first, copies):
        for path in rows:
            number = copy * len(rows) + int(path.stem.split("_")[1])
            table = pq.read_table(path)
            place = table.column_names.index("observation.state")
            values = table["observation.state"].to_pylist()
            values[0] = [values[0][0] + 1e-4 * (copy + 1), *values[0][1:]]
            column = pa.array(values, table.schema.field(place).type)
            target = root / path.relative_to(source).with_name(f"episode_{number:06d}.parquet")
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.set_column(place, table.schema.field(place), column), target)
            for video in source.rglob(f"{path.stem}.mp4"):
                other = root / video.relative_to(source).with_name(f"episode_{number:06d}.mp4")
                other.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(video, other)
    return root


def heavy(path: Path, megabytes: int, *, side: int = 720, rows: int = 60, seed: int = 0) -> Path:
    """A video of large packets: noise as Motion JPEG, each picture a key picture."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=20)
        stream.width = stream.height = side
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.bit_rate = int(megabytes * 8e6 * 20 / rows)
        stream.options = {"qmin": "1", "qmax": "3"}
        for _ in range(rows):
            image = random.integers(0, 255, (side, side, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def v2(root: Path, episodes: int, video: Path, rows: int = 60) -> Path:
    """A v2.1 data set of one video again and again, each time with other signals."""
    (root / "meta").mkdir(parents=True)
    vector = {"dtype": "float32", "shape": [3], "names": ["x", "y", "gripper"]}
    features = {
        "observation.state": vector,
        "action": {**vector, "shape": [2], "names": ["dx", "dy"]},
        CAMERA: {"dtype": "video", "shape": [1, 1, 3], "names": None},
    }
    info = {"codebase_version": "v2.1", "robot_type": "grower", "fps": 20, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "stir"}))
    lines = [json.dumps({"episode_index": n, "tasks": ["stir"]}) for n in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    for number in range(episodes):
        state, action = signals(number, rows)
        columns = {
            "observation.state": state.tolist(),
            "action": action.tolist(),
            "timestamp": (np.arange(rows) / 20).astype(np.float32),
            "task_index": np.zeros(rows, np.int64),
        }
        data = root / f"data/chunk-000/episode_{number:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), data)
        target = root / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, target)
    return root


def threads_pinned() -> dict[str, str]:
    """The environment of a stage."""
    return os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
