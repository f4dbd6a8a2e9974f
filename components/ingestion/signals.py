"""What the signals of an episode say of themselves: its clock, its ranges, its jumps.

Everything is a number, named in `KNOWN`; what cannot be measured is left out.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from components.episodes import GRIPPER
from components.ingestion import lag
from components.ingestion.raw import Layout, RawEpisode

Values = npt.NDArray[np.float64]

KNOWN = (
    "gap_s",  # longest step of the clock
    "gap_steps",  # the same in median steps
    "jitter",  # half the range that 80 % of the steps lie in, as a share of the median step
    "rate_off",  # |1 - declared step / median step|
    "state_moving",  # dimensions that change
    "action_moving",
    "state_width",
    "action_width",
    "width_difference",
    "state_jump",  # the most that a step exceeds those around it, where it is far at all
    "beyond_limits",  # values outside limits that a mapping declares
    "action_lag_s",  # how long the state follows the action, where it clearly does
    "gripper_beyond",  # values of the gripper further outside its usual range than that is wide
)
TURNS = re.compile(r"quat|rot|^q[wxyz]$|rpy|euler|orn|vel")  # may jump from end to end by itself
ROUND = (2 * np.pi, 360.0)  # an angle that goes on from the other end
AROUND = 3  # steps on each side that a step is compared with
FAR = 0.2  # a jump is at least this share of its dimension's range
NARROW = 0.05  # dimensions that move less than this share of the widest are noise
LAG_ROWS = 1000  # the busiest rows of a recording tell how late its state is
SWITCH = 8  # a dimension of fewer different values is a switch: it may jump


def numbers(raw: RawEpisode, layout: Layout) -> dict[str, float]:
    """Facts of T rows; nothing of signals that hold NaN, nothing of a clock that stands."""
    found = {
        "state_width": float(raw.state.shape[1]),
        "action_width": float(raw.action.shape[1]),
        "width_difference": float(abs(raw.state.shape[1] - raw.action.shape[1])),
    }
    found |= _clock(raw.timestamps_s, layout.fps)
    for kind, signal in (("state", raw.state), ("action", raw.action)):
        if len(signal) and np.isfinite(signal).all():
            found[f"{kind}_moving"] = float((np.ptp(signal, axis=0) > 0).sum())
    if layout.limits:
        found["beyond_limits"] = _beyond_limits(raw.state, layout)
    if (late := _action_lag_s(raw)) is not None:
        found["action_lag_s"] = late
    if len(raw.state) > 2 * AROUND and np.isfinite(raw.state).all():
        found["state_jump"] = _jump(raw.state.astype(np.float64), layout.state_names)
    if (beyond := _gripper_beyond(raw, layout)) is not None:
        found["gripper_beyond"] = beyond
    return found


def _clock(times_s: Values, fps: float) -> dict[str, float]:
    steps = np.diff(times_s)
    if not len(steps) or not (steps > 0).all():
        return {}
    median = float(np.median(steps))
    low, high = np.quantile(steps, [0.1, 0.9])
    return {
        "gap_s": float(steps.max()),
        "gap_steps": float(steps.max() / median),
        "jitter": float((high - low) / 2 / median),
        "rate_off": abs(1 - 1 / fps / median),
    }


def _jump(state: Values, names: tuple[str, ...]) -> float:
    """How many times faster than just before and after any dimension ever moves.

    Relative to the robot's own speeds around the moment, since limits are seldom declared: a joint
    cannot reach its top speed within one step and lose it in the next.
    """
    widths = np.ptp(state, axis=0)
    chosen = [
        column
        for column, (values, width, name) in enumerate(zip(state.T, widths, names, strict=True))
        if not (GRIPPER.search(name) or TURNS.search(name) or width <= NARROW * widths.max())
        and len(np.unique(values)) > SWITCH
    ]
    if not chosen:
        return 0.0
    steps, widths = abs(np.diff(state[:, chosen], axis=0)), widths[chosen]
    for period in ROUND:
        steps = np.where(abs(steps - period) < period / 10, abs(steps - period), steps)
    padded = np.pad(steps, [(AROUND, AROUND), (0, 0)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1, axis=0)
    around = np.partition(windows, AROUND, axis=-1)[..., AROUND]  # medians
    ratio = steps / np.maximum(around, widths / len(state))
    return float(np.where(steps > FAR * widths, ratio, 0.0).max())


def _beyond_limits(state: npt.NDArray[np.float32], layout: Layout) -> float:
    """Values of the state outside declared limits."""
    count = 0
    for name, low, high in layout.limits:
        values = state[:, layout.state_names.index(name)]
        count += int(((values < low) | (values > high)).sum())
    return float(count)


def _action_lag_s(raw: RawEpisode) -> float | None:
    """How long the state follows the action, be it a target (its change counts) or a speed."""
    steps = np.diff(raw.timestamps_s)
    if not len(steps) or not (steps > 0).all() or len(raw.state) < lag.SHORTEST + lag.SPAN:
        return None
    if not (np.isfinite(raw.state).all() and np.isfinite(raw.action).all()):
        return None
    first = lag.busiest(raw.state, LAG_ROWS)
    state = raw.state[first : first + LAG_ROWS]
    action = raw.action[first : first + LAG_ROWS].astype(np.float64)
    strength = np.sqrt(abs(action - np.median(action, axis=0)))[lag.SPAN // 2 : -lag.SPAN // 2]
    late = lag.of([[(lag.speed(state), np.hstack([lag.speeds(action), strength]))]])
    if late is None or not late.known:
        return None
    return late.steps * float(np.median(steps))


def _gripper_beyond(raw: RawEpisode, layout: Layout) -> float | None:
    """Values of measured and commanded grippers; None where there is none."""
    count, seen = 0, False
    for signal, names in ((raw.state, layout.state_names), (raw.action, layout.action_names)):
        own = [c for c, n in enumerate(names) if GRIPPER.search(n) and not TURNS.search(n)]
        if own and np.isfinite(signal).all():
            seen = True
            values = signal[:, own].astype(np.float64)
            if len(values):
                low, high = np.quantile(values, [0.02, 0.98], axis=0)
                reach = np.maximum(high - low, 1e-6 + abs(high))
                count += int(((values < low - reach) | (values > high + reach)).sum())
    return float(count) if seen else None
