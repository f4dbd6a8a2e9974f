"""Which patches of a robot's cameras can see a common point: the sight cones of WALL-WM.

`models/masks.py` has the geometry; here a calibration in pixels of the recorded pictures becomes
one of the square pictures that a model is shown, which are the whole picture, stretched. One mask
serves all windows of a robot, since calibrated cameras stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.masks import cones_meet
from models.windows import PATCH


def meeting(info: dict[str, Any], side_px: int, near_m: float, far_m: float) -> dict[str, Tensor]:
    """Of each robot for which something is forbidden: what may attend, (V * P, V * P) bool.

    `info` is `view.json` or a checkpoint's `config.json`, `side_px` the side of a latent pixel.
    Nothing is forbidden where fewer than two cameras are known, or all their patches can meet.
    """
    cells = info["picture_px"] // (PATCH * side_px)
    found = {}
    for robot in info["embodiments"]:
        known = robot.get("calibration", {})
        if len(known.keys() & set(info["cameras"])) > 1:
            found[robot["name"]] = _mask(known, info["cameras"], cells, near_m, far_m)
    return {name: mask for name, mask in found.items() if not mask.all()}


def _mask(
    known: dict[str, Any], cameras: Sequence[str], cells: int, near_m: float, far_m: float
) -> Tensor:
    nothing = torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    seen = [_unit(known[c]) if c in known else nothing for c in cameras]
    intrinsics, pose = (torch.stack(part) for part in zip(*seen, strict=True))
    return cones_meet(
        intrinsics, pose, torch.tensor([c in known for c in cameras]), height_px=1, width_px=1,
        rows=cells, columns=cells, near_m=near_m, far_m=far_m,
    )  # fmt: skip


def _unit(said: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Intrinsics of a picture of side 1, counted from the outer edge of its first pixel; pose."""
    k = torch.tensor(said["intrinsics"], dtype=torch.float64)
    k[:2, 2] += 0.5  # from the pixel's centre to its edge
    height_px, width_px = said["size_px"]
    k[0] /= width_px
    k[1] /= height_px
    return k, torch.tensor(said["pose"], dtype=torch.float64)
