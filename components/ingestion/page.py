"""`report/ingestion/index.html`: how each robot's episodes met their checks.

Needs nothing from any network; the front page of Data Docs is empty without one.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

STYLE = """body{font:15px system-ui,sans-serif;margin:2em;max-width:70em;color:#222}
table{border-collapse:collapse;margin:.5em 0 2em}td,th{padding:.25em .8em;text-align:left;
border-bottom:1px solid #ddd}td.n{text-align:right}tr.hit td{background:#fff3d6}
tr.stop td{background:#ffdcd6}.bar{display:inline-block;height:.7em;background:#c60}"""


def write(report: Path, scores: dict[str, Any]) -> None:
    """The page of `scores` (`scores.py`); Data Docs lie below `report`."""
    pages = sorted((report / "data_docs/validations").glob("*/*/*/*.html"))
    links = {page.stem.removesuffix("-facts"): page.relative_to(report) for page in pages}
    body = "".join(_robot(name, found, links) for name, found in scores.items())
    title = "Checks of ingestion"
    head = f"<meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    (report / "index.html").write_text(f"<!doctype html>{head}<h1>{title}</h1>{body}\n")


def _robot(name: str, found: dict[str, Any], links: dict[str, Path]) -> str:
    rows = "".join(_row(check, said) for check, said in found["checks"].items())
    link = links.get(found["page"])
    docs = f'<a href="{escape(link.as_posix())}">Data Docs</a>' if link else ""
    columns = "check,severity,fact,bounds,1 %,median,99 %,episodes,"
    head = "".join(f"<th>{column}</th>" for column in columns.split(","))
    return (
        f"<h2>{escape(name)}</h2><p>{found['episodes']} episodes, "
        f"{found['unreadable']} unreadable. {docs}</p><table><tr>{head}</tr>{rows}</table>"
    )


def _row(check: str, said: dict[str, Any]) -> str:
    low, high = (said[bound] for bound in ("min", "max"))
    bounds = " ".join(
        f"{sign} {value:g}" for sign, value in (("≥", low), ("≤", high)) if value is not None
    )
    hit = "" if not said["rejects"] else ("stop" if said["severity"] == "blocking" else "hit")
    values = [_number(said["distribution"].get(q)) for q in ("q01", "q50", "q99")]
    cells = [escape(check), said["severity"], escape(said["fact"]), bounds]
    bar = f'<span class=bar style="width:{100 * said["share"]:.0f}px"></span>'
    return (
        f'<tr class="{hit}">'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "".join(f"<td class=n>{value}</td>" for value in [*values, said["rejects"]])
        + f"<td>{bar}</td></tr>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
