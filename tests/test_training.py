"""The training loop of one worker: golden losses, bad steps, sharding, batches that do not come."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from components.errors import DataError, DivergedError, TemporaryError
from components.pretraining import guards, results, view
from components.pretraining.batches import Batches
from components.pretraining.saver import Saver
from components.pretraining.schedule import rate
from components.pretraining.stage import Config
from components.pretraining.training import CURVE, SKIPPED, Training
from components.pretraining.windows import Windows
from tests.benchmarks import optimizers
from tests.made_training import BATCH, CONFIG, VALUES, write
from tests.muon_ranks import on_ranks

ONE = {"processes": 1}
# Total losses of the first four steps on one rank. Another CPU sums in another order: float32
# rounding (6e-8) grows by a few hundred operations a step, hence a relative 1e-4, and no more.
GOLDEN = [1.7184060, 1.5667415, 1.5527925, 1.7032201]


def config(**changes: Any) -> Config:
    return Config.model_validate(VALUES | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training view of the made episodes."""
    data, folder = write(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("view")
    view.build(data / "episodes", data / "captions", data / "plan", folder, CONFIG)
    return folder


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one rank, computing as the workers do."""
    meeting = tmp_path_factory.mktemp("group") / "rendezvous"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    dist.destroy_process_group()


def trained(folder: Path, steps: range, store: Path | None = None, **changes: Any) -> Training:
    """A training after some steps; with `store`, from its last state, and its state is saved."""
    chosen = config(**changes)
    training = Training(Windows(folder, chosen), chosen)
    saver = Saver(store, 2, 60.0) if store else None
    start = saver.resume(training.state()) if saver else 0
    assert start == steps.start
    for step in steps:
        training.step(step, training.windows.batch(step, training.rank, training.world_size))
    if saver:
        saver.save(steps.stop, training.state())
        saver.wait()
    return training


def test_two_steps_resumed_and_two_more_have_the_golden_losses(
    folder: Path, tmp_path: Path
) -> None:
    trained(folder, range(2), tmp_path, **ONE)
    resumed = trained(folder, range(2, 4), tmp_path, **ONE)
    losses = resumed.curve[:4, 0].tolist()
    assert np.allclose(losses, GOLDEN, rtol=1e-4), f"{losses}; the model changed on purpose?"
    straight = trained(folder, range(4), **ONE)
    assert torch.equal(resumed.curve, straight.curve)  # on this CPU, to the bit
    for name, value in straight.state().items():
        assert torch.equal(resumed.state()[name], value), name


def test_recomputed_activations_change_no_bit(folder: Path) -> None:
    plain, recomputed = (trained(folder, range(2), **ONE, recompute=r) for r in (False, True))
    assert torch.equal(plain.curve, recomputed.curve)
    assert all(torch.equal(v, recomputed.state()[n]) for n, v in plain.state().items())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # slower, not wrong
def test_bfloat16_is_near_float32_and_keeps_its_weights_in_float32(folder: Path) -> None:
    plain, low = (trained(folder, range(3), **ONE, precision=p) for p in ("float32", "bfloat16"))
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    assert not torch.equal(plain.curve, low.curve)
    assert np.allclose(plain.curve[:3, 0], low.curve[:3, 0], rtol=0.02)


def _on_rank(folder: str, parallel: str, store: str, steps: tuple[int, int]) -> dict[str, Any]:
    """Whole weights, losses and norms after some steps on this rank."""
    from components.pretraining import placement

    training = trained(
        Path(folder), range(*steps), Path(store) if store else None, parallel=parallel
    )
    weights = {n: placement.full(p.detach()) for n, p in training.model.named_parameters()}
    held = sum(p.numel() for p in map(_local, training.model.parameters()))
    return {"weights": weights, "curve": training.curve[slice(*steps)], "held": held}


def _local(parameter: torch.Tensor) -> torch.Tensor:
    from models.row_shards import local

    return local(parameter.detach())


@pytest.mark.slow
def test_fsdp2_with_muons_owners_moves_as_plain_data_parallel(folder: Path, tmp_path: Path) -> None:
    """Two ranks. Only the norm for clipping is summed in another order: float32 rounding."""
    plain = on_ranks(2, _on_rank, str(folder), "replicated", "", (0, 3))
    store = str(tmp_path)
    on_ranks(2, _on_rank, str(folder), "sharded", store, (0, 2))
    sharded = on_ranks(2, _on_rank, str(folder), "sharded", store, (2, 3))
    assert np.allclose(plain[0]["curve"][2], sharded[0]["curve"][0], rtol=1e-5, atol=1e-6)
    for name, weight in plain[0]["weights"].items():
        assert (sharded[0]["weights"][name] - weight).abs().max() < 1e-6, name
        assert torch.equal(sharded[0]["weights"][name], sharded[1]["weights"][name])
    whole = sum(w.numel() for w in plain[0]["weights"].values())
    assert sum(result["held"] for result in sharded) == whole and sharded[0]["held"] < 0.6 * whole


def spoiled(windows: Windows, *bad: int) -> None:
    """Make the actions of some steps' batches not finite."""
    original = windows.batch

    def batch(step: int, rank: int, world_size: int) -> Any:
        made = original(step, rank, world_size)
        if step in bad:
            made.actions.fill_(float("nan"))
        return made

    windows.batch = batch  # type: ignore[method-assign]


def test_a_step_that_is_not_finite_ends_the_training_by_default(folder: Path) -> None:
    training = Training(Windows(folder, config(**ONE)), config(**ONE))
    spoiled(training.windows, 1)
    training.step(0, training.windows.batch(0, 0, 1))
    with pytest.raises(DivergedError, match=r"step 1: loss \[nan, .*expected finite numbers"):
        training.step(1, training.windows.batch(1, 0, 1))
    assert DivergedError.exit_code == 12


def test_a_skipped_step_changes_nothing_and_its_draws_are_told_apart(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = config(**ONE, bad_step="skip")
    training = Training(Windows(folder, chosen), chosen)
    spoiled(training.windows, 1)
    training.step(0, training.windows.batch(0, 0, 1))
    before = {name: value.clone() for name, value in training.state().items()}
    training.step(1, training.windows.batch(1, 0, 1))
    after = training.state()
    assert all(torch.equal(after[n], v) for n, v in before.items() if n not in ("curve", "drawn"))
    assert training.curve[:2, SKIPPED].tolist() == [0, 1]
    assert training.drawn.sum(1).tolist() == [BATCH, BATCH]
    assert "step 1 skipped, its draws teach nothing: loss [nan" in capsys.readouterr().out
    training.step(2, training.windows.batch(2, 0, 1))
    assert torch.isfinite(training.curve[2]).all() and training.curve[2, SKIPPED] == 0


def test_a_matrix_without_a_part_in_the_loss_is_named(folder: Path) -> None:
    training = Training(Windows(folder, config(**ONE)), config(**ONE))
    with pytest.raises(RuntimeError, match=r"Muon: video\.blocks\.0\.\S+\.weight of shape \(128, "):
        training.muon.step()


def test_a_training_without_a_good_step_has_diverged(folder: Path, tmp_path: Path) -> None:
    """Fewer steps than may be bad in a row, and all of them are."""
    chosen = config(**ONE, bad_step="skip")
    training = Training(Windows(folder, chosen), chosen)
    training.curve = training.curve[:3]
    spoiled(training.windows, *range(3))
    for step in range(3):
        training.step(step, training.windows.batch(step, 0, 1))
    with pytest.raises(DivergedError, match=r"no good step: all 3 were skipped"):
        results.write(training, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_many_bad_steps_in_a_row_end_the_training(folder: Path) -> None:
    chosen = config(**ONE, bad_step="skip")
    training = Training(Windows(folder, chosen), chosen)
    spoiled(training.windows, *range(24))
    with pytest.raises(DivergedError, match=f"{guards.IN_A_ROW} steps in a row were skipped"):
        for step in range(24):
            training.step(step, training.windows.batch(step, 0, 1))
    assert step == guards.IN_A_ROW - 1


def test_a_loss_far_above_the_recent_ones_is_a_spike() -> None:
    past, norm = torch.linspace(2, 1, 40), torch.tensor(1.0)
    assert guards.fault(torch.tensor([7.0]), norm, past, 5.0) is None
    said = guards.fault(torch.tensor([8.0]), norm, past, 5.0)
    assert said and "loss 8 is 5.4 times the median of the last 40 good steps" in said
    assert guards.fault(torch.tensor([8.0]), norm, past[: guards.LEAST - 1], 5.0) is None
    assert guards.fault(torch.tensor([1.0]), torch.tensor(float("inf")), past, 5.0)
    assert guards.in_a_row(torch.tensor([1, 0, 1, 1, 0]), 3) == 2


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_rates_rise_hold_and_fall(schedule: str) -> None:
    chosen = config(schedule=schedule, warmup=0.1, cooldown=0.2)
    rates = np.array([rate(step, 1000, chosen) for step in range(1000)])
    assert (rates > 0).all() and rates.max() == 1
    assert np.allclose(rates[:100], np.arange(1, 101) / 100, atol=1e-6)
    assert (np.diff(rates[100:]) <= 0).all() and rates[-1] < 0.01
    middle = rates[549]  # share 0.55: the cosine is half way down, WSD still at its peak
    assert middle == 1 if schedule == "wsd" else abs(middle - 0.5) < 1e-3


def test_batches_come_in_order_and_their_maker_ends_with_them(folder: Path) -> None:
    windows = Windows(folder, config(**ONE))
    for step, batch in Batches(windows, 3, 0, 1, 20.0):
        assert torch.equal(batch.actions, windows.batch(step, 0, 1).actions)
        if step == 5:
            break
    for thread in threading.enumerate():
        if thread.name == "batches":
            thread.join(5)
            assert not thread.is_alive()


def test_what_ends_the_maker_of_batches_is_raised_where_they_are_used(folder: Path) -> None:
    windows = Windows(folder, config(**ONE))

    def batch(step: int, rank: int, world_size: int) -> Any:
        raise DataError(f"{folder}/frames.u8: cut short at step {step}")

    windows.batch = batch  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"frames\.u8: cut short at step 0"):
        next(iter(Batches(windows, 0, 0, 1, 20.0)))


def test_a_batch_that_does_not_come_is_reported(folder: Path) -> None:
    windows, stuck = Windows(folder, config(**ONE)), threading.Event()
    windows.batch = lambda *_: stuck.wait(30)  # type: ignore[method-assign, assignment]
    with pytest.raises(TemporaryError, match=r"the batch of step 0 did not come; .*\(0\.2 s\)"):
        next(iter(Batches(windows, 0, 0, 1, 0.2)))
    stuck.set()


def test_memory_is_flat_from_step_to_step(folder: Path) -> None:
    """The peak after 60 steps is that after 20; `tests/benchmarks/memory.py` does 2,000."""
    chosen = config(**ONE)
    training = Training(Windows(folder, chosen), chosen)
    peaks = []
    for step in range(60):
        training.step(step % 24, training.windows.batch(step % 24, 0, 1))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[59] - peaks[19] < 2048  # KB; the model alone has 640 KB of weights


def test_the_study_of_optimizers_tunes_both_and_counts_steps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small: the real one takes hours (`tests/benchmarks/optimizers.py`)."""
    study = optimizers.Study(folder, config(**ONE), tmp_path / "known.jsonl")
    found = optimizers.compare(study, 6, [0], [0.5, 1.0])
    for name in ("adamw", "muon"):
        best, grid = found[f"{name}_lr"], found[f"{name}_grid"]
        assert {best / 2, best, best * 2} <= set(grid)
    (losses,) = found["losses"]
    share, last = list(losses["muon"].items())[-1]
    assert found["share_of_steps"] == [share if last <= losses["adamw"] else None]
    assert losses["muon"][0.5] != losses["adamw"] > 0
    monkeypatch.setattr(optimizers, "final_loss", None)  # nothing is trained again
    again = optimizers.Study(folder, config(**ONE), tmp_path / "known.jsonl")
    assert optimizers.compare(again, 6, [0], [0.5, 1.0]) == found


def test_the_lowest_rate_has_been_passed_on_both_sides() -> None:
    found, tried = optimizers.lowest(lambda rate: abs(rate - 0.009))
    assert found == 0.008 and tried == [0.002, 0.004, 0.008, 0.016]


def test_every_column_of_the_curve_is_filled(folder: Path) -> None:
    curve = trained(folder, range(2), **ONE).curve[:2]
    named = dict(zip(CURVE, curve.T, strict=True))
    assert all((named[name] > 0).all() for name in CURVE if name != "skipped")
    assert (named["packing"] <= 1).all()
