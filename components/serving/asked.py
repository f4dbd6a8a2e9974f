"""What a policy asks a model, and what it is told: the one interface of both models when acting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """One instant of one robot, and what it is to do."""

    pictures: Sequence[Tensor | None]  # of every camera, (1 + history, 3, S, S) in -1..1, now last
    state: npt.NDArray[np.float32]  # (S,) normalised
    action_width: int  # of this robot
    embodiment: str
    step_s: float
    words: str
    random: torch.Generator
    show: bool  # whether somebody wants to look at what the model expects to see


@dataclass(frozen=True)
class Expected:
    """What the model expects to see."""

    pictures: Tensor  # (V, F, 3, h, w) in -1..1, of every camera of the model
    at_s: npt.NDArray[np.float32]  # (F,) seconds from now


@dataclass(frozen=True)
class Told:
    """What to execute."""

    actions: Tensor  # (T, A') normalised, A' at least the robot's width
    remaining: int  # control steps until the event ends
    done: float | None  # how far through the event it is, 0..1; None where the model cannot say
    expected: Expected | None = None  # where it was asked for


class Model(Protocol):
    """A checkpoint that acts."""

    size_px: int  # side of the square pictures it is shown
    max_steps: int
    history: int  # earlier pictures of each camera that it is shown
    every_s: float  # from one of them to the next

    def remember(self, texts: Sequence[str]) -> None: ...
    def plan(self, asked: Asked) -> Told: ...
