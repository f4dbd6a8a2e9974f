"""SIGKILL at any moment of a data stage: nothing half-written is seen, the end is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from components import corrections, lerobot
from components.encoding import encode
from components.outputs import sha256_folder
from flows import snapshot
from tests.made_episodes import arm, pick_and_place

ROOT = Path(__file__).parents[2]
CHAIN = {
    "ingestion": ["inputs/sources.json", "data/episodes", "data/quarantine"],
    "segmentation": ["data/episodes", "inputs/corrections/events.jsonl", "data/events"],
    "captioning": [
        "data/episodes", "data/events", "inputs/corrections/captions.jsonl", "data/captions",
    ],
    "clustering": ["data/episodes", "data/events", "data/captions", "data/clusters"],
    "sampling": ["data/events", "data/captions", "data/clusters", "data/plan"],
}  # fmt: skip
OUTPUTS = {
    stage: paths[1:] if stage == "ingestion" else paths[-1:] for stage, paths in CHAIN.items()
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes with a camera, each a little different."""
    root = tmp_path_factory.mktemp("recordings") / "arm"
    root.mkdir()
    made = []
    for index in range(6):
        plain = pick_and_place(fps=20.0)
        place = plain.end_effector_m
        opening = plain.gripper
        assert place is not None and opening is not None
        command = plain.action[:, 3].astype(float)
        episode = arm(place * (1 + index / 10), opening[:, 0], command, fps=20.0, task=plain.task)
        frames = [np.full((32, 32, 3), 20, np.uint8) for _ in range(len(episode))]
        for t, frame in enumerate(frames):
            frame[(t + index) % 30 :, :, 1] = 200
        video = root.parent / f"{index}.mp4"
        encode(video, frames, 20.0)
        videos = {"observation.images.top": video}
        made.append(
            lerobot.Recording(
                episode.task, episode.timestamps_s, episode.state, episode.action, videos
            )
        )
    lerobot.write(
        root, made, robot_type="arm", fps=20.0, state_names=plain.state_names,
        action_names=plain.action_names,
    )  # fmt: skip
    return root


def workspace(place: Path, recordings: Path) -> Path:
    """A folder with values and sources, as `dvc repro` would meet it."""
    (place / "shared").mkdir(parents=True)
    (place / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    snapshot.write([str(recordings)], place, place / "inputs/sources.json", place / "shared")
    for overlay in (corrections.EVENTS, corrections.CAPTIONS):
        (place / overlay).parent.mkdir(exist_ok=True)
        (place / overlay).touch()
    return place


def start(stage: str, place: Path) -> subprocess.Popen[bytes]:
    """The stage as a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "components", stage, *CHAIN[stage]],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def digests(stage: str, place: Path) -> list[str]:
    """Of every output of a stage."""
    return [sha256_folder(place / path) for path in OUTPUTS[stage]]


@pytest.mark.slow
def test_killed_stages_end_as_undisturbed_ones(recordings: Path, tmp_path: Path) -> None:
    calm, hit = (workspace(tmp_path / name, recordings) for name in ("calm", "hit"))
    random = np.random.default_rng(0)
    killed = 0
    for stage in CHAIN:
        began = time.monotonic()
        assert start(stage, calm).wait(timeout=120) == 0
        took_s = time.monotonic() - began
        for _ in range(3):
            process = start(stage, hit)
            time.sleep(random.uniform(0.4, 1.0) * took_s)
            done = process.poll() is not None
            os.killpg(process.pid, signal.SIGKILL) if not done else None
            process.wait()
            killed += not done
            for path, whole in zip(OUTPUTS[stage], digests_if_there(stage, hit), strict=True):
                assert whole in (None, sha256_folder(calm / path)), f"{stage}: half of {path}"
        assert start(stage, hit).wait(timeout=120) == 0
        assert digests(stage, hit) == digests(stage, calm), stage
        left = [p for p in (hit / "data").iterdir() if p.name.startswith(".")]
        assert left == [], f"{stage} left {left}"
    assert killed >= len(CHAIN)


def digests_if_there(stage: str, place: Path) -> list[str | None]:
    """Of every output; None for one that is not there."""
    paths = [place / path for path in OUTPUTS[stage]]
    return [sha256_folder(path) if path.exists() else None for path in paths]
