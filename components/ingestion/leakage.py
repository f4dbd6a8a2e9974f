"""Recordings that are in two places: two sources, or the training and validation split of one.

Who draws validation episodes from one place and trains on the other tests on what was trained.
Equal content collapses to one episode anyway; equal signals under other pictures or another clock
(a video encoded again, a camera left out) do not, and are only said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations

from components.ingestion.measure import Facts

SPLIT = re.compile(r"(train|validation|val|test)", re.IGNORECASE)


def split(uri: str) -> str:
    """The split that the last part of an address names; empty where none."""
    match = SPLIT.search(uri.rpartition("/")[2])
    return match[1].lower() if match else ""


def find(passed: list[Facts], names: list[str]) -> list[str]:
    """One sentence for each two places that share episodes; `names` of the sources."""

    def place(item: Facts) -> str:
        found = split(item.uri)
        return f"{names[item.source]} ({found})" if found else names[item.source]

    sizes = Counter(place(item) for item in passed)
    same = _shared(passed, lambda item: item.episode_id, place)
    signals = _shared(passed, lambda item: item.signals_id, place)
    found = []
    for pair in sorted(same.keys() | signals.keys()):
        count, close = same[pair], max(signals[pair] - same[pair], 0)
        whole = " and ".join(f"{sizes[name]} of {name}" for name in pair)
        said = [f"{count} episodes are the same"] if count else []
        said += (
            [f"{close} more have the same signals with other pictures or times"] if close else []
        )
        found.append(
            f"leakage: of {whole}, {' and '.join(said)}; do not train on one and validate on the "
            "other"
        )
    return found


def _shared(
    passed: Iterable[Facts], name: Callable[[Facts], str], place: Callable[[Facts], str]
) -> Counter[tuple[str, str]]:
    """How many different contents each two places share; an empty name is none."""
    places: dict[str, set[str]] = {}
    for item in passed:
        if name(item):
            places.setdefault(name(item), set()).add(place(item))
    return Counter(pair for where in places.values() for pair in combinations(sorted(where), 2))
