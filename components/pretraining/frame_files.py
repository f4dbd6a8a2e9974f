"""Reads single frames out of the files that `frames/decoding.py` lays out, without mapping them.

Memory that is mapped counts as the process's own, so it would grow with all that was ever read.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from components.errors import DataError

OPEN_FILES = 256
Index = npt.NDArray[np.int64]


class FrameFiles:
    """`<folder>/<episode>.u8`: frames of `shape` (V, K, K, 3), uint8, one after the other."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape, self.bytes = folder, shape, math.prod(shape)
        self._file = lru_cache(OPEN_FILES)(self._opened)

    def path(self, episode: int) -> Path:
        """The file of an episode, by its row in the view."""
        return self.folder / f"{episode:08d}.u8"

    def read(self, episodes: Index, frames: Index) -> npt.NDArray[np.uint8]:
        """Frames (B, n) of episodes (B,) as (B, n, V, K, K, 3). DataError when one is not there."""
        out = np.empty((*frames.shape, *self.shape), dtype=np.uint8)
        flat = out.reshape(*frames.shape, self.bytes)
        for row, episode in enumerate(episodes.tolist()):
            file = self._file(episode)
            for place, frame in enumerate(frames[row].tolist()):
                into = flat[row, place].data
                if frame < 0 or os.preadv(file.number, [into], frame * self.bytes) != self.bytes:
                    raise DataError(
                        f"{self.path(episode)}: no frame {frame}; expected one of "
                        f"{self.path(episode).stat().st_size // self.bytes} frames. "
                        "Remove the store's `shards/pretraining` and run again."
                    )
        return out

    def _opened(self, episode: int) -> _Open:
        return _Open(self.path(episode))


class _Open:
    """A file that is closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be opened
            os.close(self.number)
