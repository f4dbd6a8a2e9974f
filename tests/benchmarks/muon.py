"""Muon's exactness and cost, beside torch.optim.Muon and AdamW in the same run.

Prints what it measures case by case on standard error and one JSON line last. Exits non-zero where
our update is too far from float64, or ranks do not agree bit by bit.

- `err_*`: relative Frobenius distance of one update to the same step in float64, the worst of all
  shapes and gradients; `orthogonality`: || O O^T - I || / sqrt(m), the worst for Gaussian ones.
- `ratio_vs_torch_muon`: step time, both in bfloat16; `ratio_vs_torch_muon_float32`: ours in
  float32, as a CPU runs it, over theirs, which knows bfloat16 only. `overhead_vs_adamw`: of a
  training step.
- `ranks`: CPU seconds of a rank's optimizer step, given the same full gradients (the slowest rank).
CPU times are of one thread and count the process's own seconds, so other work disturbs them little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from models.batch import Batch
from models.muon import Muon, split
from models.newton_schulz import orthogonalise
from models.wam import Shape, WorldActionModel
from tests.muon_ranks import on_ranks, stepped

ROOT = Path(__file__).parents[2]
EXACT = [(128, 128), (128, 512), (512, 128), (256, 1024), (768, 768), (1536, 384), (1536, 1536)]
MIX = [(128, 128)] * 16 + [(128, 512), (512, 128)] * 4 + [(512, 512)] * 8 + [(512, 1536)] * 4
MIX += [(1536, 512)] * 4 + [(1536, 1536)] * 4
COEFFICIENTS = 3.4445, -4.7750, 2.0315
MOST_FLOAT32, MOST_BF16_RATIO = 1e-4, 1.2


def gradient(m: int, n: int, kind: str, random: torch.Generator) -> Tensor:
    """Gaussian, or of rank min(m, n) / 16."""
    if kind == "gaussian":
        return torch.randn(m, n, generator=random)
    rank = min(m, n) // 16
    low = torch.randn(m, rank, generator=random) @ torch.randn(rank, n, generator=random)
    return low / rank**0.5


def reference(gradients: list[Tensor], momentum: float) -> Tensor:
    """The last of some updates in float64, written down as the papers do: no batches, no tricks."""
    a, b, c = COEFFICIENTS
    buffer = torch.zeros_like(gradients[0], dtype=torch.float64)
    for g in gradients:
        buffer = momentum * buffer + (1 - momentum) * g.double()
        x = (1 - momentum) * g.double() + momentum * buffer
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        z = b * gram + c * gram @ gram
        x = a * x + (z @ x if x.shape[0] <= x.shape[1] else x @ z)
    return x * 0.2 * max(x.shape) ** 0.5


def update(make: Callable[[list[nn.Parameter]], Any], gradients: list[Tensor]) -> Tensor:
    """What the last step took away from a parameter, learning rate 1, no decay."""
    parameter = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = make([parameter])
    for g in gradients:
        with torch.no_grad():
            parameter.zero_()
        parameter.grad = g.clone()
        optimizer.step()
    return -parameter.detach()


def ours(precision: torch.dtype | None = None) -> Callable[[list[nn.Parameter]], Any]:
    return lambda p: Muon(p, lr=1.0, momentum=0.95, weight_decay=0.0, precision=precision)


def theirs(parameters: list[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(
        parameters, lr=1.0, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )


def exactness(seed: int, device: torch.device) -> dict[str, float]:
    """Errors over all shapes and kinds; leaves with a message where a bound is broken."""
    random = torch.Generator().manual_seed(seed)
    worst = dict.fromkeys(("err_float32", "err_bf16", "err_bf16_torch", "orthogonality"), 0.0)
    for m, n in EXACT:
        for kind in ("gaussian", "low rank"):
            gradients = [gradient(m, n, kind, random).to(device) for _ in range(2)]
            expected = reference(gradients, 0.95)
            found = {
                name: float((update(make, gradients) - expected).norm() / expected.norm())
                for name, make in (
                    ("err_float32", ours(torch.float32)),
                    ("err_bf16", ours(torch.bfloat16)),
                    ("err_bf16_torch", theirs),
                )
            }
            if kind == "gaussian":
                o = orthogonalise(gradients[0][None])[0].double()
                o = o if m <= n else o.T
                eye = torch.eye(o.shape[0], device=device)
                found["orthogonality"] = float((o @ o.T - eye).norm() / eye.norm())
            print(f"{m} x {n} {kind}: {rounded(found)}", file=sys.stderr)
            if found["err_float32"] > MOST_FLOAT32:
                sys.exit(
                    f"float32 is {found['err_float32']:.1e} off, at most {MOST_FLOAT32} wanted"
                )
            if found["err_bf16"] > MOST_BF16_RATIO * found["err_bf16_torch"]:
                sys.exit(f"bfloat16 errs more than {MOST_BF16_RATIO} times as torch.optim.Muon")
            worst = {k: max(v, found.get(k, 0.0)) for k, v in worst.items()}
    return worst


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the device by events on a GPU, of this process's CPU elsewhere."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    began = time.process_time()
    work()
    return time.process_time() - began


def step_ratios(seed: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Our step over torch's on the same matrices, in turns; medians."""
    random = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(m, n, generator=random).to(device) for m, n in MIX]
    optimizers: dict[str, Any] = {}
    for name, make in (
        ("torch", theirs),
        ("bf16", ours(torch.bfloat16)),
        ("float32", ours(torch.float32)),
    ):
        parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for parameter, g in zip(parameters, gradients, strict=True):
            parameter.grad = g
        optimizers[name] = make(parameters)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(repeats + 1):  # the first round only warms up
        for name, optimizer in optimizers.items():
            times[name].append(seconds(optimizer.step, device))
    median = {name: statistics.median(t[1:]) for name, t in times.items()}
    print(f"step of {len(MIX)} matrices, seconds: {rounded(median)}", file=sys.stderr)
    return {
        "ratio_vs_torch_muon": median["bf16"] / median["torch"],
        "ratio_vs_torch_muon_float32": median["float32"] / median["torch"],
    }


def model_of(device: torch.device) -> tuple[WorldActionModel, Batch]:
    """The demo's model and batch; on a GPU 1.3 B parameters and about 8,192 video tokens."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())["pretraining"]
    sizes, size = dict(values["model"]), values["batch_size"]
    if device.type == "cuda":
        sizes |= {"width": 1536, "depth": 11, "heads": 12}
        patches = (sizes["key_px"] // sizes["key_patch_px"]) ** 2
        spots = (sizes["future_px"] // sizes["future_patch_px"]) ** 2
        size = 8192 // (2 * (patches + spots * sizes["future_frames"]))
    model = WorldActionModel(
        Shape(**sizes, views=2, text_width=384, state_width=4, action_width=4)
    ).to(device)
    batch = Batch.fake(
        size, key_px=sizes["key_px"], future_px=sizes["future_px"], text=384,
        future=sizes["future_frames"], steps=sizes["max_steps"],
    )  # fmt: skip
    return model, batch.to(device)


def overhead(seed: int, device: torch.device, repeats: int) -> float:
    """Seconds of forward, backward, Muon and AdamW over the same with AdamW alone, minus one."""
    torch.manual_seed(seed)
    model, batch = model_of(device)
    hidden, rest = split(model)
    kinds: dict[str, list[Any]] = {
        "muon": [
            Muon(hidden.values(), 1e-6, 0.95, 0.01),
            torch.optim.AdamW(rest.values(), 1e-6, foreach=True),
        ],
        "adamw": [torch.optim.AdamW(model.parameters(), 1e-6, foreach=True)],
    }

    def gradients() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            total = model.losses(batch, torch.Generator().manual_seed(seed)).total
        total.backward()

    def step(optimizers: list[Any]) -> None:
        for optimizer in optimizers:
            optimizer.step()

    times: dict[str, list[float]] = {"model": [], "muon": [], "adamw": []}
    for _ in range(repeats + 1):
        model.zero_grad()
        times["model"].append(seconds(gradients, device))
        for name, optimizers in kinds.items():
            times[name].append(seconds(lambda o=optimizers: step(o), device))
    median = {name: statistics.median(t[1:]) for name, t in times.items()}
    numbers = sum(p.numel() for p in model.parameters())
    print(
        f"{numbers:,} parameters, batch {len(batch)}, seconds: {rounded(median)}", file=sys.stderr
    )
    return (median["model"] + median["muon"]) / (median["model"] + median["adamw"]) - 1


def ranks(seed: int, steps: int) -> dict[str, float]:
    """CPU seconds of the slowest rank of 1, 2 and 4; all must end with the same bits."""
    used, first = {}, None
    for world_size in (1, 2, 4):
        results = on_ranks(world_size, stepped, MIX, steps, seed)
        used[str(world_size)] = max(result["cpu_s"] for result in results)
        first = first or results[0]
        for result in results:
            for ours, one in zip(result["parameters"], first["parameters"], strict=True):
                if not torch.equal(ours, one):
                    sys.exit(f"{world_size} ranks gave another update than 1; expected equal bits")
        print(f"{world_size} ranks: {used[str(world_size)]:.3f} CPU s a rank", file=sys.stderr)
    return used


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in figures.items()}


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0, help="of gradients and weights")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds; medians are printed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"device": "cpu"}
    if device.type == "cuda":
        result["device"] = torch.cuda.get_device_name()
    result |= rounded(exactness(given.seed, device))
    result |= rounded(step_ratios(given.seed, device, given.repeats))
    result["overhead_vs_adamw"] = float(f"{overhead(given.seed, device, given.repeats):.3g}")
    result["ranks"] = rounded(ranks(given.seed, 2))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
