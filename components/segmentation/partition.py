"""The best set of cuts: those that gain most together, none too near, no piece too long.

A cut gains the chance that a change is near it, minus the price. Candidates are the peaks of that
chance; among them the best set is found exactly (optimal partitioning, Jackson et al. 2005, which
PELT prunes). At a price of half the largest F1 it is the set with the largest expected F1, 2 sum(p)
/ (cuts + changes): a ratio is largest where the difference at that ratio is (Dinkelbach 1967; for
F1, Ye et al. 2012). One price serves all episodes since F1 is told of all together.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from components.segmentation.flat import Array, Index

EXACT_S = 1e-6  # what two timestamps may differ by through rounding


class Candidate(NamedTuple):
    """A place for a cut: control step, seconds, what it gains."""

    step: int
    time_s: float
    gain: float


def peaks(values: Array, reach: int, floor: float) -> Index:
    """Rows where `values` (T,) is the largest within `reach` rows to either side; of equals one.

    Only those above `floor`.
    """
    if len(values) < 3:
        return np.zeros(0, dtype=np.intp)
    inner = values[1:-1]
    rising = np.flatnonzero((inner > floor) & (inner > values[:-2]) & (inner >= values[2:])) + 1
    order = rising[np.argsort(-values[rising], kind="stable")]
    kept: list[int] = []
    for row in order.tolist():
        if all(abs(row - other) > reach for other in kept):
            kept.append(row)
    return np.array(sorted(kept), dtype=np.intp)


def within(
    candidates: list[Candidate], spans: list[tuple[int, int]], times_s: Array, min_s: float
) -> list[Candidate]:
    """Those that gain, `min_s` or more from both ends of their span; spans are in time order."""
    found: list[Candidate] = []
    for first, last in spans:
        low_s = float(times_s[first]) + min_s - EXACT_S
        high_s = float(times_s[last]) - min_s + EXACT_S
        found += [
            c
            for c in candidates
            if first < c.step < last and c.gain > 0 and low_s <= c.time_s <= high_s
        ]
    return found


def best(allowed: list[Candidate], min_s: float, most: int | None = None) -> list[int]:
    """Steps of those (in time order) with the largest total gain, `min_s` or more apart.

    With `most`, the largest gain of that many cuts or fewer: exact, by one table row for each cut.
    """
    times = [c.time_s for c in allowed]
    found = unbounded(allowed, times, min_s)
    if most is None or len(found) <= most:
        return found
    before = [bisect_right(times, c.time_s - min_s + EXACT_S, 0, k) for k, c in enumerate(allowed)]
    fewer: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (len(allowed) + 1)
    for _ in range(most):
        row: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for k, candidate in enumerate(allowed):
            gain, steps = fewer[before[k]]
            row.append(max(row[-1], (gain + candidate.gain, (*steps, candidate.step))))
        fewer = row
    return list(fewer[-1][1])


def unbounded(allowed: list[Candidate], times: list[float], min_s: float) -> list[int]:
    """As `best`, however many."""
    total, chosen = [0.0], [0]  # of the first k candidates; whether the k-th is among the best
    for k, candidate in enumerate(allowed):
        before = bisect_right(times, candidate.time_s - min_s + EXACT_S, 0, k)
        gained = total[before] + candidate.gain
        chosen.append(before if gained > total[-1] else -1)
        total.append(max(gained, total[-1]))
    found, k = [], len(allowed)
    while k > 0:
        if chosen[k] >= 0:
            found.append(allowed[k - 1].step)
            k = chosen[k]
        else:
            k -= 1
    return found[::-1]


def shortened(
    cuts: list[int], values: Array, times_s: Array, min_s: float, max_s: float
) -> list[int]:
    """Further cuts, where `values` (T,) is largest, so that no piece exceeds `max_s`.

    A piece that can only be cut into pieces under `min_s` stays as long as it is.
    """
    found: list[int] = []
    pieces = list(zip([0, *cuts], [*cuts, len(times_s) - 1], strict=True))
    while pieces:
        a, b = pieces.pop()
        length_s = times_s[b] - times_s[a]
        if length_s <= max_s + EXACT_S:
            continue
        left_s = length_s - (np.ceil((length_s - EXACT_S) / max_s) - 1) * max_s
        low = int(np.searchsorted(times_s, times_s[a] + min_s - EXACT_S))
        high = int(np.searchsorted(times_s, times_s[b] - min_s + EXACT_S, side="right"))
        reach = int(np.searchsorted(times_s, times_s[a] + max_s + EXACT_S, side="right"))
        if low < min(high, reach):  # the next piece is judged in its turn
            few = int(np.searchsorted(times_s, times_s[a] + left_s - EXACT_S))  # leaves least cuts
            low = max(low, min(few, high - 1, reach - 1))
            cut = low + int(values[low : min(high, reach)].argmax())
            found.append(cut)
            pieces.append((cut, b))
    return sorted(found)
