"""Frames of random windows: our training view against the real `lerobot` package, same windows.

A window is an anchor frame and two later ones, of every camera. Ours decodes the episodes once in
`--workers` processes, then reads windows in one thread; `frames_per_s` and `ratio` count both, so
they depend on how often a frame is drawn (`--windows`); `.._once_laid_out` counts reading alone.
`lerobot` decodes each window from video in a DataLoader of `--workers` processes, where
`WAMFLOW_LEROBOT_PYTHON` names an interpreter that has it (`make lerobot`); once as it is installed
(torchcodec, where that is there) and once on PyAV. Without it the peer is our own PyAV, with a
seek for each window. Decoders have one thread on both sides; importing packages does not count.
Rates of CPU seconds, of all processes, are what to compare on a machine that does other work too.
`gpu_idle_fraction` is the share of training steps of the demo's model spent waiting for a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from components import params
from components.episodes import Episode, Episodes
from components.pretraining.batches import Batches
from components.pretraining.frame_files import FrameFiles, Index
from components.pretraining.frames.decoding import Job, lay_out
from components.pretraining.stage import Config
from components.pretraining.windows import _pictures
from models.batch import Batch
from models.wam import Shape, WorldActionModel

ROOT = Path(__file__).parents[2]
OFFSETS = (0, 5, 10)  # frames of a window after its anchor


def ingested(data: Path, folder: Path) -> Path:
    """`data` where it is a stage's output already, else its episodes after ingestion."""
    if (data / "manifest.parquet").is_file():
        return data
    from components.ingestion import stage
    from flows import snapshot

    config = params.section(params.load(ROOT / "params.yaml"), "ingestion", stage.Config)
    listed = snapshot.write([str(data)], ROOT, folder / "sources.json", folder)
    stage.run(listed, folder / "episodes", folder / "quarantine", config=config)
    return folder / "episodes"


def recorded(tasks: str, folder: Path, seed: int) -> Path:
    """A few demonstrations in simulation, recorded with their pictures."""
    from tests.test_stations import recording

    return Path(recording.record_demo(folder / "recording", 12, seed, tuple(tasks.split(","))))


class Windows:
    """Random windows of some episodes, read through the training view, as `Batches` wants them."""

    def __init__(
        self, files: FrameFiles, chosen: tuple[Index, Index], config: Config, size: int
    ) -> None:
        self.files, self.folder, self.config, self.size = files, files.folder, config, size
        self.episodes, self.anchors = chosen
        self.steps = len(self.anchors) // size

    def pictures(self, step: int) -> torch.Tensor:
        """One batch as (B, 3, V, 3, K, K) float32 in -1..1."""
        part = slice(step * self.size, (step + 1) * self.size)
        frames = self.anchors[part, None] + np.array(OFFSETS)
        return _pictures(self.files.read(self.episodes[part], frames))

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        """Real pictures; signals, which cost nothing, are made up."""
        model, shown = self.config.model, self.pictures(step)
        fake = Batch.fake(
            self.size, shown.shape[2], 16, 16, 2, 12, 4, model.max_steps, 384, seed=step
        )
        small = torch.nn.functional.interpolate(
            shown[:, 1:].flatten(0, 2), size=(model.future_px, model.future_px), mode="area"
        )
        future = small.unflatten(0, (self.size, 2, shown.shape[2])).transpose(1, 2)
        made = {n: getattr(fake, n) for n in fake.__dataclass_fields__}
        return Batch(**made | {"keyframes": shown[:, 0].contiguous(), "future": future})


class Spent(NamedTuple):
    """What it took to have some frames: seconds by the clock, and CPU seconds of all processes."""

    seconds: float
    cpu_s: float
    frames: int

    def __add__(self, other: Spent) -> Spent:  # type: ignore[override]
        """Both, one after the other."""
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def per_s(self) -> float:
        """Frames a second by the clock."""
        return self.frames / self.seconds

    @property
    def per_cpu_s(self) -> float:
        """Frames a CPU second."""
        return self.frames / self.cpu_s


@contextmanager
def spending(frames: int) -> Iterator[list[Spent]]:
    """A list with what the body took, once it is done."""
    spent: list[Spent] = []
    began, began_cpu = time.perf_counter(), _cpu_s()
    yield spent
    spent.append(Spent(time.perf_counter() - began, _cpu_s() - began_cpu, frames))


def _cpu_s() -> float:
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def ours(
    root: Path, episodes: list[Episode], chosen: tuple[Index, Index], config: Config, folder: Path,
    workers: int,
) -> tuple[Spent, Spent, Windows]:  # fmt: skip
    """(what laying out took, what reading all windows once took, the windows)."""
    cameras, size = tuple(episodes[0].clips), config.model.key_px
    files = FrameFiles(folder, (len(cameras), size, size, 3))
    jobs = [
        Job(root, e.episode_id, cameras, ((0, len(e)),), size, files.path(row))
        for row, e in enumerate(episodes)
        if row in chosen[0]
    ]
    with spending(0) as laid_out:
        lay_out(jobs, 600.0, workers)
    windows = Windows(files, chosen, config, 32)
    with spending(windows.steps * windows.size * len(OFFSETS) * len(cameras)) as read:
        for step in range(windows.steps):
            windows.pictures(step)
    return laid_out[0], read[0], windows


def pyav(episodes: list[Episode], chosen: tuple[Index, Index], size_px: int) -> Spent:
    """Decode windows from video in this process, one after the other, seeking to each."""
    with spending(len(chosen[0]) * len(OFFSETS) * len(episodes[0].clips)) as spent:
        for row, anchor in zip(*chosen, strict=True):
            episode = episodes[row]
            times = episode.timestamps_s[anchor + np.array(OFFSETS)]
            for clip in episode.clips.values():
                frames = clip.frames(times, (size_px, size_px))
                torch.from_numpy(frames).movedim(-1, -3).float().div(255)
    return spent[0]


def lerobot(
    root: Path, episodes: list[Episode], rows: list[int], backend: str | None, workers: int
) -> tuple[str, Spent] | None:
    """Its decoder and what it took; None where there is no interpreter that has the package."""
    python = os.environ.get("WAMFLOW_LEROBOT_PYTHON")
    if not python:
        return None
    job = {
        "what": "timed",
        "root": str(root / episodes[0].embodiment),
        "offsets_s": [offset / episodes[0].fps for offset in OFFSETS],
        "cameras": list(episodes[0].clips),
        "rows": rows,
        "backend": backend,
        "workers": workers,
    }
    done = subprocess.run(
        [python, "-W", "ignore", str(ROOT / "tests/lerobot_peer.py")],
        input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    return said["backend"], Spent(said["seconds"], said["cpu_s"], said["frames"])


def idle(windows: Windows, config: Config, steps: int) -> float:
    """Share of the time of training steps, forward and backward, that waits for the next batch."""
    shown = windows.pictures(0)
    model = WorldActionModel(
        Shape(**config.model.model_dump(), views=shown.shape[2], text_width=384, state_width=12,
              action_width=4)
    )  # fmt: skip
    windows.steps = min(windows.steps, steps)
    batches, began = Batches(windows, 0, 0, 1, 600.0), time.perf_counter()  # type: ignore[arg-type]
    for _, batch in batches:
        model.losses(batch, torch.Generator()).total.backward()
    return batches.waited_s / (time.perf_counter() - began)


def measure(
    data: Path, folder: Path, count: int, peers: int, workers: int, seed: int
) -> dict[str, Any]:
    """All figures on one folder of episodes of one robot."""
    config = params.section(params.load(ROOT / "params.yaml"), "pretraining", Config)
    root = ingested(data, folder)
    every = Episodes(root)
    robot = every.manifest["embodiment"][0].as_py()
    rows = [r for r in every.manifest.to_pylist() if r["embodiment"] == robot]
    rows.sort(key=lambda r: r["episode_index"])
    firsts = np.cumsum([0] + [r["n_frames"] for r in rows])[:-1]
    episodes = [every[r["episode_id"]] for r in rows]
    chance = np.random.default_rng(seed)
    of = chance.integers(0, len(episodes), count)
    room = np.array([len(episodes[e]) - OFFSETS[-1] for e in of])
    chosen = of, (chance.random(count) * room).astype(np.int64)
    some = chosen[0][:peers], chosen[1][:peers]
    anchors = (firsts[some[0]] + some[1]).tolist()
    laid_out, read, windows = ours(root, episodes, chosen, config, folder, workers)
    installed = lerobot(root, episodes, anchors, None, workers)
    on_pyav = lerobot(root, episodes, anchors, "pyav", workers)
    alone = pyav(episodes, some, config.model.key_px)
    against, peer = installed or ("PyAV, a seek for each window, no lerobot", alone)
    both = laid_out + read
    return {
        "frames_per_s": round(both.per_s),
        "lerobot_frames_per_s": round(peer.per_s) if installed else None,
        "ratio": round(both.per_s / peer.per_s, 2),
        "ratio_once_laid_out": round(read.per_s / peer.per_s, 2),
        "ratio_cpu": round(both.per_cpu_s / peer.per_cpu_s, 2),
        "ratio_cpu_once_laid_out": round(read.per_cpu_s / peer.per_cpu_s, 2),
        "ratio_against": against,
        "frames_per_cpu_s": round(both.per_cpu_s),
        "lerobot_frames_per_cpu_s": round(peer.per_cpu_s) if installed else None,
        "lerobot_pyav_frames_per_s": round(on_pyav[1].per_s) if on_pyav else None,
        "lerobot_pyav_frames_per_cpu_s": round(on_pyav[1].per_cpu_s) if on_pyav else None,
        "pyav_frames_per_s": round(alone.per_s),
        "gpu_idle_fraction": round(idle(windows, config, 6), 4),
        "frames_per_s_once_laid_out": round(read.per_s),
        "seconds_to_lay_out": round(laid_out.seconds, 2),
        "episodes": len(episodes),
        "windows": count,
        "times_a_frame_is_drawn": round(count * len(OFFSETS) / sum(map(len, episodes)), 1),
        "workers": workers,
    }


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a recording, or data/episodes of a run")
    parser.add_argument("--tasks", default="drawer-open,door-open", help="to record without --data")
    parser.add_argument("--windows", type=int, default=19200, help="the demo draws as many")
    parser.add_argument("--peer-windows", type=int, default=640, help="that the peers decode")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes on both sides")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="wamflow-loader-") as name:
        folder = Path(name)
        os.environ["WAMFLOW_STORE"] = str(folder / "store")
        data = given.data or recorded(given.tasks, folder, given.seed)
        counts = given.windows, given.peer_windows, given.workers
        print(json.dumps(measure(data, folder, *counts, given.seed)))


if __name__ == "__main__":
    sys.exit(main())
