"""What was drawn, as SQL over the Parquet tables of one run or of all registered runs (DuckDB).

Tables are read where they lie in the DVC cache: views `manifest`, `quarantine`, `events`,
`captions`, `plan`, `exposure` and `trials`, as `components/records.py` describes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.lineage import chain
from flows.lineage.cache import Cache
from flows.lineage.history import PastRun, Version

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Row = dict[str, Any]
VIEWS = {
    "manifest": "data/episodes/manifest.parquet",
    "quarantine": "data/quarantine/quarantine.parquet",
    "events": "data/events/events.parquet",
    "captions": "data/captions/captions.parquet",
    "plan": chain.PLAN,
    "exposure": chain.EXPOSURE,
}
TRIALS = "data/trials/trials.parquet"
DRAWS = """
    SELECT count(*) AS events, count(*) FILTER (x.draws > 0) AS events_drawn,
           count(*) FILTER (split = 'validation') AS validation_events,
           coalesce(sum(p.draws), 0)::BIGINT AS planned, coalesce(sum(x.draws), 0)::BIGINT AS draws,
           count(DISTINCT p.episode_id) FILTER (x.draws > 0) AS episodes_drawn,
           (SELECT count(*) FROM manifest) AS episodes
    FROM plan p LEFT JOIN exposure x USING (event_id)"""
EPISODES = """
    SELECT m.*, count(p.event_id) AS events,
           count(p.event_id) FILTER (split = 'validation') AS validation_events,
           coalesce(sum(p.draws), 0)::BIGINT AS planned,
           coalesce(sum(x.draws), 0)::BIGINT AS draws,
           coalesce(sum(x.draws) / (SELECT sum(draws) FROM exposure), 0) AS share
    FROM manifest m LEFT JOIN plan p USING (episode_id) LEFT JOIN exposure x USING (event_id)
    GROUP BY ALL ORDER BY draws DESC, planned DESC, m.episode_id"""
EVENTS = """
    SELECT e.episode_id, e.event_id, e.start_s, e.end_s, e.kind, c.text AS caption, p.split,
           p.weight, coalesce(p.draws, 0) AS planned, coalesce(x.draws, 0) AS draws
    FROM events e LEFT JOIN plan p USING (event_id) LEFT JOIN exposure x USING (event_id)
    LEFT JOIN (SELECT event_id, text FROM captions WHERE level = 'action') c USING (event_id)
    ORDER BY e.episode_id, e.start_s"""
TRIAL_COUNTS = """
    SELECT station, policy, count(*) AS trials, count(success) AS judged,
           count(*) FILTER (success) AS successes
    FROM trials GROUP BY ALL ORDER BY ALL"""
# Every version's tables, each row with its version: `version` maps a tag to the files it read.
REACH = """
    WITH drawn AS (
        SELECT v.tag, p.episode_id, p.split, p.draws AS planned, coalesce(x.draws, 0) AS draws
        FROM version v JOIN plan p ON p.filename = v.plan
        LEFT JOIN exposure x ON x.filename = v.exposure AND x.event_id = p.event_id
        WHERE p.episode_id IN (SELECT unnest($ids))),
    total AS (
        SELECT v.tag, sum(x.draws) AS draws
        FROM version v JOIN exposure x ON x.filename = v.exposure GROUP BY v.tag)
    SELECT v.number, v.tag, v.commit, v.run, m.episode_id, m.task, m.source, m.source_uri,
           m.source_version, m.origins, count(d.tag) AS events,
           count(*) FILTER (d.split = 'validation') AS validation_events,
           coalesce(sum(d.planned), 0)::BIGINT AS planned,
           coalesce(sum(d.draws), 0)::BIGINT AS draws,
           coalesce(sum(d.draws) / any_value(t.draws), 0) AS share
    FROM version v JOIN manifest m ON m.filename = v.manifest
    LEFT JOIN drawn d ON d.tag = v.tag AND d.episode_id = m.episode_id
    LEFT JOIN total t ON t.tag = v.tag
    WHERE m.episode_id IN (SELECT unnest($ids))
    GROUP BY ALL ORDER BY m.episode_id, v.number"""
TOTALS = """
    SELECT v.tag, coalesce(sum(x.planned_draws), 0)::BIGINT AS planned,
           coalesce(sum(x.draws), 0)::BIGINT AS draws
    FROM version v LEFT JOIN exposure x ON x.filename = v.exposure GROUP BY v.tag"""
MATCHING = """
    WITH place AS (
        SELECT DISTINCT episode_id, unnest(list_append(origins, source_uri)) AS uri FROM manifest),
    asked AS (SELECT unnest($addresses) AS address)
    SELECT DISTINCT episode_id FROM place, asked
    WHERE uri = address OR starts_with(uri, address || '/') OR starts_with(uri, address || '#')
    ORDER BY ALL"""
QUARANTINED = """
    WITH asked AS (SELECT unnest($addresses) AS address)
    SELECT v.tag, q.* EXCLUDE (filename)
    FROM version v JOIN quarantine q ON q.filename = v.quarantine
    WHERE EXISTS (
        FROM asked WHERE q.source_uri = address OR starts_with(q.source_uri, address || '/')
        OR starts_with(q.source_uri, address || '#'))
    ORDER BY v.number, q.source_uri, q.episode_index"""


def open_run(run: PastRun, cache: Cache) -> DuckDBPyConnection:
    """The tables of one run as views."""
    import duckdb
    import pyarrow as pa

    from components.records import TRIALS as TRIALS_SCHEMA

    tables = duckdb.connect()
    for view, path in VIEWS.items():
        tables.read_parquet(str(cache.file(run, path))).create_view(view)
    if cache.digest(run, TRIALS):
        tables.read_parquet(str(cache.file(run, TRIALS))).create_view("trials")
    else:
        tables.register("trials", pa.Table.from_pylist([], schema=TRIALS_SCHEMA))
    return tables


def open_all(versions: list[Version], runs: dict[str, PastRun], cache: Cache) -> DuckDBPyConnection:
    """The tables of all versions as views with `filename`; `version` says which files are whose."""
    import duckdb

    tables = duckdb.connect()
    names = ("manifest", "plan", "exposure", "quarantine")
    files = {
        v.tag: [str(cache.file(runs[v.commit], VIEWS[name])) for name in names] for v in versions
    }
    for at, name in enumerate(names):
        distinct = sorted({paths[at] for paths in files.values()})
        tables.read_parquet(distinct, filename=True, union_by_name=True).create_view(name)
    tables.execute(
        "CREATE TABLE version (number INTEGER, tag TEXT, commit TEXT, run TEXT, "
        "manifest TEXT, plan TEXT, exposure TEXT, quarantine TEXT)"
    )
    rows = [[i, v.tag, v.commit, v.run, *files[v.tag]] for i, v in enumerate(versions)]
    tables.executemany("INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return tables


def rows(tables: DuckDBPyConnection, query: str, values: Row | None = None) -> list[Row]:
    result = tables.execute(query, values)
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
