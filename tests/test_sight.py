"""Calibrated cameras against MuJoCo and points in space, and their way from recording to acting."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components import params, sight
from components.calibration import Calibration
from components.episodes import Episodes
from components.errors import DataError, UserError
from components.ingestion.inspect import inspect
from components.ingestion.said import Said
from components.ingestion.stage import Config
from components.pretraining import launch, results
from components.pretraining.full_windows import FullWindows
from components.pretraining.training import Training
from components.serving.full import FullModel
from components.serving.policy import Policy
from flows import inspection
from tests import made_training
from tests.test_full_training import alone, built, config, seen, trained  # noqa: F401  (a fixture)
from tests.test_ingestion import CAMERA, CONFIG, dataset_v21, ingest, shared

NEAR, FAR = 0.05, 10.0


def place(x: float, turn_rad: float, size: tuple[int, int] = (24, 24)) -> Calibration:
    """A camera at (x, 0, 0) that looks along +z, turned about the vertical."""
    c, s, (high, wide) = math.cos(turn_rad), math.sin(turn_rad), size
    return Calibration.model_validate(
        {
            "size_px": size,
            "intrinsics": [[wide, 0, 0.55 * wide], [0, wide, 0.4 * high], [0, 0, 1]],
            "pose": [[c, 0, s, x], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]],
        }
    )


def robot(**known: Calibration) -> dict[str, Any]:
    return {"name": "arm", "calibration": {n: c.model_dump(mode="json") for n, c in known.items()}}


def mask(px: int, side_px: int, cameras: list[str], **known: Calibration) -> torch.Tensor | None:
    info = {"picture_px": px, "cameras": cameras, "embodiments": [robot(**known)]}
    return sight.meeting(info, side_px, NEAR, FAR).get("arm")


def pixels(points: np.ndarray, said: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Of points (N, 3): (N, 2) x and y where OpenCV says they are, and their depth (N,)."""
    pose = np.array(said.pose)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = local @ np.array(said.intrinsics).T
    return pixel[:, :2] / pixel[:, 2:], local[:, 2]


def patches(pixel: np.ndarray, said: Calibration, cells: int) -> np.ndarray:
    """Which patch each pixel (N, 2) lies in, -1 outside of the picture."""
    high, wide = said.size_px
    cell = np.floor((pixel + 0.5) / [wide, high] * cells).astype(int)
    inside = ((cell >= 0) & (cell < cells)).all(axis=1)
    return np.where(inside, cell[:, 1] * cells + cell[:, 0], -1)


# --- against MuJoCo -----------------------------------------------------------------------------

os.environ.setdefault("MUJOCO_GL", "osmesa")
VIEWS = ("top", "corner", "corner2", "wrist")


@pytest.fixture(scope="module")
def station() -> Iterator[Any]:
    mujoco = pytest.importorskip("mujoco")
    try:
        mujoco.GLContext(16, 16).free()
    except Exception as error:
        pytest.skip(f"no software rendering on this machine: {error}")
    from components.stations.metaworld import MetaworldStation

    made = MetaworldStation(cameras=VIEWS)
    made.reset("drawer-open", 3)
    yield made
    made.close()


def _rendered(station: Any, camera: str, ball: np.ndarray | None) -> np.ndarray:
    """The picture of an empty world, with a small ball at a point (3,)."""
    import mujoco

    renderer = station._renderer()
    renderer.update_scene(station.env.data, camera)
    renderer.scene.ngeom = 0
    if ball is not None:
        mujoco.mjv_initGeom(
            renderer.scene.geoms[0], mujoco.mjtGeom.mjGEOM_SPHERE, np.full(3, 0.04), ball,
            np.eye(3).ravel(), np.array([1, 0, 0, 1], np.float32),
        )  # fmt: skip
        renderer.scene.ngeom = 1
    return renderer.render().astype(int)


def test_a_point_is_seen_where_mujoco_draws_it(station: Any) -> None:
    from components.stations.metaworld import CAMERAS

    known = station.calibration()
    assert set(known) == {"top", "corner", "corner2"}, "the wrist's camera moves"
    random = np.random.default_rng(5)
    for name, said in known.items():
        empty = _rendered(station, CAMERAS[name], None)
        for ball in random.uniform([-0.25, 0.4, 0.05], [0.25, 0.8, 0.3], (4, 3)):
            drawn = np.abs(_rendered(station, CAMERAS[name], ball) - empty).sum(axis=2) > 8
            at = np.argwhere(drawn).mean(axis=0)[::-1]
            assert np.abs(pixels(ball[None], said)[0][0] - at).max() < 0.75, (name, ball)


def test_patches_that_show_the_same_point_may_always_attend(station: Any) -> None:
    """Every pixel of one view whose point, by MuJoCo's depth, another view shows too."""
    from components.stations.metaworld import CAMERAS

    known = station.calibration()
    renderer = station._renderer()
    renderer.enable_depth_rendering()
    depth = {}
    for name in known:
        renderer.update_scene(station.env.data, CAMERAS[name])
        depth[name] = renderer.render().copy()
    renderer.disable_depth_rendering()
    names, side, cells = list(VIEWS), station.size_px, 8
    allowed = mask(side, 6, names, **known)
    assert allowed is not None and len(allowed) == len(names) * cells**2
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    for one, said in known.items():
        rays = np.linalg.solve(np.array(said.intrinsics), np.stack([x, y, np.ones_like(x)]))
        pose = np.array(said.pose)
        points = (rays * depth[one].ravel()).T @ pose[:3, :3].T + pose[:3, 3]
        mine = patches(np.stack([x, y], axis=1), said, cells)
        for two in known.keys() - {one}:
            at, far = pixels(points, known[two])
            theirs = patches(at, known[two], cells)
            shown = (theirs >= 0) & (far > 0)
            column, row = at[shown].round().astype(int).clip(0, side - 1).T
            surface = np.abs(depth[two][row, column] - far[shown]) < 0.01  # nothing is before it
            a = names.index(one) * cells**2 + mine[shown][surface]
            b = names.index(two) * cells**2 + theirs[shown][surface]
            assert len(set(zip(a.tolist(), b.tolist(), strict=True))) > cells**2 / 2
            assert allowed[a, b].all(), (one, two)
    block = allowed[: cells**2, cells**2 : 2 * cells**2]
    assert 0.05 < block.float().mean() < 0.6, "and most others may not"
    wrist = names.index("wrist") * cells**2
    assert allowed[wrist:].all() and allowed[:, wrist:].all(), "nobody knows where it is"


# --- scaling ------------------------------------------------------------------------------------


def test_pictures_of_any_size_are_stretched_to_the_models_square() -> None:
    """Axes off the middle, 4:3 beside 3:4; a common point's patches meet, others mostly do not."""
    one, two = place(0, 0.5, (48, 64)), place(1.2, -0.6, (400, 300))
    allowed = mask(24, 2, ["a", "b"], a=one, b=two)
    assert allowed is not None
    points = np.random.default_rng(0).uniform([-2, -2, 0], [3, 2, 4], (300_000, 3))
    (at, depth), (to, far) = pixels(points, one), pixels(points, two)
    a, b = patches(at, one, 6), patches(to, two, 6)
    both = (a >= 0) & (b >= 0) & (depth > 0.1) & (far > 0.1)
    shared = torch.zeros(36, 36, dtype=torch.bool)
    shared[a[both], b[both]] = True
    across = allowed[:36, 36:]
    assert both.sum() > 1000 and across[shared].all()
    assert across.sum() < 3 * shared.sum() and across.float().mean() < 0.8


def test_nothing_is_forbidden_where_fewer_than_two_cameras_are_known() -> None:
    away = place(-1, math.pi)
    assert mask(24, 3, ["a", "b"], a=place(0, 0)) is None
    assert mask(24, 3, ["a"], a=place(0, 0), b=away) is None, "the model has no camera b"
    same = mask(24, 12, ["a", "b"], a=place(0, 0), b=place(0.01, 0))
    assert same is None, "one patch a view, side by side"
    apart = mask(24, 12, ["a", "b"], a=place(0, 0), b=place(0, math.pi))
    assert apart is not None and torch.equal(apart, torch.eye(2, dtype=torch.bool))


# --- what people and recordings say -------------------------------------------------------------

GOOD = place(0, 0.3, (32, 48)).model_dump(mode="json")
TURN = GOOD["pose"]
WRONG = {
    "no rotation": ({"pose": [[2, 0, 0, 0], *TURN[1:]]}, "expected a rotation .* off by 3"),
    "mirrored": ({"pose": [[-v for v in TURN[0]], *TURN[1:]]}, "expected a rotation .* -1"),
    "NaN": ({"pose": [[float("nan")] * 4, *TURN[1:]]}, "expected 4 x 4 finite numbers, got"),
    "3 x 4": ({"pose": TURN[:3]}, "expected 4 x 4 finite numbers, got"),
    "words": ({"intrinsics": "fx"}, "expected 3 rows of 3 numbers, got 'fx'"),
    "focal": ({"intrinsics": [[0, 0, 1], [0, 9, 1], [0, 0, 1]]}, "fx, fy above 0 pixels, got"),
    "no size": ({"size_px": [0, 4]}, "greater than 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_calibration_says_where_and_what_was_expected(name: str, tmp_path: Path) -> None:
    changed, message = WRONG[name]
    said = {"source": {"calibration": {"front": GOOD | changed}}}
    values = {"ingestion": CONFIG.model_dump() | {"mappings": said}}
    where = rf"ingestion.mappings.source.calibration.front.{next(iter(changed))}.*{message}"
    with pytest.raises(UserError, match=where):
        params.section(values, "ingestion", Config)
    source = _calibrated(tmp_path / "source", GOOD | changed)
    where = rf"source: meta/info.json is damaged: .*{CAMERA} .*{next(iter(changed))}.*{message}"
    with pytest.raises(DataError, match=where):
        ingest(tmp_path / "out", source)


def _calibrated(folder: Path, said: dict[str, Any] | None, episodes: int = 3) -> Path:
    """A LeRobot v2.1 data set whose info.json has a calibration, as `KEY` says."""
    path = dataset_v21(folder, episodes) / "meta/info.json"
    info = json.loads(path.read_text())
    if said is not None:
        info["features"][CAMERA].setdefault("info", {})["calibration"] = said
    path.write_text(json.dumps(info))
    return folder


def _of(out: Path) -> dict[str, Calibration]:
    return Episodes(out / "episodes").embodiment("tester").calibration()


def test_a_calibration_goes_from_recordings_or_params_to_the_episodes(tmp_path: Path) -> None:
    good = Calibration.model_validate(GOOD)
    source = _calibrated(tmp_path / "source", GOOD)
    ingest(tmp_path / "one", source)
    assert _of(tmp_path / "one") == {CAMERA: good}
    again = tmp_path / "one/episodes/tester"
    ingest(tmp_path / "two", again)
    assert _of(tmp_path / "two") == {CAMERA: good}, "and comes in again from there"
    (camera,) = inspect(str(again), 2).cameras
    assert camera.calibration == good
    assert "calibrated at (0, 0, 0) m" in inspection._camera(camera)
    other = place(0.4, 0, (32, 48))
    said = {"source": Said(cameras={"front": "table"}, calibration={"table": other})}
    ingest(tmp_path / "three", source, config=CONFIG.model_copy(update={"mappings": said}))
    assert _of(tmp_path / "three") == {"observation.images.table": other}, "params.yaml counts"
    said = {"source": Said(calibration={"side": other})}
    with pytest.raises(UserError, match="calibration: no side; there are front"):
        ingest(tmp_path / "four", source, config=CONFIG.model_copy(update={"mappings": said}))
    said = {"source": Said(calibration={"front": other.model_copy(update={"size_px": (64, 96)})})}
    with pytest.raises(UserError, match=r"expected size_px \[32, 48\].* got \[64, 96\]"):
        ingest(tmp_path / "five", source, config=CONFIG.model_copy(update={"mappings": said}))


def test_a_calibrated_camera_that_moves_is_an_oddity() -> None:
    folder = shared("cr5-banana")
    said = {folder.name: Said(calibration={"top": place(0, 0, (240, 320))})}
    line = "camera top moves with the robot but is calibrated as one that stands still"
    assert any(line in warning for warning in inspect(str(folder), 2, mappings=said).warnings)


def test_sources_that_do_not_agree_leave_a_camera_unknown(tmp_path: Path) -> None:
    sources = [_calibrated(tmp_path / "source", GOOD), _calibrated(tmp_path / "other", None, 5)]
    report = ingest(tmp_path / "out", *sources)
    assert _of(tmp_path / "out") == {}
    line = f"tester: sources do not agree on where {CAMERA} stands; it counts as not calibrated"
    assert report.warnings.count(line) == 1


# --- training and acting ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made episodes with a second camera; no patch of one meets one of the other."""
    views = {"top": place(0, 0), "side": place(0, math.pi)}
    return made_training.write(tmp_path_factory.mktemp("data"), views)


def test_training_and_acting_forbid_what_cannot_meet(data: Path, tmp_path: Path) -> None:
    folder = built(data, _new(tmp_path / "view"), config())
    trained_, out = trained(folder, range(4)), _new(tmp_path / "checkpoint")
    windows = trained_.windows
    assert isinstance(windows, FullWindows)
    batch = windows.batch(0, 0, 1)
    p = batch.windows[0].inside.shape[2]
    expected = torch.eye(2, dtype=torch.bool).repeat_interleave(p, 0).repeat_interleave(p, 1)
    for window in batch.windows:
        assert window.meet is not None and (window.meet == expected).all()
    assert batch.rows.meet is not None and not batch.rows.whole
    trained_.curve = trained_.curve[:4]
    results.write(trained_, out)
    assert torch.isfinite(trained_.curve).all()
    model = Policy(out).model
    assert isinstance(model, FullModel) and torch.equal(model.meet["arm"], expected)
    black = {"observation/side": np.full((24, 24, 3), 30, np.uint8)}
    acts = {how: Policy(_with(out, tmp_path / how, how)).infer(seen(**black))["actions"]
            for how in ("always", "training", "none")}  # fmt: skip
    assert np.array_equal(acts["always"], Policy(out).infer(seen(**black))["actions"])
    assert np.array_equal(acts["training"], acts["none"]), "the paper's masks are for training only"
    assert acts["always"].shape != acts["none"].shape or (acts["always"] != acts["none"]).any()


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _with(checkpoint: Path, copy: Path, how: str) -> Path:
    """The same weights, acting as if trained with another value of sight_cones."""
    copy.mkdir()
    for file in checkpoint.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    read = json.loads((copy / "config.json").read_text())
    read["pretraining"]["full"]["sight_cones"] = how
    (copy / "config.json").write_text(json.dumps(read))
    return copy


def test_the_value_switches_cones_off(data: Path, tmp_path: Path) -> None:
    """Off, the batches are those of cameras that nobody knows; on, the loss is another."""
    folder = built(data, _new(tmp_path / "view"), config())
    off = FullWindows(folder, config({"sight_cones": "none"})).batch(0, 0, 1)
    on = FullWindows(folder, config({"sight_cones": "training"})).batch(0, 0, 1)
    assert off.rows.meet is None and on.rows.meet is not None
    for name, value in vars(replace(on.rows, meet=None)).items():
        same = getattr(off.rows, name)
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, name
    training = Training(FullWindows(folder, config()), config())
    for name, parameter in training.model.named_parameters():
        if ".across.out." in name:  # zero at the start
            torch.nn.init.normal_(parameter.data, std=0.1)
    random = torch.Generator()
    losses = [training.losses(b, random.manual_seed(0))["video"].item() for b in (off, on)]
    assert losses[0] != losses[1]


def test_another_calibration_is_another_training(data: Path) -> None:
    """A killed training must not go on with the view of cameras that stood elsewhere."""
    path = data / "episodes/arm/meta/info.json"
    before = path.read_text()
    arguments = data / "captions", data / "plan", data / "episodes", config(), {}
    first = launch.state_key(*arguments)
    path.write_text(before.replace("0.0", "0.5", 1))
    other = launch.state_key(*arguments)
    path.write_text(before)
    assert first == launch.state_key(*arguments) != other
