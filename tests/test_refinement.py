"""Cuts looked over by a vision-language model: scripted servers, a tiny model, made-up times."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import corrections, params, records
from components.errors import TemporaryError, UserError, WamflowError
from components.segmentation import looks, stage
from components.segmentation.refined import Beside, Bounds
from components.vlm import dialogue, endpoint, local_model
from tests import caption_server, tiny_vlm
from tests import made_episodes as made
from tests.caption_server import Handler, Server, cut, late, says, status
from tests.conftest import ROOT

VALUES = params.load(ROOT / "params.yaml")
OFF = params.section(VALUES, "segmentation", stage.Config)
SECRET = "sk-very-secret-0123456789"
DESCRIBED = "At first the arm goes down, then to the right.\nThen it goes up."
TRUE_S = {"one": [1.6, 2.9], "two": [2.4, 3.2, 4.1], "three": [0.9, 2.25, 4.9]}  # by task
CORNERS_S = [2.0, 4.0]
FPS = 20.0
PICTURES = 25  # a quarter of a second apart, so times are known to an eighth
Row = dict[str, Any]


def turning(task: str, number: int) -> Any:
    """Six seconds along three straight legs; what the truth says of it no signal shows."""
    place = made.through(
        [(0, 0, 0.3), (0, 0, 0.1), (0.2, 0, 0.1), (0.2, 0, 0.3)], [2.0, 2.0, 2.0], FPS
    )
    return made.arm(place, fps=FPS, task=task, episode_id=f"{number:020x}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filmed")
    episodes = [turning(task, number) for number, task in enumerate(TRUE_S)]
    made.folder(root / "episodes", episodes, films=root / "films")
    made.nothing_said(root)
    return root


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("WAMFLOW_REFINEMENT_KEY", SECRET)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))
    with caption_server.serving() as found:
        found.usual = knowing(TRUE_S)
        yield found


def knowing(times_s: dict[str, list[float]]) -> Callable[[Handler, Row], None]:
    """First a description, then the times that belong to the task of the question."""

    def act(handler: Handler, body: Row) -> None:
        words = body["messages"][0]["content"][1]["text"]
        (task,) = re.findall(r"task that the robot was given: (.*)", words)
        listed = [{"time_s": t, "what": f"change at {t}"} for t in times_s[task]]
        handler.say(DESCRIBED if _begins(body) else json.dumps({"changes": listed}))

    return act


def _begins(body: Row) -> bool:
    return len(body["messages"]) == 1


def config(**values: Any) -> stage.Config:
    """OFF's values with others of `refinement`, impatient."""
    usual = {
        "model": "seer", "timeout_s": 5.0, "tries": 3, "requests_per_minute": 100_000,
        "picture_px": 32, "pictures": PICTURES,
    }  # fmt: skip
    own = OFF.refinement.model_dump() | usual | values
    return stage.Config.model_validate(OFF.model_dump() | {"refinement": own})


def asking(server: Server, **values: Any) -> stage.Config:
    return config(**{"refiner": "openai", "base_url": server.url} | values)


def refine(data: Path, out: Path, chosen: stage.Config) -> tuple[stage.Report, list[Row]]:
    report = stage.run(data / "episodes", data / "said.jsonl", out, config=chosen)
    return report, records.read(out / "events.parquet", records.EVENTS).to_pylist()


def notes(out: Path) -> list[Row]:
    return records.read(out / "refinement.parquet", records.REFINEMENT).to_pylist()


def f1(rows: list[Row], true_s: dict[str, list[float]], tolerance_s: float) -> float:
    """Boundary F1, greedy by time; names of episodes count the tasks."""
    pairs = total = 0
    for number, task in enumerate(TRUE_S):
        own = [r["start_s"] for r in rows if r["episode_id"] == f"{number:020x}" and r["start_s"]]
        left = list(true_s[task])
        total += len(own) + len(left)
        for at_s in own:
            near = [t for t in left if abs(t - at_s) <= tolerance_s]
            pairs += bool(near)
            left = [t for t in left if t not in near[:1]]
    return 2 * pairs / total


def assert_covers(rows: list[Row], count: int) -> None:
    """Without a gap from 0 to the last of `count` control steps, ids right."""
    assert [rows[0]["start_frame"], rows[-1]["end_frame"]] == [0, count]
    for a, b in pairwise(rows):
        assert (a["end_frame"], a["end_s"]) == (b["start_frame"], b["start_s"])
    for row in rows:
        assert row["start_frame"] < row["end_frame"]
        named = records.event_id(row["episode_id"], row["start_s"], row["end_s"])
        assert row["event_id"] == named


# --- an endpoint ---------------------------------------------------------------------------------


def test_true_times_bring_cuts_to_the_truth(server: Server, data: Path, tmp_path: Path) -> None:
    _, before = refine(data, tmp_path / "off", OFF)
    for number in range(3):
        own = [r["start_s"] for r in before if r["episode_id"] == f"{number:020x}"]
        assert own == pytest.approx([0.0, *CORNERS_S], abs=0.11), "signals see corners only"
    report, after = refine(data, tmp_path / "on", asking(server, reach=4.0))
    assert f1(before, TRUE_S, 0.13) < 0.2
    assert f1(after, TRUE_S, 0.13) > 0.9
    for number in range(3):
        own = [r for r in after if r["episode_id"] == f"{number:020x}"]
        assert_covers(own, 121)
    assert report.refinement is not None
    assert report.refinement.episodes == 3 and report.refinement.problems == {}
    assert set(report.refinement.changes) == {"added", "moved", "confirmed"}
    assert report.boundaries_by_signal["vlm"] == 8


def test_every_word_has_its_provenance(server: Server, data: Path, tmp_path: Path) -> None:
    prices = {"input_usd_per_million": 2.0, "output_usd_per_million": 50.0}
    report, rows = refine(data, tmp_path / "on", asking(server, **prices, concurrent=1))
    for number, note in enumerate(notes(tmp_path / "on")):
        task = list(TRUE_S)[number]
        assert (note["episode_id"], note["refiner"]) == (f"{number:020x}", "openai")
        assert note["model_digest"] == dialogue.digest(f"{server.url[7:]}\nseer")
        prompt = (looks.PROMPTS / "changes.md").read_text()
        assert note["prompt_digest"] == dialogue.digest(prompt)
        assert json.loads(note["decoding"]) == OFF.refinement.decoding
        assert note["description"] == " ".join(DESCRIBED.split())
        assert [c["time_s"] for c in json.loads(note["reply"])["changes"]] == TRUE_S[task]
        starts = {r["start_s"] for r in rows if r["episode_id"] == note["episode_id"]}
        for change in json.loads(note["changes"]):
            assert change["what"] == f"change at {change['says_s']}"
            assert change["at_s"] in starts
        voted = [r for r in rows if json.loads(r["evidence"]).get("vlm") == 1.0]
        assert {c["at_s"] for c in json.loads(note["changes"])} == {
            r["start_s"] for r in voted if r["episode_id"] == note["episode_id"]
        }
    first, then = (r["body"] for r in server.seen[:6:3])
    assert server.seen[0]["headers"]["Authorization"] == f"Bearer {SECRET}"
    picture, text = first["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert "6.00 s long" in text["text"] and f"{PICTURES} moments" in text["text"]
    assert "time_s" not in text["text"], "described first"
    assert then["messages"][1] == {"role": "assistant", "content": DESCRIBED}
    assert f"at most {PICTURES - 1} changes" in then["messages"][2]["content"]
    assert report.refinement is not None
    assert report.refinement.input_tokens == 600 and report.refinement.output_tokens == 120
    assert report.refinement.cost_usd == pytest.approx(600 * 2e-6 + 120 * 50e-6)


def test_only_what_changed_is_asked_again(server: Server, data: Path, tmp_path: Path) -> None:
    first = refine(data, tmp_path / "first", asking(server))
    assert len(server.seen) == 6
    again = refine(data, tmp_path / "again", asking(server, concurrent=2, tries=1))
    assert again == first
    for name in ("events", "hierarchy", "refinement"):
        one, other = (tmp_path / run / f"{name}.parquet" for run in ("first", "again"))
        assert one.read_bytes() == other.read_bytes()
    looser = asking(server, reach=2.0).model_copy(update={"min_event_s": 0.3})
    refine(data, tmp_path / "looser", looser)
    assert len(server.seen) == 6, "the model was told nothing of the signals' cuts"
    refine(data, tmp_path / "other", asking(server, model="another"))
    assert len(server.seen) == 12
    more = [turning(task, number) for number, task in enumerate([*TRUE_S, "one"])]
    made.folder(tmp_path / "more/episodes", more, films=tmp_path / "films")
    made.nothing_said(tmp_path / "more")
    refine(tmp_path / "more", tmp_path / "grown", asking(server))
    assert len(server.seen) == 14


def bodies(then: object) -> Callable[[Handler, Row], None]:
    """A description, and `then` for the times."""
    return lambda handler, body: handler.say(DESCRIBED if _begins(body) else then)


def changes_of(*pairs: Any) -> str:
    return json.dumps({"changes": [{"time_s": t, "what": w} for t, w in pairs]})


NONSENSE = [
    ("I see a robot.", "reply is no JSON object"),
    ('{"times": [1, 2]}', "reply lacks a list of changes"),
    ('{"changes": {"time_s": 1}}', "reply lacks a list of changes"),
    ('{"changes": [1.0, 2.0]}', "a change lacks its time or words"),
    (changes_of(("1.5", "a")), "a change lacks its time or words"),
    (changes_of((True, "a")), "a change lacks its time or words"),
    (changes_of((1.5, " \n")), "a change lacks its time or words"),
    (changes_of((-0.1, "a")), "a time lies outside of the recording"),
    (changes_of((1.0, "a"), (99.0, "b")), "a time lies outside of the recording"),
    ('{"changes": [{"time_s": NaN, "what": "a"}]}', "a time lies outside of the recording"),
    (changes_of((10**400, "a")), "a time lies outside of the recording"),
    (changes_of((2.0, "a"), (1.0, "b")), "times do not increase"),
    (changes_of(*((k / 10, "a") for k in range(1, 50))), f"49 changes, over {PICTURES - 1}"),
    ("x" * 30_000, "reply too long"),
    ({"a": 1}, "reply is no JSON object"),
]


@pytest.mark.parametrize(("reply", "problem"), NONSENSE)
def test_nonsense_is_said_and_the_signals_stand(
    reply: object, problem: str, server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = bodies(reply)
    report, _ = refine(data, tmp_path / "on", asking(server, asks=2))
    refine(data, tmp_path / "off", OFF)
    for name in ("events", "hierarchy"):
        one, other = (tmp_path / run / f"{name}.parquet" for run in ("on", "off"))
        assert one.read_bytes() == other.read_bytes()
    assert report.refinement is not None
    assert report.refinement.problems == {problem: 3}
    assert report.refinement.changes == {}
    for note in notes(tmp_path / "on"):
        assert (note["problem"], note["changes"]) == (problem, "[]")
    assert len(server.seen) == 9, "described once, asked twice"
    corrected = server.seen[-1]["body"]["messages"]
    assert problem in corrected[-1]["content"] and len(corrected) == 5


def test_models_behind_one_gateway_are_told_apart_by_their_path(server: Server) -> None:
    paths = ("/v1", "/v1/", "/deployments/other/v1")
    found = [
        looks.Looks(config(refiner="openai", base_url=f"http://gateway{path}").refinement)
        for path in paths
    ]
    one, same, other = (each.kept.folder for each in found)
    assert one == same != other


def test_half_characters_of_a_reply_break_no_table(
    server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = bodies('\ud83e {"changes": [{"time_s": 3.0, "what": "it \ud83e turns"}]}')
    report, _ = refine(data, tmp_path / "on", asking(server))
    assert report.refinement is not None and report.refinement.changes == {"added": 3}
    assert all(note["reply"].startswith("? {") for note in notes(tmp_path / "on"))


def test_one_bad_reply_is_asked_again(server: Server, data: Path, tmp_path: Path) -> None:
    known = knowing(TRUE_S)
    server.acts = [says(""), *[known] * 3, says("no idea")]  # a describing reply, and a timing one
    report, rows = refine(data, tmp_path / "on", asking(server, concurrent=1))
    assert report.refinement is not None and report.refinement.problems == {}
    assert len(server.seen) == 8
    server.acts = []
    (tmp_path / "fresh").mkdir()
    assert rows == refine(data, tmp_path / "same", asking(server, concurrent=1))[1]


@pytest.mark.parametrize("act", [status(429, Retry_After="0.05"), status(500), late, cut])
def test_a_server_that_stumbles_is_waited_for(
    act: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    server.acts = [act]
    patient = 0.5 if act is late else 5.0
    report, _ = refine(data, tmp_path / "on", asking(server, concurrent=1, timeout_s=patient))
    assert report.refinement is not None and report.refinement.episodes == 3
    assert len(server.seen) == 7
    sent = json.loads((tmp_path / "report/segmentation/requests.json").read_text())
    assert (sent["requests"], sent["retries"]) == (7, 1)


@pytest.mark.parametrize("act", [status(429), late])
def test_a_server_that_never_answers_is_a_temporary_error(
    act: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = act
    with pytest.raises(TemporaryError, match=r"segmentation\.refinement: .* does not answer"):
        refine(data, tmp_path / "on", asking(server, tries=2, timeout_s=0.3))
    assert not (tmp_path / "on").exists()
    server.usual = status(401, SECRET.encode())
    with pytest.raises(UserError, match="WAMFLOW_REFINEMENT_KEY") as failure:
        refine(data, tmp_path / "on", asking(server))
    assert SECRET not in str(failure.value)


@pytest.mark.parametrize("place", [1, 4])  # a describing request, and one for times
def test_an_episode_without_an_answer_fails_the_stage_and_only_it_is_asked_again(
    place: int, server: Server, data: Path, tmp_path: Path
) -> None:
    known = knowing(TRUE_S)
    server.acts = [*[known] * place, status(503)]
    chosen = asking(server, concurrent=1, tries=1)
    told = r"segmentation\.refinement: 1 of 3 questions, one for each episode, .*HTTP 503"
    with pytest.raises(TemporaryError, match=told):
        refine(data, tmp_path / "on", chosen)
    assert not (tmp_path / "on").exists()
    assert (tmp_path / "report/segmentation/requests.json").exists()
    server.seen.clear()
    report, rows = refine(data, tmp_path / "on", chosen)
    assert len(server.seen) == 2
    assert all("task that the robot was given: two" in asked_of(r) for r in server.seen)
    assert report.refinement is not None and report.refinement.problems == {}
    assert refine(data, tmp_path / "again", chosen) == (report, rows)
    assert len(server.seen) == 2


def asked_of(request: Row) -> str:
    return str(request["body"]["messages"][0]["content"][1]["text"])


def test_what_people_said_stands_above_the_model(
    server: Server, data: Path, tmp_path: Path
) -> None:
    said = corrections.EventCorrection.model_validate(
        {"author": "ann", "time": "2026-11-22T10:00:00Z", "episode_id": f"{0:020x}",
         "did": "merge", "times_s": [1.0, 3.5], "kinds": ["motion"]}
    )  # fmt: skip
    (tmp_path / "said.jsonl").write_text(corrections.lines([said]))
    (tmp_path / "episodes").symlink_to(data / "episodes")
    report, rows = refine(tmp_path, tmp_path / "on", asking(server))
    own = [r for r in rows if r["episode_id"] == f"{0:020x}"]
    assert_covers(own, 121)
    assert not [r for r in own if 1.0 < r["start_s"] < 3.5]
    assert report.people.boundary_f1 == 0.0, "model and signals cut where a person sees nothing"


def test_what_cannot_be_cut_is_not_asked_about(server: Server, tmp_path: Path) -> None:
    still = made.arm(np.zeros((60, 3)), fps=FPS, task="one", episode_id="a" * 20)
    short = made.arm(made.through([(0, 0, 0), (0.1, 0, 0)], [0.2], FPS), fps=FPS, task="two")
    made.folder(tmp_path / "episodes", [still, short], films=tmp_path / "films")
    made.nothing_said(tmp_path)
    report, rows = refine(tmp_path, tmp_path / "on", asking(server))
    assert server.seen == [] and len(rows) == 2
    assert report.refinement is not None
    assert report.refinement.problems == {"at rest throughout": 1, "too short for two events": 1}
    made.folder(tmp_path / "blind/episodes", [turning("one", 0)])
    made.nothing_said(tmp_path / "blind")
    report, _ = refine(tmp_path / "blind", tmp_path / "dark", asking(server))
    assert report.refinement is not None
    assert report.refinement.problems == {"no camera": 1}


# --- a model of transformers ---------------------------------------------------------------------


def test_a_local_model_is_asked_the_same(data: Path, tmp_path: Path) -> None:
    answer = changes_of((2.0, "it turns"), (3.0, "it touches the cup"))
    folder = tiny_vlm.write(tmp_path / "taught", answer, taught=True)
    digest = local_model.weights_digest(folder, "x")
    local = {"refiner": "transformers", "model": str(folder), "max_new_tokens": 16}
    report, rows = refine(data, tmp_path / "on", config(**local, model_digest=digest))
    assert report.refinement is not None
    assert report.refinement.changes == {"added": 3, "confirmed": 3}
    assert {n["model_digest"] for n in notes(tmp_path / "on")} == {digest}
    assert sum(r["start_s"] == 3.0 for r in rows) == 3
    kept = {
        looks.Looks(config(**local, model_digest=digest, device=device).refinement).kept.folder
        for device in ("cpu", "cuda")
    }
    assert len(kept) == 2, "a GPU computes in another precision"
    with pytest.raises(UserError, match=rf"segmentation\.refinement\.model_digest.*{digest}"):
        refine(data, tmp_path / "no", config(**local))


def test_a_random_model_changes_nothing(data: Path, tmp_path: Path) -> None:
    folder = tiny_vlm.write(tmp_path / "random", "never", taught=False)
    values = {"refiner": "transformers", "model": str(folder), "max_new_tokens": 16, "asks": 2}
    chosen = config(**values, model_digest=local_model.weights_digest(folder, "x"))
    report, rows = refine(data, tmp_path / "on", chosen)
    assert rows == refine(data, tmp_path / "off", OFF)[1]
    assert report.refinement is not None and report.refinement.episodes == 0
    assert sum(report.refinement.problems.values()) == 3


# --- values --------------------------------------------------------------------------------------


def test_off_it_writes_and_imports_nothing(data: Path, tmp_path: Path) -> None:
    report, _ = refine(data, tmp_path / "off", OFF)
    assert report.refinement is None
    assert sorted(p.name for p in (tmp_path / "off").iterdir()) == [
        "events.parquet",
        "hierarchy.parquet",
    ]
    heavy = "{'httpx', 'asyncio', 'PIL', 'torch', 'transformers'}"
    code = f"import sys, components.segmentation.stage; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"refiner": "gpt"}, "refinement.refiner"),
        ({"refiner": "openai", "base_url": ""}, "base_url"),
        ({"refiner": "openai", "base_url": "https://u:p@host/v1"}, "WAMFLOW_REFINEMENT_KEY"),
        ({"refiner": "transformers", "model": "weights"}, "absolute path"),
        ({"prompt": "../secret"}, "prompt"),
        ({"reach": -1}, "reach"),
    ],
)
def test_wrong_values_are_refused(values: Row, message: str) -> None:
    own = OFF.model_dump() | {"refinement": OFF.refinement.model_dump() | values}
    with pytest.raises(WamflowError, match=message):
        params.section({"segmentation": own}, "segmentation", stage.Config)


def test_a_prompt_has_two_parts(
    server: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no prompt 'mine'; there are changes"):
        refine(data, tmp_path / "on", asking(server, prompt="mine"))
    monkeypatch.setattr(looks, "PROMPTS", tmp_path)
    (tmp_path / "mine.md").write_text("{task} {duration} {most}")
    with pytest.raises(UserError, match="expected two parts"):
        refine(data, tmp_path / "on", asking(server, prompt="mine"))


# --- times beside cuts ---------------------------------------------------------------------------

BOUNDS = Bounds(min_event_s=0.2, max_event_s=3.0, reach_s=0.5, sure_s=0.1)
TIMES_S = np.arange(101) / 10


def cover(*parts: tuple[float, str]) -> list[Row]:
    """Rows of 10 s that start at these seconds, of these kinds."""
    starts = [round(s * 10) for s, _ in parts]
    return [
        {
            "event_id": records.event_id("e", TIMES_S[a], TIMES_S[min(b, 100)]),
            "episode_id": "e", "start_frame": a, "end_frame": b,
            "start_s": TIMES_S[a].item(), "end_s": TIMES_S[min(b, 100)].item(),
            "kind": kind, "score": 0.5, "evidence": json.dumps({"lag": 0.4} if a else {}),
        }
        for a, b, (_, kind) in zip(starts, [*starts[1:], 101], parts, strict=True)
    ]  # fmt: skip


PARTS = cover((0, "motion"), (2, "grasp"), (4, "motion"), (6, "idle"), (8, "release"))


def refined(at_s: float, rows: list[Row] = PARTS, finer: tuple[int, ...] = ()) -> Beside:
    return Beside(rows, [(at_s, "it")], TIMES_S, list(finer), BOUNDS)


@pytest.mark.parametrize(
    ("at_s", "did", "where_s", "why"),
    [
        (4.1, "confirmed", 4.0, ""),  # as near as the model can know
        (4.3, "moved", 4.3, ""),
        (3.6, "moved", 3.6, ""),
        (4.7, "added", 4.7, ""),  # beyond its reach
        (2.3, "confirmed", 2.0, ""),  # a gripper's transition
        (6.4, "confirmed", 6.0, ""),  # a rest's edges
        (7.6, "confirmed", 8.0, ""),
        (7.0, "left out", None, "in a rest"),
        (0.1, "left out", None, "too near to another boundary"),
        (9.9, "left out", None, "too near to another boundary"),
        (0.0, "left out", None, "too near to another boundary"),
        (10.0, "left out", None, "too near to another boundary"),
    ],
)
def test_what_becomes_of_a_time(at_s: float, did: str, where_s: float | None, why: str) -> None:
    found = refined(at_s)
    (verdict,) = found.verdicts
    assert (verdict["did"], verdict["at_s"], verdict["why"]) == (did, where_s, why)
    assert_covers(found.rows, 101)
    starts = [row["start_s"] for row in found.rows]
    assert (where_s in starts) or where_s is None
    assert len(starts) == len(PARTS) + (did == "added")
    voted = [r["start_s"] for r in found.rows if "vlm" in json.loads(r["evidence"])]
    assert voted == ([] if where_s is None else [where_s])


def test_a_new_cut_in_a_grasp_begins_a_motion_without_a_score() -> None:
    found = refined(3.0).rows[2]
    assert (found["kind"], found["score"], found["evidence"]) == ("motion", 0.0, '{"vlm": 1.0}')
    moved = refined(4.3).rows
    assert [r["kind"] for r in moved] == [r["kind"] for r in PARTS]
    assert json.loads(moved[2]["evidence"]) == {"lag": 0.4, "vlm": 1.0}


def test_a_new_cut_goes_to_the_signals_weaker_change() -> None:
    (verdict,) = refined(4.8, finer=(49, 52)).verdicts
    assert (verdict["did"], verdict["at_s"]) == ("added", 4.9)


def test_a_cut_moves_into_no_event_of_another_length() -> None:
    rows = cover((0, "motion"), (2.8, "motion"), (3.3, "motion"), (6, "motion"), (8, "motion"))
    (verdict,) = refined(2.8 + 0.24, rows).verdicts
    assert verdict["did"] == "moved"
    (verdict,) = Beside(rows, [(3.7, "it")], TIMES_S, [], BOUNDS).verdicts
    assert verdict["did"] == "moved" and verdict["at_s"] == 3.7
    long = cover((0, "motion"), (3.0, "motion"), (6.0, "motion"), (9.0, "motion"))
    (verdict,) = refined(3.4, long).verdicts
    assert (verdict["did"], verdict["at_s"]) == ("confirmed", 3.0), "the first would last 3.4 s"


def test_no_more_events_than_the_gripper_allows() -> None:
    says = [(0.6 + 0.45 * k, "it") for k in range(20)]
    found = Beside(cover((0, "motion"), (2, "grasp"), (4, "motion")), says, TIMES_S, [], BOUNDS)
    assert len(found.rows) == 4, "three a transition and one"
    assert "too many events for the gripper's transitions" in {v["why"] for v in found.verdicts}


def test_whatever_a_model_says_the_cover_stays_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        inner = np.sort(rng.choice(np.arange(4, 97, 4), rng.integers(0, 9), replace=False)) / 10
        kinds = rng.choice(["motion", "motion", "grasp", "release", "idle"], len(inner) + 1)
        rows = cover(*zip([0.0, *inner.tolist()], kinds.tolist(), strict=True))
        says = [(float(t), "it") for t in np.unique(rng.uniform(0, 10, rng.integers(1, 12)))]
        finer = sorted(set(rng.integers(1, 100, 5).tolist()) - {r["start_frame"] for r in rows})
        bounds = Bounds(0.2, 12.0, float(rng.uniform(0, 1)), float(rng.uniform(0, 0.3)))
        found = Beside(rows, says, TIMES_S, finer, bounds)
        for row in found.rows:
            assert row["end_s"] - row["start_s"] >= 0.2 - 1e-6
        assert_covers(found.rows, 101)
        did = [v["did"] for v in found.verdicts]
        assert len(found.rows) == len(rows) + did.count("added"), "no cut is taken away"
        kept = {(r["start_s"], r["kind"]) for r in found.rows}
        measured = {
            (r["start_s"], r["kind"])
            for before, r in pairwise(rows)
            if r["kind"] != "motion" or before["kind"] == "idle"
        }
        assert measured <= kept
        assert [r["end_s"] for r in found.rows if r["kind"] == "idle"] == [
            r["end_s"] for r in rows if r["kind"] == "idle"
        ], "rests stay whole"


def test_fields_of_a_look_are_those_of_the_table() -> None:
    names = {f.name for f in dataclasses.fields(looks.Look)} - {"says"}
    assert names <= set(records.REFINEMENT.names)
