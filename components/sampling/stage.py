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
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from components import outputs, records
from components.errors import DataError

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
    table = _joined(inputs)
    held = split.validation_episodes(
        table["episode_id"].unique().to_pylist(), config.validation_fraction, config.seed
    )
    validation = _numpy(
        pc.is_in(table["episode_id"], value_set=pa.array(sorted(held), pa.string()))
    )
    cells = _cells(table, config.balance)
    train = np.flatnonzero(~validation)
    train = train[np.argsort(cells[train], kind="stable")]  # by cell, then by event id
    multipliers = _multipliers(table, config)[train]
    if not multipliers.any():
        raise DataError(_nothing_left(table.take(train), config))
    probability = np.zeros(len(table))
    probability[train] = weights.balanced(cells[train], multipliers, config.temperature)
    draws = np.zeros(len(table), dtype=np.int64)
    draws[train] = weights.planned(probability[train], config.draws)
    table = (
        table.append_column("weight", pa.array(probability))
        .append_column("draws", pa.array(draws))
        .append_column("split", pa.array(np.where(validation, "validation", "train")))
    )
    report = _report(table, validation, cells)
    with outputs.whole_folder(plan) as out:
        outputs.write_table(out / "plan.parquet", table.select(PLAN.names).cast(PLAN))
        receipt = _receipt(inputs, out / "plan.parquet", report, config)
        outputs.write_json(out / "receipt.json", receipt)
    return report


def _joined(inputs: dict[str, Path]) -> pa.Table:
    """Events with their clusters and the verdict on their action caption, sorted by event id.

    People's own words are believed, whatever the checks say of them.
    """
    events = records.read(inputs["events"], records.EVENTS).sort_by("event_id").combine_chunks()
    if not len(events):
        raise DataError(f"{inputs['events']}: no events; expected some to draw from.")
    clusters = records.read(inputs["clusters"], records.CLUSTERS)
    said = records.read(inputs["captions"], records.CAPTIONS)
    there = pc.and_(pc.equal(said["level"], "action"), pc.not_equal(said["text"], ""))
    said = said.filter(there)
    wrong = [checks for checks in said["checks"].unique().to_pylist() if _flagged(checks)]
    flagged = pc.and_(
        pc.is_in(said["checks"], value_set=pa.array(wrong, pa.string())),
        pc.invert(pc.is_in(said["captioner"], value_set=pa.array([records.PERSON]))),
    )
    joined = events
    for name, found in (
        ("clusters", clusters.select(["event_id", "joint_cluster", "action_cluster"])),
        ("captions", said.select(["event_id"]).append_column("flagged", flagged)),
    ):
        places = pc.index_in(events["event_id"], value_set=found["event_id"].combine_chunks())
        if places.null_count:
            missing = events["event_id"].filter(places.is_null()).to_pylist()
            raise DataError(
                f"{inputs[name]}: {len(missing)} of {len(events)} events are missing, first "
                f"{', '.join(missing[:3])}; expected one row for each event of "
                f"{inputs['events']} (of captions, the action level). Run the stage again."
            )
        for column in found.column_names[1:]:
            joined = joined.append_column(column, found[column].take(places))
    return joined.combine_chunks()


def _flagged(checks: str) -> bool:
    """Whether any check of a caption says something else than ok.

    `fallback` says why a model's text is missing; the rule's text that stands there is sound.
    """
    verdicts = json.loads(checks or "{}").items()
    return any(verdict != "ok" for check, verdict in verdicts if check != "fallback")


def _numpy(column: pa.ChunkedArray) -> Any:
    return column.to_numpy()


def _short(table: pa.Table, config: Config) -> Any:
    return _numpy(table["end_s"]) - _numpy(table["start_s"]) < config.min_event_s


def _idle(table: pa.Table) -> Any:
    return _numpy(pc.equal(table["kind"], "idle"))


def _multipliers(table: pa.Table, config: Config) -> Any:
    """(N,): what idleness and flags leave of an event's weight; 0 for one that is too short."""
    idle = np.where(_idle(table), config.idle_weight, 1.0)
    flagged = np.where(_numpy(table["flagged"]), config.flagged_weight, 1.0)
    return np.where(_short(table, config), 0.0, idle * flagged)


def _cells(table: pa.Table, balance: str) -> Any:
    """(N,): numbers of the cells, in the order of their clusters."""
    names = ("joint", "action") if balance == "both" else (balance,)
    clusters = np.column_stack([_numpy(table[f"{name}_cluster"]) for name in names])
    return np.unique(clusters, axis=0, return_inverse=True)[1]


def _nothing_left(train: pa.Table, config: Config) -> str:
    idle, flagged = _idle(train).sum(), _numpy(train["flagged"]).sum()
    return (
        f"sampling: nothing to draw; of {len(train)} training events {idle} are idle "
        f"(idle_weight {config.idle_weight}), {flagged} have a flagged caption (flagged_weight "
        f"{config.flagged_weight}), {_short(train, config).sum()} are shorter than min_event_s "
        f"{config.min_event_s}. Raise those weights, lower min_event_s, or add recordings."
    )


def _report(table: pa.Table, validation: Any, cells: Any) -> Report:
    draws = _numpy(table["draws"])
    episodes = len(table["episode_id"].unique())
    held = len(table["episode_id"].filter(pa.array(validation)).unique())
    kinds = table.group_by("kind").aggregate([("draws", "sum")]).sort_by("kind").to_pylist()
    return Report(
        events=len(table),
        train_events=int((~validation).sum()),
        drawn_events=int((draws > 0).sum()),
        validation_events=int(validation.sum()),
        train_episodes=episodes - held,
        validation_episodes=held,
        cells=len(np.unique(cells[draws > 0])),
        draws=int(draws.sum()),
        draws_most=int(draws.max()),
        draws_by_kind={row["kind"]: row["draws_sum"] for row in kinds},
    )


def _receipt(inputs: dict[str, Path], plan: Path, report: Report, config: Config) -> dict[str, Any]:
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
