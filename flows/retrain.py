"""The flow: recordings in, a registered model out. One Prefect task for each stage of `dvc.yaml`.

A run is a git branch: a first commit with its values and the state of its sources, a second with
what came out (`dvc.lock`, reports, digests of data). Where nothing changed, nothing runs: results
come back from DVC's run cache, whatever worktree made them.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect import Flow, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.tasks import exponential_backoff

from components import corrections, params
from components.errors import WamflowError
from flows import (
    failures,
    graph,
    pictures,
    quiet,
    reports,
    runners,
    server,
    snapshot,
    supervisor,
    values,
    workspace,
)
from flows.graph import Stage
from flows.progress import Progress
from flows.workspace import Run

TRIALS = "data/trials"
RETRIES = 3
RETRY_S = float(os.environ.get("WAMFLOW_RETRY_S", "10"))  # doubles with each attempt


@dataclass
class Summary:
    """What a run did; `stages` says of each `ran` or `cached`."""

    run: str
    branch: str
    worktree: str
    commit: str = ""
    model: str | None = None  # name@version
    model_existed: bool = False
    seconds: float = 0.0
    stages: dict[str, str] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)


def build(project: Path, changes: values.Changes | None = None) -> Flow[Any, dict[str, Any]]:
    """The flow with the project's form as its parameters. UserError when `params.yaml` is wrong.

    A run changes what differs from the form's defaults or, where somebody said them, `changes`.
    """
    form = values.form(project)

    def retrain(**chosen: Any) -> dict[str, Any]:
        """Recordings in, a registered World Action Model out."""
        settings = {name: chosen.pop(name) for name in ("revision", "name", "runner")}
        said = values.changed(form, chosen) if changes is None else changes
        return asdict(chain(project, said, **settings))

    retrain.__signature__ = _signature(form)  # type: ignore[attr-defined]
    retrain.__doc__ = _described(form)
    retrain.__module__, retrain.__qualname__ = __name__, "retrain"  # as a deployment finds it
    return flow(name="retrain", flow_run_name=_run_name, validate_parameters=True)(retrain)


def chain(
    project: Path,
    changes: values.Changes,
    revision: str = "HEAD",
    name: str | None = None,
    runner: runners.Setting = "local",
) -> Summary:
    """Walk the graph in a worktree of the run's own; commit, register, sum up."""
    began = time.monotonic()
    with workspace.opened(project, revision, name) as run:
        get_run_logger().info("run %s in %s, from commit %s", run.name, run.worktree, run.revision)
        summary = Summary(run.name, run.branch, str(run.worktree))
        prepare(run, changes)
        for stage in graph.stages(run.worktree):
            if TRIALS in stage.deps:
                _as_task("trials")(collect_trials)(run)
            summary.stages[stage.name] = _as_task(stage.name)(run_stage)(stage, run, runner)
            summary.reports[stage.name] = pictures.report(run.worktree, stage.name)
        finish(run, summary)
    summary.seconds = round(time.monotonic() - began, 1)
    return summary


def prepare(run: Run, changes: values.Changes) -> None:
    """The run's first commit: values, sources and corrections as they are now."""
    corrections.check(run.worktree)
    values.apply(run.worktree / "params.yaml", changes)
    sources = snapshot.sources(params.load(run.worktree / "params.yaml"))
    target = run.worktree / "inputs" / "sources.json"
    snapshot.write(sources, run.project, target, run.shared)
    workspace.commit(run, f"run {run.name}: values and inputs")


def run_stage(stage: Stage, run: Run, runner: runners.Setting) -> str:
    """`cached` when DVC has the results already, `ran` when the runner had to make them."""
    logger = get_run_logger()
    outcome = "cached"
    if not graph.restore(run.worktree, stage.name):
        attempt = task_run.run_count or 1
        log = Progress(stage.name, logger.info)
        runners.choose(stage, runner)(stage, run, attempt=attempt, log=log)
        outcome = "ran"
    links = reports.links(stage.name, run.worktree, server.announced_url(run.shared))
    text = pictures.markdown(stage.name, stage.desc, run.worktree, outcome, links)
    create_markdown_artifact(text, key=stage.name.replace("_", "-"), description=stage.desc)
    return outcome


def collect_trials(run: Run) -> None:
    """Trials are data: collected for this checkpoint unless the store has them, named by digest."""
    from flows import trials

    log = get_run_logger().info

    def execute(arguments: list[str]) -> None:
        supervisor.run_module(arguments, "trials", run, log=log)

    trials.collect(run.worktree, run.shared / "trials", execute)
    graph.add(run.worktree, TRIALS)


def finish(run: Run, summary: Summary) -> None:
    """The run's second commit, and a version of the model if the chain made one."""
    from flows import registry

    (run.worktree / "report").mkdir(exist_ok=True)
    (run.worktree / "report" / "run.json").write_text(json.dumps(asdict(summary), indent=2))
    graph.add(run.worktree, "report")
    summary.commit = workspace.commit(run, f"run {run.name}: results")
    if name := summary.reports.get("registration", {}).get("model_name"):
        registered = registry.register(run.project, run.worktree, name)
        summary.model, summary.model_existed = registered.tag, registered.existed
        _show_model(summary)


def _show_model(summary: Summary) -> None:
    known = "known already: equal content" if summary.model_existed else "new"
    text = (
        f"## {summary.model} ({known})\n\nCommit `{summary.commit}` on `{summary.branch}`.\n\n"
        f"`wamflow trace {summary.model}` shows what it was made from."
    )
    create_markdown_artifact(text, key="model", description="The registered version.")


def _as_task(name: str) -> Any:
    """A task named as its stage; what is worth a retry is retried."""
    return task(
        name=name,
        task_run_name=name,
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(RETRY_S),
        retry_condition_fn=_worth_a_retry,
        cache_policy=NO_CACHE,
    )


def _worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return failures.worth_a_retry(error)
    return False


def _signature(form: dict[str, Any]) -> inspect.Signature:
    """Run settings first, then one parameter for each section, with its values as defaults."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    settings = [
        inspect.Parameter("revision", keyword, default="HEAD", annotation=str),
        inspect.Parameter("name", keyword, default=None, annotation=str | None),
        inspect.Parameter("runner", keyword, default="local", annotation=runners.Setting),
    ]
    sections = [
        inspect.Parameter(
            name,
            keyword,
            default=section,
            annotation=dict[str, Any] if isinstance(section, dict) else type(section),
        )
        for name, section in form.items()
    ]
    return inspect.Signature([*settings, *sections])


def _described(form: dict[str, Any]) -> str:
    """The docstring from which the Prefect UI takes the descriptions of the parameters."""
    lines = [
        "revision: Commit, branch or tag to run; HEAD is the checkout with its uncommitted values.",
        "name: Name of the run and of its branch `run/<name>`; empty for one made from the time.",
        "runner: Where the stages with a GPU pod run.",
        *(f"{name}: Values of the stage {name}." for name in form),
    ]
    args = "\n".join(f"    {line}" for line in lines)
    return f"Recordings in, a registered World Action Model out.\n\nArgs:\n{args}\n"


def _run_name() -> str:
    from prefect.runtime import flow_run

    return flow_run.parameters.get("name") or f"retrain-{flow_run.id[:8]}"


quiet.expected(WamflowError)
retrain = build(workspace.project())
