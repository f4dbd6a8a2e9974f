"""Event mode against fixed chunks, the claim of WALL-WM (arXiv 2606.01955), tested in small.

One model of several tasks is trained for each arm and training seed, on recordings of Meta-World's
scripted experts that went through segmentation, captioning, clustering and sampling. Both arms have
the same network, initial weights, draws (event, anchor frame, dropped captions), noise, steps,
batch and padded length, so also the same compute. What differs:

- **event**: a window runs from its anchor to the event's end, its words are the event's caption.
  Acting is the product's own event mode (`components/trials/actors.py`): the task's usual captions
  in turn; the model says how long each event lasts, and the next one begins where it ends.
- **chunk**: a window runs a fixed number of steps from its anchor, over boundaries. Its words are
  either all captions of the task's usual events, joined (which needs no clock, as a policy of fixed
  chunks is told its instruction), or the caption of the event at the anchor; then, when acting, the
  caption that holds by the events' mean durations in training. Which of them, and the chunk's
  length, is chosen for it.

Captions come from training data through `event_plans.json`; neither arm is told anything by the
simulator. How often each arm looks again is chosen too, from the same list: every 4 or 16 control
steps, or when its window is over. (An event arm whose event will not end looks often by itself; a
baseline that could not would lose for that alone.) All choices are made on `--tune-tasks`, with
recordings, scenes and a training seed of their own, for each arm the candidate of most progress: of
three for the event arm, of all lengths and looks, then of both kinds of words for the chunk arm, so
that the luck there is in choosing is the baseline's. Scored tasks are none of those, nor of the
tasks that the segmentation was made on. Progress is defined in `claim/progress.py`.

Trials are interleaved: both arms meet each scene, in an order drawn for it. Scenes differ from seed
to seed and from all recordings. The unit of the statistics is the training seed: a seed's figure is
the mean over its trials, intervals are Student's over seeds, that of the difference is paired. With
few seeds they are wide, and one seed alone has none. Recordings are the same for all seeds, so the
intervals say nothing of other recordings; `--seed` makes others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("MUJOCO_GL", "osmesa")

import numpy as np
import torch
import torch.distributed as dist

from components import params
from components.pretraining import view
from components.pretraining.stage import Config
from tests.benchmarks.claim import arms, figures
from tests.benchmarks.claim.arms import Arm, Data
from tests.benchmarks.claim.data import ROOT, prepared
from tests.benchmarks.claim.trials import Benches, Journal, turns

SCORED = ["window-close", "coffee-push", "shelf-place", "hammer"]
TUNE = ["drawer-open", "basketball", "sweep-into"]
TUNING_SEED = 100_000  # further than any scored one
MODEL = {  # a quarter of the cost of the demo's model for each window
    "width": 96, "depth": 3, "heads": 4, "key_px": 96, "key_patch_px": 24, "future_px": 16,
    "future_patch_px": 8, "future_frames": 1, "action_patch_steps": 8, "max_steps": 80,
    "action_samples": 2, "anchor_probability": 0.5,
}  # fmt: skip
WHOLE = MODEL["max_steps"]
LOOKS = 4, 16  # control steps after which an arm looks again; the product's trials after 16


class Bench(NamedTuple):
    """What is given, for one set of tasks."""

    data: Data
    tasks: list[str]
    config: Config
    steps: int
    max_trial_steps: int
    scratch: Path
    journal: Journal


def candidates(chunk_steps: Sequence[int]) -> tuple[list[Arm], list[Arm]]:
    """(event arms, chunk arms told all captions) to choose from."""
    event = [Arm(None, "event", executed) for executed in (*LOOKS, WHOLE)]
    chunk = [
        Arm(steps, "joined", executed)
        for steps in chunk_steps
        for executed in sorted({steps, *(min(steps, look) for look in LOOKS)})
    ]
    return event, chunk


def name_of(arm: Arm) -> str:
    """As it stands in journal and output: window-words-executed."""
    return f"{arm.window_steps or 'event'}-{arm.words}-{arm.executed_steps}"


def hold(bench: Bench, seed: int, chosen: Sequence[Arm], scenes: int) -> None:
    """Train what is missing and hold the trials of one training seed that are missing."""
    named = {name_of(arm): arm for arm in chosen}
    due = list(turns(seed, list(named), bench.tasks, scenes))
    if all(turn.key in bench.journal.rows for turn in due):
        return
    checkpoints = {name: trained(bench, seed, arm) for name, arm in named.items()}
    plans = json.loads((next(iter(checkpoints.values())) / "event_plans.json").read_text())
    durations = arms.usual_durations(bench.data.tables, plans)
    trials = params.load(ROOT / "params.yaml")["trials"]
    cast = {
        name: arms.actor(checkpoints[name], arm, seed, durations, trials)
        for name, arm in named.items()
    }
    benches, began = Benches(), time.monotonic()
    for turn in due:
        if turn.key not in bench.journal.rows:
            bench.journal.add(benches.hold(turn, cast[turn.arm], bench.max_trial_steps))
    benches.close()
    rows = [bench.journal.rows[turn.key] for turn in due]
    means = {name: round(figures.by_seed(rows, name)[seed], 1) for name in named}
    print(f"seed {seed}: {means}, trials {time.monotonic() - began:.0f} s", file=sys.stderr)


def trained(bench: Bench, seed: int, arm: Arm) -> Path:
    """The checkpoint of an arm and a seed, trained unless it is there."""
    out = bench.scratch / "checkpoints" / f"{'+'.join(bench.tasks)}-{seed}-{arm.trained}"
    if not (out / "report.json").is_file():
        began = time.monotonic()
        config = bench.config.model_copy(update={"seed": seed})
        arms.train(bench.data, config, arm, bench.steps, out)
        seconds = time.monotonic() - began
        print(f"seed {seed}: trained {arm.trained} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return out


def chosen(bench: Bench, chunk_steps: Sequence[int], seed: int, scenes: int) -> dict[str, Any]:
    """The best arm of each kind on the development tasks, and all figures that say so."""
    found: dict[str, float] = {}

    def best(arms: list[Arm]) -> Arm:
        rows = list(bench.journal.rows.values())
        found.update({name_of(a): figures.by_seed(rows, name_of(a))[seed] for a in arms})
        return max(arms, key=lambda arm: found[name_of(arm)])

    events, chunks = candidates(chunk_steps)
    hold(bench, seed, [*events, *chunks], scenes)
    event, chunk = best(events), best(chunks)
    by_clock = chunk._replace(words="clock")
    hold(bench, seed, [by_clock], scenes)
    return {"event": event, "chunk": best([chunk, by_clock]), "progress": found}


def opened(
    tasks: list[str], given: argparse.Namespace, config: Config, scratch: Path, name: str
) -> Bench:
    """Recordings, plan and training view of some tasks."""
    draws = given.steps * config.batch_size
    tables = prepared(tasks, given.episodes, given.seed, draws, given.scratch)
    folder = scratch / f"view-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    view.build(*(tables / part for part in ("episodes", "captions", "plan")), folder, config)
    return Bench(
        Data(tables, folder), tasks, config, given.steps, given.trial_steps, scratch,
        Journal(scratch / f"{name}.jsonl"),
    )  # fmt: skip


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Choose on the development tasks, then score."""
    values = params.load(ROOT / "params.yaml")["pretraining"]
    values |= {"preset": "small", "processes": 1, "batch_size": given.batch_size, "model": MODEL}
    config = Config.model_validate(values)
    settings = {k: v for k, v in vars(given).items() if k not in ("seeds", "trials", "scratch")}
    digest = hashlib.sha256(json.dumps([settings, values], sort_keys=True).encode()).hexdigest()
    scratch = given.scratch / digest[:12]
    tuning = opened(given.tune_tasks, given, config, scratch, "tuning")
    best = chosen(tuning, given.chunk_steps, TUNING_SEED + given.seed, given.tune_scenes)
    print(f"chosen: {best}", file=sys.stderr, flush=True)
    bench = opened(given.tasks, given, config, scratch, "scored")
    scenes = -(-given.trials // (given.seeds * len(given.tasks)))
    pair = best["event"], best["chunk"]
    seeds = range(given.seed, given.seed + given.seeds)
    for seed in seeds:
        hold(bench, seed, pair, scenes)
    rows = [row for row in bench.journal.rows.values() if row["seed"] in seeds]
    event, chunk = map(name_of, pair)
    success = [figures.by_seed(rows, name, "success").values() for name in (event, chunk)]
    return (
        {"tasks": given.tasks, "trials_per_arm": sum(row["arm"] == event for row in rows)}
        | figures.compared(rows, event, chunk)
        | {
            "success_event": round(float(np.mean(list(success[0]))), 3),
            "success_chunk": round(float(np.mean(list(success[1]))), 3),
            "event": event,
            "chunk": chunk,
            "tune_tasks": given.tune_tasks,
            "tuning": best["progress"],
        }
    )


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first training seed; recordings'")
    parser.add_argument("--seeds", type=int, default=10, help="how many training seeds")
    parser.add_argument("--trials", type=int, default=180, help="an arm, all seeds together")
    parser.add_argument("--tasks", nargs="+", default=SCORED)
    parser.add_argument("--tune-tasks", nargs="+", default=TUNE)
    parser.add_argument("--episodes", type=int, default=25, help="recorded of each task")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--chunk-steps", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--tune-scenes", type=int, default=6, help="of each development task")
    parser.add_argument("--trial-steps", type=int, default=200, help="a trial ends, control steps")
    parser.add_argument(
        "--scratch", type=Path, default=ROOT / ".wamflow/event_vs_chunk",
        help="recordings, checkpoints and results; a run that was interrupted goes on from there",
    )  # fmt: skip
    given = parser.parse_args()
    if both := set(given.tasks) & set(given.tune_tasks):
        parser.error(f"{sorted(both)} are scored and tuned on; name others in one of the lists")
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory(prefix="wamflow-claim-") as name:
        dist.init_process_group("gloo", init_method=f"file://{name}/meet", rank=0, world_size=1)
        found = measured(given)
        dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
