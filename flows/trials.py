"""Trials of a checkpoint, collected once: `data/trials` of a worktree from a store by content.

The store's key is the digest of everything that a trial depends on (checkpoint, settings, code of
the loop, station and server; in replay the recordings too), so a second run with the same model
repeats nothing, and a killed collection goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from components import outputs, params
from components.errors import DataError
from components.trials import settings
from flows import failures, locks

INPUTS = ("data/checkpoint", "data/episodes", "data/captions", "data/plan")
CODE = (  # what acts and what serves, with all that they import (tests/test_graph.py)
    "components/trials",
    "components/stations",
    "components/serving",
    "components/__init__.py",
    "components/__main__.py",
    "components/bert.py",
    "components/calibration.py",
    "components/encoders.py",
    "components/encoding.py",
    "components/episodes.py",
    "components/errors.py",
    "components/lerobot.py",
    "components/lerobot_files.py",
    "components/lerobot_stats.py",
    "components/mp4.py",
    "components/normalisation.py",
    "components/outputs.py",
    "components/packets.py",
    "components/params.py",
    "components/reasoning.py",
    "components/records.py",
    "components/sentences.py",
    "components/sight.py",
    "components/weights.py",
    "models",
)
Execute = Callable[
    [list[str]], None
]  # runs `python -m ARGUMENTS...`, raises a failure by its class


def collect(worktree: Path, store: Path, execute: Execute | None = None) -> Path:
    """`<worktree>/data/trials` with the trials of its checkpoint; returns that folder.

    They come from `<store>/<key>/` where they exist, else they are collected now, in a process that
    imports the worktree's code (`execute`; a flow passes its supervisor). Journal, server logs and
    pictures go to `<worktree>/report/trials/`. Waits while another process collects the same.
    """
    execute = execute or _in(worktree)
    if not (worktree / "data/checkpoint/config.json").is_file():
        raise DataError(f"{worktree / 'data/checkpoint'}: no checkpoint; run pretraining first.")
    name = key(worktree)
    kept, partial = store / name, store / f"{name}.partial"
    with locks.waited(store / f"{name}.lock"):
        if not (kept / "trials.parquet").is_file():
            execute(["components.trials", *INPUTS, str(partial.absolute())])
            outputs.write_json(partial / "inputs.json", inputs(worktree))
            shutil.rmtree(kept, ignore_errors=True)
            partial.rename(kept)
    target = worktree / "data" / "trials"
    with outputs.whole_folder(target) as out:
        shutil.copyfile(kept / "trials.parquet", out / "trials.parquet")
    shutil.copytree(
        kept,
        worktree / "report" / "trials",
        ignore=shutil.ignore_patterns("trials.parquet"),
        dirs_exist_ok=True,
    )
    return target


def key(worktree: Path) -> str:
    """Name of the trials in a store: the digest of `inputs`."""
    text = json.dumps(inputs(worktree), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def inputs(worktree: Path) -> dict[str, object]:
    """What the trials of a worktree depend on, as digests."""
    config = params.section(
        params.load(worktree / "params.yaml"), "trials", settings.Config, str(worktree)
    )
    station = settings.station_for(config, worktree / "data/checkpoint")
    code = {
        path.relative_to(worktree).as_posix(): outputs.sha256(path)
        for place in CODE
        for path in sorted([*worktree.glob(place), *worktree.glob(f"{place}/**/*.py")])
        if path.is_file()
    }
    found: dict[str, object] = {
        "settings": config.model_dump(mode="json"),
        "station": station,
        "data/checkpoint": outputs.sha256_folder(worktree / "data/checkpoint"),
        "code": code,
    }
    if station == "replay":
        tables = ("episodes/manifest", "captions/captions", "plan/plan")
        found |= {t: outputs.sha256(worktree / "data" / f"{t}.parquet") for t in tables}
    return found


def _in(worktree: Path) -> Execute:
    """`python -m` in a worktree, with nothing around it."""

    def execute(arguments: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder) / "failure.json"
            code = subprocess.run(
                [sys.executable, "-m", *arguments],
                cwd=worktree,
                env={**os.environ, "WAMFLOW_FAILURE": str(said)},
                check=False,
            ).returncode
            if code:
                failure = json.loads(said.read_text()) if said.is_file() else {}
                message = failure.get("message", f"trials: ended with code {code}.")
                raise failures.failure(failure.get("kind", "crash"), message)

    return execute
