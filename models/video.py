"""The video tower: from clean key frames and noisy future frames to the velocity of the future.

A small relative of Wan's DiT (WALL-WM, section Model): within-view space-time attention, cross-view
attention whose output starts at zero, AdaLN conditioned on noise level and caption. Key-frame
tokens carry noise level 0, future tokens the drawn one (as Wan2.2-TI2V does for its first frame).
The codec is fixed and honest: a picture's patches, flattened (space to depth).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.attention import Attention, FeedForward, Modulation, modulate, sinusoidal


def patches(pictures: Tensor, size: int) -> Tensor:
    """(..., 3, H, W) -> (..., H/size * W/size, 3 * size * size)."""
    folded = pictures.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # ..., 3, h, s, w, s
    grid = folded.movedim((-4, -2, -5, -3, -1), (-5, -4, -3, -2, -1))  # ..., h, w, 3, s, s
    flat: Tensor = grid.flatten(-3).flatten(-3, -2)
    return flat


def pictures(patched: Tensor, size: int) -> Tensor:
    """The inverse of `patches` for square pictures: (..., P, 3 * size * size) -> (..., 3, H, H)."""
    side = round(patched.shape[-2] ** 0.5)
    grid = patched.unflatten(-1, (3, size, size)).unflatten(-4, (side, side))  # ..., h, w, 3, s, s
    whole: Tensor = (
        grid.movedim((-5, -4, -3, -2, -1), (-4, -2, -5, -3, -1)).flatten(-2).flatten(-3, -2)
    )
    return whole


class VideoBlock(nn.Module):
    """Within-view attention, cross-view attention, feed-forward; each gated by AdaLN."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.within = Attention(width, heads)
        self.across = Attention(width, heads)
        self.feed = FeedForward(width)
        self.modulation = Modulation(width)
        nn.init.zeros_(self.across.out.weight)

    def forward(self, x: Tensor, levels: Levels, view_mask: Tensor) -> Tensor:
        """x (B, V, N, D), view_mask (B, V) -> (B, V, N, D)."""
        b, v, n, _ = x.shape
        s1, c1, g1, s2, c2, g2, s3, c3, g3 = levels.spread(self.modulation)
        x = x + g1 * self.within(modulate(x, s1, c1).flatten(0, 1)).unflatten(0, (b, v))
        mask = view_mask[:, :, None].expand(b, v, n).flatten(1)
        across = self.across(modulate(x, s2, c2).flatten(1, 2), mask=mask)
        x = x + g2 * across.unflatten(1, (v, n))
        out: Tensor = x + g3 * self.feed(modulate(x, s3, c3))
        return out


class Levels(NamedTuple):
    """Conditions of the two noise levels of a sequence: clean key tokens, then the future."""

    conditions: Tensor  # (B, 2, D): of the key frames, of the future
    keys: int  # tokens of a view's key frame
    future: int  # tokens of a view's future

    def spread(self, modulation: nn.Module) -> tuple[Tensor, ...]:
        """AdaLN's parameters for every token, nine of (B, 1, N, D), from one evaluation a level."""
        of_keys, of_future = modulation(self.conditions).split(1, dim=1)
        both = torch.cat(
            [of_keys.expand(-1, self.keys, -1), of_future.expand(-1, self.future, -1)], dim=1
        )
        return both[:, None].chunk(9, dim=-1)


class VideoTower(nn.Module):
    """Depth blocks over V views; returns the velocity of the future and every block's features."""

    def __init__(
        self, *, width: int, depth: int, heads: int, views: int, text_width: int,
        key_px: int, future_px: int, future_frames: int, key_patch_px: int, future_patch_px: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.key_patch_px, self.future_patch_px = key_patch_px, future_patch_px
        keys, spots = (key_px // key_patch_px) ** 2, (future_px // future_patch_px) ** 2
        self.key_embedding = nn.Linear(3 * key_patch_px**2, width)
        self.future_embedding = nn.Linear(3 * future_patch_px**2, width)
        self.text = nn.Linear(text_width, width)
        self.key_position = nn.Parameter(torch.randn(keys, width) * 0.02)
        self.future_position = nn.Parameter(torch.randn(future_frames, spots, width) * 0.02)
        self.view = nn.Parameter(torch.randn(views, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(VideoBlock(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, 3 * future_patch_px**2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, keyframes: Tensor, noisy: Tensor, sigma: Tensor, text: Tensor, view_mask: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """keyframes (B, V, 3, K, K), noisy (B, V, F, P, 3pp), sigma (B,), text (B, E).

        Returns the velocity (B, V, F, P, 3pp) and for each block its features (B, V * N, D).
        """
        _, v, f, p, _ = noisy.shape
        keys = self.key_embedding(patches(keyframes, self.key_patch_px)) + self.key_position
        future = self.future_embedding(noisy) + self.future_position[:f]
        x = torch.cat([keys, future.flatten(2, 3)], dim=2) + self.view[:v, None]
        noise = torch.stack([torch.zeros_like(sigma), sigma], dim=1) * 1000
        conditions = self.time(sinusoidal(noise, x.shape[-1])) + self.text(text)[:, None]
        levels = Levels(conditions, keys.shape[2], f * p)
        features = []
        for block in self.blocks:
            x = block(x, levels, view_mask)
            features.append(x.flatten(1, 2))
        out = self.head(x[:, :, keys.shape[2] :]).unflatten(2, (f, p))
        return out, features
