"""Newton-Schulz orthogonalisation of many equal matrices at once (Jordan et al. 2024, Muon).

Two ways to evaluate the same polynomial, chosen by what is faster and exact enough (LOG.md):
- on X itself: G = X X^T, X <- (a I + b G + c G^2) X, for square matrices and for bfloat16;
- on its Gram matrix: the five rounds as Q X with Q made of m x m products, restarted after three,
  for float32 and n >= 2 m. In bfloat16 it loses digits.
X X^T and products of polynomials of one G are symmetric: their strips below the diagonal are
computed, the rest is mirrored. That pays from `STRIP_ROWS` on.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic of Jordan et al.
ROUNDS = 5
RESTARTS = (3, 2)  # rounds on one Gram matrix before it is computed anew
STRIP_ROWS = {torch.float32: 128, torch.bfloat16: 384}  # measured on a CPU; a GPU takes no strips


def orthogonalise(matrices: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """Nearest (semi-)orthogonal matrices of (N, m, n) by five Newton-Schulz rounds in `precision`.

    Singular values end within about 0.7..1.2, which is enough (Jordan et al.). A result does not
    depend on the other N - 1 matrices but where the device's batched product does.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    norm = x.norm(dim=-1, keepdim=True).norm(dim=-2, keepdim=True)  # row by row loses no digits
    x = (x / (norm + 1e-7)).to(precision or x.dtype)
    x = _on_gram(x) if _by_gram(x.shape, x.dtype) else _on_matrix(x)
    return x.mT if tall else x


def flops(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Operations to orthogonalise one (m, n), full products counted; what balances owners."""
    m, n = min(shape), max(shape)
    if _by_gram((m, n), dtype):
        return 8 * m * m * n + 28 * m**3
    return 20 * m * m * n + 10 * m**3


def _by_gram(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return shape[-1] >= 2 * shape[-2] and dtype != torch.bfloat16


def _on_matrix(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = _symmetric(x, x.mT)
        x = torch.baddbmm(x, _symmetric(gram, gram, gram, b, c), x, beta=a)
    return x


def _on_gram(x: Tensor) -> Tensor:
    """Round i maps X to P_i X and G to P_i G P_i, where P_i = a I + Z_i, Z_i = b G + c G^2."""
    a, b, c = COEFFICIENTS
    for rounds in RESTARTS:
        gram = _symmetric(x, x.mT)
        z = _symmetric(gram, gram, gram, b, c)
        q = z.clone()
        q.diagonal(dim1=-2, dim2=-1).add_(a)
        for _ in range(rounds - 1):
            half = _symmetric(z, gram, gram, a)
            gram = _symmetric(half, z, half, a)
            z = _symmetric(gram, gram, gram, b, c)
            q = _symmetric(q, z, q, a)
        x = q @ x
    return x


def _symmetric(
    left: Tensor, right: Tensor, plus: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0
) -> Tensor:
    """beta plus + alpha left @ right of (N, m, k) and (N, k, m), where that is symmetric."""
    m = left.shape[-2]
    rows = STRIP_ROWS.get(left.dtype, m) if left.device.type == "cpu" else m
    if m < 2 * rows:
        return _product(left, right, plus, beta, alpha)
    out = left.new_empty(*left.shape[:-1], m)
    for first in range(0, m, rows):
        end = min(first + rows, m)
        strip = _product(
            left[:, first:end], right[:, :, :end],
            None if plus is None else plus[:, first:end, :end], beta, alpha,
        )  # fmt: skip
        out[:, first:end, :end] = strip
        out[:, :first, first:end] = strip[:, :, :first].mT
    return out


def _product(left: Tensor, right: Tensor, plus: Tensor | None, beta: float, alpha: float) -> Tensor:
    if plus is None:
        return left @ right
    return torch.baddbmm(plus, left, right, beta=beta, alpha=alpha)
