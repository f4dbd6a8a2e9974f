"""Great Expectations decides which episodes pass: one suite over one row of facts for each episode.

Every expectation carries the reason it stands for; the rows that break it get this reason. The
report (JSON and Data Docs, with clocks) goes to the run's report folder. Nothing is sent anywhere.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from components.ingestion.measure import Facts
from components.ingestion.reasons import Problem, Reason
from components.outputs import write_json

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports sre_constants
    import great_expectations as gx

NUMBERS = (
    "n_frames",
    "bad_values",
    "backward_steps",
    "videos_missing",
    "videos_unreadable",
    "frames_off",
)


def expectations(min_frames: int, max_video_frames_off: int) -> list[Any]:
    """The suite. A value that could not be measured is empty and breaks nothing by itself."""
    return [
        gx.expectations.ExpectColumnValuesToBeNull(
            column="read_problem", notes="The rows of the episode can be read."
        ),
        _between("n_frames", 1, None, Reason.EMPTY_EPISODE),
        _between("n_frames", min_frames, None, Reason.TOO_SHORT),
        _between("bad_values", None, 0, Reason.NAN_IN_SIGNALS),
        _between("backward_steps", None, 0, Reason.TIMESTAMPS_NOT_INCREASING),
        gx.expectations.ExpectColumnValuesToNotBeNull(
            column="task", meta={"reason": Reason.UNKNOWN_TASK.value}
        ),
        _between("videos_missing", None, 0, Reason.MISSING_VIDEO),
        _between("videos_unreadable", None, 0, Reason.UNREADABLE_VIDEO),
        _between("frames_off", None, max_video_frames_off, Reason.VIDEO_LENGTH_MISMATCH),
    ]


def validate(
    facts: list[Facts], min_frames: int, max_video_frames_off: int, report: Path
) -> list[Problem | None]:
    """For each episode the first reason against it, or None."""
    suite = gx.ExpectationSuite("episode", expectations(min_frames, max_video_frames_off))
    result = _run(_table(facts), suite, report)
    broken: dict[int, set[Reason]] = {}
    for check in result.results:
        if check.exception_info.get("raised_exception"):
            raise RuntimeError(f"Great Expectations: {check.exception_info['exception_message']}")
        for row in check.result.get("unexpected_index_list") or []:
            reason = check.expectation_config.meta.get("reason") or row["read_problem"]
            broken.setdefault(int(row["row"]), set()).add(Reason(reason))
    write_json(report / "validation.json", result.to_json_dict())
    return [_verdict(item, broken.get(row, set())) for row, item in enumerate(facts)]


def _between(column: str, low: int | None, high: int | None, reason: Reason) -> Any:
    return gx.expectations.ExpectColumnValuesToBeBetween(
        column=column, min_value=low, max_value=high, meta={"reason": reason.value}
    )


def _table(facts: list[Facts]) -> pd.DataFrame:
    table = pd.DataFrame([{**asdict(item), "row": row} for row, item in enumerate(facts)])
    for name in NUMBERS:
        table[name] = table[name].astype("float64")
    unread = table["read_problem"].notna() & (table["n_frames"] == 0)
    table.loc[unread, "n_frames"] = float("nan")  # not measured: no reason of its own
    table["task"] = table["task"].where(~unread, "")
    return table[["row", "uri", "read_problem", "task", *NUMBERS]].astype(
        {"read_problem": object, "task": object}
    )


def _run(table: pd.DataFrame, suite: Any, report: Path) -> Any:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = (
        context.data_sources.add_pandas("episodes")
        .add_dataframe_asset("facts")
        .add_batch_definition_whole_dataframe("all")
    )
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name="ingestion", data=batch, suite=context.suites.add(suite))
    )
    shutil.rmtree(report / "data_docs", ignore_errors=True)
    scratch = context.variables.data_docs_sites["local_site"]["store_backend"]["base_directory"]
    shutil.rmtree(scratch, ignore_errors=True)  # it makes a folder in /tmp that nobody uses
    context.add_data_docs_site("report", _site(report / "data_docs"))
    checkpoint = gx.Checkpoint(
        name="ingestion",
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


def _verdict(facts: Facts, reasons: set[Reason]) -> Problem | None:
    """The first reason in order of precedence; the sentence tells of all."""
    ordered = [reason for reason in Reason if reason in reasons]
    if not ordered:
        return None
    details = [facts.details.get(reason) or _plain(facts, reason) for reason in ordered]
    return Problem(ordered[0], "; ".join(details))


def _plain(facts: Facts, reason: Reason) -> str:
    if reason is Reason.UNKNOWN_TASK:
        return "no task sentence for the episode"
    return f"the episode has {facts.n_frames} rows"
