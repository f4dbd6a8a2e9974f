"""The checks of ingestion: each fault is named, sound recordings are not, suites are data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.errors import UserError
from components.ingestion import bitstream, signals, suites
from components.ingestion.measure import KNOWN
from components.ingestion.raw import Layout, RawEpisode
from components.ingestion.suites import Change
from tests.test_ingestion import (
    CONFIG,
    ROWS,
    change,
    dataset_v21,
    encode,
    ingest,
    put,
    rejected,
    shared,
    video_file,
)

VALUES = {"min_frames": 8, "max_video_frames_off": 1}
LAYOUT = Layout("arm", 20.0, ("a", "b", "gripper"), ("a", "b", "gripper"), ())
T = 120
TREMBLE = np.random.default_rng(5).uniform(-0.01, 0.01, T)


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def smooth(seed: int = 0) -> RawEpisode:
    """An arm that swings; its action is where it will be two steps later."""
    random = np.random.default_rng(seed)
    phases, times = random.uniform(0, 6, 2), np.arange(T + 2) / 20
    swing = np.stack([np.sin(times * (1 + k) + phases[k]) for k in range(2)], axis=1)
    closed = (np.arange(T + 2) // 40 % 2).astype(float)
    path = np.column_stack([swing, closed]).astype(np.float32)
    return RawEpisode(
        0, "here", "", "wave", timestamps_s=times[:T], state=path[:T], action=path[2:]
    )


def spiked(raw: RawEpisode, row: int, column: int, value: float) -> RawEpisode:
    state = raw.state.copy()
    state[row, column] = value
    return replace(raw, state=state)


def later(raw: RawEpisode, row: int, seconds: float) -> RawEpisode:
    times = raw.timestamps_s.copy()
    times[row:] += seconds
    return replace(raw, timestamps_s=times)


def broken(raw: RawEpisode, layout: Layout = LAYOUT) -> set[str]:
    """Names of the default suite's checks that the signals break."""
    found = signals.numbers(raw, layout)
    return {
        check.name
        for check in suites.suite("arm", {}, VALUES, KNOWN)
        if (value := found.get(check.fact)) is not None
        and not (
            (check.min is None or float(check.min) <= value)
            and (check.max is None or value <= float(check.max))
        )
    }


SIGNAL_FAULTS: dict[str, tuple[Callable[[RawEpisode], RawEpisode], set[str]]] = {
    "sound": (lambda raw: raw, set()),
    "an hour is missing": (lambda raw: later(raw, 50, 3600.0), {"clock_jump", "clock_gaps"}),
    "three rows are missing": (lambda raw: later(raw, 50, 0.15), {"clock_gaps"}),
    "trembling clock": (
        lambda raw: replace(raw, timestamps_s=raw.timestamps_s + TREMBLE),
        {"jitter"},
    ),
    "declared 20 Hz, real 18 Hz": (
        lambda raw: replace(raw, timestamps_s=raw.timestamps_s * 20 / 18),
        {"wrong_rate"},
    ),
    "nothing measured moves": (
        lambda raw: replace(raw, state=np.ones_like(raw.state)),
        {"constant_state"},
    ),
    "nothing is commanded": (
        lambda raw: replace(raw, action=np.ones_like(raw.action)),
        {"constant_action"},
    ),
    "one wrong value": (lambda raw: spiked(raw, 60, 0, 9.0), {"state_jump"}),
    "a gripper far out": (lambda raw: spiked(raw, 60, 2, 5.0), {"gripper_range"}),
}


@pytest.mark.parametrize("name", SIGNAL_FAULTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_fault_of_signals_is_named_and_nothing_else(name: str, seed: int) -> None:
    damage, expected = SIGNAL_FAULTS[name]
    assert broken(damage(smooth(seed))) == expected


def test_an_angle_that_goes_on_from_the_other_end_is_no_jump() -> None:
    raw = smooth()
    turning = np.linspace(0, 9, T)
    state = raw.state.copy()
    state[:, 0] = (turning + np.pi) % (2 * np.pi) - np.pi
    assert "state_jump" not in broken(replace(raw, state=state))


# -- suites ---------------------------------------------------------------------------------------


def of(checks: list[suites.Check], name: str) -> suites.Check | None:
    return next((check for check in checks if check.name == name), None)


def test_the_longest_start_of_a_name_has_the_last_word() -> None:
    changes = {
        "default": {"jitter": Change(max=0.5)},
        "so101": {"jitter": Change(severity="blocking"), "wrong_rate": Change(severity="off")},
        "so101-follower": {"jitter": Change(max=0.7)},
    }
    follower = suites.suite("SO101-Follower", changes, VALUES, KNOWN)
    jitter = of(follower, "jitter")
    assert jitter is not None and (jitter.max, jitter.severity) == (0.7, "blocking")
    assert of(follower, "wrong_rate") is None
    other = of(suites.suite("cr5", changes, VALUES, KNOWN), "jitter")
    assert other is not None and (other.max, other.severity) == (0.5, "warning")
    short = of(suites.suite("cr5", changes, VALUES | {"min_frames": 30}, KNOWN), "too_short")
    assert short is not None and short.min == 30


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("jitter", {"fact": "wobble"}, "no fact 'wobble'; there are .*backward_steps"),
        ("jitter", {"max": "much"}, "got 'much'"),
        ("mine", {"fact": "jitter", "max": 1.0}, "severity: Field required"),
        ("mine", {"fact": "jitter", "max": 1.0, "severity": "warning"}, "reason: Input should be"),
        ("mine", {"fact": "gap_s", "severity": "warning", "reason": "jitter"}, "got neither"),
    ],
)
def test_a_check_that_cannot_be_is_refused(name: str, fields: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suites.suite("arm", {"default": {name: Change(**fields)}}, VALUES, KNOWN)


# -- the stage ------------------------------------------------------------------------------------


def faulty(root: Path) -> Path:
    """Episode 1 has a black video, 2 a frozen one, 3 no motion, 4 a lost hour, 5 a NaN."""
    dataset_v21(root, 6)
    encode(video_file(root, 1), [0] * ROWS)
    encode(video_file(root, 2), [90] * ROWS)
    same = {"observation.state": [[1.0, 2, 3]] * ROWS, "action": [[0.5, 0]] * ROWS}
    change(root, 3, lambda rows: rows.update(same))
    hour = np.where(np.arange(ROWS) < 9, 0, 3600) + np.arange(ROWS) / 20
    change(root, 4, lambda rows: rows.update({"timestamp": hour.astype(np.float32)}))
    change(root, 5, put("action", 3, [float("nan"), 0.0]))
    return root


def checks_of(out: Path) -> dict[int, dict[str, str]]:
    rows = pq.read_table(out / "episodes/manifest.parquet").to_pylist()
    return {int(r["source_uri"].rpartition("#")[2]): json.loads(r["checks"]) for r in rows}


def test_warnings_are_in_the_manifest_and_what_blocks_goes_aside(tmp_path: Path) -> None:
    report = ingest(tmp_path, faulty(tmp_path / "d"))
    said = checks_of(tmp_path)
    assert {k: set(v) for k, v in said.items()} == {
        0: set(),
        1: {"black_camera", "frozen_camera"},
        2: {"frozen_camera"},
        3: {"constant_state", "constant_action"},
    }
    assert "observation.images.front: 100%" in said[1]["black_camera"]
    assert {k: v for k, (v, _) in rejected(tmp_path).items()} == {
        4: "clock_jump",
        5: "nan_in_signals",
    }
    assert report.flagged == {
        "black_camera": 1, "constant_action": 1, "constant_state": 1, "frozen_camera": 2,
    }  # fmt: skip
    pages = list((tmp_path / "report/ingestion/data_docs/validations").rglob("*.html"))
    assert len(pages) == 1 and "black_share" in pages[0].read_text()
    assert not re.findall(r"(?:src|href)=.?https?:", pages[0].read_text()), "fetches nothing"
    assert "black_share" in pages[0].read_text().split("</head>")[1]
    front = (tmp_path / "report/ingestion/index.html").read_text()
    assert "https://" not in front and "clock_jump" in front
    link = front.split('href="')[1].split('"')[0]
    assert (tmp_path / "report/ingestion" / link) == pages[0]


def test_robots_of_look_alike_names_have_pages_of_their_own(tmp_path: Path) -> None:
    names = ["ロボット", "arm a", "arm/a", "arm-a"]
    roots = [dataset_v21(tmp_path / str(n), 1, robot=name) for n, name in enumerate(names)]
    ingest(tmp_path, *roots)
    report = tmp_path / "report/ingestion"
    links = set(re.findall(r'href="([^"]+)"', (report / "index.html").read_text()))
    assert len(links) == len(names) and all((report / link).is_file() for link in links)


def test_a_suite_of_the_project_makes_a_warning_blocking(tmp_path: Path) -> None:
    mine = {"test": {"frozen_camera": Change(severity="blocking")}}
    ingest(tmp_path, faulty(tmp_path / "d"), config=CONFIG.model_copy(update={"checks": mine}))
    found = {k: v for k, (v, _) in rejected(tmp_path).items()}
    assert found == {
        1: "frozen_camera", 2: "frozen_camera", 4: "clock_jump", 5: "nan_in_signals"
    }  # fmt: skip


def test_scoring_keeps_aside_only_what_cannot_be_read(tmp_path: Path) -> None:
    root = faulty(tmp_path / "d")
    video_file(root, 0).write_bytes(b"no video")
    config = CONFIG.model_copy(update={"score_only": True})
    report = ingest(tmp_path, root, config=config)
    assert {k: v for k, (v, _) in rejected(tmp_path).items()} == {0: "unreadable_video"}
    assert report.flagged["nan_in_signals"] == 1 and report.flagged["clock_jump"] == 1
    scores = json.loads((tmp_path / "report/ingestion/scores.json").read_text())["tester"]
    assert scores["episodes"] == 6
    assert scores["checks"]["nan_in_signals"]["rejects"] == 1
    assert scores["checks"]["black_camera"]["share"] == pytest.approx(1 / 6, abs=1e-4)
    assert scores["facts"]["gap_s"]["q100"] > 3000 > scores["facts"]["gap_s"]["q50"]
    assert scores["facts"]["n_frames"]["measured"] == 6


def test_what_does_not_move_passes_with_a_warning(tmp_path: Path) -> None:
    report = ingest(tmp_path, shared("so101-still"))
    assert (report.episodes, report.quarantined) == (6, 0)
    assert report.flagged["constant_state"] == report.flagged["constant_action"] == 6


# -- pictures between key pictures ----------------------------------------------------------------


def packets(path: Path) -> list[tuple[bool, int, int]]:
    import av

    with av.open(str(path)) as container:
        return [(p.is_keyframe, p.pos, p.size) for p in container.demux(video=0) if p.size]


@pytest.mark.parametrize("filler", [b"\x00", b"\xff", b"\x5a"])
def test_an_overwritten_picture_between_key_pictures_is_found(
    tmp_path: Path, filler: bytes
) -> None:
    root = dataset_v21(tmp_path / "d", 2)
    path = video_file(root, 1)
    _, place, size = [p for p in packets(path) if not p[0]][3]
    data = bytearray(path.read_bytes())
    data[place : place + size] = filler * size
    path.write_bytes(bytes(data))
    ingest(tmp_path, root)
    assert {k: v for k, (v, _) in rejected(tmp_path).items()} == {1: "unreadable_video"}


def test_packets_of_unknown_codecs_are_not_judged() -> None:
    assert bitstream.is_whole(b"anything", "vp9", b"")
    assert not bitstream.is_whole(b"anything", "av1", b"")
    assert bitstream.is_whole(bytes([0x12, 0x00, 0x32, 0x01, 0x99]), "av1", b"")
    assert not bitstream.is_whole(bytes([0x12, 0x00, 0x32, 0x02, 0x99]), "av1", b"")
