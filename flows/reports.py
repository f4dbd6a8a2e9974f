"""`python -m flows.reports PORT FOLDER`: pages of runs' reports for people, on loopback.

`wamflow up` starts it beside the Prefect server, one port further, since a page of a server may not
link to a file. Only `report/` folders are served, nothing is listed, and pages may load nothing
from elsewhere: Data Docs would ask six networks for styles.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

HOST = "127.0.0.1"
POLICY = "default-src 'self' 'unsafe-inline' data:"
PAGES = {"ingestion": {"How the checks went, with Data Docs": "ingestion/index.html"}}


def links(stage: str, worktree: Path, prefect: str | None) -> str:
    """Markdown links to a stage's pages; `prefect` is the API of `wamflow up`, if it is there."""
    found = []
    for name, page in PAGES.get(stage, {}).items():
        if not (worktree / "report" / page).is_file():
            continue
        if prefect is None:
            found.append(f"{name}: `{worktree / 'report' / page}`")
        else:
            port = (urlsplit(prefect).port or 80) + 1
            found.append(f"[{name}](http://{HOST}:{port}/{quote(worktree.name)}/{page})")
    return "\n\n".join(found)


class _Handler(SimpleHTTPRequestHandler):
    """Files below `<folder>/<run>/report/`, as `/<run>/...`."""

    def translate_path(self, path: str) -> str:
        """The file of an address; one that leaves the report does not exist."""
        parts = [unquote(part) for part in urlsplit(path).path.split("/") if part]
        root = Path(self.directory).resolve()
        if len(parts) < 2 or any(part in (".", "..") or "/" in part for part in parts):
            return str(root / "no such page")
        report = root / parts[0] / "report"
        target = report.joinpath(*parts[1:]).resolve()
        return str(target if target.is_relative_to(report.resolve()) else root / "no such page")

    def list_directory(self, path: object) -> None:
        """Nothing is listed."""
        self.send_error(404)

    def end_headers(self) -> None:
        """Pages stay with what is here."""
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


def server(port: int, folder: Path) -> ThreadingHTTPServer:
    """Bound and ready; `folder` holds the runs' worktrees."""
    return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder)))


if __name__ == "__main__":
    server(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
