"""Locks between processes: who waits is told that it waits."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from flows import locks
from tests.conftest import ROOT


def test_a_process_that_waits_says_so_and_goes_on(tmp_path: Path) -> None:
    lock, said = tmp_path / "lock", tmp_path / "stderr"
    program = (
        "import sys; from pathlib import Path; from flows import locks\n"
        "with locks.waited(Path(sys.argv[1])): print('held')"
    )
    command = [sys.executable, "-c", program, str(lock)]
    with said.open("w") as errors:
        with locks.waited(lock):
            waiting = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            deadline = time.monotonic() + 20
            while not said.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert waiting.poll() is None
        out, _ = waiting.communicate(timeout=20)
    assert (out, waiting.returncode) == ("held\n", 0)
    assert said.read_text() == f"waiting for another process (lock {lock})\n"
    alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (alone.stdout, alone.stderr) == ("held\n", "")
