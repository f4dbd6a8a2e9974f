"""Fits `components/segmentation/weights.json`: what contrasts of signals look like at a boundary.

Only the development tasks of `behaviour.py` are used. Each network is the mean of
several small ones; what the log-odds of pictures count beside those of signals is fitted to
predictions for tasks that were left out (as Platt 1999 does), so that what is seen counts only as
far as it carries over.
Run `python -m tests.benchmarks.segmentation_weights --scratch FOLDER`; the JSON is rewritten. With
`--tasks A,B --target FILE` other weights are fitted to other tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from components.episodes import Episode
from components.errors import UserError
from components.segmentation import evidence, video
from components.segmentation.evidence import OFFSETS, Contrasts, Network, Single, moment
from components.segmentation.flat import Array, Flat
from components.segmentation.gripper import levels
from components.segmentation.signals import motion_traces
from components.stations.metaworld import SENTENCES, MetaworldStation
from tests.benchmarks.behaviour import DEVELOPMENT, TOLERANCE, Demonstration, demonstrations

EPISODES, SEED = 6, 1000  # of each development task
TARGET = evidence.WEIGHTS
POSITIVE = 2  # rows this near to a change are one; from here to TOLERANCE they teach nothing
NETWORKS, HIDDEN = 2, 16  # whose mean is taken, and units of each
DECAY, DROPPED, RATE, ROUNDS, BATCH = 1e-3, 0.1, 3e-3, 8, 512
SLOWER = (1, 2, 2)  # each so many-th control step, one copy of the data for each
NOISE = (-3.5, -1.7)  # exponents of 10: shares of the range
FOLDS = 7
DIGITS = 4


class Inputs(NamedTuple):
    """What the networks are fitted to."""

    batch: Flat
    signals: Contrasts
    seen: Contrasts | None
    near: npt.NDArray[np.bool_]  # (M,) at a change
    used: npt.NDArray[np.bool_]  # (M,) clearly at one or clearly not
    task: npt.NDArray[np.str_]  # (M,)


def inputs(demos: Sequence[Demonstration], looks: bool = True) -> Inputs:
    """Contrasts of all demonstrations."""
    batch = Flat([demo.episode for demo in demos])
    traces = motion_traces(batch)
    measured, commanded = levels(batch, True), levels(batch, False)
    grip = evidence.gripper_traces(batch, traces.crossing, measured, commanded)
    seen = None
    if looks:
        watched = [video.looked(demo.episode) for demo in demos]
        numbers, vectors = video.joined(batch, [each for each in watched if each is not None])
        seen = evidence.contrasts(batch, traces._replace(numbers=numbers, vectors=vectors))
    distance = np.concatenate([away(demo) for demo in demos])
    return Inputs(
        batch,
        evidence.contrasts(
            batch,
            traces._replace(numbers=traces.numbers | grip),
            evidence.whereabouts(batch, traces, measured, commanded),
        ),
        seen,
        distance <= POSITIVE,
        (distance <= POSITIVE) | (distance > TOLERANCE),
        np.array([demo.task for demo in demos])[batch.owner],
    )


def away(demo: Demonstration) -> Array:
    """Control steps of 80 Hz from each row to the nearest change (T,)."""
    rows = demo.episode.timestamps_s * MetaworldStation.fps
    changes = np.array([*demo.changes, 10**6])
    return np.asarray(np.abs(rows[:, None] - changes).min(axis=1))


def shaken(demos: Sequence[Demonstration]) -> list[Demonstration]:
    """Copies as slower and noisier robots would record them, so that noise is learned as noise."""
    random = np.random.default_rng(0)
    return [
        replace(demo, episode=shake(demo.episode, every, float(random.uniform(*NOISE)), random))
        for every in SLOWER
        for demo in demos
    ]


def shake(episode: Episode, every: int, noise: float, random: np.random.Generator) -> Episode:
    """Each `every`-th step, with noise of 10^`noise` of the range on place and commands."""
    state, action = episode.state[::every], episode.action[::every]
    spread = 10**noise * np.ptp(state[:, :3], axis=0).max() * np.array([1, 1, 1, 0])
    wish = 10 ** (noise + 1) * action[:, :3].std() * np.array([1, 1, 1, 0])
    return replace(
        episode,
        fps=episode.fps / every,
        timestamps_s=episode.timestamps_s[::every],
        state=(state + random.normal(size=state.shape) * spread).astype(np.float32),
        action=(action + random.normal(size=action.shape) * wish).astype(np.float32),
    )


def network(parts: list[tuple[Contrasts, Inputs, npt.NDArray[np.bool_]]]) -> dict[str, Any]:
    """One network's weights, fitted to the rows (M,) of each part."""
    found = parts[0][0]
    every = np.concatenate([part.values[rows] for part, _, rows in parts])
    mean, scale = every.mean(axis=0), every.std(axis=0) + 1e-6
    x = np.concatenate([moments(part, given, rows, mean, scale) for part, given, rows in parts])
    y = np.concatenate([given.near[rows] for _, given, rows in parts])
    hidden, bias, out, intercept = several(x.astype(np.float32), y.astype(np.float32))
    return {
        "features": list(found.names),
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "hidden": hidden.tolist(),
        "bias": bias.tolist(),
        "out": out.tolist(),
        "intercept": intercept,
    }


def several(x: Single, y: Single) -> tuple[Array, Array, Array, float]:
    """NETWORKS small ones from other starts, as the one that is their mean: AdamW, one cycle.

    From x (N, D) and y (N,): hidden (D, H), bias (H,), out (H,), intercept.
    """
    if len(x) < BATCH or not 0 < y.mean() < 1:
        raise UserError(
            f"expected at least {BATCH} control steps with and without changes to fit weights to; "
            f"got {len(x)}, {int(y.sum())} of them at a change. Take more episodes or tasks."
        )
    torch.manual_seed(0)
    seen, wanted = torch.from_numpy(np.nan_to_num(x)), torch.from_numpy(y)
    hidden = torch.randn(NETWORKS, x.shape[1], HIDDEN) / x.shape[1] ** 0.5
    out = torch.randn(NETWORKS, HIDDEN, 1) / HIDDEN**0.5
    bias, intercept = torch.zeros(NETWORKS, 1, HIDDEN), torch.full((NETWORKS, 1, 1), -2.0)
    every = [each.requires_grad_() for each in (hidden, out, bias, intercept)]
    groups = [
        {"params": every[:2], "weight_decay": DECAY},
        {"params": every[2:], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    steps = ROUNDS * (len(x) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    for _ in range(ROUNDS):
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            shown = functional.dropout(seen[rows], DROPPED)
            odds = (torch.relu(shown @ hidden + bias) @ out + intercept)[..., 0]
            target = wanted[rows].expand(NETWORKS, -1)
            optimizer.zero_grad()
            (NETWORKS * functional.binary_cross_entropy_with_logits(odds, target)).backward()
            optimizer.step()
            cycle.step()
    with torch.no_grad():
        return (
            hidden.permute(1, 0, 2).reshape(x.shape[1], -1).double().numpy(),
            bias.flatten().double().numpy(),
            (out.flatten() / NETWORKS).double().numpy(),
            float(intercept.mean()),
        )


def moments(
    found: Contrasts, given: Inputs, rows: npt.NDArray[np.bool_], mean: Array, scale: Array
) -> Array:
    """What the network sees of the rows: standard contrasts at all OFFSETS."""
    standard = np.clip((found.values - mean) / scale, -evidence.CLIP, evidence.CLIP)
    at = [moment(given.batch, given.batch.row[rows], found.reach, o) for o in OFFSETS]
    return np.concatenate([standard[rows] for rows in at], axis=1)


def logits(weights: dict[str, Any], found: Contrasts, batch: Flat) -> Array:
    """Log-odds (M,) of one network."""
    one = Network(weights)
    return one.logits(batch, one.standard(found), found.reach)


def density(demos: Sequence[Demonstration]) -> dict[str, float]:
    """How many changes an episode has, by its length in crossing times: least squares."""
    batch = Flat([demo.episode for demo in demos])
    crossings = (
        batch.total(np.where(batch.row > batch.low, 1.0, 0.0)) / motion_traces(batch).crossing
    )
    slope, base = np.polyfit(crossings, [len(demo.changes) for demo in demos], 1)
    return {"base": float(base), "per_crossing": float(slope)}


def fit(demos: Sequence[Demonstration]) -> dict[str, Any]:
    """All weights, and the tasks they were fitted to. UserError where these are too few."""
    found = sorted({demo.task for demo in demos})
    if len(found) < 2:
        raise UserError(
            "expected episodes of at least two tasks, as each is predicted by weights that do not "
            f"know it; got {', '.join(found) or 'none'}."
        )
    given, noisy = inputs(demos), inputs(shaken(demos), looks=False)
    assert given.seen is not None
    tasks = sorted(set(given.task.tolist()))
    heard, seen = np.zeros(len(given.batch)), np.zeros(len(given.batch))
    for fold in range(FOLDS):
        out = np.isin(given.task, tasks[fold::FOLDS])
        inner = (~out & given.used, ~np.isin(noisy.task, tasks[fold::FOLDS]) & noisy.used)
        weights = network([(given.signals, given, inner[0]), (noisy.signals, noisy, inner[1])])
        heard[out] = logits(weights, given.signals, given.batch)[out]
        weights = network([(given.seen, given, inner[0])])
        seen[out] = logits(weights, given.seen, given.batch)[out]
    both = np.stack([heard, seen], axis=1)[given.used]
    joined = LogisticRegression(C=1e3).fit(both, given.near[given.used])
    rate = given.near[given.used].mean()
    parts = [(given.signals, given, given.used), (noisy.signals, noisy, noisy.used)]
    whole = {
        "signals": network(parts),
        "video": network([(given.seen, given, given.used)]),
        "fusion": {
            "video": max(float(joined.coef_[0, 1] / joined.coef_[0, 0]), 0.0),
            "base": float(np.log(rate / (1 - rate))),
        },
        "changes": density(demos),
        "tasks": tasks,
    }
    return dict(rounded(whole))


def rounded(value: Any) -> Any:
    """Floats to DIGITS significant digits, all through."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def main() -> None:
    """Rewrite the weights, or write others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="recordings are kept here")
    parser.add_argument("--tasks", default=",".join(DEVELOPMENT), help="to fit to, by comma")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each task")
    parser.add_argument("--seed", type=int, default=SEED, help="of the first scene")
    parser.add_argument("--target", type=Path, default=TARGET, help="where the JSON goes")
    given = parser.parse_args()
    tasks = list(dict.fromkeys(name for name in given.tasks.split(",") if name))
    if unknown := sorted(set(tasks) - set(SENTENCES)):
        parser.error(f"--tasks: unknown {unknown}; there are {', '.join(sorted(SENTENCES))}.")
    demos = demonstrations(tasks, given.episodes, given.seed, given.scratch)
    try:
        weights = fit(demos)
    except UserError as error:
        parser.error(str(error))
    given.target.write_text(json.dumps(weights, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
