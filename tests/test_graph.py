"""The graph as `dvc.yaml` says it, and what DVC restores, in the miniature and in this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grimp
import pytest
import yaml

from components.__main__ import STAGES
from components.errors import UserError
from flows import graph, trials
from tests.conftest import ROOT, git


def test_stages_come_in_the_order_of_their_needs(miniature: Path) -> None:
    written = list(yaml.safe_load((miniature / "dvc.yaml").read_text())["stages"])
    assert written[0] == "pretraining"
    assert [s.name for s in graph.stages(miniature)] == ["ingestion", "sampling", "pretraining"]


def test_a_stage_says_where_it_wants_to_run(miniature: Path) -> None:
    assert {s.name: s.pod for s in graph.stages(miniature)} == {
        "ingestion": "cpu",
        "sampling": "cpu",
        "pretraining": "train",
    }


def test_the_chain_of_this_project() -> None:
    stages = graph.stages(ROOT)
    assert tuple(s.name for s in stages) == STAGES
    assert all(s.params == (s.name,) for s in stages)


def test_deps_are_the_closure_of_first_party_imports() -> None:
    """A stage whose code changed must be stale: every module it can import is a dependency."""
    imports = grimp.build_graph("components", "models", "flows", cache_dir=None)
    missing = {}
    for stage in graph.stages(ROOT):
        entry = {"components.__main__"} | {
            m for m in imports.modules if m.startswith(f"components.{stage.name}.")
        }
        if left := _not_covered(imports, entry, stage.deps):
            missing[stage.name] = left
    assert missing == {}


def test_the_key_of_trials_covers_the_closure_of_first_party_imports() -> None:
    """Trials that other code collected must never pass for those of this code."""
    imports = grimp.build_graph("components", "models", "flows", cache_dir=None)
    processes = {"components.trials.__main__", "components.serving.__main__"}
    assert _not_covered(imports, processes, trials.CODE) == []
    assert all((ROOT / place).exists() for place in trials.CODE)


def _not_covered(imports: grimp.ImportGraph, entry: set[str], places: Sequence[str]) -> list[str]:
    """Files of all modules that `entry` can import which lie in none of `places`."""
    needed = entry.union(*(imports.find_upstream_modules(module) for module in entry))
    files = {_file(name) for module in needed for name in (module, *_parents(module))}
    return sorted(
        f for f in files if not any(f == p or f.startswith(f"{p.rstrip('/')}/") for p in places)
    )


def _parents(module: str) -> list[str]:
    """Packages whose `__init__` an import of the module runs."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _file(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def test_results_come_back_in_another_worktree(miniature: Path, tmp_path: Path) -> None:
    """Two fresh worktrees of one commit restore each other's results, bytecode or not."""
    (miniature / "inputs").mkdir()
    (miniature / "inputs" / "sources.json").write_text(
        json.dumps(
            {"sources": [{"uri": str(miniature / "recordings/numbers"), "name": "numbers",
                          "objects": [{"path": "a.txt"}]}]}
        )
    )  # fmt: skip
    git(miniature, "add", "--all")
    git(miniature, "commit", "--quiet", "--message", "snapshot")
    first, second = tmp_path / "first", tmp_path / "second"
    for worktree in (first, second):
        git(miniature, "worktree", "add", "--quiet", "--detach", str(worktree))
        (worktree / ".dvc/config.local").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    assert not graph.restore(first, "ingestion")
    command = [sys.executable, "-m", "dvc", "repro", "ingestion", "sampling"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path}
    subprocess.run(command, cwd=first, env=env, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "components"], cwd=second, check=True)
    assert graph.restore(second, "ingestion") and graph.restore(second, "sampling")
    assert not graph.restore(second, "pretraining"), "nobody made it yet"
    for name in ("dvc.lock", "data/plan/plan.txt", "metrics/sampling.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    (second / "data/plan/plan.txt").unlink()
    assert graph.restore(second, "sampling"), "a lost output comes back"


def test_a_missing_or_broken_graph_is_one_message(tmp_path: Path, miniature: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        graph.stages(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(UserError, match="not a DVC project"):
        graph.stages(tmp_path)
    (miniature / "dvc.yaml").write_text("stages:\n  one: {comand: nothing}\n")
    with pytest.raises(UserError, match=r"dvc\.yaml"):
        graph.stages(miniature)
