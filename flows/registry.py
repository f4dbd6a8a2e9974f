"""Registered models: a GTO tag (`wam@v0.0.2`) on a run's last commit, made under a lock.

Versions follow GTO's default: v0.0.1 first, then the patch number. That one deserves a minor or
major number is a person's judgement (`gto register wam COMMIT --bump-minor`); later ones count from
it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import UserError
from flows import locks, workspace
from flows.lineage import history

if TYPE_CHECKING:
    from rich.console import RenderableType

PASSPORT = "data/passport"


@dataclass(frozen=True)
class Registered:
    """The version that a run's model has; `existed` when equal content was registered before."""

    version: str
    tag: str
    commit: str
    existed: bool


@dataclass(frozen=True)
class Model:
    """One registered version; `passport` is the digest of its content."""

    name: str
    version: str
    tag: str
    commit: str
    time: str
    by: str
    run: str
    passport: str


def register(repo: Path, worktree: Path, name: str) -> Registered:
    """Tag the last commit of `worktree` as the next version of `name`; equal content keeps its own.

    `repo` is any checkout of the same repository. UserError when the commit holds no passport, the
    name is none for GTO, or `dvc.lock` is not committed.
    """
    commit, passport = _finished(worktree)
    run = workspace.git(worktree, "branch", "--show-current").strip()
    with locks.waited(workspace.shared(repo) / "locks" / "registry.lock"):
        for known in models(repo, name):
            if known.passport == passport:
                return Registered(known.version, known.tag, known.commit, existed=True)
        version = _tag(repo, name, commit, run, passport)
    return Registered(version, f"{name}@{version}", commit, existed=False)


def models(repo: Path, name: str | None = None) -> list[Model]:
    """All registered versions, by name and number, with the digest of each one's content."""
    versions = history.versions(repo, name)
    runs = history.runs(repo, [v.commit for v in versions])
    return [Model(**asdict(v), passport=runs[v.commit].outs.get(PASSPORT, "")) for v in versions]


def to_json(found: list[Model]) -> str:
    """For programs: a JSON list, oldest version first."""
    return json.dumps([asdict(model) for model in found], indent=2)


def render(found: list[Model]) -> RenderableType:
    """For people: a table, newest version first."""
    from rich.table import Table

    if not found:
        return "no model is registered yet; `make demo` or a run of the flow registers one"
    table = Table("model", "registered", "run", "commit", "content", box=None, pad_edge=False)
    for m in reversed(found):
        table.add_row(m.tag, m.time.replace("T", " ")[:19], m.run, m.commit[:12], m.passport[:12])
    return table


def _finished(worktree: Path) -> tuple[str, str]:
    """Last commit of a run and the digest of its passport."""
    commit = workspace.git(worktree, "rev-parse", "HEAD").strip()
    passport = history.run(worktree, commit).outs.get(PASSPORT, "")
    if not passport:
        raise UserError(
            f"{worktree}: commit {commit[:12]} has no {PASSPORT} in dvc.lock; expected a finished "
            "run. Run the flow to its end (or `dvc repro`, then commit dvc.lock)."
        )
    if changed := workspace.git(worktree, "status", "--porcelain", "--", "dvc.lock").strip():
        raise UserError(
            f"{worktree}: dvc.lock differs from commit {commit[:12]} ({changed}); commit it first, "
            "or the tag would name another model than the one in this folder."
        )
    return commit, passport


def _next(repo: Path, name: str) -> str:
    """The patch number after the highest; GTO itself would use a deregistered number again."""
    known = history.versions(repo, name, withdrawn=True)
    if not known:
        return "v0.0.1"
    major, minor, patch = known[-1].number
    return f"v{major}.{minor}.{patch + 1}"


def _tag(repo: Path, name: str, commit: str, run: str, passport: str) -> str:
    """Make the annotated tag with GTO, in the platform's identity; the new version."""
    import gto.api
    from gto.exceptions import GTOException

    version = _next(repo, name)
    who, address = (workspace.IDENTITY[f"GIT_COMMITTER_{what}"] for what in ("NAME", "EMAIL"))
    message = f"{name} {version}\n\nRun: {run}\nPassport: {passport}\n"
    try:
        gto.api.register(
            repo, name, commit, version, message=message, author=who, author_email=address
        )
    except GTOException as error:
        raise UserError(f"{repo}: GTO cannot register {name!r} on {commit[:12]}: {error}") from None
    return version
