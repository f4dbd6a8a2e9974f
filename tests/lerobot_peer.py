"""The real `lerobot` package on our data sets; run by an interpreter that has it.

`make lerobot` makes one (`.venv-lerobot/bin/python`). Nothing of ours is imported. One JSON job on
standard input, one JSON line last on standard output; `JOBS` says what a job may be.
"""

import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch

# PyPI's torchvision is built for CUDA and another torch. Its operators do not load, and none is
# called here, but its Python part registers a shape for one of them, which therefore has to exist.
operators = torch.library.Library("torchvision", "DEF")
operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402


def dataset(job: dict[str, Any]) -> LeRobotDataset:
    """The data set at `root`; a window of `offsets_s` of each of `cameras`, by `backend`.

    `backend` None is lerobot's own choice: torchcodec where it is installed, else PyAV.
    """
    windows = dict.fromkeys(job["cameras"], job["offsets_s"])
    return LeRobotDataset(
        "local/data", root=job["root"], delta_timestamps=windows, video_backend=job["backend"]
    )


def timed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds, and CPU seconds of all processes, to load the windows at `rows` once.

    By torch's DataLoader with `workers` processes, as lerobot trains; their start counts.
    """
    data = dataset(job)
    if data.video_backend == "torchcodec":
        import torchcodec.decoders  # noqa: F401  (or each worker would import it)
    began, began_cpu = time.perf_counter(), _cpu_s()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(data, job["rows"]), batch_size=32, num_workers=job["workers"]
    )
    count = sum(batch[camera].shape[0] for batch in loader for camera in job["cameras"])
    seconds = time.perf_counter() - began
    del loader
    return {
        "seconds": seconds,
        "cpu_s": _cpu_s() - began_cpu,
        "frames": count * len(job["offsets_s"]),
        "backend": data.video_backend,
    }


def read(job: dict[str, Any]) -> dict[str, Any]:
    """What lerobot says of a data set; the items at `rows`, or all, go to the .npz at `target`."""
    data = dataset(job)
    items = [data[row] for row in (range(len(data)) if job["rows"] is None else job["rows"])]
    numbers = [key for key, value in items[0].items() if isinstance(value, torch.Tensor)]
    found = {key: np.stack([item[key].numpy() for item in items]) for key in numbers}
    for camera in job["cameras"]:  # (N, T, 3, H, W) in 0..1
        found[camera] = np.round(found[camera] * 255).astype(np.uint8)
    np.savez(job["target"], **found)
    return {
        "length": len(data),
        "episodes": data.num_episodes,
        "fps": data.fps,
        "cameras": sorted(data.meta.camera_keys),
        "names": {key: data.meta.names[key] for key in ("observation.state", "action")},
        "tasks": [item["task"] for item in items],
        "state_mean": data.meta.stats["observation.state"]["mean"].tolist(),
        "backend": data.video_backend,
    }


def _cpu_s() -> float:
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


JOBS = {"timed": timed, "read": read}

if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.load(sys.stdin)
    print(json.dumps(JOBS[given["what"]](given)))
