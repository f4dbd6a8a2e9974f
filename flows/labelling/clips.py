"""One episode's video as a file of its own that a browser plays.

A data set's file holds many episodes; the episode's packets are copied out of it as they are. What
browsers do not play in MP4 is encoded again as H.264.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from components import encoding
from components.episodes import Clip, Episode
from components.errors import DataError
from components.packets import Joiner, Span, video_stream

PLAYED = {("h264", "yuv420p"), ("h264", "yuvj420p"), ("av1", "yuv420p"), ("vp9", "yuv420p")}
CHUNK = 64  # pictures decoded at a time


def cut(episode: Episode, camera: str, root: Path, target: Path) -> float:
    """Write the episode's clip to `target` (MP4) and give where the episode starts in it, seconds.

    `root` is the folder that the video must lie in. DataError when it lies elsewhere or is damaged.
    """
    clip = episode.clips[camera]
    if not Path(os.path.normpath(clip.path)).is_relative_to(os.path.normpath(root)):
        raise DataError(
            f"{clip.path}: expected a video within {root}; the data name another place."
        )
    partial = target.with_name(f".{target.name}")
    try:
        if _plays(clip):
            joiner = Joiner(lambda _: partial, limit_bytes=2**62)
            placed = joiner.append(Span(clip.path, clip.start_s, clip.end_s))
            joiner.close()
            start_s = placed.start_s
        else:
            encoding.encode(partial, _pictures(episode, clip), episode.fps)
            start_s = 0.0
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DataError(f"{clip.path}: not a readable video: {error}") from error
    partial.replace(target)
    return start_s


def _plays(clip: Clip) -> bool:
    """Whether browsers play its codec and colours."""
    with av.open(str(clip.path)) as container:
        context = video_stream(container).codec_context
        known = (context.codec.canonical_name, context.pix_fmt) in PLAYED
        return known or (context.codec.canonical_name == "av1" and context.pix_fmt is None)


def _pictures(episode: Episode, clip: Clip) -> Iterator[npt.NDArray[np.uint8]]:
    """The picture at each control step, decoded some at a time."""
    for first in range(0, len(episode), CHUNK):
        yield from clip.frames(episode.timestamps_s[first : first + CHUNK])
