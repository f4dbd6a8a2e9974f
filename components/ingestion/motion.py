"""How the pictures of a camera move, to be compared with how the rows of an episode do.

Three views of the same differences of pictures, whole and in quarters. `change`: how much they
differ, which follows speeds. `push`: differences times gradients, which is linear in velocities
(the right side of the equations of Lucas and Kanade, 1981) and free of the noise that a rectified
difference has. `shift`: those equations solved, weighted towards what moves, so that an arm may
grow in the picture without seeming faster. Steps that cross a key picture are bridged, since
encoders change the whole picture there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.ingestion import lag
from components.ingestion.lag import SPAN, Pair, Values
from components.ingestion.looks import Grey, Packets, decoded
from components.packets import Span, opened

SMALL = (48, 48)  # height, width of pictures
PARTS = (1, 2)  # pictures are looked at whole, and in 2 x 2 parts
DAMPED = 0.1  # of a part's usual texture: parts without texture do not shift
NOTHING = 1e-6  # grey levels


class Motion(NamedTuple):
    """Of one camera: series (N, B) of the whole and of its parts, N = pictures - 2."""

    change: list[Values]
    push: list[Values]
    shift: list[Values]

    def cut(self, first: int, end: int) -> Motion:
        """The steps from `first` to `end` (excluded)."""
        return Motion(*([series[first:end] for series in view] for view in self))


def late(cameras: list[Motion], state: npt.NDArray[np.floating]) -> lag.Lag | None:
    """How late the pictures of all cameras show the state (N + 2, D)."""
    fast, directed = lag.speeds(state), lag.velocities(state)
    views: list[list[Pair]] = []
    for camera in cameras:
        views.append([(series, fast) for series in camera.change])
        views += [[(series, directed) for series in view] for view in (camera.push, camera.shift)]
    return lag.of(views)


def pictured(span: Span, packets: Packets, first: int, count: int) -> Motion:
    """How `count` pictures from the `first` of a span move.

    av.FFmpegError or ValueError when they cannot be decoded. Costs `count` decoded pictures, and at
    most one group before.
    """
    shown = sorted(packets.shown)[first : first + count]
    return seen(_decoded(span, shown), np.isin(shown, packets.keys))


def seen(pictures: Grey, keys: npt.NDArray[np.bool_]) -> Motion:
    """How pictures (N, H, W), grey, move; `keys` (N,) are those that encoders begin anew with."""
    before, after = pictures[:-SPAN], pictures[SPAN:]
    change = after - before
    mean = (before + after) / 2
    down, right = (np.asarray(np.gradient(mean, axis=axis)) for axis in (1, 2))
    weight = abs(change) / (abs(change).mean(axis=(1, 2), keepdims=True) + NOTHING)
    crossing = np.convolve(keys, np.ones(SPAN), "valid")[1:] > 0
    motion = Motion([], [], [])
    for parts in PARTS:
        motion.change.append(np.sqrt(_bridged(_tiles(abs(change), parts), crossing)))
        push = [_tiles(gradient * change, parts) for gradient in (right, down)]
        motion.push.append(_bridged(np.hstack(push), crossing))
        motion.shift.append(_bridged(_solved(weight, right, down, change, parts), crossing))
    return motion


def _solved(weight: Grey, right: Grey, down: Grey, change: Grey, parts: int) -> Values:
    """By how much each part shifts, in both directions: (N, 2 * parts * parts)."""
    xx, yy = _tiles(weight * right**2, parts), _tiles(weight * down**2, parts)
    xy = _tiles(weight * right * down, parts)
    x, y = _tiles(weight * right * change, parts), _tiles(weight * down * change, parts)
    damping = DAMPED * np.median(xx + yy) + NOTHING
    xx, yy = xx + damping, yy + damping
    area = xx * yy - xy**2
    return np.hstack([(yy * x - xy * y) / area, (xx * y - xy * x) / area])


def _tiles(values: Grey, parts: int) -> Values:
    """(N, H, W) -> means of parts x parts tiles, (N, parts * parts)."""
    count, height, width = values.shape
    tiles = values.reshape(count, parts, height // parts, parts, width // parts).mean(
        axis=(2, 4), dtype=np.float64
    )
    return np.asarray(tiles.reshape(count, -1))


def _bridged(series: Values, crossing: npt.NDArray[np.bool_]) -> Values:
    """Straight lines over the steps (N,) that cross a key picture, unless all do."""
    if not crossing.any() or crossing.all():
        return series
    rows = np.arange(len(series))
    whole = [np.interp(rows, rows[~crossing], column[~crossing]) for column in series.T]
    return np.stack(whole, axis=1)


def _decoded(span: Span, shown: list[int]) -> Grey:
    """Pictures (N, 48, 48), grey, at the presentation times `shown` in ticks."""
    wanted, found = set(shown), []
    with opened(span.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(max(shown[0], 0), stream=stream, backward=True)
        height, width = SMALL
        for frame in decoded(container, stream):
            if frame.pts in wanted:
                grey = frame.reformat(width, height, format="gray", interpolation="AREA")
                found.append(grey.to_ndarray().astype(np.float32))
            if frame.pts is not None and frame.pts >= shown[-1]:
                break
    if len(found) != len(shown):
        raise ValueError(f"{len(shown) - len(found)} of {len(shown)} pictures cannot be decoded")
    return np.stack(found)
