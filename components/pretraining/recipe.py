"""How the full model of `models/wall.py` is trained: the stages of WALL-WM's recipe as values.

A stage says which parts learn. Video: the video tower on frozen text features. Action: the action
tower, the video tower frozen. Text: only what reads words, in both towers. Joint: both towers at
once, for small end-to-end runs; with asymmetric coupling each learns from passes of its own.
Staircase: the branch of `models/reasoner.py`, beside two frozen language models, and neither tower.
One training is one stage; the next starts from its checkpoint. The preset of `models/presets.py`
gives the sizes, this what a run chooses.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator


class StairsConfig(BaseModel, frozen=True, extra="forbid"):
    """Of the staircase; the rest of its sizes are those of its language models."""

    width: int = Field(ge=8, description="Width of the staircase's states.")
    relay_depth: int = Field(
        ge=1, description="Attention layers of the large language model that run once (N_r)."
    )
    levels: tuple[Literal["task", "subtask", "action", "segment"], ...] = Field(
        min_length=1, description="What the stairs say: captions of these levels, one a stair."
    )
    prefix_tokens: int = Field(
        ge=1, description="Tokens of the small language model that stand for one state."
    )
    text_tokens: int = Field(ge=2, description="Longest text to say again; more is cut, tokens.")


class FullConfig(BaseModel, frozen=True, extra="forbid"):
    """Values of the full model's training; the small model reads none of them."""

    stage: Literal["joint", "video", "action", "text", "staircase"] = Field(
        description="What learns: both towers, the video's, the action's, what reads words, or the "
        "reasoning branch on a language model (inputs/init.json: vlm and lm)."
    )
    coupling: Literal["symmetric", "asymmetric"] = Field(
        description="Both towers at one noise level, or N_d action draws that share one pass of "
        "the video at the anchor step, which teaches it nothing (stages action and joint)."
    )
    video_share: float = Field(
        gt=0,
        le=1,
        description="Share of a batch that teaches the video tower, at noise levels of its own, in "
        "stage joint with asymmetric coupling; elsewhere all of it or nothing does.",
    )
    action_samples: int = Field(ge=1, description="N_d of the asymmetric coupling.")
    prediction: Literal["v", "x"] = Field(
        description="What the action tower's head says: velocity, or the clean action."
    )
    windows: Literal["event", "chunk"] = Field(
        description="To the event's end, or a fixed span whatever happens in it (unified mode)."
    )
    chunk_s: float = Field(gt=0, description="Length of a chunk, seconds.")
    history_frames: int = Field(ge=0, description="Latent frames before the anchor, in chunks.")
    words: Literal["event", "task", "staircase"] = Field(
        description="The text side: the event's caption, the task's sentence, or what a language "
        "model that reads it and sees the pictures makes of them, as states of the staircase."
    )
    codec_px: int = Field(
        ge=1, description="Side of the patch that is one latent pixel, where no VAE is given."
    )
    tube_probability: float = Field(
        ge=0, le=1, description="How often a tube hides a part of one view from the video tower."
    )
    tube_side: int = Field(ge=1, description="Side of a tube, patches.")
    sight_cones: Literal["none", "training", "always"] = Field(
        description="Whether patches of two calibrated cameras that no point can be seen through "
        "may attend to each other: yes, not in training (WALL-WM), or not when acting either."
    )
    sight_near_m: float = Field(
        gt=0, description="Nearest that a camera sees, metres along the ray; for sight_cones."
    )
    sight_far_m: float = Field(gt=0, description="Farthest that a camera sees, the same.")
    video_weight: float = Field(ge=0, description="Of the video's loss; the action's counts 1.")
    tube_weight: float = Field(ge=1, description="Of a patch behind a tube, in the video's loss.")
    dct_weight: float = Field(ge=0, description="Of the loss against jitter; 0 switches it off.")
    left_weight: float = Field(ge=0, description="Of the loss of the seconds left.")
    done_weight: float = Field(ge=0, description="Of the loss of the part that is done.")
    staircase: StairsConfig = Field(description="Of stage staircase and of words staircase.")

    @model_validator(mode="after")
    def _parts_fit(self) -> FullConfig:
        """What stages, couplings, windows and words ask of each other."""
        if self.coupling == "asymmetric" and self.stage == "text":
            raise ValueError(
                "what reads words in the video tower learns nothing at the anchor, so stage text "
                "needs coupling symmetric, got asymmetric"
            )
        if self.sight_far_m <= self.sight_near_m:
            raise ValueError(
                f"sight_far_m must be more than sight_near_m ({self.sight_near_m:g}), got "
                f"{self.sight_far_m:g}"
            )
        if self.windows == "event" and self.history_frames:
            raise ValueError(
                f"event windows begin at their anchor, so history_frames must be 0, got "
                f"{self.history_frames}"
            )
        if self.windows == "event" and self.words != "event":
            raise ValueError(
                f"a task's sentence does not say which event ends, so words {self.words} needs "
                "windows chunk, got event"
            )
        if self.stage == "video" and self.words == "staircase":
            raise ValueError(
                "the video tower learns from sentences, so stage video needs words event or task, "
                "got staircase"
            )
        return self
