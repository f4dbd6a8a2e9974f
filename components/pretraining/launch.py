"""Starts the workers with torchrun and turns what became of them into our failures.

On one machine torchrun gets a world of its own on loopback; in a gang of pods it reads its world
from `PET_*` variables, which the pod manifest sets.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from components import errors
from components.outputs import sha256
from components.pretraining.initial import Initial, digests
from components.pretraining.stage import Config

CODE = Path(__file__).parents[2]
NO_MATTER = {"checkpoint_every", "keep_checkpoints", "timeout_s"}  # to what is computed
PR_SET_PDEATHSIG = 1


def is_first_node() -> bool:
    """Whether this pod writes the outputs; true on a single machine."""
    return os.environ.get("PET_NODE_RANK", "0") == "0"


def state_key(captions: Path, plan: Path, episodes: Path, config: Config, initial: Initial) -> str:
    """Name of this training's folder in the checkpoint store: a digest of all that shapes it."""
    parts = {
        "plan": sha256(plan / "plan.parquet"),
        "captions": sha256(captions / "captions.parquet"),
        "episodes": sha256(episodes / "manifest.parquet"),
        "robots": [sha256(path) for path in sorted(episodes.glob("*/meta/info.json"))],
        "config": config.model_dump(mode="json", exclude=NO_MATTER),
        "initial": digests(initial),
        "code": [
            hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("models", "components/pretraining", "components")
            for path in sorted((CODE / folder).glob("*.py"))
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def torchrun(view: Path, key: str, out: Path | None, config: Config) -> None:
    """Run the workers to their end; SIGTERM and SIGINT are passed on, so they save their state.

    Errors: the workers' own failure, by the class they left in their failure file.
    """
    job = {"view": str(view), "key": key, "out": str(out) if out else None}
    with tempfile.TemporaryDirectory(prefix="wamflow-workers-") as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job | {"config": config.model_dump()}))
        failure = Path(folder) / "failure.json"
        worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                f"--log-dir={folder}",  # else a folder of each training stays in /tmp
                *_world(config),
                "-m",
                "components.pretraining.worker",
                folder,
            ],
            env=_environment(failure),
            preexec_fn=die_with_parent,  # noqa: PLW1509  two trainings must not share a store
        )
        _wait(worker)
        if worker.returncode:
            raise _failure(failure, worker.returncode)


def die_with_parent() -> None:
    """This process is killed as soon as the one that started it is gone, however that happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _world(config: Config) -> list[str]:
    if "PET_NNODES" in os.environ:
        return []  # torchrun reads PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_*
    return ["--standalone", f"--nproc-per-node={config.processes}", "--local-addr=127.0.0.1"]


def _environment(failure: Path) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "WAMFLOW_FAILURE": str(failure), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if "PET_NNODES" not in os.environ:
        own["GLOO_SOCKET_IFNAME"] = "lo"
    return os.environ | own | {"PYTHONPATH": str(CODE)}


def _wait(worker: subprocess.Popen[bytes]) -> None:
    """Wait for torchrun; a signal to us goes to it, once, and it ends its workers."""

    def pass_on(number: int, _: FrameType | None) -> None:
        worker.send_signal(number)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        worker.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if worker.poll() is None:
            worker.kill()


def _failure(path: Path, code: int) -> errors.WamflowError:
    if not path.exists():
        return errors.TemporaryError(
            f"pretraining: torchrun ended with {code} and no worker said why, so they were killed "
            "(memory, or by hand); see the log above. Run again to go on from the last state."
        )
    failure = json.loads(path.read_text())
    kinds = {kind.__name__: kind for kind in errors.WamflowError.__subclasses__()}
    return kinds.get(failure["type"], errors.WamflowError)(failure["message"])
