"""Encoded video, packet by packet: walk a span of a file, join spans to a file without re-encoding.

A span is taken in the file's own presentation times; joined files keep the distances between
pictures, or take those of the rows that the pictures belong to. The tables of a plain MP4 are read
as arrays (`mp4.py`); of anything else PyAV (FFmpeg's libav*) first makes a plain one, whose AV1
packets it copies only with `opaque=True`.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from components import mp4
from components.mp4 import NotPlainError, Track

Seconds = npt.NDArray[np.float64]
Ticks = npt.NDArray[np.int64]

TIME_BASE = Fraction(1, 90_000)  # of joined files; whole ticks for all usual rates
BLOCK = 1 << 20  # bytes read at a time, and one packet: what a processor's cache holds
MOST_COPIES = 4  # a scratch file is at most so many times its source
DESCRIBED = {  # description of an MP4 -> codec, and the box with all its parameters
    b"avc1": ("h264", b"avcC"),
    b"hvc1": ("hevc", b"hvcC"),
    b"av01": ("av1", b"av1C"),
}
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
    low, high = _limits(float(stream.time_base), frame_ticks(stream), span)
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


def _limits(tick_s: float, frame: float, span: Span) -> tuple[float, float]:
    """The span in ticks, half of a frame's ticks early: stored seconds are rounded."""
    low = -math.inf if span.start_s is None else span.start_s / tick_s - 0.5 * frame
    return low, span.end_s / tick_s - 0.5 * frame


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


class Cut(NamedTuple):
    """The N packets of a span in decoding order; those before the first inside only help decode."""

    path: Path  # of the file that holds the bytes
    track: Track  # where they lie, and times as the span's own file has them
    time_base: Fraction  # seconds of one tick
    inside: npt.NDArray[np.bool_]  # (N,)
    frame_ticks: float  # from one frame to the next, by the file's own rate

    def shape(self) -> Shape:
        """By the description alone where that says all, else by PyAV."""
        kind, box = self.track.entry[4:8], self.track.boxes
        if kind in DESCRIBED and DESCRIBED[kind][1] in box:
            codec, name = DESCRIBED[kind]
            return Shape(codec, None, *self.track.side, box[name])
        with opened(self.path) as container:
            return Shape.of(video_stream(container))

    def blocks(self) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """Packets `first` to `end` (excluded) and their bytes, which the next block overwrites.

        What comes before the first packet inside ends a block.
        """
        size, begun = self.track.size, int(self.inside.argmax())
        number = np.cumsum(size) // BLOCK
        new = np.flatnonzero(np.diff(number) > 0) + 1
        edges = np.unique(np.concatenate([[0, begun, len(size)], new])).tolist()
        lengths = np.add.reduceat(size, edges[:-1]).tolist()
        room = np.empty(
            max(lengths), np.uint8
        )  # one for all: fresh memory costs as much as reading
        with self.path.open("rb", buffering=0) as file:
            for (first, end), length in zip(itertools.pairwise(edges), lengths, strict=True):
                data = room[:length]
                mp4.fill(data, file.fileno(), self.track.offset[first:end], size[first:end])
                yield first, end, data


@contextmanager
def cut(span: Span) -> Iterator[Cut]:
    """The packets of a span. av.FFmpegError when damaged, ValueError where there is none.

    What is no plain MP4 is demuxed by PyAV to a scratch file that is gone afterwards.
    """
    try:
        state = span.path.stat()
        track = _read(span.path, state.st_size, state.st_mtime_ns, state.st_ino)
    except NotPlainError:
        with tempfile.TemporaryDirectory(prefix="wamflow-") as scratch:
            yield _demuxed(span, Path(scratch) / "span.mp4")
    else:
        yield _of_tables(track, span)


@lru_cache(maxsize=4)
def _read(path: Path, *state: int) -> Track:
    """The tables of a file in this state; episodes of one file come one after the other."""
    return mp4.read(path)


def _of_tables(track: Track, span: Span) -> Cut:
    """What `walk` finds, all at once."""
    ticks = float(track.duration.sum()) / len(track.size) or 1.0
    low, high = _limits(1 / track.timescale, ticks, span)
    stop = np.flatnonzero(track.key & (track.pts >= high))
    pts = track.pts[: stop[0]] if len(stop) else track.pts
    inside = np.flatnonzero((low <= pts) & (pts < high))
    if not len(inside):
        raise ValueError("no picture in the episode's span")
    keys = np.flatnonzero(track.key[: inside[0] + 1])
    chosen = np.concatenate([np.arange(keys[-1] if len(keys) else 0, inside[0]), inside])
    return Cut(
        span.path, track.some(chosen), Fraction(1, track.timescale), chosen >= inside[0], ticks
    )


def _demuxed(span: Span, scratch: Path) -> Cut:
    """The packets of `walk`, put into a plain file."""
    said: list[tuple[int, int, bool, bool]] = []
    options = {"video_track_timescale": str(TIME_BASE.denominator)}
    with (
        opened(span.path) as container,
        av.open(str(scratch), "w", format="mp4", options=options) as target,
    ):
        stream = video_stream(container)
        ticks, time_base = frame_ticks(stream), Fraction(stream.time_base)
        output = target.add_stream_from_template(stream, opaque=True)
        room = MOST_COPIES * span.path.stat().st_size
        for packet, inside in walk(container, span):
            said.append((packet.pts, packet.duration or round(ticks), packet.is_keyframe, inside))
            room -= packet.size
            if room < 0:
                raise ValueError("its packets are more than the file")
            packet.stream, packet.time_base = output, TIME_BASE
            packet.pts = packet.dts = len(said) - 1
            packet.duration = 1
            target.mux(packet)
        if not said:
            raise ValueError("no picture in the episode's span")
    plain = mp4.read(scratch)
    if len(plain.size) != len(said):
        raise ValueError("packets that an MP4 cannot hold")
    pts, duration, key, shown = (np.array(column) for column in zip(*said, strict=True))
    track = plain._replace(pts=pts, duration=duration, key=key)
    return Cut(scratch, track, time_base, shown, ticks)


class Placed(NamedTuple):
    """Where an episode's video lies: the file's number and the span within it, seconds."""

    file: int
    start_s: float
    end_s: float


class Timing(NamedTuple):
    """Ticks of `TIME_BASE` for N packets in decoding order, the first shown at 0."""

    pts: Ticks  # (N,)
    dts: Ticks  # (N,), increasing, never after `pts`
    start: int  # of the first picture inside the span
    end: int  # when the last picture is over


def timing(found: Cut, rows_s: Seconds | None) -> Timing:
    """Times for the packets of one span; `rows_s` (T,) as in `Joiner.append`."""
    own, tick_s = found.track.pts, float(found.time_base)
    order = np.argsort(own, kind="stable")
    shown = np.flatnonzero(found.inside[order])
    times_s = (own[order] - own[found.inside].min()) * tick_s
    last = int(found.track.duration[order[shown[-1]]])
    end_s = float(times_s[shown[-1]]) + (last or found.frame_ticks) * tick_s
    if rows_s is not None and len(rows_s) > 1:
        times_s[shown], end_s = _by_rows(times_s[shown], end_s, rows_s)
    ticks = _increasing(np.rint((times_s - times_s[0]) / float(TIME_BASE)).astype(np.int64))
    rank = np.argsort(order, kind="stable")
    end = max(round((end_s - times_s[0]) / float(TIME_BASE)), int(ticks[-1]) + 1)
    return Timing(
        pts=ticks[rank],
        dts=_decoding(ticks, rank),
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
    """Appends spans to numbered MP4 files; a new file where descriptions differ or one is full."""

    name: Callable[[int], Path]  # of the file with a number
    limit_bytes: int
    number: int = -1
    _output: mp4.Writer | None = field(default=None, repr=False)
    _end: int = 0  # ticks: where the next span begins
    _dts: int = 0  # ticks: the last one written

    def append(self, span: Span, rows_s: Seconds | None = None) -> Placed:
        """Copy one span. av.FFmpegError or ValueError when damaged.

        With `rows_s` (T,), increasing, picture k is shown at row k's time; without, the pictures
        keep their distances. The encoded pictures stay what they are.
        """
        with cut(span) as found:
            times = timing(found, rows_s)
            output = self._output
            if output is None or not output.takes(found.track, self.limit_bytes):
                output = self._open_next(found.track)
            shift = self._end
            if shift:  # decoding times go on, with a gap where pictures are reordered more
                shift = max(shift, self._dts + 1 - int(times.dts[0]))
            output.append(found.path, found.track, times.pts + shift, times.dts + shift)
        self._end, self._dts = times.end + shift, int(times.dts[-1]) + shift
        base = float(TIME_BASE)
        return Placed(self.number, (times.start + shift) * base, self._end * base)

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
            self._output.close(self._end)
            self._output = None

    def _open_next(self, track: Track) -> mp4.Writer:
        self.close()
        self.number += 1
        path = self.name(self.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end = self._dts = 0
        self._output = mp4.Writer(path, track, TIME_BASE.denominator)
        return self._output
