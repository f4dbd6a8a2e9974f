"""One stage of a run as one Job on a cluster: inputs out, Job to its end, result back.

Starting it again is safe at any point: what the remote has is restored, and a Job that exists
under the name of (run, stage, attempt) is attached to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from prefect.exceptions import ExternalSignal
from pydantic import BaseModel, Field, ValidationError

from components.errors import StoppedError, UserError
from flows.failures import LostError
from flows.graph import Stage
from flows.pods import exchange
from flows.pods.jobs import Jobs
from flows.pods.manifests import PodOrder, fill, read
from flows.workspace import Run

PASSED_ON = (  # to the pods, where set; keys never are: they come from the cluster's secrets
    "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION",
    "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL",
)  # fmt: skip


class Settings(BaseModel, frozen=True, extra="forbid"):
    """The cluster, from WAMFLOW_* variables (k8s/base/kustomization.yaml sets them)."""

    image: str = Field(min_length=1, description="Image of the pods, by digest.")
    git_url: str = Field(min_length=1, description="Git server that flow and pods reach.")
    remote: str = Field(min_length=1, description="DVC remote that flow and pods reach, s3://...")
    namespace: str = Field("wamflow", description="Namespace of the Jobs.")
    nodes: int = Field(1, ge=1, description="Pods of a training gang, one on each node.")
    gpus: int = Field(1, ge=0, description="GPUs of each pod of a gang; 0 trains on CPUs.")
    processes: int = Field(1, ge=1, description="Workers of each pod where there is no GPU.")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """UserError that names every variable that is missing or wrong."""
        named = {name: f"WAMFLOW_{name.upper()}" for name in cls.model_fields}
        found = {name: environment[key] for name, key in named.items() if key in environment}
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            wrong = [f"  {named[str(e['loc'][0])]}: {e['msg']}" for e in error.errors()]
            raise UserError(
                "the environment does not describe the cluster:\n" + "\n".join(wrong)
            ) from None


def run_stage(
    stage: Stage,
    run: Run,
    *,
    attempt: int,
    log: Callable[[str], None],
    settings: Settings | None = None,
    jobs: Jobs | None = None,
) -> None:
    """Return when outputs and `dvc.lock` are in the worktree; raise the failure's class if not.

    A flow that is stopped deletes the Job, so that its pods save and end; a flow that dies leaves
    it, and the next one attaches.
    """
    settings = settings or Settings.of(os.environ)
    jobs = jobs or Jobs(settings.namespace, say=log)
    exchange.use_remote(run.worktree, settings.remote)
    if exchange.restore(run.worktree, stage.name):
        log(f"{stage.name}: nothing to do, or restored")
        return
    exchange.push(run.worktree)
    revision = exchange.send_branch(run.worktree, settings.git_url, run.branch)
    documents = read(run.worktree / "k8s" / "pods" / f"{stage.pod}.yaml")
    job, service = fill(documents, order(stage, run, attempt, revision, settings))
    name = job["metadata"]["name"]
    try:
        jobs.submit(job, service)
        jobs.watch(name)
    except (KeyboardInterrupt, StoppedError, ExternalSignal):  # the last is Prefect's for SIGTERM
        if jobs.state(name).phase in ("queued", "running"):  # it was this side that was stopped
            jobs.cancel(name)
        raise
    if not exchange.restore(run.worktree, stage.name):
        raise LostError(f"job {name}: succeeded, but its result is not on {settings.remote}.")
    jobs.retire(name)


def order(stage: Stage, run: Run, attempt: int, revision: str, settings: Settings) -> PodOrder:
    """What the pods are told; only a training gang has several nodes."""
    gang = stage.pod == "train"
    return PodOrder(
        run=run.name,
        stage=stage.name,
        attempt=attempt,
        revision=revision,
        branch=run.branch,
        git_url=settings.git_url,
        dvc_remote=settings.remote,
        image=settings.image,
        namespace=settings.namespace,
        nodes=settings.nodes if gang else 1,
        gpus={"train": settings.gpus, "gpu": min(settings.gpus, 1)}.get(stage.pod, 0),
        processes=settings.processes if gang else 1,
        env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
    )
