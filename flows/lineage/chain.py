"""Does a run's history hold together? Every digest that is written in two places is compared.

Inputs with the outputs they came from, code and values with the commit, the plan with what training
echoes of it, trials with the checkpoint, the passport with its own list of digests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError
from components.outputs import sha256
from flows.lineage import history
from flows.lineage.cache import Cache
from flows.lineage.history import PastRun

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PLAN = "data/plan/plan.parquet"
EXPOSURE = "data/checkpoint/exposure.parquet"
WEIGHTS = "data/checkpoint/model.safetensors"
LIST = "digests.json"


@dataclass(frozen=True)
class Check:
    """One comparison; `got` is None where it could not be made, and `expected` says why."""

    where: str
    expected: str
    got: str | None

    @property
    def broken(self) -> bool:
        """True when both sides are known and differ."""
        return self.got is not None and self.got != self.expected


def check(repo: Path, run: PastRun, cache: Cache, tables: DuckDBPyConnection) -> list[Check]:
    """All checks of one run; `tables` has the views manifest, events, plan, exposure, trials."""
    return [
        *stages(repo, run),
        *links(run, cache),
        *code(repo, run, cache),
        *values(repo, run),
        *receipts(run, cache),
        *plan_inputs(run, cache),
        *rows(tables),
        *weights(run, cache, tables),
        *passport(run, cache),
    ]


def stages(repo: Path, run: PastRun) -> Iterator[Check]:
    """`dvc.lock` has every stage of the commit's `dvc.yaml`, with the same command."""
    graph = _committed(repo, run, "dvc.yaml").get("stages", {})
    ran = {stage.name: str(stage.cmd) for stage in run.stages}
    for name, entry in graph.items():
        expected, got = " ".join(str(entry["cmd"]).split()), " ".join(ran.get(name, "").split())
        yield Check(f"dvc.lock: {name}: cmd", expected, got or "no such stage")


def links(run: PastRun, cache: Cache) -> Iterator[Check]:
    """Each stage read what an earlier one wrote."""
    for stage in run.stages:
        for path, md5 in stage.deps.items():
            if (produced := cache.digest(run, path)) is not None:
                yield Check(f"dvc.lock: {stage.name}: input {path}", produced, md5)


def code(repo: Path, run: PastRun, cache: Cache) -> Iterator[Check]:
    """Code and other inputs that no stage wrote are the commit's, and so are metrics."""
    read = [
        (stage, path)
        for stage in run.stages
        for path in stage.deps
        if cache.digest(run, path) is None
    ]
    paths = {path for _, path in read} | set(run.outs)
    found = history.code_digests(repo, run.commit, sorted(paths))
    for stage, path in read:
        expected = found.get(path, "to be in the commit")
        yield Check(f"dvc.lock: {stage.name}: input {path}", expected, stage.deps[path])
    for path in sorted(found.keys() & run.outs.keys()):
        yield Check(f"dvc.lock: output {path}", found[path], run.outs[path])


def values(repo: Path, run: PastRun) -> Iterator[Check]:
    """Each stage ran with the values that the commit's parameter files hold."""
    for name in sorted({name for stage in run.stages for name in stage.params}):
        committed = _committed(repo, run, name)
        for stage in run.stages:
            for key, got in stage.params.get(name, {}).items():
                expected = _at(committed, key)
                yield Check(f"dvc.lock: {stage.name}: {name}:{key}", _json(expected), _json(got))


def receipts(run: PastRun, cache: Cache) -> Iterator[Check]:
    """The plan is the one that sampling signed, and the one that training says it followed."""
    expected = sha256(cache.file(run, PLAN))
    written = _read(cache, run, "data/plan/receipt.json")
    echoed = _read(cache, run, "data/checkpoint/receipt.json")
    for path, receipt in (("data/plan", written), ("data/checkpoint", echoed)):
        yield Check(f"{path}/receipt.json: plan_sha256", expected, str(receipt.get("plan_sha256")))


def plan_inputs(run: PastRun, cache: Cache) -> Iterator[Check]:
    """The tables that sampling says it read are those of this run."""
    written = _read(cache, run, "data/plan/receipt.json").get("inputs", {})
    for name in ("events", "captions", "clusters"):
        expected = sha256(cache.file(run, f"data/{name}/{name}.parquet"))
        yield Check(f"data/plan/receipt.json: inputs: {name}", expected, str(written.get(name)))


def totals(run: PastRun, cache: Cache, planned: int, draws: int) -> Iterator[Check]:
    """Draws in the checkpoint's receipt are the sums of its exposure table."""
    echoed = _read(cache, run, "data/checkpoint/receipt.json")
    for key, expected in (("planned_draws", planned), ("draws", draws)):
        got = str(echoed.get(key))
        yield Check(f"data/checkpoint/receipt.json: {key}", str(expected), got)


# What must select nothing: each row would be a draw, an event or an episode with no origin.
NONE_OF = {
    f"{PLAN}: events that data/events/events.parquet does not have": """
        SELECT event_id FROM plan ANTI JOIN events USING (event_id, episode_id)""",
    f"{PLAN}: events twice": """
        SELECT event_id FROM plan GROUP BY event_id HAVING count(*) > 1""",
    f"{PLAN}: episodes that data/episodes/manifest.parquet does not have": """
        SELECT episode_id FROM plan ANTI JOIN manifest USING (episode_id)""",
    f"{EXPOSURE}: events twice": """
        SELECT event_id FROM exposure GROUP BY event_id HAVING count(*) > 1""",
    f"{EXPOSURE}: events that the plan does not have": """
        SELECT event_id FROM exposure ANTI JOIN plan USING (event_id, episode_id)""",
    f"{EXPOSURE}: planned draws that the plan does not say": """
        SELECT event_id FROM exposure JOIN plan USING (event_id)
        WHERE planned_draws <> plan.draws""",
    f"{EXPOSURE}: planned events without a row": """
        SELECT event_id FROM plan ANTI JOIN exposure USING (event_id) WHERE plan.draws > 0""",
    f"{EXPOSURE}: training draws of validation events": """
        SELECT event_id FROM exposure JOIN plan USING (event_id)
        WHERE split = 'validation' AND exposure.draws > 0""",
}


def rows(tables: DuckDBPyConnection) -> Iterator[Check]:
    """Draws lead to events, events to episodes, and planned draws are the plan's."""
    for where, query in NONE_OF.items():
        found = [row[0] for row in tables.sql(f"{query} ORDER BY 1").fetchall()]
        yield Check(where, "none", f"{len(found)}, first {found[0]}" if found else "none")


def weights(run: PastRun, cache: Cache, tables: DuckDBPyConnection) -> Iterator[Check]:
    """Trials were held with this checkpoint, and evaluation is of it."""
    expected, why = _sha256_of(run, cache, WEIGHTS)
    results = _read(cache, run, "data/evaluation/results.json")
    where = "data/evaluation/results.json: checkpoint_digest"
    yield Check(where, expected or why, str(results.get("checkpoint_digest")) if expected else None)
    named = tables.sql("SELECT DISTINCT checkpoint_digest FROM trials ORDER BY 1").fetchall()
    got = ", ".join(str(digest) for (digest,) in named) or "no trials"
    where = "data/trials/trials.parquet: checkpoint_digest"
    yield Check(where, expected or why, got if expected else None)


def declared_initial(repo: Path, run: PastRun) -> dict[str, Any]:
    """The commit's `inputs/init.json`; empty in runs older than that file."""
    spec = f"{run.commit}:inputs/init.json"
    found: dict[str, Any] = json.loads(history.blobs(repo, [spec]).get(spec, b"{}"))
    return found


def initial(repo: Path, run: PastRun, cache: Cache) -> Iterator[Check]:
    """The checkpoint names the initial weights that the commit declares."""
    for part, entry in sorted(declared_initial(repo, run).items()):
        told = _read(cache, run, "data/checkpoint/config.json").get("initial", {}).get(part, {})
        where = f"data/checkpoint/config.json: initial: {part}"
        yield Check(where, _json(entry["sha256"]), _json(told.get("sha256")))


def passport_weights(run: PastRun, cache: Cache) -> str:
    """sha256 of a registered version's weights, as its passport lists it; empty if it does not."""
    files = _read(cache, run, f"data/passport/{LIST}").get("files", {})
    return str(files.get("model.safetensors", ""))


def passport(run: PastRun, cache: Cache) -> Iterator[Check]:
    """The passport's files, and those it was made from, have the digests that it lists."""
    listed = _read(cache, run, "data/passport/digests.json")
    files = {f"data/passport/{name}": digest for name, digest in listed.get("files", {}).items()}
    made_from = {f"data/{name}": digest for name, digest in listed.get("inputs", {}).items()}
    inside = cache.listing(run.outs["data/passport"], "data/passport")
    unlisted = {f"data/passport/{name}": "not listed" for name in inside if name != LIST}
    for path, got in {**unlisted, **made_from, **files}.items():
        expected, why = _sha256_of(run, cache, path)
        yield Check(f"data/passport/{LIST}: {path}", expected or why, got if expected else None)
    where = "data/passport/model.safetensors: as in data/checkpoint (md5)"
    yield Check(where, str(cache.digest(run, WEIGHTS)), str(inside.get("model.safetensors")))


def _sha256_of(run: PastRun, cache: Cache, path: str) -> tuple[str, str]:
    """(sha256, '') of a run's file, or ('', why it is not known)."""
    md5 = cache.digest(run, path)
    return cache.sha256(md5, path) if md5 else ("no such file in dvc.lock", "")


def _read(cache: Cache, run: PastRun, path: str) -> dict[str, Any]:
    try:
        value = json.loads(cache.file(run, path).read_bytes())
    except ValueError as error:
        raise DataError(f"{run.commit[:12]}: {path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{run.commit[:12]}: {path}: expected an object, got {type(value).__name__}."
        )
    return value


def _committed(repo: Path, run: PastRun, path: str) -> dict[str, Any]:
    spec = f"{run.commit}:{path}"
    return history.load_yaml(
        history.blobs(repo, [spec]).get(spec, b"{}"), f"{run.commit[:12]}:{path}"
    )


def _at(values: dict[str, Any], key: str) -> Any:
    """The value under a dotted key; None where it is missing."""
    inner: Any = values
    for part in key.split("."):
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
