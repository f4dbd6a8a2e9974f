"""The `trials` section of params.yaml, and the interleaved list of trials that it asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from components.errors import DataError, UserError

POLICIES = ("model", "hold_still", "random")


class Config(BaseModel, frozen=True, extra="forbid"):
    """How trials are held; placement (number of workers) is no part of it."""

    station: Literal["metaworld", "replay"] = Field(
        description="Where policies act; a checkpoint without the station's robot is replayed."
    )
    tasks: tuple[str, ...] = Field(
        description="Names of the station's tasks; empty: each one that the checkpoint has seen."
    )
    trials_per_task: int = Field(ge=1, le=1000, description="Scenes for each task and policy.")
    max_trial_s: float = Field(gt=0, le=600, description="A trial ends without success, seconds.")
    replan_steps: int = Field(
        ge=1, le=1000, description="Control steps executed before the policy is asked again."
    )
    max_event_factor: float = Field(
        ge=1, le=100, description="An event ends at this many times its first predicted length."
    )
    random_hold_steps: int = Field(
        ge=1, le=1000, description="Control steps for which the random policy holds one action."
    )
    replay_events: int = Field(ge=1, le=10_000, description="Events at most, in replay.")
    seed: int = Field(ge=0, lt=2**31, description="Of order, random policy and model's noise.")


class Trial(NamedTuple):
    """One try: a policy on one scene of one task."""

    number: int  # position in the interleaved list
    task: str  # the station's name for it
    policy: str
    seed: int  # of the scene; all policies meet the same scenes


def schedule(config: Config, tasks: list[str], first_seed: int) -> list[Trial]:
    """Scene by scene and task by task, each policy once, in an order drawn from the seed.

    Whatever drifts while trials are held (a robot that warms up) then meets all policies alike.
    """
    order = np.random.default_rng(config.seed)
    drawn = [
        (task, POLICIES[index], first_seed + scene)
        for scene in range(config.trials_per_task)
        for task in tasks
        for index in order.permutation(len(POLICIES))
    ]
    return [Trial(number, *row) for number, row in enumerate(drawn)]


def chosen_tasks(
    config: Config, sentences: dict[str, str], plans: dict[str, list[str]]
) -> list[str]:
    """Tasks of the station to try. UserError for names that station or checkpoint do not know."""
    known = [name for name, sentence in sentences.items() if plans.get(sentence)]
    if wrong := [name for name in config.tasks if name not in known]:
        raise UserError(
            f"params.yaml: trials.tasks: {wrong}: no tasks that the station {config.station} "
            f"has and training captions show; expected some of {known}."
        )
    if not known:
        raise UserError(
            f"trials: the station {config.station} has none of the checkpoint's tasks "
            f"({', '.join(map(repr, plans)) or 'none'}); set trials.station to replay."
        )
    return list(config.tasks) or known


def read_plans(checkpoint: Path) -> dict[str, list[str]]:
    """`event_plans.json`: for each task's sentence the captions of its events, in order."""
    plans: dict[str, list[str]] = _read(checkpoint / "event_plans.json")
    return plans


def embodiments(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """What the checkpoint says of each robot that it was trained on, by name."""
    listed = _read(checkpoint / "config.json").get("embodiments")
    if not isinstance(listed, list) or not all(isinstance(e, dict) and "name" in e for e in listed):
        raise DataError(f"{checkpoint / 'config.json'}: expected embodiments with names.")
    return {str(entry["name"]): entry for entry in listed}


def station_for(config: Config, checkpoint: Path) -> str:
    """The station of the settings where the checkpoint knows its robot, else `replay`."""
    serves = {"metaworld": "metaworld-sawyer"}.get(config.station)
    return config.station if serves in embodiments(checkpoint) else "replay"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage pretraining first.") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a map; got {type(value).__name__}.")
    return value
