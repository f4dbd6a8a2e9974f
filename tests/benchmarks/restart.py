"""Kill and stop trainings at random steps, resume, and compare with an undisturbed one.

A project of its own holds a tiny training as its one stage, run by bare `dvc repro` or by the flow
(tests start the stage itself, which is quicker).
Each training meets some disturbances, each at a random step: SIGKILL for one rank or for all, or
SIGTERM for whoever started it (the stage under `dvc repro`, the flow). A flow goes on by itself
after a kill; everything else is started again. What comes out must have the same bytes, and no
disturbance may cost more than `checkpoint_every` steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from components.outputs import sha256_folder
from tests.conftest import copy_checkout, first_commit
from tests.made_training import VALUES, write

EVERY, PATIENCE_S = 6, 300.0
STAGE_COMMAND = ["-m", "components", "pretraining"]
STAGE_COMMAND += [
    "tiny/episodes",
    "tiny/captions",
    "tiny/plan",
    "tiny/init.json",
    "data/checkpoint",
]
STAGE = f"""stages:
  pretraining:
    cmd: python {" ".join(STAGE_COMMAND)}
    deps: [components, models, tiny/episodes, tiny/captions, tiny/plan, tiny/init.json]
    params: [pretraining]
    outs: [data/checkpoint]
    metrics: [metrics/pretraining.json: {{cache: false}}]
    meta: {{pod: cpu}}
"""
STEP, START = re.compile(r"\bstep (\d+)/(\d+) loss"), re.compile(r"steps from step (\d+);")


@dataclass
class Disturbance:
    """What is done at a step, and what it cost."""

    kind: str  # SIGKILL of "one" or "all" ranks, or "stop", SIGTERM
    step: int = -1  # the last that was done
    lost: int = -1  # steps done again


class Attempt:
    """One process of ours, and what it says."""

    def __init__(self, project: Path, by: str) -> None:
        self.project, self.by, self.log = project, by, project.parent / "log.txt"
        command = {
            "dvc": ["-m", "dvc", "repro", "pretraining"],
            "stage": STAGE_COMMAND,
            "flow": ["-m", "flows.cli", "run", "--json"],
        }[by]
        settings = {"WAMFLOW_LINE_EVERY_S": "0", "WANDB_MODE": "disabled", "WAMFLOW_RETRY_S": "0.1"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=project,
                env=os.environ | settings | {"PATH": path, "PYTHONPATH": ""},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def starts(self) -> list[int]:
        """Where each training of this process began."""
        return [int(step) for step in START.findall(self.said())]

    def steps(self) -> list[int]:
        """Steps done since the last start."""
        begun = self.said().rpartition("steps from step")[2]
        return [int(step) for step, _ in STEP.findall(begun)]

    def wait_for(self, starts: int, step: int) -> bool:
        """Until the training that began as the `starts`th has done `step`; False when it ended."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if len(self.starts()) >= starts and (self.steps() or [-1])[-1] >= step:
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        raise TimeoutError(f"{self.log}: no step {step} in {PATIENCE_S:.0f} s")

    def ranks(self) -> list[psutil.Process]:
        return [p for p in self._family() if _is(p, "components.pretraining.worker")]

    def stage(self) -> list[psutil.Process]:
        return [p for p in self._family() if _is(p, "components")]

    def _family(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            for left in self._family():
                left.kill()


def _is(process: psutil.Process, module: str) -> bool:
    """Whether a process runs `python -m module`."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(words[i : i + 2] == ["-m", module] for i in range(len(words))) and (
        "torch.distributed.run" not in words
    )


def disturb(attempt: Attempt, what: Disturbance, starts: int, chance: random.Random) -> bool:
    """Let it train to a random step and strike; False when the training ended before."""
    if not attempt.wait_for(starts, 0):
        return False
    total, first = int(STEP.findall(attempt.said())[-1][1]), attempt.starts()[-1] + 1
    if first >= total or not attempt.wait_for(starts, chance.randint(first, total - 1)):
        return False
    time.sleep(chance.random() * 0.05)
    if what.kind == "stop":
        stopped = [psutil.Process(attempt.process.pid)] if attempt.by == "flow" else attempt.stage()
        struck, number = stopped[:1], signal.SIGTERM
    else:
        ranks = attempt.ranks()
        struck, number = ranks if what.kind == "all" else chance.sample(ranks, 1), signal.SIGKILL
    for process in struck:
        process.send_signal(number)
    return bool(struck)


def train(project: Path, by: str, plan: list[Disturbance], seed: int) -> str:
    """Train through all disturbances to the end; the digest of what came out."""
    chance, attempt, begun = random.Random(seed), Attempt(project, by), 1
    for what in plan:
        if not disturb(attempt, what, begun, chance):
            break
        if by == "flow" and what.kind != "stop":
            attempt.wait_for(begun + 1, -1)  # the flow itself starts the stage again
        else:
            attempt.end()
        what.step = _last_step(attempt, begun)
        if attempt.process.poll() is None:
            begun += 1
        else:
            attempt, begun = Attempt(project, by), 1
            attempt.wait_for(begun, -1)
        what.lost = what.step - attempt.starts()[-1]
    if code := attempt.end():
        raise RuntimeError(f"{by} ended with {code}: {attempt.said()[-3000:]}")
    where = project
    if by == "flow":
        said = attempt.said()
        where = Path(json.loads(said[said.index("\n{\n") :])["worktree"])
    return sha256_folder(where / "data/checkpoint")


def _last_step(attempt: Attempt, begun: int) -> int:
    """The last step that was done in the `begun`th training of a process."""
    part = attempt.said().split("steps from step")[begun]
    done = STEP.findall(part)
    return int(done[-1][0]) if done else int(part.split(";")[0])


@contextmanager
def projects(by: str) -> Iterator[Any]:
    """A function that makes a fresh project, alone in its folder."""
    with tempfile.TemporaryDirectory(prefix="wamflow-restart-") as name, _server(by, Path(name)):
        template = copy_checkout(Path(name) / "template" / "wamflow")
        shutil.rmtree(template / "tests")
        (template / "tiny").mkdir()
        write(template / "tiny")
        (template / "dvc.yaml").write_text(STAGE)
        values = yaml.safe_load((template / "params.yaml").read_text())
        values["ingestion"]["sources"] = [str(template / "tiny/plan")]  # listed, not read
        values["pretraining"] = VALUES | {"checkpoint_every": EVERY}
        (template / "params.yaml").write_text(yaml.safe_dump(values))
        first_commit(template)
        count = iter(range(10**6))

        def fresh() -> Path:
            folder = Path(name) / str(next(count)) / "wamflow"
            return Path(shutil.copytree(template, folder))

        yield fresh


@contextmanager
def _server(by: str, folder: Path) -> Iterator[None]:
    """One Prefect server for all flows."""
    from flows import server

    with _environment(server, folder) if by == "flow" else nullcontext():
        yield


@contextmanager
def _environment(server: Any, folder: Path) -> Iterator[None]:
    before = dict(os.environ)
    server.environment(folder)
    os.environ.pop("PREFECT_API_URL", None)
    try:
        with server.reached(folder) as url:
            os.environ["PREFECT_API_URL"] = url
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(by: str, kills: int, stops: int, per_training: int, seed: int) -> dict[str, Any]:
    """Figures of one way of running."""
    chance = random.Random(f"{by} {seed}")
    plan = [Disturbance(("one", "all")[i % 2]) for i in range(kills)]
    plan += [Disturbance("stop") for _ in range(stops)]
    chance.shuffle(plan)
    done, digests = [], []
    with projects(by) as fresh:
        expected = train(fresh(), by, [], seed)
        while plan:
            part, plan = plan[:per_training], plan[per_training:]
            project = fresh()
            digests.append(train(project, by, part, chance.randrange(2**31)))
            print(f"{by}: {part}, equal: {digests[-1] == expected}", file=sys.stderr)
            shutil.rmtree(project.parent)
            done += [d for d in part if d.lost >= 0]
            plan += [d for d in part if d.lost < 0]  # the training ended before they came
    return {
        "kills": sum(d.kind != "stop" for d in done),
        "stops": sum(d.kind == "stop" for d in done),
        "trainings": len(digests),
        "bit_equal": sum(d == expected for d in digests),
        "steps_lost_by_kills": max((d.lost for d in done if d.kind != "stop"), default=None),
        "steps_lost_by_stops": max((d.lost for d in done if d.kind == "stop"), default=None),
        "checkpoint_every": EVERY,
    }


def main() -> None:
    """Print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="half through dvc, half the flow")
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--per-training", type=int, default=4, help="disturbances of each training")
    parser.add_argument("--by", choices=["dvc", "flow", "both"], default="both")
    given = parser.parse_args()
    ways = ["dvc", "flow"] if given.by == "both" else [given.by]
    share = len(ways)
    figures = {
        by: measure(by, given.kills // share, given.stops // share, given.per_training, given.seed)
        for by in ways
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
