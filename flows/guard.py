"""Keeps one command, and everything it started, from outliving whoever asked for it.

Run by path: `python -I guard.py LIFE_FD GRACE_S ORPHAN_GRACE_S WHO COMMAND...`; standard library
only, so that it starts at once and belongs to no worktree. `LIFE_FD` is the reading end of a pipe
whose other end the caller holds: its end of file means that the caller is gone, however it died.

- SIGTERM or SIGINT: SIGTERM goes to what the command started, else to itself; after `GRACE_S`
  seconds what is left is killed. WHO is `work` for a command that ends with its work (`dvc repro`
  would abandon its stage), or `both` for one that does not: it is told when its work has ended
  (Prefect's runner, when told, kills its flows after half a minute, saved or not).
- The caller is gone: the same, with `ORPHAN_GRACE_S`.
- The command has ended: what it left behind (torchrun's workers have their own sessions) is ended.

On Linux the guard is a subreaper (orphans of its tree become its own children) and the command dies
with the guard (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEFTOVER_GRACE_S = 5.0
POLL_S = 0.1  # while stopping
SHELLS = ("sh", "bash", "dash", "zsh", "fish")


def main(life: int, grace_s: float, orphan_grace_s: float, who: str, command: list[str]) -> int:
    """Exit code of the command; 128 + n when signal n ended it."""
    wake = _wake_on_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    locks = tuple(map(int, os.environ.get("WAMFLOW_KEEP_FDS", "").split()))
    child = subprocess.Popen(command, preexec_fn=_die_with_parent, pass_fds=locks)  # noqa: PLW1509
    code, deadline, asked = None, float("inf"), set[int]()
    watched = [life, wake]
    while code is None and time.monotonic() < deadline:
        stopping = deadline < float("inf")
        ready, _, _ = select.select(watched, [], [], POLL_S if stopping else None)
        heard = os.read(wake, 64) if wake in ready else b""
        gone = life in ready
        if gone:
            watched.remove(life)  # its end of file would be ready for ever
        if told_to := gone or signal.SIGTERM in heard or signal.SIGINT in heard:
            deadline = min(deadline, time.monotonic() + (orphan_grace_s if gone else grace_s))
        if told_to or (stopping and who == "both"):
            asked |= _stop(child.pid, asked)
        code = _reap(child.pid)
    stopping = deadline < float("inf")
    _end_leftovers(asked, deadline if stopping else time.monotonic() + LEFTOVER_GRACE_S)
    return 128 + signal.SIGKILL if code is None else code


def _wake_on_signals() -> int:
    """A file descriptor that becomes readable with the number of each signal that arrives."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading


def _die_with_parent() -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _reap(child: int) -> int | None:
    """Collect whoever has ended; the command's exit code if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


def _stop(command: int, asked: set[int]) -> set[int]:
    """SIGTERM to what the command started, looking through shells, or to itself; not twice."""
    tree = _children()
    work = tree.get(command, [])
    while work and all(_name(pid) in SHELLS for pid in work):
        below = [pid for shell in work for pid in tree.get(shell, [])]
        if not below:
            break
        work = below
    told = set(work) or {command}
    for pid in told - asked:
        send(pid, signal.SIGTERM)
    return told


def _end_leftovers(asked: set[int], deadline: float) -> None:
    """SIGTERM to children that had none yet; at the deadline, SIGKILL to all that is left."""
    while below := _below(os.getpid()):
        if time.monotonic() > deadline:
            for pid in below:
                send(pid, signal.SIGKILL)
        for pid in _children().get(os.getpid(), []):
            if pid not in asked:
                send(pid, signal.SIGTERM)
                asked.add(pid)
        _reap(0)
        time.sleep(0.02)


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may just have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _below(pid: int) -> list[int]:
    """All descendants of a process."""
    tree = _children()
    found, open_ends = [], [pid]
    while open_ends:
        below = tree.get(open_ends.pop(), [])
        found += below
        open_ends += below
    return found


def _children() -> dict[int, list[int]]:
    """Process ids by parent, zombies left out, from one look at the process table."""
    tree: dict[int, list[int]] = {}
    for pid, parent, state in _table():
        if state != "Z":
            tree.setdefault(parent, []).append(pid)
    return tree


def _table() -> list[tuple[int, int, str]]:
    """(pid, parent, state) of all processes, from /proc or else from `ps`."""
    if Path("/proc/self/stat").exists():
        return [row for entry in Path("/proc").glob("[0-9]*") if (row := _stat(entry))]
    asked = ["ps", "-Ao", "pid=,ppid=,state="]
    said = subprocess.run(asked, capture_output=True, text=True, check=True)
    rows = [line.split() for line in said.stdout.splitlines()]
    return [(int(pid), int(parent), state[0]) for pid, parent, state in rows]


def _stat(entry: Path) -> tuple[int, int, str] | None:
    try:
        text = (entry / "stat").read_text()
    except OSError:
        return None  # it has just ended
    state, parent = text.rpartition(")")[2].split()[:2]  # the name before it may hold anything
    return int(entry.name), int(parent), state


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    life, grace, orphan_grace, told, *wanted = sys.argv[1:]
    sys.exit(main(int(life), float(grace), float(orphan_grace), told, wanted))
