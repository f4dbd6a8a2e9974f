"""The one typed batch at the model's border.

Letters: B batch, V views (cameras), F future frames, K key-frame pixels a side, L future-frame
pixels a side, S state width, A action width, T action steps (padded), E width of a text feature.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B windows of events: from the anchor frame to the event's end. Pictures are in -1..1."""

    keyframes: Tensor  # (B, V, 3, K, K) what every camera shows at the anchor
    future: Tensor  # (B, V, F, 3, L, L) frames spread evenly over the rest of the event
    view_mask: Tensor  # (B, V) bool, False where a robot has no such camera
    state: Tensor  # (B, S) normalised proprioception, zero where masked
    actions: Tensor  # (B, T, A) normalised actions, zero where masked
    action_mask: Tensor  # (B, A) bool, which dimensions this robot has
    length: Tensor  # (B,) int64, control steps to the event's end, at most T
    step_s: Tensor  # (B,) seconds of one control step
    text: Tensor  # (B, E) feature of the event's caption, zero where dropped

    def __len__(self) -> int:
        return self.keyframes.shape[0]

    @property
    def step_mask(self) -> Tensor:
        """(B, T) bool, False past the event's end."""
        steps = torch.arange(self.actions.shape[1], device=self.length.device)
        return steps[None] < self.length[:, None]

    @property
    def packing(self) -> Tensor:
        """Share of the control steps that is no padding."""
        return (self.length.float() / self.actions.shape[1]).mean()

    def with_noise(self, random: torch.Generator) -> tuple[Batch, torch.Generator]:
        """What the model's `losses` reads; it draws by itself."""
        return self, random

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @staticmethod
    def fake(
        size: int = 2, views: int = 2, key_px: int = 24, future_px: int = 8, future: int = 2,
        state: int = 4, action: int = 4, steps: int = 16, text: int = 8, seed: int = 0,
    ) -> Batch:  # fmt: skip
        """Random content of valid shapes and ranges, for tests and for counting FLOPs."""
        random = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=random) * 2 - 1

        length = torch.randint(1, steps + 1, (size,), generator=random)
        inside = torch.arange(steps)[None] < length[:, None]
        return Batch(
            keyframes=uniform(size, views, 3, key_px, key_px),
            future=uniform(size, views, future, 3, future_px, future_px),
            view_mask=torch.ones(size, views, dtype=torch.bool),
            state=uniform(size, state),
            actions=uniform(size, steps, action) * inside[..., None],
            action_mask=torch.ones(size, action, dtype=torch.bool),
            length=length,
            step_s=torch.full((size,), 0.05),
            text=uniform(size, text),
        )
