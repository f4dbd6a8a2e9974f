"""Evaluation: intervals against independent mathematics, comparisons, refusals, equal bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from components import outputs, records, tracking
from components.errors import DataError
from components.evaluation import stage, statistics

CONFIG = stage.Config(confidence=0.95, bootstrap_resamples=500, seed=3)
POLICIES = ("model", "hold_still", "random")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (5, 10), (10, 10), (17, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_exact_interval_against_binomial_tails_and_beta_quantiles(
    successes: int, trials: int, confidence: float
) -> None:
    rate, lower, upper = statistics.success_rate(successes, trials, confidence)
    tail = (1 - confidence) / 2
    assert rate == successes / trials
    assert lower is not None
    assert upper is not None
    if successes == 0:
        assert lower == 0.0
    else:  # the rate at which so many successes or more would have probability tail
        assert stats.binom.sf(successes - 1, trials, lower) == pytest.approx(tail, abs=1e-9)
        assert lower == pytest.approx(stats.beta.ppf(tail, successes, trials - successes + 1))
    if successes == trials:
        assert upper == 1.0
    else:
        assert stats.binom.cdf(successes, trials, upper) == pytest.approx(tail, abs=1e-9)
        assert upper == pytest.approx(stats.beta.ppf(1 - tail, successes + 1, trials - successes))


def test_exact_interval_of_no_success_is_the_rule_of_three() -> None:
    assert statistics.success_rate(0, 40, 0.95).upper == pytest.approx(1 - 0.025 ** (1 / 40))


def test_exact_interval_covers_at_least_as_often_as_it_says() -> None:
    intervals = [statistics.success_rate(k, 12, 0.95)[1:] for k in range(13)]
    for rate in np.linspace(0.02, 0.98, 25):
        chance = stats.binom.pmf(np.arange(13), 12, rate)
        covered = sum(p for p, (lo, up) in zip(chance, intervals, strict=True) if lo <= rate <= up)
        assert covered >= 0.95


def test_bootstrap_agrees_with_the_normal_interval_and_is_seeded() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    found = statistics.mean_error(values, 0.95, 4000, seed=1)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.lower == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.upper == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert found == statistics.mean_error(values, 0.95, 4000, seed=1)
    assert found != statistics.mean_error(values, 0.95, 4000, seed=2)


def test_one_value_has_no_interval() -> None:
    assert statistics.mean_error(np.array([0.5]), 0.95, 100, 0) == (0.5, None, None)


# --- the stage -----------------------------------------------------------------------------------


def closed(rates: dict[str, dict[str, int]], number: int = 10) -> list[dict[str, Any]]:
    """Trials on a robot: {task: {policy: successes of `number`}}."""
    return [
        {
            "station": "metaworld",
            "task": task,
            "policy": policy,
            "seed": 1000 + seed,
            "success": seed < rates[task][policy],
            "steps": 100,
            "events": "[]",
        }
        for task in rates
        for policy in POLICIES
        for seed in range(number)
    ]


def replays(errors: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "station": "replay",
            "task": "stack",
            "policy": policy,
            "seed": number,
            "success": None,
            "steps": 20,
            "error": error,
            "events": "[]",
        }
        for policy, values in errors.items()
        for number, error in enumerate(values)
    ]


def evaluate(
    root: Path, rows: list[dict[str, Any]], config: stage.Config = CONFIG
) -> tuple[stage.Report, dict[str, Any]]:
    (root / "checkpoint").mkdir(parents=True, exist_ok=True)
    (root / "checkpoint/model.safetensors").write_bytes(b"weights")
    digest = outputs.sha256(root / "checkpoint/model.safetensors")
    full = [{"checkpoint_digest": digest, "trial": i, **row} for i, row in enumerate(rows)]
    records.write(root / "trials/trials.parquet", full, records.TRIALS, "trial")
    report = stage.run(root / "checkpoint", root / "trials", root / "evaluation", config=config)
    return report, json.loads((root / "evaluation/results.json").read_text())


STRONG = {
    "door": {"model": 9, "hold_still": 0, "random": 1},
    "drawer": {"model": 4, "hold_still": 0, "random": 3},
}


def test_closed_loop_figures_and_comparison(tmp_path: Path) -> None:
    report, results = evaluate(tmp_path, closed(STRONG))
    assert (report.success, report.success_hold_still, report.success_random) == (0.65, 0.0, 0.2)
    lower, upper = (stats.beta.ppf(0.025, 13, 8), stats.beta.ppf(0.975, 14, 7))
    assert (report.success_lower, report.success_upper) == pytest.approx((lower, upper))
    assert report.baselines_upper == pytest.approx(stats.beta.ppf(0.975, 5, 16))
    assert report.above_baselines is False  # 0.408 is not above 0.437
    tasks = results["closed_loop"]["comparison"]
    assert tasks["door"]["above_baselines"] is True
    assert tasks["drawer"]["above_baselines"] is False
    assert results["closed_loop"]["policies"]["model"]["door"]["successes"] == 9
    assert results["open_loop"] is None
    assert report.error is None


def test_a_clearly_better_model_is_above_the_baselines(tmp_path: Path) -> None:
    report, results = evaluate(
        tmp_path, closed({"door": {"model": 19, "hold_still": 0, "random": 2}}, number=20)
    )
    assert report.above_baselines is True
    assert "above both baselines" in results["result"]


def test_replays_say_that_no_robot_moved(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.1, 1.0, size=30)
    errors = {
        "model": list(base),
        "hold_still": list(base + 0.05 + generator.uniform(0, 0.01, 30)),
        "random": list(base + 0.5),
    }
    report, results = evaluate(tmp_path, replays(errors))
    assert results["closed_loop"] is None
    assert report.success is None
    assert report.above_baselines is None
    assert "no robot moved" in report.result
    assert results["open_loop"]["note"] == "open loop: replayed, no robot moved"
    assert report.error == pytest.approx(base.mean())
    assert report.error_random == pytest.approx(base.mean() + 0.5)
    # unpaired intervals overlap by far; differences on the same events do not
    assert report.error_upper is not None
    assert report.error_hold_still is not None
    assert report.error_upper > report.error_hold_still
    assert report.below_baselines is True
    difference = results["open_loop"]["model_minus"]["random"]
    assert difference["difference"] == pytest.approx(-0.5)
    assert difference["lower"] == pytest.approx(-0.5)


def test_one_replayed_event_shows_nothing(tmp_path: Path) -> None:
    report, _ = evaluate(tmp_path, replays({"model": [0.1], "hold_still": [0.5], "random": [0.9]}))
    assert report.error == pytest.approx(0.1)
    assert report.error_upper is None
    assert report.below_baselines is False


def test_robots_and_replays_in_one_list(tmp_path: Path) -> None:
    errors = {"model": [0.2, 0.3], "hold_still": [0.5, 0.4], "random": [0.9, 0.8]}
    report, results = evaluate(tmp_path, closed(STRONG) + replays(errors))
    assert report.trials == 66
    assert report.success == 0.65
    assert report.error == pytest.approx(0.25)
    rows = records.read(tmp_path / "evaluation/results.parquet", stage.RESULTS).to_pylist()
    assert len(rows) == 3 * 3 + 3 * 2
    one = next(r for r in rows if (r["policy"], r["task"]) == ("random", "drawer"))
    assert (one["loop"], one["successes"], one["rate"], one["error"]) == ("closed", 3, 0.3, None)
    assert "no robot moved" in results["result"]


def test_two_stations_with_the_same_task_stay_apart(tmp_path: Path) -> None:
    rows = closed({"door": {"model": 9, "hold_still": 0, "random": 0}})
    other = [{**row, "station": "bench", "success": False} for row in rows]
    _, results = evaluate(tmp_path, rows + other)
    model = results["closed_loop"]["policies"]["model"]
    assert model["metaworld: door"]["rate"] == 0.9
    assert model["bench: door"]["rate"] == 0.0
    assert model["all tasks"]["trials"] == 20


def test_equal_trials_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    rows = closed(STRONG) + replays({p: [0.2, 0.3, 0.7] for p in POLICIES})
    evaluate(tmp_path, rows)
    first = outputs.sha256_folder(tmp_path / "evaluation")
    evaluate(tmp_path, rows[::-1])
    assert outputs.sha256_folder(tmp_path / "evaluation") == first
    picture = (tmp_path / "evaluation/results.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert b"Software" not in picture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint_digest": "0" * 64}, "expected trials of checkpoint .* got some of 0000"),
        ({"checkpoint_digest": None}, "got some of None"),
        ({"policy": "human"}, "unknown policy"),
        ({"success": None}, "success is missing"),
        ({"seed": 77}, r"seed 77: expected one trial of each .* got model"),
        ({"seed": 1001}, r"seed 1001: .* got hold_still, model, model, random"),
    ],
)
def test_wrong_trials_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = closed(STRONG)
    rows[0] |= change
    with pytest.raises(DataError, match=f"(?s){message}"):
        evaluate(tmp_path, rows)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"success": True}, "a replay cannot succeed"),
        ({"error": None}, "expected an error of 0 or more, got None"),
        ({"error": float("nan")}, "got nan"),
        ({"error": -1.0}, "got -1.0"),
    ],
)
def test_wrong_replays_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = replays({policy: [0.1, 0.2] for policy in POLICIES})
    rows[0] |= change
    with pytest.raises(DataError, match=message):
        evaluate(tmp_path, rows)


def test_many_faults_are_said_at_once_and_cut_short(tmp_path: Path) -> None:
    rows = [{**row, "success": None} for row in closed(STRONG)]
    with pytest.raises(DataError, match="and 50 more") as caught:
        evaluate(tmp_path, rows)
    assert str(caught.value).count("success is missing") == 10


def test_no_trials_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no trials"):
        evaluate(tmp_path, [])
    (tmp_path / "checkpoint/model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model.safetensors: no such file"):
        stage.run(tmp_path / "checkpoint", tmp_path / "trials", tmp_path / "x", config=CONFIG)


# --- wandb ---------------------------------------------------------------------------------------

LOG = """
import sys, warnings
from pathlib import Path
from components import tracking
run = tracking.start("wamflow", "evaluation", {"a": 1}, Path(sys.argv[1]), run_id="same")
run.log({"success": 0.5}, step=1)
print("active", run.active)
run.finish()
run.log({"late": 1})
"""


def logged(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", LOG, str(folder)],
        env={**keep, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_wandb_writes_offline_without_a_key_and_leaves_no_links(tmp_path: Path) -> None:
    done = logged(tmp_path / "w")
    assert "active True" in done.stdout, done.stderr
    files = list((tmp_path / "w").rglob("run-same.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0
    assert not [path for path in (tmp_path / "w").rglob("*") if path.is_symlink()]


def test_a_broken_wandb_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = logged(tmp_path / "file" / "w")
    assert "active False" in done.stdout
    assert "warning: wandb not started" in done.stderr
    run = tracking.start("wamflow", "evaluation", {}, tmp_path / "off")  # WANDB_MODE=disabled
    run.log({"a": 1})
    run.finish()
    assert not (tmp_path / "off").exists()
