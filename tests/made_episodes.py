"""Episodes for tests: known waypoints, real recordings without ingestion, simulated experts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from components import lerobot, records
from components.encoding import encode
from components.episodes import Episode
from components.lerobot import Recording
from components.packets import Span

SHARED = Path(__file__).parents[2] / "shared"
ARM = ("ee_x", "ee_y", "ee_z", "gripper")
COMMAND = ("dx", "dy", "dz", "gripper")
Array = npt.NDArray[np.float64]


def through(waypoints: list[tuple[float, float, float]], legs_s: list[float], fps: float) -> Array:
    """A path (T, 3) along straight legs, one for each of `legs_s`."""
    ends_s = np.concatenate(([0.0], np.cumsum(legs_s)))
    times = np.arange(round(ends_s[-1] * fps) + 1) / fps
    points = np.array(waypoints)
    return np.stack([np.interp(times, ends_s, points[:, d]) for d in range(3)], axis=1)


def arm(
    place: Array,
    opening: Array | None = None,
    command: Array | None = None,
    *,
    fps: float = 80.0,
    task: str = "open the door",
    episode_id: str = "0" * 20,
) -> Episode:
    """An arm at `place` (T, 3) metres, its gripper's `opening` and `command` (T,)."""
    steps = len(place)
    opening = np.ones(steps) if opening is None else opening
    command = np.full(steps, -1.0) if command is None else command
    return Episode(
        episode_id=episode_id,
        embodiment="metaworld-sawyer",
        task=task,
        fps=fps,
        timestamps_s=np.arange(steps) / fps,
        state=np.column_stack([place, opening]).astype(np.float32),
        action=np.column_stack([np.zeros((steps, 3)), command]).astype(np.float32),
        state_names=ARM,
        action_names=COMMAND,
    )


def pick_and_place(fps: float = 80.0, task: str = "put the cup on the shelf") -> Episode:
    """Down 20 cm in 1 s, close for 1 s, up 20 cm in 1 s, right 20 cm in 1 s, open for 0.5 s."""
    place = through(
        [(0, 0, 0.2), (0, 0, 0), (0, 0, 0), (0, 0, 0.2), (0.2, 0, 0.2), (0.2, 0, 0.2)],
        [1.0, 1.0, 1.0, 1.0, 0.5],
        fps,
    )
    times = np.arange(len(place)) / fps
    closed = (times >= 1.0) & (times < 4.0)
    opening = np.interp(times, [0, 1.0, 1.2, 4.0, 4.2, 4.5], [1, 1, 0.4, 0.4, 1, 1])
    return arm(place, opening, np.where(closed, 1.0, -1.0), fps=fps, task=task)


def film(path: Path, episode: Episode) -> Path:
    """A picture of 32 x 24 for each control step, whose brightness rises with time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    greys = np.linspace(0, 255, len(episode)).astype(np.uint8)
    encode(path, (np.full((24, 32, 3), grey) for grey in greys), episode.fps)
    return path


def folder(
    root: Path,
    episodes: list[Episode],
    films: Path | None = None,
    spans: list[dict[str, Span]] | None = None,
) -> Path:
    """Write `episodes` of one embodiment as `data/episodes` has them.

    Without video unless `films` names a folder for scratch, or each has `spans` by camera, which
    are joined to one file.
    """
    first = episodes[0]
    joined = spans or [{} for _ in episodes]
    videos = [
        {"observation.images.top": film(films / f"{i}.mp4", e)} if films else {}
        for i, e in enumerate(episodes)
    ]
    lerobot.write(
        root / first.embodiment,
        [
            Recording(e.task, e.timestamps_s, e.state, e.action, video, span)
            for e, video, span in zip(episodes, videos, joined, strict=True)
        ],
        robot_type=first.embodiment,
        fps=first.fps,
        state_names=first.state_names,
        action_names=first.action_names,
    )
    rows: list[dict[str, object]] = [
        {
            "episode_id": e.episode_id,
            "source": "made",
            "source_uri": "made",
            "source_version": "",
            "embodiment": e.embodiment,
            "episode_index": index,
            "task": e.task,
            "n_frames": len(e),
            "duration_s": e.duration_s,
            "fps": e.fps,
            "operator": "",
            "origins": ["made"],
        }
        for index, e in enumerate(episodes)
    ]
    records.write(root / "manifest.parquet", rows, records.MANIFEST, "episode_id")
    return root


def nothing_said(folder: Path) -> Path:
    """An empty list of corrections."""
    path = folder / "said.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def real(name: str) -> list[Episode]:
    """Episodes of a published recording as they are; skips the test where it is absent."""
    root = SHARED / "data" / name
    if not root.is_dir():
        pytest.skip(f"../shared/data/{name} is not on this machine")
    info = json.loads((root / "meta/info.json").read_text())
    names = [info["features"][key]["names"] for key in ("observation.state", "action")]
    state_names, action_names = (n["motors"] if isinstance(n, dict) else n for n in names)
    found: list[Episode] = []
    for file in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(file)
        for index in pc.unique(table["episode_index"]).to_pylist():
            rows = table.filter(pc.equal(table["episode_index"], index))
            times = rows["timestamp"].to_numpy().astype(np.float64)
            found.append(
                Episode(
                    episode_id=f"{name}-{index}",
                    embodiment=name,
                    task="put the banana on the plate",
                    fps=float(info["fps"]),
                    timestamps_s=times - times[0],
                    state=np.array(rows["observation.state"].to_pylist(), dtype=np.float32),
                    action=np.array(rows["action"].to_pylist(), dtype=np.float32),
                    state_names=tuple(state_names),
                    action_names=tuple(action_names),
                )
            )
    return found


def demonstrations(task: str, seeds: range) -> list[Episode]:
    """Meta-World's scripted expert, recorded without pictures, until shortly after its success."""
    from components.stations.metaworld import MetaworldStation

    station = MetaworldStation()
    found: list[Episode] = []
    for seed in seeds:
        station.reset(task, seed)
        states, actions, left = [], [], 200
        while left:
            states.append(station.state())
            actions.append(station.expert())
            station.step(actions[-1])
            left = min(left - 1, 10) if station.succeeded() else left - 1
        found.append(
            Episode(
                episode_id=hashlib.sha256(f"{task}{seed}".encode()).hexdigest()[:20],
                embodiment="metaworld-sawyer",
                task=station.tasks[task],
                fps=station.fps,
                timestamps_s=np.arange(len(states)) / station.fps,
                state=np.array(states, dtype=np.float32),
                action=np.array(actions, dtype=np.float32),
                state_names=station.state_names,
                action_names=station.action_names,
            )
        )
    station.close()
    return found
