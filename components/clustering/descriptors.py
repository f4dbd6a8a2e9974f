"""What an event does and shows, as numbers: kinematics of arm and gripper, and its first picture.

Robots differ in units and number of joints, so every number is taken relative to the events of its
own embodiment. End effectors share one space of displacements (x, y, z); a robot that only reports
joints has a space of its own, and is zero in all others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.episodes import GRIPPER, Episode, Seconds

Vector = npt.NDArray[np.float64]

END_EFFECTOR: tuple[str, ...] = ("x", "y", "z")
SCALARS = ("path", "duration", "speed", "gripper")
LIMIT = 3.0  # standard deviations; beyond it, one odd event would be a cluster of its own
THUMBNAIL = (8, 8)  # height, width: enough for where the colours lie
GREY_LEVEL = 1.0 / 255.0


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
    gripper: float  # change of the mean measured (else commanded) gripper

    def as_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return asdict(self) | {"displacement": self.displacement.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Kinematics:
        """The same again, to the bit."""
        vector = np.array(values["displacement"], dtype=np.float64)
        return cls(**{**values, "axes": tuple(values["axes"]), "displacement": vector})


def measure(episode: Episode, start_frame: int, end_frame: int) -> Kinematics:
    """Kinematics from `start_frame` to `end_frame` (one past it, where its last step led)."""
    span = slice(start_frame, min(end_frame + 1, len(episode)))
    motion = episode.motion[span].astype(np.float64)
    times_s = episode.timestamps_s[span]
    path = float(np.linalg.norm(np.diff(motion, axis=0), axis=1).sum())
    duration_s = float(times_s[-1] - times_s[0])
    hand = episode.gripper if episode.gripper is not None else episode.gripper_command
    grip = np.zeros(1) if hand is None else hand[span].astype(np.float64).mean(axis=1)
    if episode.end_effector_m is not None:
        space, axes = "end effector", END_EFFECTOR
    else:
        space = episode.embodiment
        axes = tuple(name for name in episode.state_names if not GRIPPER.search(name))
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


def action_features(events: list[Kinematics]) -> Vector:
    """(N, F): four scalars (order of SCALARS), then the displacement in its own space's columns.

    Scalars are z-scores within the embodiment (the gripper's change keeps its zero and is divided
    by its root mean square), clipped to +-3. The displacement is divided so that it weighs as three
    scalars, in however many dimensions it lives.
    """
    spaces = columns(events)
    width = len(SCALARS) + sum(len(axes) for _, axes in spaces.values())
    features = np.zeros((len(events), width))
    for embodiment in sorted({event.embodiment for event in events}):
        rows = [i for i, event in enumerate(events) if event.embodiment == embodiment]
        mine = [events[i] for i in rows]
        scalars = np.array([[e.path, np.log1p(e.duration_s), e.speed, e.gripper] for e in mine])
        features[rows, :3] = _z_scores(scalars[:, :3])
        features[rows, 3] = _over_rms(scalars[:, 3:])[:, 0]
        offset, axes = spaces[mine[0].space]
        block = _over_rms(np.stack([e.displacement for e in mine])) * np.sqrt(3.0)
        features[rows, offset : offset + len(axes)] = block
    return np.clip(features, -LIMIT, LIMIT)


def columns(events: list[Kinematics]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Of each space: its first column in the features and the names of its axes."""
    axes = {event.space: event.axes for event in events}
    found, offset = {}, len(SCALARS)
    for space in sorted(axes):
        found[space] = (offset, axes[space])
        offset += len(axes[space])
    return found


def thumbnails(episode: Episode, starts_s: Seconds) -> npt.NDArray[np.uint8]:
    """(N, 192): the first camera at each start, 8 x 8 RGB; the episode has a camera."""
    clip = episode.clips[min(episode.clips)]
    return clip.frames(starts_s, THUMBNAIL).reshape(len(starts_s), -1)


def joint_features(sentences: npt.NDArray[np.float32], pictures: Vector, share: float) -> Vector:
    """(N, 384 + 192): what is said beside what is seen; `share` of the variance is the pictures'.

    Pictures that differ by less than a grey level are noise of the codec and stay small; an event
    without a picture gets the mean of the others.
    """
    said = _unit_variance(sentences.astype(np.float64), floor=0.0)
    dark: npt.NDArray[np.bool_] = np.isnan(pictures[:, 0])
    if share == 0.0 or dark.all():
        return said
    mean = pictures[~dark].mean(axis=0)
    seen = _unit_variance(np.where(dark[:, None], mean, pictures), GREY_LEVEL)
    return np.hstack([np.sqrt(1.0 - share) * said, np.sqrt(share) * seen])


def _unit_variance(values: Vector, floor: float) -> Vector:
    """Centred and divided by one number, so that squared distances to the mean average 1."""
    centred = values - values.mean(axis=0)
    floor_total = floor * np.sqrt(values.shape[1])
    scale = max(float(np.sqrt((centred**2).sum(axis=1).mean())), floor_total)
    unit: Vector = centred / max(scale, 1e-9)
    return unit


def _z_scores(values: Vector) -> Vector:
    """(N, F) with mean 0 and standard deviation 1 in each column; a constant column is 0."""
    centred = values - values.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.where(deviation > 1e-9, centred / np.maximum(deviation, 1e-9), 0.0)


def _over_rms(vectors: Vector) -> Vector:
    """(N, D) divided by the root mean square of their lengths: 0 stays 0."""
    scale = float(np.sqrt((vectors**2).sum(axis=1).mean()))
    return vectors / max(scale, 1e-9)
