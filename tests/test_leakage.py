"""Leakage: what two places share is counted, whatever the order, and still ones are no likeness."""

from __future__ import annotations

from components.ingestion import leakage
from components.ingestion.measure import Facts


def facts(source: int, uri: str, content: str, signals: str = "") -> Facts:
    return Facts(source, 0, uri, "robot", episode_id=content, signals_id=signals or content)


def test_a_split_that_is_another_again_is_said_with_counts() -> None:
    train = [facts(0, f"/d/set-train.tfrecord#{n}", f"e{n}") for n in range(5)]
    val = [facts(0, f"/d/set-val.tfrecord#{n}", f"e{4 - n}") for n in range(4)]
    (said,) = leakage.find(train + val, ["bridge"])
    assert "5 of bridge (train) and 4 of bridge (val), 4 episodes are the same" in said


def test_equal_signals_under_other_pictures_are_said() -> None:
    passed = [facts(0, "/a#0", "one", "s"), facts(1, "/b#0", "two", "s"), facts(1, "/b#1", "x")]
    (said,) = leakage.find(passed, ["a", "b"])
    assert "1 of a and 2 of b, 1 more have the same signals" in said


def test_repeats_within_one_place_and_still_episodes_are_no_leakage() -> None:
    passed = [facts(0, "/a#0", "one"), facts(0, "/a#1", "one")]
    assert leakage.find(passed, ["a"]) == []
    still = [Facts(n, 0, "/a#0", "robot", episode_id=str(n)) for n in range(2)]
    assert leakage.find(still, ["a", "b"]) == []
