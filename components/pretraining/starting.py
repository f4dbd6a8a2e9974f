"""Initial weights into a new model: a published video tower, or earlier versions of ours.

A model that acts on a staircase's states takes its towers from `model` or `video` and the branch
from `staircase`, or from a `model` that has one. A model that does not leaves it behind: sentences
and states are interchangeable on one denoiser.
"""

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

BRANCH = "staircase."  # its parameters, in checkpoints of both kinds
AROUND = ("video.", "action.", "projector.")  # the others


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
        _load_ours(model, initial)
    elif "video" in initial:
        from components.weights import load_wan, weights

        assert isinstance(model, WallModel)
        load_wan(model.video, weights(Path(initial["video"]["from"])))
    if "staircase" in initial:
        assert isinstance(model, WallModel)
        _load_branch(model, Path(initial["staircase"]["from"]), initial)


def _usable(model: WallModel | WorldActionModel | Reasoner) -> tuple[set[str], str]:
    """The parts that a model can start from or needs, and what it is called."""
    from models.reasoner import Reasoner
    from models.wall import WallModel

    if isinstance(model, Reasoner):
        return {"model", "vae", "text", "vlm", "lm"}, "the stage staircase"
    if isinstance(model, WallModel):
        usable = {"model", "video", "vae", "text"}
        if model.staircase:
            return usable | {"vlm", "staircase"}, "words staircase"
        return usable, "a stage without a staircase"
    return {"model"}, "pretraining.preset small"


def _load_ours(model: WallModel | WorldActionModel | Reasoner, initial: Initial) -> None:
    from components.weights import load_all
    from models.wall import WallModel

    folder, config = Path(initial["model"]["from"]), earlier(initial)
    _check_sizes(model, folder, config)
    path = folder / "model.safetensors"
    if not isinstance(model, WallModel):
        load_all(model, path)
        return
    load_all(model, path, (BRANCH,))
    if model.staircase and config["shape"].get("staircase") and "staircase" not in initial:
        _load_branch(model, folder, initial)


def _load_branch(model: WallModel, folder: Path, initial: Initial) -> None:
    """Of a checkpoint of the stage staircase, or of a model that acts on its states.

    UserError for other sizes, or where it was made for another language model.
    """
    from torch import nn

    from components.weights import load_all

    config = json.loads((folder / "config.json").read_text())
    got = config.get("shape", {})
    got = got.get("stair", got.get("staircase"))
    assert model.staircase
    if got != (expected := model.staircase.shape.as_dict()):
        raise UserError(
            f"{folder}: staircase: expected {expected}, got {got}. Train the stage staircase with "
            "the same pretraining.full.staircase, vlm and text, or leave it out of "
            "inputs/init.json."
        )
    made_for, vlm = config["encoders"].get("vlm"), initial["vlm"]["sha256"]
    if made_for != vlm:
        raise UserError(
            f"{folder}: staircase: expected the language model that it was made for ({made_for}), "
            f"got {vlm}; declare that as vlm in inputs/init.json."
        )
    load_all(nn.ModuleDict({"staircase": model.staircase}), folder / "model.safetensors", AROUND)


def _check_sizes(
    model: WallModel | WorldActionModel | Reasoner, folder: Path, config: dict[str, Any]
) -> None:
    """UserError with what differs in size; what a stage of the recipe chooses may."""
    from models.wall import WallModel

    expected, got = model.shape.as_dict(), config.get("shape")
    if got is None:
        wrong = ["config.json: expected the shape of a checkpoint of ours, got none"]
    else:
        chosen: tuple[str, ...] = ()
        if isinstance(model, WallModel) and "video" in got and "action" in got:
            chosen = ("coupling", "weights", "video_share", "staircase")
        wrong = [
            f"{n}: expected {expected.get(n)}, got {got.get(n)}"
            for n in sorted((expected.keys() | got.keys()) - set(chosen))
            if expected.get(n) != got.get(n)
        ]
    if wrong:
        raise UserError(
            f"{folder}: {'; '.join(wrong)}. Train the same preset, cameras and encoders, or start "
            "from random numbers."
        )
