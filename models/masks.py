"""Who may attend to whom: packing, borders and viewing cones; tubes in training only.

True where attention is allowed. Every token may read itself, so that padding has something to read
and no softmax is empty. Nothing is built where a batch needs no mask, so that fast kernels apply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.rows import Rows
from models.windows import PATCH

SEARCH_STEPS = 40  # golden sections; each shrinks the interval of depths to 0.618


def within_mask(rows: Rows) -> Tensor | None:
    """(B * V, F * P, F * P): patches of the same window and view that show the picture."""
    if rows.whole:
        return None
    _, v, _, p = rows.inside.shape
    event = rows.frame_event.repeat_interleave(p, dim=1)
    same = event[:, :, None] == event[:, None]
    mask = same[:, None] & rows.inside.flatten(2)[:, :, None]
    return _and_oneself(mask).expand(-1, v, -1, -1).flatten(0, 1)


def across_mask(rows: Rows) -> Tensor | None:
    """(B * F, V * P, V * P): patches of the same instant, where viewing cones can meet."""
    if rows.whole:
        return None
    read = rows.inside.transpose(1, 2).flatten(2)[:, :, None]  # (B, F, 1, V * P)
    return _and_oneself(read & rows.meet if rows.meet is not None else read).flatten(0, 1)


def text_mask(rows: Rows) -> Tensor | None:
    """(B, V * F * P, E * L): the text of one's own window; padding reads the first window's."""
    if rows.whole:
        return None
    _, v, _, p = rows.inside.shape
    e = rows.text.shape[1]
    event = rows.frame_event.clamp(min=0).repeat_interleave(p, dim=1).repeat(1, v)
    own = event[:, :, None] == torch.arange(e, device=event.device)
    return (own[:, :, :, None] & rows.text_mask[:, None]).flatten(2)


def _and_oneself(mask: Tensor) -> Tensor:
    """(..., 1 or N, N) -> (..., N, N)."""
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)


def cones_meet(
    intrinsics: Tensor, pose: Tensor, known: Tensor, *, height_px: int, width_px: int,
    rows: int, columns: int, near_m: float, far_m: float,
) -> Tensor:  # fmt: skip
    """Sight-cone mask (..., V * P, V * P): False where no point can be seen through both patches.

    intrinsics (..., V, 3, 3) in pixels of the whole picture, pose (..., V, 4, 4) camera to world in
    metres (OpenCV axes), known (..., V) bool. A patch sees a cone from near_m to far_m that holds
    its four corners; cones are closed at both ends by spheres, so the mask errs towards allowing.
    Views without a known camera, and patches of one view, may always attend to each other.
    """
    apex, axis, slope = _cones(intrinsics, pose, height_px, width_px, rows, columns)
    gap = _gap(apex, axis, slope, near_m, far_m)
    patches = rows * columns
    sure = known.repeat_interleave(patches, dim=-1)
    view = torch.arange(known.shape[-1], device=known.device).repeat_interleave(patches)
    unsure = ~(sure[..., :, None] & sure[..., None, :])
    return (gap <= 0) | unsure | (view[:, None] == view)


def _cones(
    intrinsics: Tensor, pose: Tensor, height_px: int, width_px: int, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Apex (..., V * P, 3), unit axis (..., V * P, 3), sine of the half-angle (..., V * P)."""
    device = intrinsics.device
    down = torch.linspace(0, height_px, rows + 1, dtype=torch.float64, device=device)
    right = torch.linspace(0, width_px, columns + 1, dtype=torch.float64, device=device)
    y, x = torch.meshgrid(down, right, indexing="ij")
    pixel = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (rows + 1, columns + 1, 3)
    turned = pose[..., :3, :3].double() @ torch.linalg.inv(intrinsics.double())
    ray = torch.einsum("...ij,hwj->...hwi", turned, pixel)
    ray = ray / ray.norm(dim=-1, keepdim=True)
    corners = torch.stack(
        [ray[..., a : a + rows, b : b + columns, :] for a in (0, 1) for b in (0, 1)], dim=-2
    )
    axis = corners.mean(dim=-2)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    cosine = (corners * axis[..., None, :]).sum(-1).min(dim=-1).values
    apex = pose[..., :3, 3].double()[..., None, None, :].expand(axis.shape)
    slope = (1 - cosine**2).clamp(min=0).sqrt()
    return apex.flatten(-4, -2), axis.flatten(-4, -2), slope.flatten(-3)


def _gap(apex: Tensor, axis: Tensor, slope: Tensor, near: float, far: float) -> Tensor:
    """(..., N, N) the smallest distance of two cones' axes less their radii there.

    A cone is the union of balls around points of its axis. Distance less radii is convex in both
    depths: the second is found in closed form, the first by golden sections.
    """

    def at(depth: Tensor) -> Tensor:
        point = apex[..., :, None, :] + depth[..., None] * axis[..., :, None, :]
        to = point - apex[..., None, :, :]
        forward = (to * axis[..., None, :, :]).sum(-1)
        aside = (to.square().sum(-1) - forward**2).clamp(min=0).sqrt()
        other = slope[..., None, :]
        best = forward + aside * other / (1 - other**2).clamp(min=1e-12).sqrt()
        best = best.clamp(near, far)
        apart = (aside**2 + (forward - best) ** 2).sqrt()
        return apart - best * other - depth * slope[..., :, None]

    size = (*slope.shape, slope.shape[-1])
    low, high = slope.new_full(size, near), slope.new_full(size, far)
    ratio = (5**0.5 - 1) / 2
    for _ in range(SEARCH_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        smaller = at(left) < at(right)
        low, high = torch.where(smaller, low, left), torch.where(smaller, right, high)
    return torch.minimum(at((low + high) / 2), torch.minimum(at(low), at(high)))


def picture_box(pictures: Tensor, black: float = -0.98) -> Tensor:
    """Where a view shows something: (4,) int64 top, bottom, left, right in pixels, ends excluded.

    pictures (F, 3, H, W) in -1..1. Black rows and columns at the edges of all frames are letterbox
    borders; a picture that is black all over has none.
    """
    bright = (pictures > black).any(dim=1).any(dim=0)
    if not bright.any():
        return torch.tensor([0, bright.shape[0], 0, bright.shape[1]])
    down, right = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
    return torch.stack([down.min(), down.max() + 1, right.min(), right.max() + 1]).cpu()


def border_mask(
    box: Tensor, *, height_px: int, width_px: int, rows: int, columns: int
) -> Tensor:  # fmt: skip
    """(P,) bool: True for patches of which a part lies in the box (4,) of `picture_box`."""
    down, right = torch.arange(rows) * height_px / rows, torch.arange(columns) * width_px / columns
    high, wide = height_px / rows, width_px / columns
    vertical = (down + high > box[0]) & (down < box[1])
    horizontal = (right + wide > box[2]) & (right < box[3])
    return (vertical[:, None] & horizontal).flatten()


def shown(picture: Tensor, side_px: int) -> Tensor:
    """(P,) bool: patches of a picture (3, H, W) in -1..1 that are not all black border.

    `side_px` is the side of a latent pixel. Windows ask the picture at the anchor alone: it is
    there in training and when acting.
    """
    high, wide = picture.shape[1:]
    return border_mask(
        picture_box(picture[None]), height_px=high, width_px=wide,
        rows=high // (PATCH * side_px), columns=wide // (PATCH * side_px),
    )  # fmt: skip


def tube(
    inside: Tensor, columns: int, *, side: int, probability: float, random: torch.Generator
) -> Tensor:
    """Hide, with `probability`, a tube of side x side patches through all frames of one view.

    inside (V, F, P) of one window; P lies row by row in `columns`. Returns (V, F, P) bool, True
    where hidden: the key frame too, so that only other views can say what is behind.
    """
    v, _, p = inside.shape
    rows = p // columns
    hidden = torch.zeros_like(inside)
    seen = inside.flatten(1).any(dim=1).nonzero().flatten().cpu()
    draws = torch.rand(4, generator=random).tolist()
    if draws[0] >= probability or not len(seen):
        return hidden
    view = int(seen[int(draws[1] * len(seen))])
    top = int(draws[2] * max(rows - side + 1, 1))
    left = int(draws[3] * max(columns - side + 1, 1))
    hidden.view(v, -1, rows, columns)[view, :, top : top + side, left : left + side] = True
    return hidden & inside
