"""The benchmark of event mode against chunks: its draws, its clock, its measure, its intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from components.pretraining import view
from components.pretraining.windows import Windows
from components.serving.policy import Policy
from components.stations.station import Observation
from components.trials import loop
from components.trials.settings import Trial
from models.batch import Batch
from tests import made_training
from tests.benchmarks import event_vs_chunk
from tests.benchmarks.claim import arms, figures
from tests.benchmarks.claim.arms import Arm, ArmWindows, Data
from tests.benchmarks.claim.progress import Moment, Progress
from tests.benchmarks.claim.trials import Journal, turns
from tests.point_station import PLANS, PointStation
from tests.test_trials import CONFIG as CONFIG_OF_TRIALS
from tests.test_trials import untrained

EVENT = Arm(None, "event", 16)
CHUNK = Arm(6, "joined", 6)
CLOCK = Arm(6, "clock", 4)
CONFIG = made_training.CONFIG.model_copy(update={"processes": 1})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Five made episodes and their training view."""
    root = made_training.write(tmp_path_factory.mktemp("claim"))
    (root / "view").mkdir()
    view.build(root / "episodes", root / "captions", root / "plan", root / "view", CONFIG)
    return Data(root, root / "view")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batches(data: Data, arm: Arm) -> list[Batch]:
    windows = ArmWindows(data, CONFIG, arm, 4)
    assert windows.steps == 4
    return [windows.batch(step, 0, 1) for step in range(4)]


def test_both_arms_see_the_same_draws(data: Data) -> None:
    """Anchors, pictures at them, states and dropped captions are equal; only the ends differ."""
    for event, chunk in zip(batches(data, EVENT), batches(data, CHUNK), strict=True):
        for name in ("keyframes", "state", "step_s", "view_mask", "action_mask"):
            assert torch.equal(getattr(event, name), getattr(chunk, name)), name
        assert torch.equal(event.text.any(-1), chunk.text.any(-1))
        assert event.actions.shape == chunk.actions.shape
        assert not torch.equal(event.length, chunk.length)
        for row in range(len(event)):
            both = min(int(event.length[row]), int(chunk.length[row]))
            assert torch.equal(event.actions[row, :both], chunk.actions[row, :both])


def test_event_arm_is_the_products_own(data: Data) -> None:
    """Its batches are those of pretraining."""
    plain = Windows(data.view, CONFIG)
    for step, batch in enumerate(batches(data, EVENT)):
        for name, value in vars(plain.batch(step, 0, 1)).items():
            assert torch.equal(value, getattr(batch, name)), name


def test_a_chunk_runs_over_the_events_end_but_not_the_episodes(data: Data) -> None:
    """Its length is the configured one up to the episode's last frame; the actions are there."""
    windows = ArmWindows(data, CONFIG, CHUNK, 4)
    a = windows.arrays
    first = int(np.flatnonzero((a["event_start"] == 0) & (a["event_draws"] > 0))[0])
    last = int(np.flatnonzero((a["event_start"] == 20) & (a["event_draws"] > 0))[0])
    batch = windows._windows(np.array([first, last]), np.array([17, 37]), np.ones(2, bool))
    assert batch.length.tolist() == [6, 3]
    row = a["first_frame"][a["event_episode"][first]] + 17
    assert np.allclose(batch.actions[0, :6], a["action"][row : row + 6])
    assert not batch.actions[0, 6:].any()
    event = ArmWindows(data, CONFIG, EVENT, 4)
    assert event._windows(np.array([first]), np.array([17]), np.ones(1, bool)).length == 3


def test_chunks_stop_before_frames_that_are_missing() -> None:
    """Frames of events that are never drawn were not decoded."""
    places = np.array([0, 1, 2, -1, 3, 0, 1])
    assert arms.seen_until(places, np.array([0, 5, 7])).tolist() == [3, 3, 3, 5, 5, 7, 7]


def test_words(data: Data) -> None:
    """By the clock: those of the event arm. Joined: one text for all windows of a task."""
    for event, clock, joined in zip(
        batches(data, EVENT), batches(data, CLOCK), batches(data, CHUNK), strict=True
    ):
        assert torch.equal(event.text, clock.text)
        said = joined.text[joined.text.any(-1)]
        assert torch.equal(said, said[:1].expand_as(said))
    plan = ["open it: reach left", "open it: pull back"]
    assert arms.joined(plan) == "open it: reach left, then pull back"


def test_the_clock_is_what_training_shows(data: Data) -> None:
    """Each event of the made episodes lasts 20 steps; the last one stays."""
    plans = json.loads((data.view / "view.json").read_text())["event_plans"]
    durations = arms.usual_durations(data.tables, plans)
    assert durations == {"open the door": [20.0, 20.0]}
    assert [arms.holding([20.0, 20.0], done) for done in (0, 19, 20, 39, 40, 90)] == [0, 0, 1] + [
        1
    ] * 3


@pytest.mark.usefixtures("alone")
def test_trained_arms_act(data: Data, tmp_path: Path) -> None:
    """A chunk has its length and the clock's words; the event arm ends where the model says."""
    checkpoint = tmp_path / "checkpoint"
    arms.train(data, CONFIG, CLOCK, 2, checkpoint)
    plans = json.loads((checkpoint / "event_plans.json").read_text())
    durations = arms.usual_durations(data.tables, plans)
    seen = Observation({"top": np.zeros((24, 24, 3), np.uint8)}, np.zeros(4, np.float32))
    trials = event_vs_chunk.params.load(event_vs_chunk.ROOT / "params.yaml")["trials"]
    clock = arms.actor(checkpoint, CLOCK, 0, durations, trials)
    clock.begin("open the door", 7)
    segments = [clock.next(lambda: seen) for _ in range(6)]
    assert [len(segment.actions) for segment in segments] == [4] * 6
    assert [segment.event for segment in segments] == [0] * 5 + [1]
    assert segments[5].caption == plans["open the door"][1]
    whole = Policy(checkpoint).infer(arms.actors.request(seen, segments[0].caption, 0))
    event = arms.actor(checkpoint, EVENT, 0, durations, trials)
    event.begin("open the door", 7)
    segment = event.next(lambda: seen)
    assert len(segment.actions) == min(16, whole["event_remaining"])


def moments(hand_m: list[float], object_m: list[float], touch: str, success: int) -> list[Moment]:
    """Along one line, with the goal at 0.5 m."""
    goal_m = np.array([0.5, 0, 0])
    return [
        Moment(np.array([h, 0, 0]), np.array([o, 0, 0]), goal_m, c == "x", i >= success)
        for i, (h, o, c) in enumerate(zip(hand_m, object_m, touch, strict=True))
    ]


@pytest.mark.parametrize(
    ("hand_m", "object_m", "touch", "success", "points"),
    [
        ([0, 0, 0], [0.1, 0.1, 0.1], "...", 9, 0),
        ([0, 0.06, 0.1], [0.1, 0.1, 0.1], "...", 9, 20),
        ([0, 0.06, 0.1], [0.1, 0.1, 0.1], "..x", 9, 40),
        ([0, 0.1, 0.13], [0.1, 0.1, 0.13], ".xx", 9, 60),
        ([0, 0.1, 0.31], [0.1, 0.1, 0.31], ".x.", 9, 80),
        ([0, 0.1, 0.31], [0.1, 0.1, 0.31], ".x.", 2, 100),
        ([0, 0, 0], [0.1, 0.4, 0.4], "...", 9, 0),  # moved by nothing that was near
        ([0.1, 0, 0], [0.1, 0.1, 0.1], "..x", 9, 40),  # touched later than near
        ([0, 0, 0], [0.1, 0.1, 0.1], "...", 2, 100),  # success is all of it
    ],
)
def test_progress(
    hand_m: list[float], object_m: list[float], touch: str, success: int, points: float
) -> None:
    """Phases count in order, 20 points each."""
    progress = Progress()
    for now in moments(hand_m, object_m, touch, success):
        progress.see(now)
    assert progress.points == points


def test_interval_is_students() -> None:
    """Against the table: t(0.975) of 4 degrees of freedom is 2.776."""
    lower, upper = figures.interval([1.0, 2.0, 3.0, 4.0, 5.0]) or (0, 0)
    half = 2.7764 * math.sqrt(2.5 / 5)
    assert (lower, upper) == pytest.approx((3 - half, 3 + half), abs=1e-3)
    assert figures.interval([1.0]) is None


def test_differences_are_paired_by_seed() -> None:
    """Seeds that differ much from each other do not widen the difference's interval."""
    rows = [
        {"arm": arm, "seed": seed, "task": task, "progress": 10.0 * seed + gain + place}
        for seed in (1, 2, 3)
        for arm, gain in (("a", 5 + seed % 2), ("b", 0))
        for task, place in (("x", 0), ("y", 20), ("y", 20))
    ]
    found = figures.compared(rows, "a", "b")
    assert found["progress_chunk"] == 30.0
    assert found["difference"] == pytest.approx(5 + 2 / 3, abs=0.01)
    assert found["training_seeds"] == 3
    assert found["ci_chunk"][1] - found["ci_chunk"][0] > 40
    assert found["ci_difference"][1] - found["ci_difference"][0] < 4


def test_arms_meet_the_same_scenes_in_turn() -> None:
    """Every arm every scene once, in an order that is drawn; other seeds have other scenes."""
    due = list(turns(3, ["a", "b"], ["x", "y"], 10))
    of = {arm: [(t.task, t.scene) for t in due if t.arm == arm] for arm in "ab"}
    assert of["a"] == of["b"] and len(set(of["a"])) == 20
    first = [pair[0].arm for pair in zip(due[::2], due[1::2], strict=True)]
    assert set(first) == {"a", "b"}
    assert not {t.scene for t in due} & {t.scene for t in turns(4, ["a"], ["x"], 10)}


def test_an_interrupted_journal_goes_on(tmp_path: Path) -> None:
    """A line that was cut off is dropped, whole ones stay."""
    path = tmp_path / "results.jsonl"
    Journal(path).add({"key": "1", "progress": 20.0})
    with path.open("a") as file:
        file.write('{"key": "2", "prog')
    journal = Journal(path)
    assert list(journal.rows) == ["1"]
    journal.add({"key": "2", "progress": 40.0})
    assert [row["progress"] for row in Journal(path).rows.values()] == [20.0, 40.0]


def test_scored_and_tuned_tasks_differ() -> None:
    """Also from the tasks that the segmentation was made on."""
    from tests.benchmarks.behaviour import DEVELOPMENT

    scored = set(event_vs_chunk.SCORED)
    assert not scored & {*event_vs_chunk.TUNE, *DEVELOPMENT}


def test_both_arms_may_look_equally_often() -> None:
    """Every 4 or 16 steps or when the window is over; shorter windows cannot be left open."""
    events, chunks = event_vs_chunk.candidates([8, 32])
    assert [arm.executed_steps for arm in events] == [4, 16, event_vs_chunk.WHOLE]
    looks = [(arm.window_steps, arm.executed_steps) for arm in chunks]
    assert looks == [(8, 4), (8, 8), (32, 4), (32, 16), (32, 32)]
    assert {arm.words for arm in chunks} == {"joined"}


@pytest.mark.parametrize("arm", [EVENT, CHUNK, CLOCK])
def test_each_arm_acts_in_a_trial(arm: Arm, tmp_path: Path) -> None:
    """Through the loop of the product's own trials, on a station without pictures of a robot."""
    untrained(tmp_path, "point", ["top"], PLANS)
    durations = {sentence: [6.0] * len(plan) for sentence, plan in PLANS.items()}
    values = CONFIG_OF_TRIALS.model_dump(mode="json")
    actor = arms.actor(tmp_path, arm, 0, durations, values)
    outcome = loop.hold(PointStation(), actor, Trial(0, "press", "model", 1), 20)
    assert outcome.steps == 20 and sum(steps for _, steps in outcome.events) == 20
