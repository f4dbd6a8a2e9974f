"""`python -m components.trials CHECKPOINT EPISODES CAPTIONS PLAN OUT`: collect trials.

Values come from the section `trials` of `params.yaml` in the current folder. OUT gets
`trials.parquet`, and beside it what has a clock (journal, server logs) and what people look at
(pictures). A second call after a kill goes on from OUT's journal. EPISODES, CAPTIONS and PLAN are
read in replay only.
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from components import outputs, params, records
from components.__main__ import crashed, failed
from components.errors import StoppedError, WamflowError
from components.serving.process import command
from components.trials import settings


def collect(chosen: argparse.Namespace) -> Path:
    """The table of trials, in `chosen.out`."""
    config = params.section(params.load(Path("params.yaml")), "trials", settings.Config)
    station = settings.station_for(config, chosen.checkpoint)
    digest = outputs.sha256(chosen.checkpoint / "model.safetensors")
    gather = _replay if station == "replay" else _act
    rows = gather(chosen, config, digest)
    table: Path = chosen.out / "trials.parquet"
    records.write(table, rows, records.TRIALS, "trial")
    return table


def _act(
    chosen: argparse.Namespace, config: settings.Config, digest: str
) -> list[dict[str, object]]:
    """Closed loop on the station."""
    from components.serving.client import PolicyClient
    from components.stations.metaworld import MetaworldStation
    from components.stations.recording import EVALUATION_SEEDS
    from components.trials import expected
    from components.trials.collection import Job, collect

    plans = settings.read_plans(chosen.checkpoint)
    tasks = settings.chosen_tasks(config, dict(MetaworldStation.tasks), plans)
    trials = settings.schedule(config, tasks, EVALUATION_SEEDS)
    sees = settings.embodiments(chosen.checkpoint)[MetaworldStation.embodiment]["cameras"]
    station = partial(MetaworldStation, cameras=tuple(sees))
    job = Job(station, config, plans, digest, chosen.out)
    server = command(chosen.checkpoint, MetaworldStation.embodiment)

    def look(client: PolicyClient) -> None:
        expected.save(chosen, config, {MetaworldStation.embodiment: client})

    return collect(job, trials, server, chosen.workers, look)


def _replay(
    chosen: argparse.Namespace, config: settings.Config, digest: str
) -> list[dict[str, object]]:
    """Open loop against recordings; no robot moves."""
    from contextlib import ExitStack

    from components.serving.client import PolicyClient
    from components.serving.process import served
    from components.trials import expected, replay

    print("trials: no station has this robot; replaying recordings open loop", flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    recordings = replay.read(
        chosen.episodes, chosen.captions, chosen.plan, chosen.checkpoint, config
    )
    with ExitStack() as stack:
        addresses = {}
        for robot in sorted({event.episode.embodiment for event in recordings}):
            start = served(command(chosen.checkpoint, robot), chosen.out / f"server-{robot}.log")
            addresses[robot] = stack.enter_context(start)
        with ExitStack() as first:
            connected = {r: first.enter_context(PolicyClient(a)) for r, a in addresses.items()}
            expected.save(chosen, config, connected)
        clients = {r: stack.enter_context(PolicyClient(a)) for r, a in addresses.items()}
        return replay.replay(recordings, clients, config, digest)


def stop_on_sigterm() -> None:
    """SIGTERM ends the collection in good order; finished trials are kept."""

    def stop(number: int, frame: object) -> None:
        raise StoppedError("trials: stopped by a signal; run again to go on with the rest.")

    signal.signal(signal.SIGTERM, stop)


def main(arguments: list[str]) -> int:
    """Exit code by the class of a failure (`components/errors.py`)."""
    parser = argparse.ArgumentParser(prog="python -m components.trials", description=__doc__)
    for name in ("checkpoint", "episodes", "captions", "plan", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    chosen = parser.parse_args(arguments)
    stop_on_sigterm()
    try:
        print(f"trials: {collect(chosen)}")
    except WamflowError as error:
        return failed(error)
    except Exception as error:
        return crashed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
