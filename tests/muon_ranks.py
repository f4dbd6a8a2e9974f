"""Spawned gloo ranks that give Muon the same full gradients, or each its own; what they ended with.

Imported by tests and by the benchmark: functions that a spawned process can find by name.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from models.muon import Muon

Shapes = Sequence[tuple[int, int]]
SETTINGS = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}


def matrices(shapes: Shapes, seed: int) -> list[Tensor]:
    """Gaussian ones and, every second, ones of low rank with a little noise."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for index, (m, n) in enumerate(shapes):
        full = torch.randn(m, n, generator=random)
        rank = max(2, min(m, n) // 16)
        low = torch.randn(m, rank, generator=random) @ torch.randn(rank, n, generator=random)
        made.append(low + 1e-3 * full if index % 2 else full)
    return made


def stepped(
    shapes: Shapes, steps: int, seed: int, *, own: bool = False, resume: Path | None = None
) -> dict[str, Any]:
    """The matrices after `steps` updates, CPU seconds of a step, the momenta on rank 0.

    With `own` every rank has gradients of its own, to be averaged at the owners; else all have
    their mean. With `resume` the state of an earlier call is where it starts.
    """
    parameters = [nn.Parameter(m) for m in matrices(shapes, seed)]
    muon = Muon(parameters, **SETTINGS)
    first = 0
    if resume is not None:
        state = torch.load(resume, weights_only=True)
        first = state["step"]
        for index, momentum in muon.momenta().items():
            momentum.copy_(state["momenta"][index])
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
    used = []
    for step in range(first, first + steps):
        parts = [matrices(shapes, seed + 100 * step + rank + 1) for rank in (0, 1)]
        for index, parameter in enumerate(parameters):
            mean = (parts[0][index] + parts[1][index]) / 2
            parameter.grad = parts[muon.rank][index] if own else mean
        began = time.process_time()
        if own:
            muon.reduce_gradients()
        muon.step()
        used.append(time.process_time() - began)
    return {
        "parameters": [p.detach() for p in parameters],
        "momenta": muon.momenta(),
        "kept": sum("momentum" in state for state in muon.state.values()),
        "step": first + steps,
        "cpu_s": min(used),
    }


def _rank(rank: int, world_size: int, folder: str, job: Callable[..., Any], given: Any) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    try:
        torch.save(job(*given[0], **given[1]), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_ranks(world_size: int, job: Callable[..., Any], *given: Any, **named: Any) -> list[Any]:
    """What `job` returned on each of `world_size` new processes of one gloo group."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world_size, folder, job, (given, named)), world_size)
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)
        ]
