"""What an event does and shows, as numbers: kinematics of arm and gripper, and its first picture.

Robots differ in units and number of joints, so every number is taken relative to the events of its
own embodiment. End effectors share one space of displacements (x, y, z); a robot that only reports
joints has a space of its own, and is zero in all others.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.episodes import Episode, Float, Seconds
from components.row_shards import numbers, values

Vector = npt.NDArray[np.float64]
Points = npt.NDArray[np.float32]

END_EFFECTOR: tuple[str, ...] = ("x", "y", "z")
SCALARS = ("path", "duration", "speed", "gripper")
LIMIT = 3.0  # standard deviations; beyond it, one odd event would be a cluster of its own
THUMBNAIL = (8, 8)  # height, width: enough for where the colours lie
GREY_LEVEL = 1.0 / 255.0
MEASURED = pa.schema(  # of events
    {
        "event_id": pa.string(),
        "embodiment": pa.string(),
        "space": pa.string(),
        "axes": pa.string(),  # JSON
        "displacement": pa.list_(pa.float64()),
        "path": pa.float64(),
        "duration_s": pa.float64(),
        "speed": pa.float64(),
        "gripper": pa.float64(),
        "picture": pa.binary(),  # uint8 (192,); null where none was asked for or there is none
    }
)


@dataclass(frozen=True)
class Kinematics:
    """One event in its robot's own units (metres where the end effector is known)."""

    embodiment: str
    space: str  # where `displacement` lives: "end effector", or the embodiment
    axes: tuple[str, ...]  # names of its D dimensions
    displacement: Vector  # (D,)
    path: float
    duration_s: float
    speed: float  # path / duration
    gripper: float  # change of the measured (else commanded) gripper, mean of its fingers

    def row(self) -> dict[str, Any]:
        """Its part of a row of MEASURED."""
        named = {"displacement": self.displacement.tolist(), "axes": json.dumps(self.axes)}
        return asdict(self) | named


def measure(episode: Episode, start_frame: int, end_frame: int) -> Kinematics:
    """Kinematics from `start_frame` to `end_frame` (one past it, where its last step led)."""
    span = slice(start_frame, min(end_frame + 1, len(episode)))
    motion = episode.motion[span].astype(np.float64)
    times_s = episode.timestamps_s[span]
    path = float(np.linalg.norm(np.diff(motion, axis=0), axis=1).sum())
    duration_s = float(times_s[-1] - times_s[0])
    hand = episode.gripper if episode.gripper is not None else episode.gripper_command
    grip = np.zeros(1) if hand is None else one_way(hand)[span].mean(axis=1)
    if episode.end_effector_m is not None:
        space, axes = "end effector", END_EFFECTOR
    else:
        space = episode.embodiment
        axes = episode.motion_names
    return Kinematics(
        embodiment=episode.embodiment,
        space=space,
        axes=axes,
        displacement=motion[-1] - motion[0],
        path=path,
        duration_s=duration_s,
        speed=path / duration_s if duration_s > 0 else 0.0,
        gripper=float(grip[-1] - grip[0]),
    )


def one_way(fingers: Float) -> Vector:
    """Fingers (T, G), each turned the way of the first one: mirrored ones would cancel out."""
    values = fingers.astype(np.float64)
    centred = values - values.mean(axis=0)
    return np.asarray(values * np.where(centred[:, :1].T @ centred < 0, -1.0, 1.0))


def action_features(events: pa.Table) -> Vector:
    """(N, F) of MEASURED: four scalars (order of SCALARS), then the displacement in its own space.

    Scalars are z-scores within the embodiment (the gripper's change keeps its zero and is divided
    by its root mean square), clipped to +-3. The displacement is divided so that it weighs as three
    scalars, in however many dimensions it lives.
    """
    spaces = columns(events)
    width = len(SCALARS) + sum(len(axes) for _, axes in spaces.values())
    features = np.zeros((len(events), width))
    scalars = np.column_stack(
        [events[name].to_numpy() for name in ("path", "duration_s", "speed", "gripper")]
    )
    scalars[:, 1] = np.log1p(scalars[:, 1])
    embodiments, of = values(events["embodiment"])
    for _, number in sorted(zip(embodiments, range(len(embodiments)), strict=True)):
        rows = np.flatnonzero(of == number)
        features[rows, :3] = _z_scores(scalars[rows, :3])
        features[rows, 3] = _over_rms(scalars[rows, 3:])[:, 0]
        mine = events.take(numbers(rows))
        offset, axes = spaces[mine["space"][0].as_py()]
        flat = mine["displacement"].combine_chunks().flatten().to_numpy()
        ways = flat.reshape(len(rows), len(axes))
        features[rows, offset : offset + len(axes)] = _over_rms(ways) * np.sqrt(3.0)
    return np.clip(features, -LIMIT, LIMIT)


def columns(events: pa.Table) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Of each space: its first column in the features and the names of its axes."""
    different = events.select(["space", "axes"]).group_by(["space", "axes"]).aggregate([])
    axes = {row["space"]: tuple(json.loads(row["axes"])) for row in different.to_pylist()}
    found, offset = {}, len(SCALARS)
    for space in sorted(axes):
        found[space] = (offset, axes[space])
        offset += len(axes[space])
    return found


def thumbnails(episode: Episode, starts_s: Seconds) -> npt.NDArray[np.uint8]:
    """(N, 192): the first camera at each start, 8 x 8 RGB; the episode has a camera."""
    clip = episode.clips[min(episode.clips)]
    return clip.frames(starts_s, THUMBNAIL).reshape(len(starts_s), -1)


def seen(events: pa.Table) -> Points:
    """(N, 192) pictures of MEASURED, 0 to 1; NaN where there is none."""
    column = events["picture"]
    dark = column.is_null().to_numpy()
    pictures = np.full((len(events), 3 * THUMBNAIL[0] * THUMBNAIL[1]), np.nan, np.float32)
    bright = b"".join(column.drop_null().to_pylist())
    pictures[~dark] = np.frombuffer(bright, np.uint8).reshape(-1, pictures.shape[1]) / 255.0
    return pictures


def compact(sentences: Points) -> Points:
    """(D, 384) in as many columns as it has dimensions, at most D; distances stay.

    A few hundred events say few different things, and k-means costs what it has columns. In double
    precision, so that how many threads a machine has is far below what is rounded away later.
    """
    columns = sentences.T.astype(np.float64)
    coordinates: Points = np.asarray(np.linalg.qr(columns, mode="r"), dtype=np.float32).T
    return coordinates


def joint_features(
    sentences: Points, said: npt.NDArray[np.intp], pictures: Points, share: float
) -> Points:
    """(N, W + 192): what is said beside what is seen; `share` of the variance is the pictures'.

    Event i says `sentences[said[i]]`, of different ones (D, W), and shows `pictures[i]`.
    Pictures that differ by less than a grey level are noise of the codec and stay small; an event
    without a picture (NaN) gets the mean of the others.
    """
    counts = np.bincount(said, minlength=len(sentences))
    mean = counts @ sentences.astype(np.float64) / len(said)
    words = _unit_variance(sentences - mean, counts, floor=0.0)
    dark: npt.NDArray[np.bool_] = np.isnan(pictures[:, 0])
    if share == 0.0 or dark.all():
        return words[said]
    centred = pictures - pictures[~dark].mean(axis=0, dtype=np.float64).astype(np.float32)
    centred[dark] = 0.0
    seen = _unit_variance(centred, np.ones(len(said)), GREY_LEVEL)
    joint = np.empty((len(said), words.shape[1] + seen.shape[1]), np.float32)
    joint[:, : words.shape[1]] = (np.float32(np.sqrt(1.0 - share)) * words)[said]
    joint[:, words.shape[1] :] = np.float32(np.sqrt(share)) * seen
    return joint


def _unit_variance(centred: npt.NDArray[Any], counts: npt.NDArray[Any], floor: float) -> Points:
    """Divided by one number, so that squared lengths, `counts` of each, average 1; float32."""
    lengths = np.einsum("nf,nf->n", centred, centred)
    floor_total = floor * np.sqrt(centred.shape[1])
    scale = max(float(np.sqrt(counts @ lengths / counts.sum())), floor_total)
    return np.asarray(centred / max(scale, 1e-9), dtype=np.float32)


def _z_scores(values: Vector) -> Vector:
    """(N, F) with mean 0 and standard deviation 1 in each column; a constant column is 0."""
    centred = values - values.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.where(deviation > 1e-9, centred / np.maximum(deviation, 1e-9), 0.0)


def _over_rms(vectors: Vector) -> Vector:
    """(N, D) divided by the root mean square of their lengths: 0 stays 0."""
    scale = float(np.sqrt((vectors**2).sum(axis=1).mean()))
    return vectors / max(scale, 1e-9)
