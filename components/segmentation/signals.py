"""How an episode's arm moves: position and speed relative to its own range, and where it rests.

Everything is relative to the episode itself, so no threshold belongs to a robot. Noise is the
median absolute second difference, scaled as the MAD of Rousseeuw and Croux (1993), which smooth
motion hardly touches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.episodes import Episode

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SMALLEST_SHARE = 0.1  # a joint that moves less than this share of the largest range counts less
JUMP_SHARE = 0.5  # one step over more of a joint's range than this is a wrapped angle, not motion
STILL_SHARE = 0.05  # slower than this share of the episode's own brisk speed is still
NOISE_LEVELS = 5.0  # movement within this many standard deviations of noise is no movement
SECOND_DIFFERENCE = 1.4826 / np.sqrt(6.0)  # median |second difference| of white noise -> its std


@dataclass(frozen=True)
class Motion:
    """An episode's motion at its T control steps; 1 unit is the range of its own motion."""

    times_s: Array  # (T,)
    position: Array  # (T, D), smoothed
    energy: Array  # (T,), integral of the squared speed
    noise_energy: float  # what noise alone adds to `energy` in one control step
    speed: Array  # (T,), over one window, units per second
    still: Mask  # (T,), nothing of the arm moves


def motion(episode: Episode, window_s: float) -> Motion:
    """The episode's motion, smoothed over a quarter of `window_s`; speed is over the whole."""
    times = episode.timestamps_s.astype(np.float64)
    step_s = control_step_s(episode)
    raw = in_ranges(episode)
    width = int(window_s / 4 / step_s) // 2 * 2 + 1
    half = max(round(window_s / 2 / step_s), 1)
    position = smooth(raw, width)
    speed = windowed_speed(position, times, half)
    within_noise = NOISE_LEVELS * noise_std(raw) / np.sqrt(width) / (2 * half * step_s)
    still = speed <= max(STILL_SHARE * float(np.quantile(speed, 0.9)), within_noise)
    squared = np.sum(np.diff(position, axis=0) ** 2, axis=1)
    energy = np.concatenate(([0.0], np.cumsum(squared / np.maximum(np.diff(times), 1e-9))))
    noise_energy = 2 * noise_std(position) ** 2 / step_s
    return Motion(times, position, energy, noise_energy, speed, still)


def control_step_s(episode: Episode) -> float:
    """Median time between two control steps, seconds."""
    if len(episode) < 2:
        return 1.0 / episode.fps
    return max(float(np.median(np.diff(episode.timestamps_s))), 1e-6)


def in_ranges(episode: Episode) -> Array:
    """Motion (T, D) from its start, in ranges: an end effector's largest, else each joint's own."""
    values = episode.motion.astype(np.float64)
    isotropic = episode.end_effector_m is not None
    if not isotropic:
        values = unwrapped(values)
    ranges = np.ptp(values, axis=0)
    largest = float(ranges.max(initial=0.0))
    if largest <= 0:
        return np.zeros_like(values)
    floor = largest if isotropic else SMALLEST_SHARE * largest
    return np.asarray((values - values[0]) / np.maximum(ranges, floor))


def unwrapped(values: Array) -> Array:
    """(T, D) without jumps over most of a dimension's range in one step: an angle that wrapped."""
    steps = np.diff(values, axis=0)
    jumps = np.abs(steps) > JUMP_SHARE * np.ptp(values, axis=0)
    return np.asarray(values - np.pad(np.cumsum(steps * jumps, axis=0), ((1, 0), (0, 0))))


def noise_std(values: Array) -> float:
    """Standard deviation of white noise on (T, D), all dimensions together."""
    if len(values) < 3:
        return 0.0
    each = np.median(np.abs(np.diff(values, n=2, axis=0)), axis=0) * SECOND_DIFFERENCE
    return float(np.sqrt(np.sum(each**2)))


def smooth(values: Array, width: int) -> Array:
    """Moving average of odd `width` over (T, D); the ends are held."""
    if width <= 1 or len(values) <= width:
        return values
    padded = np.pad(values, ((width // 2 + 1, width // 2), (0, 0)), mode="edge")
    total = np.cumsum(padded, axis=0)
    return np.asarray((total[width:] - total[:-width]) / width)


def windowed_speed(position: Array, times_s: Array, half: int) -> Array:
    """Distance over `half` steps to either side of each control step, per second (T,)."""
    index = np.arange(len(times_s))
    before, after = np.maximum(index - half, 0), np.minimum(index + half, len(times_s) - 1)
    elapsed = np.maximum(times_s[after] - times_s[before], 1e-9)
    return np.asarray(np.linalg.norm(position[after] - position[before], axis=1) / elapsed)
