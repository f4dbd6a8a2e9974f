"""Finished trials, one JSON line each, so that a killed collection goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """An append-only file: `{"row": {...of trials.parquet}, "log": {...clocks and latencies}}`."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line torn by a kill is cut off."""
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}  # by trial number
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            row = json.loads(line)["row"]
            self.rows[row["trial"]] = row

    def keep(self, expected: dict[int, dict[str, Any]]) -> None:
        """Forget rows that are not of an expected trial; `expected` has some fields by number."""
        self.rows = {
            number: row
            for number, row in self.rows.items()
            if number in expected and row.items() >= expected[number].items()
        }

    def add(self, row: dict[str, Any], log: dict[str, Any]) -> None:
        """Keep one finished trial, on the disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps({"row": row, "log": log}, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[row["trial"]] = row
