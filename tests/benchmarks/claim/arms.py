"""The arms: how a window is cut and what is said with it, in training and when acting.

All arms see the same draws (event, anchor, dropped captions), the same pictures at the anchor and
the same noise; only the window's end and the words differ. A chunk runs on over the event's end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from components import records
from components.pretraining import results
from components.pretraining.frame_files import Index
from components.pretraining.stage import Config
from components.pretraining.training import Training
from components.pretraining.windows import Windows
from components.sentences import embed
from components.serving.client import PolicyClient
from components.serving.policy import Policy
from components.serving.small import SmallModel
from components.trials import actors, settings
from models.batch import Batch

Words = Literal["event", "joined", "clock"]


class Arm(NamedTuple):
    """What is trained and how it acts."""

    window_steps: int | None  # None: to the event's end
    words: Words  # of the event that holds; of all events, joined; of the event by the clock
    executed_steps: int  # at most, before the next look

    @property
    def trained(self) -> str:
        """What its training depends on."""
        text = "joined" if self.words == "joined" else "event"
        return f"{self.window_steps or 'event'}-{text}"


class Data(NamedTuple):
    """What all arms and seeds share."""

    tables: Path  # `data` of a run: episodes, captions, plan
    view: Path  # what `components/pretraining/view.py` laid out from them


class ArmWindows(Windows):
    """The draws of `Windows` with an arm's windows and words."""

    def __init__(self, data: Data, config: Config, arm: Arm, steps: int) -> None:
        super().__init__(data.view, config)
        self.arm, self.steps = arm, min(steps, self.steps)
        self._until = seen_until(self.arrays["frame_place"], self.arrays["first_frame"])
        if arm.words == "joined":
            plans = {task: joined(plan) for task, plan in self.info["event_plans"].items()}
            told = dict(zip(plans, embed(list(plans.values())), strict=True))
            self.arrays["text"] = np.stack([told[task] for task in self.info["tasks"]])

    def _windows(self, events: Index, anchor: Index, keep_caption: npt.NDArray[np.bool_]) -> Batch:
        """As `Windows`, or from `anchor` for the chunk's steps as far as the episode goes."""
        if self.arm.window_steps is None:
            return super()._windows(events, anchor, keep_caption)
        a = self.arrays
        episode = a["event_episode"][events]
        base = a["first_frame"][episode]
        end = np.minimum(anchor + self.arm.window_steps, self._until[base + anchor] - base)
        rows = copy.copy(self)
        rows.arrays = a | {"event_end": end, "event_episode": episode, "text": a["text"][events]}
        return Windows._windows(rows, np.arange(len(events)), anchor, keep_caption)


def seen_until(frame_place: Index, first_frame: Index) -> Index:
    """(T,) for each frame, the first one after it that has no picture or is another episode's."""
    stops = np.zeros(len(frame_place) + 1, dtype=bool)
    stops[first_frame[1:]] = True
    stops[:-1] |= frame_place < 0
    places = np.flatnonzero(stops)
    following: Index = places[np.searchsorted(places, np.arange(len(frame_place)), side="right")]
    return following


def joined(plan: Sequence[str]) -> str:
    """All captions of a task's events as one text; the task's own words are said once."""
    first, *others = plan
    return ", then ".join([first, *(text.split(": ", 1)[-1] for text in others)])


def train(data: Data, config: Config, arm: Arm, steps: int, out: Path) -> None:
    """Train on this process alone and write a checkpoint folder to `out`."""
    windows = ArmWindows(data, config, arm, steps)
    training = Training(windows, config)
    for step in range(windows.steps):
        training.step(step, windows.batch(step, 0, 1))
    out.mkdir(parents=True)
    results.write(training, out)


class Said(nn.Module):
    """In place of the head for the time left: always the same."""

    def __init__(self, log_seconds: float) -> None:
        super().__init__()
        self.log_seconds = log_seconds

    def forward(self, read: Tensor) -> Tensor:
        """(B, 1, D) -> (B, 1, 1)."""
        return read.new_full((len(read), 1, 1), self.log_seconds)


def policy(checkpoint: Path, arm: Arm) -> Policy:
    """The served policy; a chunk's length is fixed."""
    torch.set_num_threads(1)
    served = Policy(checkpoint)
    if arm.window_steps is not None:
        seconds = arm.window_steps / served.robot["fps"]
        small = cast(SmallModel, served.model)
        small.model.action.left_head = nn.Sequential(Said(math.log(seconds)))
    return served


class Chunks:
    """Chunks of equal length, told all captions or those that hold by the clock."""

    def __init__(
        self, served: Policy, arm: Arm, seed: int, durations: dict[str, list[float]]
    ) -> None:
        self._policy, self._arm, self._seed, self._durations = served, arm, seed, durations

    def begin(self, sentence: str, seed: int) -> None:
        """A new trial."""
        self._sentence, self._scene = sentence, seed
        self._done = self._asked = 0

    def next(self, observe: actors.Observe) -> actors.Segment:
        """The next chunk, or its first part."""
        plan = self._policy.metadata["event_plans"][self._sentence]
        event = 0
        caption = joined(plan)
        if self._arm.words == "clock":
            event = holding(self._durations[self._sentence], self._done)
            caption = plan[event]
        entropy = (self._seed, self._scene, self._asked)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1
        reply = self._policy.infer(actors.request(observe(), caption, seed))
        taken = reply["actions"][: self._arm.executed_steps]
        self._done, self._asked = self._done + len(taken), self._asked + 1
        return actors.Segment(taken, event, caption)

    def watch(self, observe: actors.Observe) -> None:
        """Nothing is remembered."""


def holding(durations: Sequence[float], done: int) -> int:
    """Which event holds after `done` steps if each takes its usual time; the last one stays."""
    ends = np.cumsum(durations)
    return min(int(np.searchsorted(ends, done, side="right")), len(ends) - 1)


class InProcess:
    """The policy where the actor of the trials expects a connection to its server."""

    def __init__(self, served: Policy) -> None:
        self.infer, self.metadata = served.infer, served.metadata


def actor(
    checkpoint: Path, arm: Arm, seed: int, durations: dict[str, list[float]], trials: dict[str, Any]
) -> actors.Actor:
    """Who acts for an arm: in event mode the actor of the product's own trials."""
    served = policy(checkpoint, arm)
    if arm.window_steps is not None:
        return Chunks(served, arm, seed, durations)
    config = settings.Config.model_validate(
        trials | {"replan_steps": arm.executed_steps, "seed": seed}
    )
    client = cast(PolicyClient, InProcess(served))
    width = len(served.robot["action_names"])
    return actors.Model(config, width, client, served.metadata["event_plans"])


def usual_durations(tables: Path, plans: dict[str, list[str]]) -> dict[str, list[float]]:
    """{task sentence: mean steps of each event of its plan} over training episodes that show it."""
    captions = records.read(tables / "captions/captions.parquet", records.CAPTIONS)
    action = captions.filter(pc.field("level") == "action").to_pylist()
    texts = {row["event_id"]: row["text"] for row in action}
    plan = records.read(tables / "plan/plan.parquet", records.PLAN)
    manifest = records.read(tables / "episodes/manifest.parquet", records.MANIFEST)
    ids, sentences = (manifest[name].to_pylist() for name in ("episode_id", "task"))
    tasks = dict(zip(ids, sentences, strict=True))
    episodes: dict[str, list[dict[str, Any]]] = {}
    for row in plan.filter(pc.field("split") == "train").sort_by("start_frame").to_pylist():
        episodes.setdefault(row["episode_id"], []).append(row)
    found: dict[str, list[list[int]]] = {task: [] for task in plans}
    for episode, events in episodes.items():
        if [texts[row["event_id"]] for row in events] == plans[tasks[episode]]:
            found[tasks[episode]].append([r["end_frame"] - r["start_frame"] for r in events])
    return {task: np.mean(lengths, axis=0).tolist() for task, lengths in found.items()}
