"""Steps that Muon needs to reach AdamW's final loss, in the demo's training, on several seeds.

Both train the same model on the same draws. Peak rates are tuned with a seed that is not scored, on
the grid of powers of two times 0.001, from 0.002 to either side until the loss rises: AdamW's one
rate for all parameters, in `--steps` steps; Muon's for the hidden matrices, with AdamW at its own
best rate for the rest, in `--tuned-at` of them, since a shorter training may want a higher rate.
Weight decay, clipping, warmup and averaging are the same. AdamW then trains its `--steps`; Muon
trains whole schedules of fewer steps (`--shares` of them), since WSD's cooldown is part of a
training. What is compared is the loss of the averaged weights on fixed noise over held-out events
where there are some, else over the first batch, so no luck of a last batch counts. The figure is
the smallest share of the steps whose loss is at most AdamW's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from components import params
from components.pretraining import chosen, view
from components.pretraining.stage import Config
from components.pretraining.training import Training

ROOT = Path(__file__).parents[2]


class HiddenAdamW(torch.optim.AdamW):
    """AdamW in Muon's place, on one rank."""

    update_norm = torch.zeros(())

    def reduce_gradients(self) -> None:
        """One rank's gradients are the mean already."""

    def owned(self) -> list[torch.nn.Parameter]:
        """All of them."""
        return list(self.param_groups[0]["params"])


class Study:
    """Trainings of one view; losses are kept in `known`, so that a study goes on where it ended."""

    def __init__(self, folder: Path, config: Config, known: Path) -> None:
        self.folder, self.config, self.file = folder, config, known
        lines = known.read_text().splitlines() if known.exists() else []
        self.known = {tuple(key): loss for key, loss in map(json.loads, lines)}

    def loss(self, optimizer: str, seed: int, steps: int, hidden: float, rest: float) -> float:
        """Loss of the averaged weights after a whole training."""
        key = (optimizer, seed, steps, hidden, rest)
        if key not in self.known:
            rates = {"seed": seed, "muon_lr": hidden, "adamw_lr": rest}
            config = self.config.model_copy(update=rates)
            self.known[key] = final_loss(self.folder, config, steps, optimizer)
            with self.file.open("a") as file:
                print(json.dumps([key, self.known[key]]), file=file)
            print(f"{key}: {self.known[key]:.4f}", file=sys.stderr, flush=True)
        return self.known[key]


def final_loss(folder: Path, config: Config, steps: int, optimizer: str) -> float:
    """Loss of the averaged weights after a whole training of `steps` steps."""
    windows = chosen.windows(folder, config)
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
    training.take_average()
    draws = [torch.Generator().manual_seed(seed) for seed in range(4)]
    return float(np.mean([float(training.losses(batch, d)["loss"]) for d in draws]))


def lowest(loss: Callable[[float], float], start: float = 2e-3) -> tuple[float, list[float]]:
    """The rate whose halved and doubled ones are no better, and all that were tried."""
    tried = {start: loss(start)}
    while True:
        best = min(tried, key=tried.__getitem__)
        near = [rate for rate in (best * 2, best / 2) if rate not in tried]
        if not near:
            return best, sorted(tried)
        tried[near[0]] = loss(near[0])


def compare(
    study: Study, steps: int, seeds: list[int], shares: list[float], tuned_at: float = 0.7
) -> dict[str, Any]:
    """All figures; the rates are tuned on a seed after the last scored one."""
    own = max(seeds) + 1
    rest, adamw_grid = lowest(lambda rate: study.loss("adamw", own, steps, rate, rate))
    fewer = max(1, round(tuned_at * steps))
    hidden, muon_grid = lowest(lambda rate: study.loss("muon", own, fewer, rate, rest))
    reached, losses = [], []
    for seed in seeds:
        goal = study.loss("adamw", seed, steps, rest, rest)
        row: dict[float, float] = {}
        for share in sorted(shares):
            row[share] = study.loss("muon", seed, max(1, round(share * steps)), hidden, rest)
            if row[share] <= goal:
                break
        reached.append(share if row[share] <= goal else None)
        losses.append({"adamw": goal, "muon": row})
    return {
        "share_of_steps": reached,
        "worst": None if None in reached else max(r for r in reached if r is not None),
        "adamw_lr": rest,
        "muon_lr": hidden,
        "adamw_grid": adamw_grid,
        "muon_grid": muon_grid,
        "steps": steps,
        "muon_tuned_at": tuned_at,
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
    parser.add_argument("--known", type=Path, help="file of losses, to go on with a study")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.7, 0.85, 1.0])
    parser.add_argument("--tuned-at", type=float, default=0.7, help="share of the steps")
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
        study = Study(folder, config, given.known or Path(name) / "known.jsonl")
        figures = compare(study, given.steps, seeds, given.shares, given.tuned_at)
        dist.destroy_process_group()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
