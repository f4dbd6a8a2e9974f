"""Stand-ins for the eight stages: small tables of the true formats, made from `params.yaml`.

`past_runs.py` copies this file into its repositories as `make.py`, where `dvc repro` calls it.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from components import outputs, records

Rows = list[dict[str, Any]]


def read(path: Path, schema: pa.Schema) -> Rows:
    return records.read(path, schema).to_pylist()


def pick(low: int, high: int, *key: object) -> int:
    """The same number for the same key."""
    return random.Random(":".join(map(str, key))).randint(low, high)


def ingestion(values: dict[str, Any], _sources: Path, episodes: Path, quarantine: Path) -> None:
    rows: Rows = []
    for i in range(values["episodes"]):
        uri = f"/robots/demo#episode={i}"
        name = hashlib.sha256(f"signals {i}".encode()).hexdigest()
        signals = {"n_frames": 100, "duration_s": 1.25, "fps": 80.0, "operator": ""}
        source = {"source": "demo", "source_uri": uri, "source_version": f"{i:020x}"}
        about = {"embodiment": "metaworld", "episode_index": i, "task": f"task {i % 3}"}
        rows.append({"episode_id": name, "origins": [uri], **signals, **source, **about})
    records.write(episodes / "manifest.parquet", rows, records.MANIFEST, "episode_id")
    broken = values["episodes"]
    reject = {"source_uri": f"/robots/demo#episode={broken}", "episode_index": broken}
    rejects: Rows = [{**reject, "reason": "nan", "detail": "action[3]"}]
    records.write(quarantine / "quarantine.parquet", rejects, records.QUARANTINE, "source_uri")


def segmentation(_values: dict[str, Any], episodes: Path, _corrections: Path, events: Path) -> None:
    rows: Rows = []
    looks: Rows = []
    for row in read(episodes / "manifest.parquet", records.MANIFEST):
        episode = row["episode_id"]
        change = {"says_s": 1.1, "what": "it turns", "did": "confirmed", "at_s": 1.0, "why": ""}
        said = {"model_digest": "m" * 64, "prompt_digest": "p" * 64, "decoding": '{"seed": 7}'}
        about = {
            "refiner": "openai",
            "reply": '{"changes":\x1b[2J []}',
            "changes": json.dumps([change]),
        }
        looks.append({"episode_id": episode, "problem": "", **said, **about})
        for k in range(pick(2, 5, episode)):
            times = {"start_s": k, "end_s": k + 1, "start_frame": k, "end_frame": k + 1}
            name = {"event_id": records.event_id(episode, k, k + 1), "episode_id": episode}
            rows.append({**name, **times, "kind": "motion", "score": 0.5, "evidence": "{}"})
    records.write(events / "events.parquet", rows, records.EVENTS, "event_id")
    records.write(events / "refinement.parquet", looks, records.REFINEMENT, "episode_id")


def captioning(
    _values: dict[str, Any], _episodes: Path, events: Path, _corrections: Path, captions: Path
) -> None:
    about = {"captioner": "test", "model_digest": "", "prompt_digest": "", "checks": "{}"}
    prompt = Path("components/captioning/prompts/said.md")
    said = prompt.read_text() if prompt.is_file() else "words"
    rows: Rows = [
        {"event_id": row["event_id"], "level": level, "text": f"{level} {said}", **about}
        for row in read(events / "events.parquet", records.EVENTS)
        for level in ("action", "task")
    ]
    records.write(captions / "captions.parquet", rows, records.CAPTIONS, "event_id")


def clustering(_values: dict[str, Any], *paths: Path) -> None:
    rows: Rows = [
        {"event_id": row["event_id"], "joint_cluster": 0, "action_cluster": 1}
        for row in read(paths[1] / "events.parquet", records.EVENTS)
    ]
    records.write(paths[-1] / "clusters.parquet", rows, records.CLUSTERS, "event_id")


def sampling(
    values: dict[str, Any], events: Path, captions: Path, clusters: Path, plan: Path
) -> None:
    rows: Rows = []
    for row in read(events / "events.parquet", records.EVENTS):
        held = int(row["episode_id"], 16) % 4 == 0
        draws = 0 if held else max(0, pick(-9, 9, values["seed"], row["event_id"]))
        split = "validation" if held else "train"
        rows.append({**row, "weight": draws / 1000, "draws": draws, "split": split})
    records.write(plan / "plan.parquet", rows, records.PLAN, "event_id")
    named = {"events": events, "captions": captions, "clusters": clusters}
    digests = {n: outputs.sha256(p / f"{n}.parquet") for n, p in named.items()}
    receipt = {"plan_sha256": outputs.sha256(plan / "plan.parquet"), "inputs": digests}
    outputs.write_json(plan / "receipt.json", receipt)


def pretraining(
    values: dict[str, Any], _episodes: Path, _captions: Path, plan: Path, init: Path,
    checkpoint: Path,
) -> None:  # fmt: skip
    rows: Rows = [
        {
            **{key: row[key] for key in ("event_id", "episode_id")},
            "planned_draws": row["draws"],
            "draws": max(0, row["draws"] - pick(0, 2, "real", row["event_id"])),
        }
        for row in read(plan / "plan.parquet", records.PLAN)
        if row["split"] == "train"
    ]
    records.write(checkpoint / "exposure.parquet", rows, records.EXPOSURE, "event_id")
    (checkpoint / "model.safetensors").write_bytes(f"weights {values} {rows}".encode())
    receipt = {
        "plan_sha256": outputs.sha256(plan / "plan.parquet"),
        "planned_draws": sum(row["planned_draws"] for row in rows),
        "draws": sum(row["draws"] for row in rows),
    }
    outputs.write_json(checkpoint / "receipt.json", receipt)
    outputs.write_json(checkpoint / "config.json", {"initial": json.loads(init.read_text())})


def evaluation(_values: dict[str, Any], _checkpoint: Path, trials: Path, target: Path) -> None:
    rows = read(trials / "trials.parquet", records.TRIALS)
    successes, digest = sum(row["success"] for row in rows), rows[0]["checkpoint_digest"]
    results = {"successes": successes, "checkpoint_digest": digest}
    outputs.write_json(target / "results.json", results)


def registration(
    values: dict[str, Any], checkpoint: Path, plan: Path, evaluation: Path, passport: Path
) -> None:
    outputs.write_json(passport / "config.json", values)
    shutil.copy(checkpoint / "model.safetensors", passport)
    inputs = {"checkpoint": checkpoint, "plan": plan, "evaluation": evaluation}
    made_from = {
        f"{name}/{file}": digest for name, p in inputs.items() for file, digest in all_of(p).items()
    }
    digests = {"model_name": "wam", "files": all_of(passport), "inputs": made_from}
    outputs.write_json(passport / "digests.json", digests)


def all_of(folder: Path) -> dict[str, str]:
    return {path.name: outputs.sha256(path) for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    stage, paths = sys.argv[1], [Path(argument) for argument in sys.argv[2:]]
    globals()[stage](yaml.safe_load(Path("params.yaml").read_text())[stage], *paths)
    outputs.write_json(Path("metrics") / f"{stage}.json", {"done": True})
