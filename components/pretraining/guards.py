"""What makes a step a bad one: numbers that are not finite, and losses far above the recent ones.

The past is read from the training's curve, which is part of every checkpoint, so a resumed training
judges as an undisturbed one would have.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW, LEAST = 64, 16  # good steps before this one that are compared with; fewer say nothing
IN_A_ROW = 10  # skipped steps after which the weights must be what is wrong


def fault(terms: Tensor, norm: Tensor, past: Tensor, factor: float) -> str | None:
    """Why a step is bad, None for a good one.

    `terms` (n,) begins with the total loss, `past` (k,) holds the losses of the good steps so far.
    """
    if not (torch.isfinite(terms).all() and torch.isfinite(norm)):
        return f"loss {terms.tolist()}, gradient norm {float(norm):.3g}; expected finite numbers"
    if len(past) >= LEAST:
        usual = float(past[-WINDOW:].median())
        if float(terms[0]) > factor * usual:
            return (
                f"loss {float(terms[0]):.4g} is {float(terms[0]) / usual:.1f} times the median "
                f"of the last {min(len(past), WINDOW)} good steps ({usual:.4g}); expected at most "
                f"{factor:g} times"
            )
    return None


def in_a_row(skipped: Tensor, step: int) -> int:
    """How many steps up to `step` were skipped without a good one between; `skipped` is (T,)."""
    count = 0
    while count <= step and skipped[step - count]:
        count += 1
    return count
