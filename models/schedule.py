"""Noise levels and the anchor.

sigma 0 is clean and 1 is pure noise. `shift` pushes levels towards noise as Wan does (3 for 480p, 5
for 720p; Esser et al. 2024, section 5.3.2): more pixels need more noise to be hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

ANCHOR_STEP, ANCHOR_STEPS = 45, 50  # WALL-WM: s* = 45 of 50


def shifted(level: Tensor, shift: float) -> Tensor:
    """Levels (...,) in 0..1 -> the same, pushed towards 1."""
    return shift * level / (1 + (shift - 1) * level)


def anchor(shift: float) -> float:
    """The noise level at which one forward pass of the video serves the actions."""
    return shifted(torch.tensor(ANCHOR_STEP / ANCHOR_STEPS), shift).item()


def levels(steps: int, shift: float) -> Tensor:
    """(steps + 1,) from 1 down to 0, for a sampler of `steps` steps."""
    if steps < 1:
        raise ValueError(f"Sampler: expected at least 1 step, got {steps}.")
    return shifted(torch.linspace(1, 0, steps + 1), shift)
