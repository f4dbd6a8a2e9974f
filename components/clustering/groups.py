"""k-means whose labels mean the same in every run: fixed seed, one thread, sorted labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

DECIMALS = 6  # differences below are rounding, not meaning
SAMPLE = 2_000  # points that restarts are tried on; the best start is then finished on all


def group(points: Points, k: int, seed: int, restarts: int) -> tuple[Labels, float]:
    """Labels (N,) of at most `k` clusters and the share of the variance that they explain (0 to 1).

    `points` is (N, F). k is clipped to the number of different points. Label 0 is the largest
    cluster; of equal ones the one that occurs first comes first.
    """
    from threadpoolctl import threadpool_limits

    rounded = np.round(points, DECIMALS)
    rounded += 0.0  # no negative zeros
    with threadpool_limits(1):
        labels = canonical(_fit(rounded, k, seed, restarts))
        return labels, explained(rounded, labels)


def explained(points: Points, labels: Labels) -> float:
    """Share of the variance of (N, F) that lies between the clusters, 0 to 1."""
    centred = points - points.mean(axis=0, dtype=np.float64).astype(points.dtype)
    total = float(np.einsum("nf,nf->n", centred, centred).sum(dtype=np.float64))
    members = (labels == np.arange(labels.max() + 1)[:, None]).astype(points.dtype)
    sums = (members @ centred).astype(np.float64)  # (K, F)
    between = float(((sums**2).sum(axis=1) / np.bincount(labels)).sum())
    return between / total if total > 0 else 1.0


def _fit(points: Points, k: int, seed: int, restarts: int) -> npt.NDArray[np.int32]:
    """Labels (N,)."""
    from sklearn.cluster import KMeans

    some = points
    if len(points) > SAMPLE:
        chosen = np.random.default_rng(seed).choice(len(points), SAMPLE, replace=False)
        some = points[np.sort(chosen)]
    start = KMeans(_different(some, k), n_init=restarts, random_state=seed).fit(some)
    if some is points:
        return np.asarray(start.labels_)
    centres = start.cluster_centers_
    fit = KMeans(len(centres), init=centres, n_init=1, random_state=seed).fit(points)
    return np.asarray(fit.labels_)


def _different(points: Points, most: int) -> int:
    """Number of different points, counted up to `most`."""
    seen: set[bytes] = set()
    for point in points:
        seen.add(point.tobytes())
        if len(seen) == most:
            break
    return len(seen)


def canonical(labels: npt.NDArray[np.integer]) -> Labels:
    """The same partition with labels ordered by size, then by first occurrence."""
    values, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    new: Labels = np.empty(int(values.max()) + 1, dtype=np.int64)
    new[values[order]] = np.arange(len(values))
    found: Labels = new[labels]
    return found
