"""Runs one command in a run's worktree: nothing of it is left behind, and its failure has a class.

The command stands under `flows/guard.py` in a session of its own; its output goes to
`report/<name>.log`, which is followed into the caller's log, so a slow reader never blocks a stage.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from components.errors import OutOfSpaceError, UserError
from flows import failures, guard, locks
from flows.workspace import Run

GRACE_S = 60.0  # for a stage to save after SIGTERM
ORPHAN_GRACE_S = 5.0  # the same when the flow is gone
TAIL_LINES = 15  # of the log, in a crash's message
Log = Callable[[str], None]


def reproduce(stage: str, run: Run, *, log: Log) -> None:
    """`dvc repro` of one stage. Raises what its failure's class says."""
    run_module(["dvc", "repro", "--single-item", stage], stage, run, log=log)


def run_module(arguments: list[str], name: str, run: Run, *, log: Log) -> None:
    """`python -m ARGUMENTS...` in the worktree, alone there, under the guard.

    WamflowError of the failure's class; UserError when another process works in the worktree.
    """
    lock = run.shared / "locks" / f"stage-{run.name}.lock"
    with locks.held(lock, f"worktree {run.worktree}") as held:
        end_orphans(run.worktree)
        environment = stage_environment(run)
        _assert_own_code(run, environment)
        failure_file = run.worktree / ".dvc" / "tmp" / "failure.json"
        failure_file.parent.mkdir(exist_ok=True)
        failure_file.unlink(missing_ok=True)
        environment |= {"WAMFLOW_FAILURE": str(failure_file), "WAMFLOW_KEEP_FDS": str(held)}
        log_file = run.worktree / "report" / f"{name}.log"
        log_file.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", *arguments]
        code = _guarded(command, run.worktree, environment, log_file, log, held)
    if code:
        raise _failure(name, code, failure_file, log_file)


def stage_environment(run: Run) -> dict[str, str]:
    """This interpreter first, the worktree's code only, one shell, the places of shared state."""
    dropped = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "DVC_ROOT", "DVC_STAGE")
    kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("GIT_")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "SHELL": "/bin/sh",
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "WAMFLOW_RUN": run.name,
        "WAMFLOW_STORE": str(run.shared),
        "WAMFLOW_WORKTREE": str(run.worktree),
    }


def end_orphans(worktree: Path) -> None:
    """Kill what an earlier attempt left in a worktree; to be called while holding its lock.

    It exists only after both flow and guard were killed. Found by `WAMFLOW_WORKTREE` in its
    environment, so that nobody else's process is ever touched.
    """
    mark = f"WAMFLOW_WORKTREE={worktree}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended, or somebody else's
        if ours:
            guard.send(int(entry.name), signal.SIGKILL)


def _assert_own_code(run: Run, environment: dict[str, str]) -> None:
    """A run must not import another checkout's code: its commit would not be what ran."""
    asked = [sys.executable, "-c", "import components; print(components.__file__)"]
    said = subprocess.run(
        asked, cwd=run.worktree, env=environment, capture_output=True, text=True, check=False
    )
    found = said.stdout.strip()
    if not found or not Path(found).is_relative_to(run.worktree):
        raise UserError(
            f"{run.worktree}: `import components` gives {found or said.stderr.strip()}; expected "
            "the worktree's own. Remove what puts another first (a .pth file, sitecustomize)."
        )


def _guarded(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    log_file: Path,
    log: Log,
    lock: int,
) -> int:
    """Exit code of the command; an exception here (a signal, Ctrl-C) first stops it."""
    life, ours = os.pipe()  # the guard sees its end of file when this process is gone
    limits = [str(life), str(GRACE_S), str(ORPHAN_GRACE_S), "work"]
    try:
        with log_file.open("a") as out, log_file.open(errors="replace") as reading:
            reading.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(guard.__file__).resolve()), *limits, *command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(life, lock),
            )
            try:
                return _follow(process, reading, log)
            except BaseException:
                process.terminate()
                process.wait()
                _pass_on(reading, log, "")
                raise
    finally:
        os.close(life)
        os.close(ours)


def _follow(process: subprocess.Popen[bytes], reading: IO[str], log: Log) -> int:
    """Hand on lines until the process has ended."""
    rest = ""
    while (code := process.poll()) is None:
        rest = _pass_on(reading, log, rest)
        time.sleep(0.1)
    if rest := _pass_on(reading, log, rest):
        log(rest)
    return code


def _pass_on(reading: IO[str], log: Log, rest: str) -> str:
    """Log the whole lines that are there; the piece after the last one."""
    *lines, rest = (rest + reading.read()).split("\n")
    for line in lines:
        if shown := line.rpartition("\r")[2].strip():
            log(shown)
    return rest


def _failure(name: str, code: int, failure_file: Path, log_file: Path) -> Exception:
    """The exception for what happened; without a file from the stage, its log says what it can."""
    where = f"The whole log is {log_file}."
    try:
        said = json.loads(failure_file.read_text())
        return failures.failure(said["kind"], f"{name}: {said['message']}\n{where}")
    except (OSError, ValueError, KeyError):
        tail = log_file.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    if any("No space left on device" in line for line in tail):
        return OutOfSpaceError(
            f"{name}: no space left on the disk. Make room and run again. {where}"
        )
    shown = "\n".join(f"  {line}" for line in tail)
    return failures.CrashError(f"{name}: ended with code {code}. {where} Its end:\n{shown}")
