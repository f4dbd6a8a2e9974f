"""One worker: `python -m torch.distributed.run ... -m components.pretraining.worker FOLDER`.

All ranks run the same loop. Gradients are averaged over gloo (CPU) or NCCL (GPU) in one flat
vector, whose sum over two ranks is the same from run to run; noise comes from a generator seeded
by (seed, step, rank), so that a resumed training draws what an undisturbed one would have drawn.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from components.errors import (
    DivergedError,
    OutOfSpaceError,
    StoppedError,
    UserError,
    WamflowError,
)
from components.outputs import is_full_disk
from components.pretraining import checkpoints, results
from components.pretraining.stage import Config
from components.pretraining.windows import Windows
from models.muon import Muon, split
from models.wam import Shape, WorldActionModel


class Training:
    """Model, averaged weights, two optimizers and the curve so far: all that a checkpoint holds."""

    def __init__(self, windows: Windows, config: Config) -> None:
        self.config, self.windows = config, windows
        torch.manual_seed(config.seed)
        self.device = torch.device(config.device, 0 if config.device == "cpu" else local_rank())
        self.model = WorldActionModel(shape(windows, config)).to(self.device)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        hidden, rest = split(self.model)
        self.muon = Muon(hidden.values(), config.muon_lr, config.momentum, config.weight_decay)
        self.adamw = torch.optim.AdamW(
            rest.values(), config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=True
        )
        self.curve = torch.zeros(windows.steps, len(results.TERMS))
        self.exposure = torch.zeros(len(windows.arrays["event_draws"]), dtype=torch.int64)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def step(self, step: int) -> None:
        """One optimizer step on the batch of `step`; DivergedError when something is not finite."""
        batch = self.windows.batch(step, self.rank, self.world_size).to(self.device)
        drawn = torch.from_numpy(self.windows.drawn(step))
        self.exposure += torch.bincount(drawn, minlength=len(self.exposure))
        random = torch.Generator().manual_seed(noise_seed(self.config.seed, step, self.rank))
        losses = self.model.losses(batch, random)
        losses.total.backward()
        terms = torch.stack([losses.total, losses.action, losses.video, losses.left]).detach()
        norm = self._reduce(terms)
        self.curve[step] = torch.cat([terms, norm[None]]).cpu()
        if not torch.isfinite(self.curve[step]).all():
            raise DivergedError(
                f"pretraining: step {step}: loss {terms.tolist()}, gradient norm {norm:.3g}; "
                "expected finite numbers. Lower pretraining.muon_lr or adamw_lr, or look for bad "
                "episodes."
            )
        for optimizer, peak in (
            (self.muon, self.config.muon_lr),
            (self.adamw, self.config.adamw_lr),
        ):
            optimizer.param_groups[0]["lr"] = peak * self._rate(step)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.model.parameters()], 1 - decay
        )

    def _reduce(self, terms: Tensor) -> Tensor:
        """Average gradients and loss terms over ranks, clip; returns the norm before clipping."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None] + [terms])
        dist.all_reduce(flat)
        flat /= self.world_size
        terms.copy_(flat[-len(terms) :])
        norm: Tensor = flat[: -len(terms)].norm()
        scale = (self.config.clip_norm / (norm + 1e-6)).clamp(max=1)
        pieces = (flat[: -len(terms)] * scale).split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return norm

    def _rate(self, step: int) -> float:
        """Warmup, stable, decay to zero (WSD), as a share of the peak rate."""
        share, config = (step + 1) / self.windows.steps, self.config
        up = share / config.warmup if config.warmup else 1.0
        down = (1 - share) / config.cooldown + 1e-3 if config.cooldown else 1.0
        return min(up, down, 1.0)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as named tensors."""
        named = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        named |= {f"average.{n}": p for n, p in self.average.items()}
        for name, optimizer in (("muon", self.muon), ("adamw", self.adamw)):
            for index, slots in optimizer.state_dict()["state"].items():
                named |= {f"{name}.{index}.{slot}": value for slot, value in slots.items()}
        return {n: t.contiguous().cpu() for n, t in named.items()} | {
            "curve": self.curve,
            "exposure": self.exposure,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state[f"model.{name}"])
                self.average[name].copy_(state[f"average.{name}"])
        self.curve.copy_(state["curve"])
        self.exposure.copy_(state["exposure"])
        for prefix, optimizer in (("muon", self.muon), ("adamw", self.adamw)):
            whole = optimizer.state_dict()
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                owner, _, rest = name.partition(".")
                if owner == prefix:
                    index, slot = rest.split(".", 1)
                    slots.setdefault(int(index), {})[slot] = value
            optimizer.load_state_dict(whole | {"state": slots})


def noise_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for each step of each rank, whatever the size of `seed`."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def shape(windows: Windows, config: Config) -> Shape:
    """The model's sizes: the configured ones and those that the data bring."""
    return Shape(
        **config.model.model_dump(),
        views=len(windows.info["cameras"]),
        text_width=windows.arrays["text"].shape[1],
        state_width=windows.arrays["state"].shape[1],
        action_width=windows.arrays["action"].shape[1],
    )


def train(windows: Windows, config: Config, key: str, out: Path | None) -> None:
    """The whole loop of one rank, from the last checkpoint to the results in `out` (rank 0)."""
    training, folder = Training(windows, config), checkpoints.store(key)
    start = 0
    if found := checkpoints.latest(folder):
        start, state = found
        training.restore(state)
    with _stop_requests() as asked, results.Log(training, start) as log:
        for step in range(start, windows.steps):
            training.step(step)
            log.after(step)
            stop = _any_rank(bool(asked), training.device)
            if (step + 1) % config.checkpoint_every == 0 or stop:
                _save(training, folder, step + 1)
            if stop:
                raise StoppedError(
                    f"pretraining: stopped by a signal after step {step + 1} of {windows.steps}; "
                    "its state is saved, run the stage again to go on."
                )
    if training.rank == 0 and out is not None:
        results.write(training, out)


def _save(training: Training, folder: Path, step: int) -> None:
    if training.rank == 0:
        checkpoints.save(folder, step, training.state())
    dist.barrier()


def _any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when it is on any, so that all stop after the same step."""
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value)
    return bool(value.item())


def local_rank() -> int:
    """This worker's number on its machine, as torchrun sets it."""
    return int(os.environ["LOCAL_RANK"])


def _check_world(config: Config) -> None:
    """The number of workers changes the bytes, so it must be the one that params.yaml says."""
    if dist.get_world_size() != config.processes:
        raise UserError(
            f"pretraining: {dist.get_world_size()} workers were started (nodes x workers of each), "
            f"but pretraining.processes is {config.processes}; make them equal."
        )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are noted and read at the end of a step."""
    asked: list[int] = []
    before = {
        s: signal.signal(s, lambda number, _: asked.append(number))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _known(error: Exception) -> WamflowError | None:
    """The failure by its class; None for a crash."""
    if is_full_disk(error):
        return OutOfSpaceError("pretraining: no space left on the disk; make room and run again.")
    return error if isinstance(error, WamflowError) else None


def main(folder: Path) -> int:
    """Read the job, join the group, train; a failure's class goes to `WAMFLOW_FAILURE`."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    config = Config.model_validate(job["config"])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(config.device == "cpu")
    if config.device == "cuda":
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if config.device == "cuda" else "gloo")
    try:
        _check_world(config)
        out = Path(job["out"]) if job["out"] else None
        train(Windows(Path(job["view"]), config), config, job["key"], out)
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        failure = {"type": type(known).__name__, "message": str(known)}
        Path(os.environ["WAMFLOW_FAILURE"]).write_text(json.dumps(failure))
        return known.exit_code
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
