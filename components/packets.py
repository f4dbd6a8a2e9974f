"""Encoded video, packet by packet: walk a span of a file, join spans to a file without re-encoding.

PyAV (FFmpeg's libav*) does the work. A span is taken in the file's own presentation times; joined
files keep the distances between pictures, or take those of the rows that the pictures belong to.
PyAV copies AV1 packets only with `opaque=True`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Ticks = npt.NDArray[np.int64]

TIME_BASE = Fraction(1, 90_000)  # of joined files; whole ticks for all usual rates
TOLERANCE_S = 1e-4  # between a row and its picture; LeRobot's own


@dataclass(frozen=True)
class Span:
    """From `start_s` (included) to `end_s` (excluded) in a file's own time; by default all."""

    path: Path
    start_s: float | None = None
    end_s: float = math.inf


class Step(NamedTuple):
    """One packet in decoding order; not `inside` is what comes before and only decoding needs."""

    packet: Any
    inside: bool


def opened(path: Path) -> Any:
    """An opened container. av.FFmpegError when it is none.

    An MP4's tables say what a parser would find out by decoding: several milliseconds a file.
    """
    tables = path.suffix.lower() in (".mp4", ".mov")
    options = {"fflags": "noparse", "fpsprobesize": "0"} if tables else {}
    return av.open(str(path), options=options)


def video_stream(container: Any) -> Any:
    """The first stream of pictures. IndexError when none, ValueError of no known codec."""
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError("no decoder for the video")
    return stream


def walk(container: Any, span: Span) -> Iterator[Step]:
    """Packets of a span, from the key frame where decoding begins. av.FFmpegError when damaged."""
    stream = video_stream(container)
    low, high = _limits(stream, span)
    if span.start_s:
        container.seek(max(math.floor(low), 0), stream=stream, backward=True)
    before: list[Any] = []
    begun = False
    for packet in container.demux(stream):
        if not packet.size or packet.pts is None:
            continue
        if packet.is_keyframe and packet.pts >= high:
            return
        inside = low <= packet.pts < high
        if inside and not begun:
            begun = True
            yield from (Step(p, False) for p in ([] if packet.is_keyframe else before))
        elif not begun:
            before = [packet] if packet.is_keyframe else [*before, packet]
        if inside:
            yield Step(packet, True)


def _limits(stream: Any, span: Span) -> tuple[float, float]:
    """The span in ticks of the stream, half a frame early: stored seconds are rounded."""
    half = 0.5 * frame_ticks(stream)
    low = -math.inf if span.start_s is None else span.start_s / float(stream.time_base) - half
    return low, span.end_s / float(stream.time_base) - half


def frame_ticks(stream: Any) -> float:
    """Ticks from one frame to the next, by the stream's own rate; 1 where the file does not say."""
    rate = stream.average_rate or stream.guessed_rate
    return float(1 / (rate * stream.time_base)) if rate else 1.0


class Shape(NamedTuple):
    """What must agree for two videos to share one file."""

    codec: str
    pix_fmt: str | None
    height: int
    width: int
    extradata: bytes

    @classmethod
    def of(cls, stream: Any) -> Shape:
        """Read it from an opened video stream."""
        context = stream.codec_context
        return cls(
            context.codec.canonical_name,
            context.pix_fmt,
            context.height,
            context.width,
            bytes(context.extradata or b""),
        )


class Placed(NamedTuple):
    """Where an episode's video lies: the file's number and the span within it, seconds."""

    file: int
    start_s: float
    end_s: float


class Timing(NamedTuple):
    """Ticks of `TIME_BASE` for N packets in decoding order, the first shown at 0."""

    pts: Ticks  # (N,)
    dts: Ticks  # (N,), increasing, never after `pts`
    durations: Ticks  # (N,)
    start: int  # of the first picture inside the span
    end: int  # when the last picture is over


def timing(steps: list[Step], source: Any, rows_s: Seconds | None) -> Timing:
    """Times for the packets of one span; `rows_s` (T,) as in `Joiner.append`."""
    own = np.array([step.packet.pts for step in steps])
    inside = np.array([step.inside for step in steps])
    order = np.argsort(own, kind="stable")
    shown = np.flatnonzero(inside[order])
    times_s = (own[order] - own[inside].min()) * float(source.time_base)
    last = steps[order[shown[-1]]].packet
    end_s = times_s[shown[-1]] + (last.duration or frame_ticks(source)) * float(source.time_base)
    if rows_s is not None and len(rows_s) > 1:
        times_s[shown], end_s = _by_rows(times_s[shown], end_s, rows_s)
    ticks = _increasing(np.rint((times_s - times_s[0]) / float(TIME_BASE)).astype(np.int64))
    rank = np.argsort(order, kind="stable")
    end = max(round((end_s - times_s[0]) / float(TIME_BASE)), int(ticks[-1]) + 1)
    return Timing(
        pts=ticks[rank],
        dts=_decoding(ticks, rank),
        durations=np.diff(ticks, append=end)[rank],
        start=int(ticks[shown[0]]),
        end=end,
    )


def _by_rows(own_s: Seconds, end_s: float, rows_s: Seconds) -> tuple[Seconds, float]:
    """When N pictures are shown and the last is over, by the clock of their T rows.

    A video that agrees with the rows keeps its own times, without the rounding of the rows'.
    Pictures beyond the last row follow at the mean step; where one is missing, it is the last.
    """
    step_s = float(rows_s[-1] - rows_s[0]) / (len(rows_s) - 1)
    beyond = np.arange(1, len(own_s) - len(rows_s) + 1)
    clock_s = np.concatenate([rows_s - rows_s[0], rows_s[-1] - rows_s[0] + beyond * step_s])
    after = np.clip(np.searchsorted(clock_s, own_s), 1, len(clock_s) - 1)
    off_s = np.minimum(abs(own_s - clock_s[after - 1]), abs(own_s - clock_s[after]))
    agrees = bool((off_s <= TOLERANCE_S).all())
    if not agrees or len(own_s) < len(rows_s):
        end_s = float(clock_s[-1]) + step_s
    return (own_s if agrees else clock_s[: len(own_s)]), end_s


def _increasing(ticks: Ticks) -> Ticks:
    """Each at least one more than the one before."""
    count = np.arange(len(ticks))
    return np.asarray(np.maximum.accumulate(ticks - count) + count, dtype=np.int64)


def _decoding(shown: Ticks, rank: npt.NDArray[np.intp]) -> Ticks:
    """Decoding times: presentation times in order, as late as pictures shown later need it.

    `shown` (N,) ascending; the picture decoded as i-th is shown as `rank[i]`-th.
    """
    delay = int(max((np.arange(len(rank)) - rank).max(), 0))
    step = np.diff(shown).min() if delay else 1
    lead = shown[0] - step * np.arange(delay, 0, -1)
    return np.concatenate([lead, shown[: len(shown) - delay]]).astype(np.int64)


@dataclass
class Joiner:
    """Appends spans to numbered MP4 files; a new file where parameters differ or one is full."""

    name: Callable[[int], Path]  # of the file with a number
    limit_bytes: int
    shape: Shape | None = None
    number: int = -1
    _output: Any = field(default=None, repr=False)
    _end: int = 0  # ticks: where the next span begins
    _dts: int = 0  # ticks: the last one written
    _bytes: int = 0

    def append(self, span: Span, rows_s: Seconds | None = None) -> Placed:
        """Copy one span. One episode's packets are held in memory. av.FFmpegError when damaged.

        With `rows_s` (T,), increasing, picture k is shown at row k's time; without, the pictures
        keep their distances. The encoded pictures stay what they are.
        """
        with opened(span.path) as container:
            stream = container.streams.video[0]
            steps = list(walk(container, span))
            size, times = sum(step.packet.size for step in steps), timing(steps, stream, rows_s)
            if not self._fits(Shape.of(stream), size):
                self._open_next(stream)
            return self._mux(steps, times, size)

    def keep(self, path: Path, length_s: float) -> Placed:
        """Take over a whole file as it is, damaged or not, as a file of its own."""
        self.close()
        self.number += 1
        target = self.name(self.number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return Placed(self.number, 0.0, length_s)

    def close(self) -> None:
        """Finish the open file."""
        if self._output is not None:
            self._output.close()
            self._output = None

    def _fits(self, shape: Shape, size: int) -> bool:
        return (
            self._output is not None
            and shape == self.shape
            and self._bytes + size <= self.limit_bytes
        )

    def _open_next(self, stream: Any) -> None:
        self.close()
        self.number += 1
        path = self.name(self.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.shape, self._end, self._bytes = Shape.of(stream), 0, 0
        options = {"video_track_timescale": str(TIME_BASE.denominator)}
        self._output = av.open(str(path), "w", format="mp4", options=options)
        self._output.add_stream_from_template(stream, opaque=True)

    def _mux(self, steps: list[Step], times: Timing, size: int) -> Placed:
        target, shift = self._output.streams.video[0], self._end
        if self._bytes:  # decoding times go on, with a gap where pictures are reordered more
            shift = max(shift, self._dts + 1 - int(times.dts[0]))
        columns = (times.pts, times.dts, times.durations)
        for (packet, _), pts, dts, duration in zip(steps, *columns, strict=True):
            packet.time_base, packet.duration = TIME_BASE, int(duration)
            packet.pts, packet.dts = int(pts) + shift, int(dts) + shift
            self._dts, packet.stream = packet.dts, target
            self._output.mux(packet)
        self._bytes, self._end = self._bytes + size, times.end + shift
        base = float(TIME_BASE)
        return Placed(self.number, (times.start + shift) * base, self._end * base)
