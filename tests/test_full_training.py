"""The trainer on a preset of the full model: batches, stages of the recipe, resuming, acting."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from components import params
from components.encoders import WanVae
from components.errors import DataError, UserError
from components.outputs import sha256, write_json
from components.pretraining import chosen, full, initial, results, stage, starting, view
from components.pretraining.full_windows import FullWindows
from components.pretraining.saver import Saver
from components.pretraining.training import SKIPPED, Training
from components.serving.client import PolicyClient
from components.serving.policy import Policy
from components.stations.station import Observation
from components.trials import actors
from models import costs, wan_keys
from models.acting import Chunk, fitting, plan
from models.draws import collate_draws, draw
from models.presets import PRESETS
from models.rows import collate
from models.wall import WallModel
from tests.made_training import BATCH, EPISODES, STEPS, VALUES, write
from tests.made_wan import reference
from tests.muon_ranks import on_ranks
from tests.test_trials import CONFIG as TRIALS

FULL: dict[str, Any] = VALUES | {"preset": "tiny", "processes": 1}
ACTION = {"stage": "action", "coupling": "asymmetric"}
SIDE_BY_SIDE = {"stage": "joint", "coupling": "asymmetric"}


def config(of: dict[str, Any] | None = None, **changes: Any) -> stage.Config:
    """Values with changes; `of` changes those of the full model."""
    return stage.Config.model_validate(FULL | changes | {"full": FULL["full"] | (of or {})})


def built(data: Path, folder: Path, chosen: stage.Config) -> Path:
    view.build(data / "episodes", data / "captions", data / "plan", folder, chosen)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training view of the made episodes: 24 px, latents of 8 x 8."""
    return built(data, tmp_path_factory.mktemp("view"), config())


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one rank, computing as the workers do, and a store of its own."""
    meeting = tmp_path_factory.mktemp("group") / "rendezvous"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("WAMFLOW_STORE", str(tmp_path_factory.mktemp("store")))
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
        dist.destroy_process_group()


def trained(
    folder: Path, steps: range, chosen_: stage.Config | None = None, store: Path | None = None
) -> Training:
    """A training after some steps; with `store`, from its last state, and its state is saved."""
    values = chosen_ or config()
    training = Training(chosen.windows(folder, values), values)
    saver = Saver(store, 2, 60.0) if store else None
    assert (saver.resume(training.state()) if saver else 0) == steps.start
    for step in steps:
        training.step(step, training.windows.batch(step, training.rank, training.world_size))
    if saver:
        saver.save(steps.stop, training.state())
        saver.wait()
    return training


def windows(folder: Path, **of: Any) -> FullWindows:
    return FullWindows(folder, config(of))


# --- batches ------------------------------------------------------------------------------------


def test_the_receipts_draws_are_the_small_models(folder: Path) -> None:
    """Order, anchors and caption drop are those of `windows.py`; ranks share them evenly."""
    mine = windows(folder)
    one, two = mine.batch(3, 0, 1), [mine.batch(3, rank, 2) for rank in range(2)]
    both = [w for pair in zip(*(b.windows for b in two), strict=True) for w in pair]
    assert len(one.windows) == len(both) == BATCH
    for a, b in zip(one.windows, both, strict=True):
        assert torch.equal(a.actions, b.actions) and torch.equal(a.latents, b.latents)
        assert torch.equal(a.text, b.text)
    small = chosen.windows(folder, config(preset="small")).batch(3, 0, 1)
    lengths = [min(len(w.actions), 20) for w in one.windows]
    assert lengths == small.length.tolist()
    dropped = [not bool(text.any()) for text in small.text]
    silent = mine._text("")
    assert [torch.equal(w.text, silent) for w in one.windows] == dropped


def test_windows_hold_the_recorded_signals_and_pictures(folder: Path) -> None:
    mine = windows(folder)
    batch = mine.validation()
    assert batch is not None and len(batch.windows) == 2
    a = mine.arrays
    for event, window in zip(np.flatnonzero(a["event_validation"]), batch.windows, strict=True):
        base = a["first_frame"][a["event_episode"][event]] + a["event_start"][event]
        assert torch.equal(window.actions[:, :4], torch.from_numpy(a["action"][base : base + 20]))
        assert not window.actions[:, 4:].any() and window.action_mask.sum() == 4
        assert window.left_s == pytest.approx(20 / 80) and window.done == 0
        frame = mine.codec.decode(window.latents[:, :, :1])[0, :, 0]
        bar = (frame[0] > 0).float().mean(0) > 0.5
        assert bar.nonzero().min() == (a["event_start"][event] + EPISODES - 1) % 20
        assert window.latents.shape[2] == 2  # 0.25 s at 4 Hz: the anchor and one to come


def test_events_share_rows_and_the_share_of_padding_is_told(folder: Path) -> None:
    batch = windows(folder).batch(0, 0, 1)
    frames = sum(w.latents.shape[2] for w in batch.windows)
    assert frames == 16 and batch.rows.latents.shape[:4:3] == (2, 8)  # the budget is 9
    assert 0.9 < batch.packing < 1  # frames fill their rows, control steps not quite
    curve = trained(folder, range(2)).curve[:2]
    assert (curve[:, :-4] > 0).all() and (curve[:, SKIPPED] == 0).all()


def test_a_long_event_gives_windows_of_the_budget_and_chunks_run_past_events(
    data: Path, tmp_path: Path
) -> None:
    values = config({"windows": "chunk", "chunk_s": 0.3, "history_frames": 1, "words": "task"})
    mine = FullWindows(built(data, tmp_path / "chunks", _made(tmp_path, values)), values)
    batch = mine.batch(0, 0, 1)
    assert {w.clean for w in batch.windows} == {2}
    assert {len(w.actions) for w in batch.windows} > {24}, "0.3 s at 80 Hz, past 20-step events"
    assert all(w.left_s is None and w.done is None for w in batch.windows)
    assert mine.words(0) == "open the door"
    training = trained(mine.folder, range(2), values)
    named = dict(zip(training.columns, training.curve[1].tolist(), strict=True))
    assert named["action"] > 0 and named["left"] == named["done"] == 0
    event = windows(mine.folder)
    event.arrays["event_end"] = event.arrays["event_end"] + 20
    event.shape = event.shape.__class__(**vars(event.shape) | {"max_steps": 9})
    span = event.span(0, 0)
    assert (span.end, span.left_s) == (9, pytest.approx(40 / 80))


def _made(folder: Path, values: stage.Config) -> stage.Config:
    (folder / "chunks").mkdir()
    return values


def test_the_mean_of_two_workers_means_is_not_the_batchs(folder: Path) -> None:
    """The same draws of the same events: each worker divides by its own patches and steps."""
    mine = windows(folder)
    model = full.model(config(), {})
    one = [*range(BATCH)]
    events = mine.batch(3, 0, 1).windows
    draws = [
        draw(window, mine.chances, torch.Generator().manual_seed(i))
        for i, window in enumerate(events)
    ]

    def losses(of: list[int]) -> float:
        rows = collate([events[i] for i in of], model.shape.limits)
        return float(model.losses(rows, collate_draws([draws[i] for i in of])).action)

    with torch.no_grad():
        shares = [losses(one[rank::2]) for rank in range(2)]
        alone = losses(one)
    assert np.mean(shares) == pytest.approx(alone, rel=0.2)
    assert np.mean(shares) != pytest.approx(alone, rel=1e-4)
    assert "by its own patches and steps" in str(stage.Config.model_fields["processes"].description)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [None, ACTION], ids=["joint", "frozen video"])
def test_a_resumed_training_is_an_undisturbed_one_to_the_bit(
    of: dict[str, Any] | None, folder: Path, tmp_path: Path
) -> None:
    values = config(of)
    trained(folder, range(2), values, tmp_path / "store")
    resumed = trained(folder, range(2, 4), values, tmp_path / "store")
    straight = trained(folder, range(4), values)
    assert torch.equal(resumed.curve, straight.curve)
    for name, value in straight.state().items():
        assert torch.equal(resumed.state()[name], value), name
    for name, training in (("resumed", resumed), ("straight", straight)):
        (tmp_path / name).mkdir()
        training.curve = training.curve[:4]
        results.write(training, tmp_path / name)
    written = [tmp_path / name / "model.safetensors" for name in ("resumed", "straight")]
    assert sha256(written[0]) == sha256(written[1])
    assert load_file(written[0]).keys() == dict(straight.model.named_parameters()).keys()


@pytest.mark.parametrize("of", [{"stage": "video"}, ACTION], ids=["video", "action"])
def test_what_is_frozen_is_neither_averaged_nor_saved(of: dict[str, Any], folder: Path) -> None:
    """What a training holds after a step is what `models/costs.py` counts."""
    training = trained(folder, range(1), config(of))
    state = training.state()
    model = training.model
    assert isinstance(model, WallModel)
    saved = {name.split(".")[1] for name in state if name.startswith(("model.", "average."))}
    assert saved == {of["stage"]}
    gradients = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    beside = [v for n, v in state.items() if n not in ("curve", "drawn") and not n.endswith("step")]
    held = sum(t.nbytes for t in (*beside, *gradients, *frozen))
    assert held == costs.kept_bytes(model, model.shape.coupling)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # slower, not wrong
def test_recomputation_changes_no_bit_and_bfloat16_little(folder: Path) -> None:
    plain = trained(folder, range(2))
    again = trained(folder, range(2), config(recompute=True))
    assert torch.equal(plain.curve, again.curve)
    low = trained(folder, range(2), config(precision="bfloat16"))
    assert not torch.equal(plain.curve, low.curve)
    assert np.allclose(plain.curve[:2, 0], low.curve[:2, 0], rtol=0.03)


@pytest.mark.parametrize("name", ["video", "action", "text", "joint"])
def test_a_stage_of_the_recipe_moves_its_own_parts_and_no_others(folder: Path, name: str) -> None:
    values = config(ACTION if name == "action" else {"stage": name})
    training = Training(chosen.windows(folder, values), values)
    before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    for step in range(2):
        training.step(step, training.windows.batch(step, 0, 1))
    now = dict(training.model.named_parameters())
    moved = {n for n, p in before.items() if not torch.equal(p, now[n])}
    learns = {n for n, p in now.items() if p.requires_grad}
    assert moved <= learns and len(moved) > 0.8 * len(learns)
    towers = {n.split(".")[0] for n in learns}
    assert towers == ({name} if name in ("video", "action") else {"video", "action"})
    if name == "text":
        assert all(".text" in f".{n}" or "read_text" in n for n in learns)
        assert "video.text.up.weight" in moved
        assert "action.text.weight" in learns  # its head starts at zero: nothing to learn yet
    assert torch.isfinite(training.curve[:2]).all()


def _on_rank(folder: str, store: str, parallel: str, of: dict[str, Any]) -> dict[str, Any]:
    """Whole weights and losses after two steps on this rank."""
    import os

    from components.pretraining import placement

    os.environ["WAMFLOW_STORE"] = store
    training = trained(
        Path(folder), range(2), config(of, processes=2, parallel=parallel, clip_norm=1e9)
    )
    weights = {n: placement.full(p.detach()) for n, p in training.model.named_parameters()}
    return {"weights": weights, "curve": training.curve[:2]}


@pytest.mark.slow
@pytest.mark.parametrize("of", [ACTION, SIDE_BY_SIDE], ids=["frozen video", "side by side"])
def test_fsdp2_moves_as_plain_data_parallel(
    of: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Two ranks. Only the norm for clipping is summed in another order, and Muon
    makes more of a rounding where a gradient nearly vanishes; so nothing is clipped here. Sentences
    are one token, of which a softmax has nothing to choose: gradients of its queries and keys are
    nothing but rounding, and are not compared.
    """
    plain, sharded = (
        on_ranks(2, _on_rank, str(folder), str(tmp_path), parallel, of)[0]
        for parallel in ("replicated", "sharded")
    )
    assert np.allclose(plain["curve"], sharded["curve"], rtol=1e-4, atol=1e-5)
    choice = re.compile(r"text\.(query|key)")
    compared = [name for name in plain["weights"] if not choice.search(name)]
    assert len(compared) > 0.8 * len(plain["weights"])
    for name in compared:
        weight = plain["weights"][name]
        assert (sharded["weights"][name] - weight).abs().max() < 1e-5, name


# --- what training leaves, and acting with it ---------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four steps."""
    out = tmp_path_factory.mktemp("checkpoint")
    training = trained(folder, range(4))
    training.curve = training.curve[:4]
    results.write(training, out)
    return out


def seen(**changes: Any) -> dict[str, Any]:
    return {
        "observation/top": np.full((24, 24, 3), 30, np.uint8),
        "observation/state": np.zeros(4, np.float32),
        "prompt": "open the door: pull",
        "seed": 3,
    } | changes


def test_the_report_and_curve_name_every_loss(checkpoint: Path) -> None:
    report = stage.Report.model_validate_json((checkpoint / "report.json").read_text())
    names = {"action", "video", "left", "dct", "done"}
    assert set(report.losses_last) == set(report.validation_losses or {}) == names
    assert report.action_loss_last == report.losses_last["action"]
    header = (checkpoint / "curve.csv").read_text().splitlines()[0]
    assert header.startswith("step,loss,action,video,left,dct,done,packing,gradient_norm")


def test_a_policy_acts_with_the_checkpoint(checkpoint: Path) -> None:
    policy = Policy(checkpoint, "arm")
    reply = policy.infer(seen())
    actions, remaining = reply["actions"], reply["event_remaining"]
    assert actions.shape == (remaining, 4) and 1 <= remaining <= policy.metadata["max_steps"]
    assert np.isfinite(actions).all() and 0 <= reply["event_done"] <= 1
    assert np.array_equal(actions, policy.infer(seen())["actions"])
    assert not np.array_equal(actions, policy.infer(seen(seed=4))["actions"])
    assert not np.array_equal(actions, policy.infer(seen(prompt="something else"))["actions"])
    shown = policy.infer(seen(expected=True))
    frames = len(shown["expected_at_s"])
    assert shown["expected/top"].shape == (frames, 24, 24, 3)
    last_s = (shown["event_remaining"] - 1) / 80  # later ones show the event's last picture
    times_s = np.minimum(np.arange(1, frames + 1) / 4, last_s)
    assert shown["expected_at_s"] == pytest.approx(times_s)
    with pytest.raises(UserError, match="'observation/top' is missing"):
        policy.infer({k: v for k, v in seen().items() if k != "observation/top"})


def test_a_checkpoint_with_the_sizes_of_another_version_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    read = json.loads((checkpoint / "config.json").read_text())
    del read["shape"]["action"]["patch_steps"]
    write_json(tmp_path / "config.json", read)
    with pytest.raises(DataError, match=r"config\.json: shape: .*patch_steps.*Train again"):
        Policy(tmp_path)


def test_a_model_of_chunks_acts_for_their_length(checkpoint: Path, tmp_path: Path) -> None:
    """0.2 s at 80 Hz, whatever the model thinks is left of the event."""
    for name in ("model.safetensors", "normalisation.json", "event_plans.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    read = json.loads((checkpoint / "config.json").read_text())
    read["pretraining"]["full"] |= {"windows": "chunk"}
    write_json(tmp_path / "config.json", read)
    reply = Policy(tmp_path).infer(seen())
    assert len(reply["actions"]) == 16
    assert reply["event_remaining"] == Policy(checkpoint).infer(seen())["event_remaining"]
    read["pretraining"]["full"] |= {"words": "task"}
    write_json(tmp_path / "config.json", read)
    reply = Policy(tmp_path).infer(seen())
    assert reply["event_remaining"] == 16 and "event_done" not in reply, "it was never taught"
    read["pretraining"]["full"] |= {"chunk_s": 3.0}  # 12 latent frames; there is room for 8
    read["embodiments"][0]["fps"] = 20
    write_json(tmp_path / "config.json", read)
    assert len(Policy(tmp_path).infer(seen())["actions"]) == 40, "2 s of frames"


@pytest.mark.parametrize(
    ("fps", "event", "steps", "frames"),
    [(20, 39, 39, 8), (20, 40, 40, 8), (20, 160, 40, 8), (80, 20, 20, 1), (80, 200, 128, 7),
     (30, 15, 15, 2), (50, 25, 25, 2), (10, 11, 11, 5), (100, 127, 127, 6)],
)  # fmt: skip
def test_acting_plans_a_window_that_training_shows(
    folder: Path, fps: int, event: int, steps: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole events at 4 latent frames a second, at most 8 of them and 128 steps."""
    mine, preset = windows(folder), PRESETS["tiny"]
    mine.arrays["step_s"] = np.full(EPISODES, 1 / fps, np.float32)
    mine.arrays["event_start"][0], mine.arrays["event_end"][0] = 0, event
    span = mine.span(0, 0)
    assert (span.end, span.frames - span.clean) == (steps, frames)
    assert span.left_s == pytest.approx(event / fps), "the model learns the whole length"
    model, left_s = WallModel(preset.shape), torch.tensor([[event / fps]])
    monkeypatch.setattr(model, "ends", lambda rows: (left_s.log(), torch.zeros(1, 1)))
    seen = replace(preset.window(1, future=False), step_s=1 / fps)
    found = plan(model, [seen], denoise_steps=1, random=torch.Generator().manual_seed(0))
    assert (int(found.steps), found.frame_s.shape[1] - seen.clean) == (steps, frames)
    assert found.left_s.item() == pytest.approx(event / fps)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_steps_rounding_changes_no_windows_length(name: str) -> None:
    shape = PRESETS[name].shape
    room_s = (shape.max_frames - 1) / shape.latent_hz
    for fps in (10, 15, 20, 25, 30, 50, 60, 80, 100):
        for steps in range(1, 2 * shape.max_steps):
            cut = min(steps, shape.max_steps, int(room_s * fps))
            frames = -(-cut * int(shape.latent_hz) // fps)
            for step_s in (1 / fps, float(np.float32(1 / fps))):
                assert fitting(shape, 1, steps * step_s, step_s) == Chunk(frames, cut), (fps, steps)


def test_an_event_that_is_longer_than_a_window_is_acted_in_parts(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 s at 80 Hz; a window has room for 128 of its 320 steps."""
    policy, left = Policy(checkpoint), torch.tensor([[4.0]]).log()
    monkeypatch.setattr(policy.model.model, "ends", lambda rows: (left, torch.zeros(1, 1)))  # type: ignore[attr-defined]
    reply = policy.infer(seen(expected=True))
    assert (len(reply["actions"]), reply["event_remaining"]) == (128, 320)
    assert reply["expected_at_s"].tolist() == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    values = TRIALS.model_copy(update={"replan_steps": 500})
    actor = actors.Model(values, 4, cast(PolicyClient, policy), {"open": ["reach", "pull"]})
    actor.begin("open", 0)
    observed = Observation({"top": seen()["observation/top"]}, np.zeros(4, np.float32))
    segments = [actor.next(lambda: observed) for _ in range(2)]
    assert [(len(s.actions), s.caption) for s in segments] == [(128, "reach")] * 2


def test_a_model_with_a_history_is_shown_when_acting_what_it_was_in_training(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    values = config({"windows": "chunk", "chunk_s": 0.5, "history_frames": 2})
    place = built(data, tmp_path / "chunks", _made(tmp_path, values))
    mine = FullWindows(place, values)
    for name in ("model.safetensors", "normalisation.json", "event_plans.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    read = json.loads((checkpoint / "config.json").read_text())
    read["pretraining"]["full"] = values.full.model_dump(mode="json")
    write_json(tmp_path / "config.json", read)
    policy = Policy(tmp_path)
    assert policy.metadata["history"] == {"pictures": 2, "every_s": 0.25}
    trained_on = mine.window(1, mine.span(1, 39), "open the door: pull")
    frames = mine.codec.decode(trained_on.latents)[0, :, :9:4]  # the clean ones
    pictures = ((frames.movedim(0, -1) + 1) * 127.5).round().to(torch.uint8).numpy()
    asked: list[Any] = []
    policy.model.plan, plan = lambda a: asked.append(a) or plan(a), policy.model.plan  # type: ignore[method-assign, func-returns-value]
    sent = {"observation/top": pictures[2], "history/top": pictures[:2]}
    reply = policy.infer(seen(**sent))
    acted_on = policy.model._window(asked[0])  # type: ignore[attr-defined]
    torch.testing.assert_close(acted_on.latents, trained_on.latents[:, :, :3])
    assert acted_on.clean == trained_on.clean == 3
    assert torch.equal(acted_on.frame_s, trained_on.frame_s[:3])
    assert torch.equal(acted_on.inside, trained_on.inside[:, :3])
    assert len(reply["actions"]) == 40

    def actions(**more: Any) -> np.ndarray:
        found: np.ndarray = policy.infer(seen(**{"observation/top": pictures[2]}, **more))[
            "actions"
        ]
        return found

    repeated = np.stack([pictures[2]] * 2)
    assert np.array_equal(actions(), actions(**{"history/top": repeated})), "it has just begun"
    assert not np.array_equal(actions(), reply["actions"])
    with pytest.raises(UserError, match=r"history/top: expected at most 2 pictures; got .*\(3,"):
        actions(**{"history/top": np.stack([pictures[2]] * 3)})
    with pytest.raises(UserError, match=r"observation/state: expected finite numbers; got .*nan"):
        actions(**{"observation/state": np.full(4, np.nan, np.float32)})


def test_broken_weights_are_refused_by_name_when_acting(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "normalisation.json", "event_plans.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    path = tmp_path / "model.safetensors"
    with pytest.raises(DataError, match=r"model\.safetensors: expected a safetensors file, got"):
        Policy(tmp_path)
    weights = load_file(checkpoint / "model.safetensors")
    del weights["action.head.bias"]
    save_file(weights | {"more": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"action\.head\.bias: missing; more: unknown\."):
        Policy(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="expected a safetensors file, got"):
        Policy(tmp_path)


def test_a_model_that_cannot_act_says_so(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "normalisation.json", "event_plans.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    read = json.loads((checkpoint / "config.json").read_text())
    read["pretraining"]["full"]["stage"] = "video"
    write_json(tmp_path / "config.json", read)
    with pytest.raises(UserError, match=r"expected a model that acts; got one of .* stage video"):
        Policy(tmp_path)


# --- initial weights ----------------------------------------------------------------------------


def declared(folder: Path, path: Path) -> Path:
    """init.json that names an earlier version."""
    files = initial.listed("model", folder)
    write_json(path, {"model": {"from": str(folder), "sha256": files}})
    return path


def test_the_next_stage_starts_from_the_version_before(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    start = initial.read(declared(checkpoint, tmp_path / "init.json"))
    values, place = config(ACTION), tmp_path / "view"
    place.mkdir()
    view.build(data / "episodes", data / "captions", data / "plan", place, values, start)
    training = trained(place, range(2), values)
    from safetensors.torch import load_file

    before = load_file(checkpoint / "model.safetensors")
    now = dict(training.model.named_parameters())
    assert all(torch.equal(now[n], w) for n, w in before.items() if n.startswith("video."))
    assert not torch.equal(now["action.head.weight"], before["action.head.weight"])
    training.curve = training.curve[:2]
    out = tmp_path / "out"
    out.mkdir()
    results.write(training, out)
    told = json.loads((out / "config.json").read_text())["initial"]["model"]["sha256"]
    assert told["model.safetensors"] == sha256(checkpoint / "model.safetensors")


def test_declared_wan_weights_and_vae_are_used_and_no_latents_are_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    entry = {"vae": {"from": str(tmp_path / "vae"), "sha256": {"": ""}}}
    theirs = reference(full.shape(config(), entry).video)
    theirs.save_pretrained(tmp_path / "wan")
    start = {
        part: {"from": str(tmp_path / name), "sha256": initial.listed(part, tmp_path / name)}
        for part, name in (("vae", "vae"), ("video", "wan"))
    }
    write_json(tmp_path / "init.json", start)
    place = tmp_path / "view"
    place.mkdir()
    declared = initial.read(tmp_path / "init.json")
    view.build(data / "episodes", data / "captions", data / "plan", place, config(), declared)
    training = Training(chosen.windows(place, config()), config())
    ours = dict(training.model.named_parameters())
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours[f"video.{wan_keys.ours(name)}"], weight), name
    batch = training.windows.batch(0, 0, 1)
    assert batch.rows.latents.shape[2] == 4 and training.windows.info["picture_px"] == 64
    training.step(0, batch)
    assert torch.isfinite(training.curve[0]).all()
    kept = [p for p in full.cache().folder.rglob("*.safetensors") if p.stat().st_size > 10_000]
    assert kept == [], "windows begin at random anchors: their latents are hardly read again"
    moved = {"vae": declared["vae"] | {"from": "/moved"}, "video": declared["video"]}
    view.build(data / "episodes", data / "captions", data / "plan", place, config(), moved)
    info = json.loads((place / "view.json").read_text())
    assert info == training.windows.info | {"initial": moved}, "resumed with the address given now"


def test_wrong_initial_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = declared(checkpoint, tmp_path / "init.json")
    good = json.loads(path.read_text())
    for value, said in (
        ([], "expected an object, got list"),
        ({"vea": {}}, "vea: unknown; expected one of model, video, vae, text"),
        ({"model": {"from": "x"}}, "model: expected"),
        ({"model": good["model"] | {"from": str(tmp_path)}}, "expected a checkpoint of ours"),
        ({"vae": good["model"] | {"from": str(tmp_path / "no")}}, "expected a folder of weights"),
    ):
        write_json(path, value)
        with pytest.raises(UserError, match=said):
            initial.read(path)
    good["model"]["sha256"]["config.json"] = "0" * 64
    write_json(path, good)
    with pytest.raises(DataError, match=r"config\.json: expected 0000.*, got [0-9a-f]{64}"):
        initial.read(path)


def test_the_small_model_takes_no_encoders(folder: Path) -> None:
    made = chosen.windows(folder, config(preset="small"))
    made.info["initial"] = {part: {"from": "/w", "sha256": {}} for part in ("vae", "text")}
    with pytest.raises(UserError, match=r"text, vae: pretraining.preset small has no use for it"):
        chosen.model(made, config(preset="small"))


def test_a_checkpoint_that_dvc_will_remove_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "checkpoint").symlink_to(checkpoint)
    assert initial.main([f"model={checkpoint}"]) == 0
    shutil.copytree(checkpoint, tmp_path / "data" / "copy")
    assert initial.main(["model=data/copy"]) == UserError.exit_code
    assert "DVC removes its outputs before a stage runs" in capsys.readouterr().err


def test_weights_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    start = initial.read(declared(checkpoint, tmp_path / "init.json"))
    other = full.model(config({"codec_px": 2}), {})
    with pytest.raises(UserError, match=r"video: expected .*'latent_channels': 12.*got .*27"):
        starting.load(other, start)
    write_json(tmp_path / "config.json", {"model_type": "t5"})
    foreign = {"model": {"from": str(tmp_path), "sha256": {}}}
    with pytest.raises(UserError, match="expected the shape of a checkpoint of ours, got none"):
        starting.load(other, foreign)
    weights = load_file(checkpoint / "model.safetensors")
    weights["action.head.bias"] = torch.full((3,), float("nan"))
    del weights["video.head.bias"]
    save_file(weights | {"more": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    start["model"]["from"] = str(tmp_path)
    with pytest.raises(DataError) as failure:
        starting.load(full.model(config(), {}), start)
    for said in (
        "video.head.bias: missing", "more: unknown", "action.head.bias: NaN or infinite",
        "action.head.bias: expected shape (16,), got (3,)",
    ):  # fmt: skip
        assert said in str(failure.value)


# --- bad input ----------------------------------------------------------------------------------


def test_data_that_a_preset_has_no_room_for_are_refused(folder: Path) -> None:
    info = json.loads((folder / "view.json").read_text())
    robot = info["embodiments"][0]
    info["cameras"] = [f"c{n}" for n in range(5)]
    info["embodiments"] = [robot | {"name": f"r{n}"} for n in range(5)]
    info["embodiments"][4]["state_names"] = ["x"] * 33
    info["embodiment_ids"] = ["earlier", *(r["name"] for r in info["embodiments"])]
    with pytest.raises(UserError) as failure:
        full.check(info, config(), {})  # the view asks before anything is decoded
    for said in (
        "cameras: expected at most 4, got 5", "embodiments: expected at most 4, got 6",
        "state of r4: expected at most 32, got 33",
    ):  # fmt: skip
        assert said in str(failure.value)


def test_a_robot_without_a_camera_is_refused_at_the_start(folder: Path) -> None:
    info = json.loads((folder / "view.json").read_text())
    robot = info["embodiments"][0]
    info["embodiments"] = [robot, robot | {"name": "blind", "cameras": []}]
    with pytest.raises(UserError, match="cameras of blind: expected at least one, got none; leave"):
        full.check(info, config(), {})
    start = {part: {"from": "/weights", "sha256": {}} for part in ("vlm", "lm")}
    full.check(info, config({"stage": "staircase"}), start)  # it reads words alone, too


def test_chunks_that_a_preset_has_no_room_for_are_refused(folder: Path) -> None:
    info = json.loads((folder / "view.json").read_text())
    sizes = full.preset(config()).shape
    longest_s = sizes.max_steps / info["embodiments"][0]["fps"]
    fits = {"windows": "chunk", "chunk_s": longest_s, "history_frames": 1}
    full.check(info, config(fits), {})
    full.check(info, config({"chunk_s": 2 * longest_s}), {})  # no chunks
    full.check(info, config(fits | {"chunk_s": 0.25, "history_frames": sizes.max_frames - 2}), {})
    for more, said in (
        ({"chunk_s": 2 * longest_s}, f"steps of chunk_s .* at most {sizes.max_steps}, got"),
        ({"history_frames": sizes.max_frames - 1}, "history_frames: expected at most"),
        ({"history_frames": 4}, "chunk_s after 4 history_frames, seconds: .* most 1.0, got 1.6"),
    ):
        with pytest.raises(UserError, match=said):
            full.check(info, config(fits | more), {})


def test_validation_is_no_larger_than_what_a_rank_trains_on(folder: Path) -> None:
    for size, count in ((1, 1), (BATCH, 2)):
        found = FullWindows(folder, config(batch_size=size)).validation()
        assert found is not None and len(found.windows) == count


def test_each_worker_encodes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    start = {part: {"from": "/weights", "sha256": {}} for part in ("vae", "text")}
    monkeypatch.setenv("LOCAL_RANK", "1")
    for values, device in ((config(device="cuda"), "cuda:1"), (config(), "cpu")):
        assert full.codec(values, start) == WanVae(Path("/weights"), device)
        assert full.text_encoder(values, start).device == device


def test_bad_numbers_name_their_event(folder: Path) -> None:
    mine = windows(folder)
    event = int(mine.drawn(0)[0])
    base = mine.arrays["first_frame"][mine.arrays["event_episode"][event]]
    first, last = base + mine.arrays["event_start"][event], base + mine.arrays["event_end"][event]
    mine.arrays["action"][first:last] = np.nan
    name = mine.info["event_ids"][event]
    with pytest.raises(DataError, match=rf"event {name} of episode .*actions: expected finite"):
        mine.batch(0, 0, 1)


def test_recipes_that_contradict_themselves_are_refused() -> None:
    for of, said in (
        ({"coupling": "asymmetric", "stage": "text"}, "text needs coupling symmetric, got asym"),
        ({"history_frames": 2}, "history_frames must be 0, got 2"),
        ({"words": "task"}, "words task needs windows chunk, got event"),
    ):
        values = {"pretraining": FULL | {"full": FULL["full"] | of}}
        with pytest.raises(UserError, match=said):
            params.section(values, "pretraining", stage.Config)
    assert STEPS > 4
