"""Bad inputs that the tests of the readers do not have: each ends with the right reason or refused.

`python -m tests.benchmarks.ingestion` takes all kinds through the whole stage.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.errors import WamflowError
from components.ingestion import checks, formats, source, suites
from components.ingestion.measure import KNOWN, Effort, Facts, measure
from components.ingestion.reasons import Reason
from flows import snapshot
from tests import bad_inputs
from tests.test_ingestion import BROKEN, dataset_v21, ingest

EFFORT = Effort(12, 0)
ELSEWHERE = {  # kinds that test_ingestion.py and test_readers.py take through the stage
    *(f"lerobot: {name}" for name in BROKEN),
    *(f"hdf5: {name}" for name in bad_inputs.readers.BAD_HDF5),
    *(f"rlds: {name}" for name in bad_inputs.RLDS),
    *(f"mcap: {name}" for name in bad_inputs.readers.BAD_MCAP),
    *(f"db3: {name}" for name in bad_inputs.DB3),
}


def test_there_are_many_kinds() -> None:
    reasons = Counter(reason for _, reason in bad_inputs.KINDS.values())
    assert len(bad_inputs.KINDS) >= 120
    assert sum(count for reason, count in reasons.items() if reason is not None) >= 100
    assert bad_inputs.KINDS.keys() >= ELSEWHERE


def facts_of(folder: Path, base: Path, number: int) -> list[Facts]:
    """As the stage has them; an error where the source is refused."""
    listing = snapshot.write([str(folder)], base, base / "sources.json", base)
    reader = formats.open_source(source.load(listing)[0], 0.5)
    layout = reader.layout
    return [measure(number, reader.read(i), layout, effort=EFFORT) for i in reader.indices]


def test_each_kind_of_bad_input_ends_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {k: v for k, v in bad_inputs.KINDS.items() if k not in ELSEWHERE}
    monkeypatch.setattr(bad_inputs, "KINDS", wanted)
    found: dict[str, set[Reason | None]] = {}
    every: list[Facts] = []
    for number, case in enumerate(bad_inputs.cases(tmp_path / "bad")):
        try:
            every += facts_of(case.folder, tmp_path, number)
            found[case.name] = set()
        except WamflowError as error:
            assert str(case.folder) in str(error)
            found[case.name] = {None}
        shutil.rmtree(case.folder, ignore_errors=True)
    values = {"min_frames": 8, "max_video_frames_off": 1}
    chosen = {f.robot: suites.suite(f.robot, {}, values, KNOWN) for f in every}
    verdicts = checks.validate(every, chosen, tmp_path / "report", score_only=False)
    names = list(wanted)
    for facts, verdict in zip(every, verdicts, strict=True):
        if verdict.problem is not None:
            assert verdict.problem.detail
            found[names[facts.source]].add(verdict.problem.reason)
    assert found == {name: {reason} for name, (_, reason) in wanted.items()}
    assert not (tmp_path / "a-pickle-was-loaded").exists()


def test_an_episode_of_absurd_number_is_a_row_of_the_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))
    name = "lerobot: index of 10^300"
    monkeypatch.setattr(bad_inputs, "KINDS", {name: bad_inputs.KINDS[name]})
    case = next(bad_inputs.cases(tmp_path / "bad"))
    dataset_v21(tmp_path / "good", 1)
    report = ingest(tmp_path / "out", case.folder, tmp_path / "good")
    assert report.reasons == {"missing_data": 1}
    rows = pq.read_table(tmp_path / "out" / "quarantine" / "quarantine.parquet").to_pylist()
    assert [row["episode_index"] for row in rows] == [None]
    assert rows[0]["source_uri"].endswith("#1" + "0" * 300)


def test_a_robot_named_like_a_path_stays_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))
    dataset_v21(tmp_path / "d", 1, robot="../../../tmp/evil\\..")
    report = ingest(tmp_path / "out", tmp_path / "d")
    assert report.embodiments == {"tmp-evil": 1}
    assert {p.name for p in tmp_path.iterdir()} == {"d", "out", "report"}
