"""Statistics as LeRobot v3.0 keeps them: of episodes in `meta/episodes`, of all in `stats.json`.

Means and deviations are joined exactly; quantiles of all are the mean of the episodes' quantiles,
weighted by frames, as in `lerobot.datasets.compute_stats`. Each episode's first picture is taken.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.packets import Span, opened, video_stream, walk

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
KEYS = ("min", "max", "mean", "std", "count", *QUANTILES)
PICTURE_SIDE = 160  # a larger picture is thinned out to about this many rows

Stats = dict[str, list[Any]]


def of_rows(column: pa.ChunkedArray) -> Stats:
    """Of one feature over an episode's rows; rows with NaN or infinity are left out."""
    whole = column.combine_chunks()
    values = np.asarray(whole.values if pa.types.is_fixed_size_list(whole.type) else whole)
    return _of(values.reshape(len(column), -1) if len(column) else np.zeros((0, 1)))


def of_range(start: int, end: int) -> Stats:
    """Of the numbers from `start` to before `end`, one a row."""
    return _of(np.arange(start, end)[:, None])


def of_constant(value: int, count: int) -> Stats:
    """Of one number in every of `count` rows."""
    value = value if count else 0
    exact = {key: [float(value)] for key in ("mean", *QUANTILES)}
    return {"min": [value], "max": [value], "std": [0.0], "count": [count], **exact}


def of_first_picture(span: Span) -> Stats | None:
    """Of a video's first picture, by channel (3, 1, 1), 0 to 1; None where it cannot be decoded."""
    try:
        image = _first_picture(span)
    except (av.FFmpegError, IndexError, ValueError):
        return None
    stride = max(image.shape[0] // PICTURE_SIDE, 1)
    pixels = image[::stride, ::stride].reshape(-1, 3)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T], axis=1)
    stats = _of_levels(counts)
    nested = {key: [[[value]] for value in values] for key, values in stats.items()}
    return {**nested, "count": [1]}


def join(episodes: pa.Table) -> dict[str, Stats]:
    """Of all episodes together, feature by feature, by the columns of `meta/episodes`."""
    parts = [name.split("/") for name in episodes.column_names if name.startswith("stats/")]
    names = dict.fromkeys("/".join(part[1:-1]) for part in parts)
    return {name: _join(_columns(episodes, name)) for name in names}


def _columns(episodes: pa.Table, name: str) -> dict[str, npt.NDArray[Any]]:
    """(N, ...) of each statistic of one feature, over the episodes that have it."""
    columns = {key: episodes[f"stats/{name}/{key}"].drop_null() for key in KEYS}
    return {key: np.array(column.to_pylist()) for key, column in columns.items()}


def _of(values: npt.NDArray[Any]) -> Stats:
    """(N, D) numbers; `count` 0 and zeros where no row is finite."""
    values = values[np.isfinite(values).all(axis=1)]
    count = len(values)
    if not count:
        values = np.zeros((1, values.shape[1]), values.dtype)
    ranked = np.sort(values, axis=0)  # once: as fast as one `np.quantile` of few
    exact = values.astype(np.float64)
    return {
        "min": ranked[0].tolist(),
        "max": ranked[-1].tolist(),
        "mean": exact.mean(axis=0).tolist(),
        "std": exact.std(axis=0).tolist(),
        "count": [count],
        **{key: _quantile(ranked, share).tolist() for key, share in QUANTILES.items()},
    }


def _of_levels(counts: npt.NDArray[np.int64]) -> Stats:
    """Of the 256 levels of N pixels, 0 to 1, by how many have each (256, D)."""
    levels = np.arange(256)[:, None] / 255.0
    mean = (counts * levels).sum(axis=0) / counts[:, 0].sum()
    spread = (counts * (levels - mean) ** 2).sum(axis=0) / counts[:, 0].sum()
    ranked = np.stack([np.repeat(levels[:, 0], column) for column in counts.T], axis=1)
    return {
        "min": ranked[0].tolist(),
        "max": ranked[-1].tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(spread).tolist(),
        **{key: _quantile(ranked, share).tolist() for key, share in QUANTILES.items()},
    }


def _quantile(ranked: npt.NDArray[Any], share: float) -> npt.NDArray[np.float64]:
    """Of sorted (N, D), as `np.quantile` does by default, to the bit."""
    place = share * (len(ranked) - 1)
    below = int(place)
    low, high = ranked[[below, min(below + 1, len(ranked) - 1)]].astype(np.float64)
    part = place - below
    if part >= 0.5:
        return np.asarray(high - (high - low) * (1 - part))
    return np.asarray(low + (high - low) * part)


def _join(parts: dict[str, npt.NDArray[Any]]) -> Stats:
    some = parts["count"][:, 0] > 0
    if not some.any():
        some[0] = True
    parts = {key: values[some] for key, values in parts.items()}
    counts = np.maximum(parts["count"][:, 0], 1).astype(np.float64)
    weights = counts / counts.sum()

    def weighted(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.tensordot(weights, values.astype(np.float64), axes=1)

    mean = weighted(parts["mean"])
    spread = parts["std"].astype(np.float64) ** 2 + (parts["mean"] - mean) ** 2
    return {
        "min": parts["min"].min(axis=0).tolist(),
        "max": parts["max"].max(axis=0).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(weighted(spread)).tolist(),
        "count": [int(parts["count"].sum())],
        **{key: weighted(parts[key]).tolist() for key in QUANTILES},
    }


def _first_picture(span: Span) -> npt.NDArray[np.uint8]:
    with opened(span.path) as container:
        context = video_stream(container).codec_context
        context.thread_count = 1
        first = None
        for packet, inside in walk(container, span):
            first = packet.pts if inside and first is None else first
            for frame in context.decode(packet):
                if first is not None and frame.pts is not None and frame.pts >= first:
                    return np.asarray(frame.to_ndarray(format="rgb24"))
        for frame in context.decode(None):
            return np.asarray(frame.to_ndarray(format="rgb24"))
    raise ValueError("no picture")
