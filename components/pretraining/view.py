"""The training view: what all workers of one machine share, laid out once as plain arrays.

`<episode>.u8` holds the frames of an episode's drawn events at the model's size (`frames/`),
`arrays.npz` the signals, captions and draws, and `view.json`, written last, the rest: with it a
view is whole, and a resumed training takes it as it is. Nothing depends on the number of workers.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components import records
from components.episodes import Episode, Episodes
from components.errors import DataError
from components.normalisation import Normalisation, quantiles
from components.outputs import sha256, write_json
from components.pretraining import starting
from components.pretraining.event_plans import event_plans
from components.pretraining.frame_files import FrameFiles
from components.pretraining.frames.decoding import Job, Spans, joined, lay_out
from components.pretraining.initial import Initial
from components.pretraining.stage import Config

PREFIX = "observation.images."


def build(
    episodes: Path, captions: Path, plan: Path, folder: Path, config: Config,
    initial: Initial | None = None,
) -> None:  # fmt: skip
    """Write the view of all episodes in `plan` to `folder`, unless it is there already.

    `initial` names the weights and encoders that training starts from. DataError when the tables
    disagree, TemporaryError when decoding gets stuck.
    """
    if (folder / "view.json").is_file():
        _readdress(folder / "view.json", initial or {})
        return
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
    before = starting.earlier(initial or {})
    cameras = _in_order(
        [PREFIX + camera for camera in before.get("cameras", [])],
        {camera for episode in loaded for camera in episode.clips},
    )
    if not any(episode.clips for episode in loaded):
        raise DataError(f"{episodes}: no episode has a camera; the model needs at least one.")
    embodiments = _embodiments(loaded, cameras, data)
    robots = _in_order(before.get("embodiment_ids", []), {e.embodiment for e in loaded})
    if config.preset != "small":
        from components.pretraining import full

        info = {"cameras": cameras, "embodiments": embodiments, "embodiment_ids": robots}
        full.check(info, config, initial or {})
    texts, features = _captions(captions, table)
    reasons = _reasons(captions, table, config)
    normalisation = quantiles(loaded)
    first = np.cumsum([0] + [len(episode) for episode in loaded])
    rows = {episode_id: row for row, episode_id in enumerate(ids)}
    arrays = _signals(loaded, normalisation, cameras)
    arrays |= {
        "embodiment": np.array([robots.index(e.embodiment) for e in loaded]),
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
    spans = _spans(arrays, *_margins(arrays, config))
    arrays["frame_place"] = _places(spans, [len(episode) for episode in loaded])
    size_px = _picture_px(config, initial or {})
    files = FrameFiles(folder, (len(cameras), size_px, size_px, 3))
    jobs = [
        Job(episodes, e.episode_id, cameras, of, size_px, files.path(row))
        for row, (e, of) in enumerate(zip(loaded, spans, strict=True))
    ]
    for path in folder.iterdir():
        path.unlink()  # of an attempt that was killed here
    new = lay_out(jobs, config.timeout_s)
    print(f"pretraining: frames of {len(jobs)} episodes, {new} of them newly decoded", flush=True)
    tasks = _tasks(data.manifest, table)
    if config.preset != "small" and config.full.stage != "staircase":
        from components.pretraining import full

        said = {"event": texts, "task": tasks, "staircase": []}[config.full.words]
        full.keep_words(config, initial or {}, said)
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    write_json(
        folder / "view.json",
        {
            "cameras": [camera.removeprefix(PREFIX) for camera in cameras],
            "picture_px": size_px,
            "initial": initial or {},
            "embodiment_ids": robots,
            "tasks": tasks,
            "receipt": receipt,
            "event_ids": table["event_id"].to_pylist(),
            "episode_ids": table["episode_id"].to_pylist(),
            "captions": texts,
            "reasons": reasons,
            "event_plans": event_plans(data.manifest, table, texts),
            "normalisation": {name: n.as_dict() for name, n in sorted(normalisation.items())},
            "embodiments": embodiments,
        },
    )


def _readdress(path: Path, initial: Initial) -> None:
    """The same weights and encoders may lie elsewhere when a training is resumed."""
    info = json.loads(path.read_text())
    if info["initial"] != initial:
        write_json(path, info | {"initial": initial})


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


def _reasons(captions: Path, plan: pa.Table, config: Config) -> list[list[str]]:
    """What the stairs say of each planned event; nothing where no stage trains a staircase."""
    if config.preset == "small" or config.full.stage != "staircase":
        return []
    table = records.read(captions / "captions.parquet", records.CAPTIONS)
    told = {(row["event_id"], row["level"]): row["text"] for row in table.to_pylist()}
    wanted = [(e, level) for e in plan["event_id"].to_pylist() for level in _levels(config)]
    if missing := [key for key in wanted if key not in told]:
        raise DataError(
            f"{captions}/captions.parquet: {len(missing)} captions of "
            f"pretraining.full.staircase.levels are missing, the first is {missing[0][1]} of event "
            f"{missing[0][0]}; run captioning and sampling again, or choose other levels."
        )
    return [
        [told[event, level] for level in _levels(config)] for event in plan["event_id"].to_pylist()
    ]


def _levels(config: Config) -> tuple[str, ...]:
    return config.full.staircase.levels


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
        "state_width": np.array([e.state.shape[1] for e in episodes]),
        "action_width": np.array([e.action.shape[1] for e in episodes]),
        "step_s": np.array([1 / e.fps for e in episodes], dtype=np.float32),
        "view_mask": np.array([[camera in e.clips for camera in cameras] for e in episodes]),
    }


def _embodiments(
    episodes: list[Episode], cameras: tuple[str, ...], data: Episodes
) -> list[dict[str, Any]]:
    """What a station must offer to be driven by the model, one entry a robot."""
    seen = {episode.embodiment: episode for episode in episodes}
    return [
        {
            "name": name,
            "fps": episode.fps,
            "state_names": list(episode.state_names),
            "action_names": list(episode.action_names),
            "cameras": [c.removeprefix(PREFIX) for c in cameras if c in episode.clips],
            "calibration": {
                camera.removeprefix(PREFIX): said.model_dump(mode="json")
                for camera, said in sorted(data.embodiment(name).calibration().items())
            },
        }
        for name, episode in sorted(seen.items())
    ]


def _in_order(before: list[str], found: set[str]) -> tuple[str, ...]:
    """Names by their rows in a model's tables: an earlier version's keep theirs."""
    return (*before, *sorted(found - set(before)))


def _picture_px(config: Config, initial: Initial) -> int:
    """Side of the pictures that the model is shown."""
    if config.preset == "small":
        return config.model.key_px
    from components.pretraining import full

    return full.picture_px(config, initial)


def _tasks(manifest: pa.Table, plan: pa.Table) -> list[str]:
    """The task's sentence of each planned event."""
    tasks = dict(zip(manifest["episode_id"].to_pylist(), manifest["task"].to_pylist(), strict=True))
    return [tasks[episode] for episode in plan["episode_id"].to_pylist()]


def _margins(
    arrays: dict[str, npt.NDArray[Any]], config: Config
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Frames before and after an event that windows may show, for each episode."""
    before_s = after_s = 0.0
    if config.preset != "small" and config.full.windows == "chunk":
        from components.pretraining import full

        hz = full.preset(config).shape.latent_hz
        before_s = config.full.history_frames / hz
        after_s = config.full.chunk_s + 1 / hz
    before, after = (np.ceil(s / arrays["step_s"]).astype(np.int64) for s in (before_s, after_s))
    return before, after


def _spans(
    arrays: dict[str, npt.NDArray[Any]],
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
) -> list[Spans]:
    """Of each episode: the frames of events that are drawn or held out, and their margins."""
    lengths = np.diff(arrays["first_frame"])
    used = (arrays["event_draws"] > 0) | arrays["event_validation"]
    of = arrays["event_episode"][used]
    order = np.argsort(of, kind="stable")
    of = of[order]
    borders = np.searchsorted(of, np.arange(len(lengths) + 1))
    start = np.maximum(arrays["event_start"][used][order] - before[of], 0)
    end = np.minimum(arrays["event_end"][used][order] + after[of], lengths[of])
    return [
        joined(start[first:last], end[first:last]) for first, last in itertools.pairwise(borders)
    ]


def _places(spans: list[Spans], lengths: list[int]) -> npt.NDArray[np.int64]:
    """Where each frame of each episode lies in its file, end to end; -1 where it is not."""
    places = []
    for of, length in zip(spans, lengths, strict=True):
        here = np.full(length, -1, dtype=np.int64)
        count = 0
        for first, end in of:
            here[first:end] = np.arange(count, count + end - first)
            count += end - first
        places.append(here)
    return np.concatenate(places)
