"""Checkpoints of a training in progress: safetensors, no pickle, complete or not there.

`<store>/<key>/<step>/` holds `state.safetensors` and, written last, `commit.json` with its digest.
A folder without its marker, or whose digest does not fit, is passed over for the one before. The
store lies outside the stage's outputs (DVC deletes those before a rerun): `WAMFLOW_STORE`, or
`.wamflow`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.outputs import sha256, whole_folder, write_json

KEPT = 2


def store(key: str) -> Path:
    """The folder of one training's checkpoints."""
    return Path(os.environ.get("WAMFLOW_STORE", ".wamflow")) / "checkpoints" / key


@contextmanager
def alone(key: str) -> Iterator[None]:
    """One training of a key at a time on this machine; a second one waits, then goes on from it."""
    folder = store(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"pretraining: the same training ({key}) runs already; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def scratch(key: str) -> Iterator[Path]:
    """An empty folder for what the workers share; a killed training's is emptied by the next."""
    folder = store(key).with_name(f"{key}.view")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(folder: Path, step: int, state: dict[str, Tensor]) -> None:
    """Save the state after `step` steps; older checkpoints but the last KEPT are removed."""
    with whole_folder(folder / f"{step:08d}") as out:
        save_file(state, out / "state.safetensors")
        write_json(out / "commit.json", {"step": step, "sha256": sha256(out / "state.safetensors")})
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old)


def forget(key: str) -> None:
    """Remove a training's checkpoints; to be called when its results are safe."""
    shutil.rmtree(store(key), ignore_errors=True)


def latest(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """(steps done, state) of the newest whole checkpoint; None when there is none."""
    for path in reversed(_steps(folder)):
        marker = path / "commit.json"
        if not marker.is_file():
            print(f"checkpoint {path.name} has no commit marker; passed over")
            continue
        commit, state = json.loads(marker.read_text()), path / "state.safetensors"
        if not state.is_file() or sha256(state) != commit["sha256"]:
            print(f"checkpoint {path.name} is damaged (its digest differs); passed over")
            continue
        return int(commit["step"]), load_file(state)
    return None


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir()) if folder.is_dir() else []
