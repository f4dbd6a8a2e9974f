"""From an event to where it came from and what was made of it: `wamflow show EVENT`.

Recording, boundaries with the signals that voted for them, captions with who or what said them,
clusters, planned and real draws, and every registered model that learned from it. Read as `trace`
reads: git, `dvc.lock` and the DVC cache, every file verified by its digest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import UserError
from flows import workspace
from flows.lineage import chain, draws, history
from flows.lineage import trace as tracing
from flows.lineage.cache import Cache
from flows.lineage.draws import Row
from flows.lineage.history import PastRun
from flows.lineage.trace import Findings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EVENTS = "data/events/events.parquet"
REFINEMENT = "data/events/refinement.parquet"  # only where a vision-language model was asked
CAPTIONS = "data/captions/captions.parquet"
CLUSTERS = "data/clusters/clusters.parquet"
NAMES = "data/clusters/names.json"
TABLES = {
    "manifest": "data/episodes/manifest.parquet",
    "events": EVENTS,
    "refinement": REFINEMENT,
    "captions": CAPTIONS,
    "clusters": CLUSTERS,
    "plan": chain.PLAN,
    "exposure": chain.EXPOSURE,
}
MADE_BY = ("segmentation", "captioning")
LEVELS = ("task", "subtask", "action", "segment")
SHORTEST_PREFIX = 4
NAMED = 5  # ids in a message
OF_EVENT = """
    SELECT v.tag, v.commit, v.run, p.split, p.weight, p.draws AS planned,
           coalesce(x.draws, 0) AS draws
    FROM version v JOIN plan p ON p.filename = v.plan
    LEFT JOIN exposure x ON x.filename = v.exposure AND x.event_id = p.event_id
    WHERE p.event_id = $id ORDER BY v.number"""


@dataclass(frozen=True)
class EventTrace:
    """One event of one run; tables that the run had not written yet are empty."""

    event: Row
    commit: str
    run: str
    recording: Row
    stages: list[Row]  # segmentation and captioning: values, digests and the commit of their code
    captions: list[Row]
    clusters: Row
    plan: Row
    models: list[Row]  # registered versions whose plan has it, with planned and real draws
    findings: Findings = field(default_factory=Findings)
    refinement: Row = field(default_factory=dict)  # what a vision-language model said of it, if any


def show(repo: Path, query: str, revision: str = "", name: str = "") -> EventTrace:
    """An event by its id or the unique beginning of one.

    `revision` is a commit, a branch or a model version, `name` that of a run; else the run of the
    present worktree, or the latest one. UserError for what is unknown or ambiguous.
    """
    repo = workspace.project(repo)
    run, branch = find_run(repo, revision, name)
    cache = Cache(repo)
    tables = _open(run, cache)
    where = f"{branch or 'commit'} {run.commit[:12]}".strip()
    event = _event(repo, tables, query, where)
    about = {"id": event["event_id"]}
    manifest = "SELECT * FROM manifest WHERE episode_id = $id"
    (recording,) = draws.rows(tables, manifest, {"id": event["episode_id"]}) or [{}]
    return EventTrace(
        event=event | {"evidence": json.loads(event["evidence"] or "{}")},
        commit=run.commit,
        run=branch,
        recording=recording,
        stages=[
            s for s in tracing.stages(repo, run) if s["name"] in ("segmentation", "captioning")
        ],
        captions=_captions(tables, about),
        clusters=_clusters(run, cache, tables, about),
        plan=_one(tables, "plan", about),
        models=_models(repo, event["event_id"]),
        findings=tracing.findings(list(chain.links(run, cache))),
        refinement=_refinement(tables, event),
    )


def find_run(repo: Path, revision: str, name: str) -> tuple[PastRun, str]:
    """A run that has events and captions, and its branch."""
    if revision and name:
        raise UserError("show: expected --revision or --run, not both.")
    if revision:
        known = [v.name for v in history.versions(repo)]
        model = revision if revision in (*known, *(f"{n}@latest" for n in known)) else ""
        commit = tracing.find_version(repo, model).commit if model else revision
        run = history.run(repo, workspace.commit_of(repo, commit))
        return _told(run, revision), _branch_of(repo, run.commit)
    branches = _branches(repo)
    if name:
        wanted = [b for b in branches if b.endswith(f"run/{name.removeprefix('run/')}")]
        if not wanted:
            raise UserError(f"show: no run {name!r}; there are {_some(branches)}.")
        return _told(history.run(repo, workspace.commit_of(repo, wanted[0])), name), wanted[0]
    here = workspace.git(repo, "rev-parse", "--abbrev-ref", "HEAD")
    for branch in [b for b in branches if b == here] or branches:
        run = history.run(repo, workspace.commit_of(repo, branch))
        if _has(run):
            return run, branch
    raise UserError(
        f"{repo}: no run has events and captions in its last commit; runs: {_some(branches)}. "
        "Start one (`wamflow run`), or name a commit whose dvc.lock has them: `--revision COMMIT`."
    )


def _branches(repo: Path) -> list[str]:
    """Branches of runs, the latest first."""
    refs = ("refs/heads/run", "refs/remotes")
    listed = workspace.git(
        repo, "for-each-ref", "--sort=-committerdate", "--format=%(refname:short)", *refs
    )
    return [b for b in listed.splitlines() if b.startswith("run/") or "/run/" in b]


def _branch_of(repo: Path, commit: str) -> str:
    listed = workspace.git(
        repo, "for-each-ref", "--format=%(refname:short)", "--points-at", commit, "refs/heads/run"
    )
    return listed.partition("\n")[0]


def _has(run: PastRun) -> bool:
    return {"data/episodes", "data/events", "data/captions"} <= run.outs.keys()


def _told(run: PastRun, asked: str) -> PastRun:
    if not _has(run):
        raise UserError(
            f"show: dvc.lock of {asked} ({run.commit[:12]}) has no events and captions; expected a "
            "run that came so far. Name another one, or leave it out for the latest."
        )
    return run


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) or "none") + more


def _open(run: PastRun, cache: Cache) -> DuckDBPyConnection:
    """Views of the tables that the run wrote."""
    import duckdb

    tables = duckdb.connect()
    for view, path in TABLES.items():
        if cache.digest(run, path):
            tables.read_parquet(str(cache.file(run, path))).create_view(view)
    return tables


def _event(repo: Path, tables: DuckDBPyConnection, query: str, where: str) -> Row:
    """The row of the one event that `query` names."""
    if len(query) < SHORTEST_PREFIX:
        raise UserError(
            f"show: {query!r} is too short; give {SHORTEST_PREFIX} or more digits of an event's id "
            "(`wamflow trace MODEL --all` lists them)."
        )
    matching = "SELECT * FROM events WHERE starts_with(event_id, $q) ORDER BY event_id"
    found = draws.rows(tables, matching, {"q": query})
    if len(found) > 1:
        ids = _some([row["event_id"] for row in found])
        raise UserError(f"show: {query!r} begins {len(found)} event ids; give more of one: {ids}.")
    if not found:
        others = [row["tag"] for row in _models(repo, query)]
        advice = (
            f"It is in {_some(others)}: `--revision {others[-1]}`."
            if others
            else "Ids are in `wamflow trace MODEL --all`; other runs are asked with --run or "
            "--revision. Other boundaries make another event."
        )
        raise UserError(f"show: no event of {where} has an id that begins with {query!r}. {advice}")
    return found[0]


def _models(repo: Path, event_id: str) -> list[Row]:
    """Registered versions that planned the event, with what training really drew."""
    known = history.versions(repo)
    runs, cache = history.runs(repo, [v.commit for v in known]), Cache(repo)
    finished = [v for v in known if tracing.is_finished(runs[v.commit])]
    if not finished:
        return []
    cache.bring(runs[v.commit] for v in finished)
    return draws.rows(draws.open_all(finished, runs, cache), OF_EVENT, {"id": event_id})


def _captions(tables: DuckDBPyConnection, about: Row) -> list[Row]:
    """Caption rows, task first; JSON columns as what they say."""
    rows = draws.rows(tables, "SELECT * FROM captions WHERE event_id = $id", about)
    rows.sort(key=lambda row: LEVELS.index(row["level"]))
    for row in rows:
        row |= {n: json.loads(row[n]) for n in ("checks", "decoding") if row.get(n)}
    return rows


def _clusters(run: PastRun, cache: Cache, tables: DuckDBPyConnection, about: Row) -> Row:
    """Labels and their names, where clustering gave some."""
    found = _one(tables, "clusters", about)
    if found and cache.digest(run, NAMES):
        names: dict[str, Any] = json.loads(cache.file(run, NAMES).read_text())
        for kind in ("joint", "action"):
            label = str(found[f"{kind}_cluster"])
            found[f"{kind}_name"] = names.get(kind, {}).get(label, "")
    return found


def _refinement(tables: DuckDBPyConnection, event: Row) -> Row:
    """What a model said of the event's episode; `changes` only of the boundary at its start."""
    found = _one(tables, "refinement", {"id": event["episode_id"]}, "episode_id")
    if found:
        found["decoding"] = json.loads(found["decoding"])
        changes = json.loads(found["changes"])
        found["changes"] = [c for c in changes if c["at_s"] == event["start_s"]]
    return found


def _one(tables: DuckDBPyConnection, view: str, about: Row, column: str = "event_id") -> Row:
    """The event's (or episode's) row of a table; empty where there is none."""
    views = [name for (name,) in tables.sql("SELECT view_name FROM duckdb_views()").fetchall()]
    if view not in views:
        return {}
    rows = draws.rows(tables, f"SELECT * FROM {view} WHERE {column} = $id", about)  # noqa: S608
    return rows[0] if rows else {}
