"""Great Expectations decides which episodes pass: a suite for each robot over rows of facts.

Each check of `suites.py` becomes one expectation with its severity and reason. What blocking ones
find keeps an episode aside; what warnings find goes to the manifest. The report (JSON and Data
Docs, with clocks) goes to the run's report folder. Nothing is sent anywhere.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from components.ingestion import measure, scores
from components.ingestion.measure import Facts
from components.ingestion.reasons import Problem, Reason
from components.ingestion.suites import Check
from components.outputs import write_json

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports sre_constants
    import great_expectations as gx

SEVERITY = {"blocking": "critical", "warning": "warning"}
UNWRITABLE = {  # what no output can hold, whatever is asked for
    Reason.EMPTY_EPISODE,
    Reason.UNKNOWN_TASK,
    Reason.MISSING_VIDEO,
    Reason.UNREADABLE_VIDEO,
}


@dataclass(frozen=True)
class Verdict:
    """Why an episode is kept aside, if it is, and what else is said of it: check -> sentence."""

    problem: Problem | None = None
    warnings: dict[str, str] = field(default_factory=dict)


def validate(
    facts: list[Facts], suites: dict[str, list[Check]], report: Path, *, score_only: bool
) -> list[Verdict]:
    """One verdict for each episode; `suites` has one suite for each robot among them.

    With `score_only` an episode is kept aside only when it cannot be read or written at all.
    """
    shutil.rmtree(report / "data_docs", ignore_errors=True)
    context = _context(report)
    table = _table(facts)
    broken: dict[int, dict[str, Check]] = {}
    documents: dict[str, Any] = {}
    for robot, suite in sorted(suites.items()):
        result = _run(context, robot, table[table["robot"] == robot], suite)
        documents[robot] = result.to_json_dict()
        named = {check.name: check for check in suite}
        for name, row in _unexpected(result):
            if name in named:
                broken.setdefault(row, {})[name] = named[name]
    write_json(report / "validation.json", documents)
    scores.write(report, table, suites, broken)
    return [_verdict(f, broken.get(row, {}), score_only) for row, f in enumerate(facts)]


def _unexpected(result: Any) -> list[tuple[str, int]]:
    """(check, row) of whatever broke an expectation."""
    found = []
    for check in result.results:
        if check.exception_info.get("raised_exception"):
            raise RuntimeError(f"Great Expectations: {check.exception_info['exception_message']}")
        name = check.expectation_config.meta["check"]
        found += [(name, int(r["row"])) for r in check.result.get("unexpected_index_list") or []]
    return found


def _table(facts: list[Facts]) -> pd.DataFrame:
    """A row of facts for each episode; what was not measured is empty and breaks nothing."""
    rows = []
    for number, item in enumerate(facts):
        every = {**asdict(item), **item.numbers, "task_words": len((item.task or "").split())}
        if item.read_problem is not None:
            every = {"read_problem": item.read_problem.value}
        values = {name: float("nan" if v is None else v) for name, v in _known(every).items()}
        named = {"row": number, "uri": item.uri, "robot": item.robot}
        rows.append({**named, "read_problem": every["read_problem"], **values})
    return pd.DataFrame(rows).astype({"read_problem": object})


def _known(every: dict[str, Any]) -> dict[str, Any]:
    return {name: every.get(name) for name in sorted(measure.KNOWN)}


def _expectations(suite: list[Check]) -> list[Any]:
    read = gx.expectations.ExpectColumnValuesToBeNull(
        column="read_problem",
        notes="The rows of the episode can be read.",
        severity="critical",
        meta={"check": "readable"},
    )
    return [read, *map(_expectation, suite)]


def _expectation(check: Check) -> Any:
    return gx.expectations.ExpectColumnValuesToBeBetween(
        column=check.fact,
        min_value=check.min,
        max_value=check.max,
        severity=SEVERITY[check.severity],
        notes=f"{check.name} ({check.severity})",
        meta={"check": check.name, "reason": check.reason.value},
    )


def _context(report: Path) -> Any:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    scratch = context.variables.data_docs_sites["local_site"]["store_backend"]["base_directory"]
    shutil.rmtree(scratch, ignore_errors=True)  # it makes a folder in /tmp that nobody uses
    context.add_data_docs_site("report", _site(report / "data_docs"))
    return context


def _run(context: Any, robot: str, table: pd.DataFrame, checks: list[Check]) -> Any:
    slug = scores.slug(robot)
    batch = (
        context.data_sources.add_pandas(slug)
        .add_dataframe_asset("facts")
        .add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(gx.ExpectationSuite(slug, _expectations(checks)))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=slug, data=batch, suite=suite)
    )
    checkpoint = gx.Checkpoint(
        name=slug,
        validation_definitions=[definition],
        actions=[gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["report"])],
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["row", "uri"],
        },
    )
    run = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table})
    return next(iter(run.run_results.values()))


def _site(folder: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.absolute()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _verdict(facts: Facts, broken: dict[str, Check], score_only: bool) -> Verdict:
    """The first reason in order of precedence; its sentence tells of all that block."""
    if facts.read_problem is not None:
        return Verdict(Problem(facts.read_problem, facts.details[facts.read_problem]))
    said = {name: _said(facts, check) for name, check in broken.items()}
    blocking = {
        check.reason: said[name]
        for name, check in broken.items()
        if check.severity == "blocking" and (not score_only or check.reason in UNWRITABLE)
    }
    ordered = [reason for reason in Reason if reason in blocking]
    if ordered:
        return Verdict(Problem(ordered[0], "; ".join(blocking[reason] for reason in ordered)))
    return Verdict(None, dict(sorted(said.items())))


def _said(facts: Facts, check: Check) -> str:
    """What was found in words, else as a number with its bounds."""
    if (detail := facts.details.get(check.reason)) is not None:
        return detail
    if check.reason is Reason.UNKNOWN_TASK:
        return "no task sentence for the episode"
    if check.fact == "n_frames":
        return f"the episode has {facts.n_frames} rows"
    value = facts.numbers.get(check.fact, getattr(facts, check.fact, None))
    bounds = [f"at least {check.min:g}" if isinstance(check.min, float) else ""]
    bounds += [f"at most {check.max:g}" if isinstance(check.max, float) else ""]
    return f"{check.fact}: expected {' and '.join(filter(None, bounds))}, got {value:.4g}"
