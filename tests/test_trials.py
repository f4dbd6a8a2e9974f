"""Collecting trials: interleaved list, event mode, baselines, resuming, replay and the store."""

from __future__ import annotations

import ctypes.util
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from components import lerobot, outputs, records
from components.errors import DataError, TemporaryError, UserError
from components.serving.client import PolicyClient
from components.serving.process import served
from components.stations.recording import EVALUATION_SEEDS
from components.stations.station import Observation, Station
from components.trials import actors, expected, loop, replay, settings
from components.trials.collection import Job, collect
from components.trials.journal import Journal
from components.trials.settings import Config, Trial
from flows import trials as store_of_trials
from tests import point_station, scripted_policy
from tests.point_station import PLANS, MortalStation, PointStation

ROOT = Path(__file__).parents[1]
CONFIG = Config(
    station="metaworld",
    tasks=(),
    trials_per_task=2,
    max_trial_s=8.0,  # 160 steps of the point
    replan_steps=10,
    max_event_factor=2.0,
    random_hold_steps=4,
    replay_events=40,
    seed=3,
)
needs_rendering = pytest.mark.skipif(
    ctypes.util.find_library("OSMesa") is None, reason="libosmesa6 is not installed: no rendering"
)
TASKS = ["press", "push"]


def command(folder: Path, **options: Any) -> list[str]:
    """The command of a scripted policy's server."""
    written = scripted_policy.write(folder, point_station.TARGETS, **options)
    return [sys.executable, "-m", "tests.scripted_policy", str(written)]


def logged(folder: Path) -> list[dict[str, Any]]:
    """What a collection's journal says with a clock."""
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["log"] for line in lines]


def job(folder: Path, make: Callable[[], Station] = PointStation, config: Config = CONFIG) -> Job:
    return Job(make, config, PLANS, "digest", folder)


TRIALS = settings.schedule(CONFIG, TASKS, EVALUATION_SEEDS)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyClient]:
    folder = tmp_path_factory.mktemp("trials")
    with served(command(folder / "checkpoint"), folder / "log") as uri, PolicyClient(uri) as one:
        yield one


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Folder and rows of a collection by one worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, collect(job(folder / "out"), TRIALS, command(folder / "checkpoint"), workers=1)


# --- the list ---------------------------------------------------------------------------------


def test_each_policy_meets_each_scene_once_and_next_to_the_others() -> None:
    config = CONFIG.model_copy(update={"trials_per_task": 30})
    trials = settings.schedule(config, TASKS, EVALUATION_SEEDS)
    assert [t.number for t in trials] == list(range(180))
    assert set(Counter((t.task, t.policy, t.seed) for t in trials).values()) == {1}
    assert {t.seed for t in trials} == set(range(EVALUATION_SEEDS, EVALUATION_SEEDS + 30))
    blocks = [trials[i : i + 3] for i in range(0, 180, 3)]
    assert all(len({(t.task, t.seed) for t in block}) == 1 for block in blocks)
    orders = Counter(tuple(t.policy for t in block) for block in blocks)
    assert len(orders) == 6  # every order occurs
    assert trials == settings.schedule(config, TASKS, EVALUATION_SEEDS)
    other = settings.schedule(config.model_copy(update={"seed": 4}), TASKS, EVALUATION_SEEDS)
    assert other != trials and sorted(t[1:] for t in other) == sorted(t[1:] for t in trials)


def test_tasks_are_those_that_station_and_captions_share() -> None:
    sentences = {"press": "press the button", "fold": "fold the towel", "push": "push the puck"}
    assert settings.chosen_tasks(CONFIG, sentences, PLANS) == ["press", "push"]
    one = CONFIG.model_copy(update={"tasks": ("push",)})
    assert settings.chosen_tasks(one, sentences, PLANS) == ["push"]
    wrong = CONFIG.model_copy(update={"tasks": ("fold", "push", "sing")})
    with pytest.raises(
        UserError, match=r"\['fold', 'sing'\].*expected some of \['press', 'push'\]"
    ):
        settings.chosen_tasks(wrong, sentences, PLANS)
    with pytest.raises(UserError, match=r"set trials\.station to replay"):
        settings.chosen_tasks(CONFIG, {"fold": "fold the towel"}, PLANS)


def test_a_robot_without_a_station_is_replayed(tmp_path: Path) -> None:
    def robots(*names: str) -> None:
        outputs.write_json(tmp_path / "config.json", {"embodiments": [{"name": n} for n in names]})

    robots("cr5", "metaworld-sawyer")
    assert settings.station_for(CONFIG, tmp_path) == "metaworld"
    robots("cr5")
    assert settings.station_for(CONFIG, tmp_path) == "replay"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="expected embodiments"):
        settings.station_for(CONFIG, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        settings.station_for(CONFIG, tmp_path)


# --- one trial --------------------------------------------------------------------------------


def test_event_mode_names_events_in_order_and_succeeds(client: PolicyClient) -> None:
    model = actors.Model(CONFIG, 4, client, PLANS)
    outcome = loop.hold(PointStation(), model, Trial(0, "press", "model", 1_000_000), 160)
    assert outcome.success
    assert [caption for caption, _ in outcome.events] == ["move above the button", "move down"]
    assert sum(steps for _, steps in outcome.events) == outcome.steps < 160
    assert len(model.latencies_ms) >= outcome.steps / CONFIG.replan_steps


def test_an_event_that_does_not_end_is_cut_and_the_last_one_repeats(client: PolicyClient) -> None:
    plans = {"press the button": ["move forward", "move behind the puck"]}

    class Stuck(PointStation):
        def step(self, action: np.ndarray) -> None:
            super().step(action * 0)

    model = actors.Model(CONFIG, 4, client, plans)
    outcome = loop.hold(Stuck(), model, Trial(0, "press", "model", 1_000_000), 400)
    assert not outcome.success and outcome.steps == 400
    captions = [caption for caption, _ in outcome.events]
    assert captions[0] == "move forward" and set(captions[1:]) == {"move behind the puck"}
    assert len(captions) > 2
    first = model._ask(Stuck().observe(), "move forward")[1]  # about what it predicted at first
    assert outcome.events[0][1] == pytest.approx(2 * first, abs=25)


class Says:
    """A policy server whose model says how far through the event the robot is."""

    def __init__(self, *parts: float) -> None:
        self.metadata = {"fps": 20.0}
        self.parts, self.asked = list(parts), list[str]()

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request["prompt"])
        done = self.parts.pop(0)
        return {"actions": np.zeros((40, 4)), "event_remaining": 40, "event_done": done}


def test_an_event_that_was_begun_ends_when_the_model_says_that_it_is_done() -> None:
    """40 steps left of 80 when half is done: over once less than an 80th part is missing."""
    says: Any = Says(0.5, 0.98, 0.99, 0.2, 0.3)
    model = actors.Model(CONFIG, 4, says, {"press the button": ["reach", "press"]})
    model.begin("press the button", 0)
    observe = PointStation().observe
    captions = [model.next(observe).caption for _ in range(4)]
    assert captions == ["reach", "reach", "press", "press"]
    assert says.asked == ["reach", "reach", "reach", "press", "press"]
    for wrong in (1.2, -0.1, "half", float("nan")):
        with pytest.raises(DataError, match="expected event_done from 0 to 1; got"):
            actors.part_done({"event_done": wrong})


class Remembering:
    """A policy server whose model is shown 3 earlier pictures, two steps of the point apart."""

    def __init__(self) -> None:
        self.metadata = {"fps": 20.0, "history": {"pictures": 3, "every_s": 0.1}}
        self.asked: list[dict[str, Any]] = []

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        return {"actions": np.zeros((5, 4)), "event_remaining": 5}


class Clock(PointStation):
    """Its pictures say which control step it is."""

    def reset(self, task: str, seed: int) -> None:
        super().reset(task, seed)
        self.steps = 0

    def step(self, action: np.ndarray) -> None:
        self.steps += 1

    def observe(self) -> Observation:
        state = super().observe().state
        return Observation({"top": np.full((2, 2, 3), self.steps, np.uint8)}, state)


def test_a_model_with_a_history_is_shown_what_was_seen_before() -> None:
    server: Any = Remembering()
    model = actors.Model(CONFIG, 4, server, PLANS)
    for _ in range(2):  # nothing is carried over from trial to trial
        loop.hold(Clock(), model, Trial(0, "press", "model", 1), 18)
    shown = [
        [int(picture[0, 0, 0]) for picture in asked.get("history/top", [])]
        + [int(asked["observation/top"][0, 0, 0])]
        for asked in server.asked
    ]
    assert shown == [[0], [1, 3, 5], [4, 6, 8, 10], [9, 11, 13, 15]] * 2


def test_replay_shows_a_history_too(recorded: tuple[Path, Path, Path, Path]) -> None:
    event = replay.read(*recorded, CONFIG)[0]
    told = {"fps": 10.0, "history": {"pictures": 2, "every_s": 0.2}}
    seen = event.request(told, 0)["history/top"]
    assert [round(float(picture.mean()) / 5) for picture in seen] == [6, 8], "it begins at frame 10"
    early = event._replace(start=3).request(told, 0)["history/top"]
    assert [round(float(picture.mean()) / 5) for picture in early] == [1]
    assert "history/top" not in event.request({"fps": 10.0}, 0)


def test_a_policy_sees_pictures_and_proprioception_only() -> None:
    station = PointStation()
    station.reset("press", 1)
    sent = actors.request(station.observe(), "move down", 5)
    assert set(sent) == {
        "observation/top",
        "observation/wrist",
        "observation/state",
        "prompt",
        "seed",
    }


def test_hold_still_moves_nothing_and_random_does() -> None:
    station, trial = PointStation(), Trial(0, "press", "hold_still", 1_000_000)
    before = []
    outcome = loop.hold(
        station,
        actors.HoldStill(CONFIG, 4),
        trial,
        37,
        lambda step: before.append(station.observe().state.tolist()),
    )
    assert outcome == (False, 37, [])
    assert all(state == before[0] for state in before) and len(before) == 38
    places = []
    for _ in range(2):
        loop.hold(station, actors.Random(CONFIG, 4), trial, 37)
        places.append(station.observe().state.tolist())
    assert places[0] == places[1] != before[0]
    loop.hold(station, actors.Random(CONFIG, 4), trial._replace(seed=1_000_001), 37)
    assert station.observe().state.tolist() != places[0]
    actor = actors.Random(CONFIG, 4)
    draws = np.stack([actor.next(station.observe).actions for _ in range(200)])
    assert draws.shape == (200, 4, 4) and (draws == draws[:, :1]).all()  # held for 4 steps
    assert -1 <= draws.min() < -0.95 and 0.95 < draws.max() <= 1


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"actions": np.zeros((3, 5)), "event_remaining": 3},
        {"actions": np.zeros(4), "event_remaining": 3},
        {"actions": np.zeros((0, 4)), "event_remaining": 0},
        {"actions": np.full((3, 4), np.nan), "event_remaining": 3},
        {"actions": np.zeros((3, 4))},
    ],
)
def test_an_answer_that_is_no_action_is_refused(reply: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="policy server: expected"):
        actors.checked(reply, 4)


# --- many trials ------------------------------------------------------------------------------


def test_rows_say_what_happened(undisturbed: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = undisturbed
    records.write(folder / "t.parquet", rows, records.TRIALS, "trial")
    table = records.read(folder / "t.parquet", records.TRIALS).to_pylist()
    by_policy = {p: [r["success"] for r in table if r["policy"] == p] for p in settings.POLICIES}
    assert by_policy == {"model": [True] * 4, "hold_still": [False] * 4, "random": [False] * 4}
    assert {r["task"] for r in table} == set(PLANS) and {r["error"] for r in table} == {None}
    log = logged(folder / "out")
    assert all(entry["wall_s"] >= 0 and entry["host"] for entry in log)
    sheets = sorted((folder / "out/pictures").iterdir())
    assert len(sheets) == 4 and all("success" in sheet.name for sheet in sheets)
    with Image.open(sheets[0]) as sheet:
        assert sheet.height == 16 and sheet.width % 8 == 0  # 2 cameras of 8 x 8 pixels


def test_rows_do_not_depend_on_the_number_of_workers(
    undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    slow = command(tmp_path / "checkpoint", delay_s=0.05)  # so that both workers get to work
    assert collect(job(tmp_path / "out"), TRIALS, slow, workers=2) == undisturbed[1]
    assert len({entry["process"] for entry in logged(tmp_path / "out")}) == 2


def test_a_server_that_dies_is_said_and_the_rest_is_collected_later(
    undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    start = command(tmp_path / "checkpoint", dies_once=tmp_path / "died")
    with pytest.raises(TemporaryError, match=r"policy server ws://.*the connection ended"):
        collect(job(tmp_path / "out"), TRIALS, start, workers=1)
    kept = (tmp_path / "out/journal.jsonl").read_text()
    assert 0 < kept.count("\n") < len(TRIALS)
    assert collect(job(tmp_path / "out"), TRIALS, start, workers=1) == undisturbed[1]
    whole = (tmp_path / "out/journal.jsonl").read_text()
    assert whole.startswith(kept) and whole.count("\n") == len(TRIALS)  # nothing was repeated


def test_a_worker_that_dies_is_said_and_the_rest_is_collected_later(
    undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    mortal = job(tmp_path / "out", functools.partial(MortalStation, tmp_path / "died"))
    start = command(tmp_path / "checkpoint")
    with pytest.raises(TemporaryError, match="a worker process ended"):
        collect(mortal, TRIALS, start, workers=1)
    assert (tmp_path / "died").exists()
    assert collect(mortal, TRIALS, start, workers=1) == undisturbed[1]


def test_another_model_on_the_server_is_wrong_data_before_any_trial(tmp_path: Path) -> None:
    start = command(tmp_path / "checkpoint", digest="another")
    with pytest.raises(DataError, match="expected model digest; got another"):
        collect(job(tmp_path / "out"), TRIALS, start, workers=1)
    assert not (tmp_path / "out/journal.jsonl").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"task": "push the puck", "policy": "random"},
        {"policy": "another"},
        {"seed": 7},
        {"checkpoint_digest": "of other weights"},
    ],
)
def test_a_journals_row_of_another_trial_is_not_taken_for_this_one(
    undisturbed: tuple[Path, list[dict[str, Any]]], tmp_path: Path, change: dict[str, Any]
) -> None:
    """After a kill, settings may have changed: row 0 is then of another trial than trial 0."""
    (tmp_path / "out").mkdir()
    journal = Journal(tmp_path / "out/journal.jsonl")
    for row in undisturbed[1]:
        journal.add(row | change if row["trial"] == 0 else row, {"kept": True})
    start = command(tmp_path / "checkpoint")
    assert collect(job(tmp_path / "out"), TRIALS, start, workers=1) == undisturbed[1]
    assert [e.get("kept", False) for e in logged(tmp_path / "out")] == [True] * 12 + [False]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add({"trial": 4}, {"wall_s": 1.0})
    journal.add({"trial": 2}, {"wall_s": 1.0})
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-9])
    again = Journal(tmp_path / "j")
    assert list(again.rows) == [4]
    again.add({"trial": 2}, {"wall_s": 1.0})
    assert journal.path.read_bytes() == data


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_behind_by_a_stopped_collection(
    tmp_path: Path, how: signal.Signals
) -> None:
    start = command(tmp_path / "checkpoint", delay_s=0.5)
    code = (
        "from pathlib import Path; from tests.test_trials import TRIALS, job\n"
        "from components.trials.collection import collect\n"
        "from components.trials.__main__ import stop_on_sigterm\n"
        "if __name__ == '__main__':\n"
        "    stop_on_sigterm()\n"
        f"    collect(job(Path({str(tmp_path / 'out')!r})), TRIALS, {start!r}, workers=2)\n"
    )
    script = tmp_path / "collect.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(300):
        if (tmp_path / "out/journal.jsonl").exists():
            break
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4  # two servers, two workers
    process.send_signal(how)
    _, said = process.communicate()
    assert ("StoppedError: trials: stopped by a signal" in said) is (how == signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


# --- Meta-World -------------------------------------------------------------------------------


@pytest.mark.slow
@needs_rendering
def test_metaworld_trials_through_a_real_server(tmp_path: Path) -> None:
    from components.stations.metaworld import MetaworldStation

    targets = {
        "move to the drawer": [0.0, 0.45, 0.12, -1.0],
        "push the drawer": [0.0, 0.85, 0.09, 1.0],
    }
    plans = {"close the drawer": list(targets)}
    folder = scripted_policy.write(tmp_path / "checkpoint", targets)
    start = [sys.executable, "-m", "tests.scripted_policy", str(folder)]
    config = CONFIG.model_copy(update={"max_trial_s": 2.0})
    trials = settings.schedule(config, ["drawer-close"], EVALUATION_SEEDS)
    work = Job(MetaworldStation, config, plans, "d", tmp_path / "out")
    rows = collect(work, trials, start, workers=2)
    success = {(r["policy"], r["seed"] - EVALUATION_SEEDS): r["success"] for r in rows}
    assert success["model", 0] and success["model", 1]
    assert not success["hold_still", 0] and not success["hold_still", 1]
    assert all(r["steps"] == 160 for r in rows if r["policy"] == "hold_still")
    assert len(list((tmp_path / "out/pictures").iterdir())) == 2
    station, random = MetaworldStation(), actors.Random(config, 4)
    for trial in reversed(trials):  # what a station did before changes nothing
        if trial.policy == "random":
            got = loop.hold(station, random, trial, 160)
            row = rows[trial.number]
            assert (got.success, got.steps) == (row["success"], row["steps"])


# --- replay -----------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path, Path, Path]:
    """Two episodes of 40 steps at 10 Hz of a made-up robot; one of two events is held out."""
    from components.encoding import encode

    data = tmp_path / "data"
    recordings, rows = [], []
    for index in range(2):
        video = tmp_path / f"{index}.mp4"
        encode(video, [np.full((16, 16, 3), 5 * i, np.uint8) for i in range(40)], 10)
        action = np.zeros((40, 4), np.float32)
        action[:, 0], action[:, 3] = 0.5, np.arange(40) / 10
        recordings.append(
            lerobot.Recording(
                task="press the button",
                timestamps_s=np.arange(40) / 10,
                state=np.full((40, 4), index / 10, np.float32),
                action=action,
                videos={"observation.images.top": video},
            )
        )
        rows.append({"episode_id": f"e{index}", "episode_index": index, "n_frames": 40})
    lerobot.write(
        data / "episodes" / "point",
        recordings,
        robot_type="point",
        fps=10.0,
        state_names=("ee_x", "ee_y", "ee_z", "gripper"),
        action_names=("dx", "dy", "dz", "gripper"),
    )
    manifest = {"embodiment": "point", "task": "press the button", "duration_s": 3.9, "fps": 10.0}
    episodes = [{**manifest, **row} for row in rows]
    records.write(data / "episodes/manifest.parquet", episodes, records.MANIFEST, "episode_id")
    schema = records.PLAN
    for name in ("start_frame", "end_frame"):
        schema = schema.append(records.EVENTS.field(name))
    plan = [
        {"event_id": f"v{i}", "episode_id": f"e{i}", "start_frame": 10, "end_frame": 40}
        | {"split": "validation" if i else "train", "weight": 0.0, "draws": 0}
        for i in range(2)
    ]
    records.write(data / "plan/plan.parquet", plan, schema, "event_id")
    captions = [
        {"event_id": f"v{i}", "level": level, "text": text}
        for i in range(2)
        for level, text in (("action", "move down"), ("task", "press the button"))
    ]
    records.write(data / "captions/captions.parquet", captions, records.CAPTIONS, "event_id")
    span = {"q01": [-1.0, -1.0, -1.0, 0.0], "q99": [1.0, 1.0, 1.0, 4.0]}
    outputs.write_json(
        data / "checkpoint/normalisation.json", {"point": {"state": span, "action": span}}
    )
    return data / "episodes", data / "captions", data / "plan", data / "checkpoint"


def test_replay_measures_the_error_of_held_out_events(
    recorded: tuple[Path, Path, Path, Path], client: PolicyClient
) -> None:
    events = replay.read(*recorded, CONFIG)
    assert [(e.episode.episode_id, e.start, e.end) for e in events] == [("e1", 10, 40)]
    rows = replay.replay(events, {"point": client}, CONFIG, "digest")
    assert [r["policy"] for r in rows] == list(settings.POLICIES)
    assert {(r["station"], r["success"], r["steps"]) for r in rows} == {("replay", None, 30)}
    error = {r["policy"]: r["error"] for r in rows}
    # dx: 0 instead of 0.5; the gripper's command stays 0.9, and goes from 1.0 to 3.9 in span 4
    gripper = np.mean(np.arange(10, 40) / 10 - 0.9) / 2
    assert error["hold_still"] == pytest.approx((0.5 + gripper) / 4, rel=1e-5)
    # from (0.1, 0.1, 0.1) the script goes to (0.3, 0, 0.05) in 34 steps, gripper 0
    move = [0.2 / 34 / 0.01, -0.1 / 34 / 0.01, -0.05 / 34 / 0.01]
    gripper = np.mean(np.arange(10, 40) / 10) / 2
    expected = (abs(move[0] - 0.5) + abs(move[1]) + abs(move[2]) + gripper) / 4
    assert error["model"] == pytest.approx(expected, rel=1e-4)
    assert error["random"] > 0.2
    assert rows == replay.replay(events, {"point": client}, CONFIG, "digest")


def test_replay_shows_the_frame_at_the_event_start(
    recorded: tuple[Path, Path, Path, Path],
) -> None:
    seen = replay.read(*recorded, CONFIG)[0].observation()
    assert seen.images["top"].shape == (16, 16, 3)
    assert abs(float(seen.images["top"].mean()) - 50) < 5  # the 11th frame
    np.testing.assert_allclose(seen.state, 0.1)


def test_replay_takes_training_events_where_none_is_held_out(
    recorded: tuple[Path, Path, Path, Path],
) -> None:
    plan = recorded[2] / "plan.parquet"
    table = pq.read_table(plan)
    rows = [{**row, "split": "train"} for row in table.to_pylist()]
    records.write(plan, rows, table.schema, "event_id")
    assert len(replay.read(*recorded, CONFIG)) == 2
    assert len(replay.read(*recorded, CONFIG.model_copy(update={"replay_events": 1}))) == 1
    (recorded[1] / "captions.parquet").unlink()
    with pytest.raises(DataError, match=r"captions\.parquet: no such file"):
        replay.read(*recorded, CONFIG)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, True) for name in ("dx", "joint_0_vel", "delta_yaw", "ee_dz")),
        *((name, False) for name in ("gripper", "joint_0", "x", "index_x")),
    ],
)
def test_which_commands_are_changes(name: str, change: bool) -> None:
    assert bool(replay.CHANGE.search(name)) is change


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    folder = tmp_path / "worktree"
    checkpoint = folder / "data/checkpoint"
    outputs.write_json(checkpoint / "config.json", {"embodiments": [{"name": "metaworld-sawyer"}]})
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    values = {"trials": CONFIG.model_dump(mode="json")}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return folder


# --- the World Action Model -------------------------------------------------------------------


def untrained(checkpoint: Path, robot: str, cameras: list[str], plans: dict[str, Any]) -> None:
    """A checkpoint as pretraining writes it, with a small model's first random weights."""
    import torch
    from safetensors.torch import save_file

    from models.wam import Shape, WorldActionModel

    shape = Shape(
        width=32, depth=1, heads=2, key_px=32, key_patch_px=16, future_px=16, future_patch_px=8,
        future_frames=1, views=len(cameras), text_width=384, state_width=4, action_width=4,
        action_patch_steps=8, max_steps=16, action_samples=1, anchor_probability=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    checkpoint.mkdir(parents=True, exist_ok=True)
    save_file(WorldActionModel(shape).state_dict(), checkpoint / "model.safetensors")
    signals = {"state_names": list("xyzg"), "action_names": ["dx", "dy", "dz", "gripper"]}
    outputs.write_json(
        checkpoint / "config.json",
        {
            "shape": shape.as_dict(),
            "cameras": cameras,
            "embodiments": [{"name": robot, "fps": 80.0, "cameras": cameras, **signals}],
            "pretraining": {"denoise_steps": 1},
        },
    )
    span = {"q01": [-1.0, -1.0, -1.0, 0.0], "q99": [1.0, 1.0, 1.0, 4.0]}
    outputs.write_json(checkpoint / "normalisation.json", {robot: {"state": span, "action": span}})
    outputs.write_json(checkpoint / "event_plans.json", plans)


def of_the_project(worktree: Path) -> None:
    """`python -m components...` in `worktree` runs the code under test."""
    for name in ("components", "models"):
        (worktree / name).symlink_to(ROOT / name)


@pytest.mark.slow
@needs_rendering
def test_the_model_acts_on_metaworld_through_its_server(worktree: Path, tmp_path: Path) -> None:
    of_the_project(worktree)
    plans = {"close the drawer": ["move forward", "push"]}
    untrained(worktree / "data/checkpoint", "metaworld-sawyer", ["top", "wrist"], plans)
    quick = {"trials_per_task": 1, "max_trial_s": 0.25}
    values = {"trials": {**CONFIG.model_dump(mode="json"), **quick}}
    (worktree / "params.yaml").write_text(yaml.safe_dump(values))

    def alone(arguments: list[str]) -> None:
        one = [sys.executable, "-m", *arguments, "--workers", "1"]
        subprocess.run(one, cwd=worktree, check=True)

    target = store_of_trials.collect(worktree, tmp_path / "store", alone)
    rows = records.read(target / "trials.parquet", records.TRIALS).to_pylist()
    weights = outputs.sha256(worktree / "data/checkpoint/model.safetensors")
    assert {r["checkpoint_digest"] for r in rows} == {weights}
    assert {r["policy"]: r["steps"] for r in rows} == dict.fromkeys(settings.POLICIES, 20)
    assert {r["seed"] for r in rows} == {EVALUATION_SEEDS}
    events = json.loads(next(r["events"] for r in rows if r["policy"] == "model"))
    assert events[0][0] == "move forward" and sum(steps for _, steps in events) == 20


@pytest.mark.slow
def test_a_robot_without_a_station_is_replayed_through_its_server(
    worktree: Path, recorded: tuple[Path, Path, Path, Path], tmp_path: Path
) -> None:
    of_the_project(worktree)
    shutil.rmtree(worktree / "data")
    shutil.copytree(tmp_path / "data", worktree / "data")
    untrained(worktree / "data/checkpoint", "point", ["top"], PLANS)
    target = store_of_trials.collect(worktree, tmp_path / "store")
    rows = records.read(target / "trials.parquet", records.TRIALS).to_pylist()
    assert [(r["station"], r["policy"]) for r in rows] == [("replay", p) for p in settings.POLICIES]
    assert all(r["success"] is None and 0 < r["error"] < 10 for r in rows)
    with Image.open(worktree / "report/trials/expected.png") as page:
        assert page.height > expected.CELL_PX


# --- the store --------------------------------------------------------------------------------


def collecting(folder: Path, calls: list[list[str]], **options: Any) -> store_of_trials.Execute:
    """What `python -m components.trials` does, in this process and on the point station."""
    start = command(folder / "scripted", **options)

    def execute(arguments: list[str]) -> None:
        calls.append(arguments)
        out = Path(arguments[-1])
        rows = collect(job(out), TRIALS[:3], start, workers=1)
        records.write(out / "trials.parquet", rows, records.TRIALS, "trial")

    return execute


def test_trials_are_collected_once(worktree: Path, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    execute = collecting(tmp_path, calls)
    target = store_of_trials.collect(worktree, tmp_path / "store", execute)
    assert target == worktree / "data/trials"
    assert [p.name for p in target.iterdir()] == ["trials.parquet"]  # nothing with a clock
    first = outputs.sha256_folder(target)
    assert calls[0][:2] == ["components.trials", "data/checkpoint"]
    assert len(list((worktree / "report/trials/pictures").iterdir())) == 1
    shutil.rmtree(worktree / "data/trials")
    shutil.rmtree(worktree / "report")
    store_of_trials.collect(worktree, tmp_path / "store", execute)
    assert len(calls) == 1 and outputs.sha256_folder(target) == first
    assert (worktree / "report/trials/journal.jsonl").exists()


def test_the_key_is_of_checkpoint_settings_and_code(worktree: Path) -> None:
    keys = [store_of_trials.key(worktree)]
    (worktree / "data/checkpoint/model.safetensors").write_bytes(b"other weights")
    keys.append(store_of_trials.key(worktree))
    values = {"trials": {**CONFIG.model_dump(mode="json"), "replan_steps": 11}}
    (worktree / "params.yaml").write_text(yaml.safe_dump(values))
    keys.append(store_of_trials.key(worktree))
    (worktree / "components/trials").mkdir(parents=True)
    (worktree / "components/trials/loop.py").write_text("pass")
    keys.append(store_of_trials.key(worktree))
    (worktree / "README.md").write_text("says nothing to a trial")
    assert store_of_trials.key(worktree) == keys[-1]
    assert len(set(keys)) == 4


def test_a_failure_leaves_no_trials_and_the_next_call_goes_on(
    worktree: Path, tmp_path: Path
) -> None:
    calls: list[list[str]] = []
    execute = collecting(tmp_path, calls, dies_once=tmp_path / "died", dies_at=3)
    with pytest.raises(TemporaryError):
        store_of_trials.collect(worktree, tmp_path / "store", execute)
    assert not (worktree / "data/trials").exists()
    store_of_trials.collect(worktree, tmp_path / "store", execute)
    assert pq.read_table(worktree / "data/trials/trials.parquet").num_rows == 3


def test_two_at_once_collect_once(worktree: Path, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    execute = collecting(tmp_path, calls)
    other = tmp_path / "other"
    shutil.copytree(worktree, other)
    threads = [
        threading.Thread(target=store_of_trials.collect, args=(w, tmp_path / "store", execute))
        for w in (worktree, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    digests = {outputs.sha256_folder(w / "data/trials") for w in (worktree, other)}
    assert len(digests) == 1


def test_failures_of_the_collecting_process_keep_their_class(
    worktree: Path, tmp_path: Path
) -> None:
    of_the_project(worktree)
    with pytest.raises(DataError, match=r"event_plans\.json: no such file"):
        store_of_trials.collect(worktree, tmp_path / "store")
    (worktree / "params.yaml").write_text("trials: {station: mars}")
    with pytest.raises(UserError, match=r"trials\.station.*mars"):
        store_of_trials.collect(worktree, tmp_path / "store")
    shutil.rmtree(worktree / "data/checkpoint")
    with pytest.raises(DataError, match="run pretraining first"):
        store_of_trials.collect(worktree, tmp_path / "store")
    assert not (worktree / "data/trials").exists()
