"""Sizes and choices of the full model: what its config.json says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from models.action_tower import ActionShape
from models.draws import Coupling
from models.staircase import StairShape
from models.wan import VideoShape
from models.windows import Limits


@dataclass(frozen=True)
class Weights:
    """Of the losses in their sum."""

    video: float
    tube: float  # lambda_mask: a patch behind a tube counts this many times
    dct: float  # 0 switches it off
    left: float
    done: float


@dataclass(frozen=True)
class WallShape:
    """All sizes of a model; what its config.json says."""

    video: VideoShape
    action: ActionShape
    coupling: Coupling
    weights: Weights
    video_share: float  # of rows that teach the video beside the anchor's pass; 0: it is frozen
    shift: float  # of the video's noise levels, see schedule.py
    latent_hz: float  # latent frames a second of an event
    max_frames: int  # latent frames of a row
    max_steps: int  # control steps of an event
    staircase: StairShape | None = None  # of a model that acts on its states (unified mode)

    def as_dict(self) -> dict[str, Any]:
        """For config.json; `from_dict` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> WallShape:
        """The inverse of `as_dict`."""
        parts = {
            "video": VideoShape, "action": ActionShape, "weights": Weights, "staircase": StairShape,
        }  # fmt: skip
        given = {k: v for k, v in value.items() if v is not None}
        return WallShape(**{k: parts[k](**v) if k in parts else v for k, v in given.items()})

    @property
    def limits(self) -> Limits:
        """What windows must fit; `collate` checks them."""
        return Limits(
            latent_channels=self.video.latent_channels, text_width=self.video.text_width,
            cameras=self.video.cameras, embodiments=self.action.embodiments,
            state_width=self.action.state_width, action_width=self.action.action_width,
            max_frames=self.max_frames, max_steps=self.max_steps,
            patch_steps=self.action.patch_steps,
        )  # fmt: skip
