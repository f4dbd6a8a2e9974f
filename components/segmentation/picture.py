"""A picture of the cut for a person: signals, boundaries and who voted, contact sheet, per episode.

Imports matplotlib, so nothing but the flow's artifact and the tests import it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components import records
from components.episodes import Episode, Episodes
from components.errors import DataError
from components.segmentation.flat import Flat
from components.segmentation.gripper import levels

COLOURS = {"motion": "#4c72b0", "grasp": "#c44e52", "release": "#55a868", "idle": "#999999"}
LINES = ("#1b9e77", "#d95f02", "#7570b3", "#66a61e", "#e6ab02", "#a6761d")
SHOWN, COLUMNS = 8, 4  # pictures of an episode, and in a row
NARROW = 0.07  # a band under this share of the plot has room for its number only


def draw(episodes: Path, events: Path, png: Path, count: int) -> None:
    """Write a PNG of up to `count` episodes, spread over the tasks. DataError without events."""
    table = records.read(events / "events.parquet", records.EVENTS).sort_by("start_frame")
    by_episode: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_episode.setdefault(row["episode_id"], []).append(row)
    recordings = Episodes(episodes)
    chosen = choose(recordings, sorted(by_episode), count)
    if not chosen:
        raise DataError(f"{events}: no event to draw; expected at least one episode with events.")
    figure = Figure(figsize=(14, 3.1 * len(chosen)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subfigures(len(chosen), 1, squeeze=False)
    for panel, episode_id in zip(panels[:, 0], chosen, strict=True):
        episode = recordings[episode_id]
        left, right = panel.subplots(1, 2, width_ratios=(3, 4))
        plot_signals(left, episode, by_episode[episode_id])
        plot_frames(right, episode, by_episode[episode_id])
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, format="png", metadata={"Software": None})


def choose(recordings: Episodes, ids: list[str], count: int) -> list[str]:
    """`count` of `ids`, evenly spaced when sorted by task."""
    tasks = dict(zip(recordings.ids, recordings.manifest["task"].to_pylist(), strict=True))
    ordered = sorted((i for i in ids if i in tasks), key=lambda i: (tasks[i], i))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round())
    return [ordered[int(place)] for place in places]


def plot_signals(axes: Any, episode: Episode, events: list[dict[str, Any]]) -> None:
    """Position and gripper over time, a coloured band and a line for each event."""
    times = episode.timestamps_s
    if (place := episode.end_effector_m) is not None:
        for line, name, colour in zip((place - place[0]).T * 100, "xyz", LINES, strict=False):
            axes.plot(times, line, label=name, color=colour, linewidth=1.4)
        axes.set_ylabel("end effector, cm from its start")
    else:
        moved = episode.motion - episode.motion[0]
        most = np.argsort(-np.ptp(moved, axis=0), kind="stable")[: len(LINES)]
        names = episode.motion_names
        for index, colour in zip(sorted(most), LINES, strict=False):
            axes.plot(times, moved[:, index], label=names[index], color=colour, linewidth=1.4)
        axes.set_ylabel("joints that move most,\nfrom their start, own units")
    plot_gripper(axes, episode)
    plot_bands(axes, events, float(times[-1]))
    axes.margins(y=0.3)
    axes.set_xlim(0, max(float(times[-1]), 1e-3))
    axes.set_xlabel("time, s")
    axes.set_title(f"{episode.task}  ({episode.embodiment}, {episode.episode_id[:12]})", fontsize=9)
    axes.legend(fontsize=7, loc="lower left", ncols=4, framealpha=0.7)


def plot_gripper(axes: Any, episode: Episode) -> None:
    """Gripper, measured and commanded, 0 to 1 of its own range, on an axis of its own."""
    batch = Flat([episode])
    measured, command = (
        next((e.value for e in levels(batch, which) if e.moves.any()), None)
        for which in (True, False)
    )
    twin = axes.twinx()
    twin.set_ylim(-0.45, 1.45)
    twin.set_yticks([])
    for line, name, style in ((measured, "gripper", "-"), (command, "gripper command", ":")):
        if line is not None:
            twin.plot(episode.timestamps_s, line, style, color="black", linewidth=1)
            axes.plot([], [], style, color="black", linewidth=1, label=name)


def plot_bands(axes: Any, events: list[dict[str, Any]], last_s: float) -> None:
    """One band per event, its kind above it, a line where it starts."""
    for index, event in enumerate(events):
        colour = COLOURS[event["kind"]]
        axes.axvspan(event["start_s"], event["end_s"], color=colour, alpha=0.13, linewidth=0)
        if index:
            axes.axvline(event["start_s"], color="black", linewidth=1)
            axes.annotate(
                said(json.loads(event["evidence"])),
                (event["start_s"], 0.5),
                xycoords=("data", "axes fraction"),
                xytext=(1, 0),
                textcoords="offset points",
                rotation=90,
                va="center",
                fontsize=6,
            )
        start, end = event["start_s"] / max(last_s, 1e-3), event["end_s"] / max(last_s, 1e-3)
        axes.text(
            (start + end) / 2,
            0.97,
            f"{index + 1}" + f"\n{event['kind']}" * (end - start > NARROW),
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=7,
            color=colour,
        )


def said(votes: dict[str, Any]) -> str:
    """The two signals that speak loudest for a boundary, or who set it."""
    if "person" in votes:
        return "person"
    loudest = sorted(votes, key=lambda name: -votes[name])[:2]
    return ", ".join(name.replace("_", " ") for name in loudest)


def plot_frames(axes: Any, episode: Episode, events: list[dict[str, Any]]) -> None:
    """The first camera in the middle of each event, with the event's number, in rows of COLUMNS."""
    axes.set_axis_off()
    if not episode.clips:
        axes.text(0.5, 0.5, "no camera", ha="center", transform=axes.transAxes)
        return
    camera = min(episode.clips)
    shown = pick(len(events))
    middles = np.array([(events[i]["start_s"] + events[i]["end_s"]) / 2 for i in shown])
    frames = episode.clips[camera].frames(middles)
    height, width = frames.shape[1:3]
    gap = max(height // 8, 1)
    rows, columns = -(-len(shown) // COLUMNS), min(len(shown), COLUMNS)
    sheet = np.full((rows * (height + gap), columns * (width + gap), 3), 255, dtype=np.uint8)
    for place, index in enumerate(shown):
        top, left = place // COLUMNS * (height + gap) + gap, place % COLUMNS * (width + gap)
        sheet[top : top + height, left : left + width] = frames[place]
        axes.text(left, top, f"{index + 1}", ha="left", va="bottom", fontsize=8)
    axes.imshow(sheet)
    axes.set_title(f"{camera.rsplit('.', 1)[-1]}: the middle of each event", fontsize=9)


def pick(count: int) -> list[int]:
    """Up to SHOWN of `count` events, evenly spaced."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, SHOWN)).round())]
