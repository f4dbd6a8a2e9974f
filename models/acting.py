"""Plans of the full model: how long the event lasts, and its actions.

Event mode asks the model how long each event lasts (`action_tower.Ends`) and generates that much,
or as much as the longest window of training; unified mode generates a chunk of fixed length.
Coupled as in training, see `wall.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from models.rows import Rows, collate
from models.schedule import levels
from models.wall import WallModel, noised
from models.wall_shape import WallShape
from models.wan import unfold
from models.windows import PATCH, Window

PAIRS = 4  # of noises and their opposites, for what the model expects
ROUNDING = 1e-4  # of a step or a frame; seconds of a step may be a float32's


@dataclass(frozen=True)
class Chunk:
    """What lies after the anchor in one window."""

    frames: int  # latent frames
    steps: int  # control steps


@dataclass(frozen=True)
class Plan:
    """What to execute, for B windows."""

    actions: Tensor  # (B, T, A), zero past the end
    steps: Tensor  # (B,) int64, control steps to execute: to the event's end, or what fits
    left_s: Tensor  # (B,) seconds that the event still lasts
    done: Tensor  # (B,) how far through the event the anchor is; over if less than a step is left
    video: Tensor | None  # (B, V, C, F, H, W) what was generated with the actions; None if frozen
    expected: Tensor | None  # the same shape: the mean of what the model expects, if asked for
    frame_s: Tensor  # (B, F) when, seconds after the anchor


@torch.no_grad()
def plan(
    model: WallModel, windows: Sequence[Window], *, denoise_steps: int, random: torch.Generator,
    chunk: Chunk | None = None, show: bool = False,
) -> Plan:  # fmt: skip
    """Generate actions for windows that hold clean frames only; without `chunk`, whole events.

    `show` asks for what the model expects to see, too, of which actions need nothing. ValueError
    for a window that does not fit the model.
    """
    shape = model.shape
    left, done = model.ends(collate(windows, shape.limits))
    seconds = left[:, 0].exp().tolist()
    spans = [chunk or _span(w, s, shape) for w, s in zip(windows, seconds, strict=True)]
    ahead = [_extended(w, s, shape.latent_hz) for w, s in zip(windows, spans, strict=True)]
    rows = collate(ahead, shape.limits)
    actions, video = denoised(model, rows, denoise_steps, random)
    expected = imagined(model, rows, random) if show else None
    steps = torch.tensor([s.steps for s in spans], device=actions.device)
    ends = left[:, 0].exp(), done[:, 0].sigmoid()
    return Plan(actions * rows.action_mask, steps, *ends, video, expected, rows.frame_s)


@torch.no_grad()
def imagined(model: WallModel, rows: Rows, random: torch.Generator) -> Tensor:
    """The mean (B, V, C, F, H, W) of what the model expects to see.

    At pure noise the velocity is the noise less the latents, so minus its mean over noises and
    their opposites is the expected future, and what of the noise a narrow tower does not carry
    through (which a sampler leaves in the picture) goes with it. A mean of many futures is blurred.
    """
    sigma, total = (~rows.clean).float(), torch.zeros_like(rows.latents)
    for _ in range(PAIRS):
        noise = torch.randn(rows.latents.shape, generator=random).to(rows.latents)
        for drawn in (noise, -noise):
            velocity, _ = model.video(noised(rows.latents, drawn, sigma), sigma, rows)
            total -= unfold(velocity, rows.latents.shape[-2] // PATCH) / (2 * PAIRS)
    return torch.where(rows.clean[:, None, None, :, None, None], rows.latents, total)


def fitting(shape: WallShape, clean: int, seconds: float, step_s: float) -> Chunk:
    """As much of the `seconds` after the anchor as a window has room for, in training and acting.

    No step lies past the last frame for which `clean` ones leave room. At least one of each.
    """
    room = shape.max_frames - clean
    most = min(shape.max_steps, int(room / shape.latent_hz / step_s + ROUNDING))
    steps = round(seconds / step_s)
    if steps > most:
        steps, seconds = most, most * step_s
    frames = math.ceil(seconds * shape.latent_hz - ROUNDING)
    return Chunk(max(1, min(room, frames)), max(1, steps))


def _span(window: Window, left_s: float, shape: WallShape) -> Chunk:
    """What is left of an event, which lasts whole steps, as those of training do."""
    whole_s = round(left_s / window.step_s) * window.step_s
    return fitting(shape, window.clean, whole_s, window.step_s)


def _extended(window: Window, span: Chunk, latent_hz: float) -> Window:
    """The window with a future that repeats the anchor frame, and with actions to be filled in."""

    def longer(values: Tensor, dim: int) -> Tensor:
        last = values.narrow(dim, -1, 1)
        return torch.cat([values, last.repeat_interleave(span.frames, dim)], dim)

    later = torch.arange(1, span.frames + 1, device=window.frame_s.device) / latent_hz
    return replace(
        window,
        latents=longer(window.latents, 2), inside=longer(window.inside, 1),
        meet=None if window.meet is None else longer(window.meet, 0),
        frame_s=torch.cat([window.frame_s, window.frame_s[-1] + later]),
        actions=window.state.new_zeros(span.steps, len(window.action_mask)),
    )  # fmt: skip


def denoised(
    model: WallModel, rows: Rows, steps: int, random: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Actions (B, T, A) and the video: both step by step, or actions from one forward of it."""
    b, t, a = rows.actions.shape
    x = torch.randn(b, 1, t, a, generator=random).to(rows.actions)
    level = torch.ones(b, 1, 1, device=x.device)
    noise = torch.randn(rows.latents.shape, generator=random).to(rows.latents)
    joint = model.shape.coupling != "asymmetric"
    if not joint:
        reading = model.action.read(rows, model.at_anchor(rows, noise))
    video = noised(rows.latents, noise, (~rows.clean).float())
    schedule = levels(steps, model.shape.shift if joint else 1.0).tolist()
    for now, then in pairwise(schedule):
        if joint:
            sigma = torch.where(rows.clean, 0.0, now)
            velocity, features = model.video(video, sigma, rows)
            reading = model.action.read(rows, features)
            moved = unfold(velocity, rows.latents.shape[-2] // PATCH) * (now - then)
            video = torch.where(rows.clean[:, None, None, :, None, None], video, video - moved)
        step = (now - then) * float(model.action.level(torch.tensor(now))) / now
        x = x - step * model.action(x, now * level, rows, reading)
    return x[:, 0], video if joint else None
