"""Encoded video, packet by packet: walk a span of a file, join spans to a file without re-encoding.

PyAV (FFmpeg's libav*) does the work. A span is taken in the file's own presentation times; joined
files keep the distances between frames. PyAV copies AV1 packets only with `opaque=True`.
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


def walk(container: Any, span: Span) -> Iterator[Step]:
    """Packets of a span, from the key frame where decoding begins. av.FFmpegError when damaged."""
    stream = container.streams.video[0]
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
    time_base: Fraction
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
            stream.time_base,
            bytes(context.extradata or b""),
        )


class Placed(NamedTuple):
    """Where an episode's video lies: the file's number and the span within it, seconds."""

    file: int
    start_s: float
    end_s: float


@dataclass
class Joiner:
    """Appends spans to numbered MP4 files; a new file where parameters differ or one is full."""

    name: Callable[[int], Path]  # of the file with a number
    limit_bytes: int
    shape: Shape | None = None
    number: int = -1
    _output: Any = field(default=None, repr=False)
    _end: int = 0  # ticks: where the next span begins
    _dts: int = 0
    _bytes: int = 0

    def append(self, span: Span) -> Placed:
        """Copy one span. One episode's packets are held in memory. av.FFmpegError when damaged."""
        with av.open(str(span.path)) as container:
            stream = container.streams.video[0]
            steps = list(walk(container, span))
            size = sum(step.packet.size for step in steps)
            if not self._fits(Shape.of(stream), steps, size):
                self._open_next(stream)
            return self._mux(steps, stream, size)

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

    def _fits(self, shape: Shape, steps: list[Step], size: int) -> bool:
        shift = self._end - _first_pts(steps)
        return (
            self._output is not None
            and shape == self.shape
            and self._bytes + size <= self.limit_bytes
            and _dts(steps[0].packet) + shift > self._dts
        )

    def _open_next(self, stream: Any) -> None:
        self.close()
        self.number += 1
        path = self.name(self.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.shape, self._end, self._bytes = Shape.of(stream), 0, 0
        self._output = av.open(str(path), "w", format="mp4")
        self._output.add_stream_from_template(stream, opaque=True)

    def _mux(self, steps: list[Step], source: Any, size: int) -> Placed:
        target = self._output.streams.video[0]
        base, shift = float(source.time_base), self._end - _first_pts(steps)
        start = min(step.packet.pts for step in steps if step.inside) + shift
        tick = max(round(frame_ticks(source)), 1)
        for packet, _ in steps:
            self._end = max(self._end, packet.pts + shift + (packet.duration or tick))
            packet.pts, packet.dts = packet.pts + shift, _dts(packet) + shift
            self._dts, packet.stream = packet.dts, target
            self._output.mux(packet)
        self._bytes += size
        return Placed(self.number, start * base, self._end * base)


def _dts(packet: Any) -> int:
    return int(packet.pts if packet.dts is None else packet.dts)


def _first_pts(steps: list[Step]) -> int:
    return min(int(step.packet.pts) for step in steps)
