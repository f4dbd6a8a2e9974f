"""The run's `report/` folder: what carries a clock, and so can be no stage output."""

from __future__ import annotations

import os
from pathlib import Path


def folder(stage: str) -> Path:
    """`report/<stage>/` of the run (`WAMFLOW_REPORT` names another place), made when missing."""
    path = Path(os.environ.get("WAMFLOW_REPORT", "report")) / stage
    path.mkdir(parents=True, exist_ok=True)
    return path
