"""ROS 2 bags that are split over several files are one recording, whatever they are stored in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from components import records
from components.ingestion import stage
from tests import test_readers as readers
from tests.test_ingestion import CONFIG, ingest, rejected

PARTS = 3


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def split(kind: str, folder: Path) -> Path:
    """The timeline in three files, as rosbag2 splits by duration, with its metadata.yaml."""
    messages = readers.timeline()
    size = -(-len(messages) // PARTS)
    names = [f"rec_{part}.{kind}" for part in range(PARTS)]
    for part, name in enumerate(names):
        some = messages[part * size : (part + 1) * size]
        if kind == "mcap":
            readers.mcap_cdr(folder / name, some)
        else:
            one = readers.bag(folder.with_name(f"{folder.name}-{part}"), some)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(next(one.glob("*.db3")), folder / name)
            shutil.rmtree(one)
    told(folder, names)
    return folder


def told(folder: Path, names: list[str], **custom: str) -> None:
    about = {"version": 9, "relative_file_paths": names, "custom_data": custom}
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": about}))


def took(tmp_path: Path, *folders: Path) -> stage.Report:
    return ingest(tmp_path, *folders, config=CONFIG.model_copy(update={"min_frames": 8}))


@pytest.mark.parametrize("kind", ["mcap", "db3"])
def test_a_split_bag_is_the_episode_that_its_whole_is(kind: str, tmp_path: Path) -> None:
    whole = readers.written(kind, tmp_path / "panda_whole")
    report = took(tmp_path, whole, split(kind, tmp_path / "panda_split/rec").parent)
    assert (report.episodes, report.duplicates, report.quarantined) == (1, 1, 0)
    manifest = records.read(tmp_path / "episodes/manifest.parquet", records.MANIFEST).to_pylist()
    assert manifest[0]["origins"][1].endswith("panda_split/rec")


@pytest.mark.parametrize("kind", ["mcap", "db3"])
def test_a_lost_or_damaged_part_is_named(kind: str, tmp_path: Path) -> None:
    lost = split(kind, tmp_path / "panda_lost/rec")
    (lost / f"rec_1.{kind}").unlink()
    hurt = split(kind, tmp_path / "panda_hurt/rec")
    (hurt / f"rec_2.{kind}").write_bytes((hurt / f"rec_2.{kind}").read_bytes()[:3000])
    took(tmp_path, readers.written(kind, tmp_path / "panda"), lost.parent, hurt.parent)
    reasons = sorted(rejected(tmp_path).values())
    found = records.read(tmp_path / "quarantine/quarantine.parquet", records.QUARANTINE)
    said = {row["reason"]: row["detail"] for row in found.to_pylist()}
    assert len(reasons) <= 2 and set(said) == {"missing_data", "unreadable_data"}
    assert f"rec/rec_1.{kind}" in said["missing_data"]
    assert f"rec_2.{kind}: " in said["unreadable_data"]


def test_names_that_lead_elsewhere_reach_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "panda"
    readers.mcap_cdr(folder / "a/one.mcap", readers.timeline())
    readers.mcap_cdr(folder / "b/two.mcap", readers.timeline(rows=readers.ROWS + 4))
    told(folder / "a", ["../b/two.mcap", "/etc/passwd", "one.mcap"])
    (folder / "b/metadata.yaml").write_text("&a [*a, !!python/object/apply:os.getcwd []]")
    report = took(tmp_path, folder)
    assert report.episodes == 1 and report.reasons == {"missing_data": 1}


def test_who_recorded_stands_in_the_manifest(tmp_path: Path) -> None:
    folder = split("db3", tmp_path / "panda/rec")
    names = [f"rec_{part}.db3" for part in range(PARTS)]
    told(folder, names, operator="Ada", robot_serial="1704")
    about = (folder / "metadata.yaml").read_text()
    (folder / "metadata.yaml").write_text(about.replace("'1704'", "1704"))  # as rosbag2 may
    took(tmp_path, folder.parent)
    (row,) = records.read(tmp_path / "episodes/manifest.parquet", records.MANIFEST).to_pylist()
    assert (row["operator"], row["robot_serial"]) == ("Ada", "1704")


def test_a_recording_that_is_told_to_have_failed_afterwards_is_kept_aside(tmp_path: Path) -> None:
    """With what an earlier run kept at hand."""
    folder = split("mcap", tmp_path / "panda/rec")
    names = [f"rec_{part}.mcap" for part in range(PARTS)]
    other = readers.written("mcap", tmp_path / "panda_b")
    assert took(tmp_path / "a", folder.parent, other).duplicates == 1
    told(folder, names)
    about = yaml.safe_load((folder / "metadata.yaml").read_text())
    about["rosbag2_bagfile_information"]["custom_data"] = {"success": False}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(about))
    report = took(tmp_path / "b", folder.parent, other)
    assert (report.duplicates, report.quarantined) == (0, 1)
