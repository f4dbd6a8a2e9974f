"""Geometry masks against points in space, pictures and counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models.draws import draw
from models.masks import border_mask, cones_meet, picture_box, tube
from tests.made_windows import CHANCES, window

SIDE, CELLS, NEAR, FAR = 64, 4, 0.1, 2.0


def camera(at: tuple[float, float, float], turn_rad: float) -> torch.Tensor:
    """Camera to world, turned about the vertical axis; at 0 it looks along +z."""
    c, s = math.cos(turn_rad), math.sin(turn_rad)
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    pose[:3, 3] = torch.tensor(at)
    return pose


INTRINSICS = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])


def meet(poses: list[torch.Tensor], known: list[bool] | None = None) -> torch.Tensor:
    return cones_meet(
        INTRINSICS.expand(len(poses), 3, 3), torch.stack(poses),
        torch.tensor(known or [True] * len(poses)), height_px=SIDE, width_px=SIDE,
        rows=CELLS, columns=CELLS, near_m=NEAR, far_m=FAR,
    )  # fmt: skip


def seen_by(points: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """Patch of each world point (N, 3), -1 where it is out of sight."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = local @ INTRINSICS.T
    cell = (pixel[:, :2] / pixel[:, 2:] / (SIDE / CELLS)).floor().long()
    distance = local.norm(dim=1)
    inside = ((cell >= 0) & (cell < CELLS)).all(1) & (local[:, 2] > 0)
    inside &= (distance > NEAR) & (distance < FAR)
    return torch.where(inside, cell[:, 1] * CELLS + cell[:, 0], -1)


@pytest.mark.parametrize("turn", [math.pi / 2, 2.0, 0.6])
def test_patches_that_see_a_common_point_may_always_attend(turn: float) -> None:
    """The mask never forbids what 400,000 random points in space prove possible."""
    poses = [camera((0, 0, 0), 0.0), camera((-0.9, 0.1, 1.0), turn)]
    allowed = meet(poses)
    points = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(0)) * 5 - 2.5
    first, second = (seen_by(points, pose) for pose in poses)
    both = (first >= 0) & (second >= 0)
    assert both.sum() > 100
    shared = torch.zeros(CELLS**2, CELLS**2, dtype=torch.bool)
    shared[first[both], second[both]] = True
    across = allowed[: CELLS**2, CELLS**2 :]
    assert across[shared].all()
    assert torch.equal(across, allowed[CELLS**2 :, : CELLS**2].T)
    assert 0.1 < across.float().mean() < 0.9, "it forbids some and allows some"
    assert across.sum() < 4 * shared.sum(), "and does not forbid too little"


def test_cameras_back_to_back_see_nothing_in_common() -> None:
    away = meet([camera((0, 0, 0), 0.0), camera((0, 0, -0.5), math.pi)])
    n = CELLS**2
    assert not away[:n, n:].any()
    assert away[:n, :n].all() and away[n:, n:].all(), "patches of one view always may"
    unknown = meet([camera((0, 0, 0), 0.0), camera((0, 0, -0.5), math.pi)], [True, False])
    assert unknown.all(), "nothing is forbidden where a camera's place is not known"


def test_black_borders_are_found_and_marked() -> None:
    pictures = torch.full((2, 3, 40, 60), -1.0)
    pictures[0, 1, 10:30, 20:44] = 0.2
    pictures[1, 0, 12:25, 15:50] = 0.1
    box = picture_box(pictures)
    assert box.tolist() == [10, 30, 15, 50]
    mask = border_mask(box, height_px=40, width_px=60, rows=4, columns=6).view(4, 6)
    assert mask.any(1).tolist() == [False, True, True, False]
    assert mask.any(0).tolist() == [False, True, True, True, True, False]
    assert picture_box(torch.full((1, 3, 8, 8), -1.0)).tolist() == [0, 8, 0, 8]


def test_a_tube_is_square_goes_through_all_frames_and_comes_as_often_as_said() -> None:
    random = torch.Generator().manual_seed(0)
    inside = torch.ones(3, 5, 24, dtype=torch.bool)
    inside[1] = False  # a camera that is not there
    tubes = [tube(inside, 6, side=2, probability=0.3, random=random) for _ in range(2000)]
    hidden = [t for t in tubes if t.any()]
    assert abs(len(hidden) / 2000 - 0.3) < 0.04
    for t in hidden:
        view = t.flatten(1).any(1).nonzero()
        assert view.numel() == 1 and int(view) != 1
        grid = t[int(view)].view(5, 4, 6)
        assert (grid == grid[0]).all() and grid[0].sum() == 4
        down, right = grid[0].any(1).nonzero().flatten(), grid[0].any(0).nonzero().flatten()
        assert down.diff().tolist() == [1] and right.diff().tolist() == [1]
    corners = torch.stack(hidden).flatten(0, 2).any(0)
    assert corners.all(), "every patch is hidden now and then"


def test_a_tube_is_never_spent_on_a_camera_that_is_missing() -> None:
    random = torch.Generator().manual_seed(0)
    whole = window(views=3)
    one_less = replace(whole, camera=torch.tensor([0, -1, 2]))
    draws = [draw(one_less, CHANCES, random).hidden.flatten(1).any(1) for _ in range(400)]
    often = torch.stack(draws).float().mean(0)
    assert often[1] == 0 and abs(float(often.sum()) - CHANCES.tube_probability) < 0.08
