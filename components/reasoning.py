"""Frozen language models for the staircase: Qwen3.5 from `transformers`, weights from a folder.

`remember` runs the large one over prompts and keeps what `models/staircase.py` reads; `Backbone`
makes prompts of pictures and words for it. `SmallModel` is the one that must say the reasoning text
again. Neither learns. Folders are as `transformers` saves them: safetensors, config, tokenizer and,
for the large one, `preprocessor_config.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.encoders import pretrained
from components.errors import UserError
from components.outputs import sha256
from components.weights import Weights, weights
from models.staircase import Remembered

READ = (".json", ".jinja", ".txt", ".model")  # beside weights, what transformers reads of a folder
NOTHING = "\n"  # the prompt of a robot without a camera whose task has no words
Picture = npt.NDArray[np.uint8]  # (H, W, 3)


def files(folder: Path) -> dict[str, str]:
    """sha256 of everything that is opened of a language model's folder, by file name."""
    named = {p.name: sha256(p) for p in sorted(folder.glob("*")) if p.suffix in READ}
    return named | weights(folder).digests()


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
class Backbone:
    """The large one, in a folder: it sees pictures and reads words."""

    folder: Path
    device: str = "cpu"

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Attention layers, heads, heads of keys and width of a head."""
        from transformers import AutoConfig

        folder = _source(self.folder).folder
        text = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        depth = text.layer_types.count("full_attention")
        return depth, text.num_attention_heads, text.num_key_value_heads, text.head_dim

    def remember(self, pictures: Sequence[Sequence[Picture]], words: Sequence[str]) -> Remembered:
        """Of each prompt: its pictures, all of one size, then its words. On the model's device."""
        model, tokenizer, processor = self._loaded
        config = model.config
        flat = [picture for some in pictures for picture in some]
        if not flat:  # robots without a camera
            ids, mask = _padded([_ids(tokenizer, said or NOTHING) for said in words])
            return remember(model.language_model, ids.to(self.device), mask.to(self.device))
        seen = processor(images=flat, return_tensors="pt")
        count = int(seen.image_grid_thw[0].prod()) // processor.merge_size**2
        around = config.vision_start_token_id, config.vision_end_token_id
        picture = [around[0], *[config.image_token_id] * count, around[1]]
        prompts = [
            [*picture * len(some), *_ids(tokenizer, said)] or _ids(tokenizer, NOTHING)
            for some, said in zip(pictures, words, strict=True)
        ]
        ids, mask = _padded(prompts)
        return remember(
            model, ids.to(self.device), mask.to(self.device),
            pixel_values=seen.pixel_values.to(self.device, model.dtype),
            image_grid_thw=seen.image_grid_thw.to(self.device),
            mm_token_type_ids=(ids == config.image_token_id).int().to(self.device),
        )  # fmt: skip

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """Model, tokenizer and image processor."""
        from transformers import AutoImageProcessor, Qwen3_5ForConditionalGeneration

        whole = _loaded(Qwen3_5ForConditionalGeneration, self.folder, self.device)
        processor = _part(AutoImageProcessor, self.folder, "an image processor")
        return whole.model, _tokenizer(self.folder), processor


@dataclass(frozen=True)
class SmallModel:
    """A frozen causal language model, as `models.staircase.reconstruction_loss` wants it."""

    model: Any  # Qwen3_5ForCausalLM
    tokenizer: Any = None

    @staticmethod
    def of(folder: Path, device: str = "cpu") -> SmallModel:
        """UserError or DataError where the folder holds no Qwen3.5 with a tokenizer."""
        from transformers import Qwen3_5ForCausalLM

        return SmallModel(_loaded(Qwen3_5ForCausalLM, folder, device), _tokenizer(folder))

    @property
    def width(self) -> int:
        """Z."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def tokens(self, texts: Sequence[Sequence[str]], most: int) -> tuple[Tensor, Tensor]:
        """K texts of each of B -> ids and mask (B, K, L); what is longer than `most` is cut."""
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        told = [[*_ids(self.tokenizer, text), *end][:most] for some in texts for text in some]
        ids, mask = _padded(told)
        shape = len(texts), -1, ids.shape[1]
        return ids.view(shape), mask.view(shape)

    def embed(self, tokens: Tensor) -> Tensor:
        """Ids (N, L) -> (N, L, Z)."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def logits(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(N, P + L, Z) and (N, P + L) bool -> (N, P + L, vocabulary)."""
        out: Tensor = self.model(
            inputs_embeds=embeddings.to(self.model.dtype), attention_mask=mask.long(),
            use_cache=False,
        ).logits  # fmt: skip
        return out


def _loaded(kind: Any, folder: Path, device: str) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    return pretrained(kind, _source(folder)).to(device)


def _source(folder: Path) -> Weights:
    source = weights(folder)
    if source.config.get("model_type") not in ("qwen3_5", "qwen3_5_text"):
        raise UserError(
            f"{folder}/config.json: model_type: expected qwen3_5, got "
            f"{source.config.get('model_type')}; the staircase is attached to a Qwen3.5."
        )
    return source


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return _part(AutoTokenizer, folder, "a tokenizer")


def _part(kind: Any, folder: Path, what: str) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{folder}: expected {what} as transformers saves it: {error}") from error


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Words of a data set are data: what looks like a mark of the model's own is letters."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return [*ids]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (N, L), zero at the end of short rows, and which are there."""
    length = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(length.max()))[None] < length[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids, mask
