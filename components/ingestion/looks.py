"""What a few pictures of a video show: whether it can be decoded, is black, or stands still.

Pictures are sampled by seeking to key pictures, which cost one picture each; never a whole video.
What the decoder had to make up, as the bits did not add up, is damaged, although it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt

from components.packets import Span, opened

SMALL = (48, 64)  # height, width that pictures are compared in
BLACK = 10  # grey level of 255
CHANGE = 12  # grey levels: less is noise
LONG_GROUP = 300  # pictures: the end of a longer group is not decoded
Grey = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Packets:
    """Where the pictures of a span are, in ticks: all, and key pictures that decoding can start at.

    `first_key` may lie before the span.
    """

    shown: list[int]
    keys: list[int]


def sample(span: Span, packets: Packets, count: int) -> Grey:
    """About `count` (0: none) pictures, the first and last among them: grey (N, 48, 64).

    av.FFmpegError or ValueError when one cannot be decoded.
    """
    if count == 0:
        return np.empty((0, *SMALL), np.float32)
    first, last = min(packets.shown), max(packets.shown)
    inside = sorted(key for key in packets.keys if first < key < last)
    places = np.linspace(0, len(inside) - 1, min(max(count - 2, 0), len(inside))).round()
    wanted = [first, *(inside[int(place)] for place in dict.fromkeys(places))]
    group = sum(pts >= max([first, *inside]) for pts in packets.shown)
    if last > first and group <= LONG_GROUP:
        wanted.append(last)
    with opened(span.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return np.stack([_picture(container, stream, pts) for pts in wanted])


def _picture(container: av.container.InputContainer, stream: av.VideoStream, pts: int) -> Grey:
    """The picture shown at `pts` ticks, small and grey."""
    container.seek(max(pts, 0), stream=stream, backward=True)
    for frame in decoded(container, stream):
        if frame.pts is not None and frame.pts >= pts:
            height, width = SMALL
            small = frame.reformat(width, height, format="gray", interpolation="AREA")
            grey: Grey = small.to_ndarray().astype(np.float32)
            return grey
    raise ValueError(f"the picture at {pts} ticks cannot be decoded")


def decoded(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Pictures from where the container stands. ValueError where one was concealed, not decoded."""
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ValueError(f"the picture at {frame.pts} ticks is damaged")
        yield frame


def shares(grey: Grey) -> dict[str, float]:
    """Of N pictures: how many are black, and how many are as the one before."""
    if not len(grey):
        return {}
    found = {"black_share": float((grey.max(axis=(1, 2)) < BLACK).mean())}
    if len(grey) > 1:
        changed = (abs(np.diff(grey, axis=0)) > CHANGE).any(axis=(1, 2))
        found["frozen_share"] = float(1 - changed.mean())
    return found
