"""`wamflow inspect` for people: one table and one line for each warning, in one screen."""

from __future__ import annotations

import os
import tempfile
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from components.errors import UserError

if TYPE_CHECKING:
    from components.ingestion.inspect import Camera, Dimension, Inspection
    from components.ingestion.said import Said

LONG = 12  # names of one unit that are spelled out
MOST = 240  # characters of a signal: a screen has 40 lines of 80
TASKS = 3
EPISODES, EPISODES_IN_S3 = 100, 8  # looked at, unless somebody says how many


def look(uri: str, episodes: int | None) -> Inspection:
    """Inspect a source. Objects of S3 stay with the project's, or nowhere outside of a project.

    UserError or DataError when there is none; TemporaryError when S3 does not answer.
    """
    from components.ingestion.inspect import inspect
    from flows import workspace

    mappings = _mappings()
    if not uri.startswith("s3://"):
        return inspect(uri, episodes or EPISODES, mappings=mappings)
    with tempfile.TemporaryDirectory() as nowhere:
        try:
            kept = workspace.shared(workspace.project())
        except UserError:
            kept = Path(nowhere)
        os.environ.setdefault("WAMFLOW_STORE", str(kept))
        return inspect(uri, episodes or EPISODES_IN_S3, mappings=mappings)


def _mappings() -> dict[str, Said]:
    """What params.yaml of the project says of its sources; nothing outside of a project."""
    from components import params
    from components.ingestion.stage import Config
    from flows import workspace

    try:
        path = workspace.project() / "params.yaml"
    except UserError:
        return {}
    return params.section(params.load(path), "ingestion", Config).mappings


def render(found: Inspection) -> RenderableType:
    """The table, then the warnings."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(found):
        table.add_row(name, escape(text))
    count = len(found.warnings)
    title = f"[bold yellow]{count} oddities[/]" if count else "[bold green]no oddities[/]"
    warnings = Table(show_header=False, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    warnings.add_column(style="yellow", no_wrap=True)
    warnings.add_column(overflow="fold")
    for warning in found.warnings:
        warnings.add_row("!", escape(warning))
    return Group(table, "", title, warnings)


def _lines(found: Inspection) -> list[tuple[str, str]]:
    some = f", {found.looked_at} looked at" if found.looked_at < found.episodes else ""
    aside = ", ".join(f"{count} {reason}" for reason, count in found.kept_aside.items())
    real = "" if found.measured_fps is None else f", measured {found.measured_fps:.4g}"
    tasks = "; ".join(found.tasks[:TASKS])
    more = len(found.tasks) - TASKS
    return [
        ("source", found.uri),
        ("format", found.format),
        ("robot", found.robot),
        ("episodes", f"{found.episodes}{some}" + (f"; kept aside: {aside}" if aside else "")),
        ("frames", f"{found.frames} in {found.duration_s:.1f} s"),
        ("rate", f"{found.fps:g} Hz nominal{real}"),
        ("cameras", "; ".join(map(_camera, found.cameras)) or "none"),
        ("state", f"{len(found.state)}{_from(found.state_from)}: {_signal(found.state)}"),
        ("action", f"{len(found.action)}{_from(found.action_from)}: {_signal(found.action)}"),
        ("gripper", _gripper(found)),
        ("end effector", ", ".join(found.end_effector) or "not known"),
        ("tasks", tasks + (f" and {more} more" if more > 0 else "")),
    ]


def _from(names: list[str]) -> str:
    """Columns, arrays or topics that a signal is taken from."""
    if not names:
        return ""
    return f" from {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _camera(camera: Camera) -> str:
    shown = f"{camera.name} {camera.width}x{camera.height} {camera.codec}"
    if camera.calibration is None:
        return shown
    place = ", ".join(f"{row[3]:.3g}" for row in camera.calibration.pose[:3])
    return f"{shown}, calibrated at ({place}) m"


def _signal(dimensions: list[Dimension]) -> str:
    """Names, neighbours of one unit together."""
    parts = []
    for unit, group in groupby(dimensions, key=lambda d: d.unit):
        names = [d.name for d in group]
        shown = ", ".join(names) if len(names) <= LONG else f"{names[0]} .. {names[-1]}"
        parts.append(f"{shown} [{unit or '?'}]")
    if sum(map(len, parts)) <= MOST:
        return "; ".join(parts)
    return "; ".join(parts)[:MOST].rpartition(",")[0] + ", ..."


def _gripper(found: Inspection) -> str:
    state, action = ", ".join(found.gripper_state[:4]), ", ".join(found.gripper_action[:4])
    return f"state: {state or 'none'}; action: {action or 'none'}"
