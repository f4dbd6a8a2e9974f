"""Attention, feed-forward and time codes that both towers are made of (DiT, Peebles & Xie 2023)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of (B, N, D) to context (B, M, C); no bias, Q and K RMS-normalised."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"Attention: width {width} is no multiple of {heads} heads.")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width or width, width, bias=False)
        self.value = nn.Linear(context_width or width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """`mask` is (B, M) or (B, N, M) bool, False for context that must not be read."""
        return self.recall(x, self.remember(x if context is None else context), mask)

    def remember(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, M, D / heads) of a context that is read more than once."""
        return self.key_norm(self._heads(self.key(context))), self._heads(self.value(context))

    def recall(
        self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """`forward` with what `remember` gave."""
        if mask is not None:
            mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
        attended = F.scaled_dot_product_attention(
            self.query_norm(self._heads(self.query(x))), *memory, attn_mask=mask
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class FeedForward(nn.Module):
    """Two linear maps with tanh-GELU between, as in Wan."""

    def __init__(self, width: int, factor: int = 4) -> None:
        super().__init__()
        self.up = nn.Linear(width, factor * width, bias=False)
        self.down = nn.Linear(factor * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class Modulation(nn.Module):
    """AdaLN's nine parameters (shift, scale, gate of three branches) from a condition (..., D).

    Shifts and scales start at zero as in DiT; gates start at one, since a small model has few steps
    in which to open them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 9 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.bias.view(9, width)[2::3] = 1.0

    def forward(self, condition: Tensor) -> Tensor:
        out: Tensor = self.linear(F.silu(condition))
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN: layer norm without weights, then an affine map that the condition chose."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def sinusoidal(position: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Code of positions (...,) as (..., width): cosines, then sines, of geometric frequencies."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, device=position.device) / half
    )
    angles = position[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
