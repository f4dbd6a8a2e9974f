"""The fixed lag of series behind others that cause them: of pictures behind rows, of arms behind
commands.

At each lag every late series is regressed on its causes (ridge); the explained share is the
log-likelihood of that lag. Cross-correlation of smooth motion has a broad peak, so the slow course
is taken away first, in two widths. Series come in views, ways of looking at one motion: each errs
in its own way where a motion's strength drifts, and their likelihoods are averaged; so are those of
the rows that have a partner at all lags, which compare like with like, and of all rows. How far the
estimate can be trusted is told by leaving out each quarter of the time and each view in turn
(jackknife: Efron and Stein, 1981).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Pair = tuple[Values, Values]  # series (N, B), and (N, D) that may cause them

MOST, MOST_OF_SHORT = 8, 6  # steps that a lag may be; so many are not compared at both ends
SHORT = 64  # differences: of fewer, too few would be left to compare
USUAL = 5.0  # steps: standard deviation of lags before anything is seen
WIDTHS = (15, 31)  # steps: what is slower is taken away
RIDGE = 1e-2
SPAN = 2  # steps of a difference
SHORTEST = 32  # differences: fewer say nothing
CLEAR = 0.05  # share of the motion that the best lag explains beyond the usual lag
UNSURE = 2.0  # steps: a lag that is known no better is not told
QUARTERS = 4  # parts of the time that are left out in turn
NOTHING = 1e-12
NOISE = 1e-6  # a dimension that moves less stands still, in its own unit


class Lag(NamedTuple):
    """How many steps late a series is, with a fraction, how clearly and how surely."""

    steps: float
    clarity: float  # share of the motion that this lag explains beyond the usual one, 0 to 1
    spread: float  # standard error, steps

    @property
    def known(self) -> bool:
        """Whether it should be told."""
        return self.clarity >= CLEAR and self.spread <= UNSURE


class _Curve(NamedTuple):
    """What one series leaves unexplained at each lag and time (2 * most + 1, N), of all (N,)."""

    left: Values
    whole: Values

    def likelihood(self, kept: npt.NDArray[np.bool_]) -> Values:
        """Of each lag, up to a constant, from the times that are kept."""
        left, whole = self.left[:, kept].sum(axis=1), self.whole[kept].sum()
        return np.asarray(-kept.sum() * np.log(np.maximum(left, NOTHING) / max(whole, NOTHING)))


def of(views: Sequence[Sequence[Pair]]) -> Lag | None:
    """By how many steps late series follow what may cause them, from the pairs of each view.

    None where nothing moves, or too little is there to tell. All pairs are of N steps.
    """
    looked = [_curves(view) for view in views]
    looked = [curves for curves in looked if curves]
    if not looked:
        return None
    count = len(looked[0][0].whole)
    always, quarter = np.ones(count, np.bool_), np.arange(count) * QUARTERS // count
    scores = _scores(looked, always)
    best = int(np.argmax(scores))
    share = np.mean([1 - c.left.sum(axis=1) / c.whole.sum() for v in looked for c in v], axis=0)
    without_time = [_peak(_scores(looked, quarter != part)) for part in range(QUARTERS)]
    without_view = [
        _peak(_scores([*looked[:n], *looked[n + 1 :]], always))
        for n in range(len(looked) if len(looked) > 1 else 0)
    ]
    spread = float(np.hypot(_jackknife(without_time), _jackknife(without_view)))
    return Lag(_peak(scores), float(share[best] - np.median(share)), spread)


def speeds(signal: npt.NDArray[np.floating]) -> Values:
    """How fast each dimension moves: (T, D) -> (T - 2, D), in units of its own spread, rooted."""
    return np.asarray(np.sqrt(abs(velocities(signal))))


def velocities(signal: npt.NDArray[np.floating]) -> Values:
    """As `speeds`, with directions and not rooted: (T, D) -> (T - 2, D)."""
    values = signal.astype(np.float64)
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread > NOISE, spread, np.inf)
    return np.asarray(scaled[SPAN:] - scaled[:-SPAN])


def speed(signal: npt.NDArray[np.floating]) -> Values:
    """How fast all dimensions move together: (T, D) -> (T - 2, 1)."""
    return np.asarray(np.sqrt(np.linalg.norm(velocities(signal), axis=1, keepdims=True)))


def busiest(signal: npt.NDArray[np.floating], count: int) -> int:
    """The first of those `count` rows of (T, D) in which most moves."""
    if len(signal) <= count:
        return 0
    total = np.concatenate([[0.0], np.cumsum(speed(signal))])
    ends = np.minimum(np.arange(len(signal) - count + 1) + count - SPAN, len(total) - 1)
    return int(np.argmax(total[ends] - total[: len(signal) - count + 1]))


def _curves(view: Sequence[Pair]) -> list[_Curve]:
    """Of the pairs in which something moves."""
    found = []
    for late, cause in view:
        moving = cause[:, np.ptp(cause, axis=0) > 0]
        if len(cause) >= SHORTEST and moving.shape[1] and np.ptp(late) > 0:
            for width in WIDTHS:
                sharp = _sharp(late, width), _sharp(moving, width)
                found += _explained(*sharp)
    return found


def _explained(late: Values, cause: Values) -> list[_Curve]:
    """Regressions of `late` (N, B) on `cause` (N, D) at each lag, of the rows that have a partner
    at all lags, and of all that have one at each: a short recording has few of the first.
    """
    most = MOST if len(late) >= SHORT else MOST_OF_SHORT
    lags, rows = np.arange(-most, most + 1)[:, None], np.arange(len(late))
    moved = np.stack([np.roll(cause, lag, axis=0) for lag in lags[:, 0]])
    partner = (rows >= lags) & (rows < len(rows) + lags)
    inner = np.broadcast_to(partner.all(axis=0), partner.shape)
    left, whole = _left(late, moved, inner)
    rest, own = _left(late, moved, partner)  # shares of each lag's own rows, since those differ
    rest = np.where(partner, rest, rest.sum(axis=1, keepdims=True) / partner.sum(1, keepdims=True))
    all_of_it = own.sum(axis=1, keepdims=True) * len(rows) / partner.sum(axis=1, keepdims=True)
    share = _Curve(rest / np.maximum(all_of_it, NOTHING), np.full(len(rows), 1 / len(rows)))
    return [_Curve(left, whole[0]), share]


def _left(late: Values, cause: Values, kept: npt.NDArray[np.bool_]) -> tuple[Values, Values]:
    """Squares that regressions of `late` (N, B) on `cause` (L, N, D) leave, and all, (L, N) each.

    Only of the rows `kept` (L, N); 0 elsewhere.
    """
    count, kept = kept.sum(axis=1)[:, None, None], kept[:, :, None]
    x, y = late * kept, cause * kept
    x, y = (
        (x - x.sum(axis=1, keepdims=True) / count) * kept,
        (y - y.sum(axis=1, keepdims=True) / count) * kept,
    )
    turned = y.transpose(0, 2, 1)
    gram = turned @ y
    ridge = RIDGE * np.trace(gram, axis1=1, axis2=2) / gram.shape[1]
    gram += np.maximum(ridge, NOTHING)[:, None, None] * np.eye(gram.shape[1])
    rest = x - y @ np.linalg.solve(gram, turned @ x)
    return (rest**2).sum(axis=2), (x**2).sum(axis=2)


def _scores(views: list[list[_Curve]], kept: npt.NDArray[np.bool_]) -> Values:
    """Of each lag: the mean likelihood of all curves, and what is usual."""
    scores = np.mean([c.likelihood(kept) for v in views for c in v], axis=0)
    steps = np.arange(len(scores)) - len(scores) // 2
    return np.asarray(scores - 0.5 * (steps / USUAL) ** 2)


def _sharp(values: Values, width: int) -> Values:
    """(N, D) without its slow course: a moving mean over `width` steps."""
    half = width // 2
    padded = np.pad(values, [(half, half), (0, 0)], mode="edge")
    total = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), padded]), axis=0)
    return np.asarray(values - (total[width:] - total[:-width])[: len(values)] / width)


def _jackknife(without: list[float]) -> float:
    """Standard error by the estimates without each part in turn; 0 where there are none."""
    return float(np.std(without) * np.sqrt(len(without) - 1)) if without else 0.0


def _peak(scores: Values) -> float:
    """Where the highest score lies, in steps: the top of a parabola through its neighbours."""
    best, most = int(np.argmax(scores)), len(scores) // 2
    if not 0 < best < len(scores) - 1:
        return float(best - most)
    before, at, after = scores[best - 1 : best + 2]
    bend = before - 2 * at + after
    return float(best - most + (0.5 * (before - after) / bend if bend < 0 else 0.0))
