"""Draws of the receipt become batches of the full model: windows, encoded and packed into rows.

Which events, anchors and captions, and in which order, is what `windows.py` says. Latent frames lie
at the anchor and every 1 / latent_hz seconds after it; one that would lie past the event's end
shows its last picture. An event longer than the preset's budget gives windows of the budget.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components import sight
from components.encoders import FRAMES_PER_LATENT, PatchCodec
from components.errors import DataError
from components.pretraining import full, reasons
from components.pretraining.frame_files import Index
from components.pretraining.stage import Config
from components.pretraining.windows import Windows
from components.reasoning import Backbone
from models.acting import fitting
from models.masks import shown
from models.packed import Packed
from models.windows import Window, with_text

TEXTS = 4096  # encoded sentences that are kept in memory


class Span(NamedTuple):
    """One window in frames of its episode."""

    anchor: int
    end: int  # one past its last control step
    last: int  # one past the last picture that it may show
    clean: int  # latent frames that are given
    frames: int  # all its latent frames
    left_s: float | None
    done: float | None


class FullWindows(Windows):
    """The training view and the receipt's order of draws, for the full model."""

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        self.initial = self.info["initial"]
        self.shape = full.shape(config, self.initial)
        self.chances = full.chances(config)
        self.codec = full.codec(config, self.initial)
        self.encoder, self.cache = full.text_encoder(config, self.initial), full.cache()
        self._text = lru_cache(TEXTS)(self._encoded)
        thinks = config.full.words == "staircase"
        self.backbone = full.backbone(config, self.initial) if thinks else None
        self._meet: dict[str, Tensor] = {}
        if config.full.sight_cones != "none":
            reach = config.full.sight_near_m, config.full.sight_far_m
            self._meet = sight.meeting(self.info, self.codec.side_px, *reach)

    def _windows(  # type: ignore[override]  # a batch of the full model
        self, events: Index, anchor: Index, keep_caption: npt.NDArray[np.bool_]
    ) -> Packed:
        """One window an event, several to a row. DataError names the event that does not fit."""
        limits = self.shape.limits
        windows = []
        for event, at, said in zip(events.tolist(), anchor.tolist(), keep_caption, strict=True):
            words = self.words(event) if said and self.backbone is None else ""
            window = self.window(event, self.span(event, at), words)
            try:
                window.check(limits)
            except ValueError as error:
                episode = self.info["episode_ids"][event]
                raise DataError(
                    f"{self.folder}: event {self.info['event_ids'][event]} of episode {episode}: "
                    f"{error}"
                ) from None
            windows.append(window)
        if self.backbone is None:
            return Packed.of(windows, limits, self.chances)
        return self._thinking(self.backbone, windows, events, anchor, keep_caption)

    def _thinking(
        self, backbone: Backbone, windows: list[Window], events: Index, anchor: Index,
        thinks: npt.NDArray[np.bool_],
    ) -> Packed:  # fmt: skip
        """Windows that hold silence, and the prompts of those whose words were not dropped.

        One prompt is there in any case, maybe unread, so that every worker has gradients of all.
        """
        assert self.shape.staircase
        silence, states = windows[0].text, self.shape.staircase.stairs
        tokens, room = max(len(silence), states), silence.new_zeros(states, silence.shape[1])
        windows = [
            with_text(window, room if asks else silence, tokens)
            for window, asks in zip(windows, thinks, strict=True)
        ]
        asking = np.flatnonzero(thinks) if thinks.any() else np.zeros(1, np.int64)
        prompt = reasons.prompts(self, backbone, events[asking], anchor[asking])
        of = np.where(thinks, thinks.cumsum() - 1, -1)
        return Packed.of(windows, self.shape.limits, self.chances).thinking(prompt, of.tolist())

    def validation(self, most: int = 128) -> Packed | None:  # type: ignore[override]
        """As for the small model, but no more events than one rank trains on in a step."""
        share = self.config.batch_size // self.config.processes
        found: Packed | None = super().validation(min(most, max(1, share)))  # type: ignore[assignment]
        return found

    def words(self, event: int) -> str:
        """What is said of an event."""
        told: list[str] = self.info["captions" if self.config.full.words == "event" else "tasks"]
        return told[event]

    def span(self, event: int, anchor: int) -> Span:
        """From the anchor to the event's end or, in unified mode, a chunk with its history."""
        a, f = self.arrays, self.config.full
        episode = a["event_episode"][event]
        step_s = float(a["step_s"][episode])
        start, end = int(a["event_start"][event]), int(a["event_end"][event])
        length = int(a["first_frame"][episode + 1] - a["first_frame"][episode])
        clean = 1 + f.history_frames
        left_s, done = (end - anchor) * step_s, (anchor - start) / (end - start)
        if f.windows == "chunk":
            seconds, last = f.chunk_s, length
        else:
            seconds, last = left_s, end
        ahead = fitting(self.shape, clean, seconds, step_s)
        cut = min(anchor + ahead.steps, last)
        known = f.words == "event"  # a task's sentence does not say which event this is
        ends = (left_s, done) if known else (None, None)
        return Span(anchor, cut, last, clean, clean + ahead.frames, *ends)

    def window(self, event: int, span: Span, words: str) -> Window:
        """What the model is shown of one span, under the words given."""
        a, sizes = self.arrays, self.shape.action
        episode = int(a["event_episode"][event])
        base, step_s = int(a["first_frame"][episode]), float(a["step_s"][episode])
        seen = torch.from_numpy(a["view_mask"][episode])
        latents, box = self._latents(episode, base, span, step_s)
        text = self._text(words)
        meet = self._meet.get(self.info["embodiment_ids"][int(a["embodiment"][episode])])
        return Window(
            latents=latents,
            clean=span.clean,
            frame_s=(torch.arange(span.frames) - span.clean + 1) / self.shape.latent_hz,
            camera=torch.where(seen, torch.arange(len(seen)), -1),
            inside=box[:, None].expand(-1, span.frames, -1),
            text=text,
            text_mask=torch.ones(len(text), dtype=torch.bool),
            state=_wide(a["state"][base + span.anchor], sizes.state_width),
            state_mask=torch.arange(sizes.state_width) < int(a["state_width"][episode]),
            embodiment=int(a["embodiment"][episode]),
            actions=_wide(a["action"][base + span.anchor : base + span.end], sizes.action_width),
            action_mask=torch.arange(sizes.action_width) < int(a["action_width"][episode]),
            step_s=step_s,
            left_s=span.left_s,
            done=span.done,
            meet=None if meet is None else meet.expand(span.frames, -1, -1),
        )

    def _latents(self, episode: int, base: int, span: Span, step_s: float) -> tuple[Tensor, Tensor]:
        """(V, C, F, h, w), and which patches (V, P) show the picture: black borders do not."""
        each = 1 if isinstance(self.codec, PatchCodec) else FRAMES_PER_LATENT
        count = (span.frames - 1) * each + 1
        at_s = (np.arange(count) / each - (span.clean - 1)) / self.shape.latent_hz
        at = np.clip(span.anchor + np.round(at_s / step_s).astype(np.int64), 0, span.last - 1)
        places = self.arrays["frame_place"][base + at]
        frames = self.frames.read(np.array([episode]), places[None])[0]
        pictures = torch.from_numpy(frames).permute(1, 4, 0, 2, 3).float() / 127.5 - 1
        anchor = (span.clean - 1) * each
        boxes = torch.stack([shown(view[:, anchor], self.codec.side_px) for view in pictures])
        if isinstance(self.codec, PatchCodec):
            return self.codec.stills(pictures), boxes
        return self.codec.encode(pictures), boxes

    def _encoded(self, words: str) -> Tensor:
        return self.cache.texts(self.encoder, [words])[0]


def _wide(values: npt.NDArray[np.float32], width: int) -> Tensor:
    """(..., n) padded with zeros to the model's width, which has room for every robot."""
    padded = np.zeros((*values.shape[:-1], width), np.float32)
    padded[..., : values.shape[-1]] = values
    return torch.from_numpy(padded)
