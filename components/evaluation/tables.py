"""Trials, policy by policy and task by task, as figures with intervals and comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np

from components.evaluation import statistics

Row = dict[str, Any]
POLICIES = ("model", "hold_still", "random")
BASELINES = POLICIES[1:]
REPLAY = "replay"  # the station of a robot that has none: recorded events, compared open loop
OPEN_LOOP = "open loop: replayed, no robot moved"
ALL = "all tasks"


def closed_loop(trials: list[Row], confidence: float) -> Row | None:
    """Success rates with exact intervals; None without trials on a robot.

    The model is above the baselines when its lower bound lies above each of their upper bounds.
    """
    if not trials:
        return None

    def rate(chosen: list[Row]) -> Row:
        successes = sum(trial["success"] for trial in chosen)
        estimate = statistics.success_rate(successes, len(chosen), confidence)
        return {"successes": successes, "trials": len(chosen), **_named("rate", estimate)}

    table = {policy: _by_task(trials, policy, rate) for policy in POLICIES}
    comparison = {task: _above(table, task) for task in table["model"]}
    return {
        "stations": sorted({trial["station"] for trial in trials}),
        "policies": table,
        "comparison": comparison,
        "above_baselines": comparison[ALL]["above_baselines"],
    }


def _above(table: Row, task: str) -> Row:
    upper = max(table[policy][task]["upper"] for policy in BASELINES)
    lower = table["model"][task]["lower"]
    return {"model_lower": lower, "baselines_upper": upper, "above_baselines": lower > upper}


def open_loop(trials: list[Row], confidence: float, resamples: int, seed: int) -> Row | None:
    """Mean normalised action errors with bootstrap intervals over events; None without replays.

    Policies are compared by their difference on the same events: the model is better when the
    interval of (model - baseline) lies below 0 for both baselines.
    """
    if not trials:
        return None

    def error(chosen: list[Row]) -> Row:
        values = np.array([trial["error"] for trial in chosen])
        estimate = statistics.mean_error(values, confidence, resamples, seed)
        return {"events": len(chosen), **_named("error", estimate)}

    table = {policy: _by_task(trials, policy, error) for policy in POLICIES}
    by_policy = {p: [t["error"] for t in trials if t["policy"] == p] for p in POLICIES}
    differences = {
        baseline: _named(
            "difference",
            statistics.mean_error(
                np.subtract(by_policy["model"], by_policy[baseline]), confidence, resamples, seed
            ),
        )
        for baseline in BASELINES
    }
    return {
        "note": OPEN_LOOP,
        "policies": table,
        "model_minus": differences,
        "below_baselines": all(
            d["upper"] is not None and d["upper"] < 0 for d in differences.values()
        ),
    }


def _named(name: str, estimate: statistics.Estimate) -> Row:
    return {name: estimate.value, "lower": estimate.lower, "upper": estimate.upper}


def _by_task(trials: list[Row], policy: str, figure: Any) -> Row:
    """{task: figure of the policy's trials there}, and of all of them together."""
    mine = [trial for trial in trials if trial["policy"] == policy]
    several = len({trial["station"] for trial in trials}) > 1
    groups: dict[str, list[Row]] = {ALL: mine}
    for trial in mine:
        name = f"{trial['station']}: {trial['task']}" if several else trial["task"]
        groups.setdefault(name, []).append(trial)
    return {name: figure(chosen) for name, chosen in groups.items()}


def rows(closed: Row | None, opened: Row | None) -> list[Row]:
    """One row for each loop, policy and task, for `results.parquet`."""
    found = []
    for loop, result in (("closed", closed), ("open", opened)):
        for policy, tasks in (result or {"policies": {}})["policies"].items():
            for task, figure in tasks.items():
                found.append({"loop": loop, "policy": policy, "task": task, **figure})
    return found
