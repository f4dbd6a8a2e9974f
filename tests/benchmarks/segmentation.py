"""How well events are found: boundary F1 against the simulator's truth, beside peers in one run.

Prints what it measures on standard error and one JSON line last. `behaviour.py` says what a true
boundary is and which tasks are for development and which are scored; a task given by --tasks is
scored and taken out of development, and our weights are fitted again without it.

- `f1_signals`, `f1_video`: ours, without and with pictures, values of params.yaml.
- `f1_supervised`: gradient boosting on windows of the same inputs, pictures too; which inputs, the
  threshold and the distance of its peaks are the best on development tasks it was not fitted to.
- `f1_ruptures`: kernel change-point detection (PELT), its kernel, signals, penalty and least
  distance the best on the development tasks. `f1_fixed`: windows of the length that is best on the
  scored tasks themselves.
- `samples_per_core_s`: control steps cut in a second of CPU, episodes in memory, no pictures.
  `video_frames_per_core_s`: pictures decoded and turned into traces.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import ruptures  # type: ignore[import-untyped]
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from components import params
from components.segmentation import evidence, stage, video
from components.segmentation.boundaries import Limits, cut_all
from components.segmentation.evidence import Fusion
from components.segmentation.flat import Array, Flat
from components.segmentation.signals import motion_traces
from components.stations.metaworld import SENTENCES
from tests.benchmarks import segmentation_weights as weights
from tests.benchmarks.behaviour import SCORED, TOLERANCE, Demonstration, demonstrations, f1, split
from tests.benchmarks.segmentation_weights import Inputs, inputs

ROOT = Path(__file__).parents[2]
LENGTHS = range(6, 121, 2)  # of fixed windows, control steps
PENALTIES = 10.0 ** np.arange(-1.5, 2.6, 0.25)
SEPARATIONS = (6, 8, 11, 15)
THRESHOLDS = np.arange(0.05, 0.9, 0.05)
FOLDS = 3
RESAMPLES = 1000

Cuts = list[list[int]]


def say(*words: object) -> None:
    """A line for a person."""
    print(*words, file=sys.stderr, flush=True)


def ours(demos: list[Demonstration], limits: Limits, learned: Fusion) -> Cuts:
    """Our cuts."""
    cut = cut_all([demo.episode for demo in demos], limits, learned)
    return [[event.start for event in events[1:]] for events in cut]


def fitted(development: list[Demonstration], scored: list[str]) -> Fusion:
    """Our weights; where they know a scored task, others that do not."""
    shipped = json.loads(weights.TARGET.read_text())
    if not set(shipped["tasks"]) & set(scored):
        return evidence.learned()
    say("weights: fitted again without the scored tasks")
    return evidence.fusion(weights.fit(development))


def fixed(demos: list[Demonstration]) -> tuple[Cuts, str]:
    """Windows of the best length on `demos` itself."""
    every = {n: [list(range(n, len(d.episode), n)) for d in demos] for n in LENGTHS}
    best = max(every, key=lambda n: f1(every[n], [d.changes for d in demos]))
    return every[best], f"windows of {best} steps"


def supervised(development: list[Demonstration], demos: list[Demonstration]) -> tuple[Cuts, str]:
    """Gradient boosting; inputs and peaks as they are best on development tasks left out."""
    known, new = inputs(development), inputs(demos)
    tasks = sorted(set(known.task.tolist()))
    best: tuple[float, str, float, int] = (-1.0, "", 0.0, 0)
    for name in WINDOWS:
        x = windows(known, name)
        chance = np.zeros(len(x))
        for fold in range(FOLDS):
            out = np.isin(known.task, tasks[fold::FOLDS])
            inner = ~out & known.used
            chance[out] = boosted().fit(x[inner], known.near[inner]).predict_proba(x[out])[:, 1]
        for threshold, apart in itertools.product(THRESHOLDS, SEPARATIONS):
            found = tops(known.batch, chance, threshold, apart)
            reached = f1(found, [d.changes for d in development])
            best = max(best, (reached, name, float(threshold), apart))
    reached, name, threshold, apart = best
    model = boosted().fit(windows(known, name)[known.used], known.near[known.used])
    chance = model.predict_proba(windows(new, name))[:, 1]
    note = f"{name}, threshold {threshold:.2f}, {apart} apart; {reached:.3f} on development"
    return tops(new.batch, chance, threshold, apart), note


def boosted() -> HistGradientBoostingClassifier:
    """The ceiling's classifier."""
    return HistGradientBoostingClassifier(
        max_iter=150,
        learning_rate=0.06,
        max_leaf_nodes=12,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )


def windows(given: Inputs, name: str) -> Array:
    """What the classifier sees of each row."""
    return WINDOWS[name](given)


def seen(given: Inputs) -> Array:
    """Contrasts of the pictures."""
    assert given.seen is not None
    return given.seen.values


def nearby(given: Inputs, values: Array) -> Array:
    """Contrasts at the moments our network sees."""
    every = [
        evidence.moment(given.batch, given.batch.row, given.signals.reach, offset)
        for offset in evidence.OFFSETS
    ]
    return np.concatenate([values[rows] for rows in every], axis=1)


def raw(given: Inputs) -> Array:
    """The traces themselves and where the arm is, every other step to 12 around; pictures."""
    traces = motion_traces(given.batch)
    own = [values[:, None] for values in traces.numbers.values()] + list(traces.vectors.values())
    own += [given.batch.state[:, 3:], given.batch.action[:, 3:]]
    own += [given.signals.values[:, [":" not in name for name in given.signals.names]]]
    values = np.concatenate(own, axis=1)
    at = [
        np.clip(given.batch.row + offset, given.batch.low, given.batch.last)
        for offset in range(-12, 13, 2)
    ]
    return np.concatenate([*(values[rows] for rows in at), seen(given)], axis=1)


WINDOWS: dict[str, Callable[[Inputs], Array]] = {
    "signals": lambda given: nearby(given, given.signals.values),
    "signals and pictures": lambda given: nearby(
        given, np.concatenate([given.signals.values, seen(given)], axis=1)
    ),
    "raw windows of signals and pictures": raw,
}


def tops(batch: Flat, chance: Array, threshold: float, apart: int) -> Cuts:
    """Non-max suppression: peaks above `threshold`, the highest first, more than `apart` apart."""
    found: Cuts = []
    for values in batch.split(chance):
        left = np.convolve(np.pad(values.astype(float), 2, mode="edge"), np.ones(5) / 5, "valid")
        left[: TOLERANCE - 1] = 0
        kept: list[int] = []
        while left.max() >= threshold:
            top = int(left.argmax())
            kept.append(top)
            left[max(top - apart, 0) : top + apart + 1] = -1
        found.append(sorted(kept))
    return found


def kernel_cuts(
    demos: list[Demonstration], kernel: str, signals: str, apart: int, penalties: list[float]
) -> list[Cuts]:
    """For each penalty, cuts by ruptures on each episode's own traces, each with variance 1."""
    batch = Flat([demo.episode for demo in demos])
    traces = motion_traces(batch)
    columns = [traces.vectors["velocity"], batch.state[:, 3:], batch.action[:, 3:]]
    if signals == "all":
        columns += [traces.vectors["command"], traces.numbers["lagging"][:, None]]
    found: list[Cuts] = [[] for _ in penalties]
    for values in batch.split(np.concatenate(columns, axis=1)):
        scaled = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-9)
        model = ruptures.KernelCPD(kernel=kernel, min_size=apart).fit(scaled)
        for place, penalty in enumerate(penalties):
            found[place].append([int(at) for at in model.predict(pen=penalty)[:-1]])
    return found


def change_points(development: list[Demonstration], demos: list[Demonstration]) -> tuple[Cuts, str]:
    """ruptures as it is best on the development tasks."""
    true = [demo.changes for demo in development]
    best: tuple[float, str, str, int, float] = (-1.0, "", "", 0, 0.0)
    penalties = [float(p) for p in PENALTIES]
    for kernel, signals, apart in itertools.product(
        ("linear", "rbf"), ("velocity and gripper", "all"), (4, 8, 12)
    ):
        every = kernel_cuts(development, kernel, signals, apart, penalties)
        for penalty, cuts in zip(penalties, every, strict=True):
            best = max(best, (f1(cuts, true), kernel, signals, apart, penalty))
    reached, kernel, signals, apart, penalty = best
    note = (
        f"{kernel}, {signals}, {apart} apart, penalty {penalty:.2f}; {reached:.3f} on development"
    )
    return kernel_cuts(demos, kernel, signals, apart, [penalty])[0], note


def deaf(learned: Fusion, signal: str) -> Fusion:
    """The weights without one signal."""
    hidden = learned.signals.hidden.copy()
    own = [evidence.SIGNALS.get(name.split(":")[0]) == signal for name in learned.signals.names]
    hidden[np.tile(own, len(evidence.OFFSETS))] = 0.0
    return learned._replace(signals=learned.signals.with_hidden(hidden))


def per_task(demos: list[Demonstration], cuts: dict[str, Cuts]) -> None:
    """F1 of each method on each task, and 95 % intervals over tasks."""
    tasks = sorted({demo.task for demo in demos})
    places = {t: [i for i, d in enumerate(demos) if d.task == t] for t in tasks}
    say(f"{'':20s}" + "".join(f"{name:>12s}" for name in cuts))
    for task, own in places.items():
        each = [f1([c[i] for i in own], [demos[i].changes for i in own]) for c in cuts.values()]
        say(f"{task:20s}" + "".join(f"{value:12.3f}" for value in each))
    random = np.random.default_rng(0)
    drawn = [random.choice(tasks, len(tasks)) for _ in range(RESAMPLES)]
    for name, found in cuts.items():
        every = [
            f1([found[i] for i in own], [demos[i].changes for i in own])
            for own in ([i for task in draw for i in places[task]] for draw in drawn)
        ]
        low, high = np.quantile(every, [0.025, 0.975])
        say(f"{name:20s} 95 % over tasks: {low:.3f} to {high:.3f}")


def samples_per_s(demos: list[Demonstration], limits: Limits) -> float:
    """Control steps cut per second of CPU by one thread, the best of some runs."""
    episodes = [demo.episode for demo in demos]
    runs = []
    for _ in range(7):
        began = time.process_time()
        cut_all(episodes, limits)
        runs.append(time.process_time() - began)
    return sum(map(len, episodes)) / min(runs)


def frames_per_s(demos: list[Demonstration]) -> float:
    """Pictures turned into traces per second of CPU."""
    began, count = time.process_time(), 0
    for demo in demos[:: max(len(demos) // 24, 1)]:
        video.looked(demo.episode)
        count += len(demo.episode) * len(demo.episode.clips)
    return count / (time.process_time() - began)


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first scored scene")
    parser.add_argument("--tasks", default="", help="to score, by comma; the fixed ones when empty")
    parser.add_argument("--episodes", type=int, default=6, help="of each scored task")
    parser.add_argument("--scratch", type=Path, help="keeps recordings for the next run")
    given = parser.parse_args()
    given.tasks = [name for name in given.tasks.split(",") if name] or list(SCORED)
    if unknown := sorted(set(given.tasks) - set(SENTENCES)):
        parser.error(f"--tasks: unknown {unknown}; there are {', '.join(sorted(SENTENCES))}.")
    if given.episodes < 1:
        parser.error(f"--episodes: expected 1 or more of each task; got {given.episodes}.")
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        measure(given, given.scratch or Path(folder))


def measure(given: argparse.Namespace, scratch: Path) -> None:
    """Record, cut, compare."""
    develop, scored = split(list(dict.fromkeys(given.tasks)))
    demos = demonstrations(scored, given.episodes, given.seed, scratch)
    if not any(demo.changes for demo in demos):
        raise SystemExit(
            f"no behaviour changes in {len(demos)} episode(s) of {', '.join(scored)}, so there is "
            "nothing to score; take other tasks or another --seed."
        )
    development = demonstrations(develop, weights.EPISODES, weights.SEED, scratch)
    values = params.load(ROOT / "params.yaml")
    config = params.section(values, "segmentation", stage.Config)
    blind, sighted = (replace(stage.limits(config), video=v) for v in (False, True))
    learned = fitted(development, scored)
    peers = {
        "fixed": fixed(demos),
        "ruptures": change_points(development, demos),
        "supervised": supervised(development, demos),
    }
    cuts = {
        "signals": ours(demos, blind, learned),
        "video": ours(demos, sighted, learned),
        **{name: found for name, (found, _) in peers.items()},
    }
    for name, (_, note) in peers.items():
        say(f"{name}: {note}")
    true = [demo.changes for demo in demos]
    per_task(demos, cuts)
    strict = {name: f1(found, [d.flickers for d in demos]) for name, found in cuts.items()}
    say("every flicker of contact counted:", {n: round(v, 3) for n, v in strict.items()})
    for signal in sorted(set(evidence.SIGNALS.values()) - {"seen"}):
        without = f1(ours(demos, blind, deaf(learned, signal)), true)
        say(f"without {signal}: {without:.3f}")
    own = f1(ours(development, blind, learned), [demo.changes for demo in development])
    say(f"on what the weights were fitted to: {own:.3f}")
    figures = {
        "tasks": len({demo.task for demo in demos}),
        "episodes": len(demos),
        **{f"f1_{name}": round(f1(found, true), 4) for name, found in cuts.items()},
        "samples_per_core_s": round(samples_per_s(demos, blind)),
        "video_frames_per_core_s": round(frames_per_s(demos)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
