"""Pretraining: the receipt is followed to the draw, and no way of dying changes what comes out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from components import records
from components.errors import DataError, UserError
from components.normalisation import Normalisation, quantiles
from components.outputs import sha256, write_json
from components.params import section
from components.pretraining import checkpoints, launch, mirror, stage, view
from components.pretraining.event_plans import event_plans
from components.pretraining.training import noise_seed
from components.pretraining.windows import Windows
from tests.benchmarks import restart
from tests.made_episodes import arm
from tests.made_training import BATCH, CONFIG, EPISODES, STEPS, VALUES, write

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def windows(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Windows:
    folder = tmp_path_factory.mktemp("view")
    view.build(data / "episodes", data / "captions", data / "plan", folder, CONFIG)
    return Windows(folder, CONFIG)


@pytest.mark.slow
def test_killed_and_stopped_trainings_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Two kills and two stops at random steps; `tests/benchmarks/restart.py` has more of them."""
    with restart.projects("stage") as fresh:
        project = fresh()
        expected = restart.train(project, "stage", [], seed=0)
        _follows_the_receipt(project / "tiny", project)
        kinds = ["stop", "one", "all", "stop"]
        plan = [restart.Disturbance(kind) for kind in kinds]
        assert restart.train(fresh(), "stage", plan, seed=5) == expected
    assert all(0 <= d.lost <= restart.EVERY for d in plan if d.kind != "stop"), plan
    assert all(d.lost == 0 for d in plan if d.kind == "stop"), plan


def _follows_the_receipt(data: Path, place: Path) -> None:
    checkpoint = place / "data/checkpoint"
    receipt = json.loads((checkpoint / "receipt.json").read_text())
    assert receipt["plan_sha256"] == sha256(data / "plan/plan.parquet")
    assert receipt["draws"] == receipt["planned_draws"] == STEPS * BATCH
    exposure = pq.read_table(checkpoint / "exposure.parquet").to_pandas()
    assert (exposure["draws"] == exposure["planned_draws"]).all()
    report = json.loads((place / "metrics/pretraining.json").read_text())
    assert report["loss_last"] < report["loss_first"]
    assert report["validation_action_loss"] is not None
    weights = load_file(checkpoint / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_every_planned_draw_is_made_once_whatever_the_world_size(windows: Windows) -> None:
    drawn = np.bincount(np.concatenate([windows.drawn(s) for s in range(windows.steps)]))
    planned = windows.arrays["event_draws"]
    assert (drawn == planned[: len(drawn)]).all() and drawn.sum() == planned.sum()
    one = windows.batch(3, 0, 1)
    two = [windows.batch(3, rank, 2) for rank in range(2)]
    for name in ("keyframes", "future", "state", "actions", "length", "text"):
        both = torch.stack([getattr(b, name) for b in two], dim=1).flatten(0, 1)
        assert torch.equal(getattr(one, name), both), name


def test_windows_hold_the_recorded_signals(windows: Windows, data: Path) -> None:
    batch = windows.validation()
    assert batch is not None and len(batch) == 2
    held_out = pq.read_table(data / "episodes/arm/data/chunk-000/file-000.parquet").to_pandas()
    held_out = held_out[held_out["episode_index"] == EPISODES - 1]
    robot = Normalisation.from_dict(windows.info["normalisation"]["arm"])
    starts = windows.arrays["event_start"][windows.arrays["event_validation"]]
    for row, first in enumerate(starts):
        recorded = np.stack(held_out["action"].to_list())[first : first + 20]
        shown = robot.action_in_units(batch.actions[row].numpy())
        inside = np.abs(robot.action(recorded)) < 1.5  # what is further out was clipped
        assert np.allclose(shown[inside], recorded[inside], atol=1e-4)
        bar = (batch.keyframes[row, 0, 0] > 0).float().mean(0) > 0.5
        assert bar.nonzero().min() == (first + EPISODES - 1) % 20  # the picture of that very frame


def test_captions_are_dropped_by_seconds_whatever_the_rate(windows: Windows) -> None:
    """Robots of 80 and 10 Hz, an episode of each; short events lose their words more often."""
    mine = Windows(windows.folder, windows.config)
    mine.arrays |= {
        "event_episode": np.array([0, 0, 1, 1]), "event_start": np.zeros(4, np.int64),
        "event_end": np.array([80, 40, 40, 160]), "step_s": np.float32([1 / 80, 1 / 10]),
    }  # fmt: skip
    drop = mine._caption_drop(np.arange(4))
    assert drop.argsort().tolist() == [3, 2, 0, 1], "16, 4, 1 and 0.5 s"
    assert drop[[1, 3]] == pytest.approx([0.9, 0.1])
    mine.arrays["step_s"] = np.float32([1 / 80, 1 / 30])
    mine.arrays["event_end"] = np.array([80, 80, 30, 30])
    assert mine._caption_drop(np.arange(4)) == pytest.approx(0.9), "a second each"


def test_a_receipt_that_names_another_plan_is_refused(data: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.mkdir()
    (plan / "plan.parquet").write_bytes((data / "plan/plan.parquet").read_bytes())
    write_json(plan / "receipt.json", {"plan_sha256": "0" * 64, "seed": 0})
    with pytest.raises(DataError, match="names plan 000000000000"):
        view.build(data / "episodes", data / "captions", plan, tmp_path, CONFIG)


def test_draws_that_fill_no_whole_batch_are_refused(windows: Windows) -> None:
    with pytest.raises(UserError, match=r"multiple of pretraining\.batch_size"):
        Windows(windows.folder, stage.Config.model_validate(VALUES | {"batch_size": 10}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 7}, "batch_size (7) must be a multiple of processes (2)"),
        ({"model": VALUES["model"] | {"width": 33}}, "width (33) must be a multiple of heads (2)"),
        ({"model": VALUES["model"] | {"max_steps": 21}}, "multiple of action_patch_steps (4)"),
        ({"model": VALUES["model"] | {"key_px": 25}}, "multiple of key_patch_px (12)"),
    ],
)
def test_values_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        section({"pretraining": VALUES | change}, "pretraining", stage.Config)


def test_another_node_removes_its_states_at_the_end_and_not_the_copy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a gang; the first node alone removes what lies in S3."""
    monkeypatch.setenv("WAMFLOW_STORE", str(tmp_path))
    monkeypatch.setenv("PET_NODE_RANK", "1")
    monkeypatch.setattr(mirror, "remove", None)

    def torchrun(folder: Path, key: str, out: Path | None, _: stage.Config) -> None:
        assert folder.is_dir() and out is None
        (checkpoints.store(key) / "00000005").mkdir(parents=True)

    monkeypatch.setattr(launch, "torchrun", torchrun)
    inputs = [data / name for name in ("episodes", "captions", "plan", "init.json")]
    assert stage.run(*inputs, tmp_path / "checkpoint", config=CONFIG) is None
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    assert not (tmp_path / "checkpoint").exists()


def test_every_step_of_every_rank_has_noise_of_its_own() -> None:
    seeds = [noise_seed(s, t, r) for s in (0, 2**40) for t in range(50) for r in range(2)]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_normalisation_is_the_quantile_range_and_its_inverse() -> None:
    random = np.random.default_rng(0)
    episode = arm(random.normal(size=(1000, 3)) * [1, 10, 0])
    robot = quantiles([episode])["metaworld-sawyer"]
    low, high = np.quantile(episode.state[:, 1], [0.01, 0.99])
    scaled = robot.state(np.array([[0, low, 0, 1], [0, high, 0, 1]], np.float32))
    assert np.allclose(scaled[:, 1], [-1, 1], atol=1e-5)
    assert np.isfinite(robot.state(episode.state)).all()  # the third axis never moved
    inside = np.array([[0.1, -0.2, 0.3, -1.0]], np.float32)
    assert np.allclose(robot.action_in_units(robot.action(inside)), inside, atol=1e-5)


def test_event_plans_are_the_usual_sequence_of_the_training_split(data: Path) -> None:
    manifest = records.read(data / "episodes/manifest.parquet", records.MANIFEST)
    plan = records.read(data / "plan/plan.parquet", records.PLAN)
    by_event = {
        row["event_id"]: row["text"]
        for row in records.read(data / "captions/captions.parquet", records.CAPTIONS).to_pylist()
        if row["level"] == "action"
    }
    texts = [by_event[event] for event in plan["event_id"].to_pylist()]
    usual = ["open the door: reach", "open the door: pull"]
    assert event_plans(manifest, plan, texts) == {"open the door": usual}
    held_out = [
        f"{text}!" if split == "validation" else text
        for text, split in zip(texts, plan["split"].to_pylist(), strict=True)
    ]
    assert event_plans(manifest, plan, held_out) == {"open the door": usual}
