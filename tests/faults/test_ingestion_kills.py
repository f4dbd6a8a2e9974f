"""SIGKILL at random moments of an ingestion, and two at once: the same bytes, nothing left behind.

`WAMFLOW_KILLS=20` kills as often as the acceptance asks; the suite does with a few.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components import shards
from components.outputs import sha256_folder
from tests import grown

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("WAMFLOW_KILLS", "3"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two sources that have films to make and streams to copy, listed."""
    sources = [
        grown.hdf5(tmp_path / "panda", range(30), rows=30),
        grown.lerobot_v3(tmp_path / "grower", range(30), rows=30),
    ]
    grown.listing(tmp_path / "inputs/sources.json", *sources)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def start(project: Path, out: str, store: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "components", "ingestion", "inputs/sources.json"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "WAMFLOW_STORE": str(store)}
    return subprocess.Popen(
        [*command, f"{out}/episodes", f"{out}/quarantine"],
        cwd=project,
        env=env | {"WAMFLOW_REPORT": f"{out}-report"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()


def digests(project: Path, out: str) -> list[str]:
    return [sha256_folder(project / out / name) for name in ("episodes", "quarantine")]


def test_kills_at_random_moments_leave_the_same_bytes_and_no_leftovers(project: Path) -> None:
    finished(start(project, "whole", project / "other-store"))
    store, chosen = shards.place(), random.Random(0)
    for _ in range(KILLS):
        process = start(project, "killed", store)
        try:
            process.wait(chosen.uniform(0.3, 8.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        else:
            finished(process)
    finished(start(project, "killed", store))
    assert digests(project, "killed") == digests(project, "whole")
    assert sorted(p.name for p in (project / "killed").iterdir()) == ["episodes", "quarantine"]
    assert list((store / "shards/ingestion/scratch").iterdir()) == []


def test_two_ingestions_of_one_source_at_once(project: Path) -> None:
    store = shards.place()
    both = [start(project, out, store) for out in ("first", "second")]
    for process in both:
        finished(process)
    finished(start(project, "after", store))
    assert digests(project, "first") == digests(project, "second") == digests(project, "after")
    assert list((store / "shards/ingestion/scratch").iterdir()) == []
