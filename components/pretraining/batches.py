"""The next batches, made by a thread while the current one is computed; never waited for in vain.

What the thread raises is raised where its batch is asked for. A batch that does not come in time is
a failure that names what was read.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

from components.errors import TemporaryError
from components.pretraining.windows import Windows
from models.batch import Batch

AHEAD = 2  # batches that wait


class Batches:
    """One rank's share of every batch from step `start` on, in the receipt's order."""

    def __init__(
        self, windows: Windows, start: int, rank: int, world_size: int, timeout_s: float
    ) -> None:
        self.windows, self.start, self.timeout_s = windows, start, timeout_s
        self.share = rank, world_size
        self.waited_s = 0.0
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        self._over = threading.Event()

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """(step, batch). TemporaryError when a batch takes longer than `timeout_s`."""
        threading.Thread(target=self._make, name="batches", daemon=True).start()
        try:
            for step in range(self.start, self.windows.steps):
                began = time.monotonic()
                batch = self._next(step)
                self.waited_s += time.monotonic() - began
                yield step, batch
        finally:
            self._over.set()

    def _make(self) -> None:
        try:
            for step in range(self.start, self.windows.steps):
                self._put(self.windows.batch(step, *self.share))
        except BaseException as error:
            self._put(error)

    def _put(self, made: Batch | BaseException) -> None:
        while not self._over.is_set():
            try:
                self._ready.put(made, timeout=0.2)
            except queue.Full:
                continue
            return

    def _next(self, step: int) -> Batch:
        try:
            made = self._ready.get(timeout=self.timeout_s)
        except queue.Empty:
            raise TemporaryError(
                f"pretraining: {self.windows.folder}: the batch of step {step} did not come; "
                f"expected it within pretraining.timeout_s ({self.timeout_s:g} s). The disk is "
                "slow or gone; the last state is saved, run the stage again to go on."
            ) from None
        if isinstance(made, BaseException):
            raise made
        return made
