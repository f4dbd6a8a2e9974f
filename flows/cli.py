"""`wamflow`: the command line. A failure is one message on stderr and the exit code of its class.

Every command imports what it needs itself, so that `wamflow --help` is there at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from components.errors import OutOfSpaceError, StoppedError, UserError, WamflowError

app = typer.Typer(
    help="Robot recordings in, registered World Action Models out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

GIT_PLACES = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
)  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="For programs: one JSON document on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Change a value of params.yaml."),
]
Name = Annotated[str | None, typer.Option(help="Name of the run, and of its branch run/<name>.")]
Revision = Annotated[
    str, typer.Option(help="Commit to run; HEAD is the checkout with its uncommitted values.")
]
Where = Annotated[str, typer.Option(help="local or kubernetes: where stages with a GPU pod run.")]


@app.command()
def demo(
    options: typer.Context,
    episodes: Annotated[int, typer.Option(min=3, help="Good episodes to record.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the first recorded scene.")] = 0,
    tasks: Annotated[str, typer.Option(help="By comma; four tasks unless given.")] = "",
    as_json: Json = False,
) -> None:
    """Record demonstrations in simulation unless they are there, then run the whole chain."""
    from flows import workspace

    project = workspace.project()
    workspace.refuse_uncommitted_code(project)
    recordings = project / "recordings" / "demo"
    if not recordings.exists():
        from components.stations import recording

        print(f"recording {episodes} episodes and 3 broken ones to {recordings}", file=sys.stderr)
        names = tuple(tasks.split(",")) if tasks else recording.DEMO_TASKS
        recording.record_demo(recordings, episodes, seed, names)
    elif ignored := _given(options, "episodes", "seed", "tasks"):
        print(f"{recordings} is there already; not used: {', '.join(ignored)}", file=sys.stderr)
    _run_flow({}, "HEAD", None, "local", as_json=as_json)


@app.command()
def run(
    assignments: Set = None,
    name: Name = None,
    revision: Revision = "HEAD",
    runner: Where = "local",
    as_json: Json = False,
) -> None:
    """Run the flow here: in a worktree and on a branch of its own, with a server or without."""
    from flows import values

    _run_flow(values.parse(assignments or []), revision, name, runner, as_json=as_json)


@app.command()
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect server.")] = 4200,
) -> None:
    """Start a local Prefect server with the flow's form and its weekly schedule (paused)."""
    from flows import server, values, workspace

    project = workspace.project()
    values.form(project)  # what is wrong there is said before anything starts
    shared = workspace.shared(project)
    server.environment(shared)
    server.serve(project, shared, port)


@app.command()
def snapshot() -> None:
    """List the sources into inputs/sources.json, for `dvc repro` in this checkout."""
    from components import params
    from flows import snapshot as snapshots
    from flows import workspace

    project = workspace.project()
    sources = snapshots.sources(params.load(project / "params.yaml"))
    target = project / "inputs" / "sources.json"
    print(snapshots.write(sources, project, target, workspace.shared(project)))


@app.command()
def trials(
    store: Annotated[Path | None, typer.Option(help="Folder that keeps collected trials.")] = None,
) -> None:
    """Collect the trials of data/checkpoint into data/trials, unless the store has them."""
    from flows import trials as collecting
    from flows import workspace

    project = workspace.project()
    print(collecting.collect(project, store or workspace.shared(project) / "trials"))


@app.command()
def record(
    out: Annotated[Path, typer.Argument(help="New folder for the LeRobot v3.0 data set.")],
    tasks: Annotated[list[str], typer.Option(help="Tasks, by comma or repeated.")],
    station: Annotated[str, typer.Option(help="Robot station.")] = "metaworld",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes in all.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the first episode's reset.")] = 0,
    cameras: Annotated[str, typer.Option(help="Cameras, by comma.")] = "top,wrist",
) -> None:
    """Record demonstrations of a station's experts; ground truth goes to OUT.truth."""
    from components.stations import recording

    names = [name for given in tasks for name in given.split(",") if name]
    print(recording.record(station, names, episodes, out, seed, tuple(cameras.split(","))))


@app.command()
def inspect(
    uri: Annotated[
        str, typer.Argument(help="Folder or s3://bucket/prefix of recordings, of any known format.")
    ],
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many are looked at: 100, in S3 8."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a source holds: format, signals, cameras, and one warning for each oddity."""
    from flows import inspection

    found = inspection.look(uri, episodes)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    _show("", inspection.render(found))


@app.command()
def label(
    run: Annotated[str, typer.Argument(help="Name or branch of a run, or latest.")] = "latest",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page, where there is a screen.")] = True,
) -> None:
    """Correct a run's events on a local page; Ctrl-C ends it.

    Corrections go to inputs/corrections/ of this checkout, and the next run uses them.
    """
    from flows import labelling

    labelling.label(run, port, browser=browser)


@app.command()
def models(as_json: Json = False) -> None:
    """List the registered models."""
    from flows import registry, workspace

    found = registry.models(workspace.project())
    _show(registry.to_json(found), None if as_json else registry.render(found))


@app.command()
def trace(
    model: Annotated[str | None, typer.Argument(help="wam, or wam@v0.0.2.")] = None,
    episode: Annotated[
        str | None, typer.Option(help="Episode id, its beginning, or a recording's address.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every row, not only the first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a model was made from, or which models an episode reached."""
    from flows import workspace
    from flows.lineage import trace as tracing
    from flows.lineage import tree

    if (model is None) == (episode is None) or "" in (model, episode):
        raise UserError("trace: expected a MODEL or --episode ID; see `wamflow trace --help`.")
    project = workspace.project()
    if model is not None:
        forwards = tracing.trace_model(project, model)
        shown = None if as_json else tree.render_model(forwards, everything)
        _show(tracing.to_json(forwards), shown)
        raise typer.Exit(forwards.findings.exit_code)
    if episode is not None:
        backwards = tracing.trace_episode(project, episode)
        shown = None if as_json else tree.render_episode(backwards, everything)
        _show(tracing.to_json(backwards), shown)
        raise typer.Exit(backwards.findings.exit_code)


@app.command()
def show(
    event: Annotated[str, typer.Argument(help="Event id, or the unique beginning of one.")],
    run: Annotated[str, typer.Option(help="Name of a run; the latest unless given.")] = "",
    revision: Annotated[str, typer.Option(help="Commit, branch or model instead.")] = "",
    as_json: Json = False,
) -> None:
    """Show where an event and its captions came from, and which models learned from it."""
    from flows import workspace
    from flows.lineage import events, trace, tree

    found = events.show(workspace.project(), event, revision, run)
    _show(trace.to_json(found), None if as_json else tree.render_event(found))
    raise typer.Exit(found.findings.exit_code)


def _run_flow(
    changes: dict[str, dict[str, Any]],
    revision: str,
    name: str | None,
    runner: str,
    *,
    as_json: bool,
) -> None:
    """The flow in this process; what can be known to be wrong is said before anything starts."""
    from flows import server, values, workspace

    project = workspace.project()
    if revision == "HEAD":
        workspace.refuse_uncommitted_code(project)
    workspace.commit_of(project, revision)
    if runner not in ("local", "kubernetes"):
        raise UserError(f"--runner {runner}: expected local or kubernetes.")
    form = values.form(project)
    sections = {n: values.plain(s) for n, s in values.chosen(form, changes).items()}
    shared = workspace.shared(project)
    server.environment(shared)
    with server.reached(shared, until_exit=True):
        from flows.retrain import build

        said = {n: {k: values.at(sections[n], k) for k in names} for n, names in changes.items()}
        flow = build(project, said)
        summary = flow(revision=revision, name=name, runner=runner, **sections)
    _show(json.dumps(summary, indent=2), None if as_json else _summary(summary))


def _given(options: typer.Context, *names: str) -> list[str]:
    """Those options that stand on the command line."""
    sources = {name: options.get_parameter_source(name) for name in names}
    return [f"--{name}" for name, source in sources.items() if source and source.name != "DEFAULT"]


def _summary(summary: dict[str, Any]) -> Any:
    from flows import summaries

    return summaries.text(summary)


def _show(document: str, pretty: Any | None) -> None:
    """The JSON document when there is nothing for people."""
    if pretty is None:
        print(document)
        return
    from flows.lineage import tree

    tree.show(pretty)


def _stop(*_: object) -> None:
    raise StoppedError(
        "stopped by a signal; what was finished is kept. Start it again to go on "
        "(a run with another --name, or with none)."
    )


def main() -> None:
    """Entry of the console script and of `python -m flows.cli`."""
    signal.signal(signal.SIGTERM, _stop)
    for name in GIT_PLACES:  # the project is where we stand, not where a hook of git stood
        os.environ.pop(name, None)
    try:
        app()
    except WamflowError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(StoppedError("stopped by Ctrl-C; what was finished is kept."))
    except OSError as error:
        _fail(_said(error))
    except Exception as error:
        if "disk is full" not in str(error):  # as SQLite says it
            raise
        _fail(OutOfSpaceError(f"no space left on the disk ({error}); make room and try again."))


def _said(error: OSError) -> WamflowError:
    """A file that cannot be read or written, as a message."""
    from components.outputs import is_full_disk

    if is_full_disk(error):
        return OutOfSpaceError(f"{error.filename or 'disk'}: no space left; make room.")
    return UserError(f"{error.filename or 'file'}: {error.strerror or error}. Name another place.")


def _fail(error: WamflowError) -> None:
    from components.__main__ import failed

    sys.stdout.flush()
    sys.exit(failed(error))


if __name__ == "__main__":
    main()
