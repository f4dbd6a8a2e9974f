"""Registration: what the passport holds, equal bytes for equal content, reasons to refuse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from components import outputs, records
from components.errors import DataError
from components.evaluation import stage as evaluation_stage
from components.registration import stage
from components.sampling import stage as sampling_stage

CONFIG = stage.Config(model_name="wam", licence="apache-2.0", require_above_baselines=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan by sampling, a checkpoint that followed it, an evaluation by the evaluation stage."""
    root = tmp_path_factory.mktemp("registration")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("WAMFLOW_REPORT", str(root / "report"))
        make_plan(root)
        make_checkpoint(root)
        make_evaluation(root)
    return root


def make_plan(root: Path) -> None:
    events = [
        {
            "event_id": f"{i:02}",
            "episode_id": f"episode-{i // 4}",
            "start_s": 0.0,
            "end_s": 1.0,
            "start_frame": 0,
            "end_frame": 20,
            "kind": "motion",
        }
        for i in range(40)
    ]
    clusters = [
        {"event_id": e["event_id"], "joint_cluster": 0, "action_cluster": 0} for e in events
    ]
    captions = [{"event_id": e["event_id"], "level": "action", "text": "go"} for e in events]
    records.write(root / "events/events.parquet", events, records.EVENTS, "event_id")
    records.write(root / "clusters/clusters.parquet", clusters, records.CLUSTERS, "event_id")
    records.write(root / "captions/captions.parquet", captions, records.CAPTIONS, "event_id")
    sampling_stage.run(
        root / "events",
        root / "captions",
        root / "clusters",
        root / "plan",
        config=sampling_stage.Config(
            draws=500,
            temperature=0.5,
            balance="both",
            idle_weight=0.1,
            flagged_weight=1.0,
            min_event_s=0.0,
            validation_fraction=0.2,
            seed=0,
        ),
    )


def make_checkpoint(root: Path) -> None:
    folder = root / "checkpoint"
    folder.mkdir()
    tensors = {
        "action.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "action.bias": np.zeros(3, dtype=np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    outputs.write_json(
        folder / "config.json", {"preset": "tiny", "embodiments": [{"name": "metaworld-sawyer"}]}
    )
    outputs.write_json(folder / "normalisation.json", {"metaworld-sawyer": {"low": [0.0]}})
    outputs.write_json(folder / "event_plans.json", {"open the door": ["reach", "pull"]})
    plan = records.read(root / "plan/plan.parquet", records.PLAN).to_pylist()
    exposure = [
        {
            "event_id": row["event_id"],
            "episode_id": row["episode_id"],
            "planned_draws": row["draws"],
            "draws": row["draws"],
        }
        for row in plan
        if row["draws"]
    ]
    records.write(folder / "exposure.parquet", exposure, records.EXPOSURE, "event_id")
    receipt = {
        "plan_sha256": outputs.sha256(root / "plan/plan.parquet"),
        "planned_draws": 500,
        "draws": 500,
        "steps": 20,
        "world_size": 2,
        "losses": [1.0, 0.5],
    }
    outputs.write_json(folder / "receipt.json", receipt)


def make_evaluation(root: Path, successes: int = 9, station: str = "metaworld") -> None:
    digest = outputs.sha256(root / "checkpoint/model.safetensors")
    moved = station != "replay"
    trials = [
        {
            "trial": 10 * seed + number,
            "station": station,
            "task": "door-open",
            "policy": policy,
            "seed": seed,
            "success": policy == "model" and seed < successes if moved else None,
            "error": None if moved else 0.1 + 0.2 * number,
            "steps": 9,
            "checkpoint_digest": digest,
        }
        for seed in range(10)
        for number, policy in enumerate(("model", "hold_still", "random"))
    ]
    records.write(root / "trials/trials.parquet", trials, records.TRIALS, "trial")
    evaluation_stage.run(
        root / "checkpoint",
        root / "trials",
        root / "evaluation",
        config=evaluation_stage.Config(confidence=0.95, bootstrap_resamples=100, seed=0),
    )


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def register(root: Path, **changes: Any) -> stage.Report:
    config = stage.Config(**{**CONFIG.model_dump(), **changes})
    return stage.run(
        root / "checkpoint", root / "plan", root / "evaluation", root / "passport", config=config
    )


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


# --- what is written -----------------------------------------------------------------------------


def test_the_passport_holds_all_that_a_policy_needs(root: Path) -> None:
    report = register(root)
    names = {path.name for path in (root / "passport").iterdir()}
    carried = {"model.safetensors", "config.json", "normalisation.json", "event_plans.json"}
    assert names == carried | {"README.md", "digests.json"}
    for name in carried:
        assert (root / "passport" / name).read_bytes() == (root / "checkpoint" / name).read_bytes()
    assert load_file(root / "passport/model.safetensors")["action.weight"].shape == (3, 4)
    assert report.files == 6
    assert report.weights_sha256 == outputs.sha256(root / "checkpoint/model.safetensors")


def test_digests_cover_every_file_here_and_every_input(root: Path) -> None:
    register(root)
    digests = read(root / "passport/digests.json")
    files = {p.name for p in (root / "passport").iterdir()} - {"digests.json"}
    assert set(digests["files"]) == files
    for name, digest in digests["files"].items():
        assert outputs.sha256(root / "passport" / name) == digest
    expected = {
        path.relative_to(root).as_posix()
        for folder in ("checkpoint", "plan", "evaluation")
        for path in (root / folder).iterdir()
    }
    assert set(digests["inputs"]) == expected
    for name, digest in digests["inputs"].items():
        assert outputs.sha256(root / name) == digest


def test_equal_content_gives_equal_bytes_wherever_it_lies(root: Path, tmp_path: Path) -> None:
    first = register(root)
    shutil.copytree(root, tmp_path / "elsewhere/deeper", ignore=shutil.ignore_patterns("passport"))
    second = register(tmp_path / "elsewhere/deeper")
    assert first == second
    assert outputs.sha256_folder(root / "passport") == first.passport_sha256
    assert register(root).passport_sha256 == first.passport_sha256
    assert register(root, model_name="other").passport_sha256 != first.passport_sha256
    for path in (root / "passport").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_read_only_weights_from_a_cache_are_carried(root: Path) -> None:
    (root / "checkpoint/model.safetensors").chmod(0o444)
    register(root)
    register(root)  # replaces the folder that holds the read-only file
    os.link(root / "checkpoint/model.safetensors", root / "still-a-file")
    assert (root / "still-a-file").read_bytes()


def test_the_card_says_what_the_files_say(root: Path) -> None:
    register(root)
    text = (root / "passport/README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "apache-2.0"
    assert header["pipeline_tag"] == "robotics"
    plan = records.read(root / "plan/plan.parquet", records.PLAN).to_pylist()
    train = [row for row in plan if row["split"] == "train"]
    assert f"- training episodes: {len({row['episode_id'] for row in train})}" in text
    assert f"- training events: {len(train)}, of which {len(train)} were drawn" in text
    assert "- draws: 500" in text
    assert "- tasks: open the door" in text
    assert "- embodiments: metaworld-sawyer" in text
    assert "- parameters: 15 (F32)" in text
    assert "- steps: 20" in text
    assert "| door-open | 9/10 = 0.90 (0.55 to 1.00) | 0/10 = 0.00 (0.00 to 0.31) |" in text
    assert "not shown to be" not in text.lower()


def test_the_card_of_a_weak_model_says_so(root: Path) -> None:
    make_evaluation(root, successes=2)
    register(root)
    text = (root / "passport/README.md").read_text()
    assert "It is not shown to be better than holding still" in text
    assert "Not shown to be above both baselines on: all tasks, door-open." in text


def test_the_card_of_a_replayed_robot_claims_no_success(root: Path) -> None:
    make_evaluation(root, station="replay")
    report = register(root)
    text = (root / "passport/README.md").read_text()
    assert "No robot moved in the evaluation" in text
    assert "| door-open | 0.100 (0.100 to 0.100) | 0.300 (0.300 to 0.300) |" in text
    assert "no robot moved" in report.result


# --- refusals ------------------------------------------------------------------------------------


def edit(path: str, **changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        outputs.write_json(root / path, {**read(root / path), **changes})

    return change


def other_draws(root: Path) -> None:
    path = root / "checkpoint/exposure.parquet"
    rows = records.read(path, records.EXPOSURE).to_pylist()
    rows[0]["draws"] += 1
    rows.pop()
    records.write(path, rows, records.EXPOSURE, "event_id")


def other_weights(root: Path) -> None:
    save_file({"w": np.ones(2, dtype=np.float32)}, root / "checkpoint/model.safetensors")


def nan_weights(root: Path) -> None:
    tensors = {"w": np.array([1.0, np.nan], dtype=np.float32)}
    save_file(tensors, root / "checkpoint/model.safetensors")


def other_plan(root: Path) -> None:
    path = root / "plan/plan.parquet"
    rows = records.read(path, records.PLAN).to_pylist()
    outputs.write_table(path, records.pa.Table.from_pylist(rows[::-1]))


def cut(path: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).unlink()
        (root / path).write_bytes(content[: len(content) // 2])

    return change


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


@pytest.mark.parametrize(
    ("breaks", "reasons"),
    [
        (edit("checkpoint/receipt.json", plan_sha256="f" * 64), ["trained on plan ffff"]),
        (edit("checkpoint/receipt.json", plan_sha256=None), ["trained on plan None"]),
        (
            edit("plan/receipt.json", plan_sha256="f" * 64),
            [r"plan/receipt.json: expected .* got f"],
        ),
        (other_plan, ["plan/receipt.json: expected plan_sha256", "trained on plan"]),
        (other_draws, ["2 events were not drawn as planned"]),
        (other_weights, ["results.json: evaluated checkpoint"]),
        (nan_weights, ["NaN or Inf in 1 tensors, first w", "results.json: evaluated checkpoint"]),
        (cut("checkpoint/model.safetensors"), ["not a readable safetensors file"]),
        (cut("checkpoint/config.json"), ["config.json: not valid JSON"]),
        (cut("checkpoint/exposure.parquet"), ["exposure.parquet: not a readable Parquet file"]),
        (cut("evaluation/results.json"), ["results.json: not valid JSON"]),
        (remove("checkpoint/model.safetensors"), ["model.safetensors: no such file"]),
        (remove("checkpoint/normalisation.json"), ["normalisation.json: no such file"]),
        (remove("checkpoint/receipt.json"), ["receipt.json: no such file"]),
        (remove("plan/plan.parquet"), ["plan.parquet: no such file"]),
        (remove("evaluation/results.json"), ["results.json: no such file"]),
    ],
)
def test_a_broken_chain_is_refused(
    root: Path, breaks: Callable[[Path], None], reasons: list[str]
) -> None:
    breaks(root)
    for reason in reasons:
        with pytest.raises(DataError, match=reason):
            register(root)
    assert not list(root.glob("*passport*"))


def test_all_reasons_are_said_at_once(root: Path) -> None:
    other_draws(root)
    other_weights(root)
    edit("checkpoint/receipt.json", plan_sha256="f" * 64)(root)
    remove("checkpoint/config.json")(root)
    with pytest.raises(DataError, match=r"refused, 4 reason\(s\)") as caught:
        register(root)
    assert len(str(caught.value).splitlines()) == 5


def test_a_model_that_must_beat_the_baselines(root: Path) -> None:
    assert register(root, require_above_baselines=True).files == 6
    make_evaluation(root, successes=5)
    with pytest.raises(
        DataError, match=r"1 reason\(s\).*(?s:.*)not shown to be above the baselines"
    ):
        register(root, require_above_baselines=True)
    make_evaluation(root, station="replay")
    with pytest.raises(DataError, match="no robot moved, so the model cannot be shown"):
        register(root, require_above_baselines=True)
    assert register(root).files == 6


@pytest.mark.parametrize(
    "wrong", [{"model_name": "Wam"}, {"model_name": "a b"}, {"licence": ""}, {"more": 1}]
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        stage.Config(**{**CONFIG.model_dump(), **wrong})
