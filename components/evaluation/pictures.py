"""One picture of the evaluation: each policy's figure with its interval, task by task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.evaluation.tables import ALL, POLICIES

COLOURS = {"model": "#1b6ca8", "hold_still": "#8c8c8c", "random": "#d08c2f"}
LABELS = {"model": "model", "hold_still": "hold still", "random": "random"}


def draw(path: Path, closed: dict[str, Any] | None, opened: dict[str, Any] | None) -> None:
    """Write a PNG; the same figures give the same bytes (no clock, no version, no user's style)."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (result, key, title)
        for result, key, title in (
            (closed, "rate", "success rate"),
            (opened, "error", "mean normalised action error (open loop, no robot moved)"),
        )
        if result is not None
    ]
    with matplotlib.style.context("default", after_reset=True):
        tasks = sum(len(result["policies"]["model"]) for result, _, _ in panels)
        figure = Figure(figsize=(7.0, 1.4 + 0.6 * tasks), layout="constrained")
        FigureCanvasAgg(figure)
        heights = [len(result["policies"]["model"]) + 1 for result, _, _ in panels]
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, (result, key, title) in zip(axes, panels, strict=True):
            _panel(ax, result["policies"], key, title)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _panel(ax: Any, policies: dict[str, Any], key: str, title: str) -> None:
    tasks = [task for task in sorted(policies["model"]) if task != ALL] + [ALL]
    for shift, policy in zip((-0.22, 0.0, 0.22), POLICIES, strict=True):
        figures = [policies[policy][task] for task in tasks]
        values = [figure[key] for figure in figures]
        ax.errorbar(
            values,
            [position + shift for position in range(len(tasks))],
            xerr=[
                [_reach(figure, key, "lower") for figure in figures],
                [_reach(figure, key, "upper") for figure in figures],
            ],
            fmt="o",
            capsize=3,
            color=COLOURS[policy],
            label=LABELS[policy],
        )
    ax.set_yticks(range(len(tasks)), tasks)
    ax.invert_yaxis()
    ax.set_xlabel(title)
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlim(left=0.0)
    if key == "rate":
        ax.set_xlim(-0.02, 1.02)
    ax.legend(loc="best", fontsize="small")


def _reach(figure: dict[str, Any], key: str, side: str) -> float:
    """Length of one side of the error bar; none where there is no interval."""
    bound = figure[side]
    return 0.0 if bound is None else abs(figure[key] - float(bound))
