"""Stages under the supervisor: classes of failure, signals, and that no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from components.errors import DataError, StoppedError, TemporaryError, UserError, WamflowError
from flows import locks, server, snapshot, supervisor, values, workspace
from flows.failures import CrashError
from flows.workspace import Run
from tests.conftest import ROOT


@pytest.fixture
def run(miniature: Path) -> Iterator[Run]:
    """A run of the miniature whose first two stages are done."""
    with workspace.opened(miniature, name="trial") as opened:
        target = opened.worktree / "inputs" / "sources.json"
        snapshot.write(["recordings/numbers"], miniature, target, opened.shared)
        yield opened


def ready(run: Run, **pretraining: object) -> None:
    """Set what pretraining does, and make what it reads."""
    values.apply(run.worktree / "params.yaml", {"pretraining": pretraining})
    (run.worktree / "data/plan").mkdir(parents=True)
    (run.worktree / "data/plan/plan.txt").write_text("1.0 2.0")


def ours(worktree: Path) -> list[psutil.Process]:
    """Processes whose environment names the worktree."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("WAMFLOW_WORKTREE") == str(worktree):
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    """Wait for something that will happen; fail when it does not."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def module(run: Run, log: Callable[[str], None]) -> None:
    """The pretraining stage without DVC around it."""
    arguments = ["components", "pretraining", "data/plan", "data/checkpoint"]
    supervisor.run_module(arguments, "pretraining", run, log=log)


def test_a_stage_runs_by_dvc_and_its_lines_are_handed_on(run: Run) -> None:
    lines: list[str] = []
    supervisor.reproduce("ingestion", run, log=lines.append)
    assert (run.worktree / "data/episodes/numbers.txt").read_text().split() == ["1", "2", "3"]
    assert any("python -m components ingestion" in line for line in lines)
    assert (run.worktree / "report/ingestion.log").read_text().strip()
    assert ours(run.worktree) == []


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        ("data", DataError, "the miniature's data are wrong"),
        ("crash", CrashError, "ZeroDivisionError: the miniature crashed"),
        ("killed", CrashError, "report/pretraining.log"),
    ],
)
def test_a_failure_keeps_its_class(
    run: Run, failure: str, kind: type[WamflowError], words: str
) -> None:
    ready(run, failure=failure)
    with pytest.raises(WamflowError) as raised:
        supervisor.reproduce("pretraining", run, log=print)
    assert type(raised.value) is kind
    assert words in str(raised.value) and str(raised.value).startswith("pretraining: ")
    assert ours(run.worktree) == []


def test_a_temporary_failure_is_told_apart(run: Run) -> None:
    ready(run, temporary_failures=1)
    with pytest.raises(TemporaryError):
        module(run, print)
    module(run, print)
    assert (run.worktree / "data/checkpoint/model.txt").read_text() == "3.0"


def test_a_stage_that_cannot_start_shows_the_end_of_its_log(run: Run) -> None:
    with pytest.raises(CrashError, match="no_such_stage"):
        supervisor.reproduce("no_such_stage", run, log=print)


def test_an_interruption_lets_the_stage_save_and_leaves_nobody(run: Run) -> None:
    """KeyboardInterrupt while following: SIGTERM to the stage, which saves; its worker ends too."""
    ready(run, seconds=60.0)

    def interrupt(line: str) -> None:
        if line.startswith("working"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervisor.reproduce("pretraining", run, log=interrupt)
    assert (run.shared / "miniature.json").is_file(), "saved"
    assert "StoppedError" in _class_in(run) or "interrupted" in _class_in(run)
    assert ours(run.worktree) == []


def _class_in(run: Run) -> str:
    return (run.worktree / ".dvc/tmp/failure.json").read_text()


def test_only_one_works_in_a_worktree(run: Run) -> None:
    lock = run.shared / "locks" / f"stage-{run.name}.lock"
    with (
        locks.held(lock, "somebody else"),
        pytest.raises(UserError, match="another process works on it"),
    ):
        supervisor.reproduce("ingestion", run, log=print)


FLOW = """
import sys
from pathlib import Path
from flows import supervisor
from flows.workspace import Run
worktree, project, shared = map(Path, sys.argv[1:])
run = Run("trial", worktree, project, shared, "")
supervisor.reproduce("pretraining", run, log=lambda line: print(line, flush=True))
"""


def in_another_process(run: Run) -> subprocess.Popen[str]:
    """The supervisor in a process that a test may kill; returns when the stage is at work."""
    places = [str(p) for p in (run.worktree, run.project, run.shared)]
    process = subprocess.Popen(
        [sys.executable, "-c", FLOW, *places], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("working"):
            break
    process.stdout.close()
    return process


def test_nobody_survives_a_killed_flow(run: Run) -> None:
    ready(run, seconds=60.0)
    process = in_another_process(run)
    assert len(ours(run.worktree)) >= 4, "guard, dvc, stage and its worker"
    process.kill()
    process.wait()
    until(lambda: not ours(run.worktree))
    assert (run.shared / "miniature.json").is_file(), "the stage was asked first, and saved"


def test_nobody_survives_a_killed_stage(run: Run) -> None:
    """The worker has a session of its own, as torchrun's have; it must not outlive its stage."""
    ready(run, seconds=60.0)
    process = in_another_process(run)
    (stage,) = [p for p in ours(run.worktree) if "components" in p.cmdline() and p.children()]
    stage.kill()
    assert process.wait(20) != 0
    assert ours(run.worktree) == []


def test_orphans_of_a_killed_guard_are_ended_before_the_next_start(run: Run) -> None:
    ready(run, seconds=60.0)
    process = in_another_process(run)
    guards = [p for p in ours(run.worktree) if any(a.endswith("guard.py") for a in p.cmdline())]
    process.kill()
    for guard in guards:
        guard.kill()
    process.wait()
    left = ours(run.worktree)
    supervisor.end_orphans(run.worktree)
    until(lambda: not any(p.is_running() for p in left))
    ready_again = {"seconds": 0.0}
    values.apply(run.worktree / "params.yaml", {"pretraining": ready_again})
    supervisor.reproduce("pretraining", run, log=print)
    assert ours(run.worktree) == []


def test_a_stop_that_is_ignored_ends_by_force(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_S", 0.3)
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)"
    (run.worktree / "deaf.py").write_text(f"{program}\ntime.sleep(600)\n")

    def interrupt(line: str) -> None:
        if line == "deaf":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervisor.run_module(["deaf"], "deaf", run, log=interrupt)
    assert ours(run.worktree) == []


def test_only_the_worktrees_code_is_imported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "components"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('the wrong checkout')")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    supervisor.reproduce("ingestion", run, log=print)
    shutil_components = run.worktree / "components"
    shutil_components.rename(run.worktree / "elsewhere")
    with pytest.raises(UserError, match="expected the worktree's own"):
        supervisor.reproduce("sampling", run, log=print)


def test_a_stopped_stage_says_that_it_was_interrupted(run: Run) -> None:
    """SIGTERM to the stage itself (a cluster does that): its own exit code has the class."""
    ready(run, seconds=60.0)

    def stop(line: str) -> None:
        if line.startswith("working"):
            for process in ours(run.worktree):
                if "components" in process.cmdline() and process.children():
                    os.kill(process.pid, signal.SIGTERM)

    with pytest.raises(StoppedError, match="saved"):
        supervisor.reproduce("pretraining", run, log=stop)


RUNNER = """
import signal, subprocess, sys, time
work = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
def told(*_):
    print("runner told", work.poll() is not None, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
while True:
    work.poll()
    time.sleep(0.05)
"""
WORK = """
import signal, sys, time
def told(*_):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
print("at work", flush=True)
time.sleep(60)
"""


def test_a_runner_is_told_when_its_work_has_saved(tmp_path: Path) -> None:
    """Told before, Prefect's kills flows that take longer than half a minute to save."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", RUNNER, WORK]
    with server.guarded(command, dict(os.environ), log, 30.0):
        until(lambda: "at work" in log.read_text())
    assert log.read_text().splitlines() == ["at work", "saved", "runner told True"]
