"""Frozen language models for the staircase: Qwen3.5 from `transformers`, weights from a folder.

`remember` runs the large one over prompts and keeps what `models/staircase.py` reads. `SmallModel`
is the one that must say the reasoning text again. Neither learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import UserError
from models.staircase import Remembered


def frozen(model: nn.Module) -> nn.Module:
    """The same model, with no parameter that learns and no dropout."""
    return model.requires_grad_(False).eval()


@torch.no_grad()
def remember(model: Any, input_ids: Tensor, mask: Tensor, **pictures: Tensor) -> Remembered:
    """Keys and values of the attention layers of a Qwen3.5 for prompts (B, M), padded at the end.

    `model` is a `Qwen3_5TextModel`, or a `Qwen3_5Model` whose processor also gave `pictures`
    (pixel_values, image_grid_thw, mm_token_type_ids). UserError for a prompt that begins with
    padding, where positions would be wrong.
    """
    if not bool(mask[:, 0].all()):
        raise UserError(
            "Prompts: expected padding at the end (padding_side='right'), got some first."
        )
    out = model(input_ids=input_ids, attention_mask=mask.long(), use_cache=True, **pictures)
    language = getattr(model, "language_model", model)
    kinds = language.config.layer_types
    kept = [
        layer
        for layer, kind in zip(out.past_key_values.layers, kinds, strict=True)
        if kind == "full_attention"
    ]
    shift = getattr(model, "rope_deltas", None) if pictures else None
    position = mask.sum(dim=1, keepdim=True) + (0 if shift is None else shift)
    cos, sin = language.rotary_emb(kept[0].keys, position.expand(3, -1, -1))
    return Remembered(
        keys=[layer.keys for layer in kept],
        values=[layer.values for layer in kept],
        mask=mask.bool(),
        cos=cos[:, 0],
        sin=sin[:, 0],
    )


@dataclass(frozen=True)
class SmallModel:
    """A frozen causal language model, as `models.staircase.reconstruction_loss` wants it."""

    model: Any  # Qwen3_5ForCausalLM

    def embed(self, tokens: Tensor) -> Tensor:
        """Ids (N, L) -> (N, L, Z)."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def logits(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(N, P + L, Z) and (N, P + L) bool -> (N, P + L, vocabulary)."""
        out: Tensor = self.model(
            inputs_embeds=embeddings, attention_mask=mask.long(), use_cache=False
        ).logits
        return out
