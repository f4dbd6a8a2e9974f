"""The benchmark of segmentation: what counts as a true boundary, and as found."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.segmentation import evidence
from tests.benchmarks.behaviour import (
    DEVELOPMENT,
    SCORED,
    TOLERANCE,
    changes,
    f1,
    matched,
    split,
)

STEPS = st.lists(st.integers(0, 60), max_size=6, unique=True).map(sorted)


@given(STEPS, STEPS)
def test_matching_is_one_to_one_and_the_largest(found: list[int], true: list[int]) -> None:
    fewer, more = sorted((found, true), key=len)
    most = max(
        sum(abs(a - b) <= TOLERANCE for a, b in zip(fewer, chosen, strict=True))
        for chosen in itertools.permutations(more, len(fewer))
    )
    assert matched(found, true) == most


def test_f1_of_all_none_and_half() -> None:
    assert f1([[10, 30]], [[10, 33]]) == 1.0
    assert f1([[]], [[10]]) == 0.0
    assert f1([[10, 50]], [[12, 80]]) == 0.5


def told(*contact: tuple[int, int], moving: tuple[int, int] = (0, 0)) -> dict[str, np.ndarray]:
    signals = {name: np.zeros(100, dtype=bool) for name in ("contact", "grasp", "object_moving")}
    for start, stop in contact:
        signals["contact"][start:stop] = True
    signals["object_moving"][slice(*moving)] = True
    return signals


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        (told((30, 60)), [30, 60]),
        (told((30, 60), moving=(33, 80)), [30, 60, 80]),  # within the tolerance: one change
        (told((30, 41), (50, 60)), [30, 60]),  # a touch lost for 9 steps is kept
        (told((30, 40), (60, 63)), [30, 40]),  # a touch of 3 steps is none
        (told((2, 97)), []),  # no event fits before or after
    ],
)
def test_flickers_are_no_changes(signals: dict[str, np.ndarray], expected: list[int]) -> None:
    assert changes(signals) == expected


def test_no_scored_task_was_ever_fitted() -> None:
    fitted = set(json.loads(evidence.WEIGHTS.read_text())["tasks"])
    assert fitted == set(DEVELOPMENT)
    assert not fitted & set(SCORED)
    assert len(SCORED) >= 15
    develop, scored = split(["door-open", "push"])
    assert scored == ["door-open", "push"]
    assert not set(develop) & set(scored)
    assert len(split(list(DEVELOPMENT))[0]) >= 8
