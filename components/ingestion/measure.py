"""Measures one episode: what the checks compare with thresholds, and the digest that names it.

Videos are walked packet by packet; only the first picture and the last group are decoded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import av
import numpy as np

from components.ingestion.raw import Layout, RawEpisode
from components.ingestion.reasons import Reason
from components.packets import Shape, Span, walk


@dataclass
class Facts:
    """One episode in numbers; `details` holds one sentence for each reason that may apply."""

    source: int  # position in the list of sources
    index: int
    uri: str
    n_frames: int = 0
    read_problem: str | None = None  # a Reason
    bad_values: int = 0  # NaN or infinite, in state and action
    backward_steps: int = 0  # of the clock
    task: str | None = None
    videos_missing: int = 0
    videos_unreadable: int = 0
    frames_off: float | None = None  # largest |pictures - rows| of any camera
    picture_shapes: dict[str, tuple[int, int]] = field(default_factory=dict)  # camera -> (H, W)
    drift_s: float = 0.0  # largest |length of video - length by the rows' clock|
    episode_id: str = ""
    details: dict[Reason, str] = field(default_factory=dict)


def measure(source: int, raw: RawEpisode, layout: Layout) -> Facts:
    """Facts of one episode. Never fails on what the episode holds."""
    facts = Facts(source, raw.index, raw.uri, n_frames=len(raw.timestamps_s), task=raw.task)
    if raw.problem is not None:
        facts.read_problem = raw.problem.reason
        facts.details[raw.problem.reason] = raw.problem.detail
        return facts
    _measure_signals(facts, raw, layout)
    digest = hashlib.sha256()
    digest.update(f"{raw.state.shape} {raw.action.shape}\n".encode())
    for signal in (raw.state, raw.action, raw.timestamps_s.astype(np.float32)):
        digest.update(np.ascontiguousarray(signal).tobytes())
    for camera in layout.cameras:
        digest.update(b"\nvideo\n")
        _measure_video(facts, camera, raw, layout.fps, digest)
    facts.episode_id = digest.hexdigest()[:20]
    return facts


def _measure_signals(facts: Facts, raw: RawEpisode, layout: Layout) -> None:
    for signal, values, names in (
        ("state", raw.state, layout.state_names),
        ("action", raw.action, layout.action_names),
    ):
        bad = np.argwhere(~np.isfinite(values))
        facts.bad_values += len(bad)
        if len(bad):
            row, column = bad[0]
            facts.details.setdefault(
                Reason.NAN_IN_SIGNALS,
                f"{signal}: {len(bad)} NaN or infinite values, first {names[column]} in row {row}",
            )
    steps = np.diff(raw.timestamps_s)
    back = np.flatnonzero(~(steps > 0))
    facts.backward_steps = len(back)
    if len(back):
        facts.details[Reason.TIMESTAMPS_NOT_INCREASING] = (
            f"{len(back)} steps are not above 0 s, first {steps[back[0]]:.6f} s "
            f"after row {back[0]} at {raw.timestamps_s[back[0]]:.6f} s"
        )


def _measure_video(
    facts: Facts, camera: str, raw: RawEpisode, fps: float, digest: hashlib._Hash
) -> None:
    if camera not in raw.videos:
        facts.videos_missing += 1
        facts.details.setdefault(Reason.MISSING_VIDEO, f"{camera}: the episode has no video")
        return
    try:
        pictures, shape = _walk_and_decode(raw.videos[camera], digest)
    except (av.FFmpegError, IndexError, ValueError) as error:
        facts.videos_unreadable += 1
        what = error.strerror if isinstance(error, av.FFmpegError) else error
        facts.details.setdefault(
            Reason.UNREADABLE_VIDEO, f"{camera}: {raw.videos[camera].path.name}: {what}"
        )
        return
    facts.picture_shapes[camera] = (shape.height, shape.width)
    off = float(abs(pictures - len(raw.timestamps_s)))
    if off > (facts.frames_off or 0.0):
        facts.details[Reason.VIDEO_LENGTH_MISMATCH] = (
            f"{camera}: expected {len(raw.timestamps_s)} pictures, one a row; got {pictures}"
        )
    facts.frames_off = max(off, facts.frames_off or 0.0)
    if len(raw.timestamps_s):
        facts.drift_s = max(facts.drift_s, abs((pictures - 1) / fps - float(raw.timestamps_s[-1])))


def _walk_and_decode(span: Span, digest: hashlib._Hash) -> tuple[int, Shape]:
    """Pictures in a span and their shape; packets go into the digest in decoding order."""
    shown: list[int] = []
    with av.open(str(span.path)) as container:
        stream = container.streams.video[0]
        for packet, inside in walk(container, span):
            if inside:
                shown.append(packet.pts)
                digest.update(len(bytes(packet)).to_bytes(8, "big"))
                digest.update(bytes(packet))
        shape = Shape.of(stream)
    if not shown:
        raise ValueError("no picture in the episode's span")
    for pts in (min(shown), max(shown)):
        _decode(span, pts)
    _decode_key_pictures(span, max(shown))
    return len(shown), shape


def _decode_key_pictures(span: Span, last: int) -> None:
    """Decode every key picture up to `last` ticks: damage in the middle, at a fraction of the cost.

    A damaged picture between two key pictures can still pass; the whole video is never decoded.
    """
    with av.open(str(span.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.skip_frame = "NONKEY"
        start = int((span.start_s or 0.0) / float(stream.time_base))
        container.seek(start, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= last:
                return


def _decode(span: Span, pts: int) -> None:
    """Decode the picture shown at `pts` ticks. ValueError when there is none."""
    with av.open(str(span.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(max(pts, 0), stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= pts:
                return
    raise ValueError(f"the picture at {pts} ticks cannot be decoded")
