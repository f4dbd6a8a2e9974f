"""The real `lerobot` package on the windows of `loader.py`; run by an interpreter that has it.

Nothing of ours is imported. One JSON job on standard input: `root` of a LeRobot v3.0 data set,
`offsets_s` of a window's frames, `cameras`, and `rows`, the anchors of the windows. One JSON line
out: seconds for all windows and a checksum of what was read.
"""

import json
import sys
import time

from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main() -> None:
    """Read every window as a training loop would, one item at a time in one process."""
    job = json.load(sys.stdin)
    offsets = dict.fromkeys(job["cameras"], job["offsets_s"])
    data = LeRobotDataset("local/benchmark", root=job["root"], delta_timestamps=offsets)
    data[job["rows"][0]]  # opens files, imports decoders
    began, total = time.perf_counter(), 0.0
    for row in job["rows"]:
        item = data[row]
        total += sum(float(item[camera].mean()) for camera in job["cameras"])
    print(json.dumps({"seconds": time.perf_counter() - began, "mean": total / len(job["rows"])}))


if __name__ == "__main__":
    main()
