"""The model card: what the model is, what it was made from, how well it does, and where it ends.

Markdown under a Hugging Face metadata header. It says only what the stage's inputs say: no run
name, commit or clock, so that equal content gives equal bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components import records
from components.registration.chain import CARRIED, Json, initial_weights, read_json

POLICIES = {"model": "model", "hold_still": "hold still", "random": "random"}


def write(checkpoint: Path, plan: Path, evaluation: Path, name: str, licence: str) -> str:
    """The text of README.md."""
    header = {
        "license": licence,
        "library_name": "wamflow",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "world-action-model", "event-centred"],
    }
    results = read_json(evaluation / "results.json")
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {name}",
        "A World Action Model trained on events: from one picture of each camera, the robot's own "
        "state and a sentence, it generates the event's video and its actions (after WALL-WM, "
        "arXiv 2606.01955). Made by wamflow.",
        _facts("Model", _model(checkpoint)),
        _facts("Data", _data(checkpoint, plan)),
        _facts("Training", _training(checkpoint)),
        _evaluation(results),
        _limits(results),
        f"## Licence\n\nWeights: {licence}. The recordings keep the licence of their owners.",
        "## Files\n\n`digests.json` names the sha256 of every file here and of what they were made "
        "from. `event_plans.json` says which events the training data show for each task.",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(title: str, facts: Json) -> str:
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"## {title}\n\n{lines}"


def _model(checkpoint: Path) -> Json:
    from safetensors import safe_open

    path = checkpoint / CARRIED[0]
    parameters = 0
    types: set[str] = set()
    with safe_open(path, framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - no mapping, it only looks like one
            tensor = weights.get_slice(name)
            size = 1
            for length in tensor.get_shape():
                size *= length
            parameters, types = parameters + size, types | {tensor.get_dtype()}
    return {
        "parameters": f"{parameters:,} ({', '.join(sorted(types))})",
        "weights": f"{path.stat().st_size:,} bytes of safetensors",
        "architecture and values": "`config.json`",
        "normalisation of states and actions": "`normalisation.json`",
    }


def _data(checkpoint: Path, plan: Path) -> Json:
    rows = records.read(plan / "plan.parquet", records.PLAN).to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    drawn = [row for row in train if row["draws"] > 0]
    receipt = read_json(plan / "receipt.json")
    facts: Json = {}
    if embodiments := read_json(checkpoint / "config.json").get("embodiments"):
        facts["embodiments"] = ", ".join(sorted(str(robot["name"]) for robot in embodiments))
    return facts | {
        "tasks": "; ".join(sorted(read_json(checkpoint / "event_plans.json"))),
        "training episodes": len({row["episode_id"] for row in train}),
        "training events": f"{len(train)}, of which {len(drawn)} were drawn",
        "draws": sum(row["draws"] for row in train),
        "held-out episodes": len({row["episode_id"] for row in rows} - _ids(train)),
        "sampling": f"temperature {receipt.get('temperature')}, seed {receipt.get('seed')}",
        "plan": f"sha256 `{receipt['plan_sha256']}`",
    }


def _ids(rows: list[Json]) -> set[str]:
    return {row["episode_id"] for row in rows}


def _training(checkpoint: Path) -> Json:
    """Every plain figure of the checkpoint's receipt."""
    receipt = read_json(checkpoint / "receipt.json")
    return {
        name.replace("_", " "): value
        for name, value in sorted(receipt.items())
        if isinstance(value, (int, float, str)) and name != "plan_sha256"
    } | {
        f"initial weights, {part}": ", ".join(f"{n} sha256 `{d}`" for n, d in sorted(files.items()))
        for part, files in initial_weights(checkpoint).items()
    }


def _evaluation(results: Json) -> str:
    parts = ["## Evaluation", results["result"]]
    confidence = f"{results['confidence']:.0%}"
    if closed := results["closed_loop"]:
        parts.append(
            f"Success on {', '.join(closed['stations'])}, with exact {confidence} intervals "
            "(Clopper-Pearson); all policies met the same starts."
        )
        parts.append(_table(closed["policies"], _success))
    if opened := results["open_loop"]:
        parts.append(
            f"Mean absolute action error in normalised units, {opened['note']}; bootstrapped "
            f"{confidence} intervals over events."
        )
        parts.append(_table(opened["policies"], _error))
    return "\n\n".join(parts)


def _table(policies: Json, cell: Any) -> str:
    lines = [f"| task | {' | '.join(POLICIES.values())} |", "|---" * (len(POLICIES) + 1) + "|"]
    tasks = sorted(policies["model"], key=lambda task: (task == "all tasks", task))
    lines += [
        f"| {task} | {' | '.join(cell(policies[policy][task]) for policy in POLICIES)} |"
        for task in tasks
    ]
    return "\n".join(lines)


def _success(figure: Json) -> str:
    interval = f"{figure['lower']:.2f} to {figure['upper']:.2f}"
    return f"{figure['successes']}/{figure['trials']} = {figure['rate']:.2f} ({interval})"


def _error(figure: Json) -> str:
    if figure["lower"] is None:
        return f"{figure['error']:.3f} ({figure['events']} event)"
    return f"{figure['error']:.3f} ({figure['lower']:.3f} to {figure['upper']:.3f})"


def _limits(results: Json) -> str:
    lines = ["Tasks, robots, cameras and scenes other than those above were not tried."]
    closed = results["closed_loop"]
    if not closed:
        lines.append("No robot moved in the evaluation: nothing here says that the model succeeds.")
    elif not closed["above_baselines"]:
        lines.append("It is not shown to be better than holding still or moving at random.")
    if closed and (
        weak := [t for t, c in closed["comparison"].items() if not c["above_baselines"]]
    ):
        lines.append(f"Not shown to be above both baselines on: {', '.join(sorted(weak))}.")
    lines.append("It knows no safety limits of its own; the station has to keep them.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
