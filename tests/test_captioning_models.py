"""Vision-language captioners: a tiny model of transformers, and a server that misbehaves."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import params, records
from components.captioning import questions, stage
from components.errors import TemporaryError, UserError, WamflowError
from components.segmentation import stage as segmentation
from components.vlm import dialogue, endpoint, local_model, sheet
from tests import caption_server, tiny_vlm
from tests import made_episodes as made
from tests.caption_server import GOOD, Server, cut, dripping, late, says, status

VALUES = params.load(Path(__file__).parents[1] / "params.yaml")
OFFLINE = params.section(VALUES, "captioning", stage.Config)
SEGMENTATION = params.section(VALUES, "segmentation", segmentation.Config)
KEY = "WAMFLOW_CAPTIONING_KEY"
SECRET = "sk-very-secret-0123456789"
TASK = "put the <image> cup on the shelf {facts}"  # marks and braces are only words
EVENTS = 5  # of one episode
WANTED = ["subtask", "action", "segment"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two filmed episodes and their events."""
    root = tmp_path_factory.mktemp("filmed")
    one = made.pick_and_place(fps=20.0, task=TASK)
    episodes = [dataclasses.replace(one, episode_id=f"{i:020x}") for i in (0, 1)]
    made.folder(root / "episodes", episodes, films=root / "films")
    nobody = made.nothing_said(root)
    segmentation.run(root / "episodes", nobody, root / "events", config=SEGMENTATION)
    return root


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))
    with caption_server.serving() as found:
        yield found


def asking(server: Server, **values: Any) -> stage.Config:
    """OFFLINE's values with the endpoint as captioner, impatient."""
    usual = {
        "captioner": "openai", "base_url": server.url, "model": "seer", "timeout_s": 0.3,
        "tries": 3, "requests_per_minute": 100_000, "picture_px": 32, "pictures": 3,
    }  # fmt: skip
    return stage.Config.model_validate(OFFLINE.model_dump() | usual | values)


def caption(data: Path, out: Path, config: stage.Config) -> tuple[stage.Report, list[Any]]:
    paths = data / "episodes", data / "events", data / "said.jsonl", out
    report = stage.run(*paths, config=config)
    return report, records.read(out / "captions.parquet", records.CAPTIONS).to_pylist()


# --- a model of transformers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm") / "taught"
    return tiny_vlm.write(folder, json.dumps(GOOD), taught=True)


def local(folder: Path, **values: Any) -> stage.Config:
    """OFFLINE's values with a local model, whose digest is right, as captioner."""
    usual = {
        "captioner": "transformers", "model": str(folder), "picture_px": 32, "pictures": 3,
        "model_digest": local_model.weights_digest(folder, "captioning"), "asks": 2,
        "max_new_tokens": 16,
    }  # fmt: skip
    return stage.Config.model_validate(OFFLINE.model_dump() | usual | values)


def test_a_local_model_captions_its_levels(taught: Path, data: Path, tmp_path: Path) -> None:
    config = local(taught)
    report, rows = caption(data, tmp_path / "captions", config)
    for row in rows:
        if row["level"] == "task":
            assert (row["captioner"], row["text"]) == ("kinematics", TASK)
            continue
        assert row["captioner"] == "transformers"
        assert row["text"] == GOOD[row["level"]]
        assert row["model_digest"] == config.model_digest
        assert row["prompt_digest"] == dialogue.digest(questions.prompt("events"))
        assert json.loads(row["decoding"]) == {
            "device": "cpu", "max_new_tokens": 16, "seed": 0, "temperature": 0.0,
        }  # fmt: skip
        assert json.loads(row["checks"])["language"] == "ok"
    assert report.captioners == {"kinematics": 2 * EVENTS, "transformers": 6 * EVENTS}
    assert report.fallbacks == {}
    assert report.output_tokens >= 2 * EVENTS
    assert report.input_tokens > 1000 * 2 * EVENTS, "bytes of the prompt"
    assert report.cost_usd == 0.0


def test_a_random_model_says_nothing_and_the_rule_speaks(data: Path, tmp_path: Path) -> None:
    folder = tiny_vlm.write(tmp_path / "random", json.dumps(GOOD), taught=False)
    report, rows = caption(data, tmp_path / "captions", local(folder, temperature=0.7))
    assert report.captioners == {"kinematics": len(rows)}
    assert report.fallbacks == {"transformers: reply is no JSON object": 6 * EVENTS}
    assert report.flagged == 0
    again, same = caption(data, tmp_path / "again", local(folder, temperature=0.7))
    assert (again, same) == (report, rows)
    rule, said = caption(data, tmp_path / "rule", OFFLINE)
    assert [row["text"] for row in rows] == [row["text"] for row in said]
    assert rule.fallbacks == {}


def test_weights_are_pinned_and_safe(taught: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=local_model.weights_digest(taught, "captioning")):
        caption(data, tmp_path / "captions", local(taught, model_digest="0" * 64))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        local_model.weights_digest(pickled, "captioning")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="image-text-to-text"):
        caption(data, tmp_path / "captions", local(other))
    assert not (tmp_path / "captions").exists()


# --- an endpoint ---------------------------------------------------------------------------------


def test_an_endpoint_is_shown_pictures_and_facts_and_is_paid(
    server: Server, data: Path, tmp_path: Path
) -> None:
    config = asking(server, input_usd_per_million=2.0, output_usd_per_million=50.0, concurrent=4)
    server.usual = lambda handler, body: (time.sleep(0.02), handler.say(json.dumps(GOOD)))[1]
    report, rows = caption(data, tmp_path / "captions", config)
    assert report.captioners == {"kinematics": 2 * EVENTS, "openai": 6 * EVENTS}
    assert {r["text"] for r in rows if r["level"] != "task"} == set(GOOD.values())
    assert len(server.seen) == 2 * EVENTS
    assert 1 < server.most_at_once <= 4
    assert (report.input_tokens, report.output_tokens) == (1000, 200)
    assert report.cost_usd == pytest.approx(1000 * 2e-6 + 200 * 50e-6)
    request = server.seen[0]
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == f"Bearer {SECRET}"
    body = request["body"]
    assert (body["model"], body["temperature"], body["seed"]) == ("seer", 0.0, 0)
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert TASK in text["text"] and "Never invent objects" in text["text"]
    asked = " ".join(r["body"]["messages"][0]["content"][1]["text"] for r in server.seen)
    assert "20 cm down" in asked and "while the gripper closes" in asked


def test_what_was_answered_is_not_asked_again(server: Server, data: Path, tmp_path: Path) -> None:
    first, rows = caption(data, tmp_path / "first", asking(server))
    server.seen.clear()
    again, same = caption(data, tmp_path / "again", asking(server, concurrent=2, tries=1))
    assert (server.seen, again, same) == ([], first, rows)
    events = records.read(data / "events/events.parquet", records.EVENTS).to_pylist()
    mine = [e for e in events if e["episode_id"] == events[0]["episode_id"]]
    middle = mine[0]["end_s"] - 0.2  # somebody moves one boundary: two events are others now
    mine[0]["end_s"] = mine[1]["start_s"] = middle
    mine[0]["end_frame"] = mine[1]["start_frame"] = mine[0]["end_frame"] - 4
    for event in mine[:2]:
        times = event["start_s"], event["end_s"]
        event["event_id"] = records.event_id(event["episode_id"], *times)
    (tmp_path / "events").mkdir()
    records.write(tmp_path / "events/events.parquet", events, records.EVENTS, "episode_id")
    paths = data / "episodes", tmp_path / "events", data / "said.jsonl", tmp_path / "moved"
    stage.run(*paths, config=asking(server))
    assert len(server.seen) == 2
    caption(data, tmp_path / "other", asking(server, model="another"))
    assert len(server.seen) == 2 + 2 * EVENTS


@pytest.mark.parametrize(
    ("acts", "requests"),
    [
        ([status(429, Retry_After="0.05")], 1),
        ([status(429), status(503), status(200, b"not json")], 3),
        ([status(500), cut], 2),
        ([late, dripping], 2),
        ([status(200, b"x" * 5)], 1),
        ([says(None)], 1),
        ([says("I am sorry, I cannot help with that.")], 1),
        ([says('{"action": "move"}')], 1),
        ([says(json.dumps(GOOD | {"action": " \n "}))], 1),
        ([says(json.dumps(GOOD | {"segment": ["a"]}))], 1),
        ([says("{" * 5000 + "}" * 5000)], 1),
        ([says("x" * 30_000), says(json.dumps(GOOD | {"action": "so " * 900}))], 2),
        ([status(200, b"[" * 100_000)], 1),
        ([status(200, b'{"choices": [], "usage": {"prompt_tokens": "many"}}')], 1),
    ],
)
def test_what_goes_wrong_once_or_twice_is_made_good(
    acts: list[Any], requests: int, server: Server, data: Path, tmp_path: Path
) -> None:
    server.acts = list(acts)
    report, _ = caption(data, tmp_path / "captions", asking(server, concurrent=1, tries=4))
    assert report.captioners["openai"] == 6 * EVENTS
    assert report.fallbacks == {}
    assert len(server.seen) == 2 * EVENTS + requests


def test_a_reply_in_a_fence_is_read(server: Server, data: Path, tmp_path: Path) -> None:
    server.usual = says(f"Here you are:\n```json\n{json.dumps(GOOD, indent=1)}\n```\nGood luck!")
    report, _ = caption(data, tmp_path / "captions", asking(server))
    assert report.captioners["openai"] == 6 * EVENTS


def test_a_bad_reply_is_shown_to_the_model(server: Server, data: Path, tmp_path: Path) -> None:
    server.acts = [says("no idea")]
    caption(data, tmp_path / "captions", asking(server, concurrent=1))
    again = next(r["body"] for r in server.seen if len(r["body"]["messages"]) == 3)
    assert again["messages"][1] == {"role": "assistant", "content": "no idea"}
    assert "reply is no JSON object" in again["messages"][2]["content"]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (says("no idea"), "openai: reply is no JSON object"),
        (says(json.dumps(GOOD | {"action": ""})), "openai: action is empty"),
        (says("x" * 30_000), "openai: reply too long"),
        (says({"a": 1}), "openai: reply is no JSON object"),
        (status(200, b"y" * 2_000_000), "openai: reply too large"),
    ],
)
def test_what_stays_wrong_leaves_the_rule_and_says_so(
    act: Any, reason: str, server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = act
    report, rows = caption(data, tmp_path / "captions", asking(server))
    assert report.fallbacks == {reason: 6 * EVENTS}
    assert report.captioners == {"kinematics": len(rows)}
    for row in rows:
        verdict = json.loads(row["checks"])
        assert verdict.get("fallback") == (None if row["level"] == "task" else reason)
    assert report.flagged == 0, "the rule's own words are sound"


def test_a_report_stays_short_where_a_server_words_each_refusal_anew() -> None:
    problems = Counter({f"refused: HTTP 400: request {n}": 1 for n in range(100)} | {"usual": 3})
    said = dialogue.commonest(problems)
    assert said["usual"] == 3 and said["others"] == 103 - 3 - (dialogue.PROBLEMS - 1)
    assert sum(said.values()) == 103 and len(said) == dialogue.PROBLEMS + 1


def test_one_question_that_is_refused_stops_no_other(
    server: Server, data: Path, tmp_path: Path
) -> None:
    server.acts = [says(json.dumps(GOOD)), status(400, b'{"error": "bad picture"}')]
    report, _ = caption(data, tmp_path / "captions", asking(server, concurrent=1))
    assert list(report.fallbacks.values()) == [3]
    (reason,) = report.fallbacks
    assert "HTTP 400" in reason and "bad picture" in reason


@pytest.mark.parametrize("act", [status(500), status(429), late, dripping, cut])
def test_a_server_that_never_answers_is_a_temporary_error(
    act: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = act
    began = time.monotonic()
    with pytest.raises(TemporaryError, match="does not answer"):
        caption(data, tmp_path / "captions", asking(server, tries=2))
    assert time.monotonic() - began < 10
    assert not (tmp_path / "captions").exists()


def test_a_question_without_an_answer_fails_the_stage_and_only_it_is_asked_again(
    server: Server, data: Path, tmp_path: Path
) -> None:
    good = says(json.dumps(GOOD))
    server.acts = [good, says("no idea"), good, status(503), good, good, status(500), good]
    config = asking(server, concurrent=1, tries=1, asks=1)
    with pytest.raises(TemporaryError, match=rf"captioning: 2 of {2 * EVENTS} .*HTTP 500") as lost:
        caption(data, tmp_path / "captions", config)
    assert "What was answered is kept and not paid for again. Run again" in str(lost.value)
    assert not (tmp_path / "captions").exists()
    assert (tmp_path / "report/captioning/requests.json").exists()
    assert len(server.seen) == 2 * EVENTS, "the others are asked all the same"
    server.seen.clear()
    report, rows = caption(data, tmp_path / "captions", config)
    assert len(server.seen) == 2
    assert report.fallbacks == {"openai: reply is no JSON object": 3}, "it was answered, badly"
    assert report.captioners["openai"] == 6 * EVENTS - 3
    assert (report.input_tokens, report.output_tokens) == (1000, 200)
    assert caption(data, tmp_path / "again", config) == (report, rows)
    assert len(server.seen) == 2


def test_nobody_there_is_a_temporary_error(server: Server, data: Path, tmp_path: Path) -> None:
    closed = asking(server, base_url="http://127.0.0.1:9/v1", tries=1)
    with pytest.raises(TemporaryError, match="ConnectError"):
        caption(data, tmp_path / "captions", closed)


def test_a_server_that_asks_for_an_hour_is_not_waited_for(
    server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = status(429, Retry_After="3600")
    with pytest.raises(TemporaryError, match="asks to wait for 3600 s"):
        caption(data, tmp_path / "captions", asking(server))


def test_retry_after_is_waited_for(server: Server, data: Path, tmp_path: Path) -> None:
    server.acts = [status(429, Retry_After="0.4")]
    caption(data, tmp_path / "captions", asking(server, concurrent=1))
    assert server.seen[1]["time_s"] - server.seen[0]["time_s"] >= 0.4


@pytest.mark.parametrize("header", ["", "soon", "-3", "nan", "inf", "0"])
def test_other_words_in_retry_after_ask_for_nothing(header: str) -> None:
    assert endpoint.retry_after_s(header) == 0.0


def test_retry_after_may_be_a_date() -> None:
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 50 < endpoint.retry_after_s(in_a_minute) <= 60


def test_the_rate_is_kept(server: Server, data: Path, tmp_path: Path) -> None:
    caption(data, tmp_path / "captions", asking(server, requests_per_minute=60 / 0.05))
    starts = sorted(r["time_s"] for r in server.seen)
    assert starts[-1] - starts[0] >= 0.05 * (len(starts) - 1) * 0.9


def test_a_pause_holds_who_waits_already_and_the_rate_is_kept_after_it() -> None:
    pace = endpoint.Pace(60 / 0.05)
    starts: list[float] = []

    async def start() -> None:
        await pace.turn()
        starts.append(time.monotonic())

    async def several() -> float:
        waiting = [asyncio.create_task(start()) for _ in range(5)]
        await asyncio.sleep(0.08)
        began = time.monotonic()
        for pause_s in (0.3, *[0.2] * 20):  # all within the first one
            pace.hold(pause_s)
        await asyncio.gather(*waiting, start())
        return began

    began = asyncio.run(several())
    held = [at - began for at in starts if at > began]
    assert len(held) > 1
    assert all(after_s > 0.29 + 0.05 * place for place, after_s in enumerate(held))
    assert held[-1] < 2, "pauses at the same time do not add up"


# --- an error that comes with success, as some gateways send it ---------------------------------


def error(**about: Any) -> Any:
    document = {"error": {"message": f"{SECRET} upstream " + "x" * 5000} | about}
    return status(200, json.dumps(document).encode())


@pytest.mark.parametrize(
    "act",
    [
        error(code=429),
        error(code="503"),
        error(code="rate_limit_exceeded"),
        error(code=None),
        error(code=10**4000),
        error(code=True),
        error(),
        status(200, b'{"error": "the model is loading", "choices": []}'),
        status(200, b'{"error": {}}'),
    ],
)
def test_an_error_with_success_is_no_answer_and_is_tried_again(
    act: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    server.acts = [act]
    config = asking(server, concurrent=1, asks=1)
    report, _ = caption(data, tmp_path / "captions", config)
    assert report.fallbacks == {}
    assert len(server.seen) == 2 * EVENTS + 1
    server.usual = act
    with pytest.raises(TemporaryError, match=r"does not answer.*HTTP 200 with error") as failure:
        caption(data, tmp_path / "other", asking(server, model="another"))
    assert SECRET not in str(failure.value) and len(str(failure.value)) < 2 * endpoint.SAID
    server.usual = says(json.dumps(GOOD))
    report, _ = caption(data, tmp_path / "other", asking(server, model="another"))
    assert report.fallbacks == {}, "nothing was kept of what failed"


def test_retry_after_of_an_error_with_success_is_waited_for(
    server: Server, data: Path, tmp_path: Path
) -> None:
    server.acts = [status(200, b'{"error": {"code": 429}}', Retry_After="0.4")]
    caption(data, tmp_path / "captions", asking(server, concurrent=1))
    assert server.seen[1]["time_s"] - server.seen[0]["time_s"] >= 0.4


@pytest.mark.parametrize("code", [400, "422"])
def test_an_error_with_success_about_one_question_stops_no_other(
    code: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    server.acts = [says(json.dumps(GOOD)), error(code=code)]
    report, _ = caption(data, tmp_path / "captions", asking(server, concurrent=1))
    assert list(report.fallbacks.values()) == [3]
    (reason,) = report.fallbacks
    assert "refused" in reason and "***" in reason and len(reason) < 2 * endpoint.SAID
    assert len(server.seen) == 2 * EVENTS


@pytest.mark.parametrize("code", [401, "402", 404])
def test_an_error_with_success_about_us_is_said_without_the_key(
    code: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = error(code=code)
    with pytest.raises(UserError, match=rf"captioning.*error {code}.*upstream") as failure:
        caption(data, tmp_path / "captions", asking(server))
    assert SECRET not in str(failure.value) and len(str(failure.value)) < 3 * endpoint.SAID


def test_an_error_beside_a_reply_is_only_a_note(server: Server, data: Path, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": json.dumps(GOOD)}
    document = {"choices": [{"message": message}], "error": {"code": 429}}
    server.usual = status(200, json.dumps(document).encode())
    report, _ = caption(data, tmp_path / "captions", asking(server))
    assert report.fallbacks == {}
    assert len(server.seen) == 2 * EVENTS


# --- a server that does not want us --------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        status(401, f'{{"error": "bad key {SECRET}"}}'.encode()),
        status(404, b"no such model"),
        status(302, Location="http://127.0.0.1:9/steal"),
        status(400, f"unknown parameter; you sent {SECRET}".encode()),
    ],
)
def test_a_server_that_does_not_want_us_is_said_without_the_key(
    act: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    server.usual = act
    with pytest.raises(UserError, match="captioning") as failure:
        caption(data, tmp_path / "captions", asking(server))
    assert SECRET not in str(failure.value)


def test_the_key_is_nowhere(
    server: Server,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    server.acts = [status(400, SECRET.encode()), status(500), late, says(f"no {SECRET}")]
    report, _ = caption(data, tmp_path / "captions", asking(server))
    outputs = (*tmp_path.rglob("*"), *tmp_path.with_name(f"{tmp_path.name}.store").rglob("*"))
    files = [path for path in outputs if path.is_file()]
    assert any(path.name == "captions.parquet" for path in files)
    assert any(path.name == "requests.json" for path in files)
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    captured = capfd.readouterr()
    said = captured.out + captured.err + caplog.text + report.model_dump_json()
    assert SECRET not in said


def test_a_key_that_no_header_can_carry_is_refused(
    server: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, f"{SECRET} \u00e9\nX: y")
    with pytest.raises(UserError, match="expected one line") as failure:
        caption(data, tmp_path / "captions", asking(server))
    assert SECRET not in str(failure.value)


def test_without_a_key_none_is_sent(
    server: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY)
    caption(data, tmp_path / "captions", asking(server))
    assert "Authorization" not in server.seen[0]["headers"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_url": "ftp://host/v1"}, "http"),
        ({"base_url": "https://user:pw@host/v1"}, "no key belongs here"),
        ({"base_url": "https://host/v1?key=x"}, "no key belongs here"),
        ({"model": ""}, "name of a model"),
        ({"captioner": "transformers", "model": "weights"}, "absolute path"),
        ({"prompt": "../../etc/passwd"}, "prompt"),
        ({"captioner": "gpt"}, "captioner"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str, server: Server) -> None:
    usual = asking(server).model_dump() | values
    with pytest.raises(WamflowError, match=message):
        params.section({"captioning": usual}, "captioning", stage.Config)


# --- questions -----------------------------------------------------------------------------------


def test_a_contact_sheet_shows_the_event_from_start_to_end(data: Path) -> None:
    from components.episodes import Episodes

    recordings = Episodes(data / "episodes")
    seconds = np.array([1.0, 2.0, 3.0, 4.0])
    episode = recordings[recordings.ids[0]]
    shown = np.asarray(sheet.contact_sheet(episode, seconds, 64, 4))
    assert shown.shape == (48 + sheet.MARGIN_PX, 4 * 64, 3)
    below = shown[sheet.MARGIN_PX + 24 :, :, 0].reshape(24, 4, 64).mean(axis=(0, 2))
    assert below == pytest.approx(255 * seconds / episode.duration_s, abs=6)
    assert (shown[: sheet.MARGIN_PX].reshape(-1, 4, 64, 3) < 100).any(axis=(0, 2, 3)).all()


def test_prompts_are_files_with_their_places(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match="there are events"):
        questions.prompt("mine")
    monkeypatch.setattr(questions, "PROMPTS", tmp_path)
    (tmp_path / "mine.md").write_text("{task} {facts} {levels}")
    with pytest.raises(UserError, match=r"lacks \{rule\}"):
        questions.prompt("mine")


def test_what_is_filled_in_is_never_filled_again() -> None:
    found = questions.filled("{task}|{facts}", [], task="{facts}", facts="f")
    assert found == "{facts}|f"


def test_without_cameras_the_rule_speaks(server: Server, tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "episodes", [made.pick_and_place(fps=20.0)])
    nobody = made.nothing_said(tmp_path)
    segmentation.run(folder, nobody, tmp_path / "events", config=SEGMENTATION)
    report, _ = caption(tmp_path, tmp_path / "captions", asking(server))
    assert report.fallbacks == {"openai: no camera": 3 * EVENTS}
    assert server.seen == []
