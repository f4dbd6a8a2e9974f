"""What training leaves behind: its log, the checkpoint folder and the report."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from components import records, report, tracking
from components.outputs import write_json, write_table
from components.pretraining.stage import Report
from models.muon import describe, split

if TYPE_CHECKING:
    from components.pretraining.worker import Training

TERMS = ("loss", "action", "video", "left", "gradient_norm")


class Log:
    """Progress of rank 0: a rate-limited line, and wandb in the report. Other ranks are silent."""

    def __init__(self, training: Training, start: int) -> None:
        self.training, self.start = training, start
        self.began = self.last_line = time.monotonic()
        self.run: tracking.Run | None = None

    def __enter__(self) -> Log:
        if self.training.rank == 0:
            print(
                f"pretraining: {self.training.windows.steps} steps from step {self.start}; "
                f"{describe(self.training.model)}; {self.training.muon.shares()}",
                flush=True,
            )
            self.run = tracking.start(
                "wamflow",
                "pretraining",
                self.training.config.model_dump(),
                report.folder("pretraining"),
            )
        return self

    def after(self, step: int) -> None:
        """Log one step; a line every 10 seconds and at the end."""
        if self.run is None:
            return
        terms = dict(zip(TERMS, self.training.curve[step].tolist(), strict=True))
        self.run.log(terms, step=step)
        now, steps = time.monotonic(), self.training.windows.steps
        if now - self.last_line > 10 or step + 1 == steps:
            self.last_line = now
            rate = (step + 1 - self.start) / (now - self.began)
            print(
                f"step {step + 1}/{steps} loss {terms['loss']:.4f} action {terms['action']:.4f} "
                f"video {terms['video']:.4f} {rate:.2f} steps/s", flush=True
            )  # fmt: skip

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.run is not None:
            self.run.finish()
            write_json(
                report.folder("pretraining") / "speed.json",
                {"seconds": time.monotonic() - self.began, "from_step": self.start},
            )


def write(training: Training, out: Path) -> None:
    """The checkpoint folder: averaged weights, resolved configuration, receipt, curve, report."""
    info, config = training.windows.info, training.config
    save_file(
        {n: t.contiguous().cpu() for n, t in training.average.items()}, out / "model.safetensors"
    )
    write_json(
        out / "config.json",
        {
            "shape": training.model.shape.as_dict(),
            "cameras": info["cameras"],
            "embodiments": info["embodiments"],
            "text_encoder": _text_encoder(),
            "pretraining": config.model_dump(mode="json"),
        },
    )
    write_json(out / "normalisation.json", info["normalisation"])
    write_json(out / "event_plans.json", info["event_plans"])
    drawn = training.exposure.numpy()
    _write_exposure(out / "exposure.parquet", info, training.windows.arrays["event_draws"], drawn)
    write_json(
        out / "receipt.json",
        {
            "plan_sha256": info["receipt"]["plan_sha256"],
            "planned_draws": int(training.windows.arrays["event_draws"].sum()),
            "draws": int(drawn.sum()),
            "steps": training.windows.steps,
            "batch_size": config.batch_size,
            "world_size": training.world_size,
            "device": config.device,
        },
    )
    curve = training.curve.numpy()
    columns: dict[str, Any] = {"step": np.arange(len(curve))}
    columns |= {name: curve[:, i] for i, name in enumerate(TERMS)}
    write_table(out / "losses.parquet", pa.table(columns))
    (out / "report.json").write_text(_report(training, curve).model_dump_json())


def _report(training: Training, curve: np.ndarray) -> Report:
    part = max(1, len(curve) // 20)
    hidden, rest = split(training.model)
    return Report(
        steps=len(curve),
        draws=int(training.exposure.sum()),
        parameters=sum(p.numel() for p in (*hidden.values(), *rest.values())),
        muon_parameters=sum(p.numel() for p in hidden.values()),
        loss_first=float(curve[:part, 0].mean()),
        loss_last=float(curve[-part:, 0].mean()),
        action_loss_first=float(curve[:part, 1].mean()),
        action_loss_last=float(curve[-part:, 1].mean()),
        validation_action_loss=_validation(training),
        plan_sha256=training.windows.info["receipt"]["plan_sha256"],
    )


@torch.no_grad()
def _validation(training: Training) -> float | None:
    """Action loss of the averaged weights on whole held-out events, one fixed noise draw."""
    batch = training.windows.validation()
    if batch is None:
        return None
    training.model.load_state_dict(training.average)
    random = torch.Generator().manual_seed(training.config.seed)
    return float(training.model.losses(batch.to(training.device), random).action)


def _text_encoder() -> dict[str, str]:
    from components import sentences

    return {"package": sentences.PACKAGE, "sha256": sentences.DIGEST}


def _write_exposure(
    path: Path, info: dict[str, Any], planned: np.ndarray, drawn: np.ndarray
) -> None:
    rows: list[dict[str, object]] = [
        {"event_id": event, "episode_id": episode, "planned_draws": int(p), "draws": int(d)}
        for event, episode, p, d in zip(
            info["event_ids"], info["episode_ids"], planned, drawn, strict=True
        )
    ]
    records.write(path, rows, records.EXPOSURE, sort_by="event_id")
