"""What looking over the cuts can give, and what it can cost: boundary F1 with scripted answers.

Times of change that a vision-language model might say are put beside the signals' cuts, as
segmentation does with the values of params.yaml: all true ones, the picture nearest to each, half
of them, and times at random. Where `segmentation.refinement` names a model, it is asked, too. Tasks
are those that `segmentation.py` scores; no value may be chosen on them.

`python -m tests.benchmarks.refinement [--tasks A,B] [--seed N]` prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from components import params
from components.episodes import Episodes
from components.segmentation import stage
from components.segmentation.boundaries import Event, cut_all
from components.segmentation.looks import Looks
from components.segmentation.refined import Beside, Bounds
from components.stations.metaworld import SENTENCES
from tests.benchmarks.behaviour import SCORED, Demonstration, demonstrations, f1, recorded

PARAMS = Path(__file__).parents[2] / "params.yaml"
Says = list[tuple[float, str]]
Answer = Callable[[Demonstration], Says]


def times(steps: list[float]) -> Says:
    """Words for times, each once and in order."""
    return [(at_s, "a change") for at_s in sorted(set(steps))]


def answers(pictures: int, seed: int) -> dict[str, Answer]:
    """What a model might say of an episode, by name."""
    random = np.random.default_rng(seed)

    def true(demo: Demonstration) -> list[float]:
        return [float(demo.episode.timestamps_s[step]) for step in demo.changes]

    def nearest(demo: Demonstration) -> Says:
        gap_s = demo.episode.duration_s / (pictures - 1)
        shown = [round(at_s / gap_s) * gap_s for at_s in true(demo)]
        return times([min(at_s, demo.episode.duration_s) for at_s in shown])

    def at_random(count: int) -> Answer:
        return lambda demo: times(random.uniform(0, demo.episode.duration_s, count).tolist())

    return {
        "true": lambda demo: times(true(demo)),
        "nearest_picture": nearest,
        "half": lambda demo: times([at_s for at_s in true(demo) if random.random() < 0.5]),
        **{f"random_{count}": at_random(count) for count in (1, 2, 4)},
    }


def refined(
    demos: list[Demonstration], cuts: list[list[Event]], said: list[Says], config: stage.Config
) -> list[list[int]]:
    """Control steps of the cuts with what was said."""
    found = []
    for demo, events, says in zip(demos, cuts, said, strict=True):
        gap_s = demo.episode.duration_s / (config.refinement.pictures - 1)
        reach_s = config.refinement.reach * gap_s
        bounds = Bounds(config.min_event_s, config.max_event_s, reach_s, gap_s / 2)
        finer = [step for event in events for step in event.finer]
        rows = stage.event_rows(demo.episode, events)
        both = Beside(rows, says, demo.episode.timestamps_s, finer, bounds)
        found.append([row["start_frame"] for row in both.rows[1:]])
    return found


def asked(
    tasks: list[str], given: argparse.Namespace, scratch: Path, config: stage.Config
) -> list[Says]:
    """What the model of params.yaml says of each episode, in the order of `demonstrations`."""
    os.environ["WAMFLOW_STORE"] = str(scratch / f"said-{given.seed}")  # ids here are only numbers
    looks = Looks(config.refinement)
    said: list[Says] = []
    for task in tasks:
        recordings = Episodes(recorded(task, given.episodes, given.seed, scratch))
        found = looks.at(recordings, {})
        said += [found[episode_id].says for episode_id in recordings.ids]
    return said


def measure(given: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """F1 by what was said."""
    config = params.section(params.load(PARAMS), "segmentation", stage.Config)
    demos = demonstrations(given.tasks, given.episodes, given.seed, scratch)
    if not any(demo.changes for demo in demos):
        raise SystemExit("no behaviour changes in these episodes; take other tasks or a --seed.")
    cuts = cut_all([demo.episode for demo in demos], stage.limits(config))
    true = [demo.changes for demo in demos]
    scores = {"signals": f1([[event.start for event in own[1:]] for own in cuts], true)}
    for name, answer in answers(config.refinement.pictures, given.seed).items():
        said = [answer(demo) for demo in demos]
        scores[name] = f1(refined(demos, cuts, said, config), true)
    if config.refinement.refiner != "none":
        told = list(dict.fromkeys(demo.task for demo in demos))
        said = asked(told, given, scratch, config)
        scores["model"] = f1(refined(demos, cuts, said, config), true)
    print(f"{len(demos)} episodes, {sum(map(len, true))} true changes", file=sys.stderr)
    counts = {"tasks": len({demo.task for demo in demos}), "episodes": len(demos)}
    return counts | {f"f1_{name}": round(value, 4) for name, value in scores.items()}


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first scene")
    parser.add_argument("--tasks", default=",".join(SCORED), help="by comma")
    parser.add_argument("--episodes", type=int, default=6, help="of each task")
    parser.add_argument("--scratch", type=Path, help="keeps recordings for the next run")
    given = parser.parse_args()
    given.tasks = list(dict.fromkeys(name for name in given.tasks.split(",") if name))
    if unknown := sorted(set(given.tasks) - set(SENTENCES)):
        parser.error(f"--tasks: unknown {unknown}; there are {', '.join(sorted(SENTENCES))}.")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given, given.scratch or Path(folder))))


if __name__ == "__main__":
    main()
