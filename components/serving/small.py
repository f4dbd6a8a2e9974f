"""The small model of `models/wam.py` as what a policy asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.sentences import embed
from components.serving.asked import Asked, Expected, Told
from components.weights import load_all
from models.acting import PAIRS
from models.batch import Batch
from models.wam import Shape, WorldActionModel


class SmallModel:
    """Weights of a checkpoint; pictures of `size_px` a side."""

    def __init__(self, checkpoint: Path, config: dict[str, Any]) -> None:
        self.shape = Shape(**config["shape"])
        self.denoise_steps = config["pretraining"]["denoise_steps"]
        self.model = WorldActionModel(self.shape)
        load_all(self.model, checkpoint / "model.safetensors")
        self.model.eval()
        self.size_px, self.max_steps = self.shape.key_px, self.shape.max_steps
        self.history, self.every_s = 0, 0.0
        self._texts: dict[str, Any] = {}

    def remember(self, texts: Sequence[str]) -> None:
        """Encode sentences before anybody waits for them."""
        self._texts |= dict(zip(texts, embed(list(texts)), strict=True))

    def plan(self, asked: Asked) -> Told:
        """The rest of the event that the words name."""
        batch = self._batch(asked)
        actions, length = self.model.act(
            batch, denoise_steps=self.denoise_steps, random=asked.random
        )
        remaining = int(length[0])
        expected = self._expected(batch, remaining, asked) if asked.show else None
        return Told(actions[0, :remaining], remaining, None, expected)

    def _expected(self, batch: Batch, remaining: int, asked: Asked) -> Expected:
        """Future frames lie where those of the training windows do."""
        seen = self.model.imagine(batch, pairs=PAIRS, random=asked.random)
        spread = np.arange(1, seen.shape[2] + 1) / seen.shape[2]
        at_s = np.round(spread * (remaining - 1)) * asked.step_s
        return Expected(seen[0], at_s.astype(np.float32))

    def _batch(self, asked: Asked) -> Batch:
        shape = self.shape
        views = torch.zeros(1, shape.views, 3, shape.key_px, shape.key_px)
        for view, picture in enumerate(asked.pictures):
            if picture is not None:
                views[0, view] = picture[-1]
        mask = torch.tensor([[picture is not None for picture in asked.pictures]])
        if asked.words not in self._texts:
            self.remember([asked.words])
        padded = np.pad(asked.state, (0, shape.state_width - len(asked.state)))
        return Batch(
            keyframes=views,
            future=torch.zeros(1, shape.views, 1, 3, shape.future_px, shape.future_px),
            view_mask=mask,
            state=torch.from_numpy(padded)[None],
            actions=torch.zeros(1, shape.max_steps, shape.action_width),
            action_mask=torch.ones(1, shape.action_width, dtype=torch.bool),
            length=torch.ones(1, dtype=torch.int64),
            step_s=torch.tensor([asked.step_s]),
            text=torch.from_numpy(self._texts[asked.words])[None],
        )
