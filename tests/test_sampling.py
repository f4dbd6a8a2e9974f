"""Sampling: weights against the formula's limits, exact draws, a stable split, the receipt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from components import outputs, records
from components.errors import DataError
from components.sampling import split, stage, weights

CONFIG = stage.Config(
    draws=1000,
    temperature=0.5,
    balance="joint",
    idle_weight=0.1,
    flagged_weight=0.25,
    min_event_s=0.1,
    validation_fraction=0.2,
    seed=0,
)
CELLS = np.repeat([0, 1, 2], [81, 16, 3])


def per_cell(found: np.ndarray) -> dict[str, float]:
    return {name: float(found[cell == CELLS].sum()) for cell, name in enumerate("abc")}


# --- weights -------------------------------------------------------------------------------------


def test_temperature_1_is_natural_and_0_is_uniform_over_clusters() -> None:
    natural = weights.balanced(CELLS, np.ones(100), 1.0)
    np.testing.assert_allclose(natural, 0.01)
    uniform = per_cell(weights.balanced(CELLS, np.ones(100), 0.0))
    assert uniform == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_between_them_clusters_follow_a_power_of_their_size() -> None:
    found = per_cell(weights.balanced(CELLS, np.ones(100), 0.5))
    total = 9 + 4 + np.sqrt(3)
    assert found == pytest.approx({"a": 9 / total, "b": 4 / total, "c": np.sqrt(3) / total})


def test_multipliers_act_on_their_events_and_leave_balance_to_the_others() -> None:
    multipliers = np.array([1.0] * 80 + [0.0] + [0.5] * 16 + [1.0] * 3)
    found = weights.balanced(CELLS, multipliers, 0.0)
    assert found[80] == 0.0
    assert per_cell(found) == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.4})
    assert not weights.balanced(CELLS, np.zeros(100), 0.5).any()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60).filter(lambda w: sum(w) > 0.01),
    st.integers(0, 10_000),
)
def test_draws_are_whole_exact_and_fair(raw: list[float], draws: int) -> None:
    probabilities = np.array(raw) / sum(raw)
    found = weights.planned(probabilities, draws)
    assert found.sum() == draws
    assert (found >= 0).all()
    assert np.abs(found - probabilities * draws).max() < 1.0 + 1e-6
    assert not found[probabilities == 0].any()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=60).filter(lambda w: sum(w) > 0.01),
    st.integers(0, 10_000),
    st.data(),
)
def test_every_run_of_neighbours_gets_its_share(
    raw: list[float], draws: int, data: st.DataObject
) -> None:
    probabilities = np.array(raw) / sum(raw)
    start = data.draw(st.integers(0, len(raw) - 1))
    end = data.draw(st.integers(start + 1, len(raw)))
    found = weights.planned(probabilities, draws)[start:end].sum()
    assert abs(found - probabilities[start:end].sum() * draws) < 1.0 + 1e-6


def test_a_million_events_with_fewer_draws_keep_the_balance() -> None:
    cells = np.repeat([0, 1, 2], [900_000, 99_990, 10])
    found = weights.planned(weights.balanced(cells, np.ones(1_000_000), 0.0), 30_000)
    assert found.sum() == 30_000
    assert found[:900_000].sum() == found[-10:].sum() == 10_000


# --- split ---------------------------------------------------------------------------------------


def ids(number: int) -> list[str]:
    return [f"episode-{i}" for i in range(number)]


def test_more_episodes_move_nobody() -> None:
    before = split.validation_episodes(ids(200), 0.2, 0)
    after = split.validation_episodes(ids(400), 0.2, 0)
    assert before == after & set(ids(200))
    assert 25 <= len(before) <= 55  # binomial(200, 0.2): 40 +- 5.7
    assert before != split.validation_episodes(ids(200), 0.2, 1)
    assert before == split.validation_episodes(ids(200)[::-1], 0.2, 0)


@pytest.mark.parametrize("number", [5, 6, 9, 30])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_neither_split_is_empty_from_five_episodes_on(number: int, fraction: float) -> None:
    for seed in range(20):
        held = split.validation_episodes(ids(number), fraction, seed)
        assert 1 <= len(held) < number


def test_small_sets_always_keep_something_to_train_on() -> None:
    for number in range(1, 5):
        for seed in range(20):
            assert len(split.validation_episodes(ids(number), 0.99, seed)) < number
    assert split.validation_episodes(ids(50), 0.0, 0) == set()
    assert split.validation_episodes([], 0.5, 0) == set()


# --- the stage -----------------------------------------------------------------------------------


def write_inputs(root: Path, rows: list[dict[str, Any]]) -> None:
    """Tables of events (with `joint`, `action` and `checks` for the other two tables)."""
    events = [
        {
            "event_id": row["event_id"],
            "episode_id": row["episode_id"],
            "start_s": 1.0,
            "end_s": 1.0 + row.get("duration_s", 1.0),
            "start_frame": 20,
            "end_frame": 40,
            "kind": row.get("kind", "motion"),
        }
        for row in rows
    ]
    clusters = [
        {
            "event_id": row["event_id"],
            "joint_cluster": row.get("joint", 0),
            "action_cluster": row.get("action", 0),
        }
        for row in rows
    ]
    captions = [
        {
            "event_id": row["event_id"],
            "level": level,
            "text": "move up",
            "captioner": row.get("captioner", "kinematics"),
            "checks": row.get("checks", '{"length": "ok"}'),
        }
        for row in rows
        for level in ("task", "subtask", "action", "segment")
    ]
    records.write(root / "events/events.parquet", events, records.EVENTS, "event_id")
    records.write(root / "clusters/clusters.parquet", clusters, records.CLUSTERS, "event_id")
    records.write(root / "captions/captions.parquet", captions, records.CAPTIONS, "event_id")


def many(number: int = 240) -> list[dict[str, Any]]:
    """Ten events an episode; clusters 0, 1, 2 hold 70, 20 and 10 %."""
    return [
        {
            "event_id": f"{i:04}",
            "episode_id": f"episode-{i // 10}",
            "joint": 0 if i % 10 < 7 else 1 if i % 10 < 9 else 2,
            "action": i % 2,
            "kind": "idle" if i % 10 == 6 else "motion",
        }
        for i in range(number)
    ]


def sample(root: Path, **changes: Any) -> tuple[stage.Report, list[dict[str, Any]]]:
    config = stage.Config(**{**CONFIG.model_dump(), **changes})
    report = stage.run(
        root / "events", root / "captions", root / "clusters", root / "plan", config=config
    )
    table = records.read(root / "plan/plan.parquet", records.PLAN)
    assert table.schema.names[: len(records.PLAN)] == records.PLAN.names
    return report, table.to_pylist()


def test_the_plan_draws_train_events_exactly_and_validation_never(tmp_path: Path) -> None:
    write_inputs(tmp_path, many())
    report, rows = sample(tmp_path)
    train = [row for row in rows if row["split"] == "train"]
    held = [row for row in rows if row["split"] == "validation"]
    assert len(rows) == report.events == 240
    assert sum(row["draws"] for row in train) == report.draws == 1000
    assert sum(row["weight"] for row in train) == pytest.approx(1.0)
    assert held
    assert all(row["draws"] == 0 and row["weight"] == 0 for row in held)
    assert not {row["episode_id"] for row in train} & {row["episode_id"] for row in held}
    assert {"start_s", "end_s", "start_frame", "end_frame"} <= set(rows[0])
    assert report.draws_by_kind["idle"] == sum(
        row["draws"] for row in train if int(row["event_id"]) % 10 == 6
    )


def test_idle_flagged_and_short_events_count_less(tmp_path: Path) -> None:
    rows = [{"event_id": str(i), "episode_id": "e"} for i in range(5)]
    rows[1]["kind"] = "idle"
    rows[2]["checks"] = '{"length": "ok", "gripper": "says grasp, but nothing closed"}'
    rows[3]["duration_s"] = 0.05
    rows[4] |= {"checks": rows[2]["checks"], "captioner": "person"}  # people are believed
    write_inputs(tmp_path, rows)
    _, plan = sample(tmp_path, draws=2350, validation_fraction=0.0)
    assert [row["draws"] for row in plan] == [1000, 100, 250, 0, 1000]


def test_both_balances_pairs_of_clusters(tmp_path: Path) -> None:
    rows = [
        {"event_id": f"{i:03}", "episode_id": "e", "joint": int(i < 90), "action": int(i % 90 == 0)}
        for i in range(100)
    ]
    pairs = Counter((row["joint"], row["action"]) for row in rows)
    assert sorted(pairs.values()) == [1, 1, 9, 89]
    write_inputs(tmp_path, rows)
    report, plan = sample(tmp_path, temperature=0.0, balance="both", validation_fraction=0.0)
    drawn: Counter[tuple[int, int]] = Counter()
    for row in plan:
        drawn[row["joint_cluster"], row["action_cluster"]] += row["draws"]
    assert set(drawn.values()) == {250}
    assert report.cells == 4
    _, plan = sample(tmp_path, temperature=0.0, balance="action", validation_fraction=0.0)
    assert sum(row["draws"] for row in plan if row["action_cluster"] == 1) == 500


def test_the_receipt_names_what_the_plan_was_made_from(tmp_path: Path) -> None:
    write_inputs(tmp_path, many())
    sample(tmp_path)
    receipt = json.loads((tmp_path / "plan/receipt.json").read_text())
    assert receipt["plan_sha256"] == outputs.sha256(tmp_path / "plan/plan.parquet")
    assert receipt["inputs"] == {
        name: outputs.sha256(tmp_path / name / f"{name}.parquet")
        for name in ("events", "captions", "clusters")
    }
    assert (receipt["draws"], receipt["seed"], receipt["temperature"]) == (1000, 0, 0.5)
    assert receipt["totals"]["draws"] == 1000


def test_the_same_rows_in_any_order_give_the_same_plan(tmp_path: Path) -> None:
    write_inputs(tmp_path, many())
    sample(tmp_path)
    first = outputs.sha256_folder(tmp_path / "plan")
    sample(tmp_path)
    assert outputs.sha256_folder(tmp_path / "plan") == first
    rows = records.read(tmp_path / "events/events.parquet", records.EVENTS).to_pylist()
    table = records.pa.Table.from_pylist(rows[::-1], schema=records.EVENTS)
    outputs.write_table(tmp_path / "events/events.parquet", table)
    plan = outputs.sha256(tmp_path / "plan/plan.parquet")
    sample(tmp_path)
    assert outputs.sha256(tmp_path / "plan/plan.parquet") == plan


def test_nothing_left_to_draw_says_why(tmp_path: Path) -> None:
    write_inputs(
        tmp_path, [{"event_id": str(i), "episode_id": "e", "kind": "idle"} for i in range(3)]
    )
    with pytest.raises(DataError, match=r"of 3 training events 3 are idle \(idle_weight 0.0\)"):
        sample(tmp_path, idle_weight=0.0)
    assert not list(tmp_path.glob("*plan*"))
    assert sample(tmp_path)[0].draws == 1000  # all idle, but wanted


@pytest.mark.parametrize("table", ["clusters", "captions"])
def test_events_without_cluster_or_caption_are_named(tmp_path: Path, table: str) -> None:
    write_inputs(tmp_path, many(20))
    schema = {"clusters": records.CLUSTERS, "captions": records.CAPTIONS}[table]
    path = tmp_path / table / f"{table}.parquet"
    rows = [r for r in records.read(path, schema).to_pylist() if r["event_id"] != "0007"]
    records.write(path, rows, schema, "event_id")
    with pytest.raises(
        DataError, match=rf"{table}.parquet: 1 of 20 events are missing, first 0007"
    ):
        sample(tmp_path)


def test_no_events_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events.parquet: no such file"):
        sample(tmp_path)
    write_inputs(tmp_path, [])
    with pytest.raises(DataError, match="no events"):
        sample(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"draws": 0},
        {"temperature": 1.5},
        {"balance": "none"},
        {"validation_fraction": 1.0},
        {"unknown": 1},
        {"seed": "x"},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        stage.Config(**{**CONFIG.model_dump(), **wrong})
