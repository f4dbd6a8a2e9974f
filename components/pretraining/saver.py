"""Writes states of a training while it goes on, and brings back the newest whole one.

torch.distributed.checkpoint copies the state, which is what training waits for, and writes it in a
thread: each rank a share of what all hold, and what it alone holds. Its plans travel between the
ranks; nothing but safetensors and our JSON marker is written.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from components.errors import OutOfSpaceError, TemporaryError
from components.outputs import is_full_disk, sha256, write_json
from components.pretraining import checkpoints, mirror

SAID_EVERY_S = 30.0


class Saver:
    """Writes states of one training while it goes on, one at a time; all ranks call alike.

    `about` stands in the marker: what the state belongs to.
    """

    def __init__(
        self, folder: Path, keep: int, timeout_s: float, about: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.keep, self.timeout_s, self.about = folder, keep, timeout_s, about or {}
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._pending: tuple[Path, Future[None]] | None = None

    def resume(self, state: dict[str, Any]) -> int:
        """Load the newest whole checkpoint into `state`, in place; steps done, 0 without one.

        What the first rank does not find whole is removed on every node's disk, so that nothing of
        it is ever read.
        """
        whole: list[Any] = [self._whole() if self.rank == 0 else None]
        dist.broadcast_object_list(whole, 0, group=self.group)
        (names,) = whole
        _remove([path for path in checkpoints.steps(self.folder) if path.name not in names])
        step = int(names[-1]) if names else 0
        if step:
            reader = HuggingFaceStorageReader(str(self.folder / f"{step:08d}"))
            load(state, storage_reader=reader, process_group=self.group)
        return step

    def _whole(self) -> list[str]:
        """The newest whole checkpoint and marked ones before it, the oldest first."""
        found = checkpoints.latest(self.folder) or 0
        before = [path for path in checkpoints.steps(self.folder) if int(path.name) <= found]
        return [path.name for path in before if checkpoints.commit(path) is not None]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write the state after `step` steps; it may change as soon as this returns.

        Waits for the state before, with `wait`'s errors.
        """
        self.wait()
        path = self.folder / f"{step:08d}"
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        written: Any = async_save(state, storage_writer=writer, process_group=self.group)
        self._pending = path, self._pool.submit(self._finish, written, path, step)

    def wait(self) -> None:
        """Until what was begun is committed. TemporaryError after `timeout_s`, OutOfSpaceError."""
        if self._pending is None:
            return
        (path, future), self._pending = self._pending, None
        began = time.monotonic()
        while not future.done():
            try:
                future.exception(min(SAID_EVERY_S, self.timeout_s))
            except TimeoutError:
                passed_s = time.monotonic() - began
                if passed_s >= self.timeout_s:
                    raise TemporaryError(
                        f"{path}: the state is not written; expected it within "
                        f"pretraining.timeout_s ({self.timeout_s:g} s), waited {passed_s:.0f} s. "
                        "The disk is slow or gone; run again to go on from the state before."
                    ) from None
                print(f"pretraining: waiting for {path}, {passed_s:.0f} s so far", flush=True)
        if error := future.exception():
            shutil.rmtree(path, ignore_errors=True)
            if _is_full(error):
                raise OutOfSpaceError(
                    f"{path}: no space left on the disk while writing the state; the one before "
                    "is whole. Make room and run again."
                ) from error
            raise RuntimeError(f"{path}: the state was not written: {error}") from error

    def _finish(self, written: Future[Any], path: Path, step: int) -> None:
        """In a thread: digests of all shards, then the marker, then the rule of what is kept."""
        written.result()
        mine = {p.name: sha256(p) for p in path.glob(f"shard-{self.rank + 1:05d}-*")}
        mirror.send([path / name for name in mine], self.folder.name, path.name)
        gathered: list[dict[str, str]] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(gathered, mine, group=self.group)
        if self.rank == 0:
            shards = {name: digest for part in gathered for name, digest in part.items()}
            write_json(path / checkpoints.MARKER, self.about | {"step": step, "shards": shards})
            mirror.send([path / checkpoints.MARKER], self.folder.name, path.name)
        old = checkpoints.steps(self.folder)[: -self.keep]  # before any rank begins the next state
        dist.barrier(group=self.group)
        _remove(old)
        if self.rank == 0:
            for removed in old:
                mirror.remove(self.folder.name, removed.name)


def _remove(paths: list[Path]) -> None:
    """From this node's disk, where its other ranks do the same."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _is_full(error: BaseException) -> bool:
    """Also where torch.distributed.checkpoint wraps what each rank met."""
    failures = getattr(error, "failures", None)
    if isinstance(failures, dict):
        return any(isinstance(f, tuple) and is_full_disk(f[0]) for f in failures.values())
    return is_full_disk(error)
