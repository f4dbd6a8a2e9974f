"""The action tower: a DiT of the video tower's depth; block i reads the features of video block i.

One way only: video never reads actions (WALL-WM, section Model). Actions are denoised in patches of
some control steps; a time code in seconds puts robots of different rates on one axis. A head tells
how many seconds of the event are left, so that the model itself says where execution ends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, FeedForward, Modulation, modulate, sinusoidal


class ActionBlock(nn.Module):
    """Self-attention over the event, cross-attention to the views, feed-forward; gated by AdaLN."""

    def __init__(self, width: int, heads: int, video_width: int) -> None:
        super().__init__()
        self.within = Attention(width, heads)
        self.views = Attention(width, heads, video_width)
        self.feed = FeedForward(width)
        self.modulation = Modulation(width)

    def forward(
        self, x: Tensor, condition: Tensor, video: Tensor, mask: Tensor, video_mask: Tensor
    ) -> Tensor:
        """x (B, S, N, D), condition (B, S, 1, D), video (B, M, C), masks (B, N) and (B, M).

        The S noise draws of one event share the keys and values of its video.
        """
        b, s, n, _ = x.shape
        s1, c1, g1, s2, c2, g2, s3, c3, g3 = self.modulation(condition).chunk(9, dim=-1)
        inside = mask.repeat_interleave(s, dim=0)
        within = self.within(modulate(x, s1, c1).flatten(0, 1), mask=inside)
        x = x + g1 * within.unflatten(0, (b, s))
        views = self.views(modulate(x, s2, c2).flatten(1, 2), video, video_mask)
        x = x + g2 * views.unflatten(1, (s, n))
        out: Tensor = x + g3 * self.feed(modulate(x, s3, c3))
        return out


class ActionTower(nn.Module):
    """Denoises action patches (B, N, patch * A) and predicts the time left in the event."""

    def __init__(
        self, *, width: int, depth: int, heads: int, video_width: int, text_width: int,
        state_width: int, action_width: int, patch_steps: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_steps = patch_steps
        self.embedding = nn.Linear(patch_steps * action_width, width)
        self.state = nn.Linear(state_width, width)
        self.text = nn.Linear(text_width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(ActionBlock(width, heads, video_width) for _ in range(depth))
        self.head = nn.Linear(width, patch_steps * action_width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.left_query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.left_views = Attention(width, heads, video_width)
        self.left_head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(
        self, noisy: Tensor, sigma: Tensor, step_mask: Tensor, step_s: Tensor, state: Tensor,
        text: Tensor, video: list[Tensor], video_mask: Tensor,
    ) -> Tensor:  # fmt: skip
        """noisy (B, S, T, A) and sigma (B, S): S noise draws an event; the rest once an event:
        step_mask (B, T), step_s (B,), state, text, video one (B, M, C) a block. -> (B, S, T, A).
        """
        b, s, t, a = noisy.shape
        x = self.embedding(noisy.reshape(b, s, t // self.patch_steps, self.patch_steps * a))
        mask = step_mask.view(b, -1, self.patch_steps).any(-1)
        ticks = torch.arange(x.shape[2], device=x.device) * self.patch_steps
        x = x + sinusoidal(ticks * step_s[:, None] * 1000, x.shape[-1])[:, None]
        condition = self.time(sinusoidal(sigma * 1000, x.shape[-1]))
        condition = condition + (self.state(state) + self.text(text))[:, None]
        for block, features in zip(self.blocks, video, strict=True):
            x = block(x, condition[:, :, None], features, mask, video_mask)
        out: Tensor = self.head(F.layer_norm(x, x.shape[-1:]))
        return out.view(b, s, t, a)

    def log_seconds_left(
        self, state: Tensor, text: Tensor, video: Tensor, video_mask: Tensor
    ) -> Tensor:
        """(B,) logarithm of the seconds to the event's end, before any action is denoised."""
        query = self.left_query + (self.state(state) + self.text(text))[:, None]
        read = query + self.left_views(query, video, video_mask)
        out: Tensor = self.left_head(read)[:, 0, 0]
        return out
