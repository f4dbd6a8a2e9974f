"""`embodiments.json`: for each robot of the output its names, units, masks, and quantiles.

Computed from the written Parquet files only; no video is decoded. The quantiles are of all
episodes, for people and for programs that meet the robot elsewhere. Pretraining takes its own, of
the plan's training episodes, since those of validation must not shape what it sees.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from components.episodes import GRIPPER
from components.ingestion.raw import Layout
from components.ingestion.units import unit
from components.outputs import write_json

QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}
MOST_NUMBERS = 2**24  # of a signal in memory at once: of more, every second, third, ... row counts
Float = npt.NDArray[np.float32]


def write(root: Path, layouts: dict[str, Layout], episodes: dict[str, int]) -> None:
    """One entry for each folder of `root`; `episodes` counts them."""
    found = {}
    for folder, layout in sorted(layouts.items()):
        units = dict(layout.units)
        info = json.loads((root / folder / "meta/info.json").read_text())
        found[folder] = {
            "robot": layout.robot_type,
            "episodes": episodes[folder],
            "frames": info["total_frames"],
            "fps": layout.fps,
            "cameras": {
                camera.rpartition(".")[2]: info["features"][camera]["shape"][:2]
                for camera in layout.cameras
            },
            "state": _signal(root / folder, "observation.state", layout.state_names, units),
            "action": _signal(root / folder, "action", layout.action_names, units),
        }
    write_json(root / "embodiments.json", found)


def _rows(folder: Path, column: str, width: int) -> Float:
    """(T, D) of all files, thinned beyond `MOST_NUMBERS`."""
    files = sorted((folder / "data").rglob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    every = max(-(-rows * width // MOST_NUMBERS), 1)
    found = np.empty((-(-rows // every), width), np.float32)
    at = filled = 0
    for file in files:
        with pq.ParquetFile(file) as parts:
            for batch in parts.iter_batches(columns=[column]):
                matrix = batch[column].flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
                chosen = matrix[(-at) % every :: every]
                found[filled : filled + len(chosen)] = chosen
                at, filled = at + len(matrix), filled + len(chosen)
    return found


def _signal(
    folder: Path, column: str, names: tuple[str, ...], units: dict[str, str]
) -> dict[str, Any]:
    """What is known of each dimension; `mask` is false where it never moves."""
    cuts = np.array([_cuts(values) for values in _rows(folder, column, len(names)).T])
    low, high = cuts[:, 0], cuts[:, 1]
    return {
        "names": list(names),
        "units": [
            units.get(name) or unit(name, float(a), float(b))
            for name, a, b in zip(names, low, high, strict=True)
        ],
        "gripper": [i for i, name in enumerate(names) if GRIPPER.search(name)],
        "mask": [bool(b > a) for a, b in zip(low, high, strict=True)],
        "min": np.nan_to_num(low).tolist(),
        "max": np.nan_to_num(high).tolist(),
        **{k: np.nan_to_num(cuts[:, 2 + n]).tolist() for n, k in enumerate(QUANTILES)},
    }


def _cuts(values: Float) -> list[float]:
    """Least, greatest and quantiles of one dimension (T,); NaN where nothing is finite."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return [np.nan] * (2 + len(QUANTILES))
    return [finite.min(), finite.max(), *np.quantile(finite, list(QUANTILES.values()))]
