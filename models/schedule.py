"""Noise levels, the anchor, and how often a caption is dropped.

sigma 0 is clean and 1 is pure noise. `shift` pushes levels towards noise as Wan does (3 for 480p, 5
for 720p; Esser et al. 2024, section 5.3.2): more pixels need more noise to be hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ANCHOR_STEP, ANCHOR_STEPS = 45, 50  # WALL-WM: s* = 45 of 50
DROP_SHORTEST, DROP_LONGEST = 0.9, 0.1  # WALL-WM: caption drop of the shortest and longest event


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


def caption_drop(length_s: Tensor, shortest_s: float, longest_s: float) -> Tensor:
    """Probability (...,) to hide the caption of events that last length_s.

    Half a cosine from 0.9 for the shortest event, which vision alone can continue, to 0.1 for the
    longest, which needs words (WALL-WM, section Training).
    """
    if not 0 <= shortest_s < longest_s:
        raise ValueError(
            "Caption drop: expected 0 <= shortest_s < longest_s, "
            f"got {shortest_s} and {longest_s} seconds."
        )
    through = ((length_s - shortest_s) / (longest_s - shortest_s)).clamp(0, 1)
    return DROP_LONGEST + (DROP_SHORTEST - DROP_LONGEST) * (1 + torch.cos(math.pi * through)) / 2
