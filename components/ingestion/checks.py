"""Great Expectations decides which episodes pass: a suite for each robot over rows of facts.

Each check of `suites.py` becomes one expectation with its severity and reason. What blocking ones
find keeps an episode aside; what warnings find goes to the manifest. The report (JSON and Data
Docs, with clocks) goes to the run's report folder. Nothing is sent anywhere.
"""

from __future__ import annotations

import gc
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
    from great_expectations.compatibility.pydantic import PrivateAttr

    from components.ingestion import docs

gc.freeze()  # the million objects of that import are no garbage: never look through them again

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


class ExpectFactToBeBetween(gx.expectations.ExpectColumnValuesToBeBetween):  # type: ignore[misc]
    """GX's own, whose configuration is built once and not 80 times: a third of a validation."""

    _built: Any = PrivateAttr(None)

    @property
    def configuration(self) -> Any:
        """As GX builds it; an expectation of ours never changes."""
        if self._built is None:
            self._built = super().configuration
        return self._built


def validate(
    facts: list[Facts], suites: dict[str, list[Check]], report: Path, *, score_only: bool
) -> list[Verdict]:
    """One verdict for each episode; `suites` has one suite for each robot among them.

    With `score_only` an episode is kept aside only when it cannot be read or written at all.
    """
    table = _table(facts)
    broken: dict[int, dict[str, Check]] = {}
    asked = {robot: _suite(robot, checks) for robot, checks in sorted(suites.items())}
    results = {robot: _run(suite, table[table["robot"] == robot]) for robot, suite in asked.items()}
    for robot, result in results.items():
        named = {check.name: check for check in suites[robot]}
        for name, row in _unexpected(result):
            if name in named:
                broken.setdefault(row, {})[name] = named[name]
    docs.write(
        report,
        {asked[robot].name: result for robot, result in results.items()},
        {suite.name: suite for suite in asked.values()},
    )
    documents = {robot: result.to_json_dict() for robot, result in results.items()}
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


def _suite(robot: str, checks: list[Check]) -> Any:
    read = gx.expectations.ExpectColumnValuesToBeNull(
        column="read_problem",
        notes="The rows of the episode can be read.",
        severity="critical",
        meta={"check": "readable"},
    )
    return gx.ExpectationSuite(scores.slug(robot), [read, *map(_expectation, checks)])


def _expectation(check: Check) -> Any:
    return ExpectFactToBeBetween(
        column=check.fact,
        min_value=check.min,
        max_value=check.max,
        severity=SEVERITY[check.severity],
        notes=f"{check.name} ({check.severity})",
        meta={"check": check.name, "reason": check.reason.value},
    )


def _run(suite: Any, table: pd.DataFrame) -> Any:
    """The result of a suite over rows of facts; the context holds nothing that outlives it."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    site = context.variables.data_docs_sites["local_site"]["store_backend"]["base_directory"]
    shutil.rmtree(site, ignore_errors=True)  # it makes a folder in /tmp that nobody uses
    batch = (
        context.data_sources.add_pandas("ingestion")
        .add_dataframe_asset("facts")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": table})
    )
    return batch.validate(
        suite,
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["row", "uri"],
            "return_unexpected_index_query": False,  # code for a table that nobody has
        },
    )


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
