"""A small shape of the full model, and windows of random content that fit it."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.action_tower import ActionShape
from models.draws import Chances
from models.wall_shape import WallShape, Weights
from models.wan import VideoShape
from models.windows import PATCH, Limits, Window

SHAPE = WallShape(
    video=VideoShape(
        heads=2, head_width=12, depth=2, feed_width=40, latent_channels=4, text_width=12,
        time_width=16, cameras=4,
    ),
    action=ActionShape(
        heads=2, head_width=8, state_width=3, action_width=2, embodiments=2, prediction="v",
        patch_steps=1,
    ),
    coupling="symmetric", weights=Weights(video=1.0, tube=3.0, dct=0.5, left=0.1, done=0.1),
    video_share=0.0, shift=1.0, latent_hz=4.0, max_frames=8, max_steps=24,
)  # fmt: skip
CHANCES = Chances(
    coupling="symmetric", action_samples=1, shift=1.0, tube_probability=0.5, tube_side=1,
    patch_steps=1,
)  # fmt: skip
FROZEN = replace(CHANCES, coupling="asymmetric", action_samples=3)
LIMITS = SHAPE.limits


def window(
    seed: int = 0, *, views: int = 2, frames: int = 3, steps: int = 8, clean: int = 1,
    text: int = 5, side: int = 4, limits: Limits = LIMITS,
) -> Window:  # fmt: skip
    """One window with `frames` latent frames (the clean ones included) and `steps` actions."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=random)

    return Window(
        latents=normal(views, limits.latent_channels, frames, side, side),
        clean=clean,
        frame_s=(torch.arange(frames) - clean + 1) * 0.25,
        camera=torch.arange(views),
        inside=torch.ones(views, frames, (side // PATCH) ** 2, dtype=torch.bool),
        text=normal(text, limits.text_width),
        text_mask=torch.ones(text, dtype=torch.bool),
        state=normal(limits.state_width),
        state_mask=torch.ones(limits.state_width, dtype=torch.bool),
        embodiment=seed % limits.embodiments,
        actions=normal(steps, limits.action_width),
        action_mask=torch.ones(limits.action_width, dtype=torch.bool),
        step_s=0.05,
        left_s=steps * 0.05 or None,
        done=0.0,
    )


def some_views(whole: Window, views: list[int], slots: int | None = None) -> Window:
    """The same window seen by some of its cameras, in `slots` places (those left stay empty)."""
    places = torch.tensor(views)
    less = replace(
        whole, latents=whole.latents[places], camera=whole.camera[places],
        inside=whole.inside[places],
    )  # fmt: skip
    empty = (slots or len(views)) - len(views)
    if not empty:
        return less
    return replace(
        less,
        latents=torch.cat([less.latents, torch.full_like(whole.latents[:empty], 9.0)]),
        camera=torch.cat([less.camera, torch.full((empty,), -1)]),
        inside=torch.cat([less.inside, whole.inside[:empty]]),
    )
