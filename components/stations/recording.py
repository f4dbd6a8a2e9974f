"""Records demonstrations of a station's experts as LeRobot v3.0, with ground truth beside it.

The truth (contact, grasp, object moving, success for each frame) goes to `<out>.truth/`, a folder
that no stage opens. Seeds below EVALUATION_SEEDS are for recordings, those from it on for trials.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from components import lerobot
from components.calibration import Calibration, agreed
from components.encoding import encode
from components.errors import UserError
from components.outputs import whole_folder, write_table
from components.stations.metaworld import SENTENCES, USUAL, MetaworldStation, Truth
from components.stations.station import Float

EVALUATION_SEEDS = 1_000_000
RETRY_SEEDS = 100_000  # an expert that fails is tried again so many seeds further
DEMO_TASKS = ("door-open", "drawer-open", "window-open", "button-press-topdown")
STEPS_AFTER_SUCCESS = 10
MAX_STEPS = 400


class Job(NamedTuple):
    """One episode to record."""

    number: int
    task: str
    seed: int
    folder: Path
    cameras: tuple[str, ...]


class Demonstration(NamedTuple):
    """One success, and what is known of its cameras."""

    recording: lerobot.Recording
    truth: list[Truth]
    calibration: dict[str, Calibration]


def record(
    station: str, tasks: list[str], episodes: int, out: Path, seed: int = 0,
    cameras: tuple[str, ...] = USUAL,
) -> Path:  # fmt: skip
    """Record `episodes` successful demonstrations in all, tasks in turn, to `out`; return `out`.

    UserError for an unknown station, task or camera, a seed kept for trials, or when `out` exists.
    """
    if station != "metaworld":
        raise UserError(f"record: unknown station {station!r}; expected metaworld.")
    _refuse_existing(out)
    with tempfile.TemporaryDirectory() as scratch:
        _write(out, _demonstrations(tasks, episodes, Path(scratch), seed, cameras))
    return out


def record_demo(
    out: Path, episodes: int = 100, seed: int = 0, tasks: tuple[str, ...] = DEMO_TASKS
) -> Path:
    """The recordings of `make demo`: four tasks, then three episodes broken on purpose at the end.

    The broken ones are copies of the first three: NaN in a signal, a video cut off in the middle,
    and a clock that jumps back. Ingestion must quarantine exactly these.
    """
    with tempfile.TemporaryDirectory() as scratch:
        good = _demonstrations(list(tasks), max(episodes, 3), Path(scratch), seed)
        nan, cut, jump = (demonstration.recording for demonstration in good[:3])
        state = nan.state.copy()
        state[len(state) // 2, 0] = np.nan
        video = Path(scratch) / "cut.mp4"
        first = sorted(cut.videos)[0]
        data = cut.videos[first].read_bytes()
        video.write_bytes(data[: len(data) // 2])
        times = jump.timestamps_s.copy()
        times[len(times) // 2 :] -= 0.5
        broken = (
            replace(nan, state=state),
            replace(cut, videos={**cut.videos, first: video}),
            replace(jump, timestamps_s=times),
        )
        copies = [d._replace(recording=b) for d, b in zip(good[:3], broken, strict=True)]
        _write(out, good + copies)
    return out


def _demonstrations(
    tasks: list[str], episodes: int, scratch: Path, seed: int, cameras: tuple[str, ...] = USUAL
) -> list[Demonstration]:
    MetaworldStation(cameras=cameras)  # or it says which it has
    if unknown := [task for task in tasks if task not in SENTENCES]:
        raise UserError(
            f"record: unknown tasks {unknown}; expected some of {', '.join(SENTENCES)}."
        )
    if episodes < 1 or not tasks:
        raise UserError(
            f"record: expected an episode or more of some task; got {episodes} of {tasks}."
        )
    if not 0 <= seed <= RETRY_SEEDS - episodes:
        raise UserError(f"record: expected a seed of 0 to {RETRY_SEEDS - episodes}; got {seed}.")
    jobs = [Job(i, tasks[i % len(tasks)], seed + i, scratch, cameras) for i in range(episodes)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_episode, jobs, chunksize=4))


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"record: {out} exists already; name a new folder or remove it.")


def _write(out: Path, demonstrations: list[Demonstration]) -> None:
    """The data set and the truth beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_truth(out.with_name(f"{out.name}.truth"), [d.truth for d in demonstrations])
    with whole_folder(out) as folder:
        lerobot.write(
            folder,
            [d.recording for d in demonstrations],
            robot_type=MetaworldStation.embodiment,
            fps=MetaworldStation.fps,
            state_names=MetaworldStation.state_names,
            action_names=MetaworldStation.action_names,
            calibration=agreed(d.calibration for d in demonstrations),
        )


def _episode(job: Job) -> Demonstration:
    """Record one success; an expert that fails is tried again on a later seed."""
    for attempt in range(10):
        demonstration = _attempt(job, job.seed + attempt * RETRY_SEEDS)
        if demonstration.truth[-1].success:
            return demonstration
    raise UserError(f"record: the expert of {job.task} failed on 10 seeds from {job.seed}.")


_stations: dict[tuple[str, ...], MetaworldStation] = {}


def _attempt(job: Job, seed: int) -> Demonstration:
    station = _stations.setdefault(job.cameras, MetaworldStation(cameras=job.cameras))
    station.reset(job.task, seed)
    states: list[Float] = []
    actions: list[Float] = []
    truth: list[Truth] = []
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in station.cameras}
    done_since = 0
    while len(states) < MAX_STEPS and done_since <= STEPS_AFTER_SUCCESS:
        seen = station.observe()
        action = station.expert()
        states.append(seen.state)
        actions.append(action)
        truth.append(station.truth())
        for camera, image in seen.images.items():
            frames[camera].append(image)
        station.step(action)
        done_since = done_since + 1 if station.succeeded() else 0
    videos = {}
    for camera, images in frames.items():
        path = job.folder / f"{job.number:06d}-{camera}.mp4"
        encode(path, images, station.fps)
        videos[f"observation.images.{camera}"] = path
    steps = len(states)
    recorded = lerobot.Recording(
        task=SENTENCES[job.task],
        timestamps_s=np.arange(steps) / station.fps,
        state=np.stack(states),
        action=np.stack(actions),
        videos=videos,
    )
    known = {f"observation.images.{name}": c for name, c in station.calibration().items()}
    return Demonstration(recorded, truth, known)


def _write_truth(folder: Path, truths: list[list[Truth]]) -> None:
    """One row a frame: episode_index, frame_index and the fields of Truth."""
    rows = [
        {"episode_index": episode, "frame_index": frame, **moment._asdict()}
        for episode, truth in enumerate(truths)
        for frame, moment in enumerate(truth)
    ]
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as partial:
        write_table(partial / "truth.parquet", pa.Table.from_pylist(rows))
