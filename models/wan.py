"""The video tower: Wan's DiT (Wan 2.1 T2V and Wan 2.2 TI2V shapes), with branches for many views.

Agrees with diffusers' `WanTransformer3DModel` where there is one view and nothing is packed; names
of parameters are ours, `wan_keys.py` maps them. Added without disturbing the prior (WALL-WM,
section Model): in every block a cross-view branch beside the within-view one, with zero-initialised
output and a gate of its own in AdaLN. It attends among the views of one latent frame: viewing cones
are geometry of an instant, time is the within-view branch's business, and the cost grows with views
times patches instead of with views times patches times frames.

The paper leaves open how key frames enter Wan 2.1, which is a text-to-video model. Here every
frame has a noise level of its own and clean frames have level 0, as in Wan 2.2 TI2V, for both.

Letters: B rows, V views, F latent frames, P patches of a frame, N = F P, D width, E events of a
row, L text tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import sinusoidal
from models.masks import across_mask, text_mask, within_mask
from models.rope import CameraTable, Turns, rotate, space_angles, time_angles
from models.rows import Rows
from models.windows import PATCH


@dataclass(frozen=True)
class VideoShape:
    """Sizes of a video tower."""

    heads: int
    head_width: int
    depth: int
    feed_width: int
    latent_channels: int
    text_width: int
    time_width: int
    cameras: int  # rows of the camera table
    eps: float = 1e-6

    @property
    def width(self) -> int:
        """D, numbers of a token."""
        return self.heads * self.head_width

    def as_dict(self) -> dict[str, int | float]:
        """For config.json; `VideoShape(**d)` is its inverse."""
        return asdict(self)


class WanAttention(nn.Module):
    """Multi-head attention with biases; Q and K are RMS-normalised over all heads together."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.query_norm = nn.RMSNorm(width, eps=eps)
        self.key_norm = nn.RMSNorm(width, eps=eps)

    def forward(
        self, x: Tensor, context: Tensor, turns: Turns | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (B, N, D), context (B, M, D), mask (B, N, M) bool, True where read -> (B, N, D)."""
        q = self.query_norm(self.query(x)).unflatten(-1, (self.heads, -1))
        k = self.key_norm(self.key(context)).unflatten(-1, (self.heads, -1))
        v = self.value(context).unflatten(-1, (self.heads, -1))
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None],
        )  # fmt: skip
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class Surroundings(NamedTuple):
    """What all blocks of a tower share in one forward pass."""

    levels: Tensor  # (B, F, 6, D) AdaLN's parameters of each frame's noise level
    text: Tensor  # (B, E * L, D)
    within_turns: Turns  # (B * V, N, head_width / 2)
    across_turns: Turns  # (B * F, V * P, head_width / 2)
    within_mask: Tensor | None  # (B * V, N, N)
    across_mask: Tensor | None  # (B * F, V * P, V * P)
    text_mask: Tensor | None  # (B, V * N, E * L)


class WanBlock(nn.Module):
    """Attention within and across views, text, feed-forward; AdaLN from a table and the time."""

    def __init__(self, shape: VideoShape) -> None:
        super().__init__()
        width, heads, eps = shape.width, shape.heads, shape.eps
        self.within, self.across, self.read_text = (
            WanAttention(width, heads, eps) for _ in range(3)
        )
        self.text_norm = nn.LayerNorm(width, eps)
        self.feed = FeedForward(width, shape.feed_width)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)
        self.across_gate = nn.Parameter(torch.randn(width) / width**0.5)
        self.eps = eps
        nn.init.zeros_(self.across.out.weight)
        nn.init.zeros_(self.across.out.bias)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """x (B, V, F, P, D) -> the same shape."""
        b, v, f, p, _ = x.shape
        levels = (self.scale_shift_table + around.levels.float())[:, None, :, None]
        shift, scale, gate, feed_shift, feed_scale, feed_gate = levels.unbind(-2)
        across_gate = gate + self.across_gate  # where this branch opens depends on the noise too
        h = self._normed(x, shift, scale)
        alone = h.view(b * v, f * p, -1)
        within = self.within(alone, alone, around.within_turns, around.within_mask)
        together = h.transpose(1, 2).reshape(b * f, v * p, -1)
        across = self.across(together, together, around.across_turns, around.across_mask)
        across = across.view(b, f, v, p, -1).transpose(1, 2)
        x = (x.float() + within.view_as(x) * gate + across * across_gate).type_as(x)
        flat = self._text_normed(x).view(b, v * f * p, -1)
        x = x + self.read_text(flat, around.text, mask=around.text_mask).view_as(x)
        fed = self.feed(self._normed(x, feed_shift, feed_scale))
        out: Tensor = (x.float() + fed.float() * feed_gate).type_as(x)
        return out

    def _normed(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (normed * (1 + scale) + shift).type_as(x)

    def _text_normed(self, x: Tensor) -> Tensor:
        weight, bias = self.text_norm.weight.float(), self.text_norm.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps).type_as(x)


class FeedForward(nn.Module):
    """Two linear maps with biases, tanh-GELU between."""

    def __init__(self, width: int, inner: int, out: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, out or width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class WanTower(nn.Module):
    """Depth blocks over V views; returns the velocity of all frames and every block's features."""

    def __init__(self, shape: VideoShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        patch = (1, PATCH, PATCH)
        self.patch_embedding = nn.Conv3d(shape.latent_channels, width, patch, patch)
        self.hidden = nn.Parameter(torch.zeros(width))  # stands where a tube hides a patch
        self.time_in = nn.Linear(shape.time_width, width)
        self.time_out = nn.Linear(width, width)
        self.time_levels = nn.Linear(width, 6 * width)
        self.text = FeedForward(shape.text_width, width, width)
        self.cameras = CameraTable(shape.cameras, shape.head_width)
        self.blocks = nn.ModuleList(WanBlock(shape) for _ in range(shape.depth))
        self.head = nn.Linear(width, shape.latent_channels * PATCH**2)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def forward(
        self, noisy: Tensor, sigma: Tensor, rows: Rows, hidden: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Denoise latents (B, V, C, F, H, W) whose frames have noise levels sigma (B, F) in 0..1.

        Of `rows` everything but latents and actions is read. `hidden` (B, V, F, P) bool marks
        patches that a tube hides. Returns the velocity as patches (B, V, F, P, 4 C), see `fold`,
        and for each block its features (B, V, N, D).
        """
        time = self._time(sigma, noisy)
        x, features = self._through(noisy, time, rows, hidden, len(self.blocks))
        return self._velocity(x, time), features

    def features(
        self, noisy: Tensor, sigma: Tensor, rows: Rows, depth: int | None = None
    ) -> list[Tensor]:
        """What `forward` gives beside the velocity, of the first `depth` blocks or of all."""
        depth = len(self.blocks) if depth is None else depth
        return self._through(noisy, self._time(sigma, noisy), rows, None, depth)[1]

    def _time(self, sigma: Tensor, noisy: Tensor) -> Tensor:
        code = sinusoidal(sigma * 1000, self.shape.time_width).to(noisy.dtype)
        out: Tensor = self.time_out(F.silu(self.time_in(code)))
        return out

    def _through(
        self, noisy: Tensor, time: Tensor, rows: Rows, hidden: Tensor | None, depth: int
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, V, F, P, D) after some blocks, and the features of each."""
        x = self._embedded(noisy, hidden)
        around = self._surroundings(rows, time, noisy.shape)
        features = []
        for block in list(self.blocks)[:depth]:
            x = block(x, around)
            features.append(x.flatten(2, 3))
        return x, features

    def _embedded(self, noisy: Tensor, hidden: Tensor | None) -> Tensor:
        """(B, V, F, P, D)."""
        b, v = noisy.shape[:2]
        x: Tensor = self.patch_embedding(noisy.flatten(0, 1))
        x = x.flatten(3).permute(0, 2, 3, 1).unflatten(0, (b, v)).contiguous()
        return x if hidden is None else torch.where(hidden[..., None], self.hidden.to(x.dtype), x)

    def _velocity(self, x: Tensor, time: Tensor) -> Tensor:
        levels = (self.scale_shift_table + time[:, :, None])[:, None, :, None]
        shift, scale = levels.unbind(-2)
        normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.shape.eps)
        out: Tensor = self.head((normed * (1 + scale) + shift).type_as(x))
        return out

    def _surroundings(self, rows: Rows, time: Tensor, size: torch.Size) -> Surroundings:
        b, v, _, f, high, wide = size
        p = high * wide // PATCH**2
        space = space_angles(high // PATCH, wide // PATCH, self.shape.head_width, time.device)
        within = time_angles(rows.frame, self.shape.head_width)[:, :, None] + space  # B, F, P, d/2
        within = within[:, None].expand(b, v, f, p, -1).reshape(b * v, f * p, -1)
        across = self.cameras(rows.camera)[:, :, :, None] + space  # B, F, V, P, d/2
        return Surroundings(
            levels=self.time_levels(F.silu(time)).unflatten(-1, (6, -1)),
            text=self.text(rows.text).flatten(1, 2),
            within_turns=Turns.by(within),
            across_turns=Turns.by(across.reshape(b * f, v * p, -1)),
            within_mask=within_mask(rows),
            across_mask=across_mask(rows),
            text_mask=text_mask(rows),
        )


def fold(latents: Tensor) -> Tensor:
    """(B, V, C, F, H, W) -> patches (B, V, F, P, 4 C) in the order of Wan's output."""
    grid = latents.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # B V C F h 2 w 2
    folded: Tensor = grid.permute(0, 1, 3, 4, 6, 5, 7, 2).flatten(5).flatten(3, 4)
    return folded


def unfold(patches: Tensor, rows: int) -> Tensor:
    """The inverse of `fold` for frames of `rows` patches high."""
    grid = patches.unflatten(-1, (PATCH, PATCH, -1)).unflatten(3, (rows, -1))  # B V F h w 2 2 C
    latents: Tensor = grid.permute(0, 1, 7, 2, 3, 5, 4, 6).flatten(6).flatten(4, 5)
    return latents
