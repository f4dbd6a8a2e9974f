"""Means and intervals with the training seed as the unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
Interval = tuple[float, float] | None


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean; None for one value, which has no spread.

    A percentile bootstrap of ten units is too narrow; this one is exact for normal values.
    """
    from scipy.stats import t

    if len(values) < 2:
        return None
    sample = np.asarray(values, dtype=np.float64)
    half = t.ppf((1 + CONFIDENCE) / 2, len(sample) - 1) * sample.std(ddof=1) / len(sample) ** 0.5
    return float(sample.mean() - half), float(sample.mean() + half)


def by_seed(rows: list[dict[str, Any]], arm: str, value: str = "progress") -> dict[int, float]:
    """{training seed: mean over its tasks of the mean over their trials}."""
    found: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if row["arm"] == arm:
            found.setdefault(row["seed"], {}).setdefault(row["task"], []).append(float(row[value]))
    return {
        seed: float(np.mean([np.mean(trials) for trials in tasks.values()]))
        for seed, tasks in sorted(found.items())
    }


def compared(rows: list[dict[str, Any]], event: str, chunk: str) -> dict[str, Any]:
    """Both arms and the paired difference over the seeds that have both."""
    of_event, of_chunk = by_seed(rows, event), by_seed(rows, chunk)
    seeds = sorted(of_event.keys() & of_chunk.keys())
    a, b = [of_event[seed] for seed in seeds], [of_chunk[seed] for seed in seeds]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return {
        "training_seeds": len(seeds),
        "progress_event": _rounded(float(np.mean(a))),
        "progress_chunk": _rounded(float(np.mean(b))),
        "ci_event": _both(interval(a)),
        "ci_chunk": _both(interval(b)),
        "difference": _rounded(float(np.mean(differences))),
        "ci_difference": _both(interval(differences)),
    }


def _rounded(value: float) -> float:
    return round(value, 2)


def _both(found: Interval) -> list[float] | None:
    return None if found is None else [_rounded(found[0]), _rounded(found[1])]
