"""Contact sheets of trials, so that people see what happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.stations.station import Station

EVERY_S = 0.25
SHEETS_PER_TASK = 2


class Film:
    """Takes a picture with every camera each quarter of a second of a trial."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._every_steps = max(1, round(EVERY_S * station.fps))
        self._columns: list[np.ndarray] = []

    def __call__(self, step: int) -> None:
        """To be called once at each control step."""
        if step % self._every_steps == 0:
            images = self._station.observe().images
            self._columns.append(np.concatenate([images[name] for name in sorted(images)]))

    def save(self, path: Path) -> None:
        """A PNG: one row for each camera by name, one column for each quarter of a second."""
        from PIL import Image

        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(self._columns, axis=1)).save(path)
