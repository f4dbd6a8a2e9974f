"""The whole training of one worker: from the last checkpoint to the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from components.errors import StoppedError
from components.pretraining import checkpoints, results
from components.pretraining.batches import Batches
from components.pretraining.log import Log
from components.pretraining.saver import Saver
from components.pretraining.stage import Config
from components.pretraining.training import Training
from components.pretraining.windows import Windows


def train(windows: Windows, job: dict[str, Any], config: Config, asked: list[int]) -> None:
    """Train to the end of the receipt; rank 0 writes the results.

    `asked` is not empty once a signal asks to stop: StoppedError when the state is saved.
    """
    training = Training(windows, config)
    saver = Saver(
        checkpoints.store(job["key"]), config.keep_checkpoints, config.timeout_s, _about(training)
    )
    start = saver.resume(training.state())
    batches = Batches(windows, start, training.rank, training.world_size, config.timeout_s)
    every = max(1, config.checkpoint_every // 2)
    with Log(training, batches, job["key"]) as log:
        for step, batch in batches:
            training.step(step, batch)
            log.after(step)
            done = step + 1
            stop = _any_rank(bool(asked), training.device)
            if stop or done % every == 0 or done == windows.steps:
                saver.save(done, training.state())
            if stop or config.checkpoint_every == 1:
                saver.wait()
            if stop:
                raise StoppedError(
                    f"pretraining: stopped by a signal after step {done} of {windows.steps}; "
                    "its state is saved, run the stage again to go on."
                )
        saver.wait()
    results.write(training, Path(job["out"]) if job["out"] else None)
    dist.barrier(group=saver.group)  # no node removes its states before the results are written


def _about(training: Training) -> dict[str, Any]:
    """What a state belongs to; all that is random follows from the seeds and the step."""
    return {
        "plan_sha256": training.windows.info["receipt"]["plan_sha256"],
        "receipt_seed": training.windows.info["receipt"]["seed"],
        "seed": training.config.seed,
        "batch_size": training.config.batch_size,
        "world_size": training.world_size,
        "steps": training.windows.steps,
    }


def _any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when it is on any, so that all stop after the same step."""
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value)
    return bool(value.item())
