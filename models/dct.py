"""The type-II discrete cosine transform of windows of any length, alone or packed in a row.

Its error, weighted by frequency, tells jitter from drift (WALL-WM, section Model: an auxiliary loss
against jitter). Unweighted it would say nothing new: the transform keeps the sum of squares.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.rows import Rows


def dct_matrix(rows: Rows) -> Tensor:
    """(B, T, T): orthonormal within each window, zero between windows.

    Row k of a window that begins at i gives its frequency k - i, from 0 to its length less 1.
    """
    length = rows.steps[:, :, None].float()
    angle = math.pi / length * (rows.step[:, None].float() + 0.5) * rows.step[:, :, None]
    matrix = angle.cos() * (2 / length).sqrt()
    matrix = torch.where(rows.step[:, :, None] == 0, matrix / math.sqrt(2), matrix)
    same = rows.step_event[:, :, None] == rows.step_event[:, None]
    return matrix * (same & (rows.step_event >= 0)[:, :, None])
