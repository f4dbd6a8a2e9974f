"""Simulated demonstrations with the control steps where the behaviour changes, for benchmarks.

A change is where contact or grasp begins or ends, or an object starts or stops to move, as the
simulator's sidecar tells. Not success, which is a threshold. A hand that pushes loses touch and
finds it again within milliseconds: gaps under `FLICKER` steps, 0.15 s, are none (`captioning.py`
counts the same way), nor are stretches under `TOLERANCE`. Changes that follow within `TOLERANCE`
steps are one, and changes that near to an episode's ends are none, since no event fits there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from components import records
from components.episodes import Episode, Episodes
from components.errors import UserError
from components.stations.metaworld import SENTENCES, MetaworldStation
from components.stations.recording import record

TOLERANCE = 5  # control steps, 80 Hz
FLICKER = 12
SIGNALS = ("contact", "grasp", "object_moving")
DEVELOPMENT = [  # every value that was ever tuned, was tuned on these
    "door-open",
    "drawer-open",
    "window-open",
    "button-press-topdown",
    "assembly",
    "basketball",
    "coffee-pull",
    "dial-turn",
    "faucet-close",
    "handle-press-side",
    "lever-pull",
    "pick-place",
    "plate-slide",
    "stick-push",
    "button-press-wall",
    "door-unlock",
    "handle-pull-side",
    "peg-unplug-side",
    "plate-slide-back",
    "sweep",
    "sweep-into",
    "bin-picking",
    "button-press-topdown-wall",
    "hand-insert",
    "pick-out-of-hole",
    "pick-place-wall",
    "plate-slide-back-side",
    "plate-slide-side",
    "push-back",
    "push-wall",
    "stick-pull",
]
SCORED = [
    "box-close",
    "button-press",
    "coffee-button",
    "coffee-push",
    "disassemble",
    "door-close",
    "door-lock",
    "drawer-close",
    "faucet-open",
    "hammer",
    "handle-pull",
    "peg-insert-side",
    "push",
    "shelf-place",
    "soccer",
    "window-close",
]


@dataclass(frozen=True)
class Demonstration:
    """One episode and its true boundaries, control steps."""

    task: str
    episode: Episode
    changes: list[int]
    flickers: list[int]  # the same with every touch lost and found for TOLERANCE steps


def split(scored: list[str]) -> tuple[list[str], list[str]]:
    """(development, scored) tasks, none in both; with too few left to develop on, others."""
    spare = [task for task in SENTENCES if task not in (*DEVELOPMENT, *SCORED, "reach")]
    left = [task for task in DEVELOPMENT if task not in scored]
    more = [task for task in (*SCORED, *spare) if task not in scored]
    return left + more[: max(8 - len(left), 0)], scored


def demonstrations(
    tasks: list[str], episodes: int, seed: int, scratch: Path
) -> list[Demonstration]:
    """`episodes` of each task, recorded into `scratch` or found there; one without is skipped."""
    found: list[Demonstration] = []
    for task in tasks:
        try:
            root = recorded(task, episodes, seed, scratch)
        except UserError as error:
            if task not in SENTENCES:
                raise
            print(f"{task}: left out: {error}", file=sys.stderr)
            continue
        truth = pq.read_table(root / f"{MetaworldStation.embodiment}.truth/truth.parquet")
        owner = truth["episode_index"].to_numpy()
        told = {name: truth[name].to_numpy(zero_copy_only=False) for name in SIGNALS}
        for number, episode in enumerate(Episodes(root)):
            own = {name: values[owner == number] for name, values in told.items()}
            found.append(Demonstration(task, episode, changes(own), changes(own, TOLERANCE)))
    return found


def recorded(task: str, episodes: int, seed: int, scratch: Path) -> Path:
    """A folder as `data/episodes` with `episodes` of `task`, its truth within."""
    root = scratch / f"{task}-{episodes}-{seed}"
    name = MetaworldStation.embodiment
    if not (root / name).is_dir():
        record("metaworld", [task], episodes, root / name, seed)
        print(f"recorded {episodes} of {task}", file=sys.stderr, flush=True)
    rows: list[dict[str, object]] = [
        dict.fromkeys(records.MANIFEST.names)
        | {
            "episode_id": f"{number:020x}",
            "source": "simulated",
            "source_uri": "simulated",
            "source_version": "",
            "embodiment": name,
            "episode_index": number,
            "task": SENTENCES[task],
            "n_frames": 0,
            "duration_s": 0.0,
            "fps": MetaworldStation.fps,
            "operator": "",
            "origins": ["simulated"],
        }
        for number in range(episodes)
    ]
    records.write(root / "manifest.parquet", rows, records.MANIFEST, "episode_id")
    return root


def changes(told: dict[str, npt.NDArray[np.bool_]], flicker: int = FLICKER) -> list[int]:
    """Control steps of the changes in rising order; each signal is (T,)."""
    steps = len(told[SIGNALS[0]])
    every = sorted(
        step
        for name in SIGNALS
        for step in np.flatnonzero(np.diff(steady(told[name], flicker).astype(np.int8))) + 1
        if TOLERANCE < step < steps - TOLERANCE
    )
    kept: list[int] = []
    for step in every:
        if not kept or step - kept[-1] > TOLERANCE:
            kept.append(int(step))
    return kept


def steady(values: npt.NDArray[np.bool_], flicker: int) -> npt.NDArray[np.bool_]:
    """Without short gaps, then without short stretches; the ends stay as they are."""
    values = values.copy()
    for wanted, shortest in ((False, flicker), (True, TOLERANCE)):
        edges = np.flatnonzero(np.diff(np.concatenate(([not wanted], values, [not wanted]))))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            if stop - start < shortest and start > 0 and stop < len(values):
                values[start:stop] = not wanted
    return values


def matched(found: list[int], true: list[int]) -> int:
    """The most pairs within TOLERANCE, one to one; both in rising order."""
    pairs = i = j = 0
    while i < len(found) and j < len(true):
        off = found[i] - true[j]
        if abs(off) <= TOLERANCE:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif off < 0:
            i += 1
        else:
            j += 1
    return pairs


def f1(found: list[list[int]], true: list[list[int]]) -> float:
    """Boundary F1 over all episodes together."""
    pairs = sum(matched(a, b) for a, b in zip(found, true, strict=True))
    return 2 * pairs / max(sum(map(len, found)) + sum(map(len, true)), 1)
