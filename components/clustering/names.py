"""Names of clusters: the caption most of its events have, or what its events do most."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.clustering.descriptors import SCALARS, Vector, columns
from components.clustering.groups import Labels
from components.row_shards import values

CLEAR = 0.7  # standard deviations from the mean that deserve a word


def caption_names(labels: Labels, captions: list[str]) -> dict[str, str]:
    """Of each cluster the most common caption; of equal ones the first in the alphabet."""
    names = []
    for label in range(int(labels.max()) + 1):
        counts = Counter(captions[i] for i in np.flatnonzero(labels == label))
        names.append(min(counts, key=lambda text: (-counts[text], text)))
    return _numbered(names)


def action_names(labels: Labels, events: pa.Table, features: Vector) -> dict[str, str]:
    """Of each cluster what stands out in its mean: direction, gripper, length, speed."""
    spaces, (names, of) = columns(events), values(events["space"])
    of_event = np.array(names)[of]
    return _numbered(
        [
            _describe(of_event[labels == label], features[labels == label], spaces)
            for label in range(int(labels.max()) + 1)
        ]
    )


def _describe(
    of_event: npt.NDArray[np.str_],
    features: Vector,
    spaces: dict[str, tuple[int, tuple[str, ...]]],
) -> str:
    space = Counter(of_event.tolist()).most_common(1)[0][0]
    offset, axes = spaces[space]
    inside = features[of_event == space]
    words = [_direction(inside[:, offset : offset + len(axes)].mean(axis=0), axes)]
    mean = dict(zip(SCALARS, features[:, : len(SCALARS)].mean(axis=0), strict=True))
    for scalar, low, high in (
        ("gripper", "gripper value falls", "gripper value rises"),
        ("duration", "short", "long"),
        ("speed", "slow", "fast"),
    ):
        if abs(mean[scalar]) >= CLEAR:
            words.append(high if mean[scalar] > 0 else low)
    return ", ".join(words)


def _direction(mean: Vector, axes: tuple[str, ...]) -> str:
    """The strongest axis with its sign, and the second where it is at least half as strong."""
    if not len(mean) or np.abs(mean).max() < CLEAR / 2:
        return "no clear direction"
    order = np.argsort(-np.abs(mean), kind="stable")[:2]
    strong = [i for i in order if abs(mean[i]) >= np.abs(mean).max() / 2]
    return "moves " + " ".join(f"{'+' if mean[i] > 0 else '-'}{axes[i]}" for i in strong)


def _numbered(names: list[str]) -> dict[str, str]:
    """{"0": name, ...}; a name that occurs again gets a number."""
    seen: Counter[str] = Counter()
    numbered = {}
    for label, name in enumerate(names):
        seen[name] += 1
        numbered[str(label)] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return numbered
