"""How often each event is drawn: cluster balance with a temperature, and whole numbers of draws.

The cluster-balanced sampling of WALL-WM (arXiv 2606.01955) names no formula; ours is the usual
power of the cluster's size (as for languages in XLM-R, Conneau et al. 2020).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]
Draws = npt.NDArray[np.int64]
Cells = npt.NDArray[np.intp]


def balanced(cells: Cells, multipliers: Weights, temperature: float) -> Weights:
    """Probability of each event in one draw, (N,), sums to 1. `cells` (N,) are numbers from 0 on.

    w_e is proportional to m_e * n_c^(tau - 1), where n_c counts the events of e's cell c whose
    multiplier m_e is above 0, and tau is the temperature. With equal multipliers this is
    p(c) proportional to n_c^tau and uniform within the cell: tau = 1 draws as the data are, tau = 0
    draws every cell equally often. All multipliers 0 give all weights 0.
    """
    drawn = np.bincount(cells, weights=multipliers > 0)
    weights: Weights = multipliers * np.maximum(drawn, 1.0)[cells] ** (temperature - 1.0)
    total = float(weights.sum())
    return weights / total if total > 0 else weights


def planned(weights: Weights, draws: int) -> Draws:
    """Whole draws (N,) that sum to `draws` exactly, each within 1 of `weights * draws`.

    Systematic sampling (Kitagawa 1996): the rounded cumulative sum, so that every run of neighbours
    is within 1 of its share too. With the events of a cluster beside each other, clusters keep
    their share even where there are fewer draws than events; largest remainders would give all of
    them to the events with the largest weight. `weights` must sum to 1.
    """
    cumulative = np.round(np.cumsum(weights) * draws, 6)  # a long sum is not exact
    rounded = np.floor(cumulative + 0.5).astype(np.int64)
    found: Draws = np.diff(rounded, prepend=0)
    return found
