"""Frames of random windows: our training view against the real `lerobot` package, same windows.

A window is an anchor frame and two later ones, of every camera. Ours decodes the frames that are
drawn once, then reads them; `frames_per_s` counts both, so it depends on how often a frame is drawn
(`--windows`). The peers decode each window from video: `lerobot` where `WAMFLOW_LEROBOT_PYTHON`
names an interpreter that has it, and always PyAV with a seek for each window, as lerobot does.
`gpu_idle_fraction` is the share of training steps of the demo's model spent waiting for a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


def ours(
    root: Path, episodes: list[Episode], chosen: tuple[Index, Index], config: Config, folder: Path
) -> tuple[float, float, Windows]:
    """(seconds to lay out, seconds to read all windows once, the windows)."""
    cameras, size = tuple(episodes[0].clips), config.model.key_px
    files = FrameFiles(folder, (len(cameras), size, size, 3))
    jobs = [
        Job(root, e.episode_id, cameras, ((0, len(e)),), size, files.path(row))
        for row, e in enumerate(episodes)
        if row in chosen[0]
    ]
    began = time.perf_counter()
    lay_out(jobs, 600.0)
    laid_out = time.perf_counter()
    windows = Windows(files, chosen, config, 32)
    for step in range(windows.steps):
        windows.pictures(step)
    return laid_out - began, time.perf_counter() - laid_out, windows


def pyav(episodes: list[Episode], chosen: tuple[Index, Index], size_px: int) -> float:
    """Seconds to decode windows from video, one after the other, seeking to each."""
    began = time.perf_counter()
    for row, anchor in zip(*chosen, strict=True):
        episode = episodes[row]
        times = episode.timestamps_s[anchor + np.array(OFFSETS)]
        for clip in episode.clips.values():
            frames = clip.frames(times, (size_px, size_px))
            torch.from_numpy(frames).movedim(-1, -3).float().div(255)
    return time.perf_counter() - began


def lerobot(
    root: Path, episodes: list[Episode], first_rows: list[int], chosen: tuple[Index, Index]
) -> float | None:
    """The same by the real package; None where there is no interpreter that has it."""
    python = os.environ.get("WAMFLOW_LEROBOT_PYTHON")
    if not python:
        return None
    job = {
        "root": str(root / episodes[0].embodiment),
        "offsets_s": [offset / episodes[0].fps for offset in OFFSETS],
        "cameras": list(episodes[0].clips),
        "rows": [first_rows[e] + int(a) for e, a in zip(*chosen, strict=True)],
    }
    peer = [python, str(ROOT / "tests/benchmarks/lerobot_peer.py")]
    done = subprocess.run(
        peer, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


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


def measure(data: Path, folder: Path, count: int, peers: int, seed: int) -> dict[str, Any]:
    """All figures on one folder of episodes of one robot."""
    config = params.section(params.load(ROOT / "params.yaml"), "pretraining", Config)
    root = ingested(data, folder)
    every = Episodes(root)
    robot = every.manifest["embodiment"][0].as_py()
    rows = [r for r in every.manifest.to_pylist() if r["embodiment"] == robot]
    rows.sort(key=lambda r: r["episode_index"])
    firsts = np.cumsum([0] + [r["n_frames"] for r in rows])[:-1].tolist()
    episodes = [every[r["episode_id"]] for r in rows]
    chance = np.random.default_rng(seed)
    of = chance.integers(0, len(episodes), count)
    room = np.array([len(episodes[e]) - OFFSETS[-1] for e in of])
    chosen = of, (chance.random(count) * room).astype(np.int64)
    some = chosen[0][:peers], chosen[1][:peers]
    frames = len(OFFSETS) * len(episodes[0].clips)
    lay_s, read_s, windows = ours(root, episodes, chosen, config, folder)
    pyav_s = pyav(episodes, some, config.model.key_px)
    lerobot_s = lerobot(root, episodes, firsts, some)
    our_rate = count * frames / (lay_s + read_s)
    peer_rate = peers * frames / (lerobot_s or pyav_s)
    return {
        "frames_per_s": round(our_rate),
        "lerobot_frames_per_s": round(peer_rate) if lerobot_s else None,
        "pyav_frames_per_s": round(peers * frames / pyav_s),
        "ratio": round(our_rate / peer_rate, 2),
        "ratio_against": "lerobot" if lerobot_s else "PyAV, a seek for each window",
        "gpu_idle_fraction": round(idle(windows, config, 6), 4),
        "frames_per_s_once_laid_out": round(count * frames / read_s),
        "seconds_to_lay_out": round(lay_s, 2),
        "episodes": len(episodes),
        "windows": count,
    }


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a recording, or data/episodes of a run")
    parser.add_argument("--tasks", default="drawer-open,door-open", help="to record without --data")
    parser.add_argument("--windows", type=int, default=19200, help="the demo draws as many")
    parser.add_argument("--peer-windows", type=int, default=200, help="that the peers decode")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="wamflow-loader-") as name:
        folder = Path(name)
        os.environ["WAMFLOW_STORE"] = str(folder / "store")
        data = given.data or recorded(given.tasks, folder, given.seed)
        print(json.dumps(measure(data, folder, given.windows, given.peer_windows, given.seed)))


if __name__ == "__main__":
    sys.exit(main())
