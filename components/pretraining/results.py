"""What training leaves behind: the checkpoint folder and the report."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from components import records
from components.outputs import write_json
from components.pretraining import placement
from components.pretraining.stage import Report
from components.pretraining.training import CURVE, SKIPPED, Training
from models.muon import split


def write(training: Training, out: Path | None) -> None:
    """The checkpoint folder: averaged weights, resolved configuration, receipt, curve, report.

    All ranks must call, since a sharded model is whole on none of them; only rank 0 writes.
    """
    weights = {n: placement.full(t).contiguous().cpu() for n, t in training.average.items()}
    validation = _validation(training)
    if training.rank == 0 and out is not None:
        save_file(weights, out / "model.safetensors")
        _write(training, validation, out)


def _write(training: Training, validation: float | None, out: Path) -> None:
    info, config = training.windows.info, training.config
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
    drawn = training.drawn.numpy()
    _write_exposure(out / "exposure.parquet", info, training.windows.arrays["event_draws"], drawn)
    _write_clusters(out / "clusters.csv", training)
    write_json(
        out / "receipt.json",
        {
            "plan_sha256": info["receipt"]["plan_sha256"],
            "planned_draws": int(training.windows.arrays["event_draws"].sum()),
            "draws": int(drawn[0].sum()),
            "skipped_draws": int(drawn[1].sum()),
            "steps": training.windows.steps,
            "skipped_steps": int(training.curve[:, SKIPPED].sum()),
            "batch_size": config.batch_size,
            "world_size": training.world_size,
            "device": config.device,
        },
    )
    curve = training.curve.numpy()
    numbers = [[f"{value:.7g}" for value in row] for row in curve.tolist()]
    _write_csv(out / "curve.csv", ("step", *CURVE), list(enumerate(numbers)))
    report = _report(training, curve, validation)
    (out / "report.json").write_text(report.model_dump_json())


def _report(training: Training, curve: np.ndarray, validation: float | None) -> Report:
    good = curve[curve[:, SKIPPED] == 0]
    part = max(1, len(good) // 20)
    hidden, rest = split(training.model)
    return Report(
        steps=len(curve),
        skipped_steps=len(curve) - len(good),
        draws=int(training.drawn[0].sum()),
        parameters=sum(p.numel() for p in (*hidden.values(), *rest.values())),
        muon_parameters=sum(p.numel() for p in hidden.values()),
        loss_first=float(good[:part, 0].mean()),
        loss_last=float(good[-part:, 0].mean()),
        action_loss_first=float(good[:part, 1].mean()),
        action_loss_last=float(good[-part:, 1].mean()),
        validation_action_loss=validation,
        packing_efficiency=float(good[:, CURVE.index("packing")].mean()),
        plan_sha256=training.windows.info["receipt"]["plan_sha256"],
    )


@torch.no_grad()
def _validation(training: Training) -> float | None:
    """Action loss of the averaged weights on whole held-out events, one fixed noise draw."""
    batch = training.windows.validation()
    if batch is None:
        return None
    for name, parameter in training.model.named_parameters():
        parameter.copy_(training.average[name])
    random = torch.Generator().manual_seed(training.config.seed)
    return float(training.model.losses(batch.to(training.device), random).action)


def _text_encoder() -> dict[str, str]:
    from components import sentences

    return {"package": sentences.PACKAGE, "sha256": sentences.DIGEST}


def _write_exposure(
    path: Path, info: dict[str, Any], planned: np.ndarray, drawn: np.ndarray
) -> None:
    """Draws that moved the weights, and those of skipped steps, which did not."""
    rows: list[dict[str, object]] = [
        {
            "event_id": event, "episode_id": episode,
            "planned_draws": int(p), "draws": int(d), "skipped_draws": int(s),
        }
        for event, episode, p, d, s in zip(
            info["event_ids"], info["episode_ids"], planned, *drawn, strict=True
        )
    ]  # fmt: skip
    schema = records.EXPOSURE.append(records.SKIPPED_DRAWS)
    records.write(path, rows, schema, sort_by="event_id")


def _write_clusters(path: Path, training: Training) -> None:
    """Draws of each joint cluster, where the plan names clusters."""
    of = training.windows.arrays.get("event_cluster")
    if of is None:
        return
    planned = np.bincount(of, training.windows.arrays["event_draws"]).astype(int)
    drawn = np.bincount(of, training.drawn[0].numpy()).astype(int)
    rows = [
        (c, (p, d)) for c, (p, d) in enumerate(zip(planned.tolist(), drawn.tolist(), strict=True))
    ]
    _write_csv(path, ("cluster", "planned_draws", "draws"), rows)


def _write_csv(path: Path, names: tuple[str, ...], rows: list[tuple[int, Any]]) -> None:
    """Rows (number, values): what `dvc plots` draws."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows((number, *values) for number, values in rows)
