"""Frames of the drawn events of each episode, decoded once into one plain file an episode.

Only frames of events that are drawn, or held out, are decoded. A file is kept in the shard store
under (episode, cameras, spans, size), so another training, or one with more episodes, decodes what
is new. Every frame is a fixed number of bytes: a batch reads its frames and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.episodes import Episodes
from components.errors import TemporaryError
from components.shards import Shards, key

MOST_FRAMES = 512  # decoded at once, so that long events fit into memory
SAID_EVERY_S = 10.0
Spans = tuple[tuple[int, int], ...]  # first frame and one past the last, ascending, apart


class Job(NamedTuple):
    """Frames of one episode to be decoded: (n, V, K, K, 3) uint8 in a file."""

    episodes: Path
    episode_id: str
    cameras: tuple[str, ...]
    spans: Spans
    size_px: int
    target: Path


def joined(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Spans:
    """Spans that cover all events of an episode and nothing else."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return tuple(spans)


def lay_out(jobs: Sequence[Job], timeout_s: float, processes: int | None = None) -> int:
    """Put the frames of every job at its target; how many episodes had to be decoded.

    Decodes in `processes`, by default as many as there are cores.
    TemporaryError when no episode is done within `timeout_s`, or a decoding process is killed.
    """
    store = Shards("pretraining/frames", {})
    names = [key(*job[1:5]) for job in jobs]
    new = [
        (name, job)
        for name, job in zip(names, jobs, strict=True)
        if not store.link(name, job.target)
    ]
    with store.scratch() as folder:
        inside = [job._replace(target=folder / name) for name, job in new]
        for done in _decoded(inside, timeout_s, processes):
            store.keep_file(new[done][0], inside[done].target)
            if not store.link(new[done][0], new[done][1].target):
                inside[done].target.rename(new[done][1].target)
    return len(new)


def _decoded(jobs: Sequence[Job], timeout_s: float, processes: int | None) -> Iterator[int]:
    """Decode all jobs; the index of each as it is done."""
    if not jobs:
        return
    workers = min(len(jobs), processes or os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        left = {pool.submit(decode, job): index for index, job in enumerate(jobs)}
        said = time.monotonic()
        while left:
            done, _ = wait(left, timeout_s, FIRST_COMPLETED)
            if not done:
                raise _late(jobs[min(left.values())], timeout_s)
            for future in done:
                _raise(future, jobs[left[future]])
                yield left.pop(future)
            if time.monotonic() - said > SAID_EVERY_S:
                said = time.monotonic()
                print(f"decoded {len(jobs) - len(left)}/{len(jobs)} new episodes", flush=True)


def _raise(future: Future[None], job: Job) -> None:
    try:
        future.result()
    except BrokenProcessPool:
        raise TemporaryError(
            f"{job.episodes}: a process that decodes video was killed, near episode "
            f"{job.episode_id}; expected it to live. Memory may be short; run again to go on."
        ) from None


def _late(job: Job, timeout_s: float) -> TemporaryError:
    for process in multiprocessing.active_children():
        process.kill()  # or leaving the pool would wait for it
    return TemporaryError(
        f"{job.episodes}: no episode was decoded within pretraining.timeout_s ({timeout_s:g} s), "
        f"waiting for {job.episode_id}. The disk is slow or gone; run again to go on."
    )


_reader = cache(Episodes)  # one in each process


def decode(job: Job) -> None:
    """Write one episode's file; a camera that the robot lacks is black."""
    episode = _reader(job.episodes)[job.episode_id]
    with job.target.open("wb") as file:
        for first, end in _pieces(job.spans):
            shape = (end - first, len(job.cameras), job.size_px, job.size_px, 3)
            frames = np.zeros(shape, dtype=np.uint8)
            for view, camera in enumerate(job.cameras):
                if clip := episode.clips.get(camera):
                    times_s = episode.timestamps_s[first:end]
                    frames[:, view] = clip.frames(times_s, (job.size_px, job.size_px))
            file.write(frames.data)


def _pieces(spans: Spans) -> Iterator[tuple[int, int]]:
    for first, end in spans:
        for start in range(first, end, MOST_FRAMES):
            yield start, min(start + MOST_FRAMES, end)
