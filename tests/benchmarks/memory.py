"""Memory of a training over many steps: the trainer's own loop, states and all, on a tiny model.

A slope of the resident memory over the second half of the steps, in KB a step, by least squares;
what is read once stays in the first half. States are written every 50 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist

from components.pretraining import view
from components.pretraining.batches import Batches
from components.pretraining.saver import Saver
from components.pretraining.stage import Config
from components.pretraining.training import Training
from components.pretraining.windows import Windows
from tests.made_training import STEPS, VALUES, write


def draw_more(arrays: Path, times: int) -> None:
    """Every event so many times as often, for a training with so many times the steps."""
    with np.load(arrays, allow_pickle=False) as read:
        changed = {name: read[name] for name in read.files}
    changed["event_draws"] = changed["event_draws"] * times
    np.savez(arrays, allow_pickle=False, **changed)


def measure(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """Figures of one training of `steps` steps."""
    config = Config.model_validate(VALUES | {"processes": 1, "seed": seed})
    data = folder / "data"
    data.mkdir()
    write(data)
    (folder / "view").mkdir()
    tables = [data / name for name in ("episodes", "captions", "plan")]
    view.build(*tables, folder / "view", config)
    draw_more(folder / "view" / "arrays.npz", steps // STEPS)
    windows = Windows(folder / "view", config)
    training = Training(windows, config)
    saver = Saver(folder / "states", 2, 600.0)
    steps, process = windows.steps, psutil.Process()
    kilobytes: list[float] = []
    for step, batch in Batches(windows, 0, 0, 1, 600.0):
        training.step(step, batch)
        if (step + 1) % 50 == 0:
            saver.save(step + 1, training.state())
        kilobytes.append(process.memory_info().rss / 1024)
    saver.wait()
    half = np.array(kilobytes[steps // 2 :])
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0])
    return {
        "steps": steps,
        "kb_a_step": round(slope, 3),
        "start_mb": round(kilobytes[steps // 2] / 1024, 1),
        "end_mb": round(kilobytes[-1] / 1024, 1),
    }


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory(prefix="wamflow-memory-") as name:
        os.environ["WAMFLOW_STORE"] = f"{name}/store"
        dist.init_process_group("gloo", init_method=f"file://{name}/meet", rank=0, world_size=1)
        figures = measure(Path(name), given.steps, given.seed)
        dist.destroy_process_group()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
