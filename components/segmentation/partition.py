"""The best cut of a trajectory into pieces of steady motion: optimal partitioning within bounds.

Jackson et al. (2005), the exact method that PELT prunes: the least sum, over pieces, of how far the
velocity strays from the piece's mean, plus a price for each cut.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from components.segmentation.signals import Array

BLOCK = 256  # control steps whose costs are worked out together
EXACT_S = 1e-6  # what two timestamps may differ by through rounding


def partition(
    position: Array, energy: Array, times_s: Array, prices: Array, min_s: float, max_s: float
) -> list[int]:
    """Inner cuts (control steps, rising) of `position` (T, D) with the least total cost.

    `energy` (T,) is the integral of the squared speed, `prices` (T,) what a cut at each step costs.
    Every piece lasts `min_s` to `max_s`; where no such cut exists there is none.
    """
    last = len(times_s) - 1
    if last < 2 or times_s[-1] - times_s[0] < 2 * min_s - EXACT_S:
        return []
    total = np.full(last + 1, np.inf)
    total[0] = -prices[0]
    came_from = np.zeros(last + 1, dtype=np.intp)
    for j, first, strays in _strays(position, energy, times_s, min_s, max_s):
        stop = first + len(strays)
        costs = total[first:stop] + prices[first:stop] + strays
        best = int(costs.argmin())
        total[j], came_from[j] = costs[best], first + best
    return _walk_back(came_from, last) if np.isfinite(total[last]) else []


def _strays(
    position: Array, energy: Array, times_s: Array, min_s: float, max_s: float
) -> Iterator[tuple[int, int, Array]]:
    """For each step j: the first step where a piece up to j may start, and all their costs."""
    oldest = np.searchsorted(times_s, times_s - max_s - EXACT_S, side="left")
    newest = np.searchsorted(times_s, times_s - min_s + EXACT_S, side="right")
    for begin in range(1, len(times_s), BLOCK):
        end = min(begin + BLOCK, len(times_s))
        low, high = int(oldest[begin]), int(newest[end - 1])
        elapsed = np.maximum(times_s[begin:end, None] - times_s[low:high], EXACT_S)
        cost = energy[begin:end, None] - energy[low:high]
        moved = np.zeros_like(cost)
        for axis in position.T:
            moved += (axis[begin:end, None] - axis[low:high]) ** 2
        cost -= moved / elapsed
        for j in range(begin, end):
            a, b = int(oldest[j]), int(newest[j])
            if a < b:
                yield j, a, cost[j - begin, a - low : b - low]


def _walk_back(came_from: npt.NDArray[np.intp], last: int) -> list[int]:
    cuts: list[int] = []
    at = int(came_from[last])
    while at > 0:
        cuts.append(at)
        at = int(came_from[at])
    return cuts[::-1]
