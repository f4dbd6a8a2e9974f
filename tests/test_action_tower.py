"""The coupling of the full model: one way, masked, packed or padded; where events end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import torch

from models.acting import Chunk, denoised, plan
from models.action_tower import _own_text
from models.dct import dct_matrix
from models.draws import Chances, Coupling, Draw, collate_draws, draw
from models.flow_matching import velocity
from models.packed import Packed
from models.rows import collate, evenly, first_fit
from models.schedule import anchor, levels
from models.wall import Losses, WallModel, held
from models.wall_shape import WallShape
from models.windows import Window, with_text
from tests.made_windows import CHANCES, FROZEN, LIMITS, SHAPE, some_views, window


def awake(coupling: Coupling = "symmetric", **changes: object) -> WallModel:
    """A model in which no branch is silent, as after some training."""
    torch.manual_seed(0)
    model = WallModel(replace(SHAPE, coupling=coupling, **changes))  # type: ignore[arg-type]
    for parameter in model.parameters():
        if not parameter.abs().sum():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def draws(windows: Sequence[Window], chances: Chances = CHANCES) -> list[Draw]:
    random = torch.Generator().manual_seed(7)
    return [draw(w, chances, random) for w in windows]


def losses(
    model: WallModel, windows: Sequence[Window], drawn: Sequence[Draw],
    rows: list[list[int]] | None = None,
) -> Losses:  # fmt: skip
    return model.losses(collate(windows, LIMITS, rows), collate_draws(drawn, rows))


def numbers(result: Losses) -> list[float]:
    return [getattr(result, n).item() for n in ("video", "action", "dct", "left", "done")]


LENGTHS = [(3, 8), (2, 3), (5, 13), (3, 9), (3, 24)]
EVENTS = [window(i, frames=f, steps=t) for i, (f, t) in enumerate(LENGTHS)]


@pytest.mark.parametrize("coupling", ["symmetric", "asymmetric"])
@torch.no_grad()
def test_packed_and_padded_batches_give_the_same_loss(coupling: Coupling) -> None:
    model = awake(coupling)
    events = [*EVENTS, some_views(window(9, views=2, frames=3, steps=5), [1], slots=2)]
    drawn = draws(events, CHANCES if coupling == "symmetric" else FROZEN)
    packed = first_fit([e.latents.shape[2] for e in events], budget=8)
    assert [len(row) for row in packed] == [3, 2, 1], "rows of different numbers of events"
    expected = numbers(losses(model, events, drawn))
    assert numbers(losses(model, events, drawn, packed)) == pytest.approx(expected, abs=1e-5)
    assert all(value > 0 for value in expected[1:])
    alone = [losses(model, [e], [d]) for e, d in zip(events, drawn, strict=True)]
    steps = [e.actions.numel() for e in events]
    mean = sum(a.action.item() * n for a, n in zip(alone, steps, strict=True)) / sum(steps)
    assert mean == pytest.approx(expected[1], abs=1e-5), "no event sees its neighbours"


@pytest.mark.parametrize("coupling", ["symmetric", "asymmetric"])
def test_the_actions_gradients_never_reach_the_video_tower(coupling: Coupling) -> None:
    model = awake(coupling)
    model.video.requires_grad_(True)
    result = losses(model, EVENTS, draws(EVENTS, CHANCES if coupling == "symmetric" else FROZEN))
    actions = result.action + result.dct + result.left + result.done
    reached = torch.autograd.grad(
        actions, list(model.video.parameters()), allow_unused=True, retain_graph=True
    )
    assert all(gradient is None for gradient in reached)
    own = torch.autograd.grad(
        actions, list(model.action.parameters()), allow_unused=True, retain_graph=True
    )
    assert all(g is not None and g.abs().sum() > 0 for g in own), "all of the action tower learns"
    if coupling == "symmetric":
        learned = torch.autograd.grad(result.video, list(model.video.parameters()))
        assert all(g.abs().sum() > 0 for g in learned), "all of the video tower learns from video"


def test_the_video_never_reads_actions() -> None:
    model = awake()
    drawn = draws(EVENTS)
    changed = [replace(e, actions=e.actions + 1) for e in EVENTS]
    before, after = losses(model, EVENTS, drawn), losses(model, changed, drawn)
    assert before.video == after.video
    assert before.action != after.action


def test_a_frozen_video_runs_once_for_all_noise_draws() -> None:
    model = awake("asymmetric")
    calls = []
    model.video.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    many = replace(FROZEN, action_samples=6)
    drawn = draws(EVENTS, many)
    result = losses(model, EVENTS, drawn)
    assert len(calls) == 2, "the anchor, and the clean frames that tell where the event ends"
    one_by_one = [
        losses(
            model,
            EVENTS,
            [
                replace(
                    d, action_sigma=d.action_sigma[:, i : i + 1],
                    action_noise=d.action_noise[:, i : i + 1],
                )
                for d in drawn
            ],
        ).action.item()
        for i in range(6)
    ]  # fmt: skip
    assert np.mean(one_by_one) == pytest.approx(result.action.item(), abs=1e-5)
    assert result.video.item() == 0
    assert not any(p.requires_grad for p in model.video.parameters())


def learning(share: float) -> WallModel:
    """A model whose video learns from some rows, beside the anchor's pass."""
    return awake("asymmetric", video_share=share)


@torch.no_grad()
def test_some_rows_teach_the_video_what_they_would_teach_it_alone() -> None:
    """And the actions read the anchor as beside a frozen video."""
    drawn = draws(EVENTS, FROZEN)
    alone = losses(awake("symmetric"), EVENTS[:2], draws(EVENTS[:2]))
    some = losses(learning(0.4), EVENTS, drawn)
    frozen = losses(learning(0.0), EVENTS, drawn)
    assert some.video > 0 and frozen.video == 0
    assert numbers(some)[1:] == numbers(frozen)[1:]
    pairs = [(d.sigma, d.noise, d.hidden) for d in drawn[:2]]
    same = [
        replace(d, sigma=s, noise=n, hidden=h)
        for d, (s, n, h) in zip(draws(EVENTS[:2]), pairs, strict=True)
    ]
    expected = losses(awake("symmetric"), EVENTS[:2], same).video
    torch.testing.assert_close(some.video, expected)
    assert alone.video != some.video, "other noise, another loss"


def test_where_both_towers_learn_at_the_anchor_actions_teach_the_video_nothing() -> None:
    model = learning(0.5)
    result = losses(model, EVENTS, draws(EVENTS, FROZEN))
    actions = result.action + result.dct + result.left + result.done
    video = list(model.video.parameters())
    reached = torch.autograd.grad(actions, video, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in reached)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(result.video, video))


PATCHED = replace(SHAPE, action=replace(SHAPE.action, patch_steps=3))


def patched_losses(
    events: list[Window], drawn: list[Draw], rows: list[list[int]] | None = None
) -> Losses:
    model = awake("asymmetric", action=PATCHED.action)
    return model.losses(collate(events, PATCHED.limits, rows), collate_draws(drawn, rows))


@torch.no_grad()
def test_tokens_of_several_steps_packed_and_padded_give_the_same_loss() -> None:
    """Lengths 8, 3, 13, 9, 24 in tokens of 3 steps: some are padded, some fit."""
    drawn = draws(EVENTS, replace(FROZEN, patch_steps=3))
    padded = numbers(patched_losses(EVENTS, drawn))
    packed = evenly([e.latents.shape[2] for e in EVENTS], [8, 3, 13, 9, 24], budget=8)
    assert numbers(patched_losses(EVENTS, drawn, packed)) == pytest.approx(padded, abs=1e-5)
    alone = [patched_losses([e], [d]).action.item() for e, d in zip(EVENTS, drawn, strict=True)]
    steps = [len(e.actions) for e in EVENTS]
    assert np.average(alone, weights=steps) == pytest.approx(padded[1], abs=1e-5)


@torch.no_grad()
def test_what_pads_a_token_is_neither_read_nor_counted() -> None:
    drawn = draws([EVENTS[0]], replace(FROZEN, patch_steps=3))
    assert drawn[0].action_noise.shape[0] == 9, "8 steps in 3 tokens"
    noise = drawn[0].action_noise.clone()
    noise[8] += 5.0
    other = patched_losses([EVENTS[0]], [replace(drawn[0], action_noise=noise)])
    assert numbers(other) == numbers(patched_losses([EVENTS[0]], drawn))
    noise[7] += 5.0
    changed = patched_losses([EVENTS[0]], [replace(drawn[0], action_noise=noise)])
    assert changed.action != other.action


@torch.no_grad()
def test_plans_of_tokens_of_several_steps_are_as_long_as_the_model_says() -> None:
    model = awake("asymmetric", action=PATCHED.action)
    model.action.ends.head.weight.zero_()
    model.action.ends.head.bias.copy_(torch.tensor([np.log(0.5), 0.0]))  # 10 steps, 4 tokens
    scene = window(0, frames=1, steps=0, limits=PATCHED.limits)
    random = torch.Generator().manual_seed(0)
    result = plan(model, [scene], denoise_steps=2, random=random)
    assert result.steps.tolist() == [10]
    assert result.actions[0, :10].abs().min() > 0
    assert result.actions[0, 10:].abs().sum() == 0


@torch.no_grad()
def test_actions_and_ends_know_by_which_camera_and_where_something_was_seen() -> None:
    """The same patches under another camera's name, or in another order, say something else."""
    model = awake("asymmetric")
    for parameter in model.video.cameras.parameters():
        parameter.zero_()  # the video tower itself cannot tell cameras apart
    event = EVENTS[0]
    drawn = draws([event], FROZEN)
    base = numbers(losses(model, [event], drawn))
    other = numbers(losses(model, [replace(event, camera=torch.tensor([2, 3]))], drawn))
    assert all(abs(a - b) > 1e-6 for a, b in zip(base[1:], other[1:], strict=True))
    rows = collate([event], LIMITS)
    features = [torch.randn(1, 2, 12, SHAPE.video.width) for _ in range(SHAPE.video.depth)]
    turned = [f.unflatten(2, (3, 4)).flip(3).flatten(2, 3) for f in features]
    ends = [model.action.where_it_ends(rows, f[0])[0] for f in (features, turned)]
    assert abs((ends[0] - ends[1]).item()) > 1e-6


def test_rows_hold_about_equally_many_steps() -> None:
    frames, steps = [2, 2, 2, 2, 2, 2], [80, 70, 60, 8, 16, 24]
    rows = evenly(frames, steps, budget=4)
    assert sorted(rows) == [[0, 3], [1, 4], [2, 5]]
    totals = [sum(steps[i] for i in row) for row in rows]
    assert max(totals) == 88
    random = np.random.default_rng(0)
    many, long = random.integers(1, 8, 50).tolist(), random.integers(1, 90, 50).tolist()
    rows = evenly(many, long, budget=8)
    assert sorted(i for row in rows for i in row) == list(range(50))
    assert max(sum(many[i] for i in row) for row in rows) <= 8
    assert rows == evenly(many, long, budget=8)
    random = np.random.default_rng(1)
    count: Counter[str] = Counter()
    for _ in range(400):  # one long window to a row, or four short ones
        rows = evenly(frames := random.choice([2, 8], 32, p=[0.8, 0.2]).tolist(), frames, budget=8)
        count["long"] += sum(len(row) == 1 for row in rows)
        count["all"] += len(rows)
        count["long of first"] += sum(len(row) == 1 for row in rows[: len(rows) // 4])
        count["first"] += len(rows) // 4
    share = count["long"] / count["all"]
    assert count["long of first"] / count["first"] == pytest.approx(share, abs=0.04)


def test_no_window_reads_nothing_when_asked_where_it_ends() -> None:
    """Of three windows two share a row, so the other row has one that is padding."""
    rows = collate([window(0, frames=2), window(1, frames=2), window(2)], LIMITS, [[0, 1], [2]])
    asking = torch.arange(rows.state.shape[1]).expand(len(rows.state), -1)
    own = _own_text(asking, rows)
    assert not rows.text_mask[1, 1].any() and own.any(dim=-1).all()
    assert torch.equal(own[0].unflatten(1, (2, -1)).any(dim=-1), torch.eye(2, dtype=torch.bool))


@torch.no_grad()
def test_held_out_every_row_counts_for_the_video() -> None:
    drawn = draws(EVENTS)
    some, whole = (awake("asymmetric", video_share=share) for share in (0.25, 1.0))
    all_rows = losses(whole, EVENTS, drawn).video
    assert losses(some, EVENTS, drawn).video != all_rows
    torch.testing.assert_close(losses(some.eval(), EVENTS, drawn).video, all_rows)


def test_a_frozen_video_sees_no_future_and_no_pure_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and acting see the same: the anchor frame held still, at the level of step 45."""
    model = awake("asymmetric")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    features = model.video.features
    monkeypatch.setattr(
        model.video, "features", lambda *args: seen.append(args[:2]) or features(*args)
    )
    event = EVENTS[2]
    other = event.latents.clone()
    other[:, :, 1:] += 7.0
    drawn = draws([event], FROZEN)
    for e in (event, replace(event, latents=other)):
        losses(model, [e], drawn)
    torch.testing.assert_close(seen[0][0], seen[2][0])
    noise = drawn[0].noise
    expected = 0.1 * event.latents[:, :, :1] + 0.9 * noise[:, :, 1:]
    torch.testing.assert_close(seen[0][0][0, :, :, 1:], expected)
    torch.testing.assert_close(seen[0][0][0, :, :, 0], event.latents[:, :, 0])
    assert seen[0][1][0].tolist() == pytest.approx([0, 0.9, 0.9, 0.9, 0.9])


def test_the_future_held_still_repeats_each_windows_own_anchor() -> None:
    events = [window(1, frames=4, clean=2), window(2, frames=3, clean=1)]
    still = held(collate(events, LIMITS, [[0, 1]]))[0]
    for place, (event, frame) in enumerate(
        [(0, 0), (0, 1), (0, 1), (0, 1), (1, 0), (1, 0), (1, 0)]
    ):
        assert torch.equal(still[:, :, place], events[event].latents[:, :, frame])


def test_the_length_of_an_event_is_told_from_its_clean_frames_alone() -> None:
    """The number of future frames or steps would give the answer away in training."""
    model = awake()
    drawn = draws(EVENTS)
    latents = [e.latents.clone() for e in EVENTS]
    for other in latents:
        other[:, :, 1:] += 3.0
    pairs = zip(EVENTS, latents, strict=True)
    changed = losses(model, [replace(e, latents=other) for e, other in pairs], drawn)
    given = losses(model, EVENTS, drawn)
    assert changed.video != given.video
    assert (changed.left, changed.done) == (given.left, given.done)
    short = window(3, frames=2, steps=4, clean=1)
    longer = replace(window(3, frames=6, steps=20, clean=1), state=short.state, text=short.text)
    longer.latents[:, :, 0] = short.latents[:, :, 0]
    values = [
        model.ends(collate(pair, LIMITS, rows).only_clean())
        for pair, rows in (([short], None), ([longer], None), ([longer, short], [[0, 1]]))
    ]
    for left, done in values:
        torch.testing.assert_close(left[0, -1], values[0][0][0, 0])
        torch.testing.assert_close(done[0, -1], values[0][1][0, 0])
    history = [replace(window(5, frames=5, clean=3), state=short.state), short]
    packed = model.ends(collate(history, LIMITS, [[0, 1]]).only_clean())[0]
    alone = [model.ends(collate([w], LIMITS).only_clean())[0].item() for w in history]
    torch.testing.assert_close(packed[0], torch.tensor(alone))


def test_dimensions_that_a_robot_lacks_do_not_count() -> None:
    model = awake()
    lacking = replace(EVENTS[0], action_mask=torch.tensor([True, False]))
    drawn = draws([lacking])
    noise = drawn[0].action_noise.clone()
    noise[..., 1] += 5.0
    other = [replace(drawn[0], action_noise=noise)]
    changed = replace(lacking, actions=lacking.actions * torch.tensor([1.0, 9.0]))
    assert numbers(losses(model, [lacking], drawn)) == pytest.approx(
        numbers(losses(model, [changed], other)), abs=1e-6
    )
    gradient = torch.autograd.grad(
        losses(model, [lacking], drawn).action, model.action.head.weight
    )[0]
    assert gradient[1].abs().sum() == 0 and gradient[0].abs().sum() > 0
    state = replace(EVENTS[0], state_mask=torch.tensor([True, True, False]))
    moved = replace(state, state=state.state + torch.tensor([0, 0, 4.0]))
    assert numbers(losses(model, [state], drawn)) == numbers(losses(model, [moved], drawn))


def test_a_robots_embodiment_state_and_words_reach_its_actions() -> None:
    model = awake("asymmetric")
    drawn = draws(EVENTS[:1], FROZEN)
    base = losses(model, EVENTS[:1], drawn).action.item()
    for change in (
        {"embodiment": 1}, {"state": EVENTS[0].state + 1}, {"text": EVENTS[0].text + 1},
        {"frame_s": EVENTS[0].frame_s * 3}, {"step_s": 0.5},
    ):  # fmt: skip
        changed = replace(EVENTS[0], **change)  # type: ignore[arg-type]
        assert abs(losses(model, [changed], drawn).action.item() - base) > 1e-6, change


@torch.no_grad()
def test_another_robot_weighs_from_the_start_as_much_as_another_state() -> None:
    """Or hundreds of steps pass before the tower tells robots apart (LOG.md)."""
    torch.manual_seed(0)
    tower = WallModel(SHAPE).action
    one, later = window(0), window(2)  # of the same robot
    windows = one, later, replace(one, embodiment=1)
    mine, moved, renamed = (tower._robot(collate([w], LIMITS)) for w in windows)
    assert 0.5 < (renamed - mine).norm() / (moved - mine).norm() < 5


@torch.no_grad()
def test_x_prediction_gives_the_velocity_of_the_same_flow() -> None:
    """A head that says the clean action exactly has no loss, and acting ends at what it says."""
    model = awake(action=replace(SHAPE.action, prediction="x"))
    event = EVENTS[0]
    constant = torch.tensor([0.3, -0.8])
    event = replace(event, actions=constant.expand(8, 2).clone())
    model.action.head.weight.zero_()
    model.action.head.bias.copy_(constant)
    for sigma in (0.01, 0.06, 0.5, 1.0):
        drawn = [replace(d, action_sigma=torch.tensor([[sigma]])) for d in draws([event])]
        result = losses(model, [event], drawn)
        assert result.action.item() < 1e-9 and result.dct.item() < 1e-9
    rows = collate([event], LIMITS)
    for steps in (4, 40):
        found, _ = denoised(model.eval(), rows, steps, torch.Generator().manual_seed(0))
        torch.testing.assert_close(found, constant.expand(found.shape), atol=1e-5, rtol=0)


def test_the_dct_agrees_with_scipy_in_packed_rows() -> None:
    events = [window(0, frames=2, steps=7), window(1, frames=2, steps=4)]
    rows = collate([*events, window(2, frames=2, steps=13)], LIMITS, [[0, 1], [2]])
    got = dct_matrix(rows) @ rows.actions
    expected = [scipy.fft.dct(e.actions.numpy(), type=2, norm="ortho", axis=0) for e in events]
    np.testing.assert_allclose(got[0, :7], expected[0], atol=1e-5)
    np.testing.assert_allclose(got[0, 7:11], expected[1], atol=1e-5)
    assert got[0, 11:].abs().sum() == 0


@torch.no_grad()
def test_the_dct_loss_minds_jitter_more_than_drift_and_less_under_noise() -> None:
    model = awake()
    model.action.head.weight.zero_()  # velocity 0: the error is sigma (clean - noise)
    model.action.head.bias.zero_()
    t = torch.arange(16.0)
    still = replace(window(0, frames=2, steps=16), actions=torch.zeros(16, 2))

    def loss(wave: torch.Tensor, sigma: float) -> float:
        noise = wave[:, None, None].expand(16, 1, 2).contiguous()
        drawn = replace(draws([still])[0], action_noise=noise, action_sigma=torch.tensor([[sigma]]))
        return losses(model, [still], [drawn]).dct.item() / sigma**2

    jitter, drift = (torch.cos(torch.pi * (t + 0.5) * k / 16) for k in (14, 1))
    assert loss(jitter, 0.5) == pytest.approx(14 * loss(drift, 0.5), rel=1e-4)
    assert loss(jitter, 0.9) == pytest.approx(loss(jitter, 0.5) * 0.1 / 0.5, rel=1e-4)


@torch.no_grad()
def test_tubes_weigh_more_and_clean_frames_and_borders_nothing() -> None:
    """Recomputed by hand from the tower's own prediction."""
    model = awake()
    inside = EVENTS[0].inside.clone()
    inside[1, :, 0] = False
    event = replace(EVENTS[0], inside=inside)
    hidden = torch.zeros_like(inside)
    hidden[0, :, 2] = True
    one = replace(draws([event])[0], hidden=hidden)
    rows = collate([event], LIMITS)
    sigma = torch.where(rows.clean, 0.0, one.sigma)
    noisy = event.latents.clone()
    noisy[:, :, 1:] = (1 - one.sigma) * noisy[:, :, 1:] + one.sigma * one.noise[:, :, 1:]
    predicted, _ = model.video(noisy[None], sigma, rows, hidden[None])
    target = velocity(event.latents, one.noise)
    total = weight = 0.0
    for v in range(2):
        for f in (1, 2):
            for p in range(4):
                w = (3.0 if hidden[v, f, p] else 1.0) * float(inside[v, f, p])
                y, x = divmod(p, 2)
                patch = target[v, :, f, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                got = predicted[0, v, f, p].view(2, 2, 4).permute(2, 0, 1)
                total += w * (got - patch).square().mean().item()
                weight += w
    assert losses(model, [event], [one]).video.item() == pytest.approx(total / weight, rel=1e-5)


@torch.no_grad()
def test_three_text_sides_are_interchangeable() -> None:
    """A global instruction, an atomic one and latents, of different lengths, in one batch."""
    model = awake("asymmetric")
    sides = [torch.randn(tokens, LIMITS.text_width) for tokens in (7, 2, 4)]
    alone = [with_text(EVENTS[0], side, tokens=len(side)) for side in sides]
    drawn = draws([EVENTS[0]] * 3, FROZEN)
    each = [losses(model, [w], [d]).action.item() for w, d in zip(alone, drawn, strict=True)]
    together = [with_text(EVENTS[0], side, tokens=8) for side in sides]
    assert losses(model, together, drawn).action.item() == pytest.approx(np.mean(each), abs=1e-5)
    other = [with_text(EVENTS[0], side + 1, tokens=8) for side in sides]
    assert abs(losses(model, other, drawn).action.item() - np.mean(each)) > 1e-4
    with pytest.raises(ValueError, match="at most 3 tokens, got 7"):
        with_text(EVENTS[0], sides[0], tokens=3)


def test_training_on_packed_events_lowers_every_loss() -> None:
    """A few steps on five events that differ in length, robot and words."""
    torch.manual_seed(0)
    model = WallModel(SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)

    def at(seed: int) -> Losses:
        random = torch.Generator().manual_seed(seed)
        return model.losses(*Packed.of(EVENTS, LIMITS, CHANCES).with_noise(random))

    @torch.no_grad()
    def mean() -> np.ndarray:  # type: ignore[type-arg]
        return np.mean([numbers(at(1000 + seed)) for seed in range(4)], axis=0)

    before = mean()
    for seed in range(60):
        optimizer.zero_grad()
        at(seed).total.backward()
        optimizer.step()
    video, *others = mean() / before
    assert video < 0.95
    assert all(ratio < 0.8 for ratio in others), others


def test_levels_of_noise() -> None:
    assert anchor(1.0) == pytest.approx(0.9)
    assert anchor(5.0) == pytest.approx(4.5 / 4.6)
    assert levels(4, 1.0).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert levels(2, 3.0).tolist() == pytest.approx([1, 0.75, 0])


@pytest.mark.parametrize("coupling", ["symmetric", "asymmetric"])
def test_plans_end_where_the_model_says(coupling: Coupling) -> None:
    model = awake(coupling)
    scenes = [window(i, frames=1, steps=0) for i in range(3)]
    with torch.no_grad():
        model.action.ends.head.bias.copy_(torch.tensor([-0.9, 0.0]))  # 0.4 s
    left, _ = model.ends(collate(scenes, LIMITS))
    wanted = (left[:, 0].exp() / 0.05).round().clamp(1, 24).tolist()

    def planned(scenes: list[Window], chunk: Chunk | None = None):  # type: ignore[no-untyped-def]
        random = torch.Generator().manual_seed(0)
        return plan(model, scenes, denoise_steps=2, random=random, chunk=chunk)

    result = planned(scenes)
    assert result.steps.tolist() == wanted
    for actions, steps in zip(result.actions, wanted, strict=True):
        assert actions[: int(steps)].abs().min() > 0
        assert actions[int(steps) :].abs().sum() == 0
    assert torch.equal(planned(scenes).actions, result.actions)
    assert (result.video is None) == (coupling == "asymmetric")
    if result.video is not None:
        assert torch.equal(
            result.video[:, :, :, 0], torch.stack([s.latents[:, :, 0] for s in scenes])
        )
    unified = [window(i, frames=3, clean=3, steps=0) for i in range(2)]
    chunk = planned(unified, Chunk(frames=2, steps=6))
    assert chunk.steps.tolist() == [6, 6] and chunk.actions.shape == (2, 6, 2)


def test_a_shape_survives_its_own_json() -> None:
    assert WallShape.from_dict(SHAPE.as_dict()) == SHAPE


def test_wrong_windows_are_refused_with_everything_that_is_wrong() -> None:
    good = window(0)
    wrong: list[tuple[dict[str, object], str]] = [
        ({"state": torch.zeros(7)}, r"state: expected shape \(3,\), got \(7,\)"),
        ({"latents": torch.zeros(2, 4, 3)}, r"expected \(V, C, F, H, W\), got \(2, 4, 3\)"),
        ({"latents": torch.zeros(2, 5, 3, 4, 4)}, "expected 4 channels, got 5"),
        ({"embodiment": 2}, "embodiment: unknown, expected an id below 2, got 2"),
        ({"camera": torch.tensor([0, 4])}, r"expected ids below 4 .*got \[0, 4\]"),
        ({"camera": torch.tensor([1, 1])}, r"each once, got \[1, 1\]"),
        ({"clean": 4}, "expected 1 to 3 frames, got 4"),
        ({"text_mask": torch.zeros(5, dtype=torch.bool)}, "at least one token, got none"),
        ({"step_s": 0.0}, "more than 0 seconds, got 0.0"),
        ({"done": 1.5}, "expected 0 to 1, got 1.5"),
        ({"left_s": -1.0}, "left_s: expected more than 0 seconds, got -1.0"),
        ({"meet": torch.ones(3, 2, 2)}, r"meet: expected shape \(3, 8, 8\), got \(3, 2, 2\)"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            collate([replace(good, **change)], LIMITS)  # type: ignore[arg-type]
    for name in ("latents", "state", "actions", "text", "frame_s"):
        broken = getattr(good, name).clone()
        broken.view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers, got 1 NaN"):
            collate([replace(good, **{name: broken})], LIMITS)
    with pytest.raises(ValueError, match="budget of 8 latent frames, got 9"):
        collate([window(0, frames=9)], LIMITS)
    with pytest.raises(ValueError, match="budget of 24 control steps, got 25"):
        collate([window(0, steps=25)], LIMITS)
    with pytest.raises(ValueError, match="at most 8 latent frames, got 9 for event 1"):
        first_fit([3, 9], budget=8)
    with pytest.raises(ValueError, match=r"equal .*text tokens"):
        collate([good, window(1, text=6)], LIMITS)
    with pytest.raises(ValueError, match="1-to-1, expected action_samples 1, got 4"):
        replace(CHANCES, action_samples=4)
