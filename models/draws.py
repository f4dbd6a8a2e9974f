"""Everything random in a training step, drawn window by window before windows meet in rows.

So a window gets the same noise alone or packed, on every device, and tests can say what it is.
Letters as in `windows.py`; N noise draws of the action for one pass of the video, the paper's N_d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from models.masks import tube
from models.rows import lined_up
from models.schedule import shifted
from models.windows import PATCH, Window

Coupling = Literal["video", "symmetric", "asymmetric"]
"""Video alone; both towers at one noise level, 1-to-1; the video at the anchor, 1-to-N_d."""


@dataclass(frozen=True)
class Chances:
    """How training draws."""

    coupling: Coupling
    action_samples: int  # N_d; 1 unless the coupling is asymmetric
    shift: float  # of the video's noise levels, see schedule.py
    tube_probability: float  # p_tube; where the video is frozen nobody looks at tubes
    tube_side: int  # k, patches
    patch_steps: int  # control steps of an action token

    def __post_init__(self) -> None:
        if self.coupling != "asymmetric" and self.action_samples != 1:
            raise ValueError(
                f"Chances: {self.coupling} coupling is 1-to-1, expected action_samples 1, "
                f"got {self.action_samples}."
            )


@dataclass(frozen=True)
class Draw:
    """Of one window; with a leading B, and E where a row may have several, of rows of windows."""

    sigma: Tensor  # (1,) or (B, E) noise level of the video where it learns
    noise: Tensor  # (V, C, F, H, W) or (B, V, C, F, H, W)
    hidden: Tensor  # (V, F, P) or (B, V, F, P) bool, behind a tube
    action_sigma: Tensor  # (1, N) or (B, E, N)
    action_noise: Tensor  # (T, N, A) or (B, T, N, A); T in whole action tokens

    def first(self, rows: int) -> Draw:
        """Of the first rows alone."""
        return Draw(**{f.name: getattr(self, f.name)[:rows] for f in fields(self)})

    def to(self, device: torch.device) -> Draw:
        """The same numbers on another device."""
        return Draw(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def draw(window: Window, chances: Chances, random: torch.Generator) -> Draw:
    """Noise and masks of one window, on the CPU."""
    n, frozen = chances.action_samples, chances.coupling == "asymmetric"
    sigma = shifted(torch.rand(1, generator=random), chances.shift)
    action_sigma = torch.rand(1, n, generator=random)
    there = window.inside & (window.camera >= 0)[:, None, None]
    hidden = tube(
        there.cpu(), window.latents.shape[-1] // PATCH, side=chances.tube_side,
        probability=chances.tube_probability, random=random,
    )  # fmt: skip
    t, a = window.actions.shape
    t += -t % chances.patch_steps
    return Draw(
        sigma=sigma,
        noise=torch.randn(window.latents.shape, generator=random),
        hidden=hidden,
        action_sigma=action_sigma if frozen else sigma[:, None],
        action_noise=torch.randn(t, n, a, generator=random),
    )


def collate_draws(draws: Sequence[Draw], rows: Sequence[Sequence[int]] | None = None) -> Draw:
    """The draws of windows as `rows.collate` places them."""
    placed = [[draws[i] for i in row] for row in rows or [[i] for i in range(len(draws))]]

    def joined(name: str, dim: int = 0) -> Tensor:
        return lined_up([[getattr(d, name) for d in row] for row in placed], dim)

    return Draw(
        sigma=joined("sigma"), noise=joined("noise", 2), hidden=joined("hidden", 1),
        action_sigma=joined("action_sigma"), action_noise=joined("action_noise"),
    )  # fmt: skip
