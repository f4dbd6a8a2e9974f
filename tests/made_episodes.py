"""Episodes for tests: known waypoints, real recordings without ingestion, simulated experts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from components import lerobot, records
from components.encoding import encode
from components.episodes import Episode
from components.ingestion import formats
from components.ingestion.source import Object, Source
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


class Folder(Source):
    """A folder that nobody has listed: its files are taken as they are."""

    def file(self, path: str) -> Path:
        """The file itself."""
        return Path(self.uri) / path


def real(name: str) -> list[Episode]:
    """Signals of a published recording through its reader, no video; skips where it is absent."""
    root = SHARED / "data" / name
    if not root.is_dir():
        pytest.skip(f"../shared/data/{name} is not on this machine")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    objects = [
        Object(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256="")
        for path in files
    ]
    reader = formats.open_source(Folder(uri=str(root), name=name, objects=objects), 0.5)
    raws = [raw for index in reader.indices if not (raw := reader.read(index)).problem]
    return [
        Episode(
            episode_id=f"{name}-{raw.index}",
            embodiment=name,
            task=raw.task or "",
            fps=reader.layout.fps,
            timestamps_s=raw.timestamps_s,
            state=raw.state,
            action=raw.action,
            state_names=reader.layout.state_names,
            action_names=reader.layout.action_names,
        )
        for raw in raws
    ]


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
