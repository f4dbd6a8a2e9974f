"""Progress of a running stage: from the lines of its log, rarely, and never in the way."""

from __future__ import annotations

import pytest
import yaml
from prefect import artifacts

from components.pretraining.training import CURVE
from flows import progress
from flows.progress import Progress
from tests.conftest import ROOT


def test_lines_become_one_artifact_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[object, ...]] = []
    now = iter([0.0, 0.0, 1.0, 9.0, 9.0, 9.5, 9.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(
        artifacts, "create_progress_artifact", lambda *given: shown.append(given) or "id"
    )
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda *given: shown.append(given))
    lines: list[str] = []
    log = Progress("pretraining", lines.append)
    said = ["preparing", "step 1/8 loss 3", "step 2/8 loss 2", "step 4/8 loss 1", "step 8/8 loss 0"]
    for line in said:
        log(line)
    assert lines == said
    assert shown == [
        (12.5, "pretraining-progress", "step 1/8 loss 3"),
        ("id", 50.0, "step 4/8 loss 1"),
        ("id", 100.0, "step 8/8 loss 0"),
    ]


def test_prefect_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(artifacts, "create_progress_artifact", fail)
    lines: list[str] = []
    log = Progress("pretraining", lines.append)
    log("step 1/8")
    log("step 8/8")
    assert lines[1] == "warning: progress is not shown: ConnectionError: no server"
    assert lines[2:] == ["step 8/8"]


def test_plots_draw_columns_that_there_are() -> None:
    """`dvc plots` says nothing of a column that does not exist."""
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    columns = {"curve.csv": ("step", *CURVE), "clusters.csv": ("cluster", "planned_draws", "draws")}
    for plot in plots:
        ((_, of),) = plot.items()
        for file, wanted in of["y"].items():
            names = [wanted] if isinstance(wanted, str) else wanted
            assert {of["x"], *names} <= set(columns[file.rsplit("/", 1)[-1]])
