"""The fixed lag of one series behind others, and of the pictures of an episode behind its rows.

Cross-correlation of smooth motion has a broad peak, so both sides are made sharp first: differences
over two steps, square roots (one fast moment must not rule), and the slow course taken away in two
widths. Joints show in a picture with different strength, so the picture's motion is regressed on
the speeds of all dimensions (ridge) at each lag, for the whole picture and for its quarters; the
explained share is the curve whose peak counts. Steps that cross a key picture are bridged, since
encoders change the whole picture there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.ingestion.looks import Packets
from components.packets import Span, opened

Values = npt.NDArray[np.float64]

MOST = 8  # steps that a lag may be; more would leave too few rows of a short recording
USUAL = 5.0  # steps: standard deviation of lags before anything is seen
WIDTHS = (15, 31)  # steps: what is slower is taken away
RIDGE = 1e-2
SPAN = 2  # steps of a difference
SHORTEST = 40  # differences: fewer say nothing
CLEAR = 0.05  # share of the motion that the best lag explains beyond the usual lag
SMALL = (24, 32)  # height, width of pictures
PARTS = (1, 2)  # pictures are looked at whole, and in 2 x 2 parts


class Lag(NamedTuple):
    """How many steps late a series is, with a fraction, and how clearly (0 to 1)."""

    steps: float
    clarity: float


def of(late: list[Values], cause: Values) -> Lag | None:
    """By how many steps the motions (N, B) in `late` follow the motions (N, D) of `cause`.

    None where nothing moves, or too little is there to tell.
    """
    moving = cause[:, np.ptp(cause, axis=0) > 0]
    shown = [series for series in late if np.ptp(series) > 0]
    if len(cause) < SHORTEST or not moving.shape[1] or not shown:
        return None
    curves = [_curve(_sharp(s, w), _sharp(moving, w)) for s in shown for w in WIDTHS]
    usual = -0.5 * (np.arange(-MOST, MOST + 1) / USUAL) ** 2
    scaled = sum((c - c.mean()) / max(float(c.std()), 1e-12) for c in curves) / len(shown) + usual
    best = int(np.argmax(scaled))
    mean = np.mean(curves, axis=0)
    return Lag(best + _between(scaled, best) - MOST, float(mean[best] - np.median(mean)))


def speeds(signal: npt.NDArray[np.floating]) -> Values:
    """How fast each dimension moves: (T, D) -> (T - 2, D), in units of its own spread, rooted."""
    values = signal.astype(np.float64)
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
    return np.asarray(np.sqrt(abs(scaled[SPAN:] - scaled[:-SPAN])))


def speed(signal: npt.NDArray[np.floating]) -> Values:
    """How fast all dimensions move together: (T, D) -> (T - 2, 1)."""
    return np.asarray(np.sqrt(np.linalg.norm(speeds(signal) ** 2, axis=1, keepdims=True)))


def pictured(span: Span, packets: Packets, first: int, count: int) -> list[Values]:
    """How much `count` pictures from the `first` of a span change: (count - 2, parts), rooted.

    av.FFmpegError or ValueError when they cannot be decoded. Costs `count` decoded pictures, and at
    most one group before.
    """
    shown = sorted(packets.shown)[first : first + count]
    pictures = _decoded(span, shown)
    change = abs(pictures[SPAN:] - pictures[:-SPAN])
    keys = np.isin(shown, packets.keys)
    crossing = np.convolve(keys, np.ones(SPAN), "valid")[1:] > 0
    return [np.sqrt(_bridged(_parts(change, parts), crossing)) for parts in PARTS]


def _parts(change: npt.NDArray[np.float32], parts: int) -> Values:
    """(N, H, W) -> means of parts x parts tiles, (N, parts * parts)."""
    count, height, width = change.shape
    tiles = change.reshape(count, parts, height // parts, parts, width // parts).mean(axis=(2, 4))
    return np.asarray(tiles.reshape(count, -1), dtype=np.float64)


def _bridged(change: Values, crossing: npt.NDArray[np.bool_]) -> Values:
    """Straight lines over the steps (N,) that cross a key picture, unless all do."""
    if not crossing.any() or crossing.all():
        return change
    rows = np.arange(len(change))
    whole = [np.interp(rows, rows[~crossing], column[~crossing]) for column in change.T]
    return np.stack(whole, axis=1)


def _decoded(span: Span, shown: list[int]) -> npt.NDArray[np.float32]:
    """Pictures (N, 24, 32), grey, at the presentation times `shown` in ticks."""
    wanted, found = set(shown), []
    with opened(span.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(max(shown[0], 0), stream=stream, backward=True)
        height, width = SMALL
        for frame in container.decode(stream):
            if frame.pts in wanted:
                grey = frame.reformat(width, height, format="gray", interpolation="AREA")
                found.append(grey.to_ndarray().astype(np.float32))
            if frame.pts is not None and frame.pts >= shown[-1]:
                break
    if len(found) != len(shown):
        raise ValueError(f"{len(shown) - len(found)} of {len(shown)} pictures cannot be decoded")
    return np.stack(found)


def busiest(signal: npt.NDArray[np.floating], count: int) -> int:
    """The first of those `count` rows of (T, D) in which most moves."""
    if len(signal) <= count:
        return 0
    total = np.concatenate([[0.0], np.cumsum(speed(signal))])
    ends = np.minimum(np.arange(len(signal) - count + 1) + count - SPAN, len(total) - 1)
    return int(np.argmax(total[ends] - total[: len(signal) - count + 1]))


def _sharp(values: Values, width: int) -> Values:
    """(N, D) without its slow course: a moving mean over `width` steps."""
    half = width // 2
    padded = np.pad(values, [(half, half), (0, 0)], mode="edge")
    total = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), padded]), axis=0)
    return np.asarray(values - (total[width:] - total[:-width])[: len(values)] / width)


def _curve(late: Values, cause: Values) -> Values:
    """Explained share of `late` (N, B) by `cause` (N, D) for each lag, (2 * MOST + 1,)."""
    count = len(late)
    found = []
    for lag in range(-MOST, MOST + 1):
        if count >= 2 * MOST + SHORTEST // 2:  # the same rows of `late` for each lag
            x, y = late[MOST : count - MOST], cause[MOST - lag : count - MOST - lag]
        else:
            x, y = (
                late[max(lag, 0) : count + min(lag, 0)],
                cause[max(-lag, 0) : count - max(lag, 0)],
            )
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        gram = y.T @ y
        gram += max(RIDGE * float(np.trace(gram)) / len(gram), 1e-12) * np.eye(len(gram))
        rest = x - y @ np.linalg.solve(gram, y.T @ x)
        found.append(1 - float((rest**2).sum()) / max(float((x**2).sum()), 1e-12))
    return np.array(found)


def _between(curve: Values, best: int) -> float:
    """Where the peak lies between samples: the top of a parabola."""
    if not 0 < best < len(curve) - 1:
        return 0.0
    before, at, after = curve[best - 1 : best + 2]
    bend = before - 2 * at + after
    return float(0.5 * (before - after) / bend) if bend < 0 else 0.0
