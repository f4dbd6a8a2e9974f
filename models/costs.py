"""What presets cost: `python -m models.costs` prints the table.

Counted, not estimated: parameters, FLOPs and activations are those of the very model on meta
tensors, which have shapes and no numbers. FlopCounterMode counts products of matrices, attention
and convolutions, 2 FLOPs a multiply-add. Memory is the sum of what training keeps, all of it in
float32: of what learns weights, gradients, averages and momenta (one for Muon, two for AdamW), of
what is frozen weights, and what autograd saves, without recomputation; not the allocator's waste.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.acting import denoised
from models.draws import Chances, Coupling, collate_draws, draw
from models.muon import split
from models.presets import PRESETS, Preset
from models.rows import collate
from models.wall import WallModel

SECONDS = 2.0  # of the event that is counted; attention is quadratic, so the length matters
DENOISE_STEPS = 10


@dataclass(frozen=True)
class Costs:
    """Of one preset."""

    video_parameters: int
    action_parameters: int
    weights_gb: float  # to act, bfloat16
    video_training_gb: float  # one event a step, the action tower frozen
    action_training_gb: float  # one event a step, N_d draws, the video frozen
    act_tflop: float  # per event-second: a plan with DENOISE_STEPS steps
    video_training_tflop: float  # per event-second, forward and backward
    action_training_tflop: float


def costs(preset: Preset, seconds: float = SECONDS) -> Costs:
    """Count a preset on events that last `seconds`."""
    act, model = flops_of_acting(preset, seconds)
    video_flops, video_bytes = _training(preset, seconds, "video")
    action_flops, action_bytes = _training(preset, seconds, "asymmetric")
    numbers = {n: _count(part) for n, part in (("video", model.video), ("action", model.action))}
    return Costs(
        video_parameters=numbers["video"],
        action_parameters=numbers["action"],
        weights_gb=2 * sum(numbers.values()) / 1e9,
        video_training_gb=video_bytes / 1e9,
        action_training_gb=action_bytes / 1e9,
        act_tflop=act / seconds / 1e12,
        video_training_tflop=video_flops / seconds / 1e12,
        action_training_tflop=action_flops / seconds / 1e12,
    )


def flops_of_acting(preset: Preset, seconds: float) -> tuple[int, WallModel]:
    """FLOPs of one plan for an event of `seconds`, and the model on meta tensors that said so.

    Every denoising step costs the same, so two are enough to tell.
    """
    model = _on_meta(preset, preset.shape.coupling)
    rows = collate([preset.window(seconds)], preset.shape.limits).to("meta")

    def act(steps: int) -> None:
        model.ends(rows.only_clean())
        denoised(model, rows, steps, torch.Generator())

    with torch.no_grad():
        one, two = _flops(lambda: act(1)), _flops(lambda: act(2))
    return one + (DENOISE_STEPS - 1) * (two - one), model


def _training(preset: Preset, seconds: float, coupling: Coupling) -> tuple[int, int]:
    """(FLOPs, bytes) of one step on one event."""
    model = _on_meta(preset, coupling)
    window = preset.window(seconds)
    chances = Chances(
        coupling=coupling, action_samples=preset.action_samples if coupling == "asymmetric" else 1,
        shift=preset.shape.shift, tube_probability=1.0, tube_side=2,
        patch_steps=preset.shape.action.patch_steps,
    )  # fmt: skip
    drawn = collate_draws([draw(window, chances, torch.Generator())]).to(torch.device("meta"))
    rows = collate([window], preset.shape.limits).to("meta")
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.losses(rows, drawn).total
        loss.backward()

    flops = _flops(step)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    activations = sum(size for place, size in saved.items() if place not in weights)
    return flops, activations + kept_bytes(model, coupling)


def kept_bytes(model: WallModel, coupling: Coupling) -> int:
    """Weights, gradients, averages and momenta of one tower that learns beside a frozen one."""
    muon, adamw = split(model.video if coupling == "video" else model.action)
    numbers = [sum(p.numel() for p in part.values()) for part in (muon, adamw)]
    return 4 * (4 * numbers[0] + 5 * numbers[1] + _count(model) - sum(numbers))


def _on_meta(preset: Preset, coupling: Coupling) -> WallModel:
    with torch.device("meta"):
        return WallModel(replace(preset.shape, coupling=coupling))


def _count(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())


def _flops(work: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    total: int = counter.get_total_flops()
    return total


def table() -> str:
    """Markdown, one line for each preset."""
    lines = [
        "| preset | video tower | action tower | weights | training, video | training, action "
        "| a plan | training, video | training, action |",
        "|---|---|---|---|---|---|---|---|---|",
        "| | M parameters | M parameters | GB | GB | GB "
        "| TFLOP/event-s | TFLOP/event-s | TFLOP/event-s |",
    ]
    for name, preset in PRESETS.items():
        c = costs(preset)
        numbers = [c.video_parameters / 1e6, c.action_parameters / 1e6, c.weights_gb]
        numbers += [c.video_training_gb, c.action_training_gb]
        numbers += [c.act_tflop, c.video_training_tflop, c.action_training_tflop]
        lines.append(f"| {name} | " + " | ".join(f"{number:.4g}" for number in numbers) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
