"""The full model of `models/wall.py` as what a policy asks; see `models/acting.py`.

Event mode executes until the model says that the event ends, and plans one that is longer than the
longest window in parts. Unified mode executes a chunk of fixed length; the words may be the task's,
and a language model with a staircase may think about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components import encoders, sight
from components.errors import DataError, UserError
from components.reasoning import Backbone, files
from components.serving.asked import Asked, Expected, Told
from components.weights import load_all
from models.acting import Chunk, Plan, fitting, plan
from models.masks import shown
from models.wall import WallModel
from models.wall_shape import WallShape
from models.windows import Window


class FullModel:
    """Weights of a checkpoint, and the frozen encoders that it was trained with."""

    def __init__(self, checkpoint: Path, config: dict[str, Any]) -> None:
        values = config["pretraining"]
        self.values, self.denoise_steps = values["full"], values["denoise_steps"]
        _check_acts(checkpoint, self.values)
        self.shape = _shape(checkpoint, config)
        self.model = WallModel(self.shape)
        load_all(self.model, checkpoint / "model.safetensors")
        self.model.eval()
        self.size_px, self.max_steps = config["picture_px"], self.shape.max_steps
        self.clean = 1 + self.values["history_frames"]
        self.embodiments = {name: row for row, name in enumerate(config["embodiment_ids"])}
        vae, text = (_folder(config["initial"], part) for part in ("vae", "text"))
        self.codec = encoders.picture_codec(vae, self.values["codec_px"], "cpu")
        self.encoder = encoders.text_encoder(text, config["text_tokens"], "cpu")
        for part, encoder in (("vae", self.codec), ("text", self.encoder)):
            if encoder.digest != config["encoders"][part]:
                raise DataError(
                    f"{checkpoint}/config.json: {part}: expected the encoder with digest "
                    f"{config['encoders'][part]}, got {encoder.digest}; bring its weights back."
                )
        each = 1 if isinstance(self.codec, encoders.PatchCodec) else encoders.FRAMES_PER_LATENT
        self.history, self.every_s = (self.clean - 1) * each, 1 / (each * self.shape.latent_hz)
        self.meet: dict[str, Tensor] = {}
        if self.values.get("sight_cones") == "always":
            reach = self.values["sight_near_m"], self.values["sight_far_m"]
            self.meet = sight.meeting(config, self.codec.side_px, *reach)
        self.backbone = _backbone(checkpoint, config) if self.shape.staircase else None
        self._texts: dict[str, Tensor] = {}

    def remember(self, texts: Sequence[str]) -> None:
        """Encode sentences, or load the model that thinks, before anybody waits for it."""
        if texts and self.backbone:
            self.backbone.remember([[]] * len(texts), texts)
        elif texts:
            self._texts |= dict(zip(texts, self.encoder.encode(list(texts)), strict=True))

    def plan(self, asked: Asked) -> Told:
        """The rest of the event that the words name, or a chunk."""
        window = self._window(asked)
        found = plan(
            self.model, [window], denoise_steps=self.denoise_steps, random=asked.random,
            chunk=self._chunk(asked.step_s), show=asked.show,
        )  # fmt: skip
        steps = remaining = int(found.steps[0])
        done = None
        if self.values["words"] == "event":
            remaining = max(1, round(float(found.left_s[0]) / asked.step_s))
            done = float(found.done[0])
        expected = self._expected(found, window, remaining) if asked.show else None
        return Told(found.actions[0, :steps], remaining, done, expected)

    def _expected(self, found: Plan, window: Window, remaining: int) -> Expected:
        """The pictures that latent frames after the clean ones stand for.

        As in training, a frame that would lie past the event's end shows its last picture.
        """
        clean = window.clean
        assert found.expected is not None
        seen = self.codec.decode(found.expected[0])[:, :, :: encoders.FRAMES_PER_LATENT]
        at_s = found.frame_s[0, clean:].numpy().astype(np.float32)
        if self.values["windows"] == "event":
            at_s = np.minimum(at_s, np.float32((remaining - 1) * window.step_s))
        return Expected(seen[:, :, clean:].transpose(1, 2).clamp(-1, 1), at_s)

    def _chunk(self, step_s: float) -> Chunk | None:
        if self.values["windows"] == "event":
            return None
        return fitting(self.shape, self.clean, self.values["chunk_s"], step_s)

    def _window(self, asked: Asked) -> Window:
        """What is seen now, after what was seen before where the model was trained with that."""
        sizes, size = self.shape.action, self.size_px
        there = torch.tensor([picture is not None for picture in asked.pictures])
        black = torch.full((1 + self.history, 3, size, size), -1.0)
        pictures = torch.stack([black if p is None else p for p in asked.pictures])
        text, meet = self._text_side(asked), self.meet.get(asked.embodiment)
        return Window(
            latents=self._latents(pictures.transpose(1, 2)),
            clean=self.clean,
            frame_s=(torch.arange(self.clean) - self.clean + 1) / self.shape.latent_hz,
            camera=torch.where(there, torch.arange(len(there)), -1),
            inside=torch.stack([shown(p[-1], self.codec.side_px) for p in pictures])[
                :, None
            ].expand(-1, self.clean, -1),
            text=text,
            text_mask=torch.ones(len(text), dtype=torch.bool),
            state=torch.from_numpy(np.pad(asked.state, (0, sizes.state_width - len(asked.state)))),
            state_mask=torch.arange(sizes.state_width) < len(asked.state),
            embodiment=self.embodiments[asked.embodiment],
            actions=torch.zeros(0, sizes.action_width),
            action_mask=torch.arange(sizes.action_width) < asked.action_width,
            step_s=asked.step_s,
            left_s=None,
            done=None,
            meet=None if meet is None else meet.expand(self.clean, -1, -1),
        )

    @torch.no_grad()
    def _text_side(self, asked: Asked) -> Tensor:
        """(L, X): the sentence, or what the model thinks of it before what is seen now."""
        if self.backbone is None:
            if asked.words not in self._texts:
                self.remember([asked.words])
            return self._texts[asked.words]
        assert self.model.staircase
        seen = [_in_bytes(picture[-1]) for picture in asked.pictures if picture is not None]
        prompt = self.backbone.remember([seen], [asked.words])
        return self.model.staircase.text_side(self.model.staircase(prompt))[0]

    def _latents(self, pictures: Tensor) -> Tensor:
        """Pictures (V, 3, N, S, S) -> (V, C, clean, h, w), as in training."""
        if isinstance(self.codec, encoders.PatchCodec):
            return self.codec.stills(pictures)
        return self.codec.encode(pictures)


def _backbone(checkpoint: Path, config: dict[str, Any]) -> Backbone:
    """The language model whose prompts the staircase reads; DataError for another one."""
    folder = Path(config["initial"]["vlm"]["from"])
    expected, got = config["encoders"]["vlm"], files(folder)
    if wrong := sorted(n for n in expected.keys() | got.keys() if expected.get(n) != got.get(n)):
        raise DataError(
            f"{checkpoint}/config.json: vlm: expected the language model that the staircase was "
            f"trained on; {folder} differs in {', '.join(wrong)}; bring its files back."
        )
    return Backbone(folder)


def _in_bytes(picture: Tensor) -> npt.NDArray[np.uint8]:
    """(3, S, S) in -1..1 -> (S, S, 3), as it was sent."""
    return ((picture.movedim(0, -1) + 1) * 127.5).round().to(torch.uint8).numpy()


def _shape(checkpoint: Path, config: dict[str, Any]) -> WallShape:
    try:
        return WallShape.from_dict(config["shape"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{checkpoint}/config.json: shape: expected the sizes of this version's models; "
            f"{error}. Train again, or serve it with the code of its run."
        ) from error


def _check_acts(checkpoint: Path, values: dict[str, Any]) -> None:
    """UserError for a checkpoint whose training cannot have taught it to act."""
    if values["stage"] in ("video", "staircase"):
        raise UserError(
            f"{checkpoint}: expected a model that acts; got one of the recipe's stage "
            f"{values['stage']}. Train the stage action; inputs/init.json says from what."
        )


def _folder(initial: dict[str, Any], part: str) -> Path | None:
    return Path(initial[part]["from"]) if part in initial else None
