"""Closed-loop trials of several arms on the same scenes, in turn, and the journal of their results.

Arms take turns scene by scene, in an order drawn for each; a row is written as soon as its trial is
over, so that what was interrupted goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from components.stations.metaworld import MetaworldStation
from components.stations.recording import EVALUATION_SEEDS
from components.trials import actors, loop
from components.trials.settings import Trial
from tests.benchmarks.claim.progress import Progress, moment

SCENES_A_SEED = 1000
Row = dict[str, Any]


class Turn(NamedTuple):
    """One trial to hold."""

    seed: int  # of the training
    arm: str
    task: str
    scene: int

    @property
    def key(self) -> str:
        """Its name in the journal."""
        return "/".join(map(str, self))


def turns(seed: int, arms: Sequence[str], tasks: Sequence[str], scenes: int) -> Iterator[Turn]:
    """All trials of one training seed: every arm meets every scene, no scene is a recording's."""
    random = np.random.default_rng(seed)
    first = EVALUATION_SEEDS + seed * SCENES_A_SEED
    for scene in range(first, first + scenes):
        for task in tasks:
            for index in random.permutation(len(arms)):
                yield Turn(seed, arms[index], task, scene)


class Journal:
    """Rows of a JSON lines file, by the key of their turn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        path.write_text("".join(whole))  # a line that an interruption cut off is gone
        self.rows: dict[str, Row] = {row["key"]: row for row in map(json.loads, whole)}

    def add(self, row: Row) -> None:
        """Write one down."""
        self.rows[row["key"]] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Benches:
    """A station for each task, so that its renderer stays."""

    def __init__(self) -> None:
        self._stations: dict[str, MetaworldStation] = {}

    def close(self) -> None:
        """Free the renderers."""
        for station in self._stations.values():
            station.close()

    def hold(self, turn: Turn, actor: actors.Actor, max_steps: int) -> Row:
        """One trial; pictures are taken only when the actor looks."""
        station = self._stations.setdefault(turn.task, MetaworldStation())
        progress = Progress()
        outcome = loop.hold(
            station, actor, Trial(0, turn.task, "model", turn.scene), max_steps,
            lambda step: progress.see(moment(station)),
        )  # fmt: skip
        return turn._asdict() | {
            "key": turn.key,
            "progress": progress.points,
            "success": outcome.success,
            "steps": outcome.steps,
            "events": outcome.events,
        }
