"""What is strange about a source's episodes, whatever format they came in: one sentence each.

Picture checks sample frames by seeking; they never decode a whole video.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from components.episodes import GRIPPER, Clip
from components.errors import DataError
from components.ingestion.leakage import split
from components.ingestion.measure import Facts
from components.ingestion.raw import Layout, RawEpisode

MOUNTED = re.compile(r"hand|wrist|grip|ego|head|eye", re.IGNORECASE)  # names of cameras that move
SAMPLES = 9  # pictures of a video that are looked at
SMALL = (48, 64)  # height, width they are looked at in
CHANGE = 12  # grey levels of 255: less is noise
BORDER_MOVES = 0.4  # share of the border that changes between samples when the camera itself moves
BLACK = 10  # grey level
SHORT_ROWS = 8
Low = npt.NDArray[np.float64]


@dataclass
class Seen:
    """One episode in what the checks need; signals are not kept."""

    facts: Facts
    steps_s: Low  # (T - 1,)
    lows: dict[str, Low]  # state, action -> smallest value of each dimension
    highs: dict[str, Low]
    pictures: dict[str, str] = field(default_factory=dict)  # camera -> black, frozen, moving

    @classmethod
    def of(cls, raw: RawEpisode, facts: Facts, layout: Layout, *, look: bool) -> Seen:
        """Look at one episode; at its pictures only on demand."""
        lows, highs = {}, {}
        for name, values in (("state", raw.state), ("action", raw.action)):
            if values.size:
                lows[name], highs[name] = values.min(axis=0), values.max(axis=0)
        seen = cls(facts, np.diff(raw.timestamps_s), lows, highs)
        if look and raw.problem is None:
            for camera in layout.cameras:
                if said := _look(raw, camera, layout.fps):
                    seen.pictures[camera] = said
        return seen


def _look(raw: RawEpisode, camera: str, fps: float) -> str:
    """What is wrong with one video, by a few of its pictures."""
    span = raw.videos.get(camera)
    if span is None or not len(raw.timestamps_s):
        return ""
    times = np.linspace(0, (len(raw.timestamps_s) - 1) / fps, SAMPLES)
    try:
        shown = Clip(span.path, span.start_s or 0.0, span.end_s).frames(times, SMALL)
    except DataError:
        return ""
    grey = shown.mean(axis=3)
    if grey.max() < BLACK:
        return "black"
    if not (np.abs(np.diff(grey, axis=0)) > CHANGE).any():
        return "frozen"
    level = grey - grey.mean(axis=(1, 2), keepdims=True)  # a lamp is no movement
    changed = np.abs(np.diff(level, axis=0)) > CHANGE
    border = np.ones(SMALL, bool)
    border[6:-6, 8:-8] = False
    return "moving" if np.median(changed[:, border].mean(axis=1)) > BORDER_MOVES else ""


def find(seen: list[Seen], layout: Layout) -> list[str]:
    """All oddities of a source's episodes, the gravest first."""
    sound = [item for item in seen if item.facts.read_problem is None]
    return [
        *_aside(seen),
        *_twice(sound),
        *_clock(sound, layout),
        *_signals(sound, layout),
        *_cameras(sound, layout),
    ]


def _aside(seen: list[Seen]) -> list[str]:
    """What ingestion would keep aside, by the first checks."""
    found = []
    reasons = Counter(item.facts.read_problem for item in seen if item.facts.read_problem)
    for reason, count in sorted(reasons.items()):
        first = next(i.facts for i in seen if i.facts.read_problem == reason)
        detail = next(iter(first.details.values()), "")[:120]
        found.append(f"{count} of {len(seen)} episodes {reason}: {detail}")
    for name, said in (
        ("bad_values", "NaN or infinite values"),
        ("backward_steps", "timestamps that do not increase"),
        ("videos_missing", "no video of a camera"),
        ("videos_unreadable", "a video that cannot be read"),
    ):
        if count := sum(bool(getattr(item.facts, name)) for item in seen):
            found.append(f"{count} of {len(seen)} episodes have {said}")
    rows = [item.facts.n_frames for item in seen if item.facts.read_problem is None]
    if rows and min(rows) < SHORT_ROWS:
        few = sum(count < SHORT_ROWS for count in rows)
        found.append(f"{few} of {len(rows)} episodes are short: {min(rows)} to {max(rows)} rows")
    return found


def _twice(sound: list[Seen]) -> list[str]:
    """Equal content at several addresses; a split that is another one again."""
    places: dict[str, list[str]] = {}
    for item in sound:
        places.setdefault(item.facts.episode_id, []).append(item.facts.uri)
    again = [uris for uris in places.values() if len(uris) > 1]
    if not again:
        return []
    pairs = Counter((split(uris[0]), split(uris[1])) for uris in again)
    (first, second), count = pairs.most_common(1)[0]
    if first and second and first != second:
        whole = sum(split(i.facts.uri) == second for i in sound)
        order = [uris[1].rpartition("#")[2] for uris in again]
        order_said = " in another order" if order != sorted(order, key=len) else ""
        return [
            f"{second} is {first} again{order_said}: {count} of {whole} episodes of {second} are "
            "in both; kept once"
        ]
    return [f"{len(again)} episodes are there more than once; kept once"]


def _clock(sound: list[Seen], layout: Layout) -> list[str]:
    steps = np.concatenate([i.steps_s for i in sound]) if sound else np.empty(0)
    if not len(steps) or not (steps > 0).all():
        return []
    found, step_s = [], 1 / layout.fps
    rates = [1 / float(np.median(i.steps_s)) for i in sound if len(i.steps_s)]
    same_clock = max(rates) <= 1.2 * min(rates)
    if same_clock and abs(float(np.median(steps)) / step_s - 1) > 0.05:
        real = 1 / float(np.median(steps))
        found.append(f"the real rate is {real:.2f} Hz, nominal are {layout.fps:g}")
    if same_clock and (steps.max() > 1.5 * step_s or steps.min() < 0.6 * step_s):
        gaps = int((steps > 1.5 * step_s).sum())
        line = f"timestamps are irregular: steps of {steps.min():.3f} to {steps.max():.3f} s, "
        line += f"{gaps} gaps over {1.5 * step_s:g} s"
        found.append(line)
    off = [i.facts.frames_off for i in sound if i.facts.frames_off]
    if off:
        found.append(
            f"{len(off)} of {len(sound)} episodes have {min(off):g} to {max(off):g} pictures more "
            "or fewer than rows"
        )
    late = [
        i.facts.numbers["video_lag_steps"] for i in sound if "video_lag_steps" in i.facts.numbers
    ]
    if len(late) > 2 and abs(float(np.median(late))) >= 1.5:
        found.append(
            f"pictures show the state {np.median(late):+.1f} frames late ({len(late)} episodes)"
        )
    drift_s = max(item.facts.drift_s for item in sound)
    if drift_s > 1.5 * step_s:
        found.append(
            f"the video runs on an exact {step_s:g} s grid, the rows do not: up to {drift_s:.2f} s "
            "apart at an episode's end; picture k is shown at row k's time"
        )
    return found


def _signals(sound: list[Seen], layout: Layout) -> list[str]:
    found: list[str] = []
    still: dict[str, list[str]] = {}
    names = {"state": layout.state_names, "action": layout.action_names}
    for kind, all_dims in names.items():
        rows = [(i.lows[kind], i.highs[kind]) for i in sound if kind in i.lows]
        if rows:
            constant = np.all([low == high for low, high in rows], axis=0)
            still[kind] = [name for name, yes in zip(all_dims, constant, strict=True) if yes]
    whole = [kind for kind, dims in still.items() if dims and len(dims) == len(names[kind])]
    if len(whole) == 2:
        found.append(f"nothing moves: state and action are constant in all {len(sound)} episodes")
    for kind, dims in still.items():
        if whole == [kind]:
            found.append(f"the {kind} is constant in all {len(sound)} episodes")
        elif dims and kind not in whole:
            shown = ", ".join(dims[:4]) + (" ..." if len(dims) > 4 else "")
            line = f"{len(dims)} of {len(names[kind])} {kind} dimensions never change: {shown}"
            found.append(line)
    commanded = [name for name in layout.action_names if GRIPPER.search(name)]
    if commanded and not any(map(GRIPPER.search, layout.state_names)):
        found.append(f"the action has a gripper ({commanded[0]}), the state has none")
    if len(layout.state_names) != len(layout.action_names):
        widths = f"state {len(layout.state_names)}, action {len(layout.action_names)}"
        found.append(f"state and action differ in width: {widths}")
    return found


def _cameras(sound: list[Seen], layout: Layout) -> list[str]:
    if not layout.cameras:
        return ["no camera: there are signals only"]
    found = []
    looked = [item for item in sound if item.facts.picture_shapes]
    for camera in layout.cameras:
        said = Counter(item.pictures.get(camera, "") for item in looked)
        name = camera.rpartition(".")[2]
        if said["black"]:
            found.append(f"camera {name} is black in {said['black']} episodes looked at")
        if said["frozen"]:
            found.append(f"camera {name} shows one picture only in {said['frozen']} episodes")
        moves = 2 * said["moving"] > len(looked)
        if moves and camera in dict(layout.calibration):
            found.append(
                f"camera {name} moves with the robot but is calibrated as one that stands still; "
                "leave its calibration out"
            )
        if moves and not MOUNTED.search(name):
            found.append(
                f"camera {name} moves with the robot: it seems to sit on the hand, "
                "whatever its name says"
            )
    return found
