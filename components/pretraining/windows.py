"""Draws of the receipt become batches; order, anchors and caption drop follow from the receipt.

The order of all draws, each draw's anchor frame and its caption drop depend on the seeds and on the
draw's place in the order, never on the number of workers: another world size trains on the same
draws.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from components.errors import UserError
from components.pretraining.frame_files import FrameFiles, Index
from components.pretraining.stage import Config
from models.batch import Batch


class Windows:
    """The training view of `view.py` and the receipt's order of draws."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.config, self.folder = config, folder
        self.info: dict[str, Any] = json.loads((folder / "view.json").read_text())
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        size = self.info["picture_px"]
        self.frames = FrameFiles(folder, (len(self.info["cameras"]), size, size, 3))
        draws = self.arrays["event_draws"]
        order = np.repeat(np.arange(len(draws)), draws)
        self.order: Index = np.random.default_rng(self.info["receipt"]["seed"]).permutation(order)
        self.steps, rest = divmod(len(self.order), config.batch_size)
        if rest or not self.steps:
            raise UserError(
                f"pretraining: the receipt plans {len(self.order)} draws; expected a multiple of "
                f"pretraining.batch_size ({config.batch_size}). Change one of them."
            )
        random = np.random.default_rng([config.seed, 1])
        self._anchor = random.random(len(self.order))
        self._at_start = random.random(len(self.order)) < config.start_anchors
        self._drop = random.random(len(self.order))

    def drawn(self, step: int) -> Index:
        """Rows of the events that all ranks together draw in `step`."""
        size = self.config.batch_size
        return self.order[step * size : (step + 1) * size]

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        """This rank's share of the batch of `step`."""
        size = self.config.batch_size
        draws = np.arange(step * size, (step + 1) * size)[rank::world_size]
        events = self.order[draws]
        start, end = self.arrays["event_start"][events], self.arrays["event_end"][events]
        spot = np.where(self._at_start[draws], 0.0, self._anchor[draws])
        anchor = start + np.minimum((spot * (end - start)).astype(np.int64), end - start - 1)
        keep = self._drop[draws] >= self._caption_drop(events)
        return self._windows(events, anchor, keep)

    def validation(self, most: int = 128) -> Batch | None:
        """Whole events of held-out episodes, evenly picked; None when nothing is held out."""
        events = np.flatnonzero(self.arrays["event_validation"])
        if not len(events):
            return None
        events = events[np.linspace(0, len(events) - 1, min(most, len(events))).astype(np.int64)]
        return self._windows(events, self.arrays["event_start"][events], np.ones(len(events), bool))

    def _caption_drop(self, events: Index) -> npt.NDArray[np.float64]:
        """Cosine from caption_drop_short for the shortest event to caption_drop_long (WALL-WM)."""
        step_s = self.arrays["step_s"].astype(np.float64)[self.arrays["event_episode"]]
        length_s = (self.arrays["event_end"] - self.arrays["event_start"]) * step_s
        spread_s = max(np.ptp(length_s), step_s.min())  # equal ones differ by rounding
        share = (length_s[events] - length_s.min()) / spread_s
        short, long = self.config.caption_drop_short, self.config.caption_drop_long
        drop: npt.NDArray[np.float64] = long + (short - long) * (1 + np.cos(np.pi * share)) / 2
        return drop

    def _windows(self, events: Index, anchor: Index, keep_caption: npt.NDArray[np.bool_]) -> Batch:
        """One window an event: from `anchor` to the event's end, or to the longest window's."""
        a, model = self.arrays, self.config.model
        episode = a["event_episode"][events]
        base = a["first_frame"][episode]
        length = np.minimum(a["event_end"][events] - anchor, model.max_steps)
        steps = np.arange(model.max_steps)
        rows = (base + anchor)[:, None] + np.minimum(steps, length[:, None] - 1)
        actions = a["action"][rows] * (steps < length[:, None])[..., None]
        spread = np.arange(1, model.future_frames + 1) / model.future_frames
        future = (base + anchor)[:, None] + np.round(spread * (length[:, None] - 1)).astype(
            np.int64
        )
        width = a["action"].shape[1]
        shown = np.concatenate([(base + anchor)[:, None], future], axis=1)
        frames = self.frames.read(episode, a["frame_place"][shown])
        return Batch(
            keyframes=_pictures(frames[:, 0]),
            future=_pictures(frames[:, 1:], model.future_px).movedim(1, 2),
            view_mask=torch.from_numpy(a["view_mask"][episode]),
            state=torch.from_numpy(a["state"][base + anchor]),
            actions=torch.from_numpy(actions),
            action_mask=torch.from_numpy(np.arange(width) < a["action_width"][episode][:, None]),
            length=torch.from_numpy(length),
            step_s=torch.from_numpy(a["step_s"][episode]),
            text=torch.from_numpy(a["text"][events] * keep_caption[:, None]),
        )


def _pictures(frames: npt.NDArray[np.uint8], size_px: int | None = None) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, h, w) in -1..1; smaller by averaging areas."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 127.5 - 1
    if size_px is None or size_px == pictures.shape[-1]:
        return pictures.contiguous()
    flat = F.interpolate(pictures.flatten(0, -4), size=(size_px, size_px), mode="area")
    small: Tensor = flat.unflatten(0, pictures.shape[:-3])
    return small
