"""For calibration: how many episodes each check would reject, and how each fact is distributed.

`report/ingestion/scores.json`, for each robot. Choose bounds with `ingestion.score_only: true`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.ingestion import page
from components.ingestion.measure import KNOWN
from components.ingestion.suites import Check
from components.outputs import write_json

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


def write(
    report: Path,
    table: pd.DataFrame,
    suites: dict[str, list[Check]],
    broken: dict[int, dict[str, Check]],
) -> None:
    """One document; `table` has a row of facts for each episode."""
    found = {}
    for robot, suite in sorted(suites.items()):
        ours = table[table["robot"] == robot]
        found[robot] = {
            "page": slug(robot),
            "episodes": len(ours),
            "unreadable": int(ours["read_problem"].notna().sum()),
            "checks": {c.name: _check(c, ours, broken) for c in suite},
            "facts": {name: _distribution(ours[name]) for name in sorted(KNOWN)},
        }
    write_json(report / "scores.json", found)
    page.write(report, found)


def slug(robot: str) -> str:
    """A robot's name in the names of files; a digest tells apart what looks alike there."""
    found = re.sub(r"[^A-Za-z0-9_-]+", "-", robot) or "unknown"
    return found if found == robot else f"{found}-{hashlib.sha256(robot.encode()).hexdigest()[:6]}"


def _check(check: Check, ours: pd.DataFrame, broken: dict[int, dict[str, Check]]) -> dict[str, Any]:
    count = sum(check.name in broken.get(int(row), {}) for row in ours["row"])
    return {
        "fact": check.fact,
        "min": check.min,
        "max": check.max,
        "severity": check.severity,
        "rejects": count,
        "share": round(count / max(len(ours), 1), 4),
        "distribution": _distribution(ours[check.fact]),
    }


def _distribution(column: pd.Series[float]) -> dict[str, float]:
    """How many were measured, and their quantiles."""
    values = column.to_numpy(np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return {"measured": 0}
    found = zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
    return {"measured": len(values)} | {f"q{100 * q:02g}": round(float(v), 6) for q, v in found}
