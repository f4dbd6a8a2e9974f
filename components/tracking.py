"""Figures of a run in Weights & Biases: offline unless `WANDB_API_KEY` is set, never in the way.

A failure of wandb is one printed warning; the stage goes on without it. What wandb writes carries a
clock, so `folder` lies in the run's report. `WANDB_MODE=disabled` switches it off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Run:
    """One wandb run, or nothing at all: every call is safe."""

    def __init__(self, run: Any | None, folder: Path) -> None:
        self._run, self._folder = run, folder

    @property
    def active(self) -> bool:
        """Whether wandb still takes what is logged."""
        return self._run is not None

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Numbers by name, at a step where there is one."""
        self._safely("log", lambda run: run.log(dict(values), step=step))

    def image(self, name: str, path: Path) -> None:
        """A picture file by name."""
        self._safely("image", lambda run: run.log({name: _wandb().Image(str(path))}))

    def finish(self) -> None:
        """Write all that is left and end wandb's own process."""
        run = self._run
        self._safely("finish", lambda run: run.finish())
        self._run = run
        self._safely("teardown", lambda _: _wandb().teardown())
        self._run = None
        for link in [path for path in self._folder.rglob("*") if path.is_symlink()]:
            link.unlink()  # `latest-run` and the like: absolute, and DVC takes no links

    def _safely(self, what: str, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # wandb raises many kinds, none of which may end a training
            _warn(f"{what} failed: {type(error).__name__}: {error}")
            self._run = None


def start(
    project: str,
    job_type: str,
    config: Mapping[str, Any],
    folder: Path,
    run_id: str | None = None,
) -> Run:
    """Start logging below `folder`; the same `run_id` goes on with the same run. Never raises."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return Run(None, folder)
    mode = os.environ.get("WANDB_MODE") or (
        "online" if os.environ.get("WANDB_API_KEY") else "offline"
    )
    try:
        wandb = _wandb()
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(console="off", silent=True, disable_git=True, init_timeout=30)
        run = wandb.init(
            project=project,
            job_type=job_type,
            config=dict(config),
            dir=str(folder),
            id=run_id,
            resume="allow" if run_id and mode == "online" else None,
            mode=mode,
            settings=settings,
        )
    except Exception as error:  # a missing package, a full disk, no network, a wrong key
        _warn(f"not started: {type(error).__name__}: {error}")
        return Run(None, folder)
    return Run(run, folder)


def _wandb() -> Any:
    import wandb

    return wandb


def _warn(message: str) -> None:
    print(f"warning: wandb {message}; the figures are in metrics/ all the same.", file=sys.stderr)
