"""What a person sees of a stage in the Prefect UI: its report as a table, and a picture.

Read from the run's worktree, so that a stage whose results were restored shows the same. A picture
that cannot be drawn is a line that says so, never a failed run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHOWN_EPISODES = 4
SHOWN_TRIALS = 4


def markdown(stage: str, desc: str, worktree: Path, outcome: str, links: str = "") -> str:
    """The stage's artifact: heading, picture, links to its pages, and the report's values."""
    values = {k: v for k, v in report(worktree, stage).items() if v is not None}
    said = [v for v in values.values() if isinstance(v, str) and " " in v]
    table = _table({k: v for k, v in values.items() if v not in said})
    parts = [f"## {stage}: {outcome}", desc, *said, links, _picture(stage, worktree), table]
    return "\n\n".join(part for part in parts if part)


def report(worktree: Path, stage: str) -> dict[str, Any]:
    """`metrics/<stage>.json`, or nothing when the stage wrote none."""
    path = worktree / "metrics" / f"{stage}.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _table(values: dict[str, Any]) -> str:
    """Names and values, one row each."""
    if not values:
        return ""
    rows = [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| what | value |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    """Short text without what would break a table; words of recordings are no pictures or links."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{_cell(k)}: {_cell(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    text = " ".join(str(value).split("\n"))
    return text.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def _picture(stage: str, worktree: Path) -> str:
    """The stage's picture as a data URI in Markdown, if it has one."""
    draw = DRAWN.get(stage)
    if draw is None:
        return ""
    png = worktree / "report" / stage / "picture.png"  # the run's report keeps it, too
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
        draw(worktree, png)
        content = base64.b64encode(png.read_bytes()).decode()
    except Exception as error:  # drawing is a courtesy: whatever is wrong, the results stand
        return f"*(no picture: {type(error).__name__}: {error})*"
    return f"![{stage}](data:image/png;base64,{content})"


def _segmentation(worktree: Path, png: Path) -> None:
    from components.segmentation import picture

    data = worktree / "data"
    picture.draw(data / "episodes", data / "events", png, SHOWN_EPISODES)


def _pretraining(worktree: Path, png: Path) -> None:
    """Each loss at each step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from pyarrow import csv

    curve = csv.read_csv(worktree / "data/checkpoint/curve.csv").to_pydict()
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    for name in [n for n in ("loss", "action", "video", "left") if n in curve]:
        axes.plot(curve["step"], curve[name], label=name, linewidth=0.8)
    axes.legend()
    FigureCanvasAgg(figure)
    figure.savefig(png)


def _evaluation(worktree: Path, png: Path) -> None:
    """Success rates; below them, where this run collected trials, what the model expected to see of
    held-out events beside what happened, and some of its trials.
    """
    from PIL import Image

    sheets = [worktree / "data/evaluation/results.png"]
    sheets += sorted((worktree / "report/trials").glob("expected.png"))
    sheets += sorted((worktree / "report/trials/pictures").glob("*.png"))[:SHOWN_TRIALS]
    pictures = [Image.open(sheet).convert("RGB") for sheet in sheets]
    width = max(picture.width for picture in pictures)
    page = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    page.save(png)


DRAWN: dict[str, Callable[[Path, Path], None]] = {
    "segmentation": _segmentation,
    "pretraining": _pretraining,
    "evaluation": _evaluation,
}
