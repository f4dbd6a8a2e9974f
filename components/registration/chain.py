"""Whether checkpoint, plan and evaluation belong together: every reason why they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components import outputs, records
from components.errors import DataError

Json = dict[str, Any]
CARRIED = ("model.safetensors", "config.json", "normalisation.json", "event_plans.json")


def reasons(checkpoint: Path, plan: Path, evaluation: Path, above_baselines: bool) -> list[str]:
    """Each break of the chain in one line; empty when the model may be registered.

    `above_baselines` asks for a model whose closed-loop success is shown to be above the baselines.
    """
    return [
        *_unreadable(checkpoint),
        *_other_plan(checkpoint, plan),
        *_other_draws(checkpoint, plan),
        *_other_evaluation(checkpoint, evaluation, above_baselines),
    ]


def read_json(path: Path) -> Json:
    """A JSON object. DataError when it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def initial_weights(checkpoint: Path) -> dict[str, dict[str, str]]:
    """{part: {file: sha256}} that training started from; empty where it was random numbers."""
    declared = read_json(checkpoint / "config.json").get("initial", {})
    return {part: entry["sha256"] for part, entry in sorted(declared.items())}


def _unreadable(checkpoint: Path) -> Iterator[str]:
    """Weights that do not open or are not finite, and missing files that a policy needs."""
    for name in CARRIED[1:]:
        try:
            read_json(checkpoint / name)
        except DataError as error:
            yield str(error)
    yield from _bad_weights(checkpoint / CARRIED[0])


def _bad_weights(path: Path) -> Iterator[str]:
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        yield f"{path}: no such file"
        return
    try:
        with safe_open(path, framework="pt") as weights:
            names = sorted(weights.keys())
            broken = [n for n in names if not torch.isfinite(weights.get_tensor(n)).all()]
    except (SafetensorError, OSError) as error:
        yield f"{path}: not a readable safetensors file: {error}"
        return
    if not names:
        yield f"{path}: expected weights, got none"
    if broken:
        yield f"{path}: NaN or Inf in {len(broken)} tensors, first {broken[0]}"


def _other_plan(checkpoint: Path, plan: Path) -> Iterator[str]:
    """The plan that training echoes, the one its receipt names and the one on disk are one."""
    try:
        echoed = read_json(checkpoint / "receipt.json").get("plan_sha256")
        named = read_json(plan / "receipt.json").get("plan_sha256")
        if not (plan / "plan.parquet").is_file():
            raise DataError(f"{plan / 'plan.parquet'}: no such file")
    except DataError as error:
        yield str(error)
        return
    real = outputs.sha256(plan / "plan.parquet")
    if named != real:
        yield f"{plan}/receipt.json: expected plan_sha256 {real} (plan.parquet), got {named}"
    if echoed != real:
        yield f"{checkpoint}/receipt.json: trained on plan {echoed}, expected {real} (plan.parquet)"


def _other_draws(checkpoint: Path, plan: Path) -> Iterator[str]:
    """Training drew every event as often as the plan says."""
    try:
        planned = _counts(plan / "plan.parquet", records.PLAN)
        drawn = _counts(checkpoint / "exposure.parquet", records.EXPOSURE)
    except DataError as error:
        yield str(error)
        return
    other = sorted(e for e in planned.keys() | drawn if planned.get(e) != drawn.get(e))
    if other:
        event = other[0]
        yield (
            f"{checkpoint}/exposure.parquet: {len(other)} events were not drawn as planned, "
            f"first {event}: expected {planned.get(event, 0)}, got {drawn.get(event, 0)}; in all "
            f"expected {sum(planned.values())}, got {sum(drawn.values())}"
        )


def _counts(path: Path, schema: Any) -> dict[str, int]:
    """{event: draws above 0}, those of skipped steps too; an event's rows are counted together."""
    counts: dict[str, int] = {}
    table = records.read(path, schema)
    names = [n for n in ("event_id", "draws", "skipped_draws") if n in table.column_names]
    for row in table.select(names).to_pylist():
        draws = row["draws"] + row.get("skipped_draws", 0)
        counts[row["event_id"]] = counts.get(row["event_id"], 0) + draws
    return {event: draws for event, draws in counts.items() if draws}


def _other_evaluation(checkpoint: Path, evaluation: Path, above_baselines: bool) -> Iterator[str]:
    """The evaluation is of these weights and, where asked for, shows more than the baselines."""
    path = evaluation / "results.json"
    try:
        results = read_json(path)
    except DataError as error:
        yield str(error)
        return
    weights = checkpoint / CARRIED[0]
    real = outputs.sha256(weights) if weights.is_file() else "no weights"
    if results.get("checkpoint_digest") != real:
        got = results.get("checkpoint_digest")
        yield f"{path}: evaluated checkpoint {got}, expected {real} (model.safetensors)"
    closed = results.get("closed_loop") or {}
    if above_baselines and not closed:
        yield f"{path}: no robot moved, so the model cannot be shown to be above the baselines"
    elif above_baselines and not closed.get("above_baselines"):
        yield f"{path}: the model is not shown to be above the baselines: {results.get('result')}"
