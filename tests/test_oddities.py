"""Faults seen in published recordings: read in spite of them, and named by `wamflow inspect`."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ingestion.inspect import inspect
from tests.bad_inputs import v3
from tests.test_ingestion import (
    CAMERA,
    FPS,
    ROWS,
    change,
    dataset_v21,
    encode,
    ingest,
    video_file,
)

EPISODES = 3


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def edit_info(root: Path, change_it: Callable[[dict[str, Any]], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change_it(info)
    path.write_text(json.dumps(info))


def camera(info: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = info["features"][CAMERA]
    return found


def every(change_it: Callable[[dict[str, Any], int], object]) -> Callable[[Path], object]:
    """Change the rows of every episode."""
    return lambda root: [
        change(root, e, lambda rows, e=e: change_it(rows, e)) for e in range(EPISODES)
    ]


def renamed(rows: dict[str, Any], _: int) -> None:
    rows["state"], rows["actions"] = rows.pop("observation.state"), rows.pop("action")


def slower(rows: dict[str, Any], _: int) -> None:
    rows["timestamp"] = (0.055 * np.arange(ROWS)).astype(np.float32)


def uncounted(rows: dict[str, Any], _: int) -> None:
    for name in ("index", "frame_index"):
        rows.pop(name)


def twice(root: Path) -> None:
    path = root / "meta/episodes.jsonl"
    path.write_text(path.read_text() + "\n" + path.read_text())


def empty_file(root: Path) -> None:
    change(root, 2, lambda rows: rows.update({name: values[:0] for name, values in rows.items()}))


V2: dict[str, tuple[Callable[[Path], object], str]] = {
    "video/ for videos/": (
        lambda r: (
            (r / "videos").rename(r / "video"),
            edit_info(r, lambda i: i.update(video_path="videos/{video_key}/x.mp4")),
        ),
        "videos lie in video/, info.json says videos/",
    ),
    "another codec": (
        lambda r: edit_info(r, lambda i: camera(i).update(info={"video.codec": "av1"})),
        f"camera {CAMERA}: codec av1 is declared, it is h264",
    ),
    "another size": (
        lambda r: edit_info(r, lambda i: camera(i).update(shape=[480, 640, 3])),
        f"camera {CAMERA}: shape 480x640x3 is declared, it is 32x48",
    ),
    "metadata twice": (twice, "meta/episodes.jsonl lists 3 episodes twice"),
    "totals of more": (
        lambda r: edit_info(r, lambda i: i.update(total_episodes=900, total_frames=10**6)),
        "info.json claims 900 episodes, 3 are here",
    ),
    "frames of more": (
        lambda r: edit_info(r, lambda i: i.update(total_frames=10**6)),
        "info.json claims 1000000 frames, the episodes listed have 72",
    ),
    "a black camera": (
        lambda r: [encode(video_file(r, e), [0] * ROWS) for e in range(EPISODES)],
        "camera front is black in 3 episodes",
    ),
    "real step 0.055 s": (every(slower), "the real rate is 18.18 Hz, nominal are 20"),
    "no index": (every(uncounted), "no column index, frame_index; counted anew"),
    "state and actions": (every(renamed), "no column observation.state: taken from state"),
    "nested names": (
        lambda r: edit_info(
            r, lambda i: i["features"]["action"].update(names=[["lift"], ["gripper"]])
        ),
        "names of action are nested lists",
    ),
    "an episode without video": (
        lambda r: video_file(r, 1).unlink(),
        "1 of 3 episodes have no video of a camera",
    ),
    "different widths": (lambda r: None, "state and action differ in width: state 3, action 2"),
    "other variables": (
        lambda r: edit_info(r, lambda i: i.update(data_path="data/{chunk}/{episode_id}.parquet")),
        "path templates with other variables: chunk, episode_id",
    ),
    "a template that leads nowhere": (
        lambda r: edit_info(
            r,
            lambda i: i.update(data_path="data/chunk-{episode_index:03d}/{episode_index}.parquet"),
        ),
        "leads to no file for 3 of 3 episodes",
    ),
    "a valid but empty file": (empty_file, "1 of 3 episodes empty_episode"),
    "a pickle": (
        lambda r: (r / "meta/stats.pkl").write_bytes(pickle.dumps({"a": 1})),
        "a pickle is never loaded: meta/stats.pkl",
    ),
    "a declared camera of pictures": (
        lambda r: edit_info(r, lambda i: i["features"].update(image={"dtype": "image"})),
        "camera image: pictures in the rows, no video; not read",
    ),
    "a picture less": (
        lambda r: encode(video_file(r, 0), [9] * (ROWS - 1)),
        "1 of 3 episodes have 1 to 1 pictures more or fewer than rows",
    ),
}


@pytest.mark.parametrize("name", V2)
def test_a_fault_of_published_recordings_is_named(name: str, tmp_path: Path) -> None:
    damage, words = V2[name]
    root = dataset_v21(tmp_path / "d", EPISODES)
    sound = inspect(str(root), 10).warnings
    damage(root)
    found = inspect(str(root), 10)
    assert any(words in line for line in found.warnings), found.warnings
    if name != "different widths":
        assert not any(words in line for line in sound)
    assert found.episodes == EPISODES


def test_metadata_of_two_versions_side_by_side(tmp_path: Path) -> None:
    v3(lambda _: None)(tmp_path / "d")
    dataset_v21(tmp_path / "old", 2)
    shutil.copy(tmp_path / "old/meta/episodes.jsonl", tmp_path / "d/meta")
    edit_info(tmp_path / "d", lambda info: info.update(codebase_version="v2.1"))
    found = inspect(str(tmp_path / "d"), 10)
    assert found.episodes == 2 and not found.kept_aside
    assert any("metadata of v2 (meta/episodes.jsonl) and of v3" in w for w in found.warnings)
    assert any("codebase_version v2.1, the files are laid out as v3" in w for w in found.warnings)


def test_spans_that_are_one_frame_short_lose_no_picture(tmp_path: Path) -> None:
    """Two episodes in one video; every to_timestamp is a frame early."""
    films = dataset_v21(tmp_path / "films", 2)
    ingest(tmp_path / "one", films)
    root = tmp_path / "one/episodes/tester"
    path = next((root / "meta/episodes").rglob("*.parquet"))
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row[f"videos/{CAMERA}/to_timestamp"] -= 1 / FPS
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = inspect(str(root), 10)
    said = "to_timestamp is one frame short in 2 of 2 episodes"
    assert any(said in line for line in found.warnings), found.warnings
    assert not any("more or fewer than rows" in line for line in found.warnings)
