"""Sampling: how often each event is drawn, written down before training as a receipt.

Training must consume `plan.parquet` and echo its digest and the real draws; so lineage can say how
often a recording reached a model. The weights are in `weights.py`, the split in `split.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from components import outputs, records
from components.errors import DataError

Row = dict[str, Any]
PLAN = pa.schema(  # pretraining needs no other table to find an event
    [
        *records.PLAN,
        *(records.EVENTS.field(name) for name in ("start_s", "end_s", "start_frame", "end_frame")),
        *(records.CLUSTERS.field(name) for name in ("joint_cluster", "action_cluster")),
    ]
)


class Config(BaseModel, frozen=True, extra="forbid"):
    """How draws are spread over events."""

    draws: int = Field(ge=1, description="Draws of the whole training, all ranks together.")
    temperature: float = Field(
        ge=0, le=1, description="1 draws clusters as often as they occur, 0 all equally often."
    )
    balance: Literal["joint", "action", "both"] = Field(
        description="Clusters that are balanced; both: every pair of a joint and an action one."
    )
    idle_weight: float = Field(ge=0, le=1, description="Weight of an idle event against others.")
    flagged_weight: float = Field(
        ge=0, le=1, description="Weight of an event whose action caption failed a check."
    )
    min_event_s: float = Field(ge=0, description="Shorter events are never drawn, seconds.")
    validation_fraction: float = Field(ge=0, lt=1, description="Share of episodes held out.")
    seed: int = Field(ge=0, description="Seed of the split.")


class Report(BaseModel):
    """What is drawn from what."""

    events: int
    train_events: int = Field(description="Events of the train split, drawn or not.")
    drawn_events: int = Field(description="Events with at least one planned draw.")
    validation_events: int
    train_episodes: int
    validation_episodes: int
    cells: int = Field(description="Clusters (or pairs of them) with at least one draw.")
    draws: int
    draws_most: int = Field(description="Draws of the event that is drawn most.")
    draws_by_kind: dict[str, int] = Field(description="Draws by the event's kind.")


def run(events: Path, captions: Path, clusters: Path, plan: Path, *, config: Config) -> Report:
    """Write `plan.parquet` and `receipt.json`.

    DataError when an event has no cluster or no action caption, or nothing is left to draw.
    """
    from components.sampling import split, weights

    inputs = {
        "events": events / "events.parquet",
        "captions": captions / "captions.parquet",
        "clusters": clusters / "clusters.parquet",
    }
    rows = _joined(inputs)
    held = split.validation_episodes(
        {row["episode_id"] for row in rows}, config.validation_fraction, config.seed
    )
    for row in rows:
        row.update(
            split="validation" if row["episode_id"] in held else "train", weight=0.0, draws=0
        )
    train = [row for row in rows if row["split"] == "train"]
    train.sort(key=lambda row: (_cell(row, config.balance), row["event_id"]))
    multipliers = np.array([_multiplier(row, config) for row in train])
    if not multipliers.any():
        raise DataError(_nothing_left(train, config))
    probabilities = weights.balanced(
        [_cell(row, config.balance) for row in train], multipliers, config.temperature
    )
    draws = weights.planned(probabilities, config.draws)
    for row, probability, number in zip(train, probabilities, draws, strict=True):
        row.update(weight=float(probability), draws=int(number))
    report = _report(rows, config)
    with outputs.whole_folder(plan) as out:
        records.write(out / "plan.parquet", rows, PLAN, "event_id")
        receipt = _receipt(inputs, out / "plan.parquet", report, config)
        outputs.write_json(out / "receipt.json", receipt)
    return report


def _joined(inputs: dict[str, Path]) -> list[Row]:
    """Events with their clusters and the verdict on their action caption, sorted by event id."""
    events = records.read(inputs["events"], records.EVENTS).sort_by("event_id").to_pylist()
    if not events:
        raise DataError(f"{inputs['events']}: no events; expected some to draw from.")
    clusters = {
        row["event_id"]: row
        for row in records.read(inputs["clusters"], records.CLUSTERS).to_pylist()
    }
    said = records.read(inputs["captions"], records.CAPTIONS)
    columns = (said[name].to_pylist() for name in ("event_id", "level", "text", "checks"))
    flagged = {checks: _flagged(checks) for checks in said["checks"].unique().to_pylist()}
    verdicts = {
        event_id: flagged[checks]
        for event_id, level, text, checks in zip(*columns, strict=True)
        if level == "action" and text
    }
    for name, found in (("clusters", clusters), ("captions", verdicts)):
        if missing := [row["event_id"] for row in events if row["event_id"] not in found]:
            raise DataError(
                f"{inputs[name]}: {len(missing)} of {len(events)} events are missing, first "
                f"{', '.join(missing[:3])}; expected one row for each event of "
                f"{inputs['events']} (of captions, the action level). Run the stage again."
            )
    return [
        {**row, **clusters[row["event_id"]], "flagged": verdicts[row["event_id"]]} for row in events
    ]


def _flagged(checks: str) -> bool:
    """Whether any check of a caption says something else than ok.

    `fallback` says why a model's text is missing; the rule's text that stands there is sound.
    """
    verdicts = json.loads(checks or "{}").items()
    return any(verdict != "ok" for check, verdict in verdicts if check != "fallback")


def _multiplier(row: Row, config: Config) -> float:
    if row["end_s"] - row["start_s"] < config.min_event_s:
        return 0.0
    idle = config.idle_weight if row["kind"] == "idle" else 1.0
    return idle * (config.flagged_weight if row["flagged"] else 1.0)


def _cell(row: Row, balance: str) -> tuple[int, ...]:
    names = ("joint", "action") if balance == "both" else (balance,)
    return tuple(row[f"{name}_cluster"] for name in names)


def _nothing_left(train: list[Row], config: Config) -> str:
    idle = sum(row["kind"] == "idle" for row in train)
    flagged = sum(row["flagged"] for row in train)
    short = sum(row["end_s"] - row["start_s"] < config.min_event_s for row in train)
    return (
        f"sampling: nothing to draw; of {len(train)} training events {idle} are idle "
        f"(idle_weight {config.idle_weight}), {flagged} have a flagged caption (flagged_weight "
        f"{config.flagged_weight}), {short} are shorter than min_event_s {config.min_event_s}. "
        "Raise those weights, lower min_event_s, or add recordings."
    )


def _report(rows: list[Row], config: Config) -> Report:
    train = [row for row in rows if row["split"] == "train"]
    drawn = [row for row in train if row["draws"] > 0]
    kinds = sorted({row["kind"] for row in rows})
    return Report(
        events=len(rows),
        train_events=len(train),
        drawn_events=len(drawn),
        validation_events=len(rows) - len(train),
        train_episodes=len({row["episode_id"] for row in train}),
        validation_episodes=len({row["episode_id"] for row in rows if row["split"] != "train"}),
        cells=len({_cell(row, config.balance) for row in drawn}),
        draws=sum(row["draws"] for row in rows),
        draws_most=max(row["draws"] for row in rows),
        draws_by_kind={k: sum(r["draws"] for r in rows if r["kind"] == k) for k in kinds},
    )


def _receipt(inputs: dict[str, Path], plan: Path, report: Report, config: Config) -> Row:
    """What the plan was made from and what it promises; training echoes `plan_sha256`."""
    return {
        "plan_sha256": outputs.sha256(plan),
        "inputs": {name: outputs.sha256(path) for name, path in inputs.items()},
        "seed": config.seed,
        "temperature": config.temperature,
        "draws": config.draws,
        "config": config.model_dump(),
        "totals": report.model_dump(),
    }
