"""A policy without a network for tests: goes in a straight line to the point that a prompt names.

`python -m tests.scripted_policy FOLDER ...` serves it like a checkpoint. `FOLDER/policy.json` maps
each prompt to `[x, y, z, gripper effort]` (metres, -1..1), with `horizon`, `step_m` and `delay_s`
beside them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import DataError
from components.serving.__main__ import exit_now, main


class ScriptedPolicy:
    """Deterministic: equal observations give equal actions."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.requests = 0
        self.metadata = {"policy": "scripted", "targets": len(script["targets"])}
        self.metadata |= {"model_digest": script["digest"]} if script["digest"] else {}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.script["delay_s"])
        self.requests += 1
        mark, dies_at = Path(self.script["dies_once"]), self.script["dies_at"]
        if self.requests == dies_at and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if observation["prompt"] == "crash":
            raise RuntimeError("a secret of the server")
        if observation["prompt"] not in self.script["targets"]:
            raise DataError(f"prompt {observation['prompt']!r}: expected one of the script's.")
        *target, effort = self.script["targets"][observation["prompt"]]
        gap_m = np.asarray(target, np.float32) - observation["observation/state"][:3]
        remaining = int(np.ceil(np.abs(gap_m).max() / self.script["step_m"]))
        steps = max(1, min(self.script["horizon"], remaining))
        actions = np.empty((steps, 4), np.float32)
        actions[:, :3] = np.clip(gap_m / max(remaining, 1) / 0.01, -1, 1)
        actions[:, 3] = effort
        return {
            "actions": actions,
            "event_remaining": remaining,
            "seed": observation.get("seed", -1),
        }


def load(folder: Path, embodiment: str | None) -> ScriptedPolicy:
    return ScriptedPolicy(json.loads((folder / "policy.json").read_text()))


def write(
    folder: Path,
    targets: dict[str, list[float]],
    delay_s: float = 0.0,
    dies_once: Path | None = None,
    dies_at: int = 10,
    digest: str = "",
) -> Path:
    """A script as `load` reads it; `dies_once` marks that it died at request `dies_at`.

    `digest` is what it says of its model, if anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = {"targets": targets, "horizon": 40, "step_m": 0.006, "delay_s": delay_s}
    script |= {"dies_once": str(dies_once), "dies_at": dies_at if dies_once else 0}
    script |= {"digest": digest}
    (folder / "policy.json").write_text(json.dumps(script))
    return folder


if __name__ == "__main__":
    exit_now(main(sys.argv[1:], load))
