"""Many episodes of one embodiment laid end to end, so that one NumPy call serves them all.

Rows are control steps. Sums, quantiles and window means never cross from one episode to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from components.episodes import Episode

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


class Flat:
    """E episodes with the same columns as M rows; `start` and `count` (E,) say whose they are."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self.episodes = episodes
        self.first = episodes[0]
        self.count: Index = np.array([len(e) for e in episodes], dtype=np.intp)
        self.start: Index = np.cumsum(self.count) - self.count
        self.times_s: Array = np.concatenate([e.timestamps_s for e in episodes]).astype(np.float64)
        self.row: Index = np.arange(len(self.times_s))
        self.owner: Index = np.repeat(np.arange(len(episodes)), self.count)
        self.low: Index = self.start[self.owner]  # (M,), first row of the row's own episode
        self.last: Index = (self.start + self.count - 1)[self.owner]

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def state(self) -> Array:
        """(M, S)."""
        return np.concatenate([e.state for e in self.episodes]).astype(np.float64)

    @cached_property
    def action(self) -> Array:
        """(M, A)."""
        return np.concatenate([e.action for e in self.episodes]).astype(np.float64)

    @cached_property
    def step_s(self) -> Array:
        """Median time between two control steps of each episode (E,), seconds."""
        steps = self.quantile(self.diff(self.times_s), 0.5, skip=1)
        rates = np.array([1.0 / e.fps for e in self.episodes])
        return np.where(self.count > 1, np.maximum(steps, 1e-6), rates)

    def split(self, values: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
        """(M, ...) as one view for each episode."""
        return np.split(values, self.start[1:])

    def total(self, values: Array) -> Array:
        """Sum over each episode: (M, ...) to (E, ...)."""
        return np.asarray(np.add.reduceat(values, self.start, axis=0))

    def mean(self, values: Array) -> Array:
        """Mean over each episode: (M, ...) to (E, ...)."""
        return np.asarray((self.total(values).T / self.count).T)

    def extent(self, values: Array) -> Array:
        """Largest minus smallest of each episode: (M, ...) to (E, ...)."""
        most = np.maximum.reduceat(values, self.start, axis=0)
        return np.asarray(most - np.minimum.reduceat(values, self.start, axis=0))

    def diff(self, values: Array) -> Array:
        """Change since the row before, 0 in each episode's first row."""
        change = np.zeros_like(values)
        change[1:] = values[1:] - values[:-1]
        change[self.start] = 0.0
        return change

    def earlier(self, values: Array, rows: int) -> Array:
        """Values `rows` before; before the start, the first."""
        return np.asarray(values[np.maximum(self.row - rows, self.low)])

    def quantile(self, values: Array, share: float, skip: int = 0) -> Array:
        """Quantile (lower) of each episode, without its first `skip` rows: (M,) to (E,)."""
        least = values.min()
        scale = max(float(values.max() - least), 1e-300)
        keys = self.owner + 0.25 + 0.5 * ((values - least) / scale)  # one fast sort for all
        if skip:
            keys[self.row - self.low < skip] -= 0.25
            keys = np.maximum(keys, self.owner)
        kept = np.maximum(self.count - skip, 1)
        place = np.minimum(skip + ((kept - 1) * share).astype(np.intp), self.count - 1)
        found = np.sort(keys)[self.start + place] - np.arange(len(self.start)) - 0.25
        return np.asarray(np.maximum(found, 0.0) * 2.0 * scale + least)
