"""`python -m flows.pods.entry`, the entry of every pod: clone the commit, bring inputs, do a stage.

The pod with index 0 runs `dvc repro` and pushes the result; the others of a gang run the stage's
command on the same inputs, and torchrun joins them (PET_*). The failure's class goes to the
termination message, where the flow reads it (`flows/pods/states.py`). A result that the remote has
already is not made again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import StoppedError, UserError, WamflowError
from flows import graph, supervisor
from flows.pods import exchange
from flows.workspace import Run

TERMINATION_BYTES = 4096  # Kubernetes keeps no more of a termination message


@dataclass(frozen=True)
class Told:
    """What `flows/pods/manifests.py` wrote into the pod's environment."""

    run: str
    stage: str
    revision: str
    branch: str
    git_url: str
    remote: str
    index: int = 0
    folder: Path = Path("/scratch")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Told:
        """UserError that names every variable that is missing."""
        names = ("RUN", "STAGE", "REVISION", "BRANCH", "GIT_URL", "REMOTE")
        if missing := [f"WAMFLOW_{n}" for n in names if not environment.get(f"WAMFLOW_{n}")]:
            raise UserError(f"pod: missing in the environment: {', '.join(missing)}.")
        index = int(environment.get("JOB_COMPLETION_INDEX", "0"))
        folder = Path(environment.get("WAMFLOW_FOLDER", "/scratch"))
        run, stage, revision, branch, git_url, remote = (environment[f"WAMFLOW_{n}"] for n in names)
        return cls(run, stage, revision, branch, git_url, remote, index, folder)


def do(told: Told) -> None:
    """The stage, from clone to pushed result. Raises the failure's class."""
    run = _cloned(told)
    exchange.use_remote(run.worktree, told.remote)
    exchange.restore_upstream(run.worktree, told.stage)
    if exchange.restore(run.worktree, told.stage):
        _say(f"{told.stage}: the remote has this result already")
    elif told.index == 0:
        supervisor.reproduce(told.stage, run, log=_say)
        exchange.push(run.worktree)
        _say(f"{told.stage}: done, result pushed")
    else:
        supervisor.run_module(_module(run.worktree, told.stage), told.stage, run, log=_say)


def _cloned(told: Told) -> Run:
    """A fresh clone; what a restarted container left is removed."""
    worktree = told.folder / "run"
    shutil.rmtree(worktree, ignore_errors=True)
    shared = told.folder / "shared"
    (shared / "locks").mkdir(parents=True, exist_ok=True)
    exchange.clone(told.git_url, told.branch, told.revision, worktree)
    return Run(told.run, worktree, worktree, shared, told.revision)


def _module(worktree: Path, name: str) -> list[str]:
    """The stage's command after `python -m`."""
    (cmd,) = [stage.cmd for stage in graph.stages(worktree) if stage.name == name]
    words = shlex.split(cmd)
    if words[:2] != ["python", "-m"]:
        raise UserError(f"dvc.yaml: {name}: expected a command `python -m ...`, got {cmd!r}.")
    return words[2:]


def main(environment: Mapping[str, str]) -> int:
    """Exit code of the failure's class; 0 when the stage's result is on the remote."""
    signal.signal(signal.SIGTERM, _stop)
    where = Path(environment.get("WAMFLOW_TERMINATION", "/dev/termination-log"))
    try:
        do(Told.of(environment))
    except WamflowError as error:
        print(f"error ({error.kind}): {error}", file=sys.stderr, flush=True)
        return _ended(where, error.kind, str(error), error.exit_code)
    except Exception as error:
        traceback.print_exception(error)
        return _ended(where, "crash", f"{type(error).__name__}: {error}", 1)
    return 0


def _ended(where: Path, kind: str, message: str, code: int) -> int:
    """Write the termination message, cut in its middle to what Kubernetes keeps."""
    kept = len(message)
    while len(text := json.dumps({"kind": kind, "message": message}).encode()) > TERMINATION_BYTES:
        kept = kept * 3 // 4
        message = f"{message[: kept // 2]} [...] {message[-(kept // 2) :]}"
    where.write_bytes(text)
    return code


def _stop(signum: int, frame: object) -> None:
    raise StoppedError(f"pod: got signal {signum}; the stage was asked to save and end.")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(os.environ))
