"""The training view: what all workers of one machine share, laid out once as plain arrays.

`frames.u8` (N, V, K, K, 3) holds every frame of every drawn episode at the model's size,
`arrays.npz` the signals, captions and draws. Nothing here depends on the number of workers.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components import records
from components.episodes import Episode, Episodes
from components.errors import DataError
from components.normalisation import Normalisation, quantiles
from components.outputs import sha256, write_json
from components.pretraining.event_plans import event_plans
from components.pretraining.stage import Config


class Job(NamedTuple):
    """Frames of one episode to decode into the shared array."""

    episodes: Path
    episode_id: str
    cameras: tuple[str, ...]
    size_px: int
    target: Path
    shape: tuple[int, ...]
    first: int


def build(episodes: Path, captions: Path, plan: Path, folder: Path, config: Config) -> None:
    """Write the view of all episodes in `plan` to `folder`. DataError when the tables disagree."""
    receipt = json.loads((plan / "receipt.json").read_text())
    table = records.read(plan / "plan.parquet", records.PLAN).sort_by("event_id")
    if receipt["plan_sha256"] != (digest := sha256(plan / "plan.parquet")):
        raise DataError(
            f"{plan}/receipt.json: names plan {receipt['plan_sha256'][:12]}, "
            f"but plan.parquet is {digest[:12]}; run sampling again."
        )
    data = Episodes(episodes)
    ids = sorted(set(table["episode_id"].to_pylist()))
    loaded = [data[episode_id] for episode_id in ids]
    cameras = tuple(sorted({camera for episode in loaded for camera in episode.clips}))
    if not cameras:
        raise DataError(f"{episodes}: no episode has a camera; the model needs at least one.")
    texts, features = _captions(captions, table)
    normalisation = quantiles(loaded)
    first = np.cumsum([0] + [len(episode) for episode in loaded])
    _decode(episodes, loaded, cameras, folder, config.model.key_px, first)
    rows = {episode_id: row for row, episode_id in enumerate(ids)}
    arrays = _signals(loaded, normalisation, cameras)
    arrays |= {
        "first_frame": first,
        "event_episode": np.array([rows[e] for e in table["episode_id"].to_pylist()]),
        "event_start": table["start_frame"].to_numpy(),
        "event_end": table["end_frame"].to_numpy(),
        "event_draws": table["draws"].to_numpy(),
        "event_validation": pc.equal(table["split"], "validation").to_numpy(zero_copy_only=False),
        "text": features,
    }
    if "joint_cluster" in table.column_names:
        arrays["event_cluster"] = table["joint_cluster"].to_numpy()
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    write_json(
        folder / "view.json",
        {
            "cameras": [camera.removeprefix("observation.images.") for camera in cameras],
            "frames": int(first[-1]),
            "receipt": receipt,
            "event_ids": table["event_id"].to_pylist(),
            "episode_ids": table["episode_id"].to_pylist(),
            "captions": texts,
            "event_plans": event_plans(data.manifest, table, texts),
            "normalisation": {name: n.as_dict() for name, n in sorted(normalisation.items())},
            "embodiments": _embodiments(loaded, cameras),
        },
    )


def _captions(captions: Path, plan: pa.Table) -> tuple[list[str], npt.NDArray[np.float32]]:
    """The action-level caption of each planned event and its feature (E, 384)."""
    from components.sentences import embed

    table = records.read(captions / "captions.parquet", records.CAPTIONS)
    rows = table.filter(pc.field("level") == "action").to_pylist()
    by_event = {row["event_id"]: row["text"] for row in rows}
    ids = plan["event_id"].to_pylist()
    if missing := [event for event in ids if event not in by_event]:
        raise DataError(
            f"{captions}/captions.parquet: {len(missing)} planned events have no action caption, "
            f"the first is {missing[0]}; run captioning and sampling again."
        )
    texts = [by_event[event] for event in ids]
    return texts, embed(texts)


def _signals(
    episodes: list[Episode], normalisation: dict[str, Normalisation], cameras: tuple[str, ...]
) -> dict[str, npt.NDArray[Any]]:
    """Normalised signals of all episodes end to end, padded to the widest robot, with masks."""
    state_width = max(episode.state.shape[1] for episode in episodes)
    action_width = max(episode.action.shape[1] for episode in episodes)

    def padded(values: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])))

    return {
        "state": np.concatenate(
            [padded(normalisation[e.embodiment].state(e.state), state_width) for e in episodes]
        ),
        "action": np.concatenate(
            [padded(normalisation[e.embodiment].action(e.action), action_width) for e in episodes]
        ),
        "action_width": np.array([e.action.shape[1] for e in episodes]),
        "step_s": np.array([1 / e.fps for e in episodes], dtype=np.float32),
        "view_mask": np.array([[camera in e.clips for camera in cameras] for e in episodes]),
    }


def _embodiments(episodes: list[Episode], cameras: tuple[str, ...]) -> list[dict[str, Any]]:
    """What a station must offer to be driven by the model, one entry a robot."""
    seen = {episode.embodiment: episode for episode in episodes}
    return [
        {
            "name": name,
            "fps": episode.fps,
            "state_names": list(episode.state_names),
            "action_names": list(episode.action_names),
            "cameras": [
                c.removeprefix("observation.images.") for c in cameras if c in episode.clips
            ],
        }
        for name, episode in sorted(seen.items())
    ]


def _decode(
    root: Path, episodes: list[Episode], cameras: tuple[str, ...], folder: Path, size_px: int,
    first: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """Decode every frame once, in as many processes as there are cores."""
    shape = (int(first[-1]), len(cameras), size_px, size_px, 3)
    target = folder / "frames.u8"
    allocate(target, math.prod(shape))
    jobs = [
        Job(root, episode.episode_id, cameras, size_px, target, shape, int(start))
        for episode, start in zip(episodes, first[:-1], strict=True)
    ]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_decode_one, jobs, chunksize=max(1, len(jobs) // 16)))


def allocate(path: Path, size: int) -> None:
    """A file of `size` bytes on the disk: a full one is an error here, not a bus error later."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


_reader = cache(Episodes)  # one in each process


def _decode_one(job: Job) -> None:
    episode = _reader(job.episodes)[job.episode_id]
    frames = np.memmap(job.target, dtype=np.uint8, mode="r+", shape=job.shape)
    for view, camera in enumerate(job.cameras):
        if clip := episode.clips.get(camera):
            frames[job.first : job.first + len(episode), view] = clip.frames(
                episode.timestamps_s, (job.size_px, job.size_px)
            )
    frames.flush()
