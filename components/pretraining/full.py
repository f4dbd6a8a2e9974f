"""The full model for a run: its preset's sizes, what the data bring, and what learns.

The small model's view and loop serve it as they are; `full_windows.py` makes its batches.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from components import encoders, shards
from components.encoders import Cache, PictureCodec, TextEncoder
from components.errors import UserError
from components.pretraining.initial import Initial
from components.pretraining.stage import Config
from components.reasoning import Backbone
from models.draws import Chances, Coupling
from models.presets import PRESETS, Preset
from models.staircase import StairShape
from models.wall import WallModel
from models.wall_shape import WallShape, Weights

READS_WORDS = {"text", "text_norm", "read_text"}  # what learns in the stage `text`


def preset(config: Config) -> Preset:
    """Sizes of the model that a run trains."""
    return PRESETS[config.preset]


def codec(config: Config, initial: Initial) -> PictureCodec:
    """The VAE that was declared, or patches of pictures."""
    return encoders.picture_codec(_at(initial, "vae"), config.full.codec_px, device(config))


def text_encoder(config: Config, initial: Initial) -> TextEncoder:
    """The UMT5 that was declared, or the small sentence model."""
    return encoders.text_encoder(_at(initial, "text"), preset(config).text_tokens, device(config))


def device(config: Config) -> str:
    """This worker's own, by name: threads do not inherit CUDA's current device."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if config.device == "cuda" else config.device


def _at(initial: Initial, part: str) -> Path | None:
    return Path(initial[part]["from"]) if part in initial else None


def language_models(config: Config) -> tuple[str, ...]:
    """The parts of `inputs/init.json` that a training cannot do without."""
    if config.full.stage == "staircase":
        return ("vlm", "lm")
    return ("vlm",) if config.full.words == "staircase" else ()


def backbone(config: Config, initial: Initial) -> Backbone:
    """The large language model that was declared."""
    return Backbone(Path(initial["vlm"]["from"]), device(config))


def stairs(config: Config, initial: Initial) -> StairShape:
    """What the large language model and the text side bring and the run chooses.

    UserError where they do not fit.
    """
    values = config.full.staircase
    depth, heads, key_heads, head_width = backbone(config, initial).sizes
    try:
        return StairShape(
            width=values.width, heads=heads, key_heads=key_heads, head_width=head_width,
            feed_width=4 * values.width, depth=depth, relay_depth=values.relay_depth,
            stairs=len(values.levels), text_width=text_encoder(config, initial).width,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"pretraining.full.staircase: {error}") from None


def cache() -> Cache:
    """Where encoded sentences are kept: the store, outside every stage's outputs."""
    return Cache(shards.place() / "encodings")


def keep_words(config: Config, initial: Initial, words: list[str]) -> None:
    """Encode all sentences of a training, and silence, before its workers ask for them."""
    encoder = text_encoder(config, initial)
    cache().texts(encoder, sorted({*words, ""}))
    del encoder  # training needs its memory
    if config.device == "cuda":
        import torch

        torch.cuda.empty_cache()


def picture_px(config: Config, initial: Initial) -> int:
    """Side of the square pictures whose latents have the preset's size."""
    return preset(config).latent_px[0] * codec(config, initial).side_px


def coupling(config: Config) -> Coupling:
    """The video tower alone learns without actions."""
    return "video" if config.full.stage == "video" else config.full.coupling


def shape(config: Config, initial: Initial) -> WallShape:
    """The preset's, with what the encoders bring and the run chooses."""
    f, sizes = config.full, preset(config).shape
    channels = codec(config, initial).channels
    text_width = text_encoder(config, initial).width
    return replace(
        sizes,
        video=replace(sizes.video, latent_channels=channels, text_width=text_width),
        action=replace(sizes.action, prediction=f.prediction),
        coupling=coupling(config),
        video_share=f.video_share if f.stage == "joint" and f.coupling == "asymmetric" else 0.0,
        weights=Weights(
            video=f.video_weight, tube=f.tube_weight, dct=f.dct_weight, left=f.left_weight,
            done=f.done_weight,
        ),
        staircase=stairs(config, initial) if f.words == "staircase" else None,
    )  # fmt: skip


def chances(config: Config) -> Chances:
    """How training draws; caption drop comes from the receipt's order, not from here."""
    f = config.full
    return Chances(
        coupling=coupling(config),
        action_samples=f.action_samples if coupling(config) == "asymmetric" else 1,
        shift=preset(config).shape.shift, tube_probability=f.tube_probability,
        tube_side=f.tube_side, patch_steps=preset(config).shape.action.patch_steps,
    )  # fmt: skip


def model(config: Config, initial: Initial) -> WallModel:
    """With random or declared initial weights; what does not learn in this stage is frozen."""
    from components.pretraining import starting

    made = WallModel(shape(config, initial))
    starting.load(made, initial)
    freeze(made, config.full.stage)
    return made


def freeze(made: WallModel, stage: str) -> None:
    """Leave only the parts that a stage of the recipe trains, and what a model thinks."""
    for name, parameter in made.named_parameters():
        tower, *inside = name.split(".")
        words = stage == "text" and bool(READS_WORDS & set(inside))
        parameter.requires_grad_(stage in ("joint", tower) or tower == "staircase" or words)


def check(info: dict[str, Any], config: Config, initial: Initial) -> None:
    """UserError for language models that are not declared, or for what has no room in the preset.

    Everything in data and windows that does not fit is listed, and every robot without a camera.
    """
    if missing := [part for part in language_models(config) if part not in initial]:
        wanted = "stage" if config.full.stage == "staircase" else "words"
        raise UserError(
            f"inputs/init.json: {' and '.join(missing)}: expected folders of a Qwen3.5 for "
            f"pretraining.full.{wanted} staircase, got none; `python -m "
            f"components.pretraining.initial {' '.join(f'{m}=FOLDER' for m in missing)}` declares "
            "them."
        )
    limits = preset(config).shape.limits
    robots, f, sizes = info["embodiments"], config.full, preset(config).shape
    chunk_s, history = (f.chunk_s, f.history_frames) if f.windows == "chunk" else (0.0, 0)
    room_s = max(1, sizes.max_frames - 1 - history) / sizes.latent_hz
    wrong = [
        f"{what}: expected at most {most}, got {got}"
        for what, got, most in (
            ("cameras", len(info["cameras"]), limits.cameras),
            ("embodiments", len(info["embodiment_ids"]), limits.embodiments),
            *((f"state of {r['name']}", len(r["state_names"]), limits.state_width) for r in robots),
            *((f"action of {r['name']}", len(r["action_names"]), limits.action_width)
              for r in robots),
            *((f"steps of chunk_s {chunk_s:g} of {r['name']}", round(chunk_s * r["fps"]),
               sizes.max_steps) for r in robots),
            ("history_frames", history, sizes.max_frames - 2),
            (f"chunk_s after {history} history_frames, seconds", chunk_s, room_s),
        )
        if got > most
    ]  # fmt: skip
    change = "Choose a larger preset, a shorter chunk or history, or drop cameras in ingestion."
    said = [f"{'; '.join(wrong)}. {change}"] if wrong else []
    said += [
        f"cameras of {robot['name']}: expected at least one, got none; leave the robot out in "
        "ingestion, or choose pretraining.preset=small."
        for robot in robots
        if not robot["cameras"] and f.stage != "staircase"
    ]
    if said:
        raise UserError(
            f"pretraining: the data do not fit preset {config.preset}: {' '.join(said)}"
        )
