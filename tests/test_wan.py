"""The video tower against diffusers' `WanTransformer3DModel`, and what many views must not change.

Small random configurations of the two published shapes: Wan 2.1 T2V 1.3B (16 latent channels, one
noise level a video) and Wan 2.2 TI2V 5B (48 channels, a noise level for each token).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from models import presets, wan_keys
from models.rope import CameraTable, Turns, rotate, rotate_real
from models.rows import Rows, collate
from models.wan import VideoShape, WanTower, fold, unfold
from tests.made_wan import SHAPES, inherited
from tests.made_windows import LIMITS, some_views, window


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_one_view_equals_diffusers(name: str, seed: int) -> None:
    shape = SHAPES[name]
    theirs, ours = inherited(shape, seed)
    limits = replace(LIMITS, latent_channels=shape.latent_channels, text_width=shape.text_width)
    windows = [window(seed + i, views=1, frames=5, side=6, limits=limits) for i in range(2)]
    wide = [  # 2 rows of 3 patches
        replace(w, latents=w.latents[:, :, :, :4], inside=w.inside[:, :, :6]) for w in windows
    ]
    rows = collate(wide, limits)
    sigma = torch.rand(2, 1).expand(2, 5)
    if name == "wan2.2":  # the given frame is clean, token by token
        sigma = torch.where(rows.clean, 0.0, sigma)
        timestep = (sigma * 1000).repeat_interleave(6, dim=1)
    else:
        timestep = sigma[:, 0] * 1000
    expected = theirs(rows.latents[:, 0], timestep, rows.text[:, 0]).sample
    velocity, features = ours(rows.latents, sigma, rows)
    assert (unfold(velocity, rows=2)[:, 0] - expected).abs().max() < 1e-5
    assert expected.abs().max() > 0.1
    assert len(features) == shape.depth
    assert features[0].shape == (2, 1, 30, shape.width)


@pytest.mark.parametrize(
    ("preset", "theirs"),
    [
        ("wan2.1-1.3b", {"num_attention_heads": 12, "ffn_dim": 8960, "in_channels": 16}),
        ("wan2.2-5b", {"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48}),
    ],
)
def test_the_mapping_covers_every_parameter_of_the_published_shapes(
    preset: str, theirs: dict[str, int]
) -> None:
    """The configs are those of the published `transformer/config.json` files; on meta tensors."""
    with torch.device("meta"):
        published = WanTransformer3DModel(
            **theirs, out_channels=theirs["in_channels"], num_layers=30, attention_head_dim=128,
            text_dim=4096, freq_dim=256,
        )  # fmt: skip
        ours = WanTower(presets.PRESETS[preset].shape.video)
    wanted = {wan_keys.ours(n): p.shape for n, p in published.state_dict().items()}
    assert len(wanted) == len(published.state_dict())
    got = {n: p.shape for n, p in ours.state_dict().items() if not wan_keys.ADDED.fullmatch(n)}
    assert got == wanted


def rows_of(*windows: object) -> Rows:
    return collate(windows, LIMITS)  # type: ignore[arg-type]


TINY = VideoShape(
    heads=2, head_width=12, depth=2, feed_width=40, latent_channels=4, text_width=12,
    time_width=16, cameras=4,
)  # fmt: skip


@pytest.fixture
def tower() -> WanTower:
    torch.manual_seed(3)
    return WanTower(TINY).eval()


def awake(tower: WanTower) -> WanTower:
    """Every branch takes part, as after some training."""
    for block in tower.blocks:
        torch.nn.init.normal_(block.across.out.weight, std=0.3)
    return tower


def features(tower: WanTower, rows: Rows, hidden: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return tower(rows.latents, rows.clean.float() * 0.7, rows, hidden)[1][-1]


def test_other_views_do_not_change_when_one_comes_or_goes(tower: WanTower) -> None:
    """At initialisation; once trained, they look at each other."""
    whole = window(1, views=3)
    three = features(tower, rows_of(whole))
    for views in ([0, 1], [0, 2], [1]):
        less = features(tower, rows_of(some_views(whole, views)))
        torch.testing.assert_close(less, three[:, views], atol=1e-6, rtol=0)
    awake(tower)
    less = features(tower, rows_of(some_views(whole, [0, 1])))
    assert (less - features(tower, rows_of(whole))[:, :2]).abs().max() > 1e-3


def test_an_empty_place_for_a_view_changes_nothing_ever(tower: WanTower) -> None:
    awake(tower)
    whole = window(1, views=3)
    two = features(tower, rows_of(some_views(whole, [0, 2])))
    empty = features(tower, rows_of(some_views(whole, [0, 2], slots=3)))
    torch.testing.assert_close(empty[:, :2], two, atol=1e-6, rtol=0)


def test_views_are_known_by_their_camera_not_by_their_place(tower: WanTower) -> None:
    awake(tower)
    whole = window(1, views=2)
    straight = features(tower, rows_of(whole))
    swapped = features(tower, rows_of(some_views(whole, [1, 0])))
    torch.testing.assert_close(swapped[:, [1, 0]], straight, atol=1e-6, rtol=0)
    renamed = features(tower, rows_of(replace(whole, camera=torch.tensor([0, 3]))))
    assert (renamed - straight).abs().max() > 1e-4


def test_a_camera_table_that_grew_says_the_same_about_old_cameras(tower: WanTower) -> None:
    awake(tower)
    torch.nn.init.normal_(tower.cameras.angles)  # as if learned
    rows = rows_of(window(1, views=3))
    before = features(tower, rows)
    tower.cameras.grow(7)
    assert tower.cameras.angles.shape[0] == 7
    assert torch.equal(features(tower, rows), before)
    fresh = CameraTable(7, TINY.head_width).angles
    assert torch.equal(tower.cameras.angles[4:], fresh[4:])
    with pytest.raises(ValueError, match="expected at least 7 cameras, got 2"):
        tower.cameras.grow(2)


def test_black_borders_are_never_read(tower: WanTower) -> None:
    awake(tower)
    whole = window(2, side=6)
    inside = whole.inside.clone()
    inside[0, :, :3] = False  # the upper row of patches of one view
    bordered = replace(whole, inside=inside)
    latents = whole.latents.clone()
    latents[0, :, :, :2] += 5.0
    one, other = (
        features(tower, rows_of(w)) for w in (bordered, replace(bordered, latents=latents))
    )
    shown = inside.flatten(1)
    torch.testing.assert_close(one[0][shown], other[0][shown], atol=1e-6, rtol=0)
    unmasked = features(tower, rows_of(replace(whole, latents=latents)))
    assert (unmasked - features(tower, rows_of(whole)))[0][shown].abs().max() > 1e-3


def test_what_a_tube_hides_is_not_seen(tower: WanTower) -> None:
    awake(tower)
    whole = window(3)
    hidden = torch.zeros(1, *whole.inside.shape, dtype=torch.bool)
    hidden[0, 1, :, 3] = True
    latents = whole.latents.clone()
    latents[1, :, :, 2:, 2:] += 5.0  # patch 3 of view 1
    changed = replace(whole, latents=latents)
    assert torch.equal(
        features(tower, rows_of(whole), hidden), features(tower, rows_of(changed), hidden)
    )
    assert not torch.equal(features(tower, rows_of(whole)), features(tower, rows_of(changed)))


def test_cones_that_cannot_meet_shut_views_off(tower: WanTower) -> None:
    awake(tower)
    whole = window(4)
    views = torch.arange(2).repeat_interleave(4)
    apart = (views[:, None] == views).expand(3, -1, -1)
    shut = features(tower, rows_of(replace(whole, meet=apart)))
    other = whole.latents.clone()
    other[1] += 3.0
    changed = features(tower, rows_of(replace(whole, meet=apart, latents=other)))
    torch.testing.assert_close(shut[:, 0], changed[:, 0], atol=1e-6, rtol=0)
    everything = torch.ones_like(apart)
    torch.testing.assert_close(
        features(tower, rows_of(replace(whole, meet=everything))),
        features(tower, rows_of(whole)), atol=1e-6, rtol=0,
    )  # fmt: skip


def test_complex_and_real_numbers_turn_alike() -> None:
    x = torch.randn(2, 7, 3, 8, requires_grad=True)
    turns = Turns.by(torch.randn(2, 7, 4, dtype=torch.float64))
    weights = torch.randn(2, 7, 3, 8)
    found = [turn(x, turns) for turn in (rotate, rotate_real)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(
        *(torch.autograd.grad((turned * weights).sum(), x)[0] for turned in found)
    )
    half = x.detach().bfloat16()
    assert torch.equal(rotate(half, turns), rotate(half.float(), turns).bfloat16())


def test_history_and_later_frames_have_their_own_places_in_time(tower: WanTower) -> None:
    whole = window(5, frames=4)
    backwards = replace(whole, latents=whole.latents.flip(2))
    forward = features(tower, rows_of(whole)).unflatten(2, (4, 4))
    reverse = features(tower, rows_of(backwards)).unflatten(2, (4, 4)).flip(2)
    assert (forward - reverse).abs().max() > 1e-3


def test_fold_and_unfold() -> None:
    latents = torch.randn(2, 3, 5, 4, 6, 8)
    patches = fold(latents)
    assert patches.shape == (2, 3, 4, 12, 20)
    assert torch.equal(patches[1, 2, 3, 5, :5], latents[1, 2, :, 3, 2, 2])
    assert torch.equal(unfold(patches, rows=3), latents)
