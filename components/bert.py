"""BERT (Devlin et al., arXiv 1810.04805) for one sentence at a time, with published weights.

Its layers are torch's own: `nn.TransformerEncoderLayer`, normalised behind each part, exact GELU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_NAMES = {  # of a layer's parts, here and in published weights
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}


class Bert(nn.Module):
    """Token ids (T,) to states (T, W) of the last layer."""

    def __init__(self, config: Mapping[str, int | float], weights: Mapping[str, Tensor]) -> None:
        """`config` and `weights` of `transformers.BertModel`; KeyError for a missing weight."""
        super().__init__()
        width = int(config["hidden_size"])
        self.words = nn.Embedding.from_pretrained(weights["embeddings.word_embeddings.weight"])
        kinds = weights["embeddings.token_type_embeddings.weight"]
        places = weights["embeddings.position_embeddings.weight"] + kinds[0]  # the first sentence
        self.places = nn.Parameter(places)
        self.norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        layer = nn.TransformerEncoderLayer(
            width, int(config["num_attention_heads"]), int(config["intermediate_size"]),
            dropout=0.0, activation="gelu", layer_norm_eps=config["layer_norm_eps"],
            batch_first=True,
        )  # fmt: skip
        depth = int(config["num_hidden_layers"])
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        _copy(self.norm, weights, "embeddings.LayerNorm")
        for number, each in enumerate(self.layers.layers):
            _fill(each, weights, f"encoder.layer.{number}")
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        states = self.norm(self.words(tokens) + self.places[: len(tokens)])
        last: Tensor = self.layers(states[None])[0]
        return last


def _fill(layer: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> None:
    """One layer; attention's three projections are one matrix here."""
    attention = layer.get_submodule("self_attn")
    parts = [f"{prefix}.attention.self.{name}" for name in ("query", "key", "value")]
    for kind in ("weight", "bias"):
        whole = torch.cat([weights[f"{part}.{kind}"] for part in parts])
        attention.get_parameter(f"in_proj_{kind}").data.copy_(whole)
    for ours, theirs in _NAMES.items():
        _copy(layer.get_submodule(ours), weights, f"{prefix}.{theirs}")


def _copy(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    module.load_state_dict({kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")})
