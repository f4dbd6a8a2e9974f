"""What one machine made, another takes up: commits by git, results by DVC's run cache on a remote.

`dvc push --run-cache` leaves out metrics that DVC keeps in git (`cache: false`), so nobody else
could restore their stage; and `dvc repro --pull` runs what it cannot restore. Hence these few lines
on DVC's Python internals (tried with 3.67), beside `flows/graph.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.errors import TemporaryError, UserError
from flows import graph

REMOTE = "wamflow"
REFUSED = (
    r"not found|does not exist|does not appear|denied|Authentication failed|could not read Username"
)


def clone(url: str, branch: str, revision: str, folder: Path) -> None:
    """A clone of `branch` that stands at `revision`. UserError when the server refuses it."""
    _git(folder.parent, "clone", "--quiet", "--branch", branch, url, str(folder))
    _git(folder, "checkout", "--quiet", "--detach", revision)
    local = f"[core]\n    analytics = false\n    site_cache_dir = {folder}/.dvc/tmp/site\n"
    (folder / ".dvc" / "config.local").write_text(local)


def send_branch(worktree: Path, url: str, branch: str) -> str:
    """Push the worktree's last commit to `branch` of the server; the commit's id."""
    _git(worktree, "push", "--quiet", url, f"HEAD:refs/heads/{branch}")
    return _git(worktree, "rev-parse", "HEAD")


def use_remote(worktree: Path, url: str) -> None:
    """Make `url` the default remote of this worktree alone (`.dvc/config.local`)."""
    with _opened(worktree) as repo, repo.config.edit("local") as settings:
        settings.setdefault("remote", {})[REMOTE] = {"url": url}
        settings.setdefault("core", {})["remote"] = REMOTE


def push(worktree: Path) -> None:
    """Send all results of the worktree to the remote, so that any clone can restore them."""
    with _opened(worktree) as repo:
        repo.push(run_cache=True)
        outs = [out for stage in repo.index.stages for out in stage.outs]
        kept_in_git = {out.hash_info for out in outs if not out.use_cache and out.hash_info}
        if failed := repo.cloud.push(kept_in_git).failed:
            raise TemporaryError(f"{worktree}: {len(failed)} metrics did not reach the remote.")


def restore(worktree: Path, name: str) -> bool:
    """Bring a stage's results here without running its command; False when no machine has any.

    The results of the stages before it must be here (`restore_upstream`).
    """
    from dvc.stage.cache import RunCacheNotFoundError

    with _opened(worktree) as repo:
        stage = repo.stage.load_one(path=os.fspath(worktree / "dvc.yaml"), name=name)
        inputs = [d.def_path for d in stage.deps if (worktree / f"{d.def_path}.dvc").is_file()]
        if inputs:
            repo.pull(inputs)  # data that DVC keeps beside the stages
        with repo.lock:
            if not stage.changed():
                return True
            repo.stage_cache.pull(None)
            try:
                repo.stage_cache.restore(stage, pull=True)
            except RunCacheNotFoundError:
                return False
            stage.reproduce()
            stage.dump(update_pipeline=False)
            return True


def restore_upstream(worktree: Path, name: str) -> None:
    """Bring the results of all stages that `name` needs. UserError when one was never pushed."""
    for stage in upstream(graph.stages(worktree), name):
        if not restore(worktree, stage.name):
            raise UserError(
                f"{name}: needs the result of {stage.name}, and the remote has none for this "
                "commit's code, values and inputs; the flow should push it before it starts a pod."
            )


def upstream(stages: list[graph.Stage], name: str) -> list[graph.Stage]:
    """The stages that `name` needs, producers before consumers. UserError for an unknown name."""
    by_name = {stage.name: stage for stage in stages}
    if name not in by_name:
        raise UserError(f"unknown stage {name!r}; expected one of {', '.join(by_name)}.")
    wanted = set(by_name[name].deps)
    needed = []
    for stage in reversed(stages):
        if wanted & {*stage.outs, *stage.metrics}:
            needed.append(stage)
            wanted |= set(stage.deps)
    return needed[::-1]


def _git(folder: Path, *arguments: str) -> str:
    """git with the environment's own credentials, never asking for any."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = re.sub(r"//[^/@\s]+@", "//***@", f"git {arguments[0]}: {done.stderr.strip()}")
        if re.search(REFUSED, said):
            raise UserError(
                f"{said} Expected a git server that has the run's branch and lets us in."
            )
        raise TemporaryError(said)
    return done.stdout.strip()


@contextmanager
def _opened(worktree: Path) -> Iterator[Any]:
    """DVC's Repo; errors of the remote as ours: TemporaryError, or UserError for settings."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from dvc.config import NoRemoteError
    from dvc.exceptions import DownloadError, UploadError

    try:
        with graph._repo(worktree) as repo:
            yield repo
    except (NoRemoteError, NoCredentialsError, PermissionError) as error:
        raise UserError(
            f"{worktree}: the DVC remote cannot be used: {error}. Set WAMFLOW_REMOTE, "
            "AWS_ENDPOINT_URL and the S3 keys."
        ) from error
    except (DownloadError, UploadError, BotoCoreError, ClientError, ConnectionError) as error:
        raise TemporaryError(f"{worktree}: the DVC remote did not answer: {error}") from error
