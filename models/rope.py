"""Rotary position codes: 3-D for a video (Wan), and a learned identity for each camera.

Su et al. 2021 (RoFormer). A head's width is shared out to time, height and width as in Wan 2.1, and
neighbouring numbers form the pairs that are turned. Camera RoPE is from WALL-WM, section Model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

THETA = 10_000.0


class Turns(NamedTuple):
    """Cosines and sines, float32 (..., N, head_width / 2), of the angles of N tokens."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def by(angles: Tensor) -> Turns:
        """From float64 angles, as Wan does: float32 loses the phase of late frames."""
        return Turns(angles.cos().float(), angles.sin().float())


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """Turn the pairs of x (..., N, heads, head_width) by the angles of their tokens.

    A product of complex numbers, which takes a tenth of the time of real ones on a CPU; compiled
    blocks take real ones, of which compilers know how to make one kernel.
    """
    if torch.compiler.is_compiling():
        return rotate_real(x, turns)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.complex(turns.cos, turns.sin)[..., None, :]
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def rotate_real(x: Tensor, turns: Turns) -> Tensor:
    """`rotate` in real numbers."""
    cos, sin = turns.cos[..., None, :], turns.sin[..., None, :]
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


def time_angles(frame: Tensor, head_width: int) -> Tensor:
    """Whole positions in time (...,) -> (..., head_width / 2); zero where space is coded."""
    space = _space_width(head_width)
    ours = _angles(frame, head_width - 2 * space)
    return torch.cat([ours, ours.new_zeros(*frame.shape, space)], dim=-1)


def space_angles(rows: int, columns: int, head_width: int, device: torch.device) -> Tensor:
    """(rows * columns, head_width / 2), row by row; zero where time is coded."""
    space = _space_width(head_width)
    down = _angles(torch.arange(rows, device=device), space)[:, None].expand(-1, columns, -1)
    right = _angles(torch.arange(columns, device=device), space)[None].expand(rows, -1, -1)
    time = down.new_zeros(rows, columns, head_width // 2 - space)
    return torch.cat([time, down, right], dim=-1).flatten(0, 1)


class CameraTable(nn.Module):
    """A learned angle for each pair of a head and each camera; no extrinsics are needed.

    A row starts as if cameras were positions in a sequence, whatever the number of rows: a table
    that has grown says the same about the cameras that were there before.
    """

    def __init__(self, cameras: int, head_width: int) -> None:
        super().__init__()
        self.angles = nn.Parameter(_angles(torch.arange(cameras), head_width).float())

    def forward(self, camera: Tensor) -> Tensor:
        """Ids (...,) -> float64 angles (..., head_width / 2); an absent camera (-1) reads row 0."""
        return self.angles[camera.clamp(min=0)].double()

    def grow(self, cameras: int) -> None:
        """Make room for more cameras in place; optimizers must be told about the new parameter."""
        have, half = self.angles.shape
        if cameras < have:
            raise ValueError(f"CameraTable: expected at least {have} cameras, got {cameras}.")
        new = _angles(torch.arange(have, cameras, device=self.angles.device), 2 * half)
        self.angles = nn.Parameter(torch.cat([self.angles.detach(), new.to(self.angles)]))


def _space_width(head_width: int) -> int:
    return 2 * (head_width // 6)


def _angles(position: Tensor, width: int) -> Tensor:
    """Positions (...,) -> float64 (..., width / 2)."""
    exponent = torch.arange(0, width, 2, device=position.device, dtype=torch.float64) / width
    return position[..., None].double() / THETA**exponent
