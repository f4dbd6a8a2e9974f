"""The model on its workers: whole on each or split by FSDP2, and how its blocks compute.

Sources: torch.distributed.fsdp.fully_shard (FSDP2), torch.utils.checkpoint, torch.compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from components.pretraining.stage import Config

M = TypeVar("M", bound=nn.Module)


def place(model: M, config: Config) -> M:
    """The same model, its blocks recomputed, compiled and sharded as `config` says."""
    for block in blocks(model):
        if config.recompute:
            _recompute(block)
        if config.compile:
            block.compile()
    if config.parallel == "sharded":
        mesh = init_device_mesh(config.device, (dist.get_world_size(),))
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
            if hasattr(block, "remember"):  # its keys and values are asked for before its forward
                register_fsdp_forward_method(block, "remember")
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "losses")
    return model


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of all towers: members of lists that are called `blocks`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] == "blocks":
            yield from module


def _recompute(block: nn.Module) -> None:
    forward: Any = block.forward

    def recomputed(*inputs: Any, **named: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    block.forward = recomputed


def full(tensor: Tensor) -> Tensor:
    """The whole tensor of one that may be sharded; all workers must call."""
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole


def autocast(config: Config) -> torch.autocast:
    """bfloat16 where it is safe; nothing with float32."""
    return torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bfloat16")
