"""Which robot, by its serial number, and which operator, where a recording says so.

By the keys that recorders use: DROID's `user` and `robot_serial`, LeRobot's `robot_id`, others'
`operator`, `collector`, ... A robot's model is its `embodiment`, no serial number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

KEYS = {
    "robot_serial": re.compile(
        r"(?:.*_)?(?:robot|arm)_(?:serial(?:_?(?:number|no|num|id))?|sn|id|uuid)"
        r"|serial(?:_?(?:number|no))?"
    ),
    "operator": re.compile(
        r"(?:.*_)?(?:tele)?operator(?:_?(?:name|id|uuid))?|(?:data_)?collector(?:_?(?:name|id))?"
        r"|collected_by|recorded_by|demonstrator(?:_?(?:name|id))?|pilot(?:_name)?|user(?:_?name)?"
    ),
}
DEPTH, LONGEST = 4, 200  # of mappings in mappings, of a value in characters


def of(*said: Mapping[str, Any]) -> dict[str, str]:
    """`robot_serial` and `operator` by the first mapping that says them; what none says is out."""
    found: dict[str, str] = {}
    for mapping in said:
        for path, value in _leaves(mapping, (), DEPTH):
            for name, pattern in KEYS.items():
                if name not in found and value and _matches(pattern, path):
                    found[name] = value
    return found


def _matches(pattern: re.Pattern[str], path: tuple[str, ...]) -> bool:
    """By the last key, or by the last two together (`robot: {serial: ...}`)."""
    return any(pattern.fullmatch("_".join(path[-count:])) for count in (1, 2))


def _leaves(
    mapping: Mapping[str, Any], above: tuple[str, ...], depth: int
) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in mapping.items():
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(key).rsplit("/", 1)[-1])
        path = (*above, re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"))
        if isinstance(value, Mapping) and depth:
            yield from _leaves(value, path, depth - 1)
        else:
            yield path, _text(value)


def _text(value: Any) -> str:
    """A short text or whole number, alone or in a list of one; empty for anything else."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
        return ""
    text = " ".join(str(value).encode(errors="replace").decode().split())
    return text if len(text) <= LONGEST else ""
