"""What people correct: the file and its mistakes, laws, other parameters, agreement."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components import corrections, outputs, params, records
from components.captioning import stage as captioning
from components.corrections import CaptionCorrection, EventCorrection
from components.errors import UserError
from components.segmentation import stage as segmentation
from components.segmentation.agreement import agreement
from components.segmentation.corrected import Overlay, Row
from tests import made_episodes as made

VALUES = params.load(Path(__file__).parents[1] / "params.yaml")
CUT = params.section(VALUES, "segmentation", segmentation.Config)
TELL = params.section(VALUES, "captioning", captioning.Config)
KINDS = ("motion", "grasp", "release", "idle")
CLOCK = itertools.count()
EPISODE = "e" * 20


def said(did: str, times_s: list[float], kinds: list[str], **other: Any) -> EventCorrection:
    """A correction a second later than the last one."""
    moment = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=next(CLOCK))
    about = {"author": "Ada", "time": moment.isoformat(), "episode_id": EPISODE}
    row = {**about, "did": did, "times_s": times_s, "kinds": kinds, **other}
    return EventCorrection.model_validate_json(json.dumps(row))


def renamed(start_s: float, end_s: float, text: str, **other: Any) -> CaptionCorrection:
    about = {"author": "Bo", "time": "2026-01-02T00:00:00Z", "episode_id": EPISODE}
    row = {**about, "did": "rename", "start_s": start_s, "end_s": end_s, "level": "action"}
    return CaptionCorrection.model_validate_json(json.dumps({**row, "text": text, **other}))


def rows_of(starts: list[int], times_s: Any, kinds: list[str] | None = None) -> list[Row]:
    """A machine's cut of T control steps."""
    rows: list[Row] = []
    for i, (a, b) in enumerate(zip(starts, [*starts[1:], len(times_s)], strict=True)):
        start_s, end_s = float(times_s[a]), float(times_s[min(b, len(times_s) - 1)])
        rows.append(
            {
                "event_id": records.event_id(EPISODE, start_s, end_s),
                "episode_id": EPISODE,
                "start_s": start_s,
                "end_s": end_s,
                "start_frame": a,
                "end_frame": b,
                "kind": kinds[i] if kinds else KINDS[i % 4],
                "score": 0.5 if i else 0.0,
                "evidence": json.dumps({"rest": 0.5} if i else {}),
            }
        )
    return rows


# --- the file ------------------------------------------------------------------------------------


def test_the_projects_own_lists_exist_and_are_empty() -> None:
    root = Path(__file__).parents[1]
    assert corrections.read(root / corrections.EVENTS, EventCorrection) == {}
    assert corrections.read(root / corrections.CAPTIONS, CaptionCorrection) == {}


def test_order_and_doubled_lines_of_the_file_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    some = [said("merge", [i, i + 2.0], ["motion"], author=a) for i in range(3) for a in "ba"]
    path.write_text(corrections.lines(some))
    first = corrections.read(path, EventCorrection)
    path.write_text("\n" + corrections.lines([*some[::-1], *some]) + "\n")
    assert corrections.read(path, EventCorrection) == first
    moment = "2026-01-01T00:00:00Z"
    tie = [said("kind", [0, 1], ["idle"], author=a, time=moment) for a in "ba"]
    path.write_text(corrections.lines(tie))
    assert [c.author for c in corrections.read(path, EventCorrection)[EPISODE]] == ["a", "b"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"times_s": [2, 1]}, "expected increasing seconds; got [2.0, 1.0]"),
    ({"times_s": [1]}, "times_s: Tuple should have at least 2 items"),
    ({"times_s": [-1, 1]}, "times_s.0: Input should be greater than or equal to 0 (got '-1')"),
    ({"times_s": [0, 1, 2]}, "kinds: expected 2, one for each span of times_s"),
    ({"kinds": ["jump"]}, "kinds.0: Input should be 'motion', 'grasp', 'release' or 'idle'"),
    ({"author": " "}, "author: String should have at least 1 character"),
    ({"author": "a\nb"}, "author: String should match pattern"),
    ({"time": "2026-01-02T00:00:00"}, "time: Input should have timezone info"),
    ({"did": "guess"}, "did: Input should be 'move', 'split'"),
    ({"did": "revert"}, "kinds: expected 0"),
    ({"note": "hm"}, "note: Extra inputs are not permitted (got 'hm')"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_line_is_named_with_what_was_got(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "events.jsonl"
    good = said("merge", [0, 1], ["motion"])
    bad = json.dumps(json.loads(good.model_dump_json()) | change)
    path.write_text(corrections.lines([good]) + bad + "\n")
    with pytest.raises(UserError) as caught:
        corrections.read(path, EventCorrection)
    assert f"{path}:2: " in str(caught.value) and message in str(caught.value)


def test_what_is_no_list_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with pytest.raises(UserError, match="no such file"):
        corrections.read(path, EventCorrection)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="expected UTF-8"):
        corrections.read(path, EventCorrection)
    path.write_text("{half\n" + "\n".join(f"[{i}]" for i in range(40)))
    with pytest.raises(UserError, match=r"41 wrong value\(s\)(.|\n)*Invalid JSON(.|\n)*31 more"):
        corrections.read(path, EventCorrection)
    for change in ({"text": ""}, {"end_s": 0}, {"text": "two\nlines"}, {"level": "poem"}):
        line = json.loads(renamed(0, 1, "words").model_dump_json()) | change
        path.write_text(json.dumps(line))
        with pytest.raises(UserError, match=f":1: .*{next(iter(change))}"):
            corrections.read(path, CaptionCorrection)


def test_other_words_leave_the_boundaries_as_they_are() -> None:
    """In the graph, boundaries depend on the one list and words on the other."""
    graph = yaml.safe_load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
    reads = {name: {d for d in s["deps"] if "corrections/" in d} for name, s in graph.items()}
    assert {name: places for name, places in reads.items() if places} == {
        "segmentation": {str(corrections.EVENTS)},
        "captioning": {str(corrections.CAPTIONS)},
    }


# --- laws ----------------------------------------------------------------------------------------


@st.composite
def any_cut(draw: st.DrawFn) -> tuple[Any, list[Row], list[EventCorrection]]:
    """Irregular times (T,), a machine's cut of them, and corrections of any spans."""
    steps = draw(st.integers(2, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    times_s = np.concatenate([[0.0], np.cumsum(rng.uniform(0.01, 0.2, steps - 1))])
    inner = draw(st.sets(st.integers(1, max(steps - 2, 1)), max_size=8))
    some = []
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.sets(st.integers(0, 1000), min_size=2, max_size=5))
        spans = [a / 1000 * float(times_s[-1]) for a in sorted(at)]
        did = draw(st.sampled_from(["move", "split", "accept", "kind", "revert"]))
        kinds = [draw(st.sampled_from(KINDS)) for _ in spans[1:]]
        if did == "revert":
            spans, kinds = [spans[0], spans[-1]], []
        some.append(said(did, spans, kinds))
    return times_s, rows_of(sorted({0, *inner}), times_s), some


@settings(max_examples=150, deadline=None)
@given(any_cut(), st.sampled_from([0.05, 0.3, 2.0]))
def test_people_win_where_they_spoke_and_the_cover_has_no_gap(
    given_: tuple[Any, list[Row], list[EventCorrection]], min_s: float
) -> None:
    times_s, machine, some = given_
    overlay = Overlay(times_s, some)
    rows = overlay.applied(machine, min_s)
    assert rows[0]["start_frame"] == 0 and rows[-1]["end_frame"] == len(times_s)
    for row, following in itertools.pairwise(rows):
        assert row["end_frame"] == following["start_frame"]
        assert row["end_s"] == following["start_s"]
    for row in rows:
        assert row["start_frame"] < row["end_frame"]
        assert row["event_id"] == records.event_id(EPISODE, row["start_s"], row["end_s"])
    assert overlay.applied(rows, min_s) == rows, "twice is once"
    if some and some[-1].did != "revert":  # the last word stands to the letter
        last = some[-1]
        steps = [int(np.abs(times_s - at).argmin()) for at in last.times_s]
        steps = [len(times_s) if s >= len(times_s) - 1 else s for s in steps]
        wanted = {
            (a, b): kind
            for (a, b), kind in zip(itertools.pairwise(steps), last.kinds, strict=True)
            if a < b
        }
        found = {(r["start_frame"], r["end_frame"]): r for r in rows}
        assert wanted.keys() <= found.keys()
        for span, kind in wanted.items():
            person = json.loads(found[span]["evidence"])["person"]
            assert found[span]["kind"] == kind
            assert person["author"] == "Ada" and person["did"] == last.did
    starts = {row["start_frame"] for row in rows}
    own = {row["start_frame"] for row in machine}
    assert starts <= own | set(overlay.edges.tolist()), "nobody else's boundaries"
    for step in own - starts:  # the machine yields to people only
        inside = any(a < step < b for a, b in overlay.pieces)
        near = [abs(times_s[step] - times_s[e]) < min_s for e in overlay.edges]
        assert inside or any(near)


@settings(max_examples=50, deadline=None)
@given(any_cut())
def test_reverting_everything_gives_the_machine_back(
    given_: tuple[Any, list[Row], list[EventCorrection]],
) -> None:
    times_s, machine, some = given_
    some.append(said("revert", [0.0, float(times_s[-1])], []))
    assert Overlay(times_s, some).applied(machine, 0.1) is machine
    assert agreement(Overlay(times_s, some), machine).f1 is None


def test_a_correction_beyond_the_episode_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected times up to the episode's end \(1\.000 s\)"):
        Overlay(np.linspace(0, 1, 11), [said("merge", [0.5, 9.0], ["motion"])])


# --- agreement -----------------------------------------------------------------------------------

TIMES = np.arange(101) / 10  # 10 s
MACHINE = rows_of([0, 20, 40, 60, 80], TIMES)  # motion, grasp, release, idle, motion


@pytest.mark.parametrize(
    ("some", "f1", "kinds"),
    [
        ([], None, None),
        ([said("accept", [2.0, 4.0], ["grasp"])], 1.0, 1.0),
        ([said("accept", [2.0, 4.0], ["grasp"]), said("revert", [2.0, 4.0], [])], None, None),
        ([said("accept", [0.0, 2.0], ["motion"])], 1.0, 1.0),  # an episode's end is no boundary
        ([said("move", [0.0, 2.1, 4.0], ["motion", "grasp"])], 1.0, None),  # within the tolerance
        ([said("move", [0.0, 3.0, 4.0], ["motion", "grasp"])], 0.0, None),
        ([said("split", [2.0, 3.0, 4.0], ["grasp", "motion"])], 0.0, None),
        ([said("merge", [2.0, 6.0], ["grasp"])], 0.0, None),
        ([said("kind", [2.0, 4.0], ["motion"])], None, 0.0),
        ([said("merge", [2.0, 6.0], ["grasp"]), said("accept", [6.0, 8.0], ["idle"])], 0.8, 1.0),
    ],
)
def test_agreement_counts_what_people_judged(
    some: list[EventCorrection], f1: float | None, kinds: float | None
) -> None:
    found = agreement(Overlay(TIMES, some), MACHINE)
    assert (found.f1, found.kind_share) == (f1, kinds)


# --- the stages ----------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two episodes, cut by the machine at 1, 2, 3 and 4 s of 4.5 s."""
    taken = [dataclasses.replace(made.pick_and_place(), episode_id=i) for i in (EPISODE, "f" * 20)]
    made.folder(tmp_path / "episodes", taken)
    return tmp_path


def cut(place: Path, some: list[EventCorrection], name: str = "events", **values: float) -> Any:
    """Segmentation with these corrections: its report and the first episode's rows."""
    path = place / "said-events.jsonl"
    path.write_text(corrections.lines(some))
    config = segmentation.Config(**CUT.model_dump() | values)
    report = segmentation.run(place / "episodes", path, place / name, config=config)
    rows = records.read(place / name / "events.parquet", records.EVENTS).to_pylist()
    return report, [row for row in rows if row["episode_id"] == EPISODE]


def test_corrections_survive_other_parameters(tiny: Path) -> None:
    some = [
        said("split", [2.0, 2.6, 3.0], ["motion", "release"]),
        said("move", [3.0, 3.7, 4.5], ["motion", "release"]),
    ]
    _, machine = cut(tiny, [])
    assert [row["start_s"] for row in machine] == pytest.approx([0, 1, 2, 3, 4], abs=0.05)
    for index, values in enumerate(
        ({}, {"cut_price": 0.9}, {"min_event_s": 1.0}, {"min_event_s": 0.3})
    ):
        report, rows = cut(tiny, some, f"{index}", **values)
        inside = {row["start_s"]: row for row in rows if row["start_s"] >= 2.0}
        assert list(inside) == pytest.approx([2.0, 2.6, 3.0, 3.7], abs=0.007), values
        kinds = ["motion", "release", "motion", "release"]
        assert [row["kind"] for row in inside.values()] == kinds
        for row, one in zip(inside.values(), (0, 0, 1, 1), strict=True):
            person = json.loads(row["evidence"])["person"]
            stamp = some[one].time.isoformat().replace("+00:00", "Z")
            assert person == {"author": "Ada", "time": stamp, "did": some[one].did, "of": "event"}
        assert report.people.corrections == 2 and report.people.corrected_episodes == 1
    assert len(rows) > 4, "outside, the machine's boundaries hold"


def test_equal_corrections_give_equal_bytes_and_strangers_are_counted(tiny: Path) -> None:
    _, machine = cut(tiny, [])
    first, second = (row["start_s"] for row in machine[2:4])
    some = [said("merge", [0.0, first], ["grasp"]), said("accept", [first, second], ["motion"])]
    stranger = said("merge", [0.0, first], ["grasp"], episode_id="vanished")
    report, rows = cut(tiny, [*some, stranger], "a")
    cut(tiny, [stranger, *some[::-1]], "b")
    assert outputs.sha256(tiny / "a/events.parquet") == outputs.sha256(tiny / "b/events.parquet")
    assert report.people.corrections_of_other_episodes == 1
    assert report.people.boundary_f1 == 0.8 and report.people.same_kinds == 1.0  # 2 pairs, 2 and 3
    assert report.boundaries_by_signal["person"] == 2
    assert [row["kind"] for row in rows] == ["grasp", "motion", "motion", "release"]


def test_a_correction_of_an_episode_cut_before_gives_the_bytes_of_a_run_afresh(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, machine = cut(tiny, [])
    some = [said("merge", [0.0, machine[2]["start_s"]], ["grasp"])]
    grown, _ = cut(tiny, some, "grown")
    monkeypatch.setenv("WAMFLOW_STORE", str(tiny / "empty"))
    afresh, _ = cut(tiny, some, "afresh")
    assert outputs.sha256_folder(tiny / "grown") == outputs.sha256_folder(tiny / "afresh")
    assert grown == afresh and grown.events == 2 * len(machine) - 1


def test_words_of_people_stand_with_author_and_time(tiny: Path) -> None:
    _, events = cut(tiny, [])
    spans = [(row["start_s"], row["end_s"]) for row in events]
    shifted = (spans[1][0] + 0.1, spans[1][1] + 0.1)
    path = tiny / "said-captions.jsonl"

    def tell(some: list[CaptionCorrection]) -> tuple[captioning.Report, dict[str, Row]]:
        path.write_text(corrections.lines(some))
        paths = (tiny / "episodes", tiny / "events", path, tiny / "captions")
        report = captioning.run(*paths, config=TELL)
        rows = records.read(tiny / "captions/captions.parquet", records.CAPTIONS).to_pylist()
        return report, {r["event_id"]: r for r in rows if r["level"] == "action"}

    report, machine = tell([])
    assert report.people.same_texts is None and report.people.captions == 0
    assert {row["captioner"] for row in machine.values()} == {"kinematics"}
    usual = machine[events[2]["event_id"]]["text"]
    report, rows = tell(
        [
            renamed(*shifted, "grab the cup", time="2026-01-02T00:00:01Z"),
            renamed(*spans[1], "an older word"),
            renamed(*spans[2], usual, did="accept", author="Cy"),
            renamed(*spans[3], "void"),
            renamed(*spans[3], "", did="revert", time="2026-01-02T00:00:01Z"),
            renamed(spans[0][0], spans[3][1], "of no one event"),
            renamed(0, 1, "elsewhere", episode_id="vanished"),
        ]
    )
    row = rows[events[1]["event_id"]]
    assert row["text"] == "grab the cup" and row["captioner"] == "person"
    assert (row["author"], row["time"]) == ("Bo", "2026-01-02T00:00:01Z")
    assert row["machine_text"] == machine[row["event_id"]]["text"]
    assert json.loads(row["checks"])["contradiction"] == "ok"
    assert rows[events[2]["event_id"]]["author"] == "Cy"
    assert [r["text"] for r in rows.values() if r["captioner"] == "kinematics"] == [
        machine[i]["text"] for i, r in rows.items() if r["captioner"] == "kinematics"
    ]
    people = report.people
    assert (people.corrections, people.captions, people.unplaced) == (7, 2, 1)
    assert (people.corrections_of_other_episodes, people.same_texts) == (1, 0.5)


def test_ten_thousand_corrections_apply_within_a_second(tmp_path: Path) -> None:
    times_s = np.arange(40_000) / 80
    machine = rows_of(list(range(0, 40_000, 40)), times_s)
    rng = np.random.default_rng(0)
    some = [
        said("split", [at, at + 0.3, at + 0.9], ["motion", "grasp"])
        for at in rng.uniform(0, 498, 10_000)
    ]
    path = tmp_path / "events.jsonl"
    path.write_text(corrections.lines(some))
    began = time.process_time()
    read = corrections.read(path, EventCorrection)
    rows = Overlay(times_s, read[EPISODE]).applied(machine, 0.15)
    assert time.process_time() - began < 1.0
    assert rows[-1]["end_frame"] == 40_000
