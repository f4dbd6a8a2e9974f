"""Names of dimensions from `meta/modality.json`, where info.json only counts them.

Data sets for GR00T say there which span of the state is an arm, which a hand:
`{"state": {"right_hand": {"start": 29, "end": 35}, ...}, "action": {...}}`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from components.ingestion.source import Source

PATH = "meta/modality.json"
COUNTED = re.compile(r"^(motor|state|action|dim|joint|observation\.state)?_?\d+$")


def names(source: Source, kind: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """`known` names of a kind ("state" or "action"), better ones where they are only counted.

    What modality.json does not span keeps its name; a file that makes no sense changes nothing.
    """
    if PATH not in source.listed or not all(map(COUNTED.match, known)):
        return known
    try:
        found = _spans(json.loads(source.file(PATH).read_bytes())[kind], known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return known
    return tuple(found) if len(set(found)) == len(found) else known


def _spans(parts: dict[str, dict[str, Any]], known: tuple[str, ...]) -> list[str]:
    found = list(known)
    for name, span in parts.items():
        start, end = int(span["start"]), int(span["end"])
        if not 0 <= start < end <= len(known):
            raise ValueError(f"{name} spans {start} to {end} of {len(known)}")
        width = end - start
        found[start:end] = [name] if width == 1 else [f"{name}_{i}" for i in range(width)]
    return found
