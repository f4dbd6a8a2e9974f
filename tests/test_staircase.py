"""Staircase latents on a small random Qwen3.5: relay, parallel stairs, what learns and what not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5Model,
    Qwen3_5TextConfig,
    Qwen3_5TextModel,
)

from components.errors import UserError
from components.reasoning import SmallModel, frozen, remember
from models.draws import collate_draws, draw
from models.rows import collate
from models.staircase import (
    PrefixProjector,
    Remembered,
    Staircase,
    StairShape,
    reconstruction_loss,
    turned,
)
from models.wall import WallModel
from tests.benchmarks.staircase import flops
from tests.made_windows import FROZEN, LIMITS, SHAPE, window

VOCABULARY = 50
CONFIG = Qwen3_5TextConfig(
    vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=6,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, linear_key_head_dim=8,
    linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2,
    layer_types=["linear_attention", "full_attention"] * 3, max_position_embeddings=64,
    rope_parameters={
        "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1], "mrope_interleaved": True,
    },
    pad_token_id=0,
)  # fmt: skip
STAIRS = StairShape(
    width=20, heads=4, key_heads=2, head_width=16, feed_width=32, depth=3, relay_depth=2, stairs=4,
    text_width=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> Qwen3_5TextModel:
    torch.manual_seed(0)
    return frozen(Qwen3_5TextModel(CONFIG))  # type: ignore[return-value]


@pytest.fixture
def staircase() -> Staircase:
    torch.manual_seed(1)
    return Staircase(STAIRS)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 7 and of 4 tokens."""
    ids = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    return ids * mask, mask


@pytest.fixture
def prompt(backbone: Qwen3_5TextModel) -> Remembered:
    return remember(backbone, *prompts())


def test_all_stairs_at_once_equal_one_at_a_time(staircase: Staircase, prompt: Remembered) -> None:
    together = staircase(prompt)
    relay = staircase.relay(prompt)
    apart = [staircase.climb(relay, prompt, [stair]) for stair in range(4)]
    assert together.shape == (2, 4, 20)
    torch.testing.assert_close(together, torch.cat(apart, dim=1), atol=1e-6, rtol=1e-5)
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-3


def test_layers_below_the_relay_run_once_and_for_one_state(
    staircase: Staircase, prompt: Remembered
) -> None:
    calls: list[tuple[int, int]] = []
    for layer, block in enumerate(staircase.blocks):
        block.register_forward_pre_hook(
            lambda _, args, layer=layer: calls.append((layer, args[0].shape[1]))
        )
    staircase(prompt)
    assert calls == [(0, 1), (1, 1), (2, 4)]


def test_padding_of_a_prompt_changes_nothing(
    backbone: Qwen3_5TextModel, staircase: Staircase, prompt: Remembered
) -> None:
    ids, mask = prompts()
    alone = staircase(remember(backbone, ids[1:, :4], mask[1:, :4]))
    torch.testing.assert_close(staircase(prompt)[1:], alone, atol=1e-5, rtol=1e-4)
    first = torch.tensor([[False, True]])
    with pytest.raises(UserError, match="expected padding at the end"):
        remember(backbone, torch.tensor([[0, 3]]), first)


def test_what_is_remembered_is_what_the_backbone_reads(backbone: Qwen3_5TextModel) -> None:
    """A stair with the backbone's own weights attends as the backbone's next token does."""
    ids, _ = prompts()
    ids = ids[:1]
    prompt = remember(backbone, ids, torch.ones(1, 7, dtype=torch.bool))
    seen: list[torch.Tensor] = []
    attention = backbone.layers[1].self_attn
    hooks = [
        attention.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
        ),
        attention.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
    ]
    backbone(torch.cat([ids, torch.tensor([[5]])], dim=1))
    for hook in hooks:
        hook.remove()
    hidden, attended = seen[0][:, -1:], seen[1][:, -1:]
    q, gate = attention.q_proj(hidden).view(1, 1, 4, 32).chunk(2, dim=-1)
    q = turned(attention.q_norm(q).transpose(1, 2), prompt)
    k = attention.k_norm(attention.k_proj(hidden).view(1, 1, 2, 16)).transpose(1, 2)
    keys = torch.cat([prompt.keys[0], turned(k, prompt)], dim=2).repeat_interleave(2, dim=1)
    v = attention.v_proj(hidden).view(1, 1, 2, 16).transpose(1, 2)
    values = torch.cat([prompt.values[0], v], dim=2).repeat_interleave(2, dim=1)
    weights = (q @ keys.mT / 4).softmax(-1)
    ours = (weights @ values).transpose(1, 2).flatten(2) * gate.flatten(2).sigmoid()
    torch.testing.assert_close(ours, attended, atol=1e-5, rtol=1e-4)


def test_prompts_with_pictures_are_remembered_too(staircase: Staircase) -> None:
    """A picture of 2 x 2 merged patches counts 4 tokens and 2 positions (its longer side)."""
    torch.manual_seed(0)
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "out_hidden_size": 24, "num_position_embeddings": 16,
    }  # fmt: skip
    whole = Qwen3_5Config(
        text_config=CONFIG.to_dict(), vision_config=vision, image_token_id=48,
        vision_start_token_id=47, vision_end_token_id=46, video_token_id=45,
    )  # fmt: skip
    model = frozen(Qwen3_5Model(whole))
    ids = torch.tensor([[3, 47, 48, 48, 48, 48, 46, 5, 6]])

    def states(pixels: torch.Tensor) -> torch.Tensor:
        seen = {
            "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": (ids == 48).int(),
        }  # fmt: skip
        prompt = remember(model, ids, torch.ones_like(ids, dtype=torch.bool), **seen)
        torch.testing.assert_close(prompt.cos[0, 0], torch.tensor(7.0).cos())
        return staircase(prompt)

    assert (states(torch.randn(16, 96)) - states(torch.randn(16, 96))).abs().max() > 1e-4


def test_a_frozen_small_model_says_the_text_again(
    backbone: Qwen3_5TextModel, staircase: Staircase, prompt: Remembered
) -> None:
    """Only the branch and the projector learn; the loss falls; each stair's own text counts."""
    torch.manual_seed(3)
    small = SmallModel(frozen(Qwen3_5ForCausalLM(CONFIG)))
    torch.nn.init.normal_(small.model.lm_head.weight)  # one that has opinions
    projector = PrefixProjector(STAIRS.width, tokens=2, lm_width=24)
    text = torch.randint(1, VOCABULARY, (2, 4, 5))
    mask = torch.ones_like(text, dtype=torch.bool)
    mask[0, 1, 3:] = False

    def loss(text: torch.Tensor = text) -> torch.Tensor:
        return reconstruction_loss(
            projector(staircase(prompt)), text, mask, embed=small.embed,
            language_model=small.logits,
        )  # fmt: skip

    changed = text.clone()
    changed[0, 1, 3:] = 9
    assert loss() == loss(changed), "what is masked does not count"
    first = loss()
    first.backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(p.grad is None for p in small.model.parameters())
    learned = [p for n, p in staircase.named_parameters() if not n.startswith("to_text")]
    learned += list(projector.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    optimizer = torch.optim.Adam(learned, 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.7 * first


def test_reconstruction_is_cross_entropy_of_the_next_token() -> None:
    """By hand, on a language model whose logits are its embeddings."""
    prefix = torch.randn(1, 2, 3, 6)
    text, mask = torch.tensor([[[1, 4], [2, 0]]]), torch.tensor([[[True, True], [True, False]]])
    table = torch.randn(6, 6)
    got = reconstruction_loss(
        prefix, text, mask, embed=lambda ids: table[ids], language_model=lambda x, _: x
    )
    logits = [(prefix[0, 0, -1], 1), (table[1], 4), (prefix[0, 1, -1], 2)]
    expected = -sum(x.log_softmax(-1)[token] for x, token in logits) / 3
    torch.testing.assert_close(got, expected)


def test_the_path_from_prompt_to_action_is_differentiable(
    backbone: Qwen3_5TextModel, staircase: Staircase, prompt: Remembered
) -> None:
    """Latents stand where sentences stand: the action's loss reaches the staircase alone."""
    torch.manual_seed(0)
    model = WallModel(replace(SHAPE, coupling="asymmetric"))
    torch.nn.init.normal_(model.action.head.weight)
    model.video.requires_grad_(True)
    latents = staircase.text_side(staircase(prompt))
    spoken = window(0, text=4)
    windows = [
        spoken,
        replace(window(1, text=4), text=latents[0]),
        replace(window(2, text=4), text=latents[1]),
    ]
    random = torch.Generator().manual_seed(0)
    drawn = collate_draws([draw(w, FROZEN, random) for w in windows])
    loss = model.losses(collate(windows, LIMITS), drawn).action
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in staircase.parameters())
    assert all(p.grad is None for p in model.video.parameters())
    assert all(p.grad is None for p in backbone.parameters())


def test_wrong_sizes_are_refused(staircase: Staircase, prompt: Remembered) -> None:
    with pytest.raises(ValueError, match="relay depth between 1 and 2, got 3"):
        replace(STAIRS, relay_depth=3)
    with pytest.raises(ValueError, match="multiples of 3 key heads, got 4"):
        replace(STAIRS, key_heads=3)
    fewer = prompt._replace(keys=prompt.keys[:2], values=prompt.values[:2])
    with pytest.raises(ValueError, match=r"expected a backbone .*\(3, 2, 16\), got \(2, 2, 16\)"):
        staircase(fewer)


def test_the_relay_saves_what_it_does_not_repeat(prompt: Remembered) -> None:
    """Of three layers for four stairs, one runs once, or two do: 9 passes of a layer, or 6."""
    one, two = (flops(replace(STAIRS, relay_depth=n), prompt) for n in (1, 2))
    assert one / two == pytest.approx(9 / 6, rel=0.02)
