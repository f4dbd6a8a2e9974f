"""Presets: what they cost against sums done by hand, and that each fits its own limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models import costs, presets
from models.acting import plan
from models.presets import PRESETS, Preset
from models.wall import WallModel

TINY = PRESETS["tiny"]


def video_flops(preset: Preset, frames: int, blocks: int | None = None) -> int:
    """One forward pass of the video tower, term by term; 2 FLOPs a multiply-add.

    With `blocks`, that many of them, for their features alone.
    """
    shape = preset.shape.video
    v, f, d, c = preset.views, frames, shape.width, shape.latent_channels
    p = preset.latent_px[0] * preset.latent_px[1] // 4
    n, text, words = f * p, preset.text_tokens, shape.text_width
    conditions = f * shape.time_width * d + f * d * d + f * d * 6 * d + text * (words * d + d * d)
    within = 4 * v * n * d * d + 2 * v * n * n * d
    across = 4 * v * n * d * d + 2 * f * (v * p) ** 2 * d
    reading = 2 * v * n * d * d + 2 * text * d * d + 2 * v * n * text * d
    feed = 2 * v * n * d * shape.feed_width
    ends = 2 * v * n * d * 4 * c if blocks is None else v * n * d * 4 * c
    depth = shape.depth if blocks is None else blocks
    return 2 * (conditions + depth * (within + across + reading + feed) + ends)


def action_flops(preset: Preset, frames: int, steps: int, denoising: int) -> int:
    """Reading once, denoising some times, and asking where the event ends."""
    shape, g, words = preset.shape.action, preset.shape.video.width, preset.shape.video.text_width
    a, t, text = shape.width, steps, preset.text_tokens
    key_frame = preset.views * preset.latent_px[0] * preset.latent_px[1] // 4
    m, patches = frames * key_frame, key_frame // preset.views
    robot = 2 * shape.state_width * a
    depth = preset.shape.video.depth
    read = text * words * a + robot + t * a * a + frames * g * g
    read += depth * (2 * m * g * a + 2 * text * a * a) + patches * g * g
    block = 9 * a * a + 4 * t * a * a + 2 * t * t * a
    block += 2 * t * a * a + 2 * t * m * a + 2 * t * a * a + 2 * t * text * a + 8 * t * a * a
    one = t * 2 * shape.action_width * a + 2 * a * a + depth * block + t * a * shape.action_width
    look = 2 * a * a + 2 * key_frame * g * a + 2 * key_frame * a + 8 * a * a
    ask = robot + g * g + patches * g * g + 2 * look + 2 * a
    ask += text * words * a + 2 * a * a + 2 * text * a * a + 2 * text * a
    return 2 * (read + denoising * one + ask)


def test_flops_of_a_plan_agree_with_sums_by_hand() -> None:
    frozen = replace(TINY, shape=replace(TINY.shape, coupling="asymmetric"))
    expected = video_flops(frozen, 1, blocks=1) + video_flops(frozen, frames=9, blocks=2)
    expected += action_flops(frozen, frames=9, steps=40, denoising=costs.DENOISE_STEPS)
    assert costs.flops_of_acting(frozen, seconds=2.0)[0] == expected


def test_the_table_tells_what_training_and_acting_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward is twice forward, less the input's gradient of the first layer."""
    counted = costs.costs(TINY, 2.0)
    assert 2.8 < counted.video_training_tflop * 2.0 * 1e12 / video_flops(TINY, 9) < 3.1
    assert counted.act_tflop * 2.0 * 1e12 > costs.DENOISE_STEPS * video_flops(TINY, 9), "joint"
    weights, states = 2 * counted.video_parameters, 4 * counted.video_parameters
    assert counted.weights_gb * 1e9 == pytest.approx(weights + 2 * counted.action_parameters)
    assert counted.video_training_gb * 1e9 > 3 * states
    monkeypatch.setattr(costs, "costs", lambda preset: counted)
    lines = costs.table().splitlines()
    assert [line.split(" | ")[0] for line in lines[3:]] == [f"| {name}" for name in PRESETS]
    assert f"{counted.video_parameters / 1e6:.4g}" in lines[3]


@pytest.mark.parametrize(
    ("name", "published"), [("wan2.1-1.3b", 1_418_996_800), ("wan2.2-5b", 4_999_787_712)]
)
def test_parameters_are_the_published_ones_and_the_branch_across_views(
    name: str, published: int
) -> None:
    """`published` was counted on diffusers' model of the published config."""
    shape = PRESETS[name].shape.video
    with torch.device("meta"):
        model = WallModel(PRESETS[name].shape)
    width = shape.width
    across = 4 * (width * width + width) + 2 * width + width  # projections, norms, the gate
    added = shape.depth * across + width + shape.cameras * shape.head_width // 2
    assert sum(p.numel() for p in model.video.parameters()) == published + added


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_preset_plans_for_its_own_windows(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = WallModel(TINY.shape).to(dtype)
    random = torch.Generator().manual_seed(0)
    given = TINY.window(1.0, future=False)
    window = replace(
        given, latents=torch.randn(given.latents.shape).to(dtype), text=given.text.to(dtype),
        state=given.state.to(dtype), left_s=None,
    )  # fmt: skip
    result = plan(model, [window], denoise_steps=2, random=random)
    assert result.actions.dtype == dtype
    assert result.actions.isfinite().all()
    assert set(PRESETS) == {"tiny", "demo", "wan2.1-1.3b", "wan2.2-5b"}
    assert presets.PRESETS["demo"].shape.coupling == "asymmetric"
