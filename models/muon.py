"""Muon (Jordan et al. 2024): momentum, orthogonalised by Newton-Schulz, for hidden matrices.

Step size matched to AdamW's RMS (Liu et al. 2025, "Muon is scalable"): update = 0.2 sqrt(max(m,
n)) O. Embeddings, heads, norms, biases, patch and time projections go to AdamW.

Under plain data parallel each matrix has an owner rank: gradients are reduced to it, it keeps the
momentum, orthogonalises once and sends the update, while it works on its next matrices (the scheme
of "Muon is scalable" and DMuon, over whole matrices). Under FSDP2 the owner gathers the rows of the
gradient instead, and every rank applies its rows of the update; the rest is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.newton_schulz import orthogonalise
from models.owners import Bundle, bundles, owners, turns
from models.row_shards import are_sharded, local, rows, send_to_owner, whole


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """The rule: a weight matrix between hidden activations, inside a block of a tower."""
    return parameter.ndim == 2 and ".blocks." in f".{name}" and "modulation" not in name


def split(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """(for Muon, for AdamW) by name; what is frozen goes to neither."""
    muon: dict[str, nn.Parameter] = {}
    adamw: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (muon if is_hidden_matrix(name, parameter) else adamw)[name] = parameter
    return muon, adamw


def describe(model: nn.Module) -> str:
    """The split in one line for the log: how many matrices of which shapes, how much is left."""
    muon, adamw = split(model)
    shapes = Counter(tuple(p.shape) for p in muon.values())
    listed = ", ".join(f"{count} of {m} x {n}" for (m, n), count in sorted(shapes.items()))
    numbers = [sum(p.numel() for p in part.values()) for part in (muon, adamw)]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return (
        f"Muon: {len(muon)} hidden matrices, {numbers[0]:,} numbers ({listed}); "
        f"AdamW: the {len(adamw)} other parameters, {numbers[1]:,} numbers"
        + (f"; frozen: {frozen:,} numbers" if frozen else "")
    )


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, Newton-Schulz batched over equal shapes, decoupled weight decay.

    Where torch.distributed is initialised, every rank of `group` must hold the same parameters in
    the same order and call the same methods. Every parameter must have a gradient; an error calls
    it by the name that it came with, as from `named_parameters`. `precision` of the
    orthogonalisation is bfloat16 on a GPU and float32 elsewhere unless given.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[tuple[str, nn.Parameter]],
        lr: float, momentum: float, weight_decay: float,
        *, precision: torch.dtype | None = None, group: dist.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.matrices: list[nn.Parameter] = self.param_groups[0]["params"]
        self.names: list[str] | None = self.param_groups[0].get("param_names")
        together = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if together else 0
        self.world_size = dist.get_world_size(group) if together else 1
        on_gpu = self.matrices[0].is_cuda
        self.precision = precision or (torch.bfloat16 if on_gpu else torch.float32)
        self.bundles = bundles([p.shape for p in self.matrices], self.precision)
        costs = [bundle.flops for bundle in self.bundles]
        self.owner = owners(costs, self.world_size)
        self._turns = turns(costs, self.owner, self.world_size)
        self.sharded = are_sharded(self.matrices)
        self._whole: dict[int, Tensor] = {}  # gradients of sharded matrices, at their owners
        self.update_norm = torch.zeros(())  # of the last step, without weight decay

    def owned(self) -> list[nn.Parameter]:
        """The parameters whose momentum this rank keeps and whose update it computes."""
        mine = [b for b, owner in zip(self.bundles, self.owner, strict=True) if owner == self.rank]
        return [self.matrices[index] for bundle in mine for index in bundle.members]

    def shares(self) -> str:
        """Who orthogonalises how much, for the log."""
        load = [0] * self.world_size
        for bundle, owner in zip(self.bundles, self.owner, strict=True):
            load[owner] += bundle.flops
        most = max(load) * self.world_size / sum(load)
        digits = str(self.precision).removeprefix("torch.")
        return (
            f"{len(self.bundles)} bundles on {self.world_size} ranks in {digits}, the heaviest "
            f"with {most:.2f} of a fair share"
        )

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Average gradients over ranks, each at its owner; the other ranks' ones are freed.

        Not needed where gradients are averages already, as under DistributedDataParallel and FSDP2.
        """
        if self.world_size == 1 or self.sharded:
            return
        sums = [torch.cat([self._gradient(i).flatten() for i in b.members]) for b in self.bundles]
        works = [
            dist.reduce(flat, group_dst=owner, group=self.group, async_op=True)
            for flat, owner in zip(sums, self.owner, strict=True)
        ]
        for index, (bundle, flat, work) in enumerate(zip(self.bundles, sums, works, strict=True)):
            _wait(work)
            mine = self.owner[index] == self.rank
            pieces = (flat / self.world_size).chunk(len(bundle.members)) if mine else ()
            for place, member in enumerate(bundle.members):
                matrix = self.matrices[member]
                matrix.grad = pieces[place].view_as(matrix) if mine else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all matrices; only the owners' gradients are read."""
        if self.sharded:
            self._gather_gradients()
        self.update_norm = torch.zeros((), device=self.matrices[0].device)
        before: list[tuple[Bundle, Tensor, dist.Work | None]] = []
        for turn in self._turns:
            sent = [(self.bundles[index], *self._update(index)) for index in turn]
            self._apply(before)  # while the updates of this turn are on their way
            before = sent
        self._apply(before)
        self._whole.clear()
        self.update_norm = self.update_norm.sqrt()

    def _gather_gradients(self) -> None:
        """The rows of every gradient at its matrix's owner."""
        shapes = [[self.matrices[i].shape for i in bundle.members] for bundle in self.bundles]
        sent = [
            send_to_owner([local(self._gradient(i)) for i in b.members], of, owner, self.group)
            for b, of, owner in zip(self.bundles, shapes, self.owner, strict=True)
        ]
        for bundle, of, (received, work) in zip(self.bundles, shapes, sent, strict=True):
            _wait(work)
            if received is not None:
                self._whole |= dict(zip(bundle.members, whole(received, of), strict=True))

    def _update(self, index: int) -> tuple[Tensor, dist.Work | None]:
        """(N, m, n) of one bundle, here or from its owner; not there before its work is done."""
        bundle, owner = self.bundles[index], self.owner[index]
        if owner == self.rank:
            update = orthogonalise(self._look_ahead(bundle), self.precision)
        else:
            size = (len(bundle.members), *bundle.shape)
            update = torch.empty(size, dtype=self.precision, device=self.matrices[0].device)
        if self.world_size == 1:
            return update, None
        update = update.contiguous()
        return update, dist.broadcast(update, group_src=owner, group=self.group, async_op=True)

    def _apply(self, updates: Sequence[tuple[Bundle, Tensor, dist.Work | None]]) -> None:
        group = self.param_groups[0]
        for bundle, update, work in updates:
            if work is not None:
                _wait(work)
            matrices: list[Tensor] = [self.matrices[index] for index in bundle.members]
            torch._foreach_mul_(list(map(local, matrices)), 1 - group["lr"] * group["weight_decay"])
            scale = 0.2 * max(bundle.shape) ** 0.5 * group["lr"]
            self.update_norm += (update.float().norm() * scale) ** 2
            for matrix, piece in zip(matrices, update, strict=True):
                turned = _wide(piece, matrix)
                if self.sharded:
                    turned = turned[rows(matrix.shape[0], self.rank, self.world_size)]
                local(matrix).add_(turned, alpha=-scale)

    def _look_ahead(self, bundle: Bundle) -> Tensor:
        """Nesterov's gradients (N, m, n) of a bundle; the momentum is an exponential average."""
        keep = self.param_groups[0]["momentum"]
        gradients = [self._whole.get(i, self._gradient(i)) for i in bundle.members]
        momenta = [self._momentum(index) for index in bundle.members]
        torch._foreach_lerp_(momenta, gradients, 1 - keep)
        ahead = torch._foreach_lerp(gradients, momenta, keep)
        return torch.stack([_wide(matrix, matrix) for matrix in ahead])

    def _gradient(self, index: int) -> Tensor:
        gradient = self.matrices[index].grad
        if gradient is None:
            name = self.names[index] if self.names else f"matrix {index}"
            raise RuntimeError(
                f"Muon: {name} of shape {tuple(self.matrices[index].shape)} has no gradient; "
                "expected one of every matrix, so each must take part in the loss."
            )
        return gradient

    def _momentum(self, index: int) -> Tensor:
        matrix = self.matrices[index]
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros(matrix.shape, dtype=matrix.dtype, device=matrix.device)
        momentum: Tensor = state["momentum"]
        return momentum

    def momenta(self) -> dict[int, Tensor]:
        """The momenta that this rank keeps, whole, by index of their matrix; not copies.

        All ranks' together are the optimizer's state: to be saved and, at any number of ranks,
        copied back in place.
        """
        mine = [b for b, owner in zip(self.bundles, self.owner, strict=True) if owner == self.rank]
        return {index: self._momentum(index) for bundle in mine for index in bundle.members}


def _wide(matrix: Tensor, like: Tensor) -> Tensor:
    """Rows no longer than columns, and back: transposed where `like` is tall."""
    return matrix.mT if like.shape[0] > like.shape[1] else matrix


def _wait(work: dist.Work | None) -> None:
    assert work is not None  # only ranks outside the group get none
    work.wait()
