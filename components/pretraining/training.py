"""The training of one worker: model, averages of what learns, two optimizers, curve; one step.

Gradients of a replicated model are averaged over gloo (CPU) or NCCL (GPU): those of hidden matrices
at their owner, the rest in one flat vector on all ranks; FSDP2 averages those of a sharded one.
The sums are the same from run to run. Noise comes from a generator seeded by (seed, step, rank), so
that a resumed training draws what an undisturbed one would have drawn, and no random state is kept.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from components.errors import DivergedError
from components.pretraining import chosen, guards, placement
from components.pretraining.schedule import rate
from components.pretraining.stage import Config
from components.pretraining.windows import Windows
from models.batch import Batch
from models.muon import Muon, split
from models.packed import Packed
from models.reasoner import Reasons
from models.row_shards import local
from models.wam import WorldActionModel


def columns(terms: tuple[str, ...]) -> tuple[str, ...]:
    """Of the curve, for a model's loss terms; those up to packing are means over all ranks."""
    return ("loss", *terms, "packing", "gradient_norm", "update_norm", "rate", "skipped")


CURVE = columns(WorldActionModel.terms)
SKIPPED = -1  # the column


class Training:
    """All that a checkpoint holds, and `step`."""

    def __init__(self, windows: Windows, config: Config) -> None:
        self.config, self.windows = config, windows
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(config.seed)
        self.device = torch.device(config.device, 0 if config.device == "cpu" else local_rank())
        self.model = placement.place(chosen.model(windows, config).to(self.device), config)
        hidden, rest = split(self.model)
        self.learning = hidden | rest
        self.average = {name: p.detach().clone() for name, p in self.learning.items()}
        self.muon = Muon(hidden.items(), config.muon_lr, config.momentum, config.weight_decay)
        self.rest = list(rest.values())
        self.adamw = torch.optim.AdamW(
            self.rest, config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=True
        )
        self.columns = columns(self.model.terms)
        self.curve = torch.zeros(windows.steps, len(self.columns))
        self.drawn = torch.zeros(2, len(windows.arrays["event_draws"]), dtype=torch.int64)

    def step(self, step: int, batch: Batch | Packed | Reasons) -> None:
        """One optimizer step on this rank's share of the batch of `step`.

        DivergedError for a bad step (`guards.py`), where it is not to be skipped.
        """
        batch = batch.to(self.device)
        random = torch.Generator().manual_seed(noise_seed(self.config.seed, step, self.rank))
        with placement.autocast(self.config):
            losses = self.losses(batch, random)
        losses["loss"].backward()
        terms = torch.stack([*losses.values(), batch.packing]).detach()
        norm = self._reduce(terms)
        good = self.curve[:step, SKIPPED] == 0
        past = self.curve[:step, 0][good]
        wrong = guards.fault(terms, norm, past, self.config.spike_factor)
        moved = torch.zeros(()) if wrong else self._update(step)
        share = rate(step, self.windows.steps, self.config)
        last = torch.tensor([float(norm), float(moved), share, float(bool(wrong))])
        self.curve[step] = torch.cat([terms.cpu(), last])
        drawn = torch.from_numpy(self.windows.drawn(step))
        self.drawn[int(bool(wrong))] += torch.bincount(drawn, minlength=self.drawn.shape[1])
        if wrong:
            self._bad(step, wrong)

    def losses(self, batch: Batch | Packed | Reasons, random: torch.Generator) -> dict[str, Tensor]:
        """The total, `loss`, and the model's terms by name, for a batch on the device."""
        ask: Any = self.model.losses
        found = ask(*batch.with_noise(random))
        return {"loss": found.total} | {name: getattr(found, name) for name in self.model.terms}

    def _update(self, step: int) -> Tensor:
        """Both optimizers and the average; the norm of the step, without weight decay."""
        before = [local(p.detach()).clone() for p in self.rest]
        share = rate(step, self.windows.steps, self.config)
        for optimizer, peak in (
            (self.muon, self.config.muon_lr),
            (self.adamw, self.config.adamw_lr),
        ):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.config.ema, (1 + step) / (10 + step))
        now = [local(p.detach()) for p in self.learning.values()]
        torch._foreach_lerp_([local(a) for a in self.average.values()], now, 1 - decay)
        torch._foreach_sub_(before, [local(p.detach()) for p in self.rest])
        squares = _squares(before, self.device)
        if self.config.parallel == "sharded":
            dist.all_reduce(squares)
        return (squares + self.muon.update_norm**2).sqrt()

    def _bad(self, step: int, wrong: str) -> None:
        """Change nothing and say so, or end the training."""
        self.muon.zero_grad()
        self.adamw.zero_grad()
        in_a_row = guards.in_a_row(self.curve[:, SKIPPED], step)
        if self.config.bad_step == "stop" or in_a_row >= guards.IN_A_ROW:
            raise DivergedError(
                f"pretraining: step {step}: {wrong}"
                + (f"; {in_a_row} steps in a row were skipped" if in_a_row > 1 else "")
                + ". Lower pretraining.muon_lr or adamw_lr, or look for bad episodes."
            )
        if self.rank == 0:
            print(f"pretraining: step {step} skipped, its draws teach nothing: {wrong}", flush=True)

    def _reduce(self, terms: Tensor) -> Tensor:
        """Average gradients and loss terms over ranks, clip; returns the norm before clipping."""
        sharded = self.config.parallel == "sharded"
        squares = self._average_sharded(terms) if sharded else self._average_replicated(terms)
        norm: Tensor = squares.sqrt()
        scale = (self.config.clip_norm / (norm + 1e-6)).clamp(max=1)
        mine = self.model.parameters() if sharded else (*self.muon.owned(), *self.rest)
        torch._foreach_mul_([local(p.grad) for p in mine if p.grad is not None], scale)
        return norm

    def _average_sharded(self, terms: Tensor) -> Tensor:
        """FSDP2 has averaged the gradients; the terms and the gradients' squared norm are left."""
        mine = [local(p.grad) for p in self.model.parameters() if p.grad is not None]
        both = torch.cat([terms / self.world_size, _squares(mine, self.device)[None]])
        dist.all_reduce(both)
        terms.copy_(both[:-1])
        return both[-1]

    def _average_replicated(self, terms: Tensor) -> Tensor:
        """Gradients of hidden matrices at their owner only, the rest everywhere, in one vector."""
        self.muon.reduce_gradients()
        rest = [p for p in self.rest if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in rest if p.grad is not None] + [terms])
        dist.all_reduce(flat)
        flat /= self.world_size
        terms.copy_(flat[-len(terms) :])
        pieces = flat[: -len(terms)].split([p.numel() for p in rest])
        for parameter, piece in zip(rest, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        squares = _squares([p.grad for p in self.muon.owned() if p.grad is not None], self.device)
        dist.all_reduce(squares)
        total: Tensor = squares + flat[: -len(terms)].norm() ** 2
        return total

    @torch.no_grad()
    def take_average(self) -> None:
        """The weights become their averages; there is no training after that."""
        for name, parameter in self.learning.items():
            parameter.copy_(self.average[name])

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as named tensors that are loaded in place.

        Replicated ones are the same on all ranks, sharded ones DTensors, each momentum is its
        owner's. What is frozen is as the model began, and no part of it.
        """
        named = {f"model.{n}": p.detach() for n, p in self.learning.items()}
        named |= {f"average.{n}": p for n, p in self.average.items()}
        named |= {f"muon.{index}.momentum": m for index, m in self.muon.momenta().items()}
        for index, parameter in enumerate(self.rest):
            slots = self.adamw.state[parameter]
            if not slots:  # as AdamW itself begins
                slots["step"] = torch.tensor(0.0)
                slots["exp_avg"] = torch.zeros_like(parameter)
                slots["exp_avg_sq"] = torch.zeros_like(parameter)
            named |= {f"adamw.{index}.{slot}": value for slot, value in slots.items()}
        return named | {"curve": self.curve, "drawn": self.drawn}


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Sum of the squares of all numbers."""
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack([t.norm() ** 2 for t in tensors]).sum()


def noise_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for each step of each rank, whatever the size of `seed`."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def local_rank() -> int:
    """This worker's number on its machine, as torchrun sets it."""
    return int(os.environ["LOCAL_RANK"])
