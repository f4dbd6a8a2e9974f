"""What rank 0 says while it trains: lines, wandb, and afterwards its speed, all in the report.

`WAMFLOW_LINE_EVERY_S` sets how often there is a line `step N/M ...`, a flow's source of progress.
"""

from __future__ import annotations

import os
import time
from types import TracebackType

from components import report, tracking
from components.outputs import write_json
from components.pretraining.batches import Batches
from components.pretraining.training import Training
from models.muon import describe

LINE_EVERY_S = float(os.environ.get("WAMFLOW_LINE_EVERY_S", "10"))


class Log:
    """Lines at most every 10 seconds, and one wandb run for all attempts at a training.

    Other ranks are silent.
    """

    def __init__(self, training: Training, batches: Batches, key: str) -> None:
        self.training, self.batches, self.key = training, batches, key
        self.began = self.last_line = time.monotonic()
        self.run: tracking.Run | None = None
        self.steps = 0

    def __enter__(self) -> Log:
        if self.training.rank == 0:
            print(
                f"pretraining: {self.training.windows.steps} steps from step {self.batches.start}; "
                f"{describe(self.training.model)}; {self.training.muon.shares()}",
                flush=True,
            )
            config, folder = self.training.config.model_dump(), report.folder("pretraining")
            self.run = tracking.start("wamflow", "pretraining", config, folder, run_id=self.key)
        return self

    def after(self, step: int) -> None:
        """Log one step; a line now and then, and at the end."""
        if self.run is None:
            return
        self.steps += 1
        terms = dict(zip(self.training.columns, self.training.curve[step].tolist(), strict=True))
        self.run.log(terms, step=step)
        now, steps = time.monotonic(), self.training.windows.steps
        if now - self.last_line > LINE_EVERY_S or step + 1 == steps:
            self.last_line = now
            rate = self.steps / (now - self.began)
            said = " ".join(f"{n} {terms[n]:.4f}" for n in ("loss", *self.training.model.terms))
            print(f"step {step + 1}/{steps} {said} {rate:.2f} steps/s", flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.run is None:
            return
        self.run.finish()
        seconds, steps = time.monotonic() - self.began, self.steps
        windows = steps * self.training.config.batch_size
        write_json(
            report.folder("pretraining") / "speed.json",
            {
                "from_step": self.batches.start,
                "steps": steps,
                "seconds": seconds,
                "windows_per_s": windows / seconds,
                "waited_for_data_share": self.batches.waited_s / seconds,
            },
        )
