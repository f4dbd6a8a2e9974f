"""The main job from nothing, then again, then with one changed number: `make demo` as figures.

Everything happens in a fresh clone of the checkout's last commit in a temporary folder; the user's
checkout is not touched. The change re-plans few draws, so that the third run is short.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def wamflow(clone: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """(summary, seconds) of one command in the clone; its log goes to our standard error."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=clone,
        env=os.environ | {"MUJOCO_GL": "osmesa", "PYTHONPATH": ""},
        stdout=sys.stderr,
        check=True,
    )
    seconds = time.monotonic() - began
    latest = max((clone / ".runs").glob("*/report/run.json"), key=lambda p: p.stat().st_mtime)
    summary: dict[str, Any] = json.loads(latest.read_text())
    return summary, seconds


def ran(summary: dict[str, Any]) -> list[str]:
    """Stages that did work."""
    return [stage for stage, outcome in summary["stages"].items() if outcome == "ran"]


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first recorded scene")
    parser.add_argument("--tasks", default="", help="by comma; the demo's four when empty")
    parser.add_argument("--episodes", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        options = ["--seed", str(given.seed), "--episodes", str(given.episodes)]
        options += ["--tasks", given.tasks] if given.tasks else []
        first, seconds = wamflow(clone, "demo", *options)
        again, noop_seconds = wamflow(clone, "demo", *options)
        if ran(again):
            sys.exit(f"the second demo ran {ran(again)}; expected nothing")
        few = (
            10
            * first["reports"]["pretraining"]["draws"]
            // first["reports"]["pretraining"]["steps"]
        )
        changed, _ = wamflow(clone, "run", "--set", f"sampling.draws={few}")
    reports = first["reports"]
    evaluation = reports["evaluation"]
    figures = {
        "seconds": round(seconds, 1),
        "noop_seconds": round(noop_seconds, 1),
        "episodes": reports["ingestion"]["episodes"],
        "quarantined": reports["ingestion"]["quarantined"],
        "events": reports["segmentation"]["events"],
        "success": evaluation["success"],
        "success_ci": [evaluation["success_lower"], evaluation["success_upper"]],
        "success_hold_still": evaluation["success_hold_still"],
        "success_random": evaluation["success_random"],
        "baselines_upper": evaluation["baselines_upper"],
        "stages_rerun_after_sampling_change": ran(changed),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
