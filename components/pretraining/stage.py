"""Pretraining: follows the sampling receipt and trains a World Action Model with Muon.

`run` prepares what all ranks share (decoded frames, signals, caption features), then starts
`config.processes` workers (`worker.py`, `loop.py`) with torchrun, or takes this pod's place in a
gang where `PET_*` variables describe one. The workers keep their checkpoints in a store outside the
outputs, so a killed or stopped training goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from components.outputs import whole_folder
from components.pretraining.recipe import FullConfig


class ModelConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of the two towers of the small model."""

    width: int = Field(ge=16, description="Width of both towers; a multiple of heads.")
    depth: int = Field(ge=1, description="Blocks of each tower.")
    heads: int = Field(ge=1, description="Attention heads.")
    key_px: int = Field(ge=16, description="Key frames are scaled to this many pixels a side.")
    key_patch_px: int = Field(ge=2, description="Patch of a key frame, pixels a side.")
    future_px: int = Field(ge=8, description="Future frames are scaled to this many pixels a side.")
    future_patch_px: int = Field(ge=2, description="Patch of a future frame, pixels a side.")
    future_frames: int = Field(
        ge=1, description="Future frames of an event that the video predicts."
    )
    action_patch_steps: int = Field(ge=1, description="Control steps in one action token.")
    max_steps: int = Field(ge=4, description="Longest window of an event, control steps.")
    action_samples: int = Field(
        ge=1,
        description="Noise draws of the action for each pass of the video (1-to-N_d coupling).",
    )
    anchor_probability: float = Field(
        ge=0, le=1, description="Share of samples whose video is pure noise, as when acting."
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        """What must divide what."""
        for whole, part in (
            ("width", "heads"),
            ("max_steps", "action_patch_steps"),
            ("key_px", "key_patch_px"),
            ("future_px", "future_patch_px"),
        ):
            a, b = getattr(self, whole), getattr(self, part)
            if a % b:
                raise ValueError(f"{whole} ({a}) must be a multiple of {part} ({b})")
        if self.width % 2:
            raise ValueError(f"width ({self.width}) must be even, for its sines and cosines")
        return self


class Config(BaseModel, frozen=True, extra="forbid"):
    """Values of the stage; the number of steps is the receipt's draws divided by batch_size."""

    preset: Literal["small", "tiny", "demo", "wan2.1-1.3b", "wan2.2-5b"] = Field(
        description="The small model of `models/wam.py`, or a size of the full one."
    )
    model: ModelConfig = Field(description="Sizes of the small model.")
    full: FullConfig = Field(description="How a preset of the full model is trained.")
    processes: int = Field(
        ge=1,
        description="torchrun workers in all. Their number changes the result: each divides its "
        "losses by its own patches and steps, and has noise of its own.",
    )
    device: Literal["cpu", "cuda"] = Field(description="Where the workers compute.")
    batch_size: int = Field(ge=1, description="Events in a step, all workers together.")
    seed: int = Field(ge=0, description="Of initial weights, anchors, caption drop and noise.")
    muon_lr: float = Field(gt=0, description="Peak learning rate of hidden matrices.")
    adamw_lr: float = Field(gt=0, description="Peak learning rate of all other parameters.")
    momentum: float = Field(ge=0, lt=1, description="Muon's momentum.")
    weight_decay: float = Field(ge=0, description="Decoupled, for hidden matrices.")
    schedule: Literal["wsd", "cosine"] = Field(
        description="Of both rates: stable and a cooldown at the end, or a cosine after the warmup."
    )
    warmup: float = Field(ge=0, le=1, description="Share of steps in which the rate rises.")
    cooldown: float = Field(
        ge=0,
        le=1,
        description="Share of steps in which WSD's rate falls to 0; no part of a cosine.",
    )
    clip_norm: float = Field(gt=0, description="Largest norm of the gradient.")
    ema: float = Field(ge=0, lt=1, description="Decay of the averaged weights that are kept.")
    precision: Literal["float32", "bfloat16"] = Field(
        description="Of forward and backward passes (autocast); weights and states are float32."
    )
    parallel: Literal["replicated", "sharded"] = Field(
        description="Whether each worker holds the whole model, or a part of it (FSDP2)."
    )
    recompute: bool = Field(
        description="Recompute the blocks' activations in the backward pass: memory for time."
    )
    compile: bool = Field(description="torch.compile of every block.")
    bad_step: Literal["stop", "skip"] = Field(
        description="At a step with NaN or a loss spike: end the training, or change nothing."
    )
    spike_factor: float = Field(
        gt=1, description="A loss above this many times the median of the last 64 is a spike."
    )
    start_anchors: float = Field(
        ge=0, le=1, description="Share of windows that begin where their event begins."
    )
    caption_drop_short: float = Field(ge=0, le=1, description="Caption drop of the shortest event.")
    caption_drop_long: float = Field(ge=0, le=1, description="Caption drop of the longest event.")
    denoise_steps: int = Field(ge=1, description="Euler steps of the action when acting.")
    checkpoint_every: int = Field(
        ge=1,
        description="Most steps that a kill can cost. A state is written every half of it, while "
        "training goes on; 1 waits for each.",
    )
    keep_checkpoints: int = Field(ge=1, description="States that are kept while training.")
    timeout_s: float = Field(
        gt=0, description="Longest wait for a batch, a state's writing or another worker, seconds."
    )

    @model_validator(mode="after")
    def _workers_share_evenly(self) -> Config:
        """A step is the mean of the workers' means, so each must have as many events.

        Still not the batch's mean: each divides by its own patches and steps, not by the batch's.
        """
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of processes ({self.processes})"
            )
        return self


class Report(BaseModel):
    """What training did."""

    steps: int
    skipped_steps: int = Field(description="Bad steps that changed nothing.")
    draws: int
    parameters: int
    muon_parameters: int
    loss_first: float = Field(description="Mean total loss of the first 5 % of the steps.")
    loss_last: float = Field(description="Mean total loss of the last 5 % of the steps.")
    action_loss_first: float | None = Field(description="None in the stage staircase.")
    action_loss_last: float | None
    validation_action_loss: float | None = Field(description="On held-out episodes; none without.")
    losses_first: dict[str, float] = Field(description="Of each part, first 5 % of the steps.")
    losses_last: dict[str, float] = Field(description="Of each part, last 5 % of the steps.")
    validation_losses: dict[str, float] | None = Field(
        description="Of each part on held-out episodes; none without."
    )
    packing_efficiency: float = Field(
        description="Share of a batch that is no padding: control steps, in the full model frames "
        "and steps."
    )
    plan_sha256: str


def run(
    episodes: Path, captions: Path, plan: Path, init: Path, checkpoint: Path, *, config: Config
) -> Report | None:
    """Train on the planned draws and write `checkpoint`; see the module's first lines.

    `init` is the file that names initial weights (`initial.py`). Errors: those of `initial.read`,
    UserError for data that the preset has no room for, DataError for a receipt that does not fit
    the tables, DivergedError for NaN, StoppedError after SIGTERM (state saved). Ranks other than
    node 0 return None and write nothing.
    """
    from components.pretraining import checkpoints, initial, launch, mirror, view

    start = initial.read(init)
    key = launch.state_key(captions, plan, episodes, config, start)
    with checkpoints.alone(key):
        mirror.fetch(key, checkpoints.store(key))
        view.build(episodes, captions, plan, checkpoints.view(key), config, start)
        if not launch.is_first_node():
            launch.torchrun(checkpoints.view(key), key, None, config)
            checkpoints.clear(key)
            return None
        with whole_folder(checkpoint) as out:
            launch.torchrun(checkpoints.view(key), key, out, config)
            report = Report.model_validate_json((out / "report.json").read_text())
            (out / "report.json").unlink()
        checkpoints.forget(key)
    return report
