"""Small random Qwen3.5 folders as publishers save them: one that sees and reads, one that says.

The tokenizer knows bytes. The small one's head has logits of size 1: as `transformers` starts it, a
model says the same whatever it is given (LOG.md).
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)

BYTES, VOCABULARY = 256, 264
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "layer_types": ["linear_attention", "full_attention"] * 3, "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1], "mrope_interleaved": True,
    },
    "pad_token_id": BYTES, "eos_token_id": BYTES,
}  # fmt: skip
VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
    "spatial_merge_size": 2, "out_hidden_size": 24, "num_position_embeddings": 16,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<end>")


def write_large(folder: Path, attention_layers: int = 3) -> Path:
    """With a tokenizer and an image processor that leaves pictures as large as they are."""
    torch.manual_seed(0)
    text = TEXT | {
        "num_hidden_layers": 2 * attention_layers,
        "layer_types": ["linear_attention", "full_attention"] * attention_layers,
    }
    whole = Qwen3_5Config(
        text_config=text, vision_config=VISION, image_token_id=260, vision_start_token_id=261,
        vision_end_token_id=262, video_token_id=263,
    )  # fmt: skip
    Qwen3_5ForConditionalGeneration(whole).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    ).save_pretrained(folder)
    return folder


def write_small(folder: Path) -> Path:
    """A causal language model with a tokenizer."""
    torch.manual_seed(1)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**TEXT, tie_word_embeddings=False))
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
