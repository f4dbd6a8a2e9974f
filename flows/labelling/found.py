"""The data of a past run to look at: from its worktree, or linked from the DVC cache."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from components.errors import UserError
from flows import workspace
from flows.lineage import history
from flows.lineage.cache import Cache

NEEDED = ("data/episodes", "data/events")
TAKEN = (*NEEDED, "data/captions")


@dataclass(frozen=True)
class Found:
    """A run's name and the folder with its `data/`; what it took as its shortest event."""

    name: str
    folder: Path
    min_event_s: float


@contextmanager
def opened(project: Path, run: str) -> Iterator[Found]:
    """The run of a name, a branch, a commit or `latest`. UserError when it has no events."""
    name, revision = _latest(project) if run == "latest" else _named(project, run)
    commit = workspace.commit_of(project, revision)
    worktree = workspace.shared(project).parent / ".runs" / name
    if all((worktree / part).is_dir() for part in NEEDED):
        text = (worktree / "params.yaml").read_text()
        yield Found(name, worktree, _min_event_s(text))
        return
    with tempfile.TemporaryDirectory(prefix="wamflow-label-") as scratch:
        past, cache = history.run(project, commit), Cache(project)
        if missing := [part for part in NEEDED if part not in past.outs]:
            raise UserError(
                f"run {name}: dvc.lock of {commit[:12]} has no {' and no '.join(missing)}, so "
                "there is nothing to correct. Expected a run that came as far as segmentation; "
                f"there are: {', '.join(_names(project)[:8]) or 'none yet'}."
            )
        for part in TAKEN:
            if part in past.outs:
                cache.link(past.outs[part], part, Path(scratch) / part)
        yield Found(name, Path(scratch), _min_event_s(_committed(project, commit)))


def _committed(project: Path, commit: str) -> str:
    return (
        history.blobs(project, [f"{commit}:params.yaml"]).get(f"{commit}:params.yaml", b"").decode()
    )


def _min_event_s(params: str) -> float:
    section = (yaml.safe_load(params) or {}).get("segmentation") or {}
    return float(section.get("min_event_s", 0.0))


def _names(project: Path) -> list[str]:
    """Runs of this repository, the youngest commit first."""
    listed = workspace.git(
        project, "for-each-ref", "--sort=-committerdate", "--format=%(refname)", "refs/heads/run"
    )
    return [name.removeprefix("refs/heads/run/") for name in listed.splitlines()]


def _latest(project: Path) -> tuple[str, str]:
    """The youngest run that has events, in its worktree or in its commit."""
    names = _names(project)
    runs = workspace.shared(project).parent / ".runs"
    for name in names:
        past = history.run(project, workspace.commit_of(project, f"run/{name}"))
        if (runs / name / "data/events").is_dir() or "data/events" in past.outs:
            return name, f"run/{name}"
    raise UserError(
        f"{project}: no run has events yet; expected one of {len(names)} runs to have come as far "
        "as segmentation. Start one: `wamflow run`."
    )


def _named(project: Path, run: str) -> tuple[str, str]:
    """(name, revision) of what somebody typed."""
    name = run.removeprefix("run/")
    for revision in (f"run/{name}", f"origin/run/{name}", run):
        try:
            workspace.commit_of(project, revision)
        except UserError:
            continue
        return name, revision
    raise UserError(
        f"{run!r} is no run here; expected its name, its branch, a commit or `latest`; there are: "
        f"{', '.join(_names(project)[:8]) or 'none yet'}. In a fresh clone, first `git fetch`."
    )
