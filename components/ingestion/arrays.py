"""Which named arrays of a recording are state and action, and what their dimensions are called.

For formats that hold arrays by path (HDF5, RLDS): robomimic's and Isaac Lab's `obs/joint_pos`,
ALOHA's `observations/qpos`, Open X-Embodiment's `observation/state`, ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from components.ingestion.columns import Signal
from components.ingestion.raw import RawEpisode
from components.ingestion.reasons import Problem, Reason
from components.ingestion.said import chosen as pick

WHOLE = {
    "state": re.compile(r"^(?:.*/)?(?:state|proprio|qpos|robot_state|agent_pos)$"),
    "action": re.compile(r"^(?:.*/)?actions?$"),
}
PARTS = {  # in the order in which they are joined
    "state": tuple(
        re.compile(rf"^(?:.*/)?(?:robot\d+_|robot_)?(?:{part})$")
        for part in (
            r"joint_(?:pos|positions?|angles|qpos)|joints",
            r"(?:eef|ee|tcp|end_effector|cartesian)_pos(?:ition)?",
            r"(?:eef|ee|tcp|end_effector)_(?:quat|rot|orn|euler)\w*",
            r"gripper_(?:q?pos|positions?|width|state|closed)|gripper",
        )
    ),
    "action": (re.compile(r"^(?:.*/)?actions?/(?!.*terminate)\w+$"),),
}
POSITION = re.compile(r"(?:eef|ee|tcp|end_effector|cartesian)_pos(?:ition)?$")
CARTESIAN = {
    "state": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    "action": ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
}
ALOHA_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ALOHA = tuple(f"{side}_{name}" for side in ("left", "right") for name in ALOHA_ARM)
ROBOTS = re.compile(
    r"(?<![a-z])(?:franka|panda|fr3|widowx|aloha|sawyer|iiwa|jaco|xarm\d?|ur\d+e?|so-?10[01]|gr1|"
    r"cr5|kinova|google_robot|baxter|trossen)(?![a-z])",
    re.IGNORECASE,
)
DATASET_ROBOTS = {"bridge": "widowx", "fractal": "google_robot", "droid": "franka"}
NO_WORDS = re.compile(
    r"^(?:isaac|ik|rel|abs|mimic|play|osc|pose|joint|direct|visuomotor|v\d+|"
    r"mcap|hdf5|rlds|tfds|ros2?|rosbag2?|db3|data|dataset)$"
)


def find(
    kind: str, arrays: Mapping[str, npt.NDArray[np.float64]], wanted: tuple[str, ...] = ()
) -> Signal:
    """The signal of a kind ("state" or "action") among (T, D) arrays by path; empty where none.

    `wanted` arrays are joined where some are said; UserError lists what is there.
    """
    whole = sorted((k for k in arrays if WHOLE[kind].match(k)), key=lambda k: (k.count("/"), k))
    parts = [k for part in PARTS[kind] for k in arrays if part.match(k)]
    chosen = pick(kind, wanted, arrays) or tuple(whole[:1] or dict.fromkeys(parts))
    widths = tuple(arrays[key].shape[1] for key in chosen)
    names = [name for key in chosen for name in _names(kind, key, arrays[key], key in whole)]
    unique = names if len(set(names)) == len(names) else [f"{kind}_{i}" for i in range(len(names))]
    return Signal(chosen, widths, tuple(unique))


def _names(kind: str, key: str, values: npt.NDArray[np.float64], whole: bool) -> tuple[str, ...]:
    width, short = values.shape[1], re.sub(r"^robot\d*_", "", key.rsplit("/", 1)[-1])
    if POSITION.fullmatch(short) and width == 3:
        return tuple(f"eef_{axis}" for axis in "xyz")
    if whole and width == len(ALOHA):
        return ALOHA
    if whole and width == len(CARTESIAN[kind]) and _ends_in_gripper(values):
        return CARTESIAN[kind]
    if whole:
        return tuple(f"{kind}_{i}" for i in range(width))
    return (short,) if width == 1 else tuple(f"{short}_{i}" for i in range(width))


def _ends_in_gripper(values: npt.NDArray[np.float64]) -> bool:
    """A last column between closed and open, 0 to 1 or -1 to 1, that moves between few values."""
    last = values[:, -1]
    if not len(last) or not np.isfinite(last).all():
        return False
    return bool(set(np.unique(last)) <= {-1.0, 0.0, 1.0} or (last.min() >= 0 and last.max() <= 1.1))


def name_warnings(state: Signal, action: Signal) -> list[str]:
    """What was inferred by convention and may be wrong."""
    return [
        f"{kind} {signal.columns[0]} has no names; taken as {', '.join(signal.names)}"
        for kind, signal in (("state", state), ("action", action))
        if signal.names in (CARTESIAN[kind], ALOHA)
    ]


def not_taken(keys: list[str], *signals: Signal) -> list[str]:
    """One warning that names the arrays left behind."""
    taken = {column for signal in signals for column in signal.columns}
    left = sorted(set(keys) - taken)
    shown = ", ".join(left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
    return [f"arrays not taken over: {shown}"] if left else []


def robot(*texts: str) -> str:
    """The robot that names and attributes speak of; "unknown" where they do not."""
    for text in texts:
        if match := ROBOTS.search(text):
            return match[0].lower()
    for text in texts:
        for known, name in DATASET_ROBOTS.items():
            if known in text.lower():
                return name
    return "unknown"


def sentence(name: str) -> str:
    """Words of an environment's name: `Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0` -> "stack cube"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]
    kept = [w for w in words if not NO_WORDS.match(w) and not ROBOTS.fullmatch(w)]
    return " ".join(kept or words)


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts demo_2 before demo_10."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]


def same_rows(
    index: int,
    uri: str,
    version: str,
    state: npt.NDArray[np.float32] | Problem,
    action: npt.NDArray[np.float32] | Problem,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | RawEpisode:
    """State and action of equal length; a last observation without action is cut."""
    for signal in (state, action):
        if isinstance(signal, Problem):
            return RawEpisode(index, uri, version, problem=signal)
    assert not isinstance(state, Problem) and not isinstance(action, Problem)
    rows = min(len(state), len(action))
    if abs(len(state) - len(action)) > 1:
        problem = Problem(
            Reason.MISSING_DATA, f"state has {len(state)} rows, action has {len(action)}"
        )
        return RawEpisode(index, uri, version, problem=problem)
    if rows == 0:
        problem = Problem(Reason.EMPTY_EPISODE, "the episode has no rows")
        return RawEpisode(index, uri, version, problem=problem)
    return state[:rows], action[:rows]
