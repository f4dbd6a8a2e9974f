"""Four sizes of the full model and the windows they are meant for; `costs.py` says what they cost.

Sizes of the video towers are those of the published `config.json` files. Action towers and windows
are our choice: the paper says that action towers are as deep and start from scratch. `tiny` is for
tests; `demo` is the main job's, on a CPU. A training takes latent channels and text width from its
encoders (`components/pretraining/full.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.action_tower import ActionShape
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
            prediction="v", patch_steps=1,
        ),
        coupling="asymmetric", weights=WEIGHTS, video_share=0.0, shift=shift, latent_hz=4.0,
        max_frames=32, max_steps=512,
    )  # fmt: skip


TINY = WallShape(
    video=VideoShape(
        heads=4, head_width=8, depth=2, feed_width=128, latent_channels=4, text_width=12,
        time_width=64, cameras=4,
    ),
    action=ActionShape(
        heads=4, head_width=8, state_width=32, action_width=16, embodiments=4, prediction="v",
        patch_steps=1,
    ),
    coupling="symmetric", weights=WEIGHTS, video_share=0.0, shift=1.0, latent_hz=4.0, max_frames=9,
    max_steps=128,
)  # fmt: skip
# At 80 Hz a step is 12.5 ms, so a token is 0.1 s; a frame a second and rows of four keep what is
# computed for nothing small. The video tower is the narrower: within minutes it learns little that
# actions can use, while its price is paid for every patch (LOG.md).
DEMO = WallShape(
    video=VideoShape(
        heads=4, head_width=24, depth=4, feed_width=384, latent_channels=192, text_width=384,
        time_width=64, cameras=8,
    ),
    action=ActionShape(
        heads=4, head_width=32, state_width=64, action_width=48, embodiments=16, prediction="v",
        patch_steps=8,
    ),
    coupling="asymmetric", weights=WEIGHTS, video_share=0.0, shift=1.0, latent_hz=1.0, max_frames=4,
    max_steps=256,
)  # fmt: skip

PRESETS = {
    "tiny": Preset(TINY, 2, (8, 8), 5, 20.0, 1),
    "demo": Preset(DEMO, 2, (12, 12), 1, 80.0, 8),
    "wan2.1-1.3b": Preset(_wan(12, 8960, 16, 12, 3.0), 3, (32, 32), 512, 30.0, 8),
    "wan2.2-5b": Preset(_wan(24, 14336, 48, 16, 5.0), 3, (16, 16), 512, 30.0, 8),
}
