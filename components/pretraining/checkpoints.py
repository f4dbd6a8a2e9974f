"""States of a training in progress: sharded safetensors, whole or not there, no pickle.

`<store>/<key>/<step>/` holds one shard of each rank, written by torch.distributed.checkpoint's
safetensors writer while training goes on (`saver.py`), and, last, `commit.json` with the digests of
all shards.
A folder without its marker, or with a shard whose digest differs, is passed over for the one
before. The store lies outside the stage's outputs (DVC deletes those before a rerun):
`WAMFLOW_STORE`, or `.wamflow`; `mirror.py` keeps a copy in S3 where that is asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from components import shards
from components.outputs import sha256
from components.pretraining import mirror

MARKER = "commit.json"


def store(key: str) -> Path:
    """The folder of one training's checkpoints."""
    return shards.place() / "checkpoints" / key


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


def view(key: str) -> Path:
    """The folder for what the workers of one training share; it is there until `clear`."""
    folder = store(key).with_name(f"{key}.view")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear(key: str) -> None:
    """Remove a training's checkpoints and view from this machine; when its results are safe."""
    shutil.rmtree(store(key), ignore_errors=True)
    shutil.rmtree(view(key), ignore_errors=True)


def forget(key: str) -> None:
    """`clear`, and remove the copy in S3; for the machine that has written the results."""
    clear(key)
    mirror.remove(key)


def latest(folder: Path) -> int | None:
    """Steps done in the newest whole checkpoint; None when there is none. Says what it passes."""
    for path in reversed(steps(folder)):
        if (marker := commit(path)) is None:
            print(f"checkpoint {path.name} has no commit marker; passed over", flush=True)
        elif wrong := _wrong(path, marker["shards"]):
            print(f"checkpoint {path.name} is {wrong}; passed over", flush=True)
        else:
            return int(marker["step"])
    return None


def steps(folder: Path) -> list[Path]:
    """The checkpoints of one training, the oldest first, whole or not."""
    return sorted(p for p in folder.glob("[0-9]*") if p.is_dir()) if folder.is_dir() else []


def commit(path: Path) -> dict[str, Any] | None:
    """What the marker of a checkpoint says; None without one."""
    try:
        marker: dict[str, Any] = json.loads((path / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return marker


def _wrong(path: Path, shards: dict[str, str]) -> str:
    """What makes a marked checkpoint one that cannot be read; nothing for a whole one."""
    for name, digest in shards.items():
        if not (path / name).is_file():
            return (
                f"not whole ({name} is missing here; expected the shards of all nodes in one "
                "place: where each has a disk of its own, set WAMFLOW_CHECKPOINTS to "
                "s3://bucket/prefix)"
            )
        if sha256(path / name) != digest:
            return f"damaged (the digest of {name} differs)"
    return ""
