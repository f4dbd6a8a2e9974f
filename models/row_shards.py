"""Matrices that FSDP2 keeps by rows: whole at their owner for one step, then rows everywhere.

A sharded matrix (m, n) is a DTensor with `Shard(0)` over all ranks; rank r holds rows r * c to
(r + 1) * c, c = ceil(m / ranks), as `torch.chunk` cuts. The last ranks may hold fewer, or none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def are_sharded(matrices: Sequence[Tensor]) -> bool:
    """Whether FSDP2 holds them. ValueError for a mixture, or for another way of sharding."""
    kinds = [m.placements if isinstance(m, DTensor) else None for m in matrices]
    if all(kind is None for kind in kinds):
        return False
    if all(kind == (Shard(0),) for kind in kinds):
        return True
    raise ValueError(f"Muon: matrices are placed as {set(kinds)}; expected (Shard(0),) of all.")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its rows, or all of it."""
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held


def rows(height: int, rank: int, ranks: int) -> slice:
    """The rows of rank `rank` of a sharded matrix of `height` rows."""
    size = -(-height // ranks)
    return slice(min(rank * size, height), min((rank + 1) * size, height))


def send_to_owner(
    parts: Sequence[Tensor], shapes: Sequence[torch.Size], owner: int,
    group: dist.ProcessGroup | None,
) -> tuple[list[Tensor] | None, dist.Work | None]:  # fmt: skip
    """Start sending this rank's rows of some matrices; (what `whole` reads at the owner, work)."""
    ranks = dist.get_world_size(group)
    flat = torch.cat(
        [
            F.pad(part, (0, 0, 0, -(-shape[0] // ranks) - part.shape[0])).flatten()
            for part, shape in zip(parts, shapes, strict=True)
        ]
    )
    mine = dist.get_rank(group) == owner
    into = [torch.empty_like(flat) for _ in range(ranks)] if mine else None
    return into, dist.gather(flat, into, group_dst=owner, group=group, async_op=True)


def whole(received: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The matrices that all ranks' rows make together."""
    heights = [-(-shape[0] // len(received)) for shape in shapes]
    sizes = [height * shape[1] for height, shape in zip(heights, shapes, strict=True)]
    by_rank = [flat.split(sizes) for flat in received]
    return [
        torch.cat([pieces[i].view(heights[i], shape[1]) for pieces in by_rank])[: shape[0]]
        for i, shape in enumerate(shapes)
    ]
