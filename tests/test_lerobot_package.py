"""The real `lerobot` package opens what ingestion writes and reads from it what we read.

Runs where `WAMFLOW_LEROBOT_PYTHON` names an interpreter that has the package (`make lerobot`).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from components.episodes import Episode, Episodes
from tests.test_ingestion import CAMERA, CONFIG, dataset_v21, ingest, shared

PYTHON = os.environ.get("WAMFLOW_LEROBOT_PYTHON", "")
PEER = Path(__file__).with_name("lerobot_peer.py")
WINDOW = (-1, 0, 1)  # frames around a row; lerobot repeats the first and the last of an episode
GREY_LEVELS = 2.0  # mean difference of pictures: decoders round colours differently

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="WAMFLOW_LEROBOT_PYTHON names no interpreter with lerobot (make lerobot)"
)


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def by_lerobot(root: Path, rows: list[int] | None, backend: str | None) -> dict[str, Any]:
    """What the package says and, under `items`, what it reads: arrays by feature."""
    info = json.loads((root / "meta/info.json").read_text())
    target = root.parent / "read.npz"
    job = {
        "what": "read",
        "root": str(root),
        "cameras": [k for k, f in info["features"].items() if f["dtype"] == "video"],
        "offsets_s": [offset / info["fps"] for offset in WINDOW],
        "rows": rows,
        "backend": backend,
        "target": str(target),
    }
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(root.parent / "hf")}
    done = subprocess.run(
        [PYTHON, "-W", "ignore", str(PEER)], input=json.dumps(job), capture_output=True, text=True,
        env=os.environ | offline, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(target) as found:
        items = {key: found[key] for key in found.files}
    target.unlink()
    return {**json.loads(done.stdout.splitlines()[-1]), "items": items}


def in_order(out: Path) -> list[Episode]:
    """All episodes of the one robot in `out/episodes`, as its data set has them."""
    every = Episodes(out / "episodes")
    rows = sorted(every.manifest.to_pylist(), key=lambda row: int(row["episode_index"]))
    assert len({row["embodiment"] for row in rows}) == 1
    return [every[row["episode_id"]] for row in rows]


def borders(episodes: list[Episode]) -> list[int]:
    """The first two, two middle and last two rows of every episode, of all rows joined."""
    rows, first = [], 0
    for episode in episodes:
        middle = len(episode) // 2
        last = len(episode) - 1
        rows += [first + row for row in (0, 1, middle, middle + 1, last - 1, last)]
        first += len(episode)
    return rows


def same_signals(episodes: list[Episode], said: dict[str, Any], rows: list[int]) -> None:
    """Lengths, clocks, signals, sentences and statistics."""
    items = said["items"]
    lengths = [len(episode) for episode in episodes]
    assert (said["length"], said["episodes"]) == (sum(lengths), len(episodes))
    assert said["fps"] == episodes[0].fps
    assert said["names"]["action"] == list(episodes[0].action_names)
    assert said["names"]["observation.state"] == list(episodes[0].state_names)
    assert said["cameras"] == sorted(episodes[0].clips)
    of = np.repeat(np.arange(len(episodes)), lengths)[rows]
    inside = np.concatenate([np.arange(length) for length in lengths])[rows]
    assert items["index"].tolist() == rows
    assert items["episode_index"].tolist() == of.tolist()
    assert items["frame_index"].tolist() == inside.tolist()
    assert said["tasks"] == [episodes[e].task for e in of]
    for name, mine in (("observation.state", "state"), ("action", "action")):
        np.testing.assert_array_equal(
            items[name], np.concatenate([getattr(e, mine) for e in episodes])[rows]
        )
    times_s = np.concatenate([e.timestamps_s for e in episodes])[rows]
    np.testing.assert_allclose(items["timestamp"], times_s, rtol=0, atol=1e-5)
    mean = np.concatenate([e.state for e in episodes]).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(said["state_mean"], mean, rtol=1e-4, atol=1e-5)


def picture_differences(
    episodes: list[Episode], items: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[np.float64]:
    """Mean absolute difference in grey levels of each picture, (rows, window, cameras)."""
    found = np.full((len(items["index"]), len(WINDOW), len(episodes[0].clips)), np.inf)
    for row, (of, at) in enumerate(zip(items["episode_index"], items["frame_index"], strict=True)):
        episode = episodes[of]
        steps = np.clip(at + np.array(WINDOW), 0, len(episode) - 1)
        for view, (camera, clip) in enumerate(sorted(episode.clips.items())):
            mine = clip.frames(episode.timestamps_s[steps]).transpose(0, 3, 1, 2)
            apart = np.abs(mine.astype(np.float64) - items[camera][row])
            found[row, :, view] = apart.mean(axis=(1, 2, 3))
    return found


@pytest.mark.parametrize("backend", ["pyav", None])
def test_it_iterates_over_all_frames(tmp_path: Path, backend: str | None) -> None:
    ingest(tmp_path, dataset_v21(tmp_path / "source"))
    episodes = in_order(tmp_path)
    said = by_lerobot(tmp_path / "episodes/tester", None, backend)
    same_signals(episodes, said, list(range(sum(map(len, episodes)))))
    # a neighbour's picture differs by 7 levels, so this also says that it is the right one
    assert picture_differences(episodes, said["items"]).max() < GREY_LEVELS
    padded = said["items"][f"{CAMERA}_is_pad"]
    ends = [[row == 0, False, row == len(e) - 1] for e in episodes for row in range(len(e))]
    assert padded.tolist() == ends


# Pictures of `cr5-banana` come at its rows' irregular times; lerobot finds them with PyAV only,
# since it opens torchcodec in its approximate mode, which counts pictures by the mean rate.
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("gr1-pick-place", None),
        ("so101-still", None),
        ("franka-pick-place", None),
        ("cr5-banana", "pyav"),
    ],
)
def test_it_reads_real_recordings(tmp_path: Path, name: str, backend: str | None) -> None:
    ingest(tmp_path, shared(name), config=CONFIG)
    episodes = in_order(tmp_path)
    rows = borders(episodes)
    (robot,) = {episode.embodiment for episode in episodes}
    said = by_lerobot(tmp_path / "episodes" / robot, rows, backend)
    same_signals(episodes, said, rows)
    assert picture_differences(episodes, said["items"]).max() < GREY_LEVELS
