"""Initial weights into a new model: a published video tower, or an earlier version of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from components.pretraining.initial import Initial

if TYPE_CHECKING:
    from models.reasoner import Reasoner
    from models.wall import WallModel
    from models.wam import WorldActionModel


def earlier(initial: Initial) -> dict[str, Any]:
    """config.json of the earlier version; empty without one."""
    if "model" not in initial:
        return {}
    path = Path(initial["model"]["from"]) / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def load(model: WallModel | WorldActionModel | Reasoner, initial: Initial) -> None:
    """Put declared weights in place, all checked before the first number is copied.

    UserError for a model of other sizes, DataError for missing, unknown or misshapen parameters.
    """
    from models.wall import WallModel

    usable, kind = _usable(model)
    if ignored := sorted(initial.keys() - usable):
        raise UserError(
            f"inputs/init.json: {', '.join(ignored)}: {kind} has no use for it; choose another "
            "preset or stage in pretraining, or remove what cannot be used."
        )
    if "model" in initial:
        if "video" in initial:
            raise UserError("inputs/init.json: video and model both start the video; give one.")
        _load_ours(model, Path(initial["model"]["from"]), earlier(initial))
    elif "video" in initial:
        from components.weights import load_wan, weights

        assert isinstance(model, WallModel)
        load_wan(model.video, weights(Path(initial["video"]["from"])))


def _usable(model: WallModel | WorldActionModel | Reasoner) -> tuple[set[str], str]:
    """The parts that a model can start from or needs, and what it is called."""
    from models.reasoner import Reasoner
    from models.wall import WallModel

    if isinstance(model, Reasoner):
        return {"model", "text", "vlm", "lm"}, "the stage staircase"
    if isinstance(model, WallModel):
        return {"model", "video", "vae", "text"}, "a stage without a staircase"
    return {"model"}, "pretraining.preset small"


def _load_ours(
    model: WallModel | WorldActionModel | Reasoner, folder: Path, config: dict[str, Any]
) -> None:
    from components.weights import load_all

    if wrong := _other_sizes(model, config):
        raise UserError(
            f"{folder}: {'; '.join(wrong)}. Train the same preset, cameras and encoders, or start "
            "from random numbers."
        )
    load_all(model, folder / "model.safetensors")


def _other_sizes(
    model: WallModel | WorldActionModel | Reasoner, config: dict[str, Any]
) -> list[str]:
    """What differs in size; what a stage of the recipe chooses may."""
    from models.wall import WallModel

    if "shape" not in config:
        return ["config.json: expected the shape of a checkpoint of ours, got none"]
    got, expected = config["shape"], model.shape.as_dict()
    if isinstance(model, WallModel) and "video" in got and "action" in got:
        got = got | {n: expected[n] for n in ("coupling", "weights", "video_share")}
    names = sorted(expected.keys() | got.keys())
    return [
        f"{n}: expected {expected.get(n)}, got {got.get(n)}"
        for n in names
        if expected.get(n) != got.get(n)
    ]
