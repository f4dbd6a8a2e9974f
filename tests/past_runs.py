"""A small real history for the tests of registry and lineage: git, DVC, worktrees, tags.

The graph is the project's own `dvc.yaml`; only the commands differ: `past_stages.py` writes small
tables of the true formats at once. Real `dvc repro` runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from components import outputs, records
from flows import registry

PROJECT = Path(__file__).parents[1]
IDENTITY = ("-c", "user.name=tester", "-c", "user.email=tester@localhost")
VALUES: dict[str, dict[str, Any]] = {
    "ingestion": {"episodes": 10},
    "segmentation": {"min_event_s": 1.0e-5},
    "captioning": {"words": "few"},
    "clustering": {"clusters": 2},
    "sampling": {"seed": 0},
    "pretraining": {"steps": 3},
    "evaluation": {"confidence": 0.95},
    "registration": {"name": "wam"},
}


def command(folder: Path, *arguments: str) -> str:
    """Standard output of a command that must succeed; there is no git identity to find."""
    environment = {
        **os.environ,
        "HOME": "/nonexistent",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
    }
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def commit(folder: Path, message: str) -> None:
    command(folder, "git", "add", "-A")
    command(folder, "git", *IDENTITY, "commit", "-q", "-m", message)


def project(folder: Path) -> Path:
    """A repository with the project's graph, `make.py` and stand-ins for the code."""
    folder.mkdir(parents=True)
    graph = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
    made = {o for s in graph["stages"].values() for o in s["outs"]} | {"data/trials"}
    for stage in graph["stages"].values():
        stage["cmd"] = stage["cmd"].replace("python -m components", "python make.py")
        for path in set(stage["deps"]) - made:
            stand_in = folder / path if Path(path).suffix else folder / path / "code.txt"
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            real = PROJECT / path  # single files are importable, folders are only named
            stand_in.write_text(real.read_text() if real.is_file() else f"code of {path}\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(VALUES, sort_keys=False))
    shutil.copy(PROJECT / "tests" / "past_stages.py", folder / "make.py")
    (folder / ".gitignore").write_text(".wamflow/\n__pycache__/\n")
    (folder / ".dvcignore").write_text("__pycache__/\n")
    command(folder, "git", "init", "-q", "-b", "main")
    command(folder, sys.executable, "-m", "dvc", "init", "-q")
    command(folder, sys.executable, "-m", "dvc", "config", "core.analytics", "false")
    commit(folder, "project")
    return folder


def finish(repo: Path, name: str, **values: dict[str, Any]) -> Path:
    """A finished run in a worktree of its own: values, chain, trials, chain, commit."""
    worktree = repo.parent / name
    command(repo, "git", "worktree", "add", "-q", "-b", f"run/{name}", str(worktree), "main")
    (worktree / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {repo}/.dvc/cache\n")
    merged = {stage: {**VALUES[stage], **values.get(stage, {})} for stage in VALUES}
    (worktree / "params.yaml").write_text(yaml.safe_dump(merged, sort_keys=False))
    listed = [{"path": "meta/info.json", "size": 1, "sha256": "0" * 64}]
    source = {"uri": "/robots/demo", "name": "demo", "objects": listed}
    outputs.write_json(worktree / "inputs" / "sources.json", {"sources": [source]})
    commit(worktree, "values and inputs")
    command(worktree, sys.executable, "-m", "dvc", "repro", "-q", "pretraining")
    trials(worktree)
    command(worktree, sys.executable, "-m", "dvc", "add", "-q", "data/trials")
    command(worktree, sys.executable, "-m", "dvc", "repro", "-q")
    commit(worktree, "results")
    return worktree


def trials(worktree: Path) -> None:
    """Two trials of each of two policies with the run's checkpoint."""
    digest = outputs.sha256(worktree / "data" / "checkpoint" / "model.safetensors")
    about = {"station": "metaworld", "task": "task 0", "steps": 9, "events": "[]"}
    rows = [
        {**about, "trial": n, "policy": policy, "seed": n, "success": policy == "model" and n == 0}
        | {"checkpoint_digest": digest, "error": None}
        for n, policy in enumerate(("model", "random", "model", "random"))
    ]
    records.write(worktree / "data/trials/trials.parquet", rows, records.TRIALS, "trial")


def history(folder: Path) -> Path:
    """Three registered runs: other draws in the second, fewer episodes in the third."""
    repo = project(folder / "repo")
    changes: dict[str, dict[str, Any]] = {
        "first": {},
        "second": {"sampling": {"seed": 1}},
        "third": {"ingestion": {"episodes": 7}},
    }
    for name, values in changes.items():
        registry.register(repo, finish(repo, name, **values), "wam")
    return repo


def commit_lock(repo: Path, change: dict[str, str], message: str) -> None:
    """A commit on the current branch whose `dvc.lock` has other words."""
    lock = repo / "dvc.lock"
    text = lock.read_text()
    for old, new in change.items():
        assert old in text, old
        text = text.replace(old, new)
    lock.write_text(text)
    commit(repo, message)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def wide(folder: Path, versions: int, episodes: int) -> Path:
    """Many versions of many episodes: cache objects, `dvc.lock` and tags as the tools write."""
    repo = folder / "repo"
    (repo / ".dvc").mkdir(parents=True)
    command(repo, "git", "init", "-q", "-b", "main")
    (repo / ".dvc" / "config").write_text("")
    (repo / "inputs").mkdir()
    source = {"uri": "/robots/demo", "name": "demo", "objects": []}
    outputs.write_json(repo / "inputs" / "sources.json", {"sources": [source]})
    (repo / ".gitignore").write_text("scratch/\n.dvc/cache/\n")
    for number in range(versions):
        lock = {"schema": "2.0", "stages": _wide_run(repo, number, episodes)}
        (repo / "dvc.lock").write_text(yaml.safe_dump(lock))
        commit(repo, f"run {number}")
        tag = f"wam@v0.0.{number + 1}"
        command(repo, "git", *IDENTITY, "tag", "-a", tag, "-m", f"wam\n\nRun: run/r{number}\n")
    return repo


def _wide_run(repo: Path, number: int, episodes: int) -> dict[str, Any]:
    """The tables of one run with five events for each episode; every run has a few new episodes."""
    scratch = repo / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    rng = np.random.default_rng(number)
    names = [f"{i:016x}" for i in range(number, number + episodes)]
    of = np.repeat(names, 5)
    n = len(of)
    events = np.array([f"{e}{k % 5:04x}" for k, e in enumerate(of)])
    planned = rng.integers(0, 9, n)
    uris = [f"/robots/demo#episode={name}" for name in names]
    columns: dict[str, tuple[pa.Schema, dict[str, Any]]] = {
        "data/episodes/manifest.parquet": (
            records.MANIFEST,
            {"episode_id": names, "source_uri": uris, "origins": [[u] for u in uris]},
        ),
        "data/quarantine/quarantine.parquet": (records.QUARANTINE, {}),
        "data/events/events.parquet": (records.EVENTS, {"event_id": events, "episode_id": of}),
        "data/captions/captions.parquet": (
            records.CAPTIONS,
            {"event_id": events, "level": np.repeat("action", n)},
        ),
        "data/clusters/clusters.parquet": (records.CLUSTERS, {"event_id": events}),
        "data/plan/plan.parquet": (
            records.PLAN,
            {
                "event_id": events,
                "episode_id": of,
                "draws": planned,
                "split": np.repeat("train", n),
            },
        ),
        "data/checkpoint/exposure.parquet": (
            records.EXPOSURE,
            {"event_id": events, "episode_id": of, "planned_draws": planned, "draws": planned},
        ),
    }
    for path, (schema, given) in columns.items():
        rows = len(next(iter(given.values()), []))
        arrays = [pa.array(given.get(f.name, [None] * rows), f.type) for f in schema]
        outputs.write_table(scratch / path, pa.table(arrays, schema=schema))
    plan = outputs.sha256(scratch / "data/plan/plan.parquet")
    tables = ("events", "captions", "clusters")
    inputs = {t: outputs.sha256(scratch / f"data/{t}/{t}.parquet") for t in tables}
    total = int(planned.sum())
    outputs.write_json(scratch / "data/plan/receipt.json", {"plan_sha256": plan, "inputs": inputs})
    echo = {"plan_sha256": plan, "planned_draws": total, "draws": total}
    outputs.write_json(scratch / "data/checkpoint/receipt.json", echo)
    (scratch / "data/checkpoint/model.safetensors").write_bytes(f"{number}".encode())
    weights = outputs.sha256(scratch / "data/checkpoint/model.safetensors")
    files = {"model.safetensors": weights}
    outputs.write_json(scratch / "data/passport/digests.json", {"files": files})
    results = {"checkpoint_digest": weights}
    trial = [{"trial": 0, "policy": "model", "success": True, "checkpoint_digest": weights}]
    records.write(scratch / "data/trials/trials.parquet", trial, records.TRIALS, "trial")
    outputs.write_json(scratch / "data/evaluation/results.json", results)
    shutil.copy(scratch / "data/checkpoint/model.safetensors", scratch / "data/passport")
    folders = sorted((scratch / "data").iterdir())
    return {f.name: {"cmd": "", "outs": [_cached(repo, f)]} for f in folders}


def _cached(repo: Path, folder: Path) -> dict[str, Any]:
    """Put a folder into the cache as DVC does; its entry in `dvc.lock`."""
    rows = [
        {"md5": _object(repo, path.read_bytes()), "relpath": path.name}
        for path in sorted(folder.iterdir())
    ]
    md5 = _object(repo, json.dumps(rows).encode(), ".dir") + ".dir"
    return {"path": f"data/{folder.name}", "hash": "md5", "md5": md5}


def _object(repo: Path, content: bytes, suffix: str = "") -> str:
    md5 = hashlib.md5(content).hexdigest()
    path = repo / ".dvc" / "cache" / "files" / "md5" / md5[:2] / (md5[2:] + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5
