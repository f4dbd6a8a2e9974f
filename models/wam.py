"""A small World Action Model p(V_e, a_e | V_0, s, c_e): losses to train, events to act.

WALL-WM (arXiv 2606.01955), event mode, coupled towers; `wall.py` is the method whole. Here actions'
gradients reach the video. Read `batch.py` for the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.action import ActionTower
from models.batch import Batch
from models.flow_matching import add_noise, euler, masked_mean, velocity
from models.video import VideoTower, patches, pictures

VIDEO_WEIGHT = 0.1  # a small model spends itself on acting; the video still shapes its features
LEFT_WEIGHT = 0.1


@dataclass(frozen=True)
class Shape:
    """All sizes of a model; what its config.json says."""

    width: int
    depth: int
    heads: int
    key_px: int
    key_patch_px: int
    future_px: int
    future_patch_px: int
    future_frames: int
    views: int
    text_width: int
    state_width: int
    action_width: int
    action_patch_steps: int
    max_steps: int  # longest window of an event, control steps
    action_samples: int  # noise draws of the action for each forward pass of the video, 1-to-N_d
    anchor_probability: float  # how often the video's noise is at the anchor, as it is when acting

    def as_dict(self) -> dict[str, int | float]:
        """For config.json; `Shape(**d)` is its inverse."""
        return asdict(self)


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch; `total` is what is minimised."""

    total: Tensor
    action: Tensor
    video: Tensor
    left: Tensor


class WorldActionModel(nn.Module):
    """Video tower and action tower of equal depth."""

    terms = ("action", "video", "left")  # of its Losses, beside their total

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.max_steps % shape.action_patch_steps:
            raise ValueError(
                f"max_steps {shape.max_steps} is no multiple of {shape.action_patch_steps}."
            )
        self.shape = shape
        self.video = VideoTower(
            width=shape.width, depth=shape.depth, heads=shape.heads, views=shape.views,
            text_width=shape.text_width, key_px=shape.key_px, future_px=shape.future_px,
            future_frames=shape.future_frames, key_patch_px=shape.key_patch_px,
            future_patch_px=shape.future_patch_px,
        )  # fmt: skip
        self.action = ActionTower(
            width=shape.width, depth=shape.depth, heads=shape.heads, video_width=shape.width,
            text_width=shape.text_width, state_width=shape.state_width,
            action_width=shape.action_width, patch_steps=shape.action_patch_steps,
        )  # fmt: skip

    def losses(self, batch: Batch, random: torch.Generator) -> Losses:
        """Flow-matching losses of both towers and the loss of the time left."""
        future = patches(batch.future, self.shape.future_patch_px)
        noise = drawn(torch.randn, future, future.shape, random)
        sigma = drawn(torch.rand, future, (2, len(batch)), random)
        sigma = torch.where(sigma[0] < self.shape.anchor_probability, 1.0, sigma[1])
        predicted, features = self.video(
            batch.keyframes, add_noise(future, noise, sigma), sigma, batch.text, batch.view_mask
        )
        video = masked_mean(
            (predicted - velocity(future, noise)) ** 2, batch.view_mask[:, :, None, None, None]
        )
        mask = self._feature_mask(batch, features[0])
        left = self.action.log_seconds_left(batch.state, batch.text, features[-1], mask)
        target = (batch.length * batch.step_s).log()
        left_loss = F.smooth_l1_loss(left, target, beta=0.2)
        action = self._action_loss(batch, features, mask, random)
        total = action + VIDEO_WEIGHT * video + LEFT_WEIGHT * left_loss
        return Losses(total, action, video, left_loss)

    def _action_loss(
        self, batch: Batch, features: list[Tensor], mask: Tensor, random: torch.Generator
    ) -> Tensor:
        """N_d noise draws of the action share one forward pass of the video."""
        clean = batch.actions[:, None].expand(-1, self.shape.action_samples, -1, -1)
        noise = drawn(torch.randn, clean, clean.shape, random)
        sigma = drawn(torch.rand, clean, clean.shape[:2], random)
        s = sigma[:, :, None, None]
        predicted = self.action(
            (1 - s) * clean + s * noise, sigma, batch.step_mask, batch.step_s, batch.state,
            batch.text, features, mask,
        )  # fmt: skip
        wanted = batch.step_mask[:, None, :, None] & batch.action_mask[:, None, None, :]
        return masked_mean((predicted - velocity(clean, noise)) ** 2, wanted)

    @torch.no_grad()
    def act(
        self, batch: Batch, *, denoise_steps: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Generate the rest of each event from its key frames, state and caption.

        Only keyframes, view_mask, state, step_s and text of the batch are read. One forward pass of
        the video tower at the anchor (pure noise) serves all denoising steps of the action. Returns
        actions (B, T, A) and how many of the T steps belong to the event (B,).
        """
        b, v = batch.view_mask.shape
        size = self.shape.future_px // self.shape.future_patch_px
        keys = batch.keyframes
        frames = (b, v, self.shape.future_frames, size**2, 3 * self.shape.future_patch_px**2)
        noise = drawn(torch.randn, keys, frames, random)
        _, features = self.video(keys, noise, keys.new_ones(b), batch.text, batch.view_mask)
        mask = self._feature_mask(batch, features[0])
        seconds = self.action.log_seconds_left(batch.state, batch.text, features[-1], mask).exp()
        length = (seconds / batch.step_s).round().clamp(1, self.shape.max_steps).long()
        patch = self.shape.action_patch_steps
        steps = math.ceil(int(length.max()) / patch) * patch
        inside = torch.arange(steps, device=keys.device)[None] < length[:, None]
        start = drawn(torch.randn, keys, (b, steps, self.shape.action_width), random)
        actions = euler(
            lambda x, sigma: self.action(
                x[:, None],
                sigma[:, None],
                inside,
                batch.step_s,
                batch.state,
                batch.text,
                features,
                mask,
            )[:, 0],
            start,
            denoise_steps,
        )
        return actions * inside[:, :, None], length

    @torch.no_grad()
    def imagine(self, batch: Batch, *, pairs: int, random: torch.Generator) -> Tensor:
        """The mean of what it expects to see: (B, V, F, 3, L, L) in -1..1, over the event's rest.

        At pure noise the velocity is the noise less the picture, so the mean of minus the velocity
        over noises and their opposites is the expected picture; whatever of the noise a narrow
        tower does not carry through goes with it, which a sampler would leave in the picture.
        Reads what `act` reads; acting needs none of it, people look at it.
        """
        b, v = batch.view_mask.shape
        patch, keys = self.shape.future_patch_px, batch.keyframes
        tokens = (self.shape.future_px // patch) ** 2
        size = (b, v, self.shape.future_frames, tokens, 3 * patch**2)
        noises = [drawn(torch.randn, keys, size, random) for _ in range(pairs)]
        level = keys.new_ones(b)
        velocities = [
            self.video(keys, noise * sign, level, batch.text, batch.view_mask)[0]
            for noise in noises
            for sign in (1, -1)
        ]
        return pictures(-torch.stack(velocities).mean(dim=0), patch).clamp(-1, 1)

    def _feature_mask(self, batch: Batch, features: Tensor) -> Tensor:
        """(B, M): the tokens of a camera that is not there are never read."""
        b, v = batch.view_mask.shape
        return batch.view_mask[:, :, None].expand(b, v, features.shape[1] // v).flatten(1)


def drawn(
    draw: Callable[..., Tensor], like: Tensor, size: Sequence[int], random: torch.Generator
) -> Tensor:
    """Random numbers on the device of `like`, drawn on the CPU: every device gets the same ones."""
    return draw(tuple(size), generator=random).to(like.device)
