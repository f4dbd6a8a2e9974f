"""What the ablation switches off is off, and what it is judged by is what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from components.pretraining import stage, view
from components.pretraining.full_windows import Span
from models.packed import Packed
from models.wan import fold
from tests import made_windows
from tests.benchmarks import ablation, ablation_runs
from tests.benchmarks.ablation_runs import Arm, Run, changed
from tests.made_training import VALUES, write

FULL = VALUES["full"] | {"codec_px": 2}  # type: ignore[operator]
CONFIG = stage.Config.model_validate(VALUES | {"preset": "tiny", "processes": 1, "full": FULL})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A view of made episodes, and a group of one."""
    root, threads = tmp_path_factory.mktemp("data"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("WAMFLOW_STORE", str(tmp_path_factory.mktemp("store")))
        dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=0, world_size=1)
        torch.set_num_threads(1)
        write(root)
        (root / "view").mkdir()
        parts = (root / name for name in ("episodes", "captions", "plan"))
        view.build(*parts, root / "view", CONFIG)
        yield root / "view"
        torch.set_num_threads(threads)
        dist.destroy_process_group()


def run(folder: Path, arm: Arm, steps: int = 2) -> Run:
    """A short training."""
    return Run(folder, changed(CONFIG, arm.values), arm, steps, None, {})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (ablation.without_crossing, ".across.out."),
        (ablation.without_camera_turns, "video.cameras.angles"),
        (ablation.without_words_at_the_end, "action.ends.text.out.weight"),
        (ablation.without_time_codes, "(action|video)_code."),
        (ablation.without_places, "place_code."),
    ],
)
def test_a_part_that_is_switched_off_stays_off(folder: Path, change: Any, names: str) -> None:
    """And everything else learns."""
    of = dict(run(folder, Arm(change=change)).model.named_parameters())
    silent = {name for name, value in of.items() if not value.any()}
    wanted = {name for name in of if re.search(names, name)}
    assert wanted and wanted <= silent
    assert not any("weight" in name for name in silent - wanted)


def test_borders_are_masked_or_not(folder: Path) -> None:
    """A squeezed picture keeps its mean, and only `Letterboxed` says where it ends."""
    kinds = (ablation_runs.FullWindows, ablation_runs.Letterboxed, ablation_runs.BordersUnknown)
    whole, boxed, unknown = (kind(folder, CONFIG).batch(0, 0, 1).rows for kind in kinds)
    inside = boxed.inside[0, 0, 0].view(4, 4)
    assert inside[1:3].all() and not inside[0].any() and not inside[3].any()
    assert unknown.inside[0, 0, 0].all()
    assert torch.equal(boxed.latents, unknown.latents)
    pictures, middle = fold(whole.latents)[0, 0, 0], fold(boxed.latents)[0, 0, 0][inside.flatten()]
    assert middle.mean() == pytest.approx(float(pictures.mean()), abs=0.02)


def test_two_robots_and_what_is_not_said_of_them(folder: Path) -> None:
    """The second robot's columns are the first's, turned; masks or names can be kept back."""
    one, two, bare, nameless = (
        kind(folder, CONFIG).batch(0, 0, 1)
        for kind in (ablation_runs.FullWindows, ablation_runs.TwoRobots, ablation_runs.NoMasks,
                     ablation_runs.OneName)
    )  # fmt: skip
    assert isinstance(one, Packed)
    second = [i for i, w in enumerate(two.windows) if w.embodiment]
    assert 0 < len(second) < len(two.windows)
    mine, its = one.windows[second[0]], two.windows[second[0]]
    assert torch.equal(its.actions[:, [2, 1, 0]], -mine.actions[:, :3])
    assert its.action_mask.sum() == 3 and its.state_mask.sum() == 3
    assert bare.windows[second[0]].action_mask.all() and bare.windows[second[0]].embodiment == 1
    assert not any(w.embodiment for w in nameless.windows)


def test_siblings_differ_in_what_three_commands_mean_and_in_name(folder: Path) -> None:
    """Nothing else that the model reads tells the second robot from the first."""
    one, two, nameless = (
        kind(folder, CONFIG).batch(0, 0, 1)
        for kind in (ablation_runs.FullWindows, ablation_runs.Siblings,
                     ablation_runs.SiblingsUnnamed)
    )  # fmt: skip
    assert 0 < sum(w.embodiment for w in two.windows) < len(two.windows)
    assert not any(w.embodiment for w in nameless.windows)
    for mine, its, bare in zip(one.windows, two.windows, nameless.windows, strict=True):
        assert torch.equal(its.actions, bare.actions)
        for name in ("latents", "state", "state_mask", "action_mask", "text"):
            assert torch.equal(getattr(its, name), getattr(mine, name)), name
        three = -mine.actions[:, [2, 1, 0]] if its.embodiment else mine.actions[:, :3]
        assert torch.equal(its.actions, torch.cat([three, mine.actions[:, 3:]], dim=-1))


def test_a_state_or_a_picture_is_kept_back(folder: Path) -> None:
    """And nothing else of the window."""
    one, stateless, late = (
        kind(folder, CONFIG).batch(0, 0, 1).windows[0]
        for kind in (ablation_runs.FullWindows, ablation_runs.NoState, ablation_runs.LatePictures)
    )
    assert not stateless.state_mask.any() and not stateless.state.any()
    assert torch.equal(stateless.latents, one.latents) and torch.equal(late.state, one.state)
    assert one.latents[:, :, 0].any() and not late.latents[:, :, 0].any()
    assert torch.equal(late.latents[:, :, 1:], one.latents[:, :, 1:])


def test_another_camera_is_missing_in_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a view that was not recorded: without a row of the table, and with nothing inside."""
    whole = made_windows.window(0, views=3)
    monkeypatch.setattr(ablation_runs.FullWindows, "window", lambda *_: whole)
    kind = ablation_runs.CameraAway
    for event, wanted in enumerate(([-1, 1, 2], [0, -1, 2], [0, 1, -1], [-1, 1, 2])):
        less = kind.window(object.__new__(kind), event, Span(0, 1, 1, 1, 1, None, None), "")
        assert less.camera.tolist() == wanted
        assert less.inside.flatten(1).any(dim=1).tolist() == [c >= 0 for c in wanted]


def test_longer_windows_are_asked_at_the_same_noise_levels(folder: Path) -> None:
    """Or losses of an arm with history would be those of other levels."""
    made = run(folder, Arm(), steps=1)
    short = made.held_out(told=True)
    levels = [drawn.sigma for _, _, drawn in made.noises(made.untubed(), told=True)]
    longer = [
        replace(
            w, clean=w.clean + 1, latents=w.latents[:, :, [0, *range(w.latents.shape[2])]],
            inside=w.inside[:, [0, *range(w.inside.shape[1])]],
            frame_s=torch.cat([w.frame_s[:1] - 0.25, w.frame_s]),
        )
        for w in short
    ]  # fmt: skip
    made.held_out = lambda **_: longer  # type: ignore[method-assign]
    again = [drawn.sigma for _, _, drawn in made.noises(made.untubed(), told=True)]
    assert len(short) > 1 and len(levels) == ablation_runs.NOISE_DRAWS
    for one, other in zip(levels, again, strict=True):
        assert sorted(one.flatten().tolist()) == sorted(other.flatten().tolist())


def test_what_is_behind_a_tube_is_compared_with_the_mean_picture(folder: Path) -> None:
    """A model that says the mean picture knows 1 of 1."""
    made = run(folder, Arm({"stage": "video"}))
    mean = made._mean_picture()
    made._said = lambda rows, drawn, hidden: -mean.expand(fold(rows.latents).shape)  # type: ignore
    assert made.behind(2) == pytest.approx(1)


def test_the_interval_is_students() -> None:
    """Against a table: t is 4.303 for three seeds."""
    mean, low, high = ablation.interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == pytest.approx((2, 4.303 / np.sqrt(3)), rel=1e-3)
    assert low == pytest.approx(2 * mean - high)


def test_every_part_differs_from_the_whole_and_has_its_metric() -> None:
    """No arm is compared with itself, but for a weight that is the default."""
    for name, part in ablation.PARTS.items():
        assert part.have.key != part.without.key, name
        assert part.metrics and set(part.metrics) <= set(ablation.METRICS), name
