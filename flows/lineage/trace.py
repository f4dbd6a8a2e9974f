"""From a model version to its recordings, and from a recording to every model version it reached.

Read from git, `dvc.lock` and receipts in the DVC cache; no server, no checkout. `trace_model`
answers `wamflow trace MODEL`, `trace_episode` answers `wamflow trace --episode ID`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, UserError
from flows import workspace
from flows.lineage import ancestry, chain, draws, history
from flows.lineage.cache import FOLDERS, Cache
from flows.lineage.draws import Row
from flows.lineage.history import PastRun, Version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Findings:
    """What came out of the checks: how many hold, what differs, what could not be compared."""

    hold: int = 0
    broken: list[Row] = field(default_factory=list)  # where, expected, got
    unchecked: list[Row] = field(default_factory=list)  # where, why

    @property
    def exit_code(self) -> int:
        """0, or the code of DataError when something is broken."""
        return DataError.exit_code if self.broken else 0


@dataclass(frozen=True)
class ModelTrace:
    """One model version with everything it was made from; `draws` has the totals."""

    model: Version
    stages: list[Row]
    draws: Row
    episodes: list[Row]
    sources: list[Row]
    initial: list[Row]  # weights that training started from, see components/pretraining/initial.py
    quarantined: list[Row]
    trials: list[Row]
    findings: Findings


@dataclass(frozen=True)
class EpisodeTrace:
    """What each asked-for episode did in every version; `quarantined` where it was kept out."""

    query: str
    versions_searched: list[str]
    episodes: list[Row]
    quarantined: list[Row]
    findings: Findings


def to_json(trace: Any) -> str:
    """For programs: everything, no shortening."""
    return json.dumps(asdict(trace), indent=2, default=str)


def trace_model(repo: Path, model: str) -> ModelTrace:
    """Forwards: version, commit, stages, draws, episodes, sources of `wam` or `wam@v0.0.2`.

    UserError for an unknown model or data that is nowhere, DataError for corrupted data.
    Differences between records are no exception: they are in `findings.broken`.
    """
    repo = workspace.project(repo)
    version = find_version(repo, model)
    run, cache = history.run(repo, version.commit), Cache(repo)
    if not is_finished(run):
        raise DataError(
            f"{version.tag}: dvc.lock of commit {run.commit[:12]} has no finished run; expected "
            f"{', '.join(sorted(FOLDERS))}. Ask for another version (`wamflow models`)."
        )
    cache.bring([run])
    tables = draws.open_run(run, cache)
    checks = chain.check(repo, run, cache, tables)
    (totals,) = draws.rows(tables, draws.DRAWS)
    checks += chain.totals(run, cache, totals["planned"], totals["draws"])
    episodes = _with_events(draws.rows(tables, draws.EPISODES), draws.rows(tables, draws.EVENTS))
    sources, strays = _sources(repo, run, episodes)
    checks += chain.initial(repo, run, cache)
    return ModelTrace(
        model=version,
        stages=stages(repo, run),
        draws=totals,
        episodes=episodes,
        sources=sources,
        initial=_initial(repo, run),
        quarantined=draws.rows(tables, "SELECT * FROM quarantine ORDER BY ALL"),
        trials=draws.rows(tables, draws.TRIAL_COUNTS),
        findings=findings([*checks, *strays]),
    )


def is_finished(run: PastRun) -> bool:
    """Whether all the folders that lineage reads are there; a foreign tag's commit has none."""
    return run.outs.keys() >= FOLDERS


def find_version(repo: Path, model: str) -> Version:
    """`wam@v0.0.2`, or the latest of `wam`. UserError names what there is."""
    known = history.versions(repo)
    found = [v for v in known if model in (v.tag, v.name, f"{v.name}@latest")]
    if not found:
        names = ", ".join(v.tag for v in known[-8:]) or "none yet"
        raise UserError(
            f"{model!r} is no registered model in {repo}; expected NAME or NAME@vX.Y.Z; there are: "
            f"{names}. In a fresh clone, `git fetch --tags` brings the versions."
        )
    version = found[-1]
    return version if version.run else _with_branch(repo, version)


def trace_episode(repo: Path, query: str) -> EpisodeTrace:
    """Backwards: every version that an episode reached, with planned and real draws and its share.

    `query` is an episode id, the unique beginning of one, or a recording's address, or that of a
    folder of recordings. UserError when no registered version ever saw it, or when it is ambiguous.
    """
    repo = workspace.project(repo)
    known = history.versions(repo)
    runs, cache = history.runs(repo, [v.commit for v in known]), Cache(repo)
    versions = [v for v in known if is_finished(runs[v.commit])]
    if not versions:
        raise UserError(f"{repo}: no model is registered here; `git fetch --tags` brings versions.")
    cache.bring(runs[v.commit] for v in versions)
    tables = draws.open_all(versions, runs, cache)
    addresses = _addresses(repo, query)
    ids = _matching(tables, query, addresses)
    rows = draws.rows(tables, draws.REACH, {"ids": ids})
    addresses += [uri for row in rows for uri in (row["source_uri"], *row["origins"])]
    quarantined = draws.rows(tables, draws.QUARANTINED, {"addresses": sorted(set(addresses))})
    if not ids and not quarantined:
        raise UserError(
            f"{query!r}: none of {len(versions)} registered versions ({versions[0].tag} to "
            f"{versions[-1].tag}) has an episode or a rejected recording of this id or "
            "address. Ids are in `wamflow trace MODEL --all`; unregistered runs are not searched."
        )
    sums = {row["tag"]: row for row in draws.rows(tables, draws.TOTALS)}
    checks = [chain.Check(v.tag, "no finished run", None) for v in known if v not in versions]
    checks += [c for v in versions for c in _short(v, runs[v.commit], cache, sums[v.tag])]
    before, lost = ancestry.before(repo, versions, runs, cache)
    return EpisodeTrace(
        query=query,
        versions_searched=[v.tag for v in versions],
        episodes=[
            _reach(i, [r for r in rows if r["episode_id"] == i], versions, before) for i in ids
        ],
        quarantined=quarantined,
        findings=findings([*checks, *lost]),
    )


def _matching(tables: DuckDBPyConnection, query: str, addresses: list[str]) -> list[str]:
    """Ids of the episodes that a query names."""
    by_address = draws.rows(tables, draws.MATCHING, {"addresses": addresses})
    if by_address or len(query) < SHORTEST_PREFIX:
        return [row["episode_id"] for row in by_address]
    known = "SELECT DISTINCT episode_id FROM manifest WHERE starts_with(episode_id, $q) ORDER BY 1"
    ids = [row["episode_id"] for row in draws.rows(tables, known, {"q": query})]
    if len(ids) > 1 and query not in ids:
        some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise UserError(f"{query!r} begins {len(ids)} episode ids; give more of one: {some}")
    return [query] if query in ids else ids


def _addresses(repo: Path, query: str) -> list[str]:
    """A query as it was typed, and as an absolute path where it may be a relative one."""
    typed = query.rstrip("/")
    return (
        [typed] if "://" in typed else list(dict.fromkeys([typed, str((repo / typed).resolve())]))
    )


def _reach(
    episode: str, rows: list[Row], versions: list[Version], before: dict[str, list[str]]
) -> Row:
    """One episode over all versions, with a word for what each did with it.

    `before`: a version that did not learn from it may start from one that did.
    """
    about = ("task", "source", "source_uri", "source_version", "origins")
    of = {row["tag"]: row for row in rows}
    reached = []
    for version in versions:
        drew = (tag for tag in before.get(version.tag, []) if tag in of and of[tag]["draws"])
        if (row := _version_row(version, of.get(version.tag), next(drew, ""))) is not None:
            reached.append(row)
    listed = {row["tag"] for row in reached}
    return {
        "episode_id": episode,
        **{key: rows[-1][key] for key in about},
        "versions": reached,
        "absent_from": [v.tag for v in versions if v.tag not in listed],
    }


def _version_row(version: Version, row: Row | None, through: str) -> Row | None:
    """What a version did with an episode; `through`: the version that taught it to its weights."""
    counts = ("events", "validation_events", "planned", "draws", "share")
    words = [] if row is None else [status(row)]
    if through and not (row and row["draws"]):
        words.append(f"through initial weights of {through}")
    if not words:
        return None
    return {
        "status": ", ".join(words),
        **{k: getattr(version, k) for k in ("tag", "commit", "run")},
        **{k: 0 if row is None else row[k] for k in counts},
        "through": through,
    }


def status(row: Row) -> str:
    """What a version did with an episode that was in its data."""
    if row["draws"]:
        return "trained on"
    if not row["events"]:
        return "in the data, in no plan"
    if row["events"] == row["validation_events"]:
        return "validation only"
    return "planned, never drawn" if row["planned"] else "in the data, drawn 0 times"


def _with_events(episodes: list[Row], events: list[Row]) -> list[Row]:
    by_episode: dict[str, list[Row]] = {}
    for event in events:
        by_episode.setdefault(event.pop("episode_id"), []).append(event)
    return [
        {"status": status(e), **e, "event_list": by_episode.get(e["episode_id"], [])}
        for e in episodes
    ]


def stages(repo: Path, run: PastRun) -> list[Row]:
    """Every stage with its digests and `code`: the last commit that changed what it imports."""
    found = []
    for stage in run.stages:
        committed = [path for path in stage.deps if not _made(path, run)]
        code = [path for path in committed if not path.startswith("inputs/")]
        revision = workspace.git(repo, "log", "-1", "--format=%H", run.commit, "--", *code).strip()
        found.append({**asdict(stage), "code": revision if code else ""})
    return found


def _made(path: str, run: PastRun) -> bool:
    return any(path == out or path.startswith(f"{out}/") for out in run.outs)


def _sources(repo: Path, run: PastRun, episodes: list[Row]) -> tuple[list[Row], list[chain.Check]]:
    """Sources as they were listed, with episodes and draws; a check that every episode has one."""
    spec = f"{run.commit}:inputs/sources.json"
    text = history.blobs(repo, [spec]).get(spec, b'{"sources": []}')
    found = [
        {
            "name": source["name"],
            "uri": source["uri"].rstrip("/"),
            "objects": len(source["objects"]),
            "version": _listing_digest(source["objects"]),
            "episodes": 0,
            "draws": 0,
        }
        for source in json.loads(text)["sources"]
    ]
    strays = []
    for episode in episodes:
        source = _source_of(episode, found)
        if source is None:
            strays.append(episode["episode_id"])
        else:
            source["episodes"] += 1
            source["draws"] += episode["draws"]
    where = "data/episodes/manifest.parquet: episodes of no source in inputs/sources.json"
    got = f"{len(strays)}, first {strays[0]}" if strays else "none"
    return found, [chain.Check(where, "none", got)]


def _initial(repo: Path, run: PastRun) -> list[Row]:
    """Declared initial weights and encoders; `version` where they are of a registered model."""
    return [
        {
            "part": part,
            "from": entry["from"],
            "files": entry["sha256"],
            "version": _version_of(repo, entry["sha256"].get("model.safetensors", "")),
        }
        for part, entry in sorted(chain.declared_initial(repo, run).items())
    ]


def _version_of(repo: Path, sha256: str) -> str:
    """The registered version with these weights; empty where there is none."""
    if not sha256:
        return ""
    cache = Cache(repo)
    for version in history.versions(repo):
        run = history.run(repo, version.commit)
        if is_finished(run) and chain.passport_weights(run, cache) == sha256:
            return version.tag
    return ""


def _listing_digest(objects: list[Row]) -> str:
    """sha256 over the listed paths and digests (or ETags and versions), sorted by path."""
    from components.ingestion.source import Object

    lines = sorted(f"{o['path']}\0{Object.model_validate(o).version}\n" for o in objects)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _source_of(episode: Row, sources: list[Row]) -> Row | None:
    """The source that holds the recording; the longest address where one is inside another."""
    uri = episode["source_uri"]
    inside = [s for s in sources if f"{uri}/".startswith((f"{s['uri']}/", f"{s['uri']}#"))]
    return max(inside, key=lambda s: len(s["uri"]), default=None)


def _with_branch(repo: Path, version: Version) -> Version:
    """The run's branch where the tag does not say it (a tag that a person made)."""
    refs = ("refs/heads/run", "refs/remotes")
    query = ("for-each-ref", "--format=%(refname:short)", "--contains", version.commit, *refs)
    branches = [b for b in workspace.git(repo, *query).split() if "run/" in b]
    return Version(**{**asdict(version), "run": branches[0] if branches else ""})


def _short(version: Version, run: PastRun, cache: Cache, sums: Row) -> Iterator[chain.Check]:
    """The checks that an answer over all versions rests on."""
    for one in (
        *chain.links(run, cache),
        *chain.receipts(run, cache),
        *chain.totals(run, cache, sums["planned"], sums["draws"]),
    ):
        yield replace(one, where=f"{version.tag}: {one.where}")


def findings(checks: list[chain.Check]) -> Findings:
    """What checks came to."""
    return Findings(
        hold=sum(c.got == c.expected for c in checks),
        broken=[asdict(c) for c in checks if c.broken],
        unchecked=[{"where": c.where, "why": c.expected} for c in checks if c.got is None],
    )
