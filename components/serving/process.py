"""Starts a policy server as a process of its own, waits until it listens, and ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from components.errors import TemporaryError, UserError

END_S = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command(checkpoint: Path, embodiment: str) -> list[str]:
    """The command that serves one robot's policy in `checkpoint` with this interpreter."""
    module = [sys.executable, "-m", "components.serving"]
    return [*module, str(checkpoint), "--embodiment", embodiment]


@contextmanager
def served(command: Sequence[str], log: Path, start_timeout_s: float = 120.0) -> Iterator[str]:
    """Run `command` with a free port of this machine and yield its address, `ws://127.0.0.1:<port>`.

    Its output goes to `log`. UserError with the log's end when it ends before it listens,
    TemporaryError when it takes longer than `start_timeout_s`.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        ready = Path(folder) / "port"
        process = subprocess.Popen(
            [*command, "--port", "0", "--ready-file", str(ready), "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield f"ws://127.0.0.1:{_port(process, ready, log, start_timeout_s)}"
        finally:
            _end(process)


def _port(process: subprocess.Popen[bytes], ready: Path, log: Path, timeout_s: float) -> int:
    until_s = time.monotonic() + timeout_s
    while not ready.exists():
        if process.poll() is not None:
            raise UserError(
                f"policy server ended with code {process.returncode} before it listened; "
                f"{log} ends with:\n{_tail(log)}"
            )
        if time.monotonic() > until_s:
            raise TemporaryError(f"policy server: not listening after {timeout_s:g} s; see {log}.")
        time.sleep(0.05)
    return int(ready.read_text())


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL when that does not help."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


def die_with_parent(parent: int) -> None:
    """Ask Linux for a SIGTERM when the thread that started this process ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked
        os.kill(os.getpid(), signal.SIGTERM)
