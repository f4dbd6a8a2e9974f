"""One git worktree for each run, with the shared DVC cache; the user's checkout is never touched.

A run lives in `.runs/<name>` on the branch `run/<name>`. What runs share lies in the main
checkout: `.dvc/cache` and `.wamflow/` (locks, trials, checkpoints, digests). A lock held for the
life of a run says that it is going on; of the worktrees of ended runs the last `KEEP` are kept.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from components import corrections
from components.errors import UserError
from flows import locks

KEEP = 5  # worktrees of ended runs
CODE = ("components", "flows", "models", "k8s", "dvc.yaml", "pyproject.toml", "constraints.txt")
IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "wamflow"), ("EMAIL", "wamflow@localhost"))
}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Run:
    """One run: its worktree and branch, and the checkout that it was started from."""

    name: str
    worktree: Path
    project: Path  # the user's checkout: relative source addresses start here
    shared: Path  # .wamflow of the main checkout
    revision: str  # the commit that it started from

    @property
    def branch(self) -> str:
        """Where its commits are."""
        return f"run/{self.name}"


def git(folder: Path, *arguments: str) -> str:
    """Standard output of git with the platform's identity, without the user's hooks or signing.

    UserError with git's words when it fails.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    plain = ["-c", f"core.hooksPath={os.devnull}", "-c", "commit.gpgsign=false"]
    try:
        done = subprocess.run(
            ["git", *plain, *arguments],
            cwd=folder,
            env=kept | IDENTITY,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        what = "git is not installed" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}.") from None
    if done.returncode:
        raise UserError(f"{folder}: `git {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")


def project(folder: Path | None = None) -> Path:
    """The checkout that a folder belongs to. UserError when it is in no git repository."""
    folder = (folder or Path.cwd()).resolve()
    try:
        return Path(git(folder, "rev-parse", "--show-toplevel"))
    except UserError as error:
        raise UserError(
            f"{folder}: expected a git checkout of wamflow, since every run is a commit. Clone the "
            f"project, or make this a repository: `git init && git add -A && git commit`. ({error})"
        ) from None


def shared(checkout: Path) -> Path:
    """`.wamflow` of the main checkout, also when the user stands in a linked worktree."""
    common = git(checkout, "rev-parse", "--path-format=absolute", "--git-common-dir")
    folder = Path(common).parent / ".wamflow"
    folder.mkdir(exist_ok=True)
    return folder


def commit_of(checkout: Path, revision: str) -> str:
    """Full commit id. UserError when the revision does not exist."""
    try:
        return git(checkout, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except UserError:
        has_any = git(checkout, "for-each-ref", "--count=1")
        advice = "Look with `git log --all`." if has_any else "Commit your work first."
        raise UserError(
            f"{checkout}: no commit {revision!r}; expected a commit, branch or tag. {advice}"
        ) from None


def refuse_uncommitted_code(checkout: Path) -> None:
    """Code that is in no commit cannot be named later. UserError lists it and says how to go on."""
    said = git(checkout, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    if said:
        lines = said.splitlines()
        more = f"\n  ... and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise UserError(
            f"{checkout}: {len(lines)} file(s) of code differ from the last commit, and a run is "
            "made from a commit only:\n  " + "\n  ".join(lines[:10]) + more + "\n"
            "Commit them (`git add -A && git commit`), put them aside (`git stash -u`), or run "
            "without them by naming a commit: `--revision $(git rev-parse HEAD)`."
        )


@contextmanager
def opened(checkout: Path, revision: str = "HEAD", name: str | None = None) -> Iterator[Run]:
    """A new run in a worktree of its own, locked while it lasts.

    `HEAD` means the user's checkout as it is: its `params.yaml`, `inputs/init.json` and what people
    corrected come along with uncommitted values, and uncommitted code is refused. Any other
    revision is taken as it was committed.
    """
    if revision == "HEAD":
        refuse_uncommitted_code(checkout)
    commit = commit_of(checkout, revision)
    run = _named(checkout, commit, name)
    with locks.held(run.shared / "locks" / f"run-{run.name}.lock", f"run {run.name}"):
        with locks.waited(run.shared / "locks" / "worktrees.lock"):
            _clean_up(run)
            _add_worktree(run)
        if revision == "HEAD":
            _bring_inputs(checkout, run.worktree)
        try:
            yield run
        except BaseException:
            _forget_unused(run)
            raise


def _bring_inputs(checkout: Path, worktree: Path) -> None:
    """Values, initial weights and corrections as they are now.

    A list of corrections that was deleted is empty, deleted initial weights are none.
    """
    if (checkout / "params.yaml").is_file():
        shutil.copyfile(checkout / "params.yaml", worktree / "params.yaml")
    here, there = checkout / "inputs/init.json", worktree / "inputs/init.json"
    if here.is_file():
        there.parent.mkdir(exist_ok=True)
        shutil.copyfile(here, there)
    elif there.is_file():
        there.write_text("{}\n")
    for overlay in (corrections.EVENTS, corrections.CAPTIONS):
        if (checkout / overlay).is_file():
            (worktree / overlay).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / overlay, worktree / overlay)
        elif (worktree / overlay).is_file():
            (worktree / overlay).write_text("")


def commit(run: Run, message: str) -> str:
    """Commit what the run recorded (never its data); the commit's id."""
    git(run.worktree, "add", "--all")
    git(run.worktree, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(run.worktree, "rev-parse", "HEAD")


def _named(checkout: Path, commit: str, name: str | None) -> Run:
    """The run's places. UserError for a name that is taken or that no branch can have."""
    common = shared(checkout)
    made = name or f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not _NAME.fullmatch(made) or made.endswith((".", ".lock")) or ".." in made:
        raise UserError(
            f"run name {made!r}: expected 1 to 40 of a-z, 0-9, '.', '_' and '-', "
            "starting with a letter or digit."
        )
    return Run(made, common.parent / ".runs" / made, checkout, common, commit)


def _add_worktree(run: Run) -> None:
    """`git worktree add` on a new branch, and the DVC settings of this worktree only."""
    from flows import graph

    taken = git(run.project, "branch", "--list", run.branch)
    if taken or run.worktree.exists():
        raise UserError(
            f"run name {run.name!r} is taken (branch {run.branch} or {run.worktree} exists); "
            "choose another, or leave the name out."
        )
    git(run.project, "worktree", "prune")
    where = str(run.worktree)
    git(run.project, "worktree", "add", "--quiet", "-b", run.branch, where, run.revision)
    if not (run.worktree / ".dvc").is_dir():
        git(run.project, "worktree", "remove", "--force", where)
        git(run.project, "branch", "-D", run.branch)
        raise UserError(f"commit {run.revision[:12]} is no DVC project (it has no .dvc folder).")
    (run.worktree / ".dvc" / "config.local").write_text(
        "[core]\n    analytics = false\n    autostage = false\n"
        f"    site_cache_dir = {run.worktree}/.dvc/tmp/site\n"
        f"[cache]\n    dir = {graph.cache_folder(run.shared.parent)}\n"
        '    type = "reflink,hardlink,copy"\n'
    )


def _clean_up(run: Run) -> None:
    """Remove the oldest worktrees of runs that have ended; their branches and results stay.

    Git does not know folders that came here when the project was moved or copied.
    """
    run.worktree.parent.mkdir(exist_ok=True)
    known = git(run.project, "worktree", "list", "--porcelain").splitlines()
    folders = [f for f in run.worktree.parent.iterdir() if f.is_dir() and not f.is_symlink()]
    folders.sort(key=lambda f: f.stat().st_mtime, reverse=True)
    ended = [f for f in folders if not locks.is_held(_lock_of(run, f))]
    for folder in ended[KEEP:]:
        if f"worktree {folder}" in known:
            git(run.project, "worktree", "remove", "--force", str(folder))
        else:
            shutil.rmtree(folder)
        _lock_of(run, folder).unlink(missing_ok=True)


def _forget_unused(run: Run) -> None:
    """A run that was refused before its first commit leaves neither branch nor worktree."""
    if git(run.worktree, "rev-parse", "HEAD") == run.revision:
        git(run.project, "worktree", "remove", "--force", str(run.worktree))
        git(run.project, "branch", "--quiet", "-D", run.branch)


def _lock_of(run: Run, worktree: Path) -> Path:
    return run.shared / "locks" / f"run-{worktree.name}.lock"
