"""What a source holds, before anybody ingests it: format, signals, cameras, and every oddity.

Nothing is written. Large sources are looked at in part; what is counted says of how many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import av
import numpy as np
from pydantic import BaseModel

from components.calibration import Calibration
from components.episodes import END_EFFECTOR, GRIPPER
from components.ingestion import formats, oddities, said, unlisted
from components.ingestion.measure import Effort, measure
from components.ingestion.oddities import Seen
from components.ingestion.raw import Layout, RawEpisode, Reader
from components.ingestion.source import Source
from components.ingestion.units import unit

LOOKED_AT = 8  # episodes whose pictures are looked at
SAMPLED, LAG_PICTURES = 9, 200  # pictures of each of their videos
PICKLE = re.compile(r"\.(?:pkl|pickle|p|pt|pth|joblib)$", re.IGNORECASE)


class Dimension(BaseModel):
    """One number of state or action; `unit` is empty where nothing tells it."""

    name: str
    unit: str
    low: float
    high: float


class Camera(BaseModel):
    """One camera as its first video shows it."""

    name: str
    height: int
    width: int
    codec: str
    calibration: Calibration | None = None


class Inspection(BaseModel):
    """A source in one screen."""

    uri: str
    format: str
    state_from: list[str]  # columns, arrays or topics, by the names that a mapping takes
    action_from: list[str]
    robot: str
    episodes: int
    looked_at: int
    kept_aside: dict[str, int]
    frames: int
    duration_s: float
    fps: float
    measured_fps: float | None
    cameras: list[Camera]
    state: list[Dimension]
    action: list[Dimension]
    gripper_state: list[str]
    gripper_action: list[str]
    end_effector: list[str]
    tasks: list[str]
    warnings: list[str]


def inspect(
    uri: str,
    max_episodes: int,
    min_camera_share: float = 0.5,
    mappings: Mapping[str, said.Said] | None = None,
) -> Inspection:
    """Look at up to `max_episodes` of a source. UserError or DataError when there is none."""
    source = unlisted.opened(uri)
    source.said = said.of(mappings or {}, source.name, uri)
    reader = formats.open_source(source, min_camera_share)
    chosen = _spread(reader.indices, max_episodes)
    pictured = set(_spread(chosen, LOOKED_AT))
    seen: list[Seen] = []
    tasks: Counter[str] = Counter()
    shown: RawEpisode | None = None
    for index in chosen:
        raw = reader.read(index)
        effort = Effort(SAMPLED, LAG_PICTURES) if index in pictured else Effort(0, 0)
        facts = measure(0, raw, reader.layout, effort=effort)
        seen.append(Seen.of(raw, facts, reader.layout, look=index in pictured))
        tasks.update([raw.task] if raw.task else [])
        shown = shown or (raw if raw.videos else None)
    found = _describe(uri, reader, seen, tasks, shown)
    return found.model_copy(update={"warnings": found.warnings + _pickles(source)})


def _pickles(source: Source) -> list[str]:
    """Files that only Python's pickle could read: they could run anything."""
    named = [p for p in sorted(source.listed) if PICKLE.search(p)]
    if not named:
        return []
    more = f" and {len(named) - 2} more" if len(named) > 2 else ""
    return [f"a pickle is never loaded: {', '.join(named[:2])}{more}"]


def _spread(indices: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread."""
    if len(indices) <= count:
        return indices
    places = np.linspace(0, len(indices) - 1, count).round().astype(int)
    return [indices[place] for place in dict.fromkeys(places.tolist())]


def _describe(
    uri: str, reader: Reader, seen: list[Seen], tasks: Counter[str], shown: RawEpisode | None
) -> Inspection:
    layout = reader.layout
    steps = np.concatenate([np.empty(0), *(item.steps_s for item in seen)])
    step_s = float(np.median(steps)) if len(steps) else 0.0
    aside = Counter(i.facts.read_problem for i in seen if i.facts.read_problem)
    names = layout.state_names
    place = [e for e in END_EFFECTOR if all(name in names for name in e)]
    return Inspection(
        uri=uri,
        format=reader.format,
        state_from=list(layout.taken[0]) if layout.taken else [],
        action_from=list(layout.taken[1]) if layout.taken else [],
        robot=layout.robot_type,
        episodes=len(reader.indices),
        looked_at=len(seen),
        kept_aside=dict(sorted(aside.items())),
        frames=sum(item.facts.n_frames for item in seen),
        duration_s=round(float(steps.sum()), 3),
        fps=layout.fps,
        measured_fps=round(1 / step_s, 3) if step_s > 0 else None,
        cameras=_cameras(shown, dict(layout.calibration)),
        state=_dimensions("state", names, seen, layout),
        action=_dimensions("action", layout.action_names, seen, layout),
        gripper_state=[name for name in names if GRIPPER.search(name)],
        gripper_action=[name for name in layout.action_names if GRIPPER.search(name)],
        end_effector=list(place[0]) if place else [],
        tasks=[task for task, _ in tasks.most_common()],
        warnings=list(dict.fromkeys([*oddities.find(seen, layout), *reader.warnings])),
    )


def _dimensions(
    kind: str, names: tuple[str, ...], seen: list[Seen], layout: Layout
) -> list[Dimension]:
    units = dict(layout.units)
    lows = [item.lows[kind] for item in seen if kind in item.lows]
    highs = [item.highs[kind] for item in seen if kind in item.highs]
    if not lows:
        return []
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    return [
        Dimension(
            name=name,
            unit=units.get(name) or unit(name, float(a), float(b)),
            low=float(a),
            high=float(b),
        )
        for name, a, b in zip(names, np.nan_to_num(low), np.nan_to_num(high), strict=True)
    ]


def _cameras(raw: RawEpisode | None, known: dict[str, Calibration]) -> list[Camera]:
    found = []
    for camera, span in sorted(raw.videos.items()) if raw is not None else []:
        name = camera.rpartition(".")[2]
        try:
            with av.open(str(span.path)) as container:
                context = container.streams.video[0].codec_context
                codec = context.codec.canonical_name
                size = {"height": context.height, "width": context.width}
                found.append(Camera(name=name, **size, codec=codec, calibration=known.get(camera)))
        except (av.FFmpegError, IndexError, AttributeError):
            found.append(Camera(name=name, height=0, width=0, codec="unreadable"))
    return found
