"""Segmentation: what must hold for any episode, known change points, and real recordings."""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from components import outputs, params, records
from components.episodes import Episode
from components.errors import DataError, UserError
from components.row_shards import spans
from components.segmentation import evidence, gripper, stage, tables
from components.segmentation.boundaries import Event, cut, cut_all
from components.segmentation.flat import Flat
from components.segmentation.gripper import Transition
from components.segmentation.hierarchy import nodes
from components.segmentation.partition import Candidate, best, shortened, within
from tests import made_episodes as made

VALUES = params.load(Path(__file__).parents[1] / "params.yaml")
CONFIG = params.section(VALUES, "segmentation", stage.Config)
LEVELS = ("task", "subtask", "action", "segment")
LIMITS = stage.limits(CONFIG)


def transitions(episode: Episode) -> list[Transition]:
    batch = Flat([episode])
    levels = gripper.levels(batch, True), gripper.levels(batch, False)
    return gripper.transitions(batch, *levels)[0]


def starts_s(episode: Episode, events: list[Event]) -> list[float]:
    return [float(episode.timestamps_s[event.start]) for event in events[1:]]


# --- what must hold for any episode --------------------------------------------------------------


@st.composite
def any_episode(draw: st.DrawFn) -> Episode:
    """Random walks, rests, jumps of the gripper, irregular clocks, one control step or many."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.integers(1, 300))
    place = np.cumsum(rng.normal(size=(steps, 3)) * (rng.random((steps, 1)) < 0.7), axis=0)
    opening = np.repeat(rng.random(steps // 20 + 1), 20)[:steps]
    command = np.sign(np.repeat(rng.normal(size=steps // 15 + 1), 15)[:steps])
    episode = made.arm(place, opening, command)
    gaps = rng.uniform(0.01, draw(st.sampled_from([0.02, 0.3])), steps)
    return dataclasses.replace(episode, timestamps_s=np.cumsum(gaps) - gaps[0])


@settings(max_examples=60, deadline=None)
@given(any_episode())
def test_events_cover_every_episode_without_gaps_and_within_bounds(episode: Episode) -> None:
    events = cut(episode, LIMITS)
    assert events[0].start == 0
    assert events[-1].end == len(episode)
    times = episode.timestamps_s
    for event, following in itertools.pairwise(events):
        assert event.end == following.start
    for event in events:
        assert event.end > event.start
        assert 0.0 <= event.score <= 1.0
        lasts = times[min(event.end, len(episode) - 1)] - times[event.start]
        if len(events) > 1:
            assert lasts >= LIMITS.min_event_s - 1e-5
        if event.kind != "idle" and np.diff(times).max(initial=0) < LIMITS.min_event_s:
            assert lasts <= LIMITS.max_event_s + 1e-5


@settings(max_examples=25, deadline=None)
@given(any_episode(), st.sampled_from([1000.0, 0.001]))
def test_units_do_not_matter(episode: Episode, factor: float) -> None:
    other = dataclasses.replace(
        episode,
        state=episode.state * np.float32(factor),
        action=episode.action * np.float32(factor),
    )
    ours, theirs = cut(episode, LIMITS), cut(other, LIMITS)
    assert [(e.start, e.kind) for e in ours] == [(e.start, e.kind) for e in theirs]


# --- known change points -------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [20.0, 80.0, 200.0])
def test_known_change_points_are_found_at_any_rate(fps: float) -> None:
    episode = made.pick_and_place(fps)
    events = cut(episode, LIMITS)
    np.testing.assert_allclose(starts_s(episode, events), [1.0, 2.0, 3.0, 4.0], atol=0.051)
    assert [e.kind for e in events] == ["motion", "grasp", "motion", "motion", "release"]


def test_evidence_names_the_signals_that_changed() -> None:
    events = cut(made.pick_and_place(), LIMITS)
    assert events[0].votes == {}
    assert events[1].votes["gripper_command"] == events[-1].votes["gripper_command"] == 1.0
    assert "gripper_command" not in events[2].votes
    assert events[2].votes["rest"] == 1.0  # the arm waited for its gripper
    assert "gripper_command" not in events[3].votes
    assert events[3].votes["direction_change"] >= 0.4  # a right angle


@pytest.mark.parametrize("noise_m", [0.0002, 0.001])
def test_noise_moves_no_boundary_and_adds_none(noise_m: float) -> None:
    quiet = made.pick_and_place()
    for seed in range(5):
        shaken = quiet.state.copy()
        shaken[:, :3] += np.random.default_rng(seed).normal(0, noise_m, shaken[:, :3].shape)
        noisy = dataclasses.replace(quiet, state=shaken)
        found = starts_s(noisy, cut(noisy, LIMITS))
        known = starts_s(quiet, cut(quiet, LIMITS))
        if noise_m == 0.001 and len(found) == 3:
            known.pop(2)  # 1 mm at 80 Hz is 11 cm/s beside the arm's 20: the turn may drown in it
        np.testing.assert_allclose(found, known, atol=0.1)


@pytest.mark.parametrize("noise_m", [0.0, 1e-4])
def test_an_arm_at_rest_is_one_idle_event(noise_m: float) -> None:
    place = np.random.default_rng(0).normal(0, 1, (1600, 3)) * noise_m
    events = cut(made.arm(place), LIMITS)
    assert [(e.start, e.end, e.kind) for e in events] == [(0, 1600, "idle")]


def test_a_long_rest_is_an_event_of_its_own_and_a_short_one_is_not() -> None:
    corners = [(0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.3, 0.0, 0.0), (0.6, 0.0, 0.0)]
    rests = {}
    for rest_s in (0.1, 4.0):
        episode = made.arm(made.through(corners, [2.0, rest_s, 2.0], 80.0))
        rests[rest_s] = [e for e in cut(episode, LIMITS) if e.kind == "idle"]
    assert rests[0.1] == []
    (rest,) = rests[4.0]
    assert (rest.start / 80, rest.end / 80) == pytest.approx((2.0, 6.0), abs=0.15)
    assert rest.votes["rest"] == 1.0


def test_a_slow_and_shaky_descent_is_no_rest() -> None:
    """20 Hz and jitter of 4 mm hide 3 cm/s from one step to the next."""
    points = [(0.0, 0.0, 0.4), (0.3, 0.2, 0.1), (0.0, 0.2, 0.4), (0.0, 0.2, 0.3)]
    place = made.through(points, [1.5, 1.5, 3.0], 20.0)
    place += np.random.default_rng(0).normal(0, 0.004, place.shape)
    assert "idle" not in {event.kind for event in cut(made.arm(place, fps=20.0), LIMITS)}


def test_steady_motion_is_cut_only_because_it_lasts_too_long() -> None:
    short = made.arm(made.through([(0, 0, 0), (1, 0, 0)], [9.0], 20.0), fps=20.0)
    long = made.arm(made.through([(0, 0, 0), (1, 0, 0)], [25.0], 20.0), fps=20.0)
    assert len(cut(short, LIMITS)) == 1
    assert len(cut(long, LIMITS)) == 3


def test_an_angle_that_wraps_is_no_motion() -> None:
    steps = 400
    turning = (np.linspace(0.0, 4.0 * np.pi, steps) + np.pi) % (2 * np.pi) - np.pi
    state = np.column_stack([turning, np.linspace(0, 0.5, steps)]).astype(np.float32)
    episode = dataclasses.replace(
        made.arm(np.zeros((steps, 3))), state=state, state_names=("joint_0", "joint_1")
    )
    assert len(cut(episode, LIMITS)) == 1
    np.testing.assert_allclose(np.ptp(episode.motion[:, 0]), 4.0 * np.pi, rtol=1e-5)


@pytest.mark.parametrize("unit", [1.0, 180 / np.pi])
def test_a_swing_within_one_step_of_a_slow_recording_is_motion(unit: float) -> None:
    angle = np.where(np.arange(41) < 20, 0.0, 1.2) * unit
    episode = dataclasses.replace(
        made.arm(np.zeros((41, 3)), fps=5.0),
        state=np.column_stack([angle, 0 * angle]).astype(np.float32),
        state_names=("joint_0", "joint_1"),
    )
    np.testing.assert_array_equal(episode.motion[:, 0], episode.state[:, 0])
    assert starts_s(episode, cut(episode, LIMITS)) == pytest.approx([4.0], abs=0.3)


def test_the_best_cuts_gain_most_of_all() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        times = np.cumsum(rng.uniform(0.2, 1.5, 11))
        places = [
            Candidate(i, float(t), float(g))
            for i, (t, g) in enumerate(zip(times, rng.normal(0.2, 0.5, 11), strict=True))
        ]

        def gain(chosen: tuple[Candidate, ...], most: int) -> float:
            marks = [0.0, *(c.time_s for c in chosen), 12.0]
            apart = all(b - a >= 2.0 for a, b in itertools.pairwise(marks))
            return sum(c.gain for c in chosen) if apart and len(chosen) <= most else -np.inf

        every = [c for n in range(6) for c in itertools.combinations(places, n)]
        clock = np.array([0.0, *times, 12.0])
        shifted = [c._replace(step=c.step + 1) for c in places]
        allowed = within(shifted, [(0, 12)], clock, 2.0)
        for most in (1, 2, 3, 6):
            wanted = max(every, key=lambda chosen: gain(chosen, most))
            assert best(allowed, 2.0, most) == [c.step + 1 for c in wanted]


def test_at_half_the_largest_f1_the_best_cuts_have_it() -> None:
    """Against every set of cuts; a cut a second or more from the next one shares no change."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        times, chances = np.cumsum(rng.uniform(0.3, 1.5, 10)), rng.random(10) ** 2
        changes = float(rng.uniform(0.5, 4.0))

        def f1(steps: Sequence[int], p: npt.NDArray[np.float64], n: float = changes) -> float:
            return 2 * float(p[list(steps)].sum()) / (len(steps) + n)

        every = (s for n in range(11) for s in itertools.combinations(range(10), n))
        largest = max(f1(s, chances) for s in every if (np.diff(times[list(s)]) >= 1.0).all())
        places = [Candidate(i, float(times[i]), float(chances[i]) - largest / 2) for i in range(10)]
        assert f1(best([c for c in places if c.gain > 0], 1.0), chances) == pytest.approx(largest)


@pytest.mark.parametrize("fps", [20.0, 400.0])
def test_the_chance_of_a_change_nearby_is_how_often_drawn_ones_are_near(fps: float) -> None:
    rng = np.random.default_rng(5)
    batch = Flat([made.arm(np.zeros((60, 3)), fps=fps), made.arm(np.zeros((40, 3)), fps=fps)])
    chances, reaches = 0.3 * rng.random(100) ** 2, np.array([3.0, 4.0])
    drawn = rng.poisson(chances / reaches[batch.owner], (20_000, 100)) > 0
    near = np.zeros((20_000, 100), dtype=bool)
    for episode, reach in enumerate(reaches):
        half = max(reach, evidence.NEAR_S * fps)
        for row in np.flatnonzero(batch.owner == episode):
            close = (batch.owner == episode) & (abs(batch.row - row) <= half)
            near[:, row] = drawn[:, close].any(axis=1)
    found = evidence.near(batch, chances, reaches)
    np.testing.assert_allclose(found, near.mean(axis=0), atol=0.02)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.floats(0.6, 5.0), st.integers(0, 2**32 - 1))
def test_no_piece_stays_too_long(steps: int, max_s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.01, 0.1, steps))
    cuts = shortened([], rng.random(steps), times, 0.2, max_s)
    marks = times[[0, *cuts, steps - 1]]
    assert (np.diff(marks) <= max_s + 1e-6).all()
    assert len(cuts) == 0 or (np.diff(marks) >= 0.2 - 1e-6).all()
    assert len(cuts) <= 2 * (times[-1] - times[0]) / max_s + 1


def test_weak_evidence_is_raised_to_the_usual_number_of_changes() -> None:
    """Two episodes whose evidence differs by a constant only; their counts come near to 2."""
    rng = np.random.default_rng(0)
    told = np.convolve(rng.normal(size=200), np.ones(5), "same")
    batch = Flat([made.arm(rng.normal(size=(200, 3))) for _ in range(2)])
    odds, reaches = np.concatenate([told - 8.0, told]), np.full(2, 4.0)
    shift = evidence.usual_shift(batch, odds, reaches, np.full(2, 2.0))

    def counts(moved: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (1 / (1 + np.exp(-(odds.reshape(2, -1) + moved[:, None])))).sum(axis=1) / 4

    own = counts(np.zeros(2))
    wanted = own ** (1 - evidence.TRUST) * 2.0**evidence.TRUST
    np.testing.assert_allclose(counts(shift), wanted, rtol=1e-6)
    assert own[0] < 0.3
    assert counts(shift)[0] > 1.0


# --- gripper -------------------------------------------------------------------------------------


def test_the_measured_opening_says_which_command_closes() -> None:
    episode = made.pick_and_place()
    turned = dataclasses.replace(episode, action=-episode.action)
    for each in (episode, turned):
        assert [(t.frame, t.closes) for t in transitions(each)] == [(80, True), (320, False)]


def fingers(
    names: tuple[str, ...], measured: list[np.ndarray], command: str, told: np.ndarray
) -> Episode:
    """The pick and place with other fingers: their columns, and one of the command."""
    episode = made.pick_and_place()
    return dataclasses.replace(
        episode,
        state=np.column_stack([episode.state[:, :3], *measured]).astype(np.float32),
        action=np.column_stack([episode.action[:, :3], told]).astype(np.float32),
        state_names=(*episode.state_names[:3], *names),
        action_names=(*episode.action_names[:3], command),
    )


OPENING = made.pick_and_place().state[:, 3]  # 1, and 0.4 while it holds the cup
CLOSED = (made.pick_and_place().action[:, 3] + 1) / 2
CLOSE_AND_OPEN = [(80, True), (320, False)]


@pytest.mark.parametrize(
    ("names", "measured", "command", "told"),
    [
        # told 1, they stop at 0.6: at what they hold
        (("gripper_position",), [1 - OPENING], "gripper_position", CLOSED),
        (("gripper_position",), [OPENING], "gripper_position", 1 - CLOSED),
        (("gripper_position",), [1 - OPENING + 0.02], "gripper_position", CLOSED),  # an offset
        # one hand, though its fingers have sides
        (("gripper_left_finger", "gripper_right_finger"), [OPENING] * 2, "gripper", CLOSED),
        (("left_finger", "right_finger"), [OPENING, -OPENING], "gripper", CLOSED),
        (("left_finger", "right_finger"), [OPENING, -OPENING], "gripper", -CLOSED),
        # an effort says nothing of which side of a position is closed
        (("gripper_position", "gripper_effort"), [100 * OPENING, 1 - OPENING], "gripper", CLOSED),
    ],
)
def test_fingers_close_when_they_close(
    names: tuple[str, ...], measured: list[np.ndarray], command: str, told: np.ndarray
) -> None:
    episode = fingers(names, measured, command, told)
    assert [(t.frame, t.closes) for t in transitions(episode)] == CLOSE_AND_OPEN


@pytest.mark.parametrize("largest", [1.0, 255.0])
def test_a_command_in_another_unit_says_nothing_of_what_is_held(largest: float) -> None:
    measured = 0.08 * OPENING  # metres; told 1 (or 255) to open, they stay far from it
    episode = fingers(("gripper",), [measured], "gripper", largest * (1 - CLOSED))
    assert [(t.frame, t.closes) for t in transitions(episode)] == CLOSE_AND_OPEN


def test_hands_of_two_arms_are_told_apart() -> None:
    sided = made.pick_and_place()
    later = np.roll(CLOSED, 40)
    episode = dataclasses.replace(
        sided,
        state=np.column_stack([sided.state[:, 0], sided.state[:, 1], 1 - CLOSED, 1 - later]),
        action=np.column_stack([CLOSED, later]),
        state_names=("left_joint", "right_joint", "left_finger", "right_finger"),
        action_names=("left_finger", "right_finger"),
    )
    found = [(t.frame, t.closes) for t in transitions(episode)]
    assert found == [(80, True), (120, True), (320, False), (360, False)]


def test_a_command_alone_closes_first() -> None:
    episode = made.pick_and_place()
    blind = dataclasses.replace(
        episode, state=episode.state[:, :3], state_names=episode.state_names[:3]
    )
    assert [t.closes for t in transitions(blind)] == [True, False]


def test_the_name_decides_where_it_speaks() -> None:
    steps = np.arange(200)
    rising = (steps > 100).astype(np.float32)[:, None]
    still = made.arm(np.zeros((200, 3)))
    for name, closes in (("gripper_close", True), ("gripper_open", False)):
        episode = dataclasses.replace(still, action=rising, action_names=(name,))
        assert [t.closes for t in transitions(episode)] == [closes]


# --- the stage -----------------------------------------------------------------------------------


def test_the_stage_writes_equal_bytes_in_the_schema(tmp_path: Path) -> None:
    taken = [dataclasses.replace(made.pick_and_place(), episode_id=f"{i:020x}") for i in (2, 0, 1)]
    episodes = made.folder(tmp_path / "episodes", taken)
    nobody = made.nothing_said(tmp_path)
    report = stage.run(episodes, nobody, tmp_path / "a", config=CONFIG)
    assert stage.run(episodes, nobody, tmp_path / "b", config=CONFIG) == report
    path = tmp_path / "a/events.parquet"
    assert outputs.sha256(path) == outputs.sha256(tmp_path / "b/events.parquet")
    table = records.read(path, records.EVENTS)
    assert table.schema.equals(records.EVENTS)
    rows = table.to_pylist()
    each = len(cut(taken[0], LIMITS))
    assert len({row["event_id"] for row in rows}) == report.events == 3 * each
    assert [row["episode_id"][-1] for row in rows] == ["0"] * each + ["1"] * each + ["2"] * each
    for row in rows:
        assert row["event_id"] == records.event_id(row["episode_id"], row["start_s"], row["end_s"])
        assert row["start_s"] == pytest.approx(row["start_frame"] / 80)
        assert all(0 <= value <= 1 for value in json.loads(row["evidence"]).values())
    assert rows[each - 1]["end_s"] == pytest.approx(4.5)
    assert report.kinds == {"grasp": 3, "motion": 3 * (each - 2), "release": 3}
    assert report.episodes_with_events == {f"{each}": 3}
    assert report.same_kinds == {"put the cup on the shelf": 1.0}


def test_every_level_of_the_hierarchy_covers_what_it_is_part_of(tmp_path: Path) -> None:
    episodes = made.folder(tmp_path / "episodes", [made.pick_and_place()])
    stage.run(episodes, made.nothing_said(tmp_path), tmp_path / "events", config=CONFIG)
    events = records.read(tmp_path / "events/events.parquet", records.EVENTS).to_pylist()
    nodes = records.read(tmp_path / "events/hierarchy.parquet", records.HIERARCHY).to_pylist()
    by_level = {level: [n for n in nodes if n["level"] == level] for level in LEVELS}
    assert [n["node_id"] for n in by_level["action"]] == [e["event_id"] for e in events]
    assert (
        len(by_level["task"]) == 1 and by_level["task"][0]["end_frame"] == events[-1]["end_frame"]
    )
    assert len(by_level["subtask"]) == 3  # approach, handle, leave
    for upper, lower in itertools.pairwise(LEVELS):
        for node in by_level[upper]:
            parts = [n for n in by_level[lower] if n["parent_id"] == node["node_id"]]
            assert parts[0]["start_frame"] == node["start_frame"]
            assert parts[-1]["end_frame"] == node["end_frame"]
            assert all(a["end_frame"] == b["start_frame"] for a, b in itertools.pairwise(parts))
        assert {n["parent_id"] for n in by_level[lower]} == {n["node_id"] for n in by_level[upper]}


def test_only_new_episodes_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = [
        dataclasses.replace(made.pick_and_place(80.0 - i), episode_id=f"{i:020x}")
        for i in range(21)
    ]
    several = [dataclasses.replace(e, fps=80.0) for e in several]
    nobody = made.nothing_said(tmp_path)
    cuts: list[int] = []
    real = stage.cut_all
    monkeypatch.setattr(stage, "cut_all", lambda some, *a: cuts.append(len(some)) or real(some, *a))
    stage.run(made.folder(tmp_path / "20", several[:20]), nobody, tmp_path / "a", config=CONFIG)
    stage.run(made.folder(tmp_path / "21", several), nobody, tmp_path / "b", config=CONFIG)
    assert cuts == [20, 1]
    monkeypatch.setenv("WAMFLOW_STORE", str(tmp_path / "empty"))
    stage.run(tmp_path / "21", nobody, tmp_path / "c", config=CONFIG)
    for name in ("events.parquet", "hierarchy.parquet"):
        assert outputs.sha256(tmp_path / "b" / name) == outputs.sha256(tmp_path / "c" / name)


@settings(max_examples=20, deadline=None)
@given(st.lists(any_episode(), min_size=1, max_size=3))
def test_columns_hold_the_rows_of_each_episode(several: list[Episode]) -> None:
    several = [dataclasses.replace(e, episode_id=f"{9 - i:020x}") for i, e in enumerate(several)]
    done = {e.episode_id: stage.made(e, cut(e, LIMITS)) for e in several}
    ids = sorted(done)
    whole = tables.joined([tables.table([one]) for one in done.items()], ids)
    assert tables.events(whole).to_pylist() == [row for i in ids for row in done[i].rows]
    wanted = [node for i in ids for node in nodes(*done[i])]
    assert tables.hierarchy(whole).to_pylist() == wanted
    assert {i: tables.made(whole, i) for i in ids} == done
    bounds = spans(tables.actions(whole)["episode_id"])
    assert list(bounds) == ids
    assert [b - a for a, b in bounds.values()] == [len(done[i].rows) for i in bounds]
    left = tables.without(whole, ids[:1])
    assert set(left["episode_id"].to_pylist()) == set(ids[1:])


def test_episodes_are_cut_alike_alone_and_together() -> None:
    several = [made.pick_and_place(fps) for fps in (20.0, 80.0, 50.0)]
    several.append(made.arm(np.zeros((30, 3))))
    assert cut_all(several, LIMITS) == [cut(episode, LIMITS) for episode in several]


def test_a_damaged_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    nobody = made.nothing_said(tmp_path)
    with pytest.raises(DataError, match="manifest"):
        stage.run(tmp_path / "none", nobody, tmp_path / "events", config=CONFIG)
    assert list(tmp_path.iterdir()) == [nobody]


def test_bounds_that_cannot_be_met_are_refused() -> None:
    values = VALUES["segmentation"] | {"min_event_s": 1.0, "max_event_s": 1.5}
    with pytest.raises(UserError, match="at least twice min_event_s"):
        params.section({"segmentation": values}, "segmentation", stage.Config)
    with pytest.raises(ValidationError, match="cut_price"):
        stage.Config(**(VALUES["segmentation"] | {"cut_price": 0}))


# --- real robots and a simulated one -------------------------------------------------------------


GRIPPERS: dict[str, Callable[[Episode], list[npt.NDArray[np.float32]]]] = {
    "cr5-banana": lambda e: [e.action[:, 6]],
    "franka-stack-hdf5": lambda e: [e.action[:, 6]],
    "franka-pick-place": lambda e: [e.action[:, e.action_names.index("gripper_close_0")]],
    "gr1-pick-place": lambda e: [e.action[:, 7:13].sum(axis=1), e.action[:, 29:35].sum(axis=1)],
}


def turns_s(episode: Episode, raw: npt.NDArray[np.float32]) -> list[float]:
    """When a raw gripper signal goes from a quarter of its range to three or back: hysteresis."""
    span = float(np.ptp(raw))
    found: list[float] = []
    side: bool | None = None
    for at, value in zip(episode.timestamps_s, (raw - raw.min()) / max(span, 1e-9), strict=True):
        now = True if value > 0.75 else False if value < 0.25 else None
        if now is None:
            continue
        if side is not None and now != side:
            found.append(float(at))
        side = now
    return found if span > 1e-3 else []


@pytest.mark.parametrize("name", GRIPPERS)
def test_a_real_gripper_is_never_far_from_a_boundary(name: str) -> None:
    episodes = made.real(name)
    seen = 0
    for episode, found in zip(episodes, cut_all(episodes, LIMITS), strict=True):
        edges = [0.0, *starts_s(episode, found), episode.duration_s]
        turns = [at for raw in GRIPPERS[name](episode) for at in turns_s(episode, raw)]
        for turn in turns:
            assert min(abs(turn - s) for s in edges) <= 0.25
        seen += len(turns)
        assert len(found) <= 3 * len(turns) + 1
        assert sum(e.kind in ("grasp", "release") for e in found) >= min(len(turns), 2)
    assert seen >= 2 * len(episodes)


def test_a_real_robot_that_does_not_move_is_idle() -> None:
    for episode in made.real("so101-still"):
        assert [e.kind for e in cut(episode, LIMITS)] == ["idle"]


@pytest.mark.parametrize("task", ["drawer-open", "window-open", "button-press-topdown"])
def test_demonstrations_of_one_task_are_cut_alike(task: str) -> None:
    counts = Counter(len(cut(e, LIMITS)) for e in made.demonstrations(task, range(8)))
    (usual, share), *_ = counts.most_common(1)
    assert 2 <= usual <= 4
    assert share >= 5  # where the hand starts makes one approach two for some


# --- the picture ---------------------------------------------------------------------------------


def test_the_picture_shows_the_episodes_asked_for(tmp_path: Path) -> None:
    from components.segmentation.picture import draw

    taken = [dataclasses.replace(made.pick_and_place(), episode_id=f"{i:020x}") for i in range(3)]
    episodes = made.folder(tmp_path / "episodes", taken)
    stage.run(episodes, made.nothing_said(tmp_path), tmp_path / "events", config=CONFIG)
    heights = []
    for count in (1, 3, 9):
        draw(episodes, tmp_path / "events", tmp_path / "p.png", count)
        png = (tmp_path / "p.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        heights.append(struct.unpack(">I", png[20:24])[0])
    assert heights[1] == pytest.approx(3 * heights[0], abs=3)
    assert heights[2] == heights[1]
