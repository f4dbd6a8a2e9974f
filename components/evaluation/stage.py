"""Evaluation: what collected trials say about a model, with honest intervals.

A pure function of the checkpoint and `data/trials/trials.parquet`. Trials that a robot (or
simulator) made give success rates with exact intervals; replays of recorded events, for a robot
without a station, give action errors and say that no robot moved. Nothing here touches a robot:
`wamflow trials` collects.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field

from components import outputs, records, report, tracking
from components.errors import DataError

Row = dict[str, Any]
RESULTS = pa.schema(
    {
        "loop": pa.string(),  # closed (a robot moved) or open (replayed)
        "policy": pa.string(),
        "task": pa.string(),
        "trials": pa.int64(),  # closed loop
        "successes": pa.int64(),
        "events": pa.int64(),  # open loop
        "rate": pa.float64(),  # of success, closed loop
        "error": pa.float64(),  # mean |action error| in normalised units, open loop
        "lower": pa.float64(),
        "upper": pa.float64(),
    }
)


class Config(BaseModel, frozen=True, extra="forbid"):
    """How trials become figures."""

    confidence: float = Field(gt=0.5, lt=1, description="Of every two-sided interval.")
    bootstrap_resamples: int = Field(
        ge=100, le=100_000, description="Resamples for the intervals of open-loop errors."
    )
    seed: int = Field(ge=0, description="Seed of the bootstrap.")


class Report(BaseModel):
    """The figures a person asks for first; null where the trials were of the other kind."""

    trials: int
    result: str = Field(description="The outcome in one sentence.")
    success: float | None = None
    success_lower: float | None = None
    success_upper: float | None = None
    success_hold_still: float | None = None
    success_random: float | None = None
    baselines_upper: float | None = None
    above_baselines: bool | None = None
    error: float | None = None
    error_lower: float | None = None
    error_upper: float | None = None
    error_hold_still: float | None = None
    error_random: float | None = None
    below_baselines: bool | None = None


def run(checkpoint: Path, trials: Path, evaluation: Path, *, config: Config) -> Report:
    """Write `results.json`, `results.parquet` and `results.png`; figures also go to wandb.

    DataError when trials are missing, of another checkpoint, repeated, or not of the same starts
    for the model and both baselines.
    """
    from components.evaluation import pictures, tables

    digest = _digest(checkpoint / "model.safetensors")
    rows = _trials(trials / "trials.parquet", digest, tables.POLICIES, tables.REPLAY)
    replays = [row for row in rows if row["station"] == tables.REPLAY]
    moved = [row for row in rows if row["station"] != tables.REPLAY]
    closed = tables.closed_loop(moved, config.confidence)
    opened = tables.open_loop(replays, config.confidence, config.bootstrap_resamples, config.seed)
    summary = _summary(len(rows), closed, opened)
    with outputs.whole_folder(evaluation) as out:
        results = {
            "checkpoint_digest": digest,
            "confidence": config.confidence,
            "trials": len(rows),
            "result": summary.result,
            "closed_loop": closed,
            "open_loop": opened,
        }
        outputs.write_json(out / "results.json", results)
        table = pa.Table.from_pylist(tables.rows(closed, opened), schema=RESULTS)
        outputs.write_table(out / "results.parquet", table)
        pictures.draw(out / "results.png", closed, opened)
    _track(summary, evaluation / "results.png", config)
    return summary


def _digest(weights: Path) -> str:
    if not weights.is_file():
        raise DataError(f"{weights}: no such file; expected the trained weights. Run pretraining.")
    return outputs.sha256(weights)


def _trials(path: Path, digest: str, policies: tuple[str, ...], replay: str) -> list[Row]:
    """Rows sorted by (station, task, seed, policy). DataError says all that is wrong with them."""
    rows: list[Row] = records.read(path, records.TRIALS).to_pylist()
    rows.sort(key=lambda row: (row["station"], row["task"], row["seed"], row["policy"]))
    wrong = [] if rows else ["there are no trials"]
    others = sorted({str(row["checkpoint_digest"]) for row in rows} - {digest})
    if others:
        wrong.append(f"expected trials of checkpoint {digest}, got some of {', '.join(others)}")
    for row in rows:
        if problem := _problem(row, policies, replay):
            where = f"{row['station']}, {row['task']}, seed {row['seed']}, {row['policy']}"
            wrong.append(f"trial {row['trial']} ({where}): {problem}")
    wrong += _unbalanced(rows, policies)
    if wrong:
        shown = "\n".join(f"  {line}" for line in wrong[:10])
        more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise DataError(f"{path}: collect the trials again (`wamflow trials`):\n{shown}{more}")
    return rows


def _problem(row: Row, policies: tuple[str, ...], replay: str) -> str | None:
    """What is wrong with one trial by itself."""
    if row["policy"] not in policies:
        return f"unknown policy, expected one of {', '.join(policies)}"
    if row["station"] != replay:
        return "success is missing" if row["success"] is None else None
    if row["success"] is not None:
        return "a replay cannot succeed or fail; expected success to be null"
    if row["error"] is None or not math.isfinite(row["error"]) or row["error"] < 0:
        return f"expected an error of 0 or more, got {row['error']}"
    return None


def _unbalanced(rows: list[Row], policies: tuple[str, ...]) -> list[str]:
    """Starts (station, task, seed) that not every policy met exactly once."""
    met: dict[tuple[str, str, int], list[str]] = {}
    for row in rows:
        met.setdefault((row["station"], row["task"], row["seed"]), []).append(row["policy"])
    return [
        f"{station}, {task}, seed {seed}: expected one trial of each of {', '.join(policies)}; "
        f"got {', '.join(found)}"
        for (station, task, seed), found in met.items()
        if sorted(found) != sorted(policies)
    ]


def _summary(trials: int, closed: Row | None, opened: Row | None) -> Report:
    from components.evaluation.tables import ALL

    values: Row = {}
    sentences = []
    if closed:
        figures = {policy: tasks[ALL] for policy, tasks in closed["policies"].items()}
        values |= _figures("success", "rate", figures)
        values["baselines_upper"] = closed["comparison"][ALL]["baselines_upper"]
        values["above_baselines"] = closed["above_baselines"]
        sentences.append(_closed_sentence(figures, closed["above_baselines"]))
    if opened:
        figures = {policy: tasks[ALL] for policy, tasks in opened["policies"].items()}
        values |= _figures("error", "error", figures)
        values["below_baselines"] = opened["below_baselines"]
        sentences.append(_open_sentence(figures, opened["note"]))
    return Report(trials=trials, result=" ".join(sentences), **values)


def _figures(name: str, key: str, figures: Row) -> Row:
    return {
        name: figures["model"][key],
        f"{name}_lower": figures["model"]["lower"],
        f"{name}_upper": figures["model"]["upper"],
        f"{name}_hold_still": figures["hold_still"][key],
        f"{name}_random": figures["random"][key],
    }


def _closed_sentence(figures: Row, above: bool) -> str:
    model = figures["model"]
    return (
        f"The model succeeded in {model['successes']} of {model['trials']} trials "
        f"({model['rate']:.2f}, interval {model['lower']:.2f} to {model['upper']:.2f}), "
        f"hold-still {figures['hold_still']['rate']:.2f}, random {figures['random']['rate']:.2f}: "
        + ("above both baselines." if above else "not shown to be above both baselines.")
    )


def _open_sentence(figures: Row, note: str) -> str:
    errors = ", ".join(f"{policy} {figure['error']:.3f}" for policy, figure in figures.items())
    return f"{note.capitalize()}; mean normalised action error: {errors}."


def _track(summary: Report, picture: Path, config: Config) -> None:
    folder = report.folder("evaluation")
    run = tracking.start("wamflow", "evaluation", config.model_dump(), folder)
    run.log({k: v for k, v in summary.model_dump().items() if isinstance(v, (int, float))})
    run.image("results", picture)
    run.finish()
