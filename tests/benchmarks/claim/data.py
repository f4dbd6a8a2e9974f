"""Recordings of scripted experts, taken through the chain's own stages to a plan of draws.

Events, captions and draws are what segmentation, captioning, clustering and sampling make of the
signals with the values of `params.yaml`. The simulator's truth is recorded beside and never opened.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from components import params, records
from components.captioning import stage as captioning
from components.clustering import stage as clustering
from components.outputs import sha256
from components.sampling import stage as sampling
from components.segmentation import stage as segmentation
from components.stations.metaworld import SENTENCES, MetaworldStation
from components.stations.recording import record

ROOT = Path(__file__).parents[3]


def prepared(tasks: list[str], episodes: int, seed: int, draws: int, scratch: Path) -> Path:
    """A folder with `episodes`, `captions` and `plan`; made in `scratch`, or found there."""
    name = f"{'+'.join(tasks)}-{episodes}-{seed}"
    recordings, folder = scratch / "recordings" / name, scratch / "data" / f"{name}-{draws}"
    robot = recordings / MetaworldStation.embodiment
    if not robot.is_dir():
        record("metaworld", tasks, episodes * len(tasks), robot, seed)
        print(f"recorded {episodes} of each of {tasks}", file=sys.stderr, flush=True)
    records.write(
        recordings / "manifest.parquet",
        [_row(number, tasks, robot) for number in range(episodes * len(tasks))],
        records.MANIFEST,
        "episode_id",
    )
    if not (folder / "plan/receipt.json").is_file():
        _planned(recordings, folder, draws)
    return folder


def _planned(recordings: Path, folder: Path, draws: int) -> None:
    """Segmentation to sampling, as the chain runs them; nobody has corrected anything."""
    values = params.load(ROOT / "params.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "episodes").exists():
        (folder / "episodes").symlink_to(recordings.resolve())
    nothing = folder / "corrections.jsonl"
    nothing.touch()
    episodes, events, captions, clusters, plan = (
        folder / part for part in ("episodes", "events", "captions", "clusters", "plan")
    )
    segmentation.run(
        episodes, nothing, events,
        config=params.section(values, "segmentation", segmentation.Config),
    )  # fmt: skip
    captioning.run(
        episodes, events, nothing, captions,
        config=params.section(values, "captioning", captioning.Config),
    )  # fmt: skip
    clustering.run(
        episodes, events, captions, clusters,
        config=params.section(values, "clustering", clustering.Config),
    )  # fmt: skip
    values["sampling"]["draws"] = draws
    sampling.run(
        events, captions, clusters, plan,
        config=params.section(values, "sampling", sampling.Config),
    )  # fmt: skip


def _row(number: int, tasks: list[str], robot: Path) -> dict[str, Any]:
    """An episode's row as ingestion would write it; its name depends on its signals."""
    signals = "".join(sha256(path) for path in sorted(robot.glob("data/*/*.parquet")))
    name = hashlib.sha256(f"{number} {signals}".encode()).hexdigest()[:20]
    return dict.fromkeys(records.MANIFEST.names) | {
        "episode_id": name,
        "source": "simulated",
        "source_uri": "simulated",
        "source_version": "",
        "embodiment": MetaworldStation.embodiment,
        "episode_index": number,
        "task": SENTENCES[tasks[number % len(tasks)]],
        "n_frames": 0,
        "duration_s": 0.0,
        "fps": MetaworldStation.fps,
        "operator": "",
        "origins": ["simulated"],
    }
