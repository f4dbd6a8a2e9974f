"""Muon (Jordan et al. 2024): momentum, orthogonalised by Newton-Schulz, for hidden matrices.

Step size matched to AdamW's RMS (Liu et al. 2025, "Muon is scalable"): update = 0.2 sqrt(max(m,
n)) O.
Embeddings, heads, norms, biases, patch and time projections go to AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic of Jordan et al.


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """The rule: a weight matrix between hidden activations, inside a block of a tower."""
    return parameter.ndim == 2 and ".blocks." in f".{name}" and "modulation" not in name


def split(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """(for Muon, for AdamW) by name."""
    muon: dict[str, nn.Parameter] = {}
    adamw: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        (muon if is_hidden_matrix(name, parameter) else adamw)[name] = parameter
    return muon, adamw


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices of (N, m, n) by `steps` Newton-Schulz iterations.

    Singular values end within about 0.7..1.2, which is enough (Jordan et al.).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, Newton-Schulz batched over equal shapes, decoupled weight decay."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(
            list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalise(torch.stack([self._momentum(p, group) for p in parameters]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-scale)

    def _momentum(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Nesterov's look-ahead gradient; the buffer is an exponential average."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(state["momentum"], group["momentum"])
