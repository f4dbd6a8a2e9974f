"""The batch of the full model: rows of windows, one to a row (padded) or several (packed).

Packing puts events of different lengths one after the other in rows of one length (WALL-WM, section
Training). `collate` makes padded and packed batches by the same code: only the list that says which
windows share a row differs, so both give the same loss.

Letters as in `windows.py`; B rows, E windows of a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.windows import Limits, Window


@dataclass(frozen=True)
class Rows:
    """B rows of windows. Padding belongs to window -1 of its row."""

    latents: Tensor  # (B, V, C, F, H, W)
    clean: Tensor  # (B, F) bool
    frame: Tensor  # (B, F) int64 position in its window, from 0
    frame_s: Tensor  # (B, F) seconds after the anchor
    frame_event: Tensor  # (B, F) int64, which window of the row
    camera: Tensor  # (B, F, V) int64
    inside: Tensor  # (B, V, F, P) bool, False for padding and missing views too
    meet: Tensor | None  # (B, F, V * P, V * P) bool
    text: Tensor  # (B, E, L, X)
    text_mask: Tensor  # (B, E, L) bool
    state: Tensor  # (B, E, S)
    state_mask: Tensor  # (B, E, S) bool
    embodiment: Tensor  # (B, E) int64
    actions: Tensor  # (B, T, A)
    action_mask: Tensor  # (B, T, A) bool, False for padding
    step: Tensor  # (B, T) int64 position in its window, from 0
    steps: Tensor  # (B, T) int64 length of its window
    step_at_s: Tensor  # (B, T) seconds after the anchor
    step_event: Tensor  # (B, T) int64
    left_s: Tensor  # (B, E), 1 where not known
    done: Tensor  # (B, E)
    known: Tensor  # (B, E) bool, whether left_s and done are
    clean_frames: int  # the most clean frames of a row
    whole: bool  # one window a row, nothing padded, hidden or outside: attention needs no masks

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Rows:
        """The same rows on another device; what networks multiply (not times) gets `dtype`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)}
        cast = {n: moved[n].to(dtype) for n in ("latents", "text", "state", "actions")}
        return Rows(**(values | moved | cast))

    def first(self, rows: int) -> Rows:
        """The first of them alone."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        some: dict[str, Any] = {n: v[:rows] for n, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **some)

    def only_clean(self) -> Rows:
        """The same rows without their future: what is there before the event happens."""
        keep = self.clean & (self.frame_event >= 0)
        order = (~keep).int().argsort(dim=1, stable=True)[:, : self.clean_frames]
        took = _Taken(order)
        return replace(
            self,
            latents=took.along(self.latents, 3), clean=took.along(self.clean, 1),
            frame=took.along(self.frame, 1), frame_s=took.along(self.frame_s, 1),
            frame_event=took.along(torch.where(keep, self.frame_event, -1), 1),
            camera=took.along(self.camera, 1),
            inside=took.along(self.inside & keep[:, None, :, None], 2),
            meet=None if self.meet is None else took.along(self.meet, 1),
        )  # fmt: skip


@dataclass(frozen=True)
class _Taken:
    """Frames (B, K) to take from every row."""

    order: Tensor

    def along(self, values: Tensor, dim: int) -> Tensor:
        """values (B, ..., F at `dim`, ...) -> the same with K frames there."""
        shape = [1] * values.dim()
        shape[0], shape[dim] = self.order.shape
        size = list(values.shape)
        size[dim] = self.order.shape[1]
        return values.gather(dim, self.order.view(shape).expand(size))


def of_event(values: Tensor, event: Tensor, dim: int = 1) -> Tensor:
    """Spread values (B, ..., E at `dim`, D) over places (B, N) that belong to windows."""
    if values.shape[dim] == 1:
        return values  # broadcasts
    return _Taken(event.clamp(min=0)).along(values, dim)


def first_fit(frames: Sequence[int], budget: int) -> list[list[int]]:
    """Which windows share a row of `budget` latent frames: each joins the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(frames):
        if length > budget:
            raise ValueError(
                f"Packing: expected events of at most {budget} latent frames, got {length} for "
                f"event {index}; cut it, or make the budget larger."
            )
        row = next((r for r, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(budget)
        rows[row].append(index)
        room[row] -= length
    return rows


def evenly(frames: Sequence[int], steps: Sequence[int], budget: int) -> list[list[int]]:
    """As `first_fit`, with about as many control steps in every row: the longest row pads all.

    The longest windows come first, each to the row with the fewest steps that has room for it. Rows
    are then shuffled, the same way for the same lengths: some rows are as good a sample as others.
    """
    rows: list[list[int]] = [[] for _ in first_fit(frames, budget)]
    room, held = [budget] * len(rows), [0] * len(rows)
    for index in sorted(range(len(frames)), key=lambda i: (-steps[i], i)):
        fits = [row for row, free in enumerate(room) if free >= frames[index]]
        if not fits:
            fits = [len(rows)]
            rows.append([])
            room.append(budget)
            held.append(0)
        row = min(fits, key=lambda r: held[r])
        rows[row].append(index)
        room[row] -= frames[index]
        held[row] += steps[index]
    filled = [sorted(row) for row in rows if row]
    random = torch.Generator().manual_seed(zlib.crc32(repr([*frames, *steps]).encode()))
    return [filled[row] for row in torch.randperm(len(filled), generator=random).tolist()]


def collate(
    windows: Sequence[Window], limits: Limits, rows: Sequence[Sequence[int]] | None = None
) -> Rows:
    """Rows that hold `windows[i]` for every i of each row; without `rows`, one window a row.

    ValueError for a window that does not fit the limits or its neighbours.
    """
    for window in windows:
        window.check(limits)
    _check_equal(windows)
    placed = [[windows[i] for i in row] for row in rows or [[i] for i in range(len(windows))]]
    device = windows[0].latents.device

    def frames(value: Callable[[Window, int], Tensor], dim: int = 0, fill: float = 0) -> Tensor:
        return lined_up([[value(w, e) for e, w in enumerate(row)] for row in placed], dim, fill)

    def steps(value: Callable[[Window, int], Tensor], fill: float = 0) -> Tensor:
        patch = limits.patch_steps
        return frames(lambda w, e: in_tokens(value(w, e), patch, fill), fill=fill)

    def each(value: Callable[[Window], Tensor | float], fill: float = 0) -> Tensor:
        return frames(lambda w, _: torch.as_tensor(value(w), device=device)[None], fill=fill)

    def along(length: int, value: float) -> Tensor:
        return torch.full((length,), value, device=device)

    def count(length: int) -> Tensor:
        return torch.arange(length, device=device)

    frame_event = frames(lambda w, e: along(len(w.frame_s), e).long(), fill=-1)
    inside = frames(lambda w, _: w.inside & (w.camera >= 0)[:, None, None], dim=1)
    step_event = steps(lambda w, e: along(len(w.actions), e).long(), fill=-1)
    meet = any(w.meet is not None for w in windows)
    text_mask = each(lambda w: w.text_mask)
    alone = all(len(row) == 1 for row in placed) and len({w.clean for w in windows}) == 1
    tokens = step_event[:, :: limits.patch_steps] >= 0
    full = all(bool(mask.all()) for mask in (inside, text_mask, tokens))
    return Rows(
        latents=frames(lambda w, _: w.latents, dim=2),
        clean=frames(lambda w, _: count(len(w.frame_s)) < w.clean, fill=1),
        frame=frames(lambda w, _: count(len(w.frame_s))),
        frame_s=frames(lambda w, _: w.frame_s.float()),
        frame_event=frame_event,
        camera=frames(lambda w, _: w.camera.expand(len(w.frame_s), -1), fill=-1),
        inside=inside,
        meet=frames(lambda w, _: _meet(w), fill=1) if meet else None,
        text=each(lambda w: w.text),
        text_mask=text_mask,
        state=each(lambda w: w.state * w.state_mask),
        state_mask=each(lambda w: w.state_mask),
        embodiment=each(lambda w: w.embodiment),
        actions=steps(lambda w, _: w.actions * w.action_mask),
        action_mask=steps(lambda w, _: w.action_mask.expand(len(w.actions), -1)),
        step=steps(lambda w, _: count(len(w.actions))),
        steps=steps(lambda w, _: along(len(w.actions), len(w.actions)).long(), fill=1),
        step_at_s=steps(lambda w, _: count(len(w.actions)) * w.step_s),
        step_event=step_event,
        left_s=each(lambda w: w.left_s or 1.0, fill=1),
        done=each(lambda w: w.done or 0.0),
        known=each(lambda w: w.left_s is not None and w.done is not None),
        clean_frames=max(sum(w.clean for w in row) for row in placed),
        whole=alone and full and not meet,
    )


def in_tokens(values: Tensor, patch: int, fill: float = 0) -> Tensor:
    """values (T, ...) of control steps, padded to whole action tokens of `patch` steps."""
    missing = -len(values) % patch
    return F.pad(values, [0, 0] * (values.dim() - 1) + [0, missing], value=fill)


def lined_up(rows: Sequence[Sequence[Tensor]], dim: int, fill: float = 0) -> Tensor:
    """Join the tensors of each row along `dim`, pad to the longest row, stack the rows."""
    lines = [torch.cat(list(row), dim) for row in rows]
    longest = max(line.shape[dim] for line in lines)
    padded = [
        F.pad(line, [0, 0] * (line.dim() - dim - 1) + [0, longest - line.shape[dim]], value=fill)
        for line in lines
    ]
    return torch.stack(padded)


def _meet(window: Window) -> Tensor:
    if window.meet is not None:
        return window.meet
    views, frames, patches = window.inside.shape
    size = (frames, views * patches, views * patches)
    return torch.ones(size, dtype=torch.bool, device=window.inside.device)


def _check_equal(windows: Sequence[Window]) -> None:
    """Windows of one batch have equal views, latent sides and text lengths."""
    got = {
        (*w.latents.shape[:2], *w.latents.shape[3:], len(w.text)): i for i, w in enumerate(windows)
    }
    if len(got) != 1:
        raise ValueError(
            "Batch: expected windows of equal (views, channels, height, width, text tokens), got "
            + " and ".join(f"{shape} (window {i})" for shape, i in got.items())
            + "; give missing views camera -1 and pad text under its mask."
        )
