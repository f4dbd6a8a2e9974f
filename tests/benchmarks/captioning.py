"""How well captions fit: verbs against the simulator's truth, and captions against kinematics.

`python -m tests.benchmarks.captioning [--seed N] [--tasks A,B] [--episodes N]` records Meta-World's
experts (no pictures), cuts and captions them as the stages do, and compares each event's action
caption with what the simulator knows and no stage sees. A table goes to standard error, one JSON
line last to standard output.

Phases of the truth, for each control step: `reach` before the hand first touches something that can
move; `grasp` from when the fingers have gone a tenth of their way to close around what they then
hold until it has moved 1 cm; `work` while it is touched or moves; `release` while the fingers open
at its end; `retreat` after the last touch. An event is matched when two thirds of its steps are of
one phase; `all` takes every event by its most common phase. A caption's verb is the first word
after the task's sentence; `VERBS` says which phase it claims. `lift` and `lower` must also fit the
way the thing really went.

Rules were made on DEVELOPMENT; tasks of HELD_OUT, which run by default, are for the score.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components import params
from components.captioning import rows as captions
from components.captioning import stage as captioning
from components.episodes import Episode
from components.segmentation import stage as segmentation
from components.stations.metaworld import SENTENCES, MetaworldStation

PARAMS = Path(__file__).parents[2] / "params.yaml"
ALL = sorted(SENTENCES)
DEVELOPMENT, HELD_OUT = ALL[::2], ALL[1::2]
VERBS = {"reach": "reach", "grasp": "grasp", "release": "release", "retreat": "retreat"}
STILL = {"hold": "still"}
MATCHED = 2 / 3
GAP, BLIP = 12, 3  # control steps: shorter gaps in a touch and shorter touches do not count
HELD, CLOSING = 8, 20  # a grasp lasts so long at least; fingers close within so many steps before
FELL = 0.1  # of the gripper's opening: it really closed, or opened
MOVED_M = 0.01
LATE_STEPS, MAX_STEPS = 10, 250
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Demonstration:
    """An episode as stages see it, and what the simulator knows of each of its T steps."""

    episode: Episode
    contact: Mask
    grasp: Mask
    moving: Mask
    things_m: Floats  # (T, things, 3), positions of all that can move


@dataclass
class Score:
    """Counts over events."""

    verbs: Counter[tuple[str, str]] = field(default_factory=Counter)  # (verb, phase) of matched
    matched: Counter[str] = field(default_factory=Counter)  # task -> matched events
    right: Counter[str] = field(default_factory=Counter)
    events: int = 0
    right_all: int = 0
    contradictions: int = 0
    sequences: dict[str, Counter[tuple[str, ...]]] = field(default_factory=dict)


def demonstrations(task: str, seeds: range) -> list[Demonstration]:
    """The scripted expert until shortly after its success; episodes where it fails are kept too."""
    station = MetaworldStation()
    return [_demonstration(station, task, seed) for seed in seeds]


def _demonstration(station: MetaworldStation, task: str, seed: int) -> Demonstration:
    station.reset(task, seed)
    states, actions, truths, things = [], [], [], []
    model, left = station.env.model, MAX_STEPS
    robot = model.body_rootid[model.body("hand").id]
    movable = (model.body_weldid != 0) & (model.body_rootid != robot)
    while left:
        states.append(station.state())
        actions.append(station.expert())
        truths.append(station.truth())
        things.append(station.env.data.xpos[movable].copy())
        station.step(actions[-1])
        left = min(left - 1, LATE_STEPS) if station.succeeded() else left - 1
    episode = Episode(
        episode_id=f"{task}-{seed}",
        embodiment=station.embodiment,
        task=station.tasks[task],
        fps=station.fps,
        timestamps_s=np.arange(len(states)) / station.fps,
        state=np.array(states, dtype=np.float32),
        action=np.array(actions, dtype=np.float32),
        state_names=station.state_names,
        action_names=station.action_names,
    )
    columns = [np.array([getattr(t, n) for t in truths]) for n in ("contact", "grasp")]
    moving = np.array([truth.object_moving for truth in truths])
    return Demonstration(episode, *columns, moving, np.array(things))


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Stretches of True as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def steady(mask: Mask, gap: int, blip: int) -> Mask:
    """Without stretches shorter than `blip`, then without gaps of at most `gap`."""
    found = mask.copy()
    for first, stop in runs(found):
        if stop - first < blip:
            found[first:stop] = False
    for first, stop in runs(~found):
        if first > 0 and stop < len(found) and stop - first <= gap:
            found[first:stop] = True
    return found


def phases(seen: Demonstration) -> npt.NDArray[np.str_]:
    """The phase of each control step (T,)."""
    touched = steady(seen.contact, GAP, BLIP)
    found = np.full(len(touched), "reach", dtype="<U8")
    if not touched.any():
        return found
    first = int(np.argmax(touched))
    after = np.arange(len(touched)) >= first
    busy = steady(touched | (seen.moving & after), GAP, BLIP)
    found[busy] = "work"
    found[np.flatnonzero(busy)[-1] + 1 :] = "retreat"
    opening = seen.episode.state[:, 3].astype(np.float64)
    for begin, end in runs(steady(seen.grasp, HELD, HELD)):
        start = begin
        while start > max(begin - CLOSING, 0) and opening[start - 1] > opening[start] + 1e-4:
            start -= 1
        fall = opening[start] - opening[begin : min(begin + HELD, end)].min()
        if fall < FELL:
            continue  # both fingers touch it, but they did not close around it
        start += int(np.argmax(opening[start:end] <= opening[start] - FELL * fall))
        way = np.linalg.norm(seen.things_m - seen.things_m[start], axis=2).max(axis=1)
        lifted = np.flatnonzero(way[begin:end] > MOVED_M)
        found[start : begin + int(lifted[0]) if len(lifted) else end] = "grasp"
        rise = end + np.flatnonzero(np.diff(opening[end : end + CLOSING]) > 1e-3)
        if len(rise) and opening[rise[-1]] - opening[end] >= FELL:
            found[end : rise[-1] + 1] = "release"
    return found


def count(score: Score, task: str, seen: Demonstration, cut: Any, tell: Any) -> None:
    """Caption one demonstration and compare."""
    episode = seen.episode
    limits = segmentation.limits(cut)
    events = segmentation.event_rows(episode, segmentation.cut_all([episode], limits)[0])
    told = captions.told(episode, events, [], tell)
    (said,) = captions.caption_rows([told], tell, None).values()
    truth = phases(seen)
    actions = [row for row in said.rows if row["level"] == "action"]
    score.contradictions += sum(
        json.loads(row["checks"])["contradiction"] != "ok" for row in said.rows
    )
    score.sequences.setdefault(task, Counter())[tuple(row["text"] for row in actions)] += 1
    for event, row in zip(events, actions, strict=True):
        span = slice(event["start_frame"], event["end_frame"])
        names, counts = np.unique(truth[span], return_counts=True)
        phase, share = str(names[counts.argmax()]), counts.max() / counts.sum()
        verb = row["text"].removeprefix(f"{episode.task}: ").split()[0]
        right = fits(verb, phase, seen, span)
        score.events += 1
        score.right_all += right
        if share >= MATCHED:
            score.verbs[verb, phase] += 1
            score.matched[task] += 1
            score.right[task] += right


def fits(verb: str, phase: str, seen: Demonstration, span: slice) -> bool:
    """Whether a verb claims the phase that it is, and the way that the thing went."""
    if verb in STILL:
        return not seen.moving[span].any()
    if VERBS.get(verb, "work") != phase:
        return False
    rise_m = seen.things_m[span][-1, :, 2] - seen.things_m[span][0, :, 2]
    way_m = float(rise_m[np.abs(rise_m).argmax()])
    return not (verb == "lift" and way_m <= 0) and not (verb == "lower" and way_m >= 0)


def report(score: Score) -> dict[str, Any]:
    """The figures."""
    alike = [c.most_common(1)[0][1] / c.total() for c in score.sequences.values()]
    matched = sum(score.matched.values())
    return {
        "tasks": len(score.sequences),
        "events": score.events,
        "matched": matched,
        "agreement": round(sum(score.right.values()) / matched, 4),
        "agreement_worst_task": round(min(score.right[t] / n for t, n in score.matched.items()), 4),
        "agreement_all": round(score.right_all / score.events, 4),
        "contradictions": score.contradictions,
        "same_actions": round(float(np.mean(alike)), 4),
    }


def show(score: Score) -> None:
    """Per task and per verb, on standard error."""
    for task, matched in sorted(score.matched.items()):
        print(f"{task:22s} {score.right[task]:4d} of {matched:4d}", file=sys.stderr)
        for words, number in score.sequences[task].most_common(2):
            told = " | ".join(text.partition(": ")[2] for text in words)
            print(f"{'':22s} {number} x {told}", file=sys.stderr)
    for (verb, phase), number in sorted(score.verbs.items()):
        print(f"verb {verb:10s} in phase {phase:8s} {number:5d}", file=sys.stderr)


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first scene of each task")
    parser.add_argument("--tasks", default=",".join(HELD_OUT), help="by comma, or `development`")
    parser.add_argument("--episodes", type=int, default=5, help="of each task")
    given = parser.parse_args()
    values = params.load(PARAMS)
    cut = params.section(values, "segmentation", segmentation.Config)
    tell = params.section(values, "captioning", captioning.Config)
    score = Score()
    tasks = DEVELOPMENT if given.tasks == "development" else given.tasks.split(",")
    for task in tasks:
        for seen in demonstrations(task, range(given.seed, given.seed + given.episodes)):
            count(score, task, seen, cut, tell)
    show(score)
    print(json.dumps(report(score)))


if __name__ == "__main__":
    main()
