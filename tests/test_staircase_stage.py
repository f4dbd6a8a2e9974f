"""The recipe's stage staircase through the one trainer, on small random Qwen3.5 folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from components.errors import DataError, UserError
from components.outputs import write_json
from components.pretraining import chosen, initial, results, stage, view
from components.pretraining.reasons import ReasonWindows
from components.pretraining.saver import Saver
from components.pretraining.training import Training
from components.serving.policy import Policy
from models.reasoner import Reasoner, ReasonerShape
from tests import made_qwen
from tests.made_training import BATCH, VALUES, write

STAIRS: dict[str, Any] = VALUES | {"preset": "tiny", "processes": 1, "adamw_lr": 0.01}


def config(of: dict[str, Any] | None = None, **stairs: Any) -> stage.Config:
    """Values of the stage staircase with changes, of the full model's or of the stairs' own."""
    full = STAIRS["full"] | {"stage": "staircase"} | (of or {})
    return stage.Config.model_validate(
        STAIRS | {"full": full | {"staircase": full["staircase"] | stairs}}
    )


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
    """Episodes, captions on two levels and a receipt; both language models, declared."""
    root = write(tmp_path_factory.mktemp("data"))
    made_qwen.write_large(root / "vlm")
    made_qwen.write_small(root / "lm")
    declare(root, root / "init.json", "vlm", "lm")
    return root


def declare(root: Path, path: Path, *parts: str) -> Path:
    """init.json that names folders of `root`."""
    entries = {p: {"from": str(root / p), "sha256": initial.listed(p, root / p)} for p in parts}
    write_json(path, entries)
    return path


def built(data: Path, folder: Path, init: Path, values: stage.Config | None = None) -> Path:
    folder.mkdir()
    start = initial.read(init)
    parts = (data / name for name in ("episodes", "captions", "plan"))
    view.build(*parts, folder, values or config(), start)
    return folder


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(data, tmp_path_factory.mktemp("view") / "view", data / "init.json")


def trained(folder: Path, steps: range, store: Path | None = None) -> Training:
    training = Training(chosen.windows(folder, config()), config())
    saver = Saver(store, 2, 60.0) if store else None
    assert (saver.resume(training.state()) if saver else 0) == steps.start
    for step in steps:
        training.step(step, training.windows.batch(step, 0, 1))
    if saver:
        saver.save(steps.stop, training.state())
        saver.wait()
    return training


def test_the_reconstruction_falls_and_only_staircase_and_projector_learn(folder: Path) -> None:
    training = trained(folder, range(20))
    losses = training.curve[:20, 0]
    assert losses[-5:].mean() < 0.85 * losses[:5].mean(), losses
    model, windows = training.model, training.windows
    assert isinstance(model, Reasoner) and isinstance(windows, ReasonWindows)
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"staircase", "projector"}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"staircase.to_text.weight", "staircase.to_text.bias"}
    others = [*windows.small.model.parameters(), *windows.backbone._loaded[0].parameters()]
    assert all(p.grad is None and not p.requires_grad for p in others)
    assert training.columns[:2] == ("loss", "reconstruction")


def test_each_stair_must_say_its_own_level_of_what_the_prompt_leads_to(folder: Path) -> None:
    windows = chosen.windows(folder, config())
    assert isinstance(windows, ReasonWindows)
    batch = windows.batch(0, 0, 1)
    end = windows.small.tokenizer.eos_token_id
    said = windows.small.tokenizer.batch_decode(batch.text[:, 1][batch.text[:, 1, 0] > 0])
    events = windows.drawn(0)
    assert [text[:12] for text in said] == [windows.info["captions"][e][:12] for e in events]
    assert batch.text.shape == (BATCH, 2, 12) and batch.mask.all(), "the longest is cut at 12"
    short = windows.small.tokens([["a", "abc"]], 12)
    assert short[0][0, :, :2].tolist()[0][1] == end and short[1].sum(-1).tolist() == [[2, 4]]
    tokens = 2 + (windows.info["picture_px"] // 8) ** 2  # a picture, its start and its end
    assert batch.prompt.mask.sum(1).tolist() == [tokens + len("open the door")] * BATCH


def test_a_prompt_holds_pictures_of_every_camera_and_words(folder: Path) -> None:
    windows = chosen.windows(folder, config())
    assert isinstance(windows, ReasonWindows)
    random = np.random.default_rng(0)
    one, two = random.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)

    def last_keys(pictures: list[list[Any]], words: list[str]) -> torch.Tensor:
        prompt = windows.backbone.remember(pictures, words)
        return prompt.keys[-1][torch.arange(len(words)), :, prompt.mask.sum(1) - 1]

    both = last_keys([[one, two], [one]], ["open", "push it"])
    torch.testing.assert_close(both[:1], last_keys([[one, two]], ["open"]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1:], last_keys([[one]], ["push it"]), atol=1e-5, rtol=1e-4)
    blind = last_keys([[one], []], ["open", "push it"])
    torch.testing.assert_close(blind[1:], last_keys([[]], ["push it"]), atol=1e-5, rtol=1e-4)
    for pictures in ([[one], []], [[], []]):
        nothing = last_keys(pictures, ["open", ""])
        assert nothing[1:].isfinite().all(), "neither a camera nor words"
    for pictures, words in (([[two, one]], ["open"]), ([[one, two]], ["oxen"])):
        assert (last_keys(pictures, words) - both[:1]).abs().max() > 1e-4
    end = windows.small.tokenizer.eos_token
    marked = [windows.backbone.remember([[one]], [said]).mask.sum() for said in ("", end)]
    assert marked[1] - marked[0] == len(end), "a model's own marks are letters in a task's words"


def test_a_resumed_training_is_an_undisturbed_one_to_the_bit(folder: Path, tmp_path: Path) -> None:
    trained(folder, range(2), store=tmp_path)
    resumed, straight = trained(folder, range(2, 4), store=tmp_path), trained(folder, range(4))
    for name, value in straight.state().items():
        assert torch.equal(resumed.state()[name], value), name


def test_a_checkpoint_names_its_language_models_and_the_next_training_starts_from_it(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    training = trained(folder, range(3))
    training.curve = training.curve[:3]
    out = tmp_path / "model"
    out.mkdir()
    results.write(training, out)
    report = stage.Report.model_validate_json((out / "report.json").read_text())
    assert report.action_loss_last is None and report.losses_last["reconstruction"] > 0
    assert report.validation_losses is not None and set(report.validation_losses) == {
        "reconstruction"
    }
    told = json.loads((out / "config.json").read_text())
    declared = json.loads((data / "init.json").read_text())
    assert told["encoders"] == {part: declared[part]["sha256"] for part in ("vlm", "lm")}
    assert "tokenizer.json" in told["encoders"]["lm"]
    assert ReasonerShape.from_dict(told["shape"]) == training.model.shape
    kept = load_file(out / "model.safetensors")
    assert {name.split(".")[0] for name in kept} == {"staircase", "projector"}
    with pytest.raises(UserError, match="a model that acts; got one of the recipe's stage stairc"):
        Policy(out)

    (tmp_path / "vlm").symlink_to(data / "vlm")
    (tmp_path / "lm").symlink_to(data / "lm")
    init = declare(tmp_path, tmp_path / "init.json", "vlm", "lm", "model")
    place = built(data, tmp_path / "view", init)
    made = chosen.model(chosen.windows(place, config()), config())
    assert all(torch.equal(p, kept[n]) for n, p in made.named_parameters())
    other = config(width=24)
    with pytest.raises(UserError, match=r"stair: expected .*'width': 24.*, got .*'width': 20"):
        chosen.model(chosen.windows(place, other), other)


def test_what_is_missing_or_does_not_fit_is_said(data: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "none.json", {})
    with pytest.raises(UserError, match=r"vlm and lm: expected folders of a Qwen3\.5"):
        built(data, tmp_path / "none", tmp_path / "none.json")
    deep = config(relay_depth=3)
    place = built(data, tmp_path / "deep", data / "init.json", deep)
    with pytest.raises(UserError, match="relay depth between 1 and 2, got 3"):
        chosen.model(chosen.windows(place, deep), deep)
    with pytest.raises(DataError, match=r"levels are missing, the first is segment of event"):
        levels = config(levels=["segment"])
        built(data, tmp_path / "levels", data / "init.json", levels)
    joint = config({"stage": "joint"})
    place = built(data, tmp_path / "joint", data / "init.json", joint)
    with pytest.raises(UserError, match=r"init\.json: lm, vlm: a stage without a staircase has no"):
        chosen.model(chosen.windows(place, joint), joint)


def test_other_language_models_and_changed_ones_are_refused(data: Path, tmp_path: Path) -> None:
    from components.reasoning import SmallModel

    assert SmallModel.of(data / "vlm").width == 24, "small ones are published with eyes, too"
    made_qwen.write_small(tmp_path / "lm")
    init = declare(tmp_path, tmp_path / "init.json", "lm")
    (tmp_path / "lm" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"lm: .*tokenizer\.json: expected .*, got no such file"):
        initial.read(init)
    with pytest.raises(UserError, match="lm: expected a tokenizer as transformers saves it"):
        SmallModel.of(tmp_path / "lm")
    told = json.loads((tmp_path / "lm" / "config.json").read_text())
    write_json(tmp_path / "lm" / "config.json", told | {"model_type": "llama"})
    with pytest.raises(UserError, match=r"model_type: expected qwen3_5, got llama"):
        SmallModel.of(tmp_path / "lm")
