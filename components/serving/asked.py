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

    pictures: Sequence[Tensor | None]  # of every camera of the model, (3, S, S) in -1..1
    state: npt.NDArray[np.float32]  # (S,) normalised
    action_width: int  # of this robot
    embodiment: str
    step_s: float
    words: str
    random: torch.Generator


@dataclass(frozen=True)
class Told:
    """What to execute."""

    actions: Tensor  # (T, A') normalised, A' at least the robot's width
    remaining: int  # control steps until the event ends
    done: float | None  # how far through the event it is, 0..1; None where the model cannot say


class Model(Protocol):
    """A checkpoint that acts."""

    size_px: int  # side of the square pictures it is shown
    max_steps: int

    def remember(self, texts: Sequence[str]) -> None: ...
    def plan(self, asked: Asked) -> Told: ...
