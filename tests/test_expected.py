"""What models expect to see: the sampler against exact velocities, the policy, the strips."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from components.errors import StoppedError
from components.outputs import write_json
from components.serving.policy import Policy
from components.trials import __main__ as trials_main
from components.trials import expected
from models.acting import Chunk, plan
from models.batch import Batch
from models.rows import Rows
from models.video import patches, pictures
from models.wall import WallModel
from models.wam import WorldActionModel
from models.wan import fold
from tests import made_training
from tests.made_windows import SHAPE, window
from tests.test_models import TINY
from tests.test_trials import CONFIG, untrained


def test_pictures_are_put_together_as_they_were_cut() -> None:
    seen = torch.randn(2, 5, 3, 12, 12)
    assert torch.equal(pictures(patches(seen, 4), 4), seen)


@pytest.mark.parametrize("carried", [1.0, 0.3])
def test_the_small_model_shows_what_its_video_tower_expects(
    carried: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of towers whose velocities lead to some pictures, with all of the noise or a part of it."""
    model, batch = WorldActionModel(TINY), Batch.fake()
    wanted = torch.rand(2, 2, 2, 3, 8, 8) * 1.8 - 0.9

    def told(keys: Tensor, noisy: Tensor, sigma: Tensor, *_: Tensor) -> tuple[Tensor, list[Any]]:
        assert (sigma == 1).all()
        return carried * noisy - patches(wanted, TINY.future_patch_px), []

    monkeypatch.setattr(model.video, "forward", told)
    seen = model.imagine(batch, pairs=2, random=torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("coupling", ["symmetric", "asymmetric"])
def test_the_full_model_shows_it_and_acts_as_if_it_did_not(
    coupling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = WallModel(replace(SHAPE, coupling=coupling))
    scene, wanted = window(0, frames=1, steps=0), torch.randn(1, 2, 4, 3, 4, 4)
    forward = model.video.forward

    def told(noisy: Tensor, sigma: Tensor, rows: Rows, hidden: Any = None) -> Any:
        velocity, features = forward(noisy, sigma, rows, hidden)
        pure = sigma.shape[1] == 3 and sigma.tolist() == [[0.0, 1.0, 1.0]]
        return (fold(0.3 * noisy - wanted) if pure else velocity), features

    monkeypatch.setattr(model.video, "forward", told)

    def planned(show: bool) -> Any:
        random = torch.Generator().manual_seed(0)
        chunk = Chunk(frames=2, steps=8)
        return plan(model, [scene], denoise_steps=3, random=random, chunk=chunk, show=show)

    found = planned(True)
    assert torch.equal(found.expected[:, :, :, 0], scene.latents[None, :, :, 0]), "it was seen"
    torch.testing.assert_close(found.expected[:, :, :, 1:], wanted[:, :, :, 1:], atol=1e-5, rtol=0)
    assert found.frame_s[0].tolist() == [0.0, 0.25, 0.5]
    assert torch.equal(found.actions, planned(False).actions)
    assert planned(False).expected is None


def test_a_policy_shows_it_to_who_asks(tmp_path: Path) -> None:
    untrained(tmp_path, "arm", ["top", "wrist"], {"push": ["push"]})
    policy = Policy(tmp_path)
    random = np.random.default_rng(0)
    seen = {
        f"observation/{camera}": random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        for camera in ("top", "wrist")
    } | {"observation/state": np.zeros(4, np.float32), "prompt": "push"}
    plain, shown = policy.infer(seen), policy.infer(seen | {"expected": True})
    assert np.array_equal(plain["actions"], shown["actions"])
    assert shown.keys() - plain.keys() == {"expected/top", "expected/wrist", "expected_at_s"}
    assert shown["expected/top"].shape == (1, 16, 16, 3)
    assert shown["expected/top"].dtype == np.uint8
    assert (shown["expected/top"] == 128).all(), "who was never trained expects grey, no noise"
    assert shown["expected_at_s"] == pytest.approx([(shown["event_remaining"] - 1) / 80])


class Foresight:
    """A server that expects white pictures at 0.1 and 0.2 s, or cannot say."""

    def __init__(self, **reply: Any) -> None:
        self.reply, self.metadata = reply, {"fps": 80.0}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return self.reply


class Stopped(Foresight):
    """SIGTERM arrives while it is asked."""

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        raise StoppedError("stopped by a signal")


WHITE = {
    "expected/top": np.full((2, 8, 8, 3), 255, np.uint8),
    "expected_at_s": np.array([0.1, 0.2], np.float32),
}


@pytest.fixture
def chosen(tmp_path: Path) -> argparse.Namespace:
    """Five recordings of a bar that moves a pixel a step, the last held out, 80 steps a second."""
    made_training.write(tmp_path)
    span = {"q01": [-1.0] * 4, "q99": [1.0] * 4}
    write_json(tmp_path / "checkpoint/normalisation.json", {"arm": {"state": span, "action": span}})
    names = ("checkpoint", "episodes", "captions", "plan", "out")
    return argparse.Namespace(**{name: tmp_path / name for name in names})


def test_strips_show_what_was_recorded_at_the_expected_times(chosen: argparse.Namespace) -> None:
    expected.save(chosen, CONFIG, {"arm": Foresight(**WHITE)})  # type: ignore[dict-item]
    page = np.asarray(Image.open(chosen.out / "expected.png"))
    cell, line = expected.CELL_PX, expected.LINE_PX
    height = 3 * line + 2 * cell
    assert len(page) == 2 * height, "both held-out events"
    assert page.shape[1] <= 4 * cell + 2 * line, "no wider than label, now, and two to come"

    def bar(row: int, column: int, strip: int) -> float:
        """Left edge of the bar, in pixels of the recording."""
        top = strip * height + 3 * line + row * cell
        left = line + column * cell
        lit = page[top : top + cell, left : left + cell, 0].mean(axis=0) > 120
        return float(lit.argmax()) * 24 / cell

    starts = sorted((bar(0, 1, strip), strip) for strip in range(2))
    for (at, strip), start in zip(starts, (0, 20), strict=True):
        left = (start + made_training.EPISODES - 1) % 20
        assert at == pytest.approx(left, abs=0.5)
        assert bar(1, 1, strip) == at, "now is in both rows"
        moved = [(left + step) % 20 for step in (8, 16)]
        assert [bar(1, c, strip) for c in (2, 3)] == pytest.approx(moved, abs=0.5)
        assert bar(0, 2, strip) == 0, "white all over"


def test_what_cannot_be_drawn_is_said_and_stops_nothing(
    chosen: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    expected.save(chosen, CONFIG, {"arm": Foresight(actions=[])})  # type: ignore[dict-item]
    assert "no picture of what the model expects: DataError: policy server: expected" in (
        capsys.readouterr().out
    )
    assert not (chosen.out / "expected.png").exists()
    with pytest.raises(StoppedError):
        expected.save(chosen, CONFIG, {"arm": Stopped()})  # type: ignore[dict-item]
    expected.save(chosen, CONFIG, {})
    assert "no held-out event of any robot" in capsys.readouterr().out


def test_a_camera_that_the_model_does_not_know_has_no_strip(chosen: argparse.Namespace) -> None:
    unknown = {name.replace("top", "wrist"): value for name, value in WHITE.items()}
    expected.save(chosen, CONFIG, {"arm": Foresight(**unknown)})  # type: ignore[dict-item]
    page = np.asarray(Image.open(chosen.out / "expected.png"))
    assert len(page) == 2 * 3 * expected.LINE_PX, "words of both events, and no pictures"


def test_a_late_answer_for_a_strip_is_none_of_a_replay(
    chosen: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_now: list[object] = []

    @contextmanager
    def connected(address: str) -> Iterator[object]:
        open_now.append(one := object())
        yield one
        open_now.remove(one)

    asked: dict[str, list[object]] = {}
    monkeypatch.setattr("components.serving.process.served", lambda *_: nullcontext("ws://there"))
    monkeypatch.setattr("components.serving.client.PolicyClient", connected)
    monkeypatch.setattr(
        expected, "save", lambda *args: asked.setdefault("strip", [*args[2].values()])
    )
    monkeypatch.setattr(
        "components.trials.replay.replay",
        lambda _, clients, *rest: asked.setdefault("replay", [*clients.values(), *open_now]),
    )
    trials_main._replay(chosen, CONFIG, "digest")
    assert len(asked["strip"]) == 1 and not set(asked["strip"]) & set(asked["replay"])
