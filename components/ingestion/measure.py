"""Measures one episode: what the checks compare with thresholds, and the digest that names it.

Videos are read once, some megabytes at a time; a few pictures are decoded by seeking. Pure: the
same episode gives the same facts, whatever else is in the source.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import av
import numpy as np
from blake3 import blake3

from components.ingestion import bitstream, lag, looks, motion, signals
from components.ingestion.looks import Packets
from components.ingestion.raw import Layout, RawEpisode
from components.ingestion.reasons import Reason
from components.packets import Shape, Span, cut


@dataclass
class Encoded:
    """One video of an episode as it is: its size, and the digest of all that a copy depends on."""

    size: int  # bytes of packets
    parameters: str  # digest of what must agree within one file
    sha256: str  # of parameters, times and packets, also of those before the episode's first


KNOWN = {  # facts that checks may name
    *signals.KNOWN,
    "n_frames",
    "bad_values",
    "backward_steps",
    "task_words",
    "videos_missing",
    "videos_unreadable",
    "frames_off",
    "drift_steps",  # drift_s in declared steps
    "black_share",  # of the sampled pictures of a camera, the worst camera
    "frozen_share",  # of neighbours among them that show the same
    "video_lag_s",  # how late pictures show what the state says, where that is clear
    "video_lag_steps",
    "video_lag_clarity",  # what the best lag explains beyond the usual one, 0 to 1
    "video_lag_spread",  # standard error of the lag, steps
}


@dataclass
class Facts:
    """One episode in numbers; `details` holds one sentence for each reason that may apply."""

    source: int  # position in the list of sources
    index: int
    uri: str
    robot: str
    n_frames: int = 0
    read_problem: Reason | None = None
    bad_values: int = 0  # NaN or infinite, in state and action
    backward_steps: int = 0  # of the clock
    task: str | None = None
    videos_missing: int = 0
    videos_unreadable: int = 0
    frames_off: float | None = None  # largest |pictures - rows| of any camera
    picture_shapes: dict[str, tuple[int, int]] = field(default_factory=dict)  # camera -> (H, W)
    duration_s: float = 0.0
    drift_s: float = 0.0  # largest |length of video - length by the rows' clock|
    numbers: dict[str, float] = field(default_factory=dict)  # more facts, where measured
    encoded: dict[str, Encoded] = field(default_factory=dict)  # by camera
    episode_id: str = ""
    signals_id: str = ""  # of state and action alone; empty where nothing moves
    notes: dict[str, Any] = field(default_factory=dict)  # of the reader, to tell again
    details: dict[Reason, str] = field(default_factory=dict)


class Effort(NamedTuple):
    """Pictures of each video that are decoded: single ones by seeking, and in a row for the lag."""

    sampled: int
    in_a_row: int


def measure(source: int, raw: RawEpisode, layout: Layout, *, effort: Effort) -> Facts:
    """Facts of one episode. Never fails on what it holds."""
    facts = Facts(source, raw.index, raw.uri, layout.robot_type, n_frames=len(raw.timestamps_s))
    facts.task, facts.notes = raw.task, raw.notes
    if raw.problem is not None:
        facts.read_problem = raw.problem.reason
        facts.details[raw.problem.reason] = raw.problem.detail
        return facts
    facts.duration_s = float(raw.timestamps_s[-1]) if len(raw.timestamps_s) else 0.0
    _measure_signals(facts, raw, layout)
    facts.numbers |= signals.numbers(raw, layout)
    digest = hashlib.sha256()
    digest.update(f"{raw.state.shape} {raw.action.shape}\n".encode())
    for signal in (raw.state, raw.action, raw.timestamps_s.astype(np.float32)):
        digest.update(np.ascontiguousarray(signal).tobytes())
    packets: dict[str, Packets] = {}
    for camera in layout.cameras:
        digest.update(b"\nvideo\n")
        if found := _measure_video(facts, camera, raw, layout.fps, digest, effort.sampled):
            packets[camera] = found
    if not facts.bad_values and not facts.backward_steps:
        _measure_lag(facts, raw, packets, effort.in_a_row)
    facts.episode_id = digest.hexdigest()[:20]
    if len(raw.state) and (
        (raw.state != raw.state[0]).any() or (raw.action != raw.action[0]).any()
    ):
        facts.signals_id = _digest((raw.state.tobytes(), raw.action.tobytes()))[:20]
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
    facts: Facts, camera: str, raw: RawEpisode, fps: float, digest: hashlib._Hash, pictures: int
) -> Packets | None:
    if camera not in raw.videos:
        facts.videos_missing += 1
        facts.details.setdefault(Reason.MISSING_VIDEO, f"{camera}: the episode has no video")
        return None
    try:
        packets, shape, facts.encoded[camera] = _walk(raw.videos[camera], digest)
        shown = looks.shares(looks.sample(raw.videos[camera], packets, pictures))
    except (av.FFmpegError, IndexError, ValueError) as error:
        facts.videos_unreadable += 1
        what = error.strerror if isinstance(error, av.FFmpegError) else error
        facts.details.setdefault(
            Reason.UNREADABLE_VIDEO, f"{camera}: {raw.videos[camera].path.name}: {what}"
        )
        return None
    facts.picture_shapes[camera] = (shape.height, shape.width)
    _measure_length(facts, camera, raw, fps, len(packets.shown))
    for name, value in shown.items():
        if value > facts.numbers.get(name, -1.0):
            facts.numbers[name] = value
            facts.details[LOOKS[name]] = f"{camera}: {value:.0%} of {pictures} sampled pictures"
    return packets


def _measure_lag(facts: Facts, raw: RawEpisode, packets: dict[str, Packets], pictures: int) -> None:
    """How late the pictures of all cameras show the state, by `pictures` of them in a row."""
    rows = min([len(raw.state), *(len(p.shown) for p in packets.values())])
    if not packets or min(rows, pictures) < lag.SHORTEST + lag.SPAN:
        return
    first = lag.busiest(raw.state[:rows], pictures)
    count = min(rows - first, pictures)
    motions = []
    for camera, found in packets.items():
        try:
            motions.append(motion.pictured(raw.videos[camera], found, first, count))
        except (av.FFmpegError, ValueError) as error:
            facts.videos_unreadable += 1
            what = error.strerror if isinstance(error, av.FFmpegError) else error
            facts.details.setdefault(Reason.UNREADABLE_VIDEO, f"{camera}: {what}")
            return
    late = motion.late(motions, raw.state[first : first + count])
    if late is not None:
        facts.numbers["video_lag_clarity"] = late.clarity
        facts.numbers["video_lag_spread"] = late.spread
        if late.known:
            facts.numbers["video_lag_steps"] = late.steps
            facts.numbers["video_lag_s"] = late.steps * float(np.median(np.diff(raw.timestamps_s)))


LOOKS = {"black_share": Reason.BLACK_CAMERA, "frozen_share": Reason.FROZEN_CAMERA}


def _measure_length(facts: Facts, camera: str, raw: RawEpisode, fps: float, count: int) -> None:
    """Pictures against rows, in number and in time."""
    rows = len(raw.timestamps_s)
    off = float(abs(count - rows))
    if off > (facts.frames_off or 0.0):
        facts.details[Reason.VIDEO_LENGTH_MISMATCH] = (
            f"{camera}: expected {rows} pictures, one a row; got {count}"
        )
    facts.frames_off = max(off, facts.frames_off or 0.0)
    if rows:
        facts.drift_s = max(facts.drift_s, abs((count - 1) / fps - float(raw.timestamps_s[-1])))
        facts.numbers["drift_steps"] = facts.drift_s * fps


def _walk(span: Span, digest: hashlib._Hash) -> tuple[Packets, Shape, Encoded]:
    """Where a span's pictures are, and their shape; packets go into the digest as decoded.

    By way of BLAKE3, which is two to three times as fast as SHA-256.
    ValueError where a packet is damaged or there is none.
    """
    before, own = blake3(), blake3()
    with cut(span) as found:
        track, inside, shape = found.track, found.inside, found.shape()
        for first, end, data in found.blocks():
            bad = bitstream.damaged(data, track.size[first:end], shape.codec, shape.extradata)
            if bad is not None:
                raise ValueError(f"the packet of picture {inside[: first + bad].sum()} is damaged")
            (own if inside[first] else before).update(data.data)
    own.update(np.append(track.size[inside], inside.sum()).astype(">u8").tobytes())
    digest.update(own.digest())
    parameters = _digest((shape, track.matrix, track.entry))
    said = hashlib.sha256(repr((parameters, found.time_base, found.frame_ticks)).encode())
    for column in (track.pts, track.duration, track.size, track.key, inside):
        said.update(column.tobytes())
    said.update(before.digest() + own.digest())
    encoded = Encoded(int(track.size.sum()), parameters, said.hexdigest())
    packets = Packets(track.pts[inside].tolist(), track.pts[track.key].tolist())
    return packets, shape, encoded


def _digest(said: object) -> str:
    return hashlib.sha256(repr(said).encode()).hexdigest()
