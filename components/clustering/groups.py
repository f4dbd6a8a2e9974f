"""k-means whose labels mean the same in every run: fixed seed, one thread, sorted labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

DECIMALS = 6  # differences below are rounding, not meaning


def group(points: Points, k: int, seed: int, restarts: int) -> tuple[Labels, float]:
    """Labels (N,) of at most `k` clusters and the share of the variance that they explain (0 to 1).

    `points` is (N, F). k is clipped to the number of different points. Label 0 is the largest
    cluster; of equal ones the one that occurs first comes first.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rounded = np.round(points, DECIMALS) + 0.0  # + 0.0: no negative zeros
    k = min(k, len(np.unique(rounded, axis=0)))
    with threadpool_limits(1):
        fit = KMeans(k, n_init=restarts, random_state=seed).fit(rounded)
    total = float(((rounded - rounded.mean(axis=0)) ** 2).sum())
    explained = 1.0 - float(fit.inertia_) / total if total > 0 else 1.0
    return canonical(fit.labels_), explained


def canonical(labels: npt.NDArray[np.integer]) -> Labels:
    """The same partition with labels ordered by size, then by first occurrence."""
    values, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    new: Labels = np.empty(int(values.max()) + 1, dtype=np.int64)
    new[values[order]] = np.arange(len(values))
    found: Labels = new[labels]
    return found
