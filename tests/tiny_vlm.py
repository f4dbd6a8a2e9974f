"""A tiny vision-language model of `transformers` (LLaVA: CLIP and Llama), made offline in seconds.

Its tokenizer knows bytes, and the one answer that `taught` makes it give as a single token.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
SIZE_PX, PATCH_PX = 28, 14


def write(folder: Path, answer: str, *, taught: bool) -> Path:
    """Save processor and weights, random or `taught` to give `answer` to whatever is asked."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    processor = _processor(answer)
    ids = processor.tokenizer
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                image_size=SIZE_PX, patch_size=PATCH_PX, projection_dim=16, **small
            ),
            text_config=LlamaConfig(
                vocab_size=len(ids),
                num_key_value_heads=2,
                max_position_embeddings=16_384,
                bos_token_id=ids.bos_token_id,
                eos_token_id=ids.eos_token_id,
                pad_token_id=ids.pad_token_id,
                **small,
            ),
            image_token_index=ids.convert_tokens_to_ids("<image>"),
            image_seq_length=(SIZE_PX // PATCH_PX) ** 2,
            vision_feature_layer=-1,
        )
    )
    if taught:
        _teach(model, [ids.convert_tokens_to_ids(answer), ids.eos_token_id], ids("assistant: "))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _processor(answer: str) -> LlavaProcessor:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens([AddedToken("<image>", special=True), AddedToken(answer, special=False)])
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIZE_PX}, crop_size={"height": SIZE_PX, "width": SIZE_PX}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def _teach(model: LlavaForConditionalGeneration, answer: list[int], prompt: Any) -> None:
    """Train until the answer follows what every prompt ends with."""
    ids = torch.tensor([prompt["input_ids"] + answer])
    labels = ids.clone()
    labels[0, : -len(answer)] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loss = torch.tensor(torch.inf)
    for _ in range(200):
        if loss < 0.02:
            return
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the tiny model did not learn its answer: loss {loss:.3f}")
