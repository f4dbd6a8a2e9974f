"""The end of a run in a few lines: what came out of each stage, the model, and what to do next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def text(summary: dict[str, Any]) -> str:
    """For people: one line for each stage."""
    reports: dict[str, Report] = summary["reports"]
    ran = [name for name, outcome in summary["stages"].items() if outcome == "ran"]
    lines = [
        "",
        f"run          {summary['run']}, {summary['seconds']:.0f} s; "
        + (f"ran: {', '.join(ran)}" if ran else "nothing to do, all results were known"),
    ]
    lines += [f"{stage:<12} {_line(stage, report)}" for stage, report in reports.items() if report]
    lines += _model(summary)
    return "\n".join(lines)


def _line(stage: str, report: Report) -> str:
    """The stage's own words, or its values where it is not one of ours."""
    try:
        return LINES[stage](report)
    except KeyError:
        return ", ".join(f"{name} {value}" for name, value in report.items())


def _ingestion(r: Report) -> str:
    why = ", ".join(f"{n} {reason}" for reason, n in r["reasons"].items())
    return f"{r['episodes']} episodes, {r['quarantined']} in quarantine" + (
        f" ({why})" if why else ""
    )


def _segmentation(r: Report) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in r["kinds"].items())
    said = f"{r['events']} events ({kinds}), median {r['median_event_s']:.2f} s"
    return said + _people(r, "boundary_f1", "boundary F1 against people")


def _captioning(r: Report) -> str:
    told = f"{r['captions']} captions on {len(r['levels'])} levels"
    told += f", {r['flagged']} flagged by checks"
    if lost := sum(r.get("fallbacks", {}).values()):
        told += f", {lost} by rules where the model gave nothing usable"
    told += f", {r['cost_usd']:.2f} USD" if r.get("cost_usd") else ""
    return told + _people(r, "same_texts", "share of their texts that the machine says, too")


def _people(r: Report, score: str, what: str) -> str:
    """What people corrected and how far the machine agrees; empty where nobody said anything."""
    people = r.get("people") or {}
    if not people.get("corrections"):
        return ""
    agrees = "" if people[score] is None else f" ({what} {people[score]:.2f})"
    return f"; {people['corrections']} corrections by people{agrees}"


def _clustering(r: Report) -> str:
    return f"{r['joint_clusters']} joint and {r['action_clusters']} action clusters"


def _sampling(r: Report) -> str:
    return f"{r['draws']} draws of {r['drawn_events']} events, at most {r['draws_most']} of one"


def _pretraining(r: Report) -> str:
    return f"loss {r['loss_first']:.3f} first, {r['loss_last']:.3f} last, {r['steps']} steps"


def _evaluation(r: Report) -> str:
    return f"{r['trials']} trials: {r['result']}"


def _registration(r: Report) -> str:
    return f"{r['files']} files, {r['bytes'] / 1e6:.1f} MB, sha256 {r['passport_sha256'][:12]}"


LINES = {
    "ingestion": _ingestion,
    "segmentation": _segmentation,
    "captioning": _captioning,
    "clustering": _clustering,
    "sampling": _sampling,
    "pretraining": _pretraining,
    "evaluation": _evaluation,
    "registration": _registration,
}


def _model(summary: dict[str, Any]) -> list[str]:
    """The version and the next commands."""
    lines = [f"branch       {summary['branch']} at {summary['commit'][:12]}"]
    model = summary["model"]
    if model is None:
        return lines
    here = Path(sys.prefix) == Path(".venv").absolute()
    wamflow = ".venv/bin/wamflow" if here else "wamflow"  # `make` activates nothing
    following = {
        f"trace {model}": "what it was made from",
        "run --set sampling.temperature=0.3": "change one number; only what follows runs",
        "up": "the same flow as a form, with pictures",
    }
    width = max(map(len, following))
    known = " (known already: equal content)" if summary["model_existed"] else ""
    return [
        *lines,
        f"model        {model}{known}",
        "",
        "next",
        *(f"  {wamflow} {words:<{width}}   {why}" for words, why in following.items()),
    ]
