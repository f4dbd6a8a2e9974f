"""Steps that Muon needs to reach AdamW's final loss, in the demo's training, on several seeds.

Both train the same model on the same draws. Peak rates are tuned on a stated grid with a seed that
is not scored: AdamW's one rate for all parameters; Muon's for the hidden matrices, with AdamW at
its own best rate for the rest. Weight decay, clipping, warmup and averaging are the same. AdamW
then trains its `--steps`; Muon trains whole schedules of fewer steps (`--shares` of them), since
WSD's cooldown is part of a training. What is compared is the loss of the averaged weights on fixed
noise over held-out events where there are some, else over the first batch, so no luck of a last
batch counts. The figure is the smallest share of the steps whose loss is at most AdamW's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from components import params
from components.pretraining import view
from components.pretraining.stage import Config
from components.pretraining.training import Training
from components.pretraining.windows import Windows

ROOT = Path(__file__).parents[2]


class HiddenAdamW(torch.optim.AdamW):
    """AdamW in Muon's place, on one rank."""

    update_norm = torch.zeros(())

    def reduce_gradients(self) -> None:
        """One rank's gradients are the mean already."""

    def owned(self) -> list[torch.nn.Parameter]:
        """All of them."""
        return list(self.param_groups[0]["params"])


def final_loss(folder: Path, config: Config, steps: int, optimizer: str) -> float:
    """Loss of the averaged weights after a whole training of `steps` steps."""
    windows = Windows(folder, config)
    windows.steps = min(steps, windows.steps)
    training = Training(windows, config)
    if optimizer == "adamw":
        training.muon = HiddenAdamW(  # type: ignore[assignment]
            training.muon.matrices, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
    for step in range(windows.steps):
        training.step(step, windows.batch(step, 0, 1))
    return _loss(training)


@torch.no_grad()
def _loss(training: Training) -> float:
    """Total loss of the averaged weights, the mean of four fixed draws of the noise."""
    batch = training.windows.validation()
    if batch is None:
        batch = training.windows.batch(0, 0, 1)
    for name, parameter in training.model.named_parameters():
        parameter.copy_(training.average[name])
    draws = [torch.Generator().manual_seed(seed) for seed in range(4)]
    return float(np.mean([float(training.model.losses(batch, d).total) for d in draws]))


def tuned(folder: Path, config: Config, steps: int, grid: list[float]) -> tuple[Config, Config]:
    """(for AdamW, for Muon): the rates with the lowest loss."""
    tried = {r: final_loss(folder, _rates(config, r, r), steps, "adamw") for r in grid}
    best = min(tried, key=tried.__getitem__)
    print(f"AdamW: {tried}", file=sys.stderr)
    own = {r: final_loss(folder, _rates(config, r, best), steps, "muon") for r in grid}
    print(f"Muon: {own}", file=sys.stderr)
    hidden = min(own, key=own.__getitem__)
    return _rates(config, best, best), _rates(config, hidden, best)


def _rates(config: Config, hidden: float, rest: float) -> Config:
    return config.model_copy(update={"muon_lr": hidden, "adamw_lr": rest})


def compare(
    folder: Path,
    config: Config,
    steps: int,
    seeds: list[int],
    grid: list[float],
    shares: list[float],
) -> dict[str, Any]:
    """All figures; the rates are tuned on a seed before the first scored one."""
    tuning = config.model_copy(update={"seed": max(seeds) + 1})
    adamw, own = tuned(folder, tuning, steps, grid)
    reached, losses = [], []
    for seed in seeds:
        goal = final_loss(folder, adamw.model_copy(update={"seed": seed}), steps, "adamw")
        row = {}
        for share in sorted(shares):
            given = own.model_copy(update={"seed": seed})
            row[share] = final_loss(folder, given, max(1, round(share * steps)), "muon")
            if row[share] <= goal:
                break
        reached.append(share if row[share] <= goal else None)
        losses.append({"adamw": goal, "muon": row})
        print(f"seed {seed}: {losses[-1]}", file=sys.stderr)
    return {
        "share_of_steps": reached,
        "worst": None if None in reached else max(r for r in reached if r is not None),
        "adamw_lr": adamw.adamw_lr,
        "muon_lr": own.muon_lr,
        "grid": grid,
        "steps": steps,
        "losses": losses,
    }


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, help="one seed instead of several")
    parser.add_argument("--data", type=Path, required=True, help="`data` of a run that is finished")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, help="instead of the project's, to be quicker")
    parser.add_argument("--grid", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.7, 0.85, 1.0])
    given = parser.parse_args()
    values = params.load(ROOT / "params.yaml")["pretraining"] | {"processes": 1}
    if given.batch_size:
        values["batch_size"] = given.batch_size
    config = Config.model_validate(values)
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory(prefix="wamflow-optimizers-") as name:
        folder = Path(name) / "view"
        folder.mkdir()
        dist.init_process_group("gloo", init_method=f"file://{name}/meet", rank=0, world_size=1)
        view.build(*(given.data / n for n in ("episodes", "captions", "plan")), folder, config)
        seeds = given.seeds if given.seed is None else [given.seed]
        figures = compare(folder, config, given.steps, seeds, given.grid, given.shares)
        dist.destroy_process_group()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
