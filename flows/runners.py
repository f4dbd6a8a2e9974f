"""Where a stage runs: functions of one signature. `meta.pod` in dvc.yaml and one setting choose.

A runner returns when the stage is done (outputs and `dvc.lock` are in the run's worktree) and
raises a `WamflowError` of the failure's class otherwise (`flows/failures.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from flows.graph import Stage
from flows.workspace import Run

Setting = Literal["local", "kubernetes"]


class Runner(Protocol):
    """One stage of one run; `attempt` counts from 1, `log` takes one line at a time."""

    def __call__(
        self, stage: Stage, run: Run, *, attempt: int, log: Callable[[str], None]
    ) -> None: ...


def local(stage: Stage, run: Run, *, attempt: int, log: Callable[[str], None]) -> None:
    """`dvc repro` of one stage in the run's worktree on this machine, under the supervisor."""
    from flows import supervisor

    supervisor.reproduce(stage.name, run, log=log)


def choose(stage: Stage, setting: Setting) -> Runner:
    """With `kubernetes`, stages whose pod is `gpu` or `train` go there; all others stay here."""
    if setting == "kubernetes" and stage.pod != "cpu":
        return kubernetes
    return local


def kubernetes(stage: Stage, run: Run, *, attempt: int, log: Callable[[str], None]) -> None:
    """One Job on a cluster; see `flows/pods/run.py`."""
    from flows.pods import run as pods

    pods.run_stage(stage, run, attempt=attempt, log=log)
