"""The main job in small: real recordings in simulation, all eight stages, a registered model.

What `make demo` shows, with few episodes and 20 training steps: exact quarantine, nothing to do the
second time, one changed number, and the same digests from nothing in another place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from components.episodes import Episodes
from tests.conftest import git, wamflow
from tests.test_stations import recording

STAGES = [
    "ingestion", "segmentation", "captioning", "clustering",
    "sampling", "pretraining", "evaluation", "registration",
]  # fmt: skip
SMALL = {
    "sampling.draws": 640,
    "pretraining.batch_size": 32,
    "pretraining.checkpoint_every": 8,
    "pretraining.full.dct_weight": 0.5,
    "trials.trials_per_task": 1,
    "trials.max_trial_s": 0.4,
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good and three broken episodes of two tasks."""
    out = tmp_path_factory.mktemp("recordings") / "small"
    return recording.record_demo(out, 8, 40, ("drawer-open", "button-press-topdown"))


def run(project: Path, recorded: Path, api: str, *more: str) -> dict[str, Any]:
    """The summary of one flow run."""
    values = {"ingestion.sources": [str(recorded)], **SMALL}
    settings = [f"{name}={json.dumps(value)}" for name, value in values.items()] + list(more)
    arguments = [word for setting in settings for word in ("--set", setting)]
    process = wamflow(project, "run", "--json", *arguments, api=api, MUJOCO_GL="osmesa")
    out, err = process.communicate(timeout=580)
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out[out.index("{") :])
    return summary


def ran(summary: dict[str, Any]) -> list[str]:
    """Stages that did work."""
    return [stage for stage, outcome in summary["stages"].items() if outcome == "ran"]


def digests(summary: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Of every output of every stage, as `dvc.lock` in the run's branch has them."""
    text = git(Path(summary["worktree"]), "show", f"{summary['branch']}:dvc.lock")
    stages = yaml.safe_load(text)["stages"]
    return {name: {o["path"]: o["md5"] for o in s["outs"]} for name, s in stages.items()}


@pytest.mark.slow
def test_from_recordings_to_a_registered_model(
    checkout: Path, recorded: Path, prefect_api: str, tmp_path: Path
) -> None:
    before = git(checkout, "rev-parse", "HEAD")
    first = run(checkout, recorded, prefect_api)
    assert list(first["stages"]) == STAGES and ran(first) == STAGES
    _has_all_parts(Path(first["worktree"]), first)

    again = run(checkout, recorded, prefect_api)
    assert ran(again) == []
    assert (again["model"], again["model_existed"]) == (first["model"], True)

    changed = run(checkout, recorded, prefect_api, "sampling.seed=1")
    assert ran(changed) == STAGES[STAGES.index("sampling") :]
    assert changed["model"] != first["model"]

    elsewhere = tmp_path / "elsewhere"
    git(checkout, "clone", "--quiet", str(checkout), str(elsewhere))
    assert digests(run(elsewhere, recorded, prefect_api)) == digests(first)

    assert git(checkout, "rev-parse", "HEAD") == before
    assert git(checkout, "status", "--porcelain") == ""
    _is_traceable(checkout, first, changed)


def _has_all_parts(worktree: Path, summary: dict[str, Any]) -> None:
    data = worktree / "data"
    rejected = pq.read_table(data / "quarantine/quarantine.parquet").to_pylist()
    assert sorted((row["episode_index"], row["reason"]) for row in rejected) == [
        (8, "nan_in_signals"),
        (9, "unreadable_video"),
        (10, "timestamps_not_increasing"),
    ]
    episodes = Episodes(data / "episodes")
    assert len(episodes) == 8
    events = pq.read_table(data / "events/events.parquet").to_pandas()
    for episode in episodes:  # gap-free
        own = events[events["episode_id"] == episode.episode_id].sort_values("start_frame")
        assert own["start_frame"].tolist() == [0, *own["end_frame"].tolist()[:-1]]
        assert own["end_frame"].tolist()[-1] == len(episode)
    exposure = pq.read_table(data / "checkpoint/exposure.parquet").to_pandas()
    assert exposure["draws"].sum() == SMALL["sampling.draws"]
    trials = pq.read_table(data / "trials/trials.parquet").to_pandas()
    assert trials.groupby("policy").size().to_dict() == {"hold_still": 2, "model": 2, "random": 2}
    recorded_seeds = set(range(40, 40 + 8))
    assert not recorded_seeds & set(trials["seed"])
    assert summary["model"] == "wam@v0.0.1" and not summary["model_existed"]
    assert (data / "passport/model.safetensors").stat().st_size > 1_000_000
    pictures = list((worktree / "report").rglob("*.png"))
    assert pictures and all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def _is_traceable(checkout: Path, first: dict[str, Any], changed: dict[str, Any]) -> None:
    """Draws of every episode, forwards and backwards, are those of the exposure table."""
    exposure = pq.read_table(Path(first["worktree"]) / "data/checkpoint/exposure.parquet")
    table = exposure.to_pandas().groupby("episode_id")["draws"].sum()
    episode = str(table.index[int(np.argmax(table.to_numpy()))])
    process = wamflow(checkout, "trace", "--episode", episode, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (found,) = json.loads(out)["episodes"]
    draws = {version["tag"]: version["draws"] for version in found["versions"]}
    assert draws[first["model"]] == int(table[episode])
    assert changed["model"] in draws
    process = wamflow(checkout, "trace", str(first["model"]), "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    traced = json.loads(out)
    assert [stage["name"] for stage in traced["stages"]] == STAGES
    drawn = {row["episode_id"]: row["draws"] for row in traced["episodes"]}
    assert {e: drawn[e] for e in table.index} == {e: int(n) for e, n in table.items()}
