"""Which columns are state and action, and what their dimensions and cameras are called.

LeRobot data sets in the wild keep signals in `observation.state` and `action`, in `state` and
`actions`, or split over `state.joints`, `action.gripper_close`, ...; names come as lists, nested
lists, mappings, or not at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.ingestion.raw import Float
from components.ingestion.reasons import Problem, Reason
from components.ingestion.said import chosen

WHOLE = {"state": ("observation.state", "state"), "action": ("action", "actions")}
SPLIT = {"state": ("observation.state.", "state."), "action": ("action.", "actions.")}
POSITIONS = ("eef_position", "ee_position", "eef_pos", "ee_pos")  # x, y, z of the end effector, m
CAMERA_PREFIX = re.compile(r"^(observations?[./])?((images?|videos?|rgb)[./])?")


@dataclass(frozen=True)
class Signal:
    """One canonical signal: the columns it is joined from and the names of its dimensions."""

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    names: tuple[str, ...]

    def read(self, table: pa.Table) -> Float | Problem:
        """(T, D) float32, or why it cannot be read."""
        if not self.columns:
            return Problem(Reason.MISSING_COLUMN, f"no state or action among {table.column_names}")
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            return Problem(Reason.MISSING_COLUMN, f"columns {missing} are not in the file")
        return self.join([matrix(table[name]) for name in self.columns])

    def join(self, parts: list[npt.NDArray[np.float64] | None]) -> Float | Problem:
        """(T, D) float32 from one (T, width) for each column; None is rows of unequal width."""
        for name, width, part in zip(self.columns, self.widths, parts, strict=True):
            if part is None or (len(part) and part.shape[1] != width):
                got = "rows of unequal width" if part is None else f"{part.shape[1]}"
                return Problem(Reason.WRONG_WIDTH, f"{name}: expected width {width}, got {got}")
        whole = [
            p.reshape(len(p), w) for p, w in zip(parts, self.widths, strict=True) if p is not None
        ]
        if len({len(part) for part in whole}) > 1:
            rows = dict(zip(self.columns, map(len, whole), strict=True))
            return Problem(Reason.MISSING_DATA, f"columns have different numbers of rows: {rows}")
        with np.errstate(over="ignore"):  # beyond float32 is infinite: a check sees it
            return np.ascontiguousarray(np.concatenate(whole, axis=1), dtype=np.float32)


def find(
    kind: str, features: dict[str, Any], table: pa.Table, wanted: tuple[str, ...] = ()
) -> Signal:
    """The signal of a kind ("state" or "action") in a table; empty where there is none.

    `wanted` columns are joined where some are said; UserError lists what is there.
    """
    numeric = [name for name in table.column_names if matrix(table[name][:1]) is not None]
    whole = [name for name in WHOLE[kind] if name in numeric][:1]
    split = [name for name in numeric if name.startswith(SPLIT[kind])]
    inferred = whole or sorted(split, key=_declared_order(features))
    columns = chosen(kind, wanted, numeric) or tuple(inferred)
    widths = tuple(_width(table[name]) for name in columns)
    names = [
        name
        for column, width in zip(columns, widths, strict=True)
        for name in _names(kind, column, width, features.get(column), len(columns) == 1)
    ]
    return Signal(columns, widths, tuple(_unique(names, kind)))


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float64] | None:
    """A numeric column of T scalars or (nested) lists as (T, D); None where it is no such thing."""
    length, values = len(column), column
    while _is_list(values.type):
        lengths = pc.unique(pc.fill_null(pc.list_value_length(values), 0))
        if len(lengths) > 1:
            return None
        values = pc.list_flatten(values)
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        return None
    flat = np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    return flat.reshape(length, -1) if length else flat.reshape(0, 0)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _width(column: pa.ChunkedArray) -> int:
    part = matrix(column[:1])
    return 0 if part is None else part.shape[1]


def _declared_order(features: dict[str, Any]) -> Any:
    declared = list(features)
    return lambda name: (declared.index(name) if name in declared else len(declared), name)


def _names(kind: str, column: str, width: int, feature: Any, whole: bool) -> list[str]:
    given = flat_names(feature.get("names") if isinstance(feature, dict) else None)
    if len(given) == width:
        return given
    if whole:
        return [f"{kind}_{i}" for i in range(width)]
    short = column.removeprefix("observation.").removeprefix("state.").removeprefix("action.")
    if short in POSITIONS and width == 3:
        return [f"{short.split('_')[0]}_{axis}" for axis in "xyz"]
    return [f"{short}_{i}" for i in range(width)]


def flat_names(names: Any) -> list[str]:
    """Names as a flat list: from a list, nested lists, {group: names} or {name: position}."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, dict):
        if names and all(isinstance(value, int) for value in names.values()):
            return [str(name) for name in sorted(names, key=lambda name: int(names[name]))]
        return [name for value in names.values() for name in flat_names(value)]
    if isinstance(names, list | tuple):
        return [name for value in names for name in flat_names(value)]
    return []


def _unique(names: list[str], kind: str) -> list[str]:
    return names if len(set(names)) == len(names) else [f"{kind}_{i}" for i in range(len(names))]


def camera(key: str) -> str:
    """The canonical feature of a camera: `video.ego_view` -> `observation.images.ego_view`."""
    short = CAMERA_PREFIX.sub("", key, count=1) or key
    return "observation.images." + re.sub(r"[^A-Za-z0-9_-]+", "_", short)
