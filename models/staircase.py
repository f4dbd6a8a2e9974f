"""Staircase latents: a language model's reasoning as K_c continuous states, made in parallel.

WALL-WM, section Model. Attached to a frozen language model as a mixture of transformers: at every
attention layer of the backbone a block with weights of its own reads the keys and values that the
backbone keeps of the prompt, beside its own. Layers below the relay depth run once and give one
relay state; the layers above run for all K_c stairs at once. A stair reads the prompt and itself,
never its neighbours, so together or one at a time makes no difference.

The backbone is not imported here: `Remembered` holds what is needed of it
(`components/reasoning.py` takes that from a Qwen3.5). Its linear-attention layers keep no keys to
read, so the staircase has as many blocks as the backbone has attention layers: 8 of 32 for a 9B.

Letters: B prompts, M tokens of a prompt, K stairs, D width, H heads, G heads of keys and values, W
width of a head, X width of the text side, L tokens of a reasoning text, Z width of the small LM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Remembered(NamedTuple):
    """What a frozen backbone keeps of its prompts, for each of its attention layers."""

    keys: list[Tensor]  # (B, G, M, W), turned by their positions
    values: list[Tensor]  # (B, G, M, W)
    mask: Tensor  # (B, M) bool, False for padding
    cos: Tensor  # (B, R) of the position after the prompt, where all stairs stand; R <= W
    sin: Tensor  # (B, R)

    def to(self, device: torch.device) -> Remembered:
        """The same on another device."""
        keys, values, *rest = self
        return Remembered(
            [k.to(device) for k in keys], [v.to(device) for v in values],
            *(tensor.to(device) for tensor in rest),
        )  # fmt: skip


class Thoughts(NamedTuple):
    """Prompts whose states stand where the words of windows would, in unified mode."""

    prompt: Remembered
    of: Tensor  # (B, E) int64, which prompt is a window's; -1 where it keeps its own text

    def to(self, device: torch.device) -> Thoughts:
        """The same on another device."""
        return Thoughts(self.prompt.to(device), self.of.to(device))


@dataclass(frozen=True)
class StairShape:
    """Sizes; heads and head_width are the backbone's."""

    width: int
    heads: int
    key_heads: int
    head_width: int
    feed_width: int
    depth: int  # attention layers of the backbone
    relay_depth: int  # N_r, how many of them run once
    stairs: int  # K_c
    text_width: int  # X

    def __post_init__(self) -> None:
        if not 0 < self.relay_depth < self.depth:
            raise ValueError(
                f"Staircase: expected a relay depth between 1 and {self.depth - 1}, "
                f"got {self.relay_depth}."
            )
        if self.heads % self.key_heads:
            raise ValueError(
                f"Staircase: expected heads in multiples of {self.key_heads} key heads, "
                f"got {self.heads}."
            )

    def as_dict(self) -> dict[str, int]:
        """For config.json; `StairShape(**d)` is its inverse."""
        return asdict(self)


class StairBlock(nn.Module):
    """Reads prompt and itself; gated feed-forward (SwiGLU), RMS norms, as in the backbone."""

    def __init__(self, shape: StairShape) -> None:
        super().__init__()
        self.heads, self.key_heads = shape.heads, shape.key_heads
        inner, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
        self.norm, self.feed_norm = nn.RMSNorm(shape.width, 1e-6), nn.RMSNorm(shape.width, 1e-6)
        self.query = nn.Linear(shape.width, inner, bias=False)
        self.key = nn.Linear(shape.width, keys, bias=False)
        self.value = nn.Linear(shape.width, keys, bias=False)
        self.out = nn.Linear(inner, shape.width, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_width, 1e-6)
        self.key_norm = nn.RMSNorm(shape.head_width, 1e-6)
        self.gate = nn.Linear(shape.width, shape.feed_width, bias=False)
        self.up = nn.Linear(shape.width, shape.feed_width, bias=False)
        self.down = nn.Linear(shape.feed_width, shape.width, bias=False)

    def forward(self, x: Tensor, layer: int, prompt: Remembered) -> Tensor:
        """x (B, K, D) -> the same shape; `layer` counts the backbone's attention layers."""
        h = self.norm(x)
        q = turned(self.query_norm(_split(self.query(h), self.heads)), prompt)
        k = turned(self.key_norm(_split(self.key(h), self.key_heads)), prompt)
        keys = torch.cat([prompt.keys[layer], k], dim=2)
        values = torch.cat([prompt.values[layer], _split(self.value(h), self.key_heads)], dim=2)
        oneself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        mask = torch.cat(
            [
                prompt.mask[:, None].expand(-1, x.shape[1], -1),
                oneself.expand(len(x), -1, -1),
            ],
            dim=2,
        )
        read = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask[:, None], enable_gqa=True
        )
        x = x + self.out(read.transpose(1, 2).flatten(2))
        h = self.feed_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class Staircase(nn.Module):
    """The branch that learns; its states stand where sentence features stand for the denoiser."""

    def __init__(self, shape: StairShape) -> None:
        super().__init__()
        self.shape = shape
        self.start = nn.Parameter(torch.randn(1, shape.width) * 0.02)
        self.stairs = nn.Parameter(torch.randn(shape.stairs, shape.width) * 0.02)
        self.blocks = nn.ModuleList(StairBlock(shape) for _ in range(shape.depth))
        self.norm = nn.RMSNorm(shape.width, 1e-6)
        self.to_text = nn.Linear(shape.width, shape.text_width)

    def forward(self, prompt: Remembered) -> Tensor:
        """States (B, K, D) of all stairs."""
        return self.climb(self.relay(prompt), prompt, list(range(self.shape.stairs)))

    def relay(self, prompt: Remembered) -> Tensor:
        """(B, 1, D) below the relay depth: once, whatever the number of stairs."""
        self._check(prompt)
        x = self.start.expand(len(prompt.mask), 1, -1)
        for layer in range(self.shape.relay_depth):
            x = self.blocks[layer](x, layer, prompt)
        return x

    def climb(self, relay: Tensor, prompt: Remembered, stairs: list[int]) -> Tensor:
        """States (B, len(stairs), D) of some stairs, above the relay (B, 1, D)."""
        x = relay + self.stairs[stairs]
        for layer in range(self.shape.relay_depth, self.shape.depth):
            x = self.blocks[layer](x, layer, prompt)
        out: Tensor = self.norm(x)
        return out

    def text_side(self, states: Tensor) -> Tensor:
        """States (B, K, D) -> text side (B, K, X) for `Window.text`."""
        out: Tensor = self.to_text(states)
        return out

    def told(self, text: Tensor, thoughts: Thoughts) -> Tensor:
        """The text side (B, E, L, X) of rows, its first K tokens of windows that think the states.

        Differentiable: what the actions lack, the branch learns (WALL-WM, unified mode).
        """
        said = self.text_side(self(thoughts.prompt))[thoughts.of.clamp(min=0)].type_as(text)
        thinks = (thoughts.of >= 0)[..., None, None]
        first, rest = text[:, :, : said.shape[2]], text[:, :, said.shape[2] :]
        return torch.cat([torch.where(thinks, said, first), rest], dim=2)

    def _check(self, prompt: Remembered) -> None:
        expected = (self.shape.depth, self.shape.key_heads, self.shape.head_width)
        got = (len(prompt.keys), prompt.keys[0].shape[1], prompt.keys[0].shape[3])
        if got != expected:
            raise ValueError(
                "Staircase: expected a backbone with (attention layers, key heads, head width) "
                f"{expected}, got {got}."
            )


class PrefixProjector(nn.Module):
    """A state as the first tokens of a text, in the embedding space of a small frozen LM."""

    def __init__(self, width: int, tokens: int, lm_width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.linear = nn.Linear(width, tokens * lm_width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, tokens, Z)."""
        out: Tensor = self.linear(states).unflatten(-1, (self.tokens, -1))
        return out


def reconstruction_loss(
    prefix: Tensor, text: Tensor, mask: Tensor, *, embed: Callable[[Tensor], Tensor],
    language_model: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Cross-entropy of reasoning texts that a frozen LM must say after their states alone.

    prefix (B, K, P, Z), text (B, K, L) token ids and mask (B, K, L) bool, padded at the end.
    `embed` gives (N, L, Z), `language_model` logits (N, P + L, vocabulary) for embeddings and mask.
    Gradients pass through the LM to the prefix; the LM's parameters must not require any.
    """
    first, ids, kept = prefix.flatten(0, 1), text.flatten(0, 1), mask.flatten(0, 1)
    said = embed(ids).to(first.dtype)
    there = torch.cat([kept.new_ones(first.shape[:2]), kept], dim=1)
    logits = language_model(torch.cat([first, said], dim=1), there)
    predicted = logits[:, first.shape[1] - 1 : -1]  # each token is told by what stands before it
    wanted = torch.where(kept, ids, -100)
    return F.cross_entropy(predicted.flatten(0, 1).float(), wanted.flatten(), ignore_index=-100)


def turned(x: Tensor, prompt: Remembered) -> Tensor:
    """x (B, H, K, W) turned by the position after the prompt; halves make pairs, as in Qwen."""
    width = prompt.cos.shape[-1]
    cos, sin = prompt.cos[:, None, None], prompt.sin[:, None, None]
    first, second = x[..., :width].chunk(2, dim=-1)
    quarter = torch.cat([-second, first], dim=-1)
    return torch.cat([x[..., :width] * cos + quarter * sin, x[..., width:]], dim=-1).type_as(x)


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, K, heads * W) -> (B, heads, K, W)."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split
