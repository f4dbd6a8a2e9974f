"""The model's mathematics: codec, masks, one-way coupling, flow matching; on independent sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.batch import Batch
from models.flow_matching import add_noise, euler, masked_mean, velocity
from models.video import patches
from models.wam import Shape, WorldActionModel

TINY = Shape(
    width=32, depth=2, heads=2, key_px=24, key_patch_px=12, future_px=8, future_patch_px=4,
    future_frames=2, views=2, text_width=8, state_width=4, action_width=4, action_patch_steps=4,
    max_steps=16, action_samples=2, anchor_probability=0.5,
)  # fmt: skip


@pytest.fixture
def model() -> WorldActionModel:
    torch.manual_seed(0)
    model = WorldActionModel(TINY)
    for parameter in model.parameters():  # zero-initialised parts must take part in these tests
        if not parameter.abs().sum():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def losses(model: WorldActionModel, batch: Batch) -> tuple[float, float, float]:
    result = model.losses(batch, torch.Generator().manual_seed(1))
    return result.action.item(), result.video.item(), result.left.item()


def test_patches_cut_the_picture_row_by_row() -> None:
    picture = torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    cut = patches(picture, 2)
    assert cut.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            expected = picture[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(cut[1, row * 3 + column].view(3, 2, 2), expected)


def test_euler_recovers_the_data_along_a_straight_path() -> None:
    clean, noise = torch.randn(3, 5), torch.randn(3, 5)
    exact = euler(lambda x, sigma: velocity(clean, noise), noise, steps=4)
    torch.testing.assert_close(exact, clean)
    half = add_noise(clean, noise, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(half[0], clean[0])
    torch.testing.assert_close(half[1], (clean[1] + noise[1]) / 2)
    torch.testing.assert_close(half[2], noise[2])


def test_masked_mean_is_the_mean_of_what_is_kept() -> None:
    values, mask = torch.arange(6.0).view(2, 3), torch.tensor([[True, False, True], [False] * 3])
    assert masked_mean(values, mask).item() == pytest.approx((0 + 2) / 2)
    assert masked_mean(values, torch.zeros(2, 3, dtype=torch.bool)).item() == 0


def test_what_lies_past_the_events_end_changes_nothing(model: WorldActionModel) -> None:
    batch = Batch.fake()
    batch = replace(batch, length=torch.tensor([8, 12]))
    past = ~batch.step_mask[..., None]
    garbage = replace(batch, actions=torch.where(past, 99.0, batch.actions))
    assert losses(model, batch) == pytest.approx(losses(model, garbage), abs=1e-6)


def test_an_absent_camera_changes_nothing(model: WorldActionModel) -> None:
    batch = Batch.fake()
    one = torch.tensor([[True, False], [True, False]])
    absent = replace(batch, view_mask=one)
    other = batch.keyframes.clone()
    other[:, 1] = 7.0
    changed = replace(absent, keyframes=other)
    assert losses(model, absent) == pytest.approx(losses(model, changed), abs=1e-6)
    assert losses(model, batch) != pytest.approx(losses(model, changed), abs=1e-6)


def test_dimensions_that_a_robot_lacks_do_not_count(model: WorldActionModel) -> None:
    batch = replace(Batch.fake(), action_mask=torch.tensor([[True, True, False, False]] * 2))
    result = model.losses(batch, torch.Generator().manual_seed(1)).action
    (gradient,) = torch.autograd.grad(result, [model.action.head.weight])
    per_dimension = gradient.view(TINY.action_patch_steps, TINY.action_width, -1).abs().sum((0, 2))
    assert per_dimension[2:].sum() == 0
    assert (per_dimension[:2] > 0).all()


def test_video_never_reads_actions(model: WorldActionModel) -> None:
    batch = Batch.fake()
    video = losses(model, batch)[1]
    assert losses(model, replace(batch, actions=batch.actions + 1))[1] == video
    loss = model.losses(batch, torch.Generator().manual_seed(1)).video
    gradients = torch.autograd.grad(loss, list(model.action.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_cross_view_attention_starts_at_zero() -> None:
    """At initialisation a view's features do not depend on the other views (WALL-WM)."""
    torch.manual_seed(0)
    model = WorldActionModel(TINY)
    batch = Batch.fake()
    noise = torch.randn(2, 2, 2, 4, 48)
    sigma = torch.tensor([0.3, 1.0])
    other = batch.keyframes.clone()
    other[:, 1] += 1
    args = (noise, sigma, batch.text, batch.view_mask)
    first, second = (model.video(keys, *args)[1][-1] for keys in (batch.keyframes, other))
    tokens = first.shape[1] // 2
    torch.testing.assert_close(first[:, :tokens], second[:, :tokens])
    assert not torch.allclose(first[:, tokens:], second[:, tokens:])


def test_generated_events_end_where_the_model_says(model: WorldActionModel) -> None:
    actions, length = model.act(
        Batch.fake(), denoise_steps=3, random=torch.Generator().manual_seed(0)
    )
    assert actions.shape[0] == 2 and actions.shape[2] == 4
    assert ((length >= 1) & (length <= TINY.max_steps)).all()
    for sample, steps in zip(actions, length.tolist(), strict=True):
        assert sample[:steps].abs().sum() > 0
        assert sample[steps:].abs().sum() == 0
    again, _ = model.act(Batch.fake(), denoise_steps=3, random=torch.Generator().manual_seed(0))
    assert torch.equal(actions, again)


def test_a_few_steps_on_one_batch_lower_every_loss(model: WorldActionModel) -> None:
    batch = Batch.fake(size=8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def mean_loss() -> torch.Tensor:
        with torch.no_grad():
            rounds = [model.losses(batch, torch.Generator().manual_seed(100 + i)) for i in range(8)]
        return torch.stack([torch.stack([r.action, r.video, r.left]) for r in rounds]).mean(0)

    before = mean_loss()
    for i in range(60):
        optimizer.zero_grad()
        model.losses(batch, torch.Generator().manual_seed(i)).total.backward()
        optimizer.step()
    assert (mean_loss() < before * torch.tensor([0.8, 0.98, 0.5])).all()


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 3 heads"):
        WorldActionModel(replace(TINY, heads=3))
    with pytest.raises(ValueError, match="max_steps 15"):
        WorldActionModel(replace(TINY, max_steps=15))
