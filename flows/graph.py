"""`dvc.yaml` as stages in order, and what DVC knows about them.

The only user of DVC's Python internals; tried with DVC 3.67, which `constraints.txt` pins. DVC is
imported inside the functions, so that a command line that needs no graph stays quick.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage of `dvc.yaml`; paths are relative to the project."""

    name: str
    pod: str  # cpu, gpu or train: where it wants to run
    cmd: str
    params: tuple[str, ...]  # sections of params.yaml
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    metrics: tuple[str, ...]
    desc: str


def stages(project: Path) -> list[Stage]:
    """All stages, producers before consumers. UserError when `dvc.yaml` is missing or broken."""
    if not (project / "dvc.yaml").is_file():
        raise UserError(
            f"{project}/dvc.yaml: no such file; expected the graph of the stages. "
            "Run from the project folder."
        )
    from dvc.exceptions import DvcException

    try:
        with _repo(project) as repo:
            return [_stage(stage) for stage in _in_order(repo)]
    except DvcException as error:
        raise UserError(f"{project}/dvc.yaml: {error}") from error


def _in_order(repo: Any) -> list[Any]:
    """Needed stages first; those that could go either way stay as they are written."""
    graph = repo.index.graph  # an edge points from a stage to what it needs
    order: dict[Any, None] = {}

    def visit(stage: Any) -> None:
        for needed in graph.successors(stage):
            visit(needed)
        order.setdefault(stage)

    for stage in repo.index.stages:
        visit(stage)
    own = str(Path(repo.root_dir) / "dvc.yaml")  # another folder's pipeline is another project's
    return [stage for stage in order if stage.cmd and stage.path == own]


def _stage(stage: Any) -> Stage:
    """A DVC stage without its files' states."""
    from dvc.dependency import ParamsDependency

    meta = stage.meta or {}
    params = [d for d in stage.deps if isinstance(d, ParamsDependency)]
    return Stage(
        name=stage.name,
        pod=meta.get("pod", "cpu"),
        cmd=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd),
        params=tuple(name for dep in params for name in dep.params),
        deps=tuple(d.def_path for d in stage.deps if d not in params),
        outs=tuple(o.def_path for o in stage.outs if not o.metric),
        metrics=tuple(o.def_path for o in stage.outs if o.metric),
        desc=stage.desc or "",
    )


def restore(worktree: Path, name: str) -> bool:
    """Bring back a stage's results if it is unchanged or DVC's run cache has them; True when done.

    Exactly what `dvc repro` does before it would run the command, without starting a process: the
    digests of all dependencies and values decide. Outputs appear as links into the shared cache.
    """
    from dvc.dependency.base import DependencyDoesNotExistError
    from dvc.dependency.param import MissingParamsError
    from dvc.stage.cache import RunCacheNotFoundError

    with _repo(worktree) as repo, repo.lock:
        stage = repo.stage.load_one(str(worktree / "dvc.yaml"), name=name)
        try:
            if not stage.changed():
                return True
            stage.save_deps()
            repo.stage_cache.restore(stage, dry=True)
        except (RunCacheNotFoundError, DependencyDoesNotExistError):
            return False
        except MissingParamsError as error:
            raise UserError(f"params.yaml: {error}. Restore the section and run again.") from None
        stage.reproduce()
        stage.dump(update_pipeline=False)
        return True


def add(worktree: Path, *targets: str) -> None:
    """`dvc add`: the content of each target goes to the cache, `<target>.dvc` names its digest."""
    with _repo(worktree) as repo:
        repo.add([str(worktree / target) for target in targets])


def cache_folder(project: Path) -> Path:
    """Where the project's DVC cache lies, with `cache.dir` of its configuration honoured."""
    with _repo(project) as repo:
        return Path(repo.cache.legacy.path).resolve()


def fetch(project: Path, digests: list[str]) -> None:
    """Bring objects by their md5 from the remote into the cache; what the remote lacks stays away.

    UserError when there is no remote.
    """
    from dvc.config import NoRemoteError
    from dvc_data.hashfile.hash_info import HashInfo

    with _repo(project) as repo:
        try:
            repo.cloud.pull([HashInfo("md5", digest) for digest in digests])
        except NoRemoteError as error:
            raise UserError(f"{project}: {error}") from error


@contextmanager
def _repo(project: Path) -> Iterator[Any]:
    """DVC's Repo of a folder, from inside it: DVC takes some paths as relative to where one stands.

    UserError when the folder is none.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # its hints are for those who type
    with chdir(project):
        try:
            repo = Repo(str(project))
        except NotDvcRepoError:
            raise UserError(
                f"{project}: not a DVC project (no .dvc folder); expected a checkout of wamflow."
            ) from None
        try:
            yield repo
        finally:
            repo.close()
