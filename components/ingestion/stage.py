"""ingestion: recordings as people publish them in, valid LeRobot v3.0 episodes out, rejects aside.

Read order: here, then `formats.py` and one of the readers it names, `measure.py`, `checks.py` and
`suites/` (what passes), `groups.py` and `writing.py` (what is written). New recordings are read
twice: to judge, to write; what earlier runs found out comes from the shard store (`memory.py`).
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, model_validator

from components import records, report
from components.errors import DataError
from components.ingestion import said, source, suites
from components.ingestion.reasons import Problem, Reason
from components.ingestion.suites import Change
from components.outputs import whole_folder
from components.shards import Shards

if TYPE_CHECKING:
    from components.ingestion.measure import Effort, Facts
    from components.ingestion.memory import Memory
    from components.ingestion.raw import Reader

LAG_PICTURES = 34  # fewer in a row say nothing of a lag: SHORTEST + SPAN of lag.py


class Config(BaseModel, frozen=True, extra="forbid"):
    """Values of the section `ingestion`."""

    sources: list[str] = Field(
        min_length=1,
        description="Folders or s3://bucket/prefix addresses of recordings; relative folders start "
        "at the main checkout.",
    )
    min_frames: int = Field(ge=2, description="Shorter episodes are kept aside, control steps.")
    max_video_frames_off: int = Field(
        ge=0,
        description="Pictures that a video may have more or fewer than the episode has rows; "
        "picture k belongs to row k.",
    )
    min_camera_share: float = Field(
        ge=0,
        le=1,
        description="A camera that a smaller share of a source's episodes has is dropped; "
        "otherwise the episodes without it are kept aside.",
    )
    mappings: dict[str, said.Said] = Field(
        description="Source (its address, or the last part of it) -> what is wrongly inferred: "
        "robot, fps, state, action, state_names, action_names, gripper, cameras, calibration, "
        "units, limits or task. `wamflow inspect` shows the names."
    )
    sampled_pictures: int = Field(
        ge=0,
        description="Pictures of each video that are decoded to judge it; 0 decodes none.",
    )
    lag_pictures: int = Field(
        ge=0,
        description="Pictures in a row of each video that are decoded to tell how late the camera "
        "is; 0 decodes none.",
    )
    correct_lag: bool = Field(
        description="Move rows against pictures by the whole steps that a camera is surely late; "
        f"rows and pictures without a partner at the ends go. Needs {LAG_PICTURES} lag_pictures.",
    )
    checks: dict[str, dict[str, Change]] = Field(
        description="Changes of the checks in components/ingestion/suites: `default` or the start "
        "of a robot's name -> check -> {min, max, severity: blocking, warning or off}."
    )
    score_only: bool = Field(
        description="Keep aside only what cannot be read at all, to calibrate the checks: "
        "report/ingestion/scores.json says how many episodes each would reject."
    )
    data_file_mb: int = Field(ge=1, le=2048, description="A file of signals is closed at, MB.")
    video_file_mb: int = Field(ge=1, le=8192, description="A video file is closed at, MB.")

    @model_validator(mode="after")
    def _looks_for_the_lag(self) -> Config:
        if self.correct_lag and self.lag_pictures < LAG_PICTURES:
            raise ValueError(
                f"correct_lag needs lag_pictures of {LAG_PICTURES} or more, got {self.lag_pictures}"
            )
        return self


class Report(BaseModel):
    """What came in and what was kept aside."""

    episodes: int
    frames: int
    duration_s: float
    duplicates: int
    quarantined: int
    reasons: dict[str, int]
    flagged: dict[str, int]  # check -> episodes that pass with its warning
    lag_corrected: int  # episodes whose rows were moved against their pictures
    video_lag_s: dict[str, float]  # source -> how late its pictures are, median where it is clear
    action_lag_s: dict[str, float]  # source -> how late its states follow the actions
    embodiments: dict[str, int]
    sources: dict[str, int]
    warnings: list[str]


def run(sources: Path, episodes: Path, quarantine: Path, *, config: Config) -> Report:
    """Write `episodes` and `quarantine` from the listed `sources`.

    UserError or DataError when the listing is wrong, a source is missing, changed, empty or of no
    known format, or when no episode passes. A bad episode is a row of quarantine.parquet.
    """
    listed = [_with(item, config) for item in source.load(sources)]
    looked = {"sampled": config.sampled_pictures, "in_a_row": config.lag_pictures}
    shards = Shards("ingestion", {**looked, **_libraries()})
    with shards.scratch() as scratch:
        return _run(listed, episodes, quarantine, config, shards, scratch)


def _with(item: source.Source, config: Config) -> source.Source:
    """The source with what params.yaml says of it."""
    item.said = said.of(config.mappings, item.name, item.uri)
    return item


def _libraries() -> dict[str, str]:
    """Whose other version may read, decode or encode otherwise."""
    return {name: importlib.metadata.version(name) for name in ("av", "pillow", "numpy")}


def _run(
    listed: list[source.Source],
    episodes: Path,
    quarantine: Path,
    config: Config,
    shards: Shards,
    scratch: Path,
) -> Report:
    from components.ingestion import aligned, formats  # it imports what reads and decodes
    from components.ingestion.measure import Effort
    from components.ingestion.memory import Memory

    for item in listed:
        item.fetch()
    memory = Memory(shards, scratch, listed)
    for item in listed:
        item.remember(memory)
    readers = [formats.open_source(item, config.min_camera_share) for item in listed]
    chosen = _suites(readers, config)
    effort = Effort(config.sampled_pictures, config.lag_pictures)
    found = _measured(listed, readers, memory, effort)
    if config.correct_lag:
        readers = list(aligned.corrected(readers, found))
        found = _measured(listed, readers, memory, effort)
    facts = [item for source in found for item in source]
    from components.ingestion import calibrated, checks, groups, writing  # takes seconds: last

    verdicts = checks.validate(
        facts, chosen, report.folder("ingestion"), score_only=config.score_only
    )
    judged = list(zip(facts, verdicts, strict=True))
    rejected = [(item, v.problem) for item, v in judged if v.problem is not None]
    passed = [(item, v.warnings) for item, v in judged if v.problem is None]
    kept_aside = _aside(rejected) + _left_out(listed)
    reasons = dict(sorted(Counter(str(row["reason"]) for row in kept_aside).items()))
    if not passed:
        raise DataError(
            f"ingestion: none of {len(facts)} episodes passed the checks; reasons: {reasons}; "
            f"first: {rejected[0][1].detail}. See {report.folder('ingestion')}."
        )
    accepted = writing.unique(passed)
    with whole_folder(episodes) as out, whole_folder(quarantine) as aside:
        rows = writing.write(
            out,
            accepted,
            readers,
            [item.name for item in listed],
            groups.Groups(shards, readers, scratch),
            groups.Limits(config.data_file_mb, config.video_file_mb),
        )
        records.write(aside / "quarantine.parquet", kept_aside, records.QUARANTINE, "source_uri")
    return Report(
        episodes=len(rows),
        frames=sum(row["n_frames"] for row in rows),
        duration_s=round(sum(row["duration_s"] for row in rows), 6),
        duplicates=len(passed) - len(accepted),
        quarantined=len(kept_aside),
        reasons=reasons,
        flagged=dict(sorted(Counter(name for _, said in passed for name in said).items())),
        lag_corrected=sum(bool(row["lag_corrected_steps"]) for row in rows),
        video_lag_s=_medians("video_lag_s", listed, [item for item, _ in passed]),
        action_lag_s=_medians("action_lag_s", listed, [item for item, _ in passed]),
        embodiments=dict(sorted(Counter(row["embodiment"] for row in rows).items())),
        sources=dict(sorted(Counter(row["source"] for row in rows).items())),
        warnings=calibrated.warnings(writing.folders(accepted, readers), readers)
        + _warnings(listed, readers, [item for item, _ in passed]),
    )


def _measured(
    listed: list[source.Source], readers: list[Reader], memory: Memory, effort: Effort
) -> list[list[Facts]]:
    """Facts of the episodes of each source; what was measured before is remembered."""
    return [
        memory.facts(number, reader, item.uri, effort=effort)
        for number, (item, reader) in enumerate(zip(listed, readers, strict=True))
    ]


def _suites(readers: list[Reader], config: Config) -> dict[str, list[suites.Check]]:
    """The checks of each robot; what is wrong with them is said before anything is measured."""
    from components.ingestion.measure import KNOWN

    values = config.model_dump()
    robots = {reader.layout.robot_type for reader in readers}
    return {robot: suites.suite(robot, config.checks, values, KNOWN) for robot in robots}


def _medians(name: str, listed: list[source.Source], facts: list[Facts]) -> dict[str, float]:
    """Of a fact, for each source that has it."""
    values = {
        item.name: [f.numbers[name] for f in facts if f.source == number and name in f.numbers]
        for number, item in enumerate(listed)
    }
    return {source: round(median(found), 4) for source, found in sorted(values.items()) if found}


def _aside(rejected: list[tuple[Facts, Problem]]) -> list[dict[str, object]]:
    return [
        {
            "source_uri": facts.uri,
            # metadata may claim any number; one that no table holds still stands in the address
            "episode_index": facts.index if abs(facts.index) < 2**63 else None,
            "reason": problem.reason.value,
            "detail": problem.detail,
        }
        for facts, problem in rejected
    ]


def _left_out(listed: list[source.Source]) -> list[dict[str, object]]:
    """Objects of no episode: their names alone are reason enough."""
    return [
        {
            "source_uri": f"{item.uri}/{left.path}",
            "episode_index": None,
            "reason": Reason.UNSAFE_NAME.value,
            "detail": left.detail,
        }
        for item in listed
        for left in item.aside
    ]


def _warnings(listed: list[source.Source], readers: list[Reader], passed: list[Facts]) -> list[str]:
    """One sentence for each oddity that was lived with."""
    from components.ingestion import leakage

    lines = leakage.find(passed, [item.name for item in listed])
    lines += [
        f"{item.name}: {warning}"
        for item, reader in zip(listed, readers, strict=True)
        for warning in reader.warnings
    ]
    for number, (item, reader) in enumerate(zip(listed, readers, strict=True)):
        drift_s = max((f.drift_s for f in passed if f.source == number), default=0.0)
        if drift_s * reader.layout.fps > 1.5:
            lines.append(
                f"{item.name}: rows and video disagree by up to {drift_s:.2f} s at an episode's "
                "end; picture k is shown at row k's time"
            )
    return lines
