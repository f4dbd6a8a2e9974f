"""One worker: `python -m torch.distributed.run ... -m components.pretraining.worker FOLDER`.

Joins the group, trains (`loop.py`), and leaves the class of a failure where the stage looks for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from components.errors import OutOfSpaceError, TemporaryError, UserError, WamflowError
from components.outputs import is_full_disk
from components.pretraining import chosen, launch, loop
from components.pretraining.stage import Config
from components.pretraining.training import local_rank

LOST = ("onnection closed", "onnection reset", "onnection refused", "Broken pipe", "Timed out")


def _check_world(config: Config) -> None:
    """The number of workers changes the bytes, so it must be the one that params.yaml says."""
    if dist.get_world_size() != config.processes:
        raise UserError(
            f"pretraining: {dist.get_world_size()} workers were started (nodes x workers of each), "
            f"but pretraining.processes is {config.processes}; make them equal."
        )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are noted and read at the end of a step.

    Before the ranks meet: one that is slow to start must not die of what the others wait for.
    """
    asked: list[int] = []
    before = {
        s: signal.signal(s, lambda number, _: asked.append(number))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _known(error: BaseException, config: Config) -> WamflowError:
    """The failure by its class; what nobody foresaw is a crash."""
    if isinstance(error, WamflowError):
        return error
    if is_full_disk(error):
        return OutOfSpaceError("pretraining: no space left on the disk; make room and run again.")
    if any(word in str(error) for word in LOST):
        return TemporaryError(
            f"pretraining: a worker is gone or did not answer; expected all {config.processes} "
            f"within pretraining.timeout_s ({config.timeout_s:g} s), got: {error}. "
            "Run again to go on from the last state."
        )
    traceback.print_exception(error)
    return WamflowError(f"pretraining: {type(error).__name__}: {error}; see the log above.")


def _leave(failure: WamflowError) -> None:
    """For the stage. A worker that lost another never hides why that one ended."""
    path = Path(os.environ["WAMFLOW_FAILURE"])
    said = json.dumps({"type": type(failure).__name__, "message": str(failure)})
    if isinstance(failure, TemporaryError) and path.exists():
        return
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(said)
    partial.replace(path)


def main(folder: Path) -> int:
    """Read the job, join the group, train; the exit code says the failure's class."""
    launch.die_with_parent()
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    config = Config.model_validate(job["config"])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(config.device == "cpu")
    if config.device == "cuda":
        torch.cuda.set_device(local_rank())
    with _stop_requests() as asked:
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if config.device == "cuda" else "gloo",
                timeout=timedelta(seconds=config.timeout_s),
            )
            _check_world(config)
            loop.train(chosen.windows(Path(job["view"]), config), job, config, asked)
        except (Exception, CheckpointException) as error:
            failure = _known(error, config)
            _leave(failure)
            return failure.exit_code
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that hangs on a disk must not keep the process
