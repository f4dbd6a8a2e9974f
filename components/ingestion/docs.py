"""Data Docs: what Great Expectations says of each robot's episodes, as its own renderers write it.

The folders are those of its site builder, whose stores, checks of freshness and three compilations
of each template would cost as much as the validation. Its front page, which is empty without a
network, leads to ours (`page.py`). What its pages would fetch from six networks is left out, since
runs are looked at without any; a few lines of style stand in for it.
"""

from __future__ import annotations

import datetime
import re
import shutil
from pathlib import Path
from typing import Any

from great_expectations.render.renderer import (
    ExpectationSuitePageRenderer,
    ValidationResultsPageRenderer,
)
from great_expectations.render.view import DefaultJinjaPageView

FRONT = '<!doctype html><meta charset=utf-8><meta http-equiv=refresh content="0;url=../index.html">'

FETCHED = re.compile(
    r"<link[^>]*https?://[^>]*>|<script[^>]*src=[^>]*></script>|<footer>.*?</footer>"
    r"|url\(\W?https?:[^)]*\)"
    r'|<link rel="shortcut icon"[^>]*>|<img[^>]*https?://[^>]*>',
    re.DOTALL,
)
STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 1em 2em; color: #222 }
table { border-collapse: collapse; margin: .3em 0 1em }
td, th { border-top: 1px solid #ddd; padding: .2em .8em; text-align: left; vertical-align: top }
nav { height: auto !important } .breadcrumb { list-style: none; padding: 0 }
.card { display: none } .collapse { display: block !important }
.fa-check-circle::before { content: "✓"; color: #2a7 }
.fa-times::before, .fa-exclamation-triangle::before { content: "✗"; color: #c30 }
</style>"""


def write(report: Path, results: dict[str, Any], suites: dict[str, Any]) -> None:
    """A page for each validation (by slug) and for its suite, in the folder `data_docs`."""
    root = report / "data_docs"
    shutil.rmtree(root, ignore_errors=True)
    view = DefaultJinjaPageView()  # one for all: it keeps its compiled templates
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    for slug, result in sorted(results.items()):
        result.meta["run_id"] = {"run_name": "ingestion", "run_time": now}
        page = ValidationResultsPageRenderer().render(result)
        _page(root / f"validations/{slug}/ingestion/{now}/{slug}-facts.html", view, page)
        suite = ExpectationSuitePageRenderer().render(suites[slug])
        _page(root / f"expectations/{slug}.html", view, suite)
    (root / "index.html").write_text(FRONT + "\n")


def _page(path: Path, view: Any, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    html = FETCHED.sub("", view.render(content, show_how_to_buttons=False))
    path.write_text(html.replace("</head>", STYLE + "</head>", 1))
