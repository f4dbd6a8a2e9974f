"""One trial on a station: observe, act, until the task is done or time is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from components.stations.station import Station
from components.trials.actors import Actor
from components.trials.settings import Trial


class Outcome(NamedTuple):
    """What happened; a pure function of station, actor and trial."""

    success: bool
    steps: int
    events: list[tuple[str, int]]  # captions executed, with their lengths in control steps


def hold(
    station: Station,
    actor: Actor,
    trial: Trial,
    max_steps: int,
    watch: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """Run the trial; `watch` is called before each control step, to take pictures.

    The station's success ends and scores the trial and is told to nobody.
    """
    station.reset(trial.task, trial.seed)
    actor.begin(station.tasks[trial.task], trial.seed)
    lengths: dict[tuple[int, str], int] = {}
    step = 0
    while step < max_steps and not station.succeeded():
        segment = actor.next(station.observe)
        for action in segment.actions[: max_steps - step]:
            watch(step)
            actor.watch(station.observe)
            station.step(action)
            step += 1
            key = (segment.event, segment.caption)
            lengths[key] = lengths.get(key, 0) + 1
            if station.succeeded():
                break
    watch(step)
    events = [(caption, steps) for (_, caption), steps in lengths.items() if caption]
    return Outcome(station.succeeded(), step, events)
