"""What the recipe's stage `staircase` trains: states from which a small LM says the reasoning.

WALL-WM, section Training: each of the K_c states passes a prefix projector into a frozen small
language model, which must reconstruct the reasoning text; only the staircase branch and the
projector learn. The two frozen language models are no part of this module, so that no optimizer,
average or checkpoint holds them: what the large one remembers of a prompt comes with the batch, and
the small one is handed over as a reader.

Letters as in `staircase.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.staircase import (
    PrefixProjector,
    Remembered,
    Staircase,
    StairShape,
    reconstruction_loss,
)


class Reader(Protocol):
    """A frozen small language model."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Ids (N, L) -> (N, L, Z)."""

    def logits(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(N, P + L, Z) and (N, P + L) bool -> (N, P + L, vocabulary)."""


@dataclass(frozen=True)
class ReasonerShape:
    """Sizes; what its config.json says."""

    stair: StairShape
    prefix_tokens: int  # P, of the small LM for each state
    lm_width: int  # Z

    def as_dict(self) -> dict[str, Any]:
        """For config.json; `from_dict` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ReasonerShape:
        """The inverse of `as_dict`."""
        return ReasonerShape(**value | {"stair": StairShape(**value["stair"])})


@dataclass(frozen=True)
class Reasons:
    """Prompts, and the texts that their stairs must say."""

    prompt: Remembered
    text: Tensor  # (B, K, L) int64 token ids of the small LM
    mask: Tensor  # (B, K, L) bool, padded at the end

    @property
    def packing(self) -> Tensor:
        """Share of the prompts' and texts' tokens that is no padding."""
        both = torch.cat([self.prompt.mask.flatten(), self.mask.flatten()])
        return both.float().mean()

    def with_noise(self, random: torch.Generator) -> tuple[Reasons]:
        """What the model's `losses` reads; nothing of it is random."""
        return (self,)

    def to(self, device: torch.device) -> Reasons:
        """The same batch on another device."""
        return Reasons(self.prompt.to(device), self.text.to(device), self.mask.to(device))


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch; `total` is what is minimised."""

    total: Tensor
    reconstruction: Tensor


class Reasoner(nn.Module):
    """Staircase and prefix projector; what leads to the text side waits for the action's loss."""

    terms = ("reconstruction",)  # of its Losses, beside their total

    def __init__(self, shape: ReasonerShape, reader: Reader) -> None:
        super().__init__()
        self.shape, self.reader = shape, reader
        self.staircase = Staircase(shape.stair)
        self.projector = PrefixProjector(shape.stair.width, shape.prefix_tokens, shape.lm_width)
        self.staircase.to_text.requires_grad_(False)

    def losses(self, reasons: Reasons) -> Losses:
        """Cross-entropy of every stair's own text, after its state alone."""
        prefix = self.projector(self.staircase(reasons.prompt))
        loss = reconstruction_loss(
            prefix, reasons.text, reasons.mask, embed=self.reader.embed,
            language_model=self.reader.logits,
        )  # fmt: skip
        return Losses(loss, loss)
