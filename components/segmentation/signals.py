"""What an episode's signals do, as traces without units: motion, command, lag and gripper.

Lengths are told in the episode's own range and times in its own crossing time, the time it takes to
cross that range at the speed it usually moves with; so no number belongs to a robot. The lag is
what the arm does beyond what its commands and its inertia explain: a linear model is fitted to each
episode (ARX, Ljung 1999), and contact is where its error rises.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from components.episodes import GRIPPER, Episode
from components.segmentation.flat import Array, Flat

SMALLEST_SHARE = 0.1  # a joint that moves less than this share of the largest range counts less
ABSOLUTE = 0.9  # a command that follows the position this closely (correlation) is a position
SHORTEST_STEP = 0.25  # of the usual one: what lies between two rows as near tells no speed
SMALLEST_ERROR = 1e-3  # of the brisk speed: below this is rounding
RIDGE = 1e-3  # per row, of commands and speeds with mean square 1


class Traces(NamedTuple):
    """Vectors (M, D) and numbers (M,) of a batch; `crossing` (E,) is the crossing time, rows."""

    vectors: dict[str, Array]
    numbers: dict[str, Array]
    crossing: Array
    place: Array  # (M, D), ranges from the start
    noise: Array  # (E,), log of the usual error of the episode's linear model, brisk speed 1


def position(batch: Flat) -> tuple[Array, Array]:
    """Motion (M, D) in ranges from its start, and the ranges (E, D) in the signal's own units."""
    values = np.concatenate([e.motion for e in batch.episodes]).astype(np.float64)
    isotropic = batch.first.end_effector_m is not None
    ranges = batch.extent(values)
    largest = ranges.max(axis=1, initial=0.0, keepdims=True)
    ranges = (
        np.broadcast_to(largest, ranges.shape)
        if isotropic
        else np.maximum(ranges, SMALLEST_SHARE * largest)
    )
    ranges = np.where(ranges > 0, ranges, 1.0)
    return (values - values[batch.start][batch.owner]) / ranges[batch.owner], ranges


def lengths(values: Array) -> Array:
    """Euclidean length of each row."""
    return np.asarray(np.sqrt(np.einsum("md,md->m", values, values)))


def motion_traces(batch: Flat) -> Traces:
    place, ranges = position(batch)
    clock = batch.diff(batch.times_s) / batch.step_s[batch.owner]  # 1 where it is regular
    step = batch.diff(place) / np.maximum(clock, SHORTEST_STEP)[:, None]
    speed = lengths(step)
    way = np.maximum(batch.total(speed), 1e-12)
    brisk = batch.total(speed**2) / way  # the mean speed along the way: rests do not count
    brisk = np.where(brisk > 0, brisk, 1.0)
    crossing = lengths(batch.extent(place)) / brisk
    velocity = step / brisk[batch.owner, None]
    columns = commands_of(batch.first)
    paired = [d for d, c in enumerate(columns) if c >= 0]
    vectors = {"velocity": velocity}
    numbers = {"speed": lengths(velocity)}
    if paired:
        command = wished(
            batch,
            [columns[d] for d in paired],
            place[:, paired],
            velocity[:, paired],
            ranges[:, paired],
        )
        error, slip = unexplained(batch, velocity[:, paired], command)
        vectors |= {"command": command, "lag": error, "slip": slip}
        numbers |= {"commanded": lengths(command), "slipping": lengths(slip)}
    else:
        error, _ = unexplained(batch, velocity, None)
        zero = np.zeros((len(batch), 1))
        vectors |= {"command": zero, "lag": error, "slip": zero}
        numbers |= {"commanded": zero[:, 0], "slipping": zero[:, 0]}
    error = lengths(error)
    usual = batch.quantile(error, 0.5) + SMALLEST_ERROR
    numbers["lagging"] = np.log1p(error / usual[batch.owner])
    return Traces(vectors, numbers, crossing, place, np.log(usual))


def commands_of(episode: Episode) -> list[int]:
    """For each dimension of the motion, the action that commands it; -1 where none is known."""
    names = episode.motion_names
    actions = list(episode.action_names)
    found = []
    for name in names:
        wanted = (name, f"d{name.rsplit('_', 1)[-1]}", f"{name}_vel", f"delta_{name}")
        found.append(next((actions.index(w) for w in wanted if w in actions), -1))
    if max(found, default=-1) < 0:
        arm = [i for i, name in enumerate(actions) if not GRIPPER.search(name)]
        return arm if len(arm) == len(names) else found
    return found


def wished(batch: Flat, columns: list[int], place: Array, velocity: Array, ranges: Array) -> Array:
    """Commands (M, D) as wished motion with mean square 1: of positions, the way still to go."""
    command = batch.action[:, columns]
    level, moved = (
        command - batch.mean(command)[batch.owner],
        place - batch.mean(place)[batch.owner],
    )
    follows = agreement(batch, level, moved)
    absolute = (follows > ABSOLUTE) & (follows > agreement(batch, command, velocity))
    in_ranges = command / ranges[batch.owner]
    to_go = in_ranges - in_ranges[batch.start][batch.owner] - place
    wish = np.where(absolute[batch.owner, None], to_go, in_ranges)
    size = np.sqrt(batch.mean(np.einsum("md,md->m", wish, wish)))
    return np.asarray(wish / np.where(size > 0, size, 1.0)[batch.owner, None])


def agreement(batch: Flat, a: Array, b: Array) -> Array:
    """Correlation without sign of two (M, D) in each episode (E,)."""
    both = np.abs(batch.total(np.einsum("md,md->m", a, b)))
    sizes = batch.total(np.einsum("md,md->m", a, a)) * batch.total(np.einsum("md,md->m", b, b))
    return np.asarray(both / np.sqrt(sizes + 1e-12))


def unexplained(batch: Flat, velocity: Array, command: Array | None) -> tuple[Array, Array]:
    """One-step error of the episode's linear model, and wished minus real velocity: (M, D)."""
    regressors = [batch.earlier(velocity, k) for k in (1, 2)]
    if command is not None:
        regressors += [batch.earlier(command, k) for k in (1, 2, 3)]
    x = np.stack(regressors, axis=-1)
    gram = batch.total(np.matmul(x.transpose(0, 2, 1), x))
    gram += RIDGE * batch.count[:, None, None] * np.eye(x.shape[-1])
    wanted = batch.total(np.einsum("mdk,md->mk", x, velocity))
    weights = np.linalg.solve(gram, wanted[..., None])[..., 0]
    error = velocity - np.einsum("mdk,mk->md", x, weights[batch.owner])
    if command is None:
        return error, np.zeros_like(velocity)
    gain = weights[:, 2:].sum(axis=1) / np.maximum(1 - weights[:, :2].sum(axis=1), 0.05)
    return error, gain[batch.owner, None] * command - velocity
