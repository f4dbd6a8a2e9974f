"""Who acts in a trial: the served model in event mode, and two policies that any model must beat.

Event mode (WALL-WM): an agent names the next event, the model executes it until it ends. Our agent
reads the names from `event_plans.json`, which is what training captions show for the task's
sentence; it sees nothing of the simulator.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from components.errors import DataError
from components.serving.client import PolicyClient
from components.stations.station import Float, Observation
from components.trials.settings import Config

Observe = Callable[[], Observation]
Picture = npt.NDArray[np.uint8]  # (H, W, 3)


class Segment(NamedTuple):
    """Control steps to execute before the actor is asked again."""

    actions: Float  # (n, A), in the station's units
    event: int = 0  # which event of the trial they belong to
    caption: str = ""  # its name; empty for actors that know no events


class Actor(Protocol):
    """A policy in trials."""

    def begin(self, sentence: str, seed: int) -> None:
        """A new trial of a task; equal seeds give equal behaviour."""

    def next(self, observe: Observe) -> Segment:
        """What to do now; `observe` takes pictures, for those who look."""

    def watch(self, observe: Observe) -> None:
        """Called before each control step, for those who remember what they saw."""


class HoldStill:
    """Zeros: a station's actions are changes of pose and gripper efforts, so nothing moves."""

    def __init__(self, config: Config, width: int) -> None:
        self._actions = np.zeros((config.replan_steps, width), np.float32)

    def begin(self, sentence: str, seed: int) -> None:
        """Every trial is the same."""

    def next(self, observe: Observe) -> Segment:
        """Do nothing."""
        return Segment(self._actions)

    def watch(self, observe: Observe) -> None:
        """Nothing is remembered."""


class Random:
    """Uniform within -1..1, the bounds of actions; each draw is held a while, so that it moves."""

    def __init__(self, config: Config, width: int) -> None:
        self._config, self._width = config, width
        self._random = np.random.default_rng(config.seed)

    def begin(self, sentence: str, seed: int) -> None:
        """The same draws for the same scene."""
        self._random = np.random.default_rng((self._config.seed, seed))

    def next(self, observe: Observe) -> Segment:
        """One draw."""
        action = self._random.uniform(-1, 1, self._width).astype(np.float32)
        return Segment(np.tile(action, (self._config.random_hold_steps, 1)))

    def watch(self, observe: Observe) -> None:
        """Nothing is remembered."""


class Model:
    """The served policy and the agent that names its events; the last event repeats."""

    def __init__(
        self, config: Config, width: int, client: PolicyClient, plans: dict[str, list[str]]
    ) -> None:
        self._config, self._width, self._client, self._plans = config, width, client, plans
        self._captions: list[str] = []
        self._seed = 0
        self._wanted, self._every_steps = history(client.metadata)
        self._before: deque[dict[str, Picture]] = deque(maxlen=self._wanted * self._every_steps)
        self.latencies_ms: list[float] = []  # of each request of the trial, round trip

    def begin(self, sentence: str, seed: int) -> None:
        """Start at the first event of the task."""
        self._captions, self._seed = self._plans[sentence], seed
        self._event = self._event_steps = 0
        self._limit_steps = self._whole_steps = 0.0
        self.latencies_ms = []
        self._before.clear()

    def watch(self, observe: Observe) -> None:
        """Remember what is seen, as far back as the model is shown it."""
        if self._wanted:
            self._before.append(observe().images)

    def next(self, observe: Observe) -> Segment:
        """Ask the server for the rest of the event; take up to `replan_steps` of it.

        An event that was begun is over, and the next one asked for, when the model says that the
        part done leaves less than one control step of the event's length as it was first planned.
        """
        seen = observe()
        caption = self._caption()
        actions, remaining, done = self._ask(seen, caption)
        if self._event_steps and (1 - done) * self._whole_steps < 1:
            self._event, self._event_steps = self._event + 1, 0
            caption = self._caption()
            actions, remaining, done = self._ask(seen, caption)
        if self._event_steps == 0:
            self._limit_steps = max(remaining, 1) * self._config.max_event_factor
            self._whole_steps = max(remaining, 1) / max(1 - done, 1e-3)
        taken = actions[: self._config.replan_steps]
        segment = Segment(taken, self._event, caption)
        self._event_steps += len(taken)
        if remaining <= len(taken) or self._event_steps >= self._limit_steps:
            self._event, self._event_steps = self._event + 1, 0
        return segment

    def _earlier(self) -> list[dict[str, Picture]]:
        """Pictures of each camera, oldest first, one every so many control steps before now."""
        return list(self._before)[-self._every_steps :: -self._every_steps][::-1]

    def _caption(self) -> str:
        return self._captions[min(self._event, len(self._captions) - 1)]

    def _ask(self, seen: Observation, caption: str) -> tuple[Float, int, float]:
        """Actions, control steps left, and the part done: 0 from a model that cannot say."""
        entropy = (self._config.seed, self._seed, len(self.latencies_ms))
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1
        start_s = time.monotonic()
        reply = self._client.infer(request(seen, caption, seed, self._earlier()))
        self.latencies_ms.append((time.monotonic() - start_s) * 1000)
        return *checked(reply, self._width), part_done(reply)


def request(
    seen: Observation, caption: str, seed: int, earlier: Sequence[dict[str, Picture]] = ()
) -> dict[str, Any]:
    """An observation as the policy server expects it; `earlier` ones oldest first."""
    pictures = {f"observation/{camera}": image for camera, image in seen.images.items()}
    if earlier:
        pictures |= {f"history/{c}": np.stack([e[c] for e in earlier]) for c in seen.images}
    return {**pictures, "observation/state": seen.state, "prompt": caption, "seed": seed}


def history(metadata: dict[str, Any]) -> tuple[int, int]:
    """How many earlier pictures a served model is shown, and every how many control steps."""
    told = metadata.get("history") or {"pictures": 0}
    count = int(told["pictures"])
    return count, max(1, round(told["every_s"] * metadata["fps"])) if count else 1


def part_done(reply: dict[str, Any]) -> float:
    """How far through the event a server says that the robot is. DataError outside 0..1."""
    done = reply.get("event_done", 0.0)
    if not isinstance(done, float | int | np.floating) or not 0 <= done <= 1:
        raise DataError(f"policy server: expected event_done from 0 to 1; got {done!r}.")
    return float(done)


def checked(reply: dict[str, Any], width: int) -> tuple[Float, int]:
    """Actions (H >= 1, A) and steps until the event ends. DataError when a server answers else."""
    actions, remaining = reply.get("actions"), reply.get("event_remaining")
    shape = actions.shape if isinstance(actions, np.ndarray) else type(actions).__name__
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != width:
        raise DataError(f"policy server: expected actions (H, {width}); got {shape}.")
    if not len(actions) or not np.isfinite(actions).all():
        raise DataError(f"policy server: expected finite actions, one or more; got {shape}.")
    if not isinstance(remaining, int | np.integer):
        raise DataError(f"policy server: expected an integer event_remaining; got {remaining!r}.")
    return actions.astype(np.float32), int(remaining)
