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
MOST_ROWS = 2_000_000  # of more, every second, third, ... row counts
Float = npt.NDArray[np.float32]


def write(root: Path, layouts: dict[str, Layout], episodes: dict[str, int]) -> None:
    """One entry for each folder of `root`; `episodes` counts them."""
    found = {}
    for folder, layout in sorted(layouts.items()):
        state, action = (_rows(root / folder, name) for name in ("observation.state", "action"))
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
            "state": _signal(state, layout.state_names, dict(layout.units)),
            "action": _signal(action, layout.action_names, dict(layout.units)),
        }
    write_json(root / "embodiments.json", found)


def _rows(folder: Path, column: str) -> Float:
    """(T, D) of all files, thinned beyond `MOST_ROWS`."""
    files = sorted((folder / "data").rglob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    every = -(-rows // MOST_ROWS)
    parts, at = [], 0
    for file in files:
        values = pq.read_table(file, columns=[column])[column].combine_chunks()
        matrix = np.asarray(values.flatten(), dtype=np.float32).reshape(len(values), -1)
        parts.append(matrix[(-at) % every :: every])
        at += len(matrix)
    return np.concatenate(parts)


def _signal(values: Float, names: tuple[str, ...], units: dict[str, str]) -> dict[str, Any]:
    """What is known of each dimension; `mask` is false where it never moves."""
    exact = values.astype(np.float64)
    finite = np.where(np.isfinite(exact), exact, np.nan)
    with np.errstate(all="ignore"):
        cuts = np.nanquantile(finite, list(QUANTILES.values()), axis=0)
    low, high = np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)
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
        **{k: np.nan_to_num(row).tolist() for k, row in zip(QUANTILES, cuts, strict=True)},
    }
