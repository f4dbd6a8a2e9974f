"""Draws of the receipt become batches of the stage staircase: prompts, and what they must lead to.

A prompt is what a robot sees at the draw's anchor (every camera's picture) and the task's sentence;
the event's captions, one level a stair, are the reasoning that leads from there to what to do. No
word of them is in the prompt, but the task's, so that the states must be thought of, not copied.
Events, anchors and their order are those of `windows.py`; captions are never dropped.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from components.pretraining import full, starting
from components.pretraining.frame_files import Index
from components.pretraining.initial import Initial
from components.pretraining.stage import Config
from components.pretraining.windows import Windows
from components.reasoning import Backbone, SmallModel
from models.reasoner import Reasoner, ReasonerShape, Reasons
from models.staircase import Remembered


class ReasonWindows(Windows):
    """The training view and the receipt's order of draws, for the staircase."""

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__(folder, config)
        self.initial: Initial = self.info["initial"]
        self.backbone = full.backbone(config, self.initial)
        self.small = SmallModel.of(Path(self.initial["lm"]["from"]), full.device(config))

    @cached_property
    def shape(self) -> ReasonerShape:
        """What the language models bring and the run chooses. UserError where they do not fit."""
        stair = full.stairs(self.config, self.initial)
        return ReasonerShape(stair, self.config.full.staircase.prefix_tokens, self.small.width)

    def validation(self, most: int = 128) -> Reasons | None:  # type: ignore[override]
        """As for the small model, but no more events than one rank trains on in a step."""
        share = self.config.batch_size // self.config.processes
        found: Reasons | None = super().validation(min(most, max(1, share)))  # type: ignore[assignment]
        return found

    def _windows(  # type: ignore[override]  # a batch of the reasoner
        self, events: Index, anchor: Index, keep_caption: npt.NDArray[np.bool_]
    ) -> Reasons:
        prompt = prompts(self, self.backbone, events, anchor)
        said = [self.info["reasons"][e] for e in events.tolist()]
        ids, mask = self.small.tokens(said, self.config.full.staircase.text_tokens)
        return Reasons(prompt, ids, mask)


def prompts(windows: Windows, backbone: Backbone, events: Index, anchor: Index) -> Remembered:
    """What the large language model keeps of pictures at the anchors, and of tasks' sentences."""
    a = windows.arrays
    episode = a["event_episode"][events]
    places = a["frame_place"][a["first_frame"][episode] + anchor]
    frames = windows.frames.read(episode, places[:, None])[:, 0]  # (B, V, H, W, 3)
    seen = [list(row[there]) for row, there in zip(frames, a["view_mask"][episode], strict=True)]
    return backbone.remember(seen, [windows.info["tasks"][e] for e in events.tolist()])


def model(windows: ReasonWindows) -> Reasoner:
    """With random or declared initial weights."""
    made = Reasoner(windows.shape, windows.small)
    starting.load(made, windows.initial)
    return made
