"""What pretraining reads, small enough to train on in seconds: five episodes of a moving bar."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from components import lerobot, records
from components.calibration import Calibration
from components.encoding import encode
from components.outputs import sha256, write_json
from components.pretraining import stage
from tests.made_episodes import arm, through

EPISODES, FRAMES, STEPS, BATCH = 5, 40, 24, 8
VALUES = {
    "preset": "small",
    "model": {
        "width": 32, "depth": 2, "heads": 2, "key_px": 24, "key_patch_px": 12, "future_px": 12,
        "future_patch_px": 6, "future_frames": 2, "action_patch_steps": 4, "max_steps": 20,
        "action_samples": 2, "anchor_probability": 0.5,
    },
    "full": {
        "stage": "joint", "coupling": "symmetric", "video_share": 0.5,
        "action_samples": 3, "prediction": "v",
        "windows": "event", "chunk_s": 0.2, "history_frames": 0, "words": "event", "codec_px": 3,
        "tube_probability": 0.5, "tube_side": 1, "sight_cones": "always",
        "sight_near_m": 0.05, "sight_far_m": 10.0, "video_weight": 1.0, "tube_weight": 2.0,
        "dct_weight": 0.1, "left_weight": 0.1, "done_weight": 0.1,
        "staircase": {
            "width": 20, "relay_depth": 2, "levels": ["subtask", "action"], "prefix_tokens": 2,
            "text_tokens": 12,
        },
    },
    "processes": 2, "device": "cpu", "batch_size": BATCH, "seed": 3, "muon_lr": 0.002,
    "adamw_lr": 0.001, "momentum": 0.9, "weight_decay": 0.01, "schedule": "wsd", "warmup": 0.1,
    "cooldown": 0.3, "precision": "float32", "parallel": "replicated", "recompute": False,
    "compile": False, "bad_step": "stop", "spike_factor": 10.0, "keep_checkpoints": 2,
    "timeout_s": 120,
    "clip_norm": 1.0, "ema": 0.9, "start_anchors": 0.2, "caption_drop_short": 0.9,
    "caption_drop_long": 0.1, "denoise_steps": 2, "checkpoint_every": 5,
}  # fmt: skip
CONFIG = stage.Config.model_validate(VALUES)


def write(root: Path, cameras: Mapping[str, Calibration] | None = None) -> Path:
    """Episodes with pictures of a moving bar, two events each, captions and a receipt.

    `cameras` that are calibrated all show the same; without, there is one.
    """
    known = {f"observation.images.{name}": said for name, said in (cameras or {}).items()}
    made = []
    for index in range(EPISODES):
        shift = 0.02 * index
        path = through([(0, 0, 0), (0.1 + shift, 0, 0), (0.1, 0.2, 0)], [0.25, 0.25], 80.0)[:FRAMES]
        episode = arm(path, episode_id=f"{index:020d}")
        frames = [np.full((24, 24, 3), 30, np.uint8) for _ in range(FRAMES)]
        for t, frame in enumerate(frames):
            frame[:, (t + index) % 20 : (t + index) % 20 + 4] = 220
        video = root / f"{index}.mp4"
        encode(video, frames, 80.0)
        velocity = np.gradient(path, axis=0).astype(np.float32) * 50
        action = np.column_stack([velocity, np.full(FRAMES, -1, np.float32)])
        made.append(
            lerobot.Recording(
                episode.task, episode.timestamps_s, episode.state, action,
                dict.fromkeys(known or ["observation.images.top"], video),
            )
        )  # fmt: skip
    folder = root / "episodes" / "arm"
    folder.mkdir(parents=True)
    names = episode.state_names, episode.action_names
    lerobot.write(
        folder, made, robot_type="arm", fps=80.0, state_names=names[0], action_names=names[1],
        calibration=known,
    )  # fmt: skip
    _tables(root)
    return root


def _tables(root: Path) -> None:
    ids = [f"{index:020d}" for index in range(EPISODES)]
    manifest = [
        {
            "episode_id": e, "source": "s", "source_uri": "s", "source_version": "v",
            "embodiment": "arm", "episode_index": i, "task": "open the door", "n_frames": FRAMES,
            "duration_s": (FRAMES - 1) / 80, "fps": 80.0, "operator": "", "origins": ["s"],
        }
        for i, e in enumerate(ids)
    ]  # fmt: skip
    records.write(
        root / "episodes/manifest.parquet", manifest, records.MANIFEST, sort_by="episode_id"
    )
    plan, captions = [], []
    for index, episode in enumerate(ids):
        for start, end, text in ((0, 20, "open the door: reach"), (20, 40, "open the door: pull")):
            event = records.event_id(episode, start / 80, end / 80)
            held_out = index == EPISODES - 1
            plan.append(
                {
                    "event_id": event, "episode_id": episode, "weight": 0.0 if held_out else 0.125,
                    "draws": 0 if held_out else STEPS * BATCH // 8,
                    "split": "validation" if held_out else "train",
                    "start_s": start / 80, "end_s": end / 80, "start_frame": start,
                    "end_frame": end, "joint_cluster": 0, "action_cluster": 0,
                }
            )  # fmt: skip
            captions += [
                {
                    "event_id": event, "level": level, "text": said, "captioner": "test",
                    "model_digest": "", "prompt_digest": "", "checks": "{}",
                }
                for level, said in (("action", text), ("subtask", f"a part of {text}"))
            ]  # fmt: skip
    schema = records.PLAN
    for name in ("start_s", "end_s", "start_frame", "end_frame", "joint_cluster", "action_cluster"):
        if name not in schema.names:
            schema = schema.append(records.EVENTS.field(name) if name in records.EVENTS.names
                                   else records.CLUSTERS.field(name))  # fmt: skip
    records.write(root / "plan/plan.parquet", plan, schema, sort_by="event_id")
    records.write(root / "captions/captions.parquet", captions, records.CAPTIONS, "event_id")
    digest = sha256(root / "plan/plan.parquet")
    write_json(root / "plan/receipt.json", {"plan_sha256": digest, "seed": 11})
    write_json(root / "init.json", {})
