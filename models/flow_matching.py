"""Rectified flow (Lipman et al. 2023), as in Wan: x_s = (1 - s) x_0 + s e, v = e - x_0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_s for sigma (B,) in 0..1; 0 is clean and 1 is pure noise."""
    s = sigma.view(-1, *[1] * (clean.dim() - 1))
    return (1 - s) * clean + s * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The target of v-prediction, d x_s / d s."""
    return noise - clean


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` (broadcast) is True; 0 when it is nowhere True."""
    return weighted_mean(values, mask.expand_as(values).to(values.dtype))


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of `values` under `weight` of the same shape; 0 when there is no weight."""
    weight = weight.expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def euler(predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise (sigma 1) to data (sigma 0) in `steps` equal Euler steps.

    `predict(x, sigma)` gives the velocity for x (B, ...) at sigma (B,).
    """
    x = noise
    for i in range(steps):
        sigma = torch.full((len(x),), 1 - i / steps, device=x.device)
        x = x - predict(x, sigma) / steps
    return x
