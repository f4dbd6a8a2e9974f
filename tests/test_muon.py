"""Muon against a float64 singular value decomposition and against torch's own Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.batch import Batch
from models.muon import Muon, is_hidden_matrix, orthogonalise, split
from models.wam import WorldActionModel
from tests.test_models import TINY

SHAPES = [(64, 64), (32, 96), (96, 32)]


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_keeps_singular_vectors_and_levels_their_values(
    shape: tuple[int, int],
) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices).double()
    u, _, vt = torch.linalg.svd(matrices.double(), full_matrices=False)
    levelled = u.mT @ result @ vt.mT
    diagonal = torch.diagonal(levelled, dim1=-2, dim2=-1)
    assert (diagonal > 0).all() and (diagonal < 1.3).all()  # the smallest need more than 5 rounds
    assert ((diagonal > 0.65) & (diagonal < 1.25)).double().mean() > 0.95
    off = levelled - torch.diag_embed(diagonal)
    assert off.abs().max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_iteration_agrees_with_a_float64_reference(shape: tuple[int, int]) -> None:
    """The same polynomial applied to singular values in float64: X -> U p(S) V^T."""
    matrix = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    expected = u @ torch.diag_embed(s) @ vt
    error = (orthogonalise(matrix).double() - expected).norm() / expected.norm()
    assert error < 1e-4


def test_updates_agree_with_torch_muon() -> None:
    """Same gradients and rates: parameters stay within bfloat16 error of torch.optim.Muon."""
    torch.manual_seed(0)
    start = torch.randn(48, 96)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = (
        Muon([ours], **settings),
        torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        gradient = torch.randn(48, 96)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() / moved < 0.02


def test_hidden_matrices_and_nothing_else_go_to_muon() -> None:
    model = WorldActionModel(TINY)
    for block in (*model.video.blocks, *model.action.blocks):  # a zero output blocks all gradients
        torch.nn.init.normal_(
            block.get_submodule("across" if hasattr(block, "across") else "views").out.weight
        )
    torch.nn.init.normal_(model.action.head.weight)
    torch.nn.init.normal_(model.video.head.weight)
    muon, adamw = split(model)
    assert set(muon) | set(adamw) == {name for name, _ in model.named_parameters()}
    assert not set(muon) & set(adamw)
    assert all(is_hidden_matrix(name, p) and p.ndim == 2 for name, p in muon.items())
    for name in adamw:
        assert "blocks" not in name or "modulation" in name or "norm" in name
    model.losses(Batch.fake(), torch.Generator().manual_seed(0)).total.backward()
    before = {name: p.detach().clone() for name, p in muon.items()}
    Muon(muon.values(), lr=0.01, momentum=0.9, weight_decay=0.0).step()
    assert all((p != before[name]).any() for name, p in muon.items())
