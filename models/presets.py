"""Four sizes of the full model and the windows they are meant for; `costs.py` says what they cost.

Sizes of the video towers are those of the published `config.json` files. Action towers and windows
are our choice: the paper says that action towers are as deep and start from scratch. `tiny` is for
tests; `demo` fits a CPU, beside the small model of `wam.py`. A training takes latent channels and
text width from its encoders (`components/pretraining/full.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.action_tower import ActionShape
from models.draws import Coupling
from models.wall_shape import WallShape, Weights
from models.wan import VideoShape
from models.windows import PATCH, Window

WEIGHTS = Weights(video=1.0, tube=2.0, dct=0.1, left=0.1, done=0.1)


@dataclass(frozen=True)
class Preset:
    """A model and the windows it is meant for."""

    shape: WallShape
    views: int
    latent_px: tuple[int, int]  # height and width of a latent frame
    text_tokens: int
    control_hz: float
    action_samples: int  # N_d

    def window(self, seconds: float, *, future: bool = True) -> Window:
        """A window of zeros for a whole event that lasts `seconds`, or for its anchor alone."""
        frames = 1 + max(1, round(seconds * self.shape.latent_hz)) if future else 1
        steps = max(1, round(seconds * self.control_hz)) if future else 0
        high, wide = self.latent_px
        shape, patches = self.shape, high * wide // PATCH**2
        return Window(
            latents=torch.zeros(self.views, shape.video.latent_channels, frames, high, wide),
            clean=1,
            frame_s=torch.arange(frames) / shape.latent_hz,
            camera=torch.arange(self.views),
            inside=torch.ones(self.views, frames, patches, dtype=torch.bool),
            text=torch.zeros(self.text_tokens, shape.video.text_width),
            text_mask=torch.ones(self.text_tokens, dtype=torch.bool),
            state=torch.zeros(shape.action.state_width),
            state_mask=torch.ones(shape.action.state_width, dtype=torch.bool),
            embodiment=0,
            actions=torch.zeros(steps, shape.action.action_width),
            action_mask=torch.ones(shape.action.action_width, dtype=torch.bool),
            step_s=1 / self.control_hz,
            left_s=seconds,
            done=0.0,
        )


def _wan(
    heads: int, feed_width: int, latent_channels: int, action_heads: int, shift: float
) -> WallShape:
    return WallShape(
        video=VideoShape(
            heads=heads, head_width=128, depth=30, feed_width=feed_width,
            latent_channels=latent_channels, text_width=4096, time_width=256, cameras=8,
        ),
        action=ActionShape(
            heads=action_heads, head_width=64, state_width=64, action_width=32, embodiments=32,
            prediction="v",
        ),
        coupling="asymmetric", weights=WEIGHTS, shift=shift, latent_hz=4.0, max_frames=32,
        max_steps=512,
    )  # fmt: skip


def _small(
    width: int, depth: int, channels: int, text: int, coupling: Coupling, max_frames: int
) -> WallShape:
    return WallShape(
        video=VideoShape(
            heads=4, head_width=width // 4, depth=depth, feed_width=4 * width,
            latent_channels=channels, text_width=text, time_width=64, cameras=4,
        ),
        action=ActionShape(
            heads=4, head_width=width // 4, state_width=32, action_width=16, embodiments=4,
            prediction="v",
        ),
        coupling=coupling, weights=WEIGHTS, shift=1.0, latent_hz=4.0, max_frames=max_frames,
        max_steps=128,
    )  # fmt: skip


PRESETS = {
    "tiny": Preset(_small(32, 2, 4, 12, "symmetric", 9), 2, (8, 8), 5, 20.0, 1),
    "demo": Preset(_small(192, 6, 48, 384, "symmetric", 16), 1, (12, 12), 1, 20.0, 1),
    "wan2.1-1.3b": Preset(_wan(12, 8960, 16, 12, 3.0), 3, (32, 32), 512, 30.0, 8),
    "wan2.2-5b": Preset(_wan(24, 14336, 48, 16, 5.0), 3, (16, 16), 512, 30.0, 8),
}
