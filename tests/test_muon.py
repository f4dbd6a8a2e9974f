"""Muon against float64, against torch's own Muon, and against itself on other numbers of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.batch import Batch
from models.muon import Muon, describe, is_hidden_matrix, split
from models.newton_schulz import orthogonalise
from models.owners import bundles, owners, turns
from models.wam import WorldActionModel
from tests.benchmarks.muon import gradient, ours, reference, theirs, update
from tests.muon_ranks import on_ranks, stepped
from tests.test_models import TINY

SHAPES = [(64, 64), (32, 96), (96, 32), (300, 300)]  # the last one in strips, the last uneven
RANKS_SHAPES = [(32, 64)] * 3 + [(64, 32)] * 2 + [(48, 48)] * 9 + [(128, 512)] * 5


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


@pytest.mark.parametrize("shape", [(64, 64), (256, 768), (768, 256), (800, 800)])
@pytest.mark.parametrize("kind", ["gaussian", "low rank"])
def test_a_step_is_within_its_bounds_of_float64(shape: tuple[int, int], kind: str) -> None:
    """Every way of evaluating the rounds, with momentum; bfloat16 no worse than torch's."""
    random = torch.Generator().manual_seed(2)
    gradients = [gradient(*shape, kind, random) for _ in range(3)]
    expected = reference(gradients, momentum=0.95)

    def error(found: torch.Tensor) -> float:
        return float((found - expected).norm() / expected.norm())

    assert error(update(ours(torch.float32), gradients)) < 1e-4
    bound = 1.2 * error(update(theirs, gradients))
    assert error(update(ours(torch.bfloat16), gradients)) < bound


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker computes: with several, a product of few matrices is another than one of many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_matrix_is_orthogonalised_alike_in_any_company() -> None:
    for shape in SHAPES:
        batch = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3))
        alone = torch.cat([orthogonalise(one[None]) for one in batch])
        assert torch.equal(orthogonalise(batch), alone)


@given(
    st.lists(st.sampled_from([(8, 8), (16, 64), (64, 16), (600, 600), (1, 5)]), max_size=60),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_every_matrix_has_one_owner_and_loads_are_balanced(
    shapes: list[tuple[int, int]], ranks: int
) -> None:
    made = bundles([torch.Size(s) for s in shapes], torch.float32)
    assert sorted(i for b in made for i in b.members) == list(range(len(shapes)))
    assert all(sorted(shapes[i]) == list(b.shape) for b in made for i in b.members)
    costs = [b.flops for b in made]
    owner = owners(costs, ranks)
    assert set(owner) <= set(range(ranks))
    load = [sum(c for c, o in zip(costs, owner, strict=True) if o == r) for r in range(ranks)]
    assert max(load) - min(load) <= max(costs, default=0)
    order = turns(costs, owner, ranks)
    assert sorted(i for turn in order for i in turn) == list(range(len(made)))
    assert all(len({owner[i] for i in turn}) == len(turn) for turn in order)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_ranks_agree_bit_by_bit_and_keep_only_what_they_own(tmp_path: Path) -> None:
    """1, 2 and 4 ranks; averaged or own gradients; resumed at another number of ranks."""
    alone = stepped(RANKS_SHAPES, 3, seed=0)
    two = on_ranks(2, stepped, RANKS_SHAPES, 2, seed=0, own=True)
    torch.save(two[0] | {"momenta": two[0]["momenta"] | two[1]["momenta"]}, tmp_path / "state.pt")
    four = on_ranks(4, stepped, RANKS_SHAPES, 1, seed=0, resume=tmp_path / "state.pt")
    for result in four:
        for here, there in zip(result["parameters"], alone["parameters"], strict=True):
            assert torch.equal(here, there)
    momenta = {i: m for result in four for i, m in result["momenta"].items()}
    assert momenta.keys() == alone["momenta"].keys()
    assert all(torch.equal(m, alone["momenta"][i]) for i, m in momenta.items())
    for group in (two, four):
        assert sum(result["kept"] for result in group) == len(RANKS_SHAPES)
        assert all(0 < result["kept"] < len(RANKS_SHAPES) for result in group)


@pytest.mark.parametrize("names", [None, ("video.blocks.0.q", "video.blocks.0.k")])
def test_a_matrix_without_gradient_is_named(names: tuple[str, str] | None) -> None:
    matrices = [nn.Parameter(torch.eye(3)), nn.Parameter(torch.eye(4))]
    muon = Muon(zip(names, matrices, strict=True) if names else matrices, 0.1, 0.9, 0.0)
    muon.matrices[0].grad = torch.eye(3)
    name = names[1] if names else "matrix 1"
    with pytest.raises(RuntimeError, match=rf"{name} of shape \(4, 4\) has no gradient"):
        muon.step()


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameter 0 has shape \(3,\)"):
        Muon([nn.Parameter(torch.ones(3))], 0.1, 0.9, 0.0)


def test_the_split_is_told_in_figures() -> None:
    model = WorldActionModel(TINY)
    muon, _ = split(model)
    said = describe(model)
    assert f"{len(muon)} hidden matrices, {sum(p.numel() for p in muon.values()):,} numbers" in said
    assert f"{len([p for p in muon.values() if p.shape == (128, 32)])} of 128 x 32" in said


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
