"""Takes its time, in itself and in a worker with a session of its own, as torchrun's workers have.

SIGTERM saves: what was done so far goes to the store, and a new start goes on from there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from components import outputs
from components.errors import DataError, StoppedError, TemporaryError

STEP_S = 0.05


class Config(BaseModel, frozen=True, extra="forbid"):
    seconds: float = Field(ge=0, description="How long it takes, seconds.")
    temporary_failures: int = Field(ge=0, description="Fails so often before it works.")
    failure: Literal["none", "data", "crash", "killed"] = Field(description="How it ends.")


class Report(BaseModel):
    result: float


def run(plan: Path, checkpoint: Path, *, config: Config) -> Report:
    state = Path(os.environ["WAMFLOW_STORE"]) / "miniature.json"
    saved = json.loads(state.read_text()) if state.exists() else {"steps": 0, "failures": 0}
    if saved["failures"] < config.temporary_failures:
        state.write_text(json.dumps(saved | {"failures": saved["failures"] + 1}))
        raise TemporaryError("the network of the miniature failed")
    if config.failure == "data":
        raise DataError("the miniature's data are wrong")
    if config.failure == "crash":
        raise ZeroDivisionError("the miniature crashed")
    if config.failure == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    worker = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    print(f"working for {config.seconds} s", flush=True)
    for step in range(saved["steps"], round(config.seconds / STEP_S)):
        if stop:
            state.write_text(json.dumps(saved | {"steps": step}))
            raise StoppedError(f"stopped after step {step}; saved")
        time.sleep(STEP_S)
    print("step 4/4 loss 0.5", flush=True)
    worker.kill()
    worker.wait()
    result = sum(map(float, (plan / "plan.txt").read_text().split()))
    with outputs.whole_folder(checkpoint) as out:
        (out / "model.txt").write_text(str(result))
    return Report(result=result)
