"""Tokens a second, MFU and peak memory of training steps, for each preset that fits this machine.

`small` is the trainer's own step on the small model of params.yaml, the others are the full models
of `models/presets.py`: forward, backward and both optimizers. FLOPs are those that FlopCounterMode
counts for forward and backward; MFU is their rate over the best rate that products of matrices of
this device reach here and now, measured in the same run and the same precision. On a CPU one thread
computes and seconds are CPU seconds. A preset that does not fit, or would take too long without a
GPU, is named with the reason. Each runs in a process of its own, and so does its peak of memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from components import params
from components.pretraining.stage import Config
from models.batch import Batch
from models.costs import costs
from models.draws import Chances, collate_draws, draw
from models.muon import Muon, split
from models.presets import PRESETS
from models.rows import collate
from models.wall import WallModel
from models.wam import Shape, WorldActionModel

ROOT = Path(__file__).parents[2]
ON_CPU_TFLOP = 0.5  # of one step; more would take minutes
GIB = 2**30


def best_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some square products of matrices."""
    rates = []
    for size in (512, 1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(4):
            began = _seconds(device)
            a @ b
            rates.append(2 * size**3 / (_seconds(device) - began))
    return max(rates)


def _seconds(device: str) -> float:
    """Of the clock, when the GPU has done all it was given; of one CPU, which others may share."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def small(config: Config, seed: int) -> tuple[Callable[[], torch.Tensor], torch.nn.Module, int]:
    """(loss of one step, model, tokens of it) of the small model, one worker's share."""
    m = config.model
    size, views = config.batch_size // config.processes, 2
    torch.manual_seed(seed)
    model = WorldActionModel(
        Shape(**m.model_dump(), views=views, text_width=384, state_width=12, action_width=4)
    ).to(config.device)
    batch = Batch.fake(
        size, views, m.key_px, m.future_px, m.future_frames, 12, 4, m.max_steps, 384, seed
    ).to(torch.device(config.device))
    pictures = (m.key_px // m.key_patch_px) ** 2
    pictures += m.future_frames * (m.future_px // m.future_patch_px) ** 2
    tokens = size * (views * pictures + m.action_samples * m.max_steps // m.action_patch_steps)
    return lambda: model.losses(batch, torch.Generator().manual_seed(seed)).total, model, tokens


def full(name: str, device: str, seed: int) -> tuple[Callable[[], torch.Tensor], WallModel, int]:
    """The same of a full model, one event of two seconds, both towers learning together."""
    preset = PRESETS[name]
    torch.manual_seed(seed)
    with torch.device(device):
        model = WallModel(replace(preset.shape, coupling="symmetric"))
    window = preset.window(2.0)
    chances = Chances(
        coupling="symmetric", action_samples=1, shift=preset.shape.shift, tube_probability=1.0,
        tube_side=2, patch_steps=preset.shape.action.patch_steps,
    )  # fmt: skip
    drawn = collate_draws([draw(window, chances, torch.Generator().manual_seed(seed))])
    rows = collate([window], preset.shape.limits)
    at = torch.device(device)
    rows, drawn = rows.to(at), drawn.to(at)
    tokens = rows.inside.numel() + rows.actions.shape[-2]
    return lambda: model.losses(rows, drawn).total, model, tokens


def measured(name: str, device: str, precision: str, steps: int, seed: int) -> dict[str, Any]:
    """Figures of one preset, in a process of its own."""
    torch.set_num_threads(1)
    dtype = getattr(torch, precision)
    if name == "small":
        values = params.load(ROOT / "params.yaml")["pretraining"]
        config = Config.model_validate(values | {"device": device})
        loss, model, tokens = small(config, seed)
    else:
        loss, model, tokens = full(name, device, seed)
    hidden, rest = split(model)
    learning = [{n: p for n, p in part.items() if p.requires_grad} for part in (hidden, rest)]
    muon = Muon(learning[0].values(), 1e-4, 0.95, 0.01)
    adamw = torch.optim.AdamW(learning[1].values(), 1e-4, foreach=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss()
        value.backward()
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is None:  # no part in this loss
                parameter.grad = torch.zeros_like(parameter)
        muon.step()
        adamw.step()
        muon.zero_grad()
        adamw.zero_grad()

    with FlopCounterMode(display=False) as counter:
        loss().backward()
    muon.zero_grad()
    adamw.zero_grad()
    step()
    began = _seconds(device)
    for _ in range(steps):
        step()
    seconds = (_seconds(device) - began) / steps
    peak = best_rate(device, dtype)
    flops = counter.get_total_flops()
    on_gpu = device == "cuda"
    memory = torch.cuda.max_memory_allocated() if on_gpu else _peak_rss()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_s": round(tokens / seconds, 1),
        "step_s": round(seconds, 4),
        "tflop_a_step": round(flops / 1e12, 4),
        "mfu": round(flops / seconds / peak, 3),
        "best_gemm_gflops": round(peak / 1e9, 1),
        "peak_memory_gib": round(memory / GIB, 2),
    }


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def unfit(name: str, device: str) -> str | None:
    """Why a preset is not measured here; None when it is."""
    if name not in PRESETS:
        return None
    cost = costs(PRESETS[name])
    need = cost.video_training_gb * 1e9 / GIB
    flops = cost.video_training_tflop * 2
    if device == "cpu" and flops > ON_CPU_TFLOP:
        return f"no GPU: one step takes {flops:.3g} TFLOP and {need:.0f} GiB"
    room = torch.cuda.get_device_properties(0).total_memory / GIB if device == "cuda" else need
    return f"needs {need:.0f} GiB, the GPU has {room:.0f}" if need > room else None


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    parser.add_argument("--presets", nargs="+", default=["small", *PRESETS])
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bfloat16" if device == "cuda" else "float32"
    found: dict[str, Any] = {}
    for name in given.presets:
        if why := unfit(name, device):
            found[name] = {"skipped": why}
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            job = (name, device, precision, given.steps, given.seed)
            found[name] = alone.submit(measured, *job).result()
    print(json.dumps({"device": device, "precision": precision, "presets": found}))


if __name__ == "__main__":
    main()
