"""Intervals for few trials: exact for success rates, bootstrapped for errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure and its two-sided interval; None where too little was seen for one."""

    value: float
    lower: float | None
    upper: float | None


def success_rate(successes: int, trials: int, confidence: float) -> Estimate:
    """Rate of `successes` among `trials` > 0 with the exact interval of Clopper and Pearson (1934).

    It covers the true rate with at least `confidence`, also when trials of several tasks with
    different rates are pooled in fixed numbers (Hoeffding 1956).
    """
    from scipy.stats import binomtest

    test = binomtest(successes, trials)
    interval = test.proportion_ci(confidence_level=confidence, method="exact")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def mean_error(values: Values, confidence: float, resamples: int, seed: int) -> Estimate:
    """Mean of (N,) values, N > 0, with a percentile bootstrap over the N units (Efron 1979).

    The same seed and values give the same interval; one value alone has none.
    """
    value = float(values.mean())
    if len(values) < 2:
        return Estimate(value, None, None)
    generator = np.random.default_rng(seed)
    size = len(values)
    means = np.array([values[generator.integers(0, size, size)].mean() for _ in range(resamples)])
    tail = (1.0 - confidence) / 2.0
    lower, upper = np.quantile(means, [tail, 1.0 - tail])
    return Estimate(value, float(lower), float(upper))
