"""Who does what: equal matrices in bundles, and bundles given to ranks so that costs are balanced.

A bundle is orthogonalised whole by one rank. What is in it depends on the matrices alone, never on
the number of ranks, so the same bundle gives the same bits however many ranks there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.newton_schulz import flops

MOST_MATRICES, MOST_ELEMENTS = 8, 2**18  # larger matrices keep a processor busy one by one


@dataclass(frozen=True)
class Bundle:
    """Matrices, by their index, of one (m, n) with m <= n; the tall ones count as transposed."""

    shape: tuple[int, int]
    members: tuple[int, ...]
    flops: int


def bundles(shapes: Sequence[torch.Size], dtype: torch.dtype) -> list[Bundle]:
    """All matrices in bundles, in the order in which they first appear."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        if len(shape) != 2:
            raise ValueError(f"Muon: parameter {index} has shape {tuple(shape)}, not a matrix's.")
        alike[min(shape), max(shape)].append(index)
    made = []
    for wide, members in alike.items():
        size = max(1, min(MOST_MATRICES, MOST_ELEMENTS // (wide[0] * wide[1])))
        for first in range(0, len(members), size):
            part = tuple(members[first : first + size])
            made.append(Bundle(wide, part, len(part) * flops(wide, dtype)))
    return made


def owners(costs: Sequence[int], ranks: int) -> list[int]:
    """The rank of each cost: the dearest first, always to the rank with the least so far.

    The heaviest rank carries at most 4/3 of the best possible (Graham 1969).
    """
    load, owner = [0] * ranks, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner[index] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owner[index]] += costs[index]
    return owner


def turns(costs: Sequence[int], owner: Sequence[int], ranks: int) -> list[list[int]]:
    """Rounds of work: in each one, every rank's next dearest; the same on all ranks."""
    queues: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        queues[owner[index]].append(index)
    longest = max(map(len, queues), default=0)
    return [[queue[turn] for queue in queues if turn < len(queue)] for turn in range(longest)]
