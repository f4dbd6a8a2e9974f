"""What training leaves behind: the checkpoint folder and the report."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from components import records
from components.errors import DivergedError
from components.outputs import write_json
from components.pretraining import initial as initial_weights
from components.pretraining import placement
from components.pretraining.stage import Report
from components.pretraining.training import SKIPPED, Training
from models.muon import split


def write(training: Training, out: Path | None) -> None:
    """The checkpoint folder: weights, resolved configuration, receipt, curve, report.

    Weights that learned are the averaged ones. All ranks must call, since a sharded model is whole
    on none of them; only rank 0 writes. DivergedError where no step was a good one.
    """
    if training.curve[:, SKIPPED].all():
        raise DivergedError(
            f"pretraining: no good step: all {len(training.curve)} were skipped, so nothing was "
            "learned. Lower pretraining.muon_lr or adamw_lr, or look for bad episodes."
        )
    training.take_average()
    named = training.model.named_parameters()
    weights = {n: placement.full(p.detach()).contiguous().cpu() for n, p in named}
    validation = _validation(training)
    if training.rank == 0 and out is not None:
        save_file(weights, out / "model.safetensors")
        _write(training, validation, out)


def _write(training: Training, validation: dict[str, float] | None, out: Path) -> None:
    info, config = training.windows.info, training.config
    write_json(
        out / "config.json",
        {
            "shape": training.model.shape.as_dict(),
            "cameras": info["cameras"],
            "picture_px": info["picture_px"],
            "embodiments": info["embodiments"],
            "embodiment_ids": info["embodiment_ids"],
            **_encoders(training),
            "initial": info["initial"],
            "pretraining": config.model_dump(mode="json"),
        },
    )
    write_json(out / "normalisation.json", info["normalisation"])
    write_json(out / "event_plans.json", _event_plans(training))
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
    _write_csv(out / "curve.csv", ("step", *training.columns), list(enumerate(numbers)))
    report = _report(training, curve, validation)
    (out / "report.json").write_text(report.model_dump_json())


def _report(training: Training, curve: np.ndarray, validation: dict[str, float] | None) -> Report:
    good = curve[curve[:, SKIPPED] == 0]
    part = max(1, len(good) // 20)
    first, last = (
        dict(zip(training.columns, rows.mean(axis=0, dtype=np.float32).tolist(), strict=True))
        for rows in (good[:part], good[-part:])
    )
    terms = training.model.terms
    hidden, _ = split(training.model)
    return Report(
        steps=len(curve),
        skipped_steps=len(curve) - len(good),
        draws=int(training.drawn[0].sum()),
        parameters=sum(p.numel() for p in training.model.parameters()),
        muon_parameters=sum(p.numel() for p in hidden.values()),
        loss_first=first["loss"],
        loss_last=last["loss"],
        action_loss_first=first.get("action"),
        action_loss_last=last.get("action"),
        validation_action_loss=None if validation is None else validation.get("action"),
        losses_first={name: first[name] for name in terms},
        losses_last={name: last[name] for name in terms},
        validation_losses=validation,
        packing_efficiency=float(good[:, training.columns.index("packing")].mean()),
        plan_sha256=training.windows.info["receipt"]["plan_sha256"],
    )


@torch.no_grad()
def _validation(training: Training) -> dict[str, float] | None:
    """Losses on whole held-out events, one fixed noise draw."""
    batch = training.windows.validation()
    if batch is None:
        return None
    random = torch.Generator().manual_seed(training.config.seed)
    training.model.eval()  # every event counts for the video, too
    found = training.losses(batch.to(training.device), random)
    return {name: float(found[name]) for name in training.model.terms}


def _event_plans(training: Training) -> dict[str, list[str]]:
    """What an agent names one after the other: events or, for a model of whole tasks, the task."""
    plans: dict[str, list[str]] = training.windows.info["event_plans"]
    config = training.config
    whole = config.preset != "small" and config.full.words != "event"
    return {task: [task] for task in plans} if whole else plans


def _encoders(training: Training) -> dict[str, Any]:
    """The frozen encoders by digest, so that whoever acts takes the same."""
    from components import sentences

    config, initial = training.config, training.windows.info["initial"]
    small = {"text_encoder": {"package": sentences.PACKAGE, "sha256": sentences.DIGEST}}
    if config.preset == "small":
        return small
    from components.pretraining import full

    declared = initial_weights.digests(initial)
    models = {part: declared[part] for part in full.language_models(config)}
    if config.full.stage == "staircase":
        return {"encoders": models}
    text = full.text_encoder(config, initial)
    return {
        **({} if "text" in initial else small),
        "text_tokens": full.preset(config).text_tokens,
        "encoders": {"vae": full.codec(config, initial).digest, "text": text.digest} | models,
    }


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
