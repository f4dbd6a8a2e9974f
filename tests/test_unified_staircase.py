"""Unified mode on the staircase's states: trained, served and started from what came before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from components.encoders import SentenceTokens
from components.errors import DataError, UserError
from components.outputs import write_json
from components.pretraining import chosen, initial, results, stage, view
from components.pretraining.full_windows import FullWindows
from components.pretraining.saver import Saver
from components.pretraining.training import Training
from components.reasoning import Backbone
from components.serving.full import FullModel
from components.serving.policy import Policy
from models.packed import Packed
from models.staircase import Remembered, Thoughts
from models.wall import WallModel
from tests import made_qwen
from tests.made_training import VALUES, write
from tests.muon_ranks import on_ranks

CHUNKS = {"windows": "chunk", "chunk_s": 0.2}
THINKS = CHUNKS | {"words": "staircase", "stage": "action", "coupling": "asymmetric"}
STAGE = {"stage": "staircase"}


def config(of: dict[str, Any], **changes: Any) -> stage.Config:
    """Values with changes; `of` changes those of the full model."""
    base = VALUES | {"preset": "tiny", "processes": 1, "adamw_lr": 0.01}
    full: dict[str, Any] = VALUES["full"]  # type: ignore[assignment]
    return stage.Config.model_validate(base | changes | {"full": full | of})


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one, and a store of the module's own."""
    meeting, threads = tmp_path_factory.mktemp("group") / "meet", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("WAMFLOW_STORE", str(tmp_path_factory.mktemp("store")))
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes, captions, a receipt, language models, and checkpoints of the stages before."""
    root = write(tmp_path_factory.mktemp("data"))
    made_qwen.write_large(root / "vlm")
    made_qwen.write_small(root / "lm")
    learned(root, "branch", config(STAGE), {"vlm": "vlm", "lm": "lm"})
    learned(root, "towers", config(CHUNKS | {"words": "task", "stage": "joint"}), {})
    return root


@pytest.fixture(scope="module")
def thinker(data: Path) -> Path:
    """A checkpoint that acts on the staircase's states, after eight steps."""
    parts = {"model": "towers", "staircase": "branch", "vlm": "vlm"}
    return learned(data, "thinker", config(THINKS), parts, 8)


def built(data: Path, name: str, values: stage.Config, parts: dict[str, str]) -> Path:
    """The training view, from folders of `data` as initial weights."""
    entries = {
        part: {"from": str(data / folder), "sha256": initial.listed(part, data / folder)}
        for part, folder in parts.items()
    }
    write_json(data / f"{name}.json", entries)
    place = data / f"view of {name}"
    place.mkdir(exist_ok=True)
    files = (data / part for part in ("episodes", "captions", "plan"))
    view.build(*files, place, values, initial.read(data / f"{name}.json"))
    return place


def trained(place: Path, values: stage.Config, steps: range, store: Path | None = None) -> Training:
    training = Training(chosen.windows(place, values), values)
    saver = Saver(store, 2, 60.0) if store else None
    assert (saver.resume(training.state()) if saver else 0) == steps.start
    for step in steps:
        training.step(step, training.windows.batch(step, training.rank, training.world_size))
    if saver:
        saver.save(steps.stop, training.state())
        saver.wait()
    return training


def learned(
    data: Path, name: str, values: stage.Config, parts: dict[str, str], steps: int = 3
) -> Path:
    """A checkpoint in `data`."""
    training = trained(built(data, name, values, parts), values, range(steps))
    training.curve = training.curve[:steps]
    (data / name).mkdir()
    results.write(training, data / name)
    return data / name


def windows(data: Path, **changes: Any) -> FullWindows:
    """Of the checkpoint `thinker`."""
    return FullWindows(data / "view of thinker", config(THINKS, **changes))


def model(data: Path) -> WallModel:
    """As `thinker` started."""
    made = chosen.model(windows(data), config(THINKS))
    assert isinstance(made, WallModel)
    return made


def alone_of(prompt: Remembered, i: int) -> Remembered:
    """One prompt, its padding cut off."""
    there = prompt.mask[i]
    return Remembered(
        [k[i : i + 1, :, there] for k in prompt.keys],
        [v[i : i + 1, :, there] for v in prompt.values],
        *(t[i : i + 1] for t in (prompt.mask[:, there], prompt.cos, prompt.sin)),
    )


# --- batches ------------------------------------------------------------------------------------


def test_words_that_are_kept_become_prompts_and_others_silence(data: Path, thinker: Path) -> None:
    mine = windows(data, caption_drop_short=0.5, caption_drop_long=0.5)
    batch = mine.batch(0, 0, 1)
    assert batch.thoughts
    of = [
        int(batch.thoughts.of[r, e]) for r, row in enumerate(batch.placed) for e in range(len(row))
    ]
    order = [i for row in batch.placed for i in row]
    keep = mine._drop[: len(order)] >= 0.5
    assert 0 < keep.sum() < len(order)
    expected = np.where(keep, keep.cumsum() - 1, -1)
    assert of == expected[order].tolist()
    silence = SentenceTokens().encode([""])[0]
    for window, thinks in zip(batch.windows, keep, strict=True):
        assert window.text_mask.tolist() == ([True, True] if thinks else [True, False])
        assert torch.equal(window.text[:1], torch.zeros_like(silence) if thinks else silence)
        assert window.left_s is None and window.done is None
    frames = batch.windows[int(keep.argmax())].latents[:, :, :1]
    picture = ((mine.codec.decode(frames)[0, :, 0].movedim(0, -1) + 1) * 127.5).round()
    seen = picture.to(torch.uint8).numpy()
    asked = Backbone(data / "vlm").remember([[seen]], ["open the door"])
    torch.testing.assert_close(asked.keys[-1], alone_of(batch.thoughts.prompt, 0).keys[-1])


def test_states_stand_where_words_would_and_nowhere_else(data: Path, thinker: Path) -> None:
    made, batch = model(data), windows(data).batch(0, 0, 1)
    assert batch.thoughts and made.staircase
    text = made.staircase.told(batch.rows.text, batch.thoughts)
    for row, event in np.ndindex(*batch.thoughts.of.shape):
        i = int(batch.thoughts.of[row, event])
        wanted = batch.rows.text[row, event].clone()
        if i >= 0:
            one = alone_of(batch.thoughts.prompt, i)
            wanted[:2] = made.staircase.text_side(made.staircase(one))[0]
        torch.testing.assert_close(text[row, event], wanted, atol=1e-5, rtol=1e-4)


def test_packed_and_padded_windows_lose_the_same(data: Path, thinker: Path) -> None:
    made, packed = model(data), windows(data).batch(0, 0, 1)
    assert packed.thoughts and len(packed.placed) < len(packed.windows)
    of = {i: int(packed.thoughts.of[r, e]) for r, row in enumerate(packed.placed)
          for e, i in enumerate(row)}  # fmt: skip
    limits = replace(made.shape.limits, max_frames=packed.windows[0].latents.shape[2])
    padded = Packed.of(packed.windows, limits, packed.chances)
    padded = padded.thinking(packed.thoughts.prompt, [of[i] for i in range(len(of))])
    assert len(padded.placed) == len(padded.windows)
    one, two = (
        made.losses(*batch.with_noise(torch.Generator().manual_seed(0)))
        for batch in (packed, padded)
    )
    torch.testing.assert_close(one.total, two.total, atol=1e-5, rtol=1e-5)


# --- training -----------------------------------------------------------------------------------


def test_the_actions_loss_reaches_the_branch_and_never_the_video(data: Path, thinker: Path) -> None:
    made, batch = model(data), windows(data).batch(0, 0, 1)
    made.losses(*batch.with_noise(torch.Generator().manual_seed(0))).total.backward()
    reached = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(n.startswith("video.") for n in reached)
    branch = {n for n, _ in made.named_parameters() if n.startswith("staircase.")}
    # One head starts at zero and closes the way until it has moved: ask again after a step.
    training = trained(data / "view of thinker", config(THINKS), range(2))
    training.model.losses(*batch.with_noise(torch.Generator().manual_seed(0))).total.backward()  # type: ignore[operator]
    reached = {
        n for n, p in training.model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert branch <= reached


def test_what_is_learned_and_what_stays(data: Path, thinker: Path) -> None:
    now = load_file(thinker / "model.safetensors")
    towers, branch = (load_file(data / name / "model.safetensors") for name in ("towers", "branch"))
    assert set(now) == set(towers) | {n for n in branch if n.startswith("staircase.")}
    for name, weight in now.items():
        before = (branch if name.startswith("staircase.") else towers)[name]
        if not name.startswith("action.ends"):  # nobody says when a task's event ends
            assert torch.equal(weight, before) == name.startswith("video."), name
    told = json.loads((thinker / "config.json").read_text())
    assert told["encoders"]["vlm"] == initial.listed("vlm", data / "vlm")
    assert set(told["initial"]) == {"model", "staircase", "vlm"}
    plans = json.loads((thinker / "event_plans.json").read_text())
    assert plans == {"open the door": ["open the door"]}


def test_loss_falls_when_only_the_picture_tells_which_half_of_the_task_it_is(
    data: Path, thinker: Path
) -> None:
    values = config(THINKS, caption_drop_short=0.0, caption_drop_long=0.0)
    training = trained(data / "view of thinker", values, range(24))
    losses = training.curve[:24, training.columns.index("action")]
    assert losses[-6:].mean() < 0.8 * losses[:6].mean(), losses


def test_a_resumed_training_is_an_undisturbed_one_to_the_bit(
    data: Path, thinker: Path, tmp_path: Path
) -> None:
    place, values = data / "view of thinker", config(THINKS)
    trained(place, values, range(2), tmp_path)
    resumed, straight = (
        trained(place, values, range(2, 4), tmp_path),
        trained(place, values, range(4)),
    )
    for name, value in straight.state().items():
        assert torch.equal(resumed.state()[name], value), name


def test_a_batch_of_silence_moves_every_worker_alike(data: Path, thinker: Path) -> None:
    """All words dropped: the branch has gradients, of zero, on all workers."""
    values = config(THINKS, caption_drop_short=1.0, caption_drop_long=1.0)
    mine = FullWindows(data / "view of thinker", values)
    made, batch = model(data), mine.batch(0, 0, 1)
    assert batch.thoughts and (batch.thoughts.of == -1).all()
    made.losses(*batch.with_noise(torch.Generator().manual_seed(0))).total.backward()
    assert made.staircase
    grads = [p.grad for p in made.staircase.parameters()]
    assert all(g is not None and not g.any() for g in grads)


def _on_rank(place: str, store: str, parallel: str) -> dict[str, Any]:
    """Whole weights and losses after two steps on this rank."""
    import os

    from components.pretraining import placement

    os.environ["WAMFLOW_STORE"] = store
    values = config(THINKS, processes=2, parallel=parallel, clip_norm=1e9)
    training = trained(Path(place), values, range(2))
    weights = {n: placement.full(p.detach()) for n, p in training.model.named_parameters()}
    return {"weights": weights, "curve": training.curve[:2]}


@pytest.mark.slow
def test_fsdp2_moves_as_plain_data_parallel(data: Path, thinker: Path, tmp_path: Path) -> None:
    plain, sharded = (
        on_ranks(2, _on_rank, str(data / "view of thinker"), str(tmp_path), parallel)[0]
        for parallel in ("replicated", "sharded")
    )
    assert np.allclose(plain["curve"], sharded["curve"], rtol=1e-4, atol=1e-5)
    for name, weight in plain["weights"].items():
        assert (sharded["weights"][name] - weight).abs().max() < 1e-4, name


# --- acting -------------------------------------------------------------------------------------


def seen(**changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(5)
    return {
        "observation/top": random.integers(0, 256, (24, 24, 3), dtype=np.uint8),
        "observation/state": np.zeros(4, np.float32),
        "prompt": "open the door",
        "seed": 3,
    } | changes


def test_a_policy_thinks_of_what_it_sees_and_was_asked(
    data: Path, thinker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(thinker, "arm")
    full = policy.model
    assert isinstance(full, FullModel) and full.model.staircase
    texts: list[Tensor] = []
    asked = full._text_side
    monkeypatch.setattr(full, "_text_side", lambda a: texts.append(asked(a)) or texts[-1])
    reply = policy.infer(seen())
    assert reply["actions"].shape == (16, 4) and "event_done" not in reply, "0.2 s at 80 Hz"
    picture = seen()["observation/top"]
    prompt = Backbone(data / "vlm").remember([[picture]], ["open the door"])
    with torch.no_grad():
        wanted = full.model.staircase.told(
            torch.zeros(1, 1, 2, 384), Thoughts(prompt, torch.zeros(1, 1, dtype=torch.int64))
        )
    torch.testing.assert_close(texts[0], wanted[0, 0])
    again = policy.infer(seen())
    assert np.array_equal(reply["actions"], again["actions"])
    other = policy.infer(seen(prompt="close the drawer"))
    assert not np.array_equal(reply["actions"], other["actions"])
    assert (texts[2] - texts[0]).abs().max() > 1e-4


def test_another_language_model_is_refused_when_acting(
    data: Path, thinker: Path, tmp_path: Path
) -> None:
    for path in thinker.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    told = json.loads((tmp_path / "config.json").read_text())
    made_qwen.write_large(tmp_path / "vlm")
    config_ = json.loads((tmp_path / "vlm/config.json").read_text())
    write_json(tmp_path / "vlm/config.json", config_ | {"transformers_version": "0"})
    told["initial"]["vlm"]["from"] = str(tmp_path / "vlm")
    write_json(tmp_path / "config.json", told)
    with pytest.raises(DataError, match=r"vlm: expected .* differs in config\.json; bring its"):
        Policy(tmp_path)


# --- starting -----------------------------------------------------------------------------------


def test_the_next_training_goes_on_with_towers_and_branch_or_leaves_the_branch_behind(
    data: Path, thinker: Path
) -> None:
    kept = load_file(thinker / "model.safetensors")
    on = built(data, "on", config(THINKS), {"model": "thinker", "vlm": "vlm"})
    made = chosen.model(chosen.windows(on, config(THINKS)), config(THINKS))
    assert all(torch.equal(p, kept[n]) for n, p in made.named_parameters())
    values = config(CHUNKS | {"words": "task", "stage": "joint"})
    back = built(data, "back", values, {"model": "thinker"})
    made = chosen.model(chosen.windows(back, values), values)
    named = dict(made.named_parameters())
    assert set(named) == {n for n in kept if not n.startswith("staircase.")}
    assert all(torch.equal(p, kept[n]) for n, p in named.items())
    fresh = built(data, "fresh", config(THINKS), {"vlm": "vlm"})
    assert isinstance(
        chosen.model(chosen.windows(fresh, config(THINKS)), config(THINKS)), WallModel
    )


def test_what_does_not_fit_is_said(data: Path, thinker: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vlm: expected folders .*full\.words staircase, got none"):
        built(data, "none", config(THINKS), {"model": "towers"})
    parts = {"model": "towers", "staircase": "branch", "vlm": "vlm"}
    stairs: dict[str, Any] = VALUES["full"]["staircase"]  # type: ignore[index]
    wide = config(THINKS | {"staircase": stairs | {"width": 24}})
    place = built(data, "wide", wide, parts)
    with pytest.raises(UserError, match=r"branch: staircase: expected .*'width': 24.*'width': 20"):
        chosen.model(chosen.windows(place, wide), wide)
    made_qwen.write_large(data / "other")
    changed = json.loads((data / "other/config.json").read_text())
    write_json(data / "other/config.json", changed | {"transformers_version": "0"})
    place = built(data, "swapped", config(THINKS), parts | {"vlm": "other"})
    with pytest.raises(UserError, match="expected the language model that it was made for"):
        chosen.model(chosen.windows(place, config(THINKS)), config(THINKS))
    with pytest.raises(ValidationError, match="words staircase needs windows chunk, got event"):
        config(THINKS | {"windows": "event"})
    with pytest.raises(ValidationError, match="stage video needs words event or task"):
        config(THINKS | {"stage": "video"})
