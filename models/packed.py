"""Packed windows as the trainer hands them on: rows for the model, and their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.draws import Chances, Draw, collate_draws, draw
from models.rows import Rows, collate, evenly, lined_up
from models.staircase import Remembered, Thoughts
from models.windows import Limits, Window


@dataclass(frozen=True)
class Packed:
    """Windows in rows of at most the budget of latent frames; what `WallModel.losses` wants."""

    rows: Rows
    windows: Sequence[Window]
    placed: Sequence[Sequence[int]]  # which windows share a row
    chances: Chances
    thoughts: Thoughts | None = None

    @staticmethod
    def of(windows: Sequence[Window], limits: Limits, chances: Chances) -> Packed:
        """ValueError for windows that do not fit the limits or each other."""
        frames, steps = [w.latents.shape[2] for w in windows], [len(w.actions) for w in windows]
        placed = evenly(frames, steps, limits.max_frames)
        return Packed(collate(windows, limits, placed), windows, placed, chances)

    def thinking(self, prompt: Remembered, of: Sequence[int]) -> Packed:
        """The same, with the number of each window's prompt, or -1 where it keeps its text."""
        number = [[torch.tensor([of[i]]) for i in row] for row in self.placed]
        return replace(self, thoughts=Thoughts(prompt, lined_up(number, 0, fill=-1)))

    def to(self, device: torch.device) -> Packed:
        """The same, its rows on another device."""
        thoughts = self.thoughts.to(device) if self.thoughts else None
        return replace(self, rows=self.rows.to(device), thoughts=thoughts)

    def with_noise(self, random: torch.Generator) -> tuple[Rows, Draw, Thoughts | None]:
        """What the model's `losses` reads. Noise follows the windows' order, not their packing."""
        drawn = [draw(window, self.chances, random) for window in self.windows]
        noise = collate_draws(drawn, self.placed).to(self.rows.latents.device)
        return self.rows, noise, self.thoughts

    @property
    def packing(self) -> Tensor:
        """Share of the rows' latent patches and control steps that is no padding."""
        rows = self.rows
        patches = rows.inside.shape[1] * rows.inside.shape[3]
        used = (rows.frame_event >= 0).sum() * patches + (rows.step_event >= 0).sum()
        return used.float() / (rows.frame_event.numel() * patches + rows.step_event.numel())
