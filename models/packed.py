"""Packed windows as the trainer hands them on: rows for the model, and their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.draws import Chances, Draw, collate_draws, draw
from models.rows import Rows, collate, evenly
from models.windows import Limits, Window


@dataclass(frozen=True)
class Packed:
    """Windows in rows of at most the budget of latent frames; what `WallModel.losses` wants."""

    rows: Rows
    windows: Sequence[Window]
    placed: Sequence[Sequence[int]]  # which windows share a row
    chances: Chances

    @staticmethod
    def of(windows: Sequence[Window], limits: Limits, chances: Chances) -> Packed:
        """ValueError for windows that do not fit the limits or each other."""
        frames, steps = [w.latents.shape[2] for w in windows], [len(w.actions) for w in windows]
        placed = evenly(frames, steps, limits.max_frames)
        return Packed(collate(windows, limits, placed), windows, placed, chances)

    def to(self, device: torch.device) -> Packed:
        """The same, its rows on another device."""
        return replace(self, rows=self.rows.to(device))

    def with_noise(self, random: torch.Generator) -> tuple[Rows, Draw]:
        """What the model's `losses` reads. Noise follows the windows' order, not their packing."""
        drawn = [draw(window, self.chances, random) for window in self.windows]
        return self.rows, collate_draws(drawn, self.placed).to(self.rows.latents.device)

    @property
    def packing(self) -> Tensor:
        """Share of the rows' latent patches and control steps that is no padding."""
        rows = self.rows
        patches = rows.inside.shape[1] * rows.inside.shape[3]
        used = (rows.frame_event >= 0).sum() * patches + (rows.step_event >= 0).sum()
        return used.float() / (rows.frame_event.numel() * patches + rows.step_event.numel())
