"""`wamflow label`: the page in a real browser, what it saves, who is kept out, clips, past runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from components import corrections, params, records
from components.captioning import stage as captioning
from components.corrections import CaptionCorrection, EventCorrection
from components.encoding import encode
from components.episodes import Episodes
from components.errors import DataError, UserError
from components.packets import Span
from components.segmentation import stage as segmentation
from flows.labelling import clips, found, server
from flows.labelling.overlay import ChangedError, Overlay
from flows.labelling.view import View
from tests import made_episodes as made
from tests import past_runs
from tests.conftest import ROOT, first_commit, git, wamflow

VALUES = params.load(ROOT / "params.yaml")
CUT = params.section(VALUES, "segmentation", segmentation.Config)
TELL = params.section(VALUES, "captioning", captioning.Config)
CAMERA, PX = "observation.images.top", 64
FPS = 20.0


def pictures(shade: int) -> list[Any]:
    """One for each of 91 control steps: a bar that walks on, in a colour of the episode's own."""
    frames = [np.full((PX, PX, 3), shade, np.uint8) for _ in range(91)]
    for t, frame in enumerate(frames):
        frame[:, t * PX // 91 : t * PX // 91 + 4] = 255 - shade
    return frames


@pytest.fixture(scope="module")
def run_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one run of three episodes of 4.5 s, whose videos lie in one file."""
    project = tmp_path_factory.mktemp("label") / "project"
    data = project / ".runs" / "first" / "data"
    spans, taken = [], []
    for i in range(3):
        video = project.parent / f"{i}.mp4"
        encode(video, pictures(40 * i), FPS)
        spans.append({CAMERA: Span(video)})
        taken.append(dataclasses.replace(made.pick_and_place(FPS), episode_id=f"{i:020x}"))
    made.folder(data / "episodes", taken, spans=spans)
    for path in (corrections.EVENTS, corrections.CAPTIONS):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).touch()
    segmented(project, data / "events")
    paths = (data / "episodes", data / "events", project / corrections.CAPTIONS, data / "captions")
    captioning.run(*paths, config=TELL)
    shutil.copy(ROOT / "params.yaml", project / "params.yaml")
    shutil.copy(ROOT / "params.yaml", project / ".runs" / "first" / "params.yaml")
    (project / ".gitignore").write_text(".runs/\n.wamflow/\n")
    first_commit(project)
    git(project, "config", "user.name", "Ada Lovelace")
    git(project, "branch", "run/first")
    return project


def segmented(project: Path, events: Path, **values: float) -> list[dict[str, Any]]:
    """Segmentation of the run's episodes with the project's corrections: all rows."""
    config = segmentation.Config(**CUT.model_dump() | values)
    episodes = project / ".runs" / "first" / "data" / "episodes"
    segmentation.run(episodes, project / corrections.EVENTS, events, config=config)
    return records.read(events / "events.parquet", records.EVENTS).to_pylist()


def captioned(project: Path, events: Path, captions: Path) -> list[dict[str, Any]]:
    """The first episode's actions in time order, with the project's corrections."""
    episodes = project / ".runs" / "first" / "data" / "episodes"
    captioning.run(episodes, events, project / corrections.CAPTIONS, captions, config=TELL)
    rows = records.read(captions / "captions.parquet", records.CAPTIONS).to_pylist()
    cut = records.read(events / "events.parquet", records.EVENTS).to_pylist()
    ids = [row["event_id"] for row in cut if row["episode_id"] == "0" * 20]
    actions = {row["event_id"]: row for row in rows if row["level"] == "action"}
    return [actions[i] for i in ids]


@pytest.fixture
def project(run_template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_template, tmp_path / "project"))


def served(project: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The command as people start it, and the address that it prints."""
    process = wamflow(project, "label", *arguments, "--no-browser", PYTHONPATH=str(ROOT))
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, process.communicate()[1]
    return process, address


@pytest.fixture
def address(project: Path) -> Iterator[str]:
    process, shown_at = served(project)
    yield shown_at
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; tests that look at the page are skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    where = next(filter(None, map(shutil.which, names)), None)
    if where is None:
        pytest.skip("no Chromium on this machine (`apt-get install chromium`)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def until(page: Any, condition: str) -> None:
    """Wait for JavaScript to be true; Playwright's own wait needs `eval`, which we forbid."""
    ends = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < ends, f"{condition}: {page.inner_text('header')}"
        page.wait_for_timeout(50)


def opened(browser: Any, address: str) -> Any:
    """The page with its first episode and its video."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.wait_for_selector(".band")
    until(page, "document.querySelector('video')?.readyState >= 2")
    return page


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def saved(page: Any) -> None:
    press(page, "Control+s")
    until(page, "document.querySelector('#state').textContent === 'all saved'")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- in a browser --------------------------------------------------------------------------------


def test_people_correct_by_keyboard_and_other_parameters_keep_it(
    browser: Any, project: Path, address: str, tmp_path: Path
) -> None:
    """Play, split, move, merge, kind, rename, accept, undo; what is saved is exactly that."""
    page = opened(browser, address)
    shown = page.inner_text("#bands").split("\n")
    assert shown[::2] == ["1 motion", "2 grasp", "3 motion", "4 motion", "5 release"]
    assert set(shown[1::2]) == {"machine"}

    playing = "document.querySelector('video').currentTime"
    before = page.evaluate(playing)
    press(page, "Space")
    until(page, f"{playing} > {before} + 0.2")
    press(page, "Space")

    machine = records.read(
        project / ".runs/first/data/events/events.parquet", records.EVENTS
    ).to_pylist()[:5]
    cuts = [row["start_s"] for row in machine] + [machine[-1]["end_s"]]
    assert cuts == pytest.approx([0, 1, 2, 3, 4, 4.5], abs=0.11)
    press(page, "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp")  # to the start
    press(page, *["ArrowRight"] * 6, "s")  # split the first event 0.3 s after its start
    press(page, "Shift+]", "[")  # that boundary ten steps on, one back: at 0.75 s
    press(page, "ArrowDown", "m")  # the third of now six and what follows are one
    press(page, "2")  # and that is a grasp: it was one already, so nothing happens
    press(page, "3", "u", "4")  # a release; no, undone; idle
    press(page, "r")
    page.keyboard.type("wait for <b>the</b> cup")
    press(page, "Enter", "ArrowDown", "a")
    assert page.inner_text("#state") == "10 changes not saved"
    saved(page)

    events, words = lines(project / corrections.EVENTS), lines(project / corrections.CAPTIONS)
    for row in (*events, *words):
        assert row.pop("author") == "Ada Lovelace" and row.pop("episode_id") == "0" * 20
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", row["time"])
    assert [row.pop("time") for row in events] == sorted(row["time"] for row in lines(
        project / corrections.EVENTS))  # fmt: skip
    split, moved, ends = pytest.approx(0.3), pytest.approx(0.75), cuts
    assert events == [
        {"did": "split", "times_s": [0, split, ends[1]], "kinds": ["motion", "motion"]},
        {"did": "move", "times_s": [0, moved, ends[1]], "kinds": ["motion", "motion"]},
        {"did": "merge", "times_s": [ends[1], ends[3]], "kinds": ["grasp"]},
        {"did": "kind", "times_s": [ends[1], ends[3]], "kinds": ["idle"]},
        {"did": "accept", "times_s": [ends[3], ends[4]], "kinds": ["motion"]},
    ]
    assert [row["did"] for row in words] == ["rename", *["accept"] * 4][: len(words)]
    assert {k: words[0][k] for k in ("start_s", "end_s", "level", "text")} == {
        "start_s": ends[1], "end_s": ends[3], "level": "action", "text": "wait for <b>the</b> cup",
    }  # fmt: skip
    press(page, "ArrowUp", "ArrowUp")
    assert page.input_value("#words-action") == "wait for <b>the</b> cup"
    assert "Ada Lovelace" in page.inner_text("#bands")

    for index, values in enumerate(({}, {"cut_price": 0.9}, {"min_event_s": 1.0})):
        rows = [
            row for row in segmented(project, tmp_path / f"{index}", **values)
            if row["episode_id"] == "0" * 20
        ]  # fmt: skip
        found = [(row["start_s"], row["kind"]) for row in rows[:4]]
        assert found == [(0, "motion"), (moved, "motion"), (ends[1], "idle"), (ends[3], "motion")]
        people = [json.loads(row["evidence"]).get("person") for row in rows[:4]]
        assert [one["did"] for one in people] == ["move", "move", "kind", "accept"]
        assert {one["author"] for one in people} == {"Ada Lovelace"}
    episodes = project / ".runs/first/data/episodes"
    paths = (episodes, tmp_path / "2", project / corrections.CAPTIONS, tmp_path / "captions")
    report = captioning.run(*paths, config=TELL)
    assert report.people.captions == 5 and report.people.unplaced == 0
    told = records.read(paths[-1] / "captions.parquet", records.CAPTIONS).to_pylist()
    kept = {(row["level"], row["text"]) for row in told if row["author"] == "Ada Lovelace"}
    assert kept == {(row["level"], row["text"]) for row in words}


def test_an_undone_deed_is_not_saved_and_unsaved_ones_wait(
    browser: Any, project: Path, address: str
) -> None:
    page = opened(browser, address)
    press(page, "m", "u")
    assert page.inner_text("#state") == "all saved" and page.is_disabled("#save")
    press(page, "m", "n")
    until(page, "document.querySelectorAll('.band').length === 5")
    press(page, "2", "p")
    until(page, "document.querySelectorAll('.band').length === 4")
    assert page.inner_text("#state") == "2 changes not saved in 2 episodes"
    saved(page)
    assert [row["episode_id"][-1] for row in lines(project / corrections.EVENTS)] == ["0", "1"]
    press(page, "x")
    saved(page)
    last = lines(project / corrections.EVENTS)[-1]
    assert (last["did"], last["kinds"]) == ("revert", [])


@pytest.mark.parametrize("then", ["", "another word", "x"])
def test_words_of_an_event_that_is_split_stay_with_the_part_that_shows_them(
    browser: Any, project: Path, address: str, tmp_path: Path, then: str
) -> None:
    """Split below its half, so that what was said before lies mostly in the right part."""
    page = opened(browser, address)
    page.fill("#words-action", "wait for the cup")
    press(page, "Enter")
    saved(page)
    press(page, *["ArrowRight"] * 6, "s")
    assert page.input_value("#words-action") == "", "the right part"
    press(page, "ArrowLeft")
    assert page.input_value("#words-action") == "wait for the cup"
    if then == "x":
        press(page, "x")
    elif then:
        page.fill("#words-action", then)
        press(page, "Enter")
    saved(page)
    segmented(project, tmp_path / "events")
    told = captioned(project, tmp_path / "events", tmp_path / "captions")
    people = [row["text"] for row in told if row["captioner"] == "person"]
    assert people == ([] if then == "x" else [then or "wait for the cup"])
    events = httpx.get(f"{address}api/episodes/{'0' * 20}").json()["events"]
    shown = [event["words"].get("action", {}).get("captioner") for event in events[:2]]
    assert shown == [None if then == "x" else "person", "kinematics"]


def test_words_do_not_wander_to_the_event_that_takes_their_time(
    browser: Any, project: Path, address: str, tmp_path: Path
) -> None:
    """The first event's end is moved to its beginning: the second has most of its time now."""
    page = opened(browser, address)
    page.fill("#words-action", "wait for the cup")
    press(page, "Enter", "ArrowDown", *["ArrowRight"] * 4, "s")  # a short second event
    saved(page)
    press(page, "ArrowUp", "ArrowUp", "ArrowDown", "Shift+[", *["["] * 6)  # its start, at 0.2 s
    saved(page)
    moved = lines(project / corrections.EVENTS)[-1]["times_s"]
    assert moved == pytest.approx([0, 0.2, 1.2], abs=0.11)
    segmented(project, tmp_path / "events")
    told = captioned(project, tmp_path / "events", tmp_path / "captions")
    assert [row["text"] for row in told if row["captioner"] == "person"] == ["wait for the cup"]
    assert told[0]["captioner"] == "person"


def test_what_is_given_back_to_the_machine_is_shown_as_the_machines(
    browser: Any, project: Path, tmp_path: Path
) -> None:
    """The run has a person's event and words; whoever reverts them sees that at once."""
    data = project / ".runs" / "first" / "data"
    about = {"author": "Ada", "time": "2026-01-02T00:00:00Z", "episode_id": "0" * 20}
    kind = about | {"did": "kind", "times_s": [0, 0.5], "kinds": ["idle"]}
    words = about | {"did": "rename", "start_s": 0, "end_s": 0.5, "level": "action", "text": "wait"}
    (project / corrections.EVENTS).write_text(json.dumps(kind) + "\n")
    (project / corrections.CAPTIONS).write_text(json.dumps(words) + "\n")
    segmented(project, data / "events")
    told = captioned(project, data / "events", data / "captions")
    assert told[0]["text"] == "wait" and told[0]["machine_text"]
    process, address = served(project)
    try:
        page = opened(browser, address)
        assert page.inner_text("#bands").split("\n")[:2] == ["1 idle", "Ada"]
        assert page.input_value("#words-action") == "wait"
        press(page, "x")
        for _ in range(2):
            assert page.inner_text("#bands").split("\n")[1] == "the next run decides"
            assert page.inner_text("#who").startswith("the next run decides")
            assert page.input_value("#words-action") == told[0]["machine_text"]
            saved(page)
        shown = httpx.get(f"{address}api/episodes/{'0' * 20}").json()["events"]
        assert [event["undecided"] for event in shown[:3]] == [True, True, False]
        assert not any(event["person"] for event in shown)
        assert {event["words"]["action"]["captioner"] for event in shown[1:]} == {"kinematics"}
    finally:
        process.terminate()
        process.communicate(timeout=60)
    rows = segmented(project, data / "events")
    assert not any("person" in json.loads(row["evidence"]) for row in rows)
    told = captioned(project, data / "events", data / "captions")
    assert {row["captioner"] for row in told} == {"kinematics"}


def test_boundaries_are_dragged_and_words_clicked(
    browser: Any, project: Path, address: str
) -> None:
    page = opened(browser, address)
    box, cut = page.locator("#timeline").bounding_box(), page.locator(".cut").nth(1).bounding_box()
    page.mouse.move(cut["x"] + cut["width"] / 2, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 4.5, box["y"] + 100, steps=4)
    page.mouse.up()
    page.fill("#words-segment", "The arm waits.")
    page.fill("#author", "")
    press(page, "Control+s")
    page.wait_for_selector("#notice.bad")
    assert page.inner_text("#notice") == "Say who you are first."
    page.fill("#author", "Bo")
    saved(page)
    (event,) = lines(project / corrections.EVENTS)
    assert event["did"] == "move" and event["times_s"][1] == pytest.approx(2.5, abs=0.051)
    (words,) = lines(project / corrections.CAPTIONS)
    assert (words["author"], words["level"], words["text"]) == ("Bo", "segment", "The arm waits.")


def test_two_people_lose_nothing(browser: Any, project: Path, address: str) -> None:
    ours, theirs, third = (opened(browser, address) for _ in range(3))
    for page, key in ((ours, "m"), (theirs, "4"), (third, "3")):
        press(page, key)
        page.fill("#author", {"m": "Ada", "4": "Bo", "3": "Cy"}[key])
    saved(ours)
    for page, choice in ((theirs, "mine"), (third, "theirs")):
        press(page, "Control+s")
        page.wait_for_selector("#conflict[open]")
        page.click(f"#conflict button[value={choice}]")
        until(page, "document.querySelector('#state').textContent === 'all saved'")
    rows = [(row["author"], row["did"]) for row in lines(project / corrections.EVENTS)]
    assert rows == [("Ada", "merge"), ("Bo", "kind")]
    assert third.inner_text("#bands").split("\n")[:2] == ["1 idle", "Bo"]


def test_the_page_loads_nothing_from_elsewhere(browser: Any, address: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    refused: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: refused.append(said.text) if said.type == "error" else None)
    page.goto(address)
    until(page, "document.querySelector('video')?.readyState >= 2")
    assert len(asked) > 5 and all(url.startswith(address) for url in asked)
    assert refused == []
    keys = page.inner_text("#keys")
    for what in ("split here", "merge", "accept", "undo", "rename", "save", "next, previous"):
        assert what in keys, "the page says its own keys"


# --- over HTTP -----------------------------------------------------------------------------------


def test_only_the_page_itself_gets_answers(project: Path, address: str) -> None:
    root, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/(.{20,})/", address).groups()  # type: ignore[union-attr]
    good = f"{address}api/episodes/{'0' * 20}"
    post = f"{good}/corrections"
    with httpx.Client() as client:
        answer = client.get(address)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        version = client.get(good).json()["version"]
        body = {"version": version, "author": "Eve", "events": [], "captions": []}
        for url, headers, code in (
            (root + "/", {}, 403),
            (f"{root}/{token[:-1]}x/", {}, 403),
            (f"{root}/api/episodes", {}, 403),
            (address, {"Host": "evil.example"}, 421),
            (f"{address}api/episodes/unknown", {}, 404),
            (f"{address}api/episodes/..%2f..%2fparams.yaml", {}, 404),
            (f"{address}api/clips/..%2f..%2fetc%2fpasswd", {}, 404),
            (f"{address}..%2fserver.py", {}, 404),
            (f"{address}api/episodes/{'0' * 20}/clips/7", {}, 404),
        ):
            assert client.get(url, headers=headers).status_code == code, url
        for headers in ({"Origin": "http://evil.example"}, {"Content-Type": "text/plain"}):
            content = json.dumps(body)
            typed = {"Content-Type": "application/json"} | headers
            assert client.post(post, content=content, headers=typed).status_code == 403
        assert client.post(post, json=body | {"version": "old"}).status_code == 409
        merge = {"did": "merge", "times_s": [1, 0], "kinds": ["motion"]}
        wrong = body | {"events": [merge | {"time": "2026-01-02T00:00:00Z"}]}
        answer = client.post(post, json=wrong)
        assert answer.status_code == 422 and "increasing seconds" in answer.json()["error"]
    assert (project / corrections.EVENTS).read_text() == ""


def test_what_cannot_be_applied_is_not_written(project: Path, address: str, tmp_path: Path) -> None:
    """Time beyond the end of an episode of 4.5 s, alone or beside a good row."""
    place = f"{address}api/episodes/{'0' * 20}"
    body = {"version": httpx.get(place).json()["version"], "author": "Eve"}
    moment = {"time": "2026-01-02T00:00:00Z"}
    good = moment | {"did": "kind", "times_s": [0, 1], "kinds": ["idle"]}
    words = moment | {"did": "rename", "level": "action", "text": "wait", "start_s": 1}
    for events, captions in (
        ([good, good | {"times_s": [1, 99]}], []),
        ([good], [words | {"end_s": 99}]),
    ):
        sent = body | {"events": events, "captions": captions}
        answer = httpx.post(f"{place}/corrections", json=sent)
        assert answer.status_code == 422 and "the episode's end" in answer.json()["error"]
        for path in (corrections.EVENTS, corrections.CAPTIONS):
            assert (project / path).read_text() == ""
        assert httpx.get(place).status_code == 200
    assert segmented(project, tmp_path / "events"), "the next run works"
    sent = body | {"events": [good], "captions": [words | {"end_s": 2}]}
    assert httpx.post(f"{place}/corrections", json=sent).status_code == 200


def test_ctrl_c_ends_it_cleanly(project: Path) -> None:
    process, address = served(project, "run/first")
    assert httpx.get(address).status_code == 200
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=20)
    assert process.returncode == 0 and "what was saved is saved" in said
    assert "Traceback" not in said and out == ""


def test_what_is_wrong_is_said_before_the_page_opens(project: Path) -> None:
    def refused(*arguments: str) -> str:
        process = wamflow(project, "label", *arguments, PYTHONPATH=str(ROOT))
        out, said = process.communicate(timeout=60)
        assert process.returncode == UserError.exit_code and out == "", said
        return said

    assert "no run here" in refused("nonsense") and "first" in refused("nonsense")
    (project / corrections.CAPTIONS).write_text("{}\n")
    assert "captions.jsonl:1: author: Field required" in refused()


def test_the_clips_asked_for_last_are_kept(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEPT_CLIPS", 2)
    view = View(found.Found("first", project / ".runs" / "first", CUT.min_event_s))
    page = server.Page(view, Overlay(project, tmp_path), "Ada", tmp_path)
    client = TestClient(server.app(page, "token"), base_url=f"http://{server.HOST}")

    def asked(number: int) -> str:
        answer = client.get(f"/token/api/episodes/{number:020x}/clips/0")
        return str(answer.json()["video"])

    first, second, _, third = (asked(number) for number in (0, 1, 0, 2))
    codes = [client.get(f"/token/{video}").status_code for video in (first, second, third)]
    assert codes == [200, 404, 200]
    assert len(list(tmp_path.glob("*.mp4"))) == 2


# --- the overlay on disk -------------------------------------------------------------------------


def test_many_who_save_at_once_lose_nothing(tmp_path: Path) -> None:
    overlay = Overlay(tmp_path, tmp_path)
    about = {"author": "Ada", "time": "2026-01-02T00:00:00Z", "did": "merge", "kinds": ["motion"]}
    times_s = np.arange(0, 50, 0.5)

    def save(number: int) -> int:
        row = about | {"episode_id": f"{number % 4}", "times_s": [number, number + 1]}
        one, tries = EventCorrection.model_validate(row), 1
        while True:
            try:
                version = overlay.of(one.episode_id).version
                overlay.add(one.episode_id, version, [one], [], times_s)
                return tries
            except ChangedError:
                tries += 1

    with ThreadPoolExecutor(8) as people:
        assert sum(people.map(save, range(40))) >= 40
    assert len(lines(tmp_path / corrections.EVENTS)) == 40
    assert sum(len(said.events) for said in overlay.read().values()) == 40


def test_what_is_said_later_counts_later_whatever_the_clocks_say(tmp_path: Path) -> None:
    """Bo's clock is ten minutes ahead; Ada saw his lines and saves three of her own after them."""
    overlay, times_s = Overlay(tmp_path, tmp_path), np.arange(91) / FPS

    def kind(author: str, time: str, kind: str) -> EventCorrection:
        row = {"author": author, "time": f"2026-01-02T{time}Z", "episode_id": "e", "did": "kind"}
        return EventCorrection.model_validate(row | {"times_s": [0, 1], "kinds": [kind]})

    def words(author: str, time: str) -> CaptionCorrection:
        row = {"author": author, "time": f"2026-01-02T{time}Z", "episode_id": "e", "text": author}
        row |= {"did": "rename", "level": "action"}
        return CaptionCorrection.model_validate(row | {"start_s": 0, "end_s": 1})

    def add(events: list[EventCorrection], captions: list[CaptionCorrection]) -> None:
        overlay.add("e", overlay.of("e").version, events, captions, times_s)

    add([kind("Bo", "12:10:00", "idle")], [words("Bo", "12:09:59")])
    hers = [kind("Ada", "12:00:30", "grasp"), kind("Ada", "12:00:32.5", "release")]
    add(hers, [words("Ada", "12:00:31")])
    said = overlay.of("e")
    assert [row.kinds for row in said.events] == [("idle",), ("grasp",), ("release",)]
    assert [row.text for row in said.captions] == ["Bo", "Ada"] and said.last_author == "Ada"
    first, second = (row.time for row in said.events[1:])
    assert first > said.events[0].time and (second - first).total_seconds() == 2.5
    assert (said.captions[1].time - first).total_seconds() == 1
    later = kind("Bo", "13:00:00", "motion")
    add([later], [])
    assert overlay.of("e").events[-1] == later, "a good clock is left alone"


# --- clips ---------------------------------------------------------------------------------------


def encoded(path: Path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width = stream.height = PX
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("codec", "played"), [("libx264", "h264"), ("libsvtav1", "av1"), ("mpeg4", "h264")]
)
def test_a_clip_shows_the_episodes_own_pictures(tmp_path: Path, codec: str, played: str) -> None:
    video = tmp_path / "v.mp4"
    encoded(video, codec)
    taken = [
        dataclasses.replace(made.pick_and_place(FPS), episode_id=f"{i:020x}") for i in range(2)
    ]
    spans = [{CAMERA: Span(video)}] * 2
    root = made.folder(tmp_path / "episodes", taken, spans=spans)
    episode = Episodes(root)[f"{1:020x}"]
    start_s = clips.cut(episode, CAMERA, root, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == played
        times = [
            float(frame.pts * stream.time_base) - start_s for frame in container.decode(stream)
        ]
    shown = [t for t in times if t > -1e-3]
    assert shown == pytest.approx(list(episode.timestamps_s), abs=0.01)
    own = episode.clips[CAMERA]
    again = dataclasses.replace(own, path=tmp_path / "clip.mp4", start_s=start_s, end_s=np.inf)
    places = episode.timestamps_s[[0, 30, 90]]
    far = np.abs(again.frames(places).astype(int) - own.frames(places).astype(int)).mean()
    assert far < 4.0  # 0 where packets were copied


def test_a_video_outside_of_the_data_is_refused(tmp_path: Path) -> None:
    video = tmp_path / "secret.mp4"
    encoded(video, "libx264")
    episode = made.pick_and_place(FPS)
    root = made.folder(tmp_path / "episodes", [episode], spans=[{CAMERA: Span(video)}])
    info = root / episode.embodiment / "meta" / "info.json"
    content = json.loads(info.read_text())
    content["video_path"] = "videos/../../../secret.mp4"
    info.write_text(json.dumps(content))
    damaged = Episodes(root)[episode.episode_id]
    assert damaged.clips[CAMERA].path.exists()
    with pytest.raises(DataError, match="expected a video within"):
        clips.cut(damaged, CAMERA, root, tmp_path / "clip.mp4")
    assert not (tmp_path / "clip.mp4").exists()


# --- past runs -----------------------------------------------------------------------------------


def test_a_run_without_worktree_comes_from_the_cache(tmp_path: Path) -> None:
    repo = past_runs.wide(tmp_path, 2, 3)
    with found.opened(repo, "wam@v0.0.2") as run:
        events = records.read(run.folder / "data/events/events.parquet", records.EVENTS)
        assert len(events) == 15
        assert (run.folder / "data/captions/captions.parquet").is_file()
        assert (
            (run.folder / "data/episodes/manifest.parquet")
            .resolve()
            .is_relative_to(repo / ".dvc" / "cache")
        )
        folder = run.folder
    assert not folder.exists()
    with pytest.raises(UserError, match="no run has events yet"), found.opened(repo, "latest"):
        pass


def test_a_listing_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    from flows.lineage.cache import Cache

    repo = past_runs.wide(tmp_path, 1, 1)
    listing = json.dumps([{"md5": "0" * 32, "relpath": "../../escaped"}]).encode()
    md5 = past_runs._object(repo, listing, ".dir") + ".dir"
    with pytest.raises(DataError, match="escaped"):
        Cache(repo).link(md5, "data/episodes", tmp_path / "deep" / "episodes")
    assert not (tmp_path / "escaped").exists()


def test_corrections_are_read_as_they_were_saved() -> None:
    """A person's words of any alphabet survive the file."""
    row = {"author": "Žofie", "time": "2026-01-02T00:00:00Z", "episode_id": "e", "did": "rename",
           "start_s": 0, "end_s": 1, "level": "action", "text": "拿杯子 \u2028 “hm”"}  # fmt: skip
    one = CaptionCorrection.model_validate(row)
    assert CaptionCorrection.model_validate_json(corrections.lines([one])) == one
