"""Collects closed-loop trials with worker processes; each has a station and a policy server.

A row depends on its trial alone, never on the worker or on what it did before; what has a clock in
it goes to the journal's log.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import DataError, TemporaryError
from components.serving.client import PolicyClient
from components.serving.process import die_with_parent, served
from components.stations.station import Station
from components.trials import actors, loop
from components.trials.journal import Journal
from components.trials.pictures import SHEETS_PER_TASK, Film
from components.trials.settings import Config, Trial

PROGRESS_S = 10.0
Row = dict[str, Any]


class Job(NamedTuple):
    """What a worker needs besides an address; goes over to it once."""

    make_station: Callable[[], Station]
    config: Config
    plans: dict[str, list[str]]
    checkpoint_digest: str
    folder: Path


def collect(
    job: Job,
    trials: Sequence[Trial],
    command: Sequence[str],
    workers: int,
    look: Callable[[PolicyClient], None] = lambda client: None,
) -> list[Row]:
    """Hold what the journal in `job.folder` lacks; rows of all trials, in the list's order.

    `command` starts a policy server; `look` may ask the first one before trials begin. What was
    finished before an error stays in the journal. TemporaryError when a server or worker ends on
    the way, DataError when a server has another model, and whatever a trial raises.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(job.folder / "journal.jsonl")
    journal.keep(expected(trials, job))
    open_trials = [trial for trial in trials if trial.number not in journal.rows]
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        addresses = context.SimpleQueue()
        for number in range(min(workers, len(open_trials))):
            log = job.folder / f"server-{number}.log"
            address = stack.enter_context(served(command, log))
            _check_model(address, job.checkpoint_digest)
            if number == 0:
                with PolicyClient(address) as client:
                    look(client)
            addresses.put(address)
        if open_trials:
            pool = ProcessPoolExecutor(
                min(workers, len(open_trials)), context, _open, (job, addresses, os.getpid())
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            _gather(pool, open_trials, filmed(trials), journal, len(trials))
    return [journal.rows[trial.number] for trial in trials]


def expected(trials: Sequence[Trial], job: Job) -> dict[int, Row]:
    """For each trial's number, what a row of it says before anything happens."""
    sentences = job.make_station().tasks
    return {
        trial.number: {
            "task": sentences[trial.task],
            "policy": trial.policy,
            "seed": trial.seed,
            "checkpoint_digest": job.checkpoint_digest,
        }
        for trial in trials
    }


def _check_model(address: str, digest: str) -> None:
    """DataError when a server has another model; what a worker raises at its start is lost."""
    with PolicyClient(address) as client:
        got = client.metadata.get("model_digest", digest)
    if got != digest:
        raise DataError(
            f"policy server {address}: expected model {digest}; got {got}. "
            "Serve the checkpoint that is tried."
        )


def filmed(trials: Sequence[Trial]) -> set[int]:
    """Numbers of the trials that people get to see: the model's first of each task."""
    seen: dict[str, list[int]] = {}
    for trial in trials:
        if trial.policy == "model":
            seen.setdefault(trial.task, []).append(trial.number)
    return {number for numbers in seen.values() for number in numbers[:SHEETS_PER_TASK]}


def _gather(
    pool: ProcessPoolExecutor,
    trials: Sequence[Trial],
    films: set[int],
    journal: Journal,
    total: int,
) -> None:
    """Write down each trial as it ends; say how far it is, at most every PROGRESS_S."""
    said_s = time.monotonic()
    running = [pool.submit(_hold, trial, trial.number in films) for trial in trials]
    try:
        for ended in as_completed(running):
            journal.add(*ended.result())
            if time.monotonic() - said_s > PROGRESS_S:
                said_s = time.monotonic()
                print(f"trials: {len(journal.rows)} of {total}", flush=True)
    except BrokenProcessPool as error:
        raise TemporaryError(
            "trials: a worker process ended on the way (out of memory, or killed); "
            "run again, finished trials are kept."
        ) from error


class _Bench(NamedTuple):
    """A worker's station and actors."""

    job: Job
    station: Station
    actors: dict[str, actors.Actor]


_benches: list[_Bench] = []  # one in each worker


def _open(job: Job, addresses: Any, parent: int) -> None:
    """Set a worker up; its station and connection stay for all its trials."""
    die_with_parent(parent)
    station, config = job.make_station(), job.config
    width = len(station.action_names)
    client = PolicyClient(addresses.get())
    _benches.append(
        _Bench(
            job,
            station,
            {
                "model": actors.Model(config, width, client, job.plans),
                "hold_still": actors.HoldStill(config, width),
                "random": actors.Random(config, width),
            },
        )
    )


def _hold(trial: Trial, film: bool) -> tuple[Row, dict[str, Any]]:
    """One trial in a worker: its row, and what has a clock in it."""
    job, station, cast = _benches[0]
    actor, camera = cast[trial.policy], Film(station) if film else None
    started, start_s = datetime.now(UTC), time.monotonic()
    max_steps = round(job.config.max_trial_s * station.fps)
    outcome = loop.hold(station, actor, trial, max_steps, camera or (lambda step: None))
    if camera:
        name = f"{trial.number:04d}-{trial.task}-{'success' if outcome.success else 'failure'}.png"
        camera.save(job.folder / "pictures" / name)
    log = {
        "started": started.isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - start_s, 3),
        "latencies_ms": [round(ms, 1) for ms in getattr(actor, "latencies_ms", [])],
        "host": platform.node(),
        "process": os.getpid(),
    }
    return row(trial, job, station, outcome), log


def row(trial: Trial, job: Job, station: Station, outcome: loop.Outcome) -> Row:
    """A row of trials.parquet (`components.records.TRIALS`)."""
    return {
        "trial": trial.number,
        "station": job.config.station,
        "task": station.tasks[trial.task],
        "policy": trial.policy,
        "seed": trial.seed,
        "success": outcome.success,
        "steps": outcome.steps,
        "error": None,
        "events": json.dumps(outcome.events),
        "checkpoint_digest": job.checkpoint_digest,
    }
