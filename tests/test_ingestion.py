"""ingestion: real recordings come through whole, broken ones are kept aside with the right reason.

Small LeRobot v2.1 data sets are written here by hand (not by the code under test), with H.264
videos whose pictures say by their brightness which row they belong to.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components import lerobot, params, records
from components.episodes import Clip, Episodes
from components.errors import DataError, UserError, WamflowError
from components.ingestion import columns
from components.ingestion.raw import relative_s
from components.ingestion.reasons import Reason
from components.ingestion.stage import Config, Report, run
from components.outputs import sha256, sha256_folder
from components.packets import Joiner, Span

ROOT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared" / "data"
CAMERA = "observation.images.front"
FPS, ROWS = 20, 24
CONFIG = Config(
    sources=["anything"],
    min_frames=8,
    max_video_frames_off=1,
    min_camera_share=0.5,
    mappings={},
    sampled_pictures=12,
    lag_pictures=0,
    correct_lag=False,
    checks={},
    score_only=False,
    data_file_mb=100,
    video_file_mb=200,
)


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip("../shared/data is not on this machine")
    return SHARED / name


def snapshot(path: Path, *folders: Path) -> Path:
    """What `wamflow snapshot` writes, by the contract."""
    sources = [
        {
            "uri": str(folder),
            "name": folder.name,
            "objects": [
                {
                    "path": file.relative_to(folder).as_posix(),
                    "size": file.stat().st_size,
                    "sha256": sha256(file),
                }
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ],
        }
        for folder in folders
    ]
    path.write_text(json.dumps({"sources": sources}))
    return path


def ingest(out: Path, *folders: Path, config: Config = CONFIG) -> Report:
    out.mkdir(parents=True, exist_ok=True)
    listing = snapshot(out / "sources.json", *folders)
    return run(listing, out / "episodes", out / "quarantine", config=config)


def rejected(out: Path) -> dict[int, tuple[str, str]]:
    rows = pq.read_table(out / "quarantine/quarantine.parquet").to_pylist()
    return {row["episode_index"]: (row["reason"], row["detail"]) for row in rows}


def brightness(episode: int, row: int) -> int:
    return 20 + (episode * 37 + row * 7) % 200


def encode(path: Path, grey: list[int], gop: int = 6, b_frames: int = 2, height: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"g": str(gop), "bf": str(b_frames), "crf": "5", "threads": "1"}
        stream.options |= {"x264-params": "b-adapt=0:scenecut=0"}  # flat pictures have none else
        for value in grey:
            image = np.full((height, 48, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def signals(episode: int, rows: int = ROWS) -> dict[str, Any]:
    random = np.random.default_rng(episode)
    return {
        "observation.state": random.normal(size=(rows, 3)).astype(np.float32).tolist(),
        "action": random.normal(size=(rows, 2)).astype(np.float32).tolist(),
        "timestamp": (0.05 + np.arange(rows) / FPS).astype(np.float32),
        "frame_index": np.arange(rows),
        "episode_index": np.full(rows, episode),
        "index": np.arange(rows) + 1000 * episode,
        "task_index": np.full(rows, episode % 2),
    }


def dataset_v21(root: Path, episodes: int = 3, robot: str = "tester") -> Path:
    """A well-formed LeRobot v2.1 folder."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    tasks = ["lift the cube", "drop the cube"]
    info = {
        "codebase_version": "v2.1",
        "robot_type": robot,
        "fps": FPS,
        "total_episodes": episodes,
        "features": {
            "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
            "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["lift", "gripper"]}},
            CAMERA: {
                "dtype": "video",
                "shape": [32, 48, 3],
                "names": ["height", "width", "channel"],
            },
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = [json.dumps({"task_index": i, "task": task}) for i, task in enumerate(tasks)]
    (root / "meta/tasks.jsonl").write_text("\n".join(lines))
    lines = [
        json.dumps({"episode_index": i, "tasks": [tasks[i % 2]], "length": ROWS})
        for i in range(episodes)
    ]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    for episode in range(episodes):
        pq.write_table(pa.table(signals(episode)), rows_file(root, episode))
        encode(video_file(root, episode), [brightness(episode, row) for row in range(ROWS)])
    return root


def rows_file(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_file(root: Path, episode: int) -> Path:
    return root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"


def picture(episodes: Episodes, episode_id: str, row: int) -> float:
    """Mean brightness of what the episode shows at a row's time."""
    episode = episodes[episode_id]
    return float(episode.clips[CAMERA].frames(episode.timestamps_s[[row]]).mean())


# -- real recordings ------------------------------------------------------------------------------

REAL = {  # episodes, frames, state, action, folder: from ../shared/data/README.md
    "cr5-banana": (12, 2733, 6, 7, "cr5"),
    "gr1-pick-place": (5, 2096, 44, 44, "gr1armsonly"),
    "franka-pick-place": (4, 1667, 46, 61, "franka-robotiq"),
    "so101-still": (6, 1782, 6, 6, "so101-follower"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_data_set_comes_through_whole(name: str, tmp_path: Path) -> None:
    folder = shared(name)
    count, frames, state, action, embodiment = REAL[name]
    report = ingest(tmp_path, folder)
    assert (report.episodes, report.frames, report.quarantined) == (count, frames, 0)
    assert rejected(tmp_path) == {}
    episodes = Episodes(tmp_path / "episodes")
    assert len(episodes) == count
    for episode in episodes:
        assert episode.embodiment == embodiment
        assert (
            episode.state.shape == (len(episode), state) == (len(episode), len(episode.state_names))
        )
        assert episode.action.shape == (len(episode), action)
        assert np.isfinite(episode.state).all() and (np.diff(episode.timestamps_s) > 0).all()
        assert episode.timestamps_s[0] == 0 and len(episode.clips) == 1
    camera, clip = next(iter(episodes[episodes.ids[0]].clips.items()))
    row = episodes.manifest.to_pylist()[0]
    shown = clip.frames(np.array([0.0]))[0]
    assert np.array_equal(shown, first_picture(folder, camera, row["source_uri"]))


def first_picture(folder: Path, camera: str, source_uri: str) -> np.ndarray:
    """Decoded from the source by plain PyAV."""
    index = int(source_uri.rpartition("#")[2])
    short = camera.rpartition(".")[2]
    files = sorted((folder / "videos").glob(f"**/*{short}/**/episode_{index:06d}.mp4"))
    skip = 0
    if not files:  # v3.0: one file, rows before this episode are pictures before its first
        files = sorted((folder / "videos").glob("**/file-000.mp4"))
        skip = int((pq.read_table(folder / "data")["episode_index"].to_numpy() < index).sum())
    with av.open(str(files[0])) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == skip:
                return frame.to_ndarray(format="rgb24")
    raise AssertionError("no such picture")


def test_a_real_recording_on_an_irregular_clock_keeps_row_and_picture_together(
    tmp_path: Path,
) -> None:
    """Rows on a real clock, AV1 on an exact grid, up to 2.14 s apart: picture k is row k's."""
    folder = shared("cr5-banana")
    report = ingest(tmp_path / "a", folder)
    assert any("disagree by up to 2.14 s" in line for line in report.warnings)
    root = tmp_path / "a/episodes/cr5"
    joined, sources = (sorted(where.glob("videos/**/*.mp4")) for where in (root, folder))
    copied = [packet for file in joined for packet in packets(file)]
    assert copied == [packet for file in sources for packet in packets(file)]
    episodes = Episodes(tmp_path / "a/episodes")
    assert max(np.diff(episodes[name].timestamps_s).max() for name in episodes.ids) > 0.25
    for number in (0, 7, 11):
        episode = episodes[episodes.ids[number]]
        assert np.diff(episode.timestamps_s).std() > 0.004
        clip = episode.clips["observation.images.top"]
        rows = [0, 1, 30, 97, len(episode) - 2, len(episode) - 1]
        path = sources[source_index(tmp_path / "a", number)]
        with av.open(str(path)) as container:
            pictures = [
                frame.to_ndarray(format="rgb24")
                for row, frame in enumerate(container.decode(video=0))
                if row in rows
            ]
        assert len(np.unique([p.sum(dtype=np.int64) for p in pictures])) == len(rows)
        assert np.array_equal(clip.frames(episode.timestamps_s[rows]), pictures)
    assert ingest(tmp_path / "b", root).episodes == len(episodes)
    assert Episodes(tmp_path / "b/episodes").ids == episodes.ids


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]


def test_split_columns_and_end_effector_get_names(tmp_path: Path) -> None:
    report = ingest(tmp_path, shared("franka-pick-place"))
    episode = next(iter(Episodes(tmp_path / "episodes")))
    assert episode.state_names[:8] == (*(f"joints_{i}" for i in range(7)), "gripper_width_0")
    assert "gripper_close_0" in episode.action_names
    source = pq.read_table(
        shared("franka-pick-place")
        / f"data/chunk-000/episode_{source_index(tmp_path, 0):06d}.parquet"
    )
    position = np.array(source["state.eef_position"].to_pylist(), np.float32)
    assert np.array_equal(episode.end_effector_m, position)
    assert any("base_view_2 is declared but has no video" in line for line in report.warnings)
    assert any("base_view: 1 of 4 episodes" in line for line in report.warnings)


def source_index(out: Path, row: int) -> int:
    manifest = pq.read_table(out / "episodes/manifest.parquet").to_pylist()
    return int(manifest[row]["source_uri"].rpartition("#")[2])


def test_the_output_has_the_structure_of_a_published_v3_data_set(tmp_path: Path) -> None:
    theirs = shared("so101-still")
    ingest(tmp_path, theirs)
    ours = tmp_path / "episodes/so101-follower"
    for file in (
        "data/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
    ):
        a, b = pq.read_schema(theirs / file), pq.read_schema(ours / file)
        assert {(f.name, str(f.type)) for f in a} == {(f.name, str(f.type)) for f in b}, file
    a, b = (json.loads((root / "meta/info.json").read_text()) for root in (theirs, ours))
    assert a.keys() == b.keys()
    assert a["features"].keys() == b["features"].keys()
    for key in (
        "codebase_version",
        "fps",
        "total_episodes",
        "total_frames",
        "data_path",
        "video_path",
    ):
        assert a[key] == b[key]
    assert b["features"]["observation.state"]["names"] == [f"j{i}" for i in range(6)]
    camera = "observation.images.wrist"
    assert a["features"][camera]["info"] == b["features"][camera]["info"]
    assert pd.read_parquet(ours / "meta/tasks.parquet").loc["pick and place"].task_index == 0
    rows_a, rows_b = (
        pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
        for root in (theirs, ours)
    )
    for x, y in zip(rows_a, rows_b, strict=True):
        for key in (k for k in x if not k.startswith("stats/")):
            assert (
                x[key] == pytest.approx(y[key]) if isinstance(x[key], float) else x[key] == y[key]
            )
        assert x["stats/timestamp/mean"] == pytest.approx(y["stats/timestamp/mean"])
    x, y = (json.loads((root / "meta/stats.json").read_text()) for root in (theirs, ours))
    assert x.keys() == y.keys()
    assert x["timestamp"]["std"] == pytest.approx(y["timestamp"]["std"])
    assert np.shape(x[camera]["mean"]) == np.shape(y[camera]["mean"]) == (3, 1, 1)


# -- what is broken is kept aside -----------------------------------------------------------------


def change(root: Path, episode: int, edit: Callable[[dict[str, Any]], None]) -> None:
    rows = signals(episode)
    edit(rows)
    pq.write_table(pa.table(rows), rows_file(root, episode))


def put(name: str, row: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(rows: dict[str, Any]) -> None:
        rows[name][row] = value

    return edit


def cut(rows: dict[str, Any], length: int) -> None:
    for name in rows:
        rows[name] = rows[name][:length]


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


BROKEN: dict[str, tuple[Callable[[Path, int], object], Reason]] = {
    "nan": (
        lambda r, e: change(r, e, put("observation.state", 5, [0.0, float("nan"), 0.0])),
        Reason.NAN_IN_SIGNALS,
    ),
    "infinite": (
        lambda r, e: change(r, e, put("action", 7, [float("inf"), 0.0])),
        Reason.NAN_IN_SIGNALS,
    ),
    "clock back": (
        lambda r, e: change(r, e, put("timestamp", 9, 0.0)),
        Reason.TIMESTAMPS_NOT_INCREASING,
    ),
    "clock stands": (
        lambda r, e: change(r, e, lambda rows: put("timestamp", 9, rows["timestamp"][8])(rows)),
        Reason.TIMESTAMPS_NOT_INCREASING,
    ),
    "clock nan": (
        lambda r, e: change(r, e, put("timestamp", 9, np.nan)),
        Reason.TIMESTAMPS_NOT_INCREASING,
    ),
    "no rows": (lambda r, e: change(r, e, lambda rows: cut(rows, 0)), Reason.EMPTY_EPISODE),
    "few rows": (lambda r, e: change(r, e, lambda rows: cut(rows, 5)), Reason.TOO_SHORT),
    "no state": (
        lambda r, e: change(r, e, lambda rows: rows.pop("observation.state")),
        Reason.MISSING_COLUMN,
    ),
    "no clock": (
        lambda r, e: change(r, e, lambda rows: rows.pop("timestamp")),
        Reason.MISSING_COLUMN,
    ),
    "wide": (
        lambda r, e: change(r, e, lambda rows: rows.update({"action": [[0.0] * 5] * ROWS})),
        Reason.WRONG_WIDTH,
    ),
    "ragged": (
        lambda r, e: change(r, e, put("action", 3, [0.0])),
        Reason.WRONG_WIDTH,
    ),
    "words": (
        lambda r, e: change(r, e, lambda rows: rows.update({"action": ["left"] * ROWS})),
        Reason.WRONG_WIDTH,
    ),
    "rows cut off": (
        lambda r, e: rows_file(r, e).write_bytes(rows_file(r, e).read_bytes()[:300]),
        Reason.UNREADABLE_DATA,
    ),
    "rows of zero bytes": (lambda r, e: rows_file(r, e).write_bytes(b""), Reason.UNREADABLE_DATA),
    "no rows file": (lambda r, e: rows_file(r, e).unlink(), Reason.MISSING_DATA),
    "video cut off": (
        lambda r, e: video_file(r, e).write_bytes(video_file(r, e).read_bytes()[:700]),
        Reason.UNREADABLE_VIDEO,
    ),
    "video of no known codec": (
        lambda r, e: overwrite(video_file(r, e), b"avc1", b"zzzz"),
        Reason.UNREADABLE_VIDEO,
    ),
    "video of zero bytes": (
        lambda r, e: video_file(r, e).write_bytes(b""),
        Reason.UNREADABLE_VIDEO,
    ),
    "video is text": (
        lambda r, e: video_file(r, e).write_text("no video\n" * 99),
        Reason.UNREADABLE_VIDEO,
    ),
    "no video": (lambda r, e: video_file(r, e).unlink(), Reason.MISSING_VIDEO),
    "video short": (lambda r, e: encode(video_file(r, e), [9] * 15), Reason.VIDEO_LENGTH_MISMATCH),
    "video long": (lambda r, e: encode(video_file(r, e), [9] * 40), Reason.VIDEO_LENGTH_MISMATCH),
}


def test_each_broken_episode_is_kept_aside_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = dataset_v21(tmp_path / "mixed", len(BROKEN) + 3)
    for episode, (break_it, _) in enumerate(BROKEN.values(), start=1):
        break_it(root, episode)
    calls: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: calls.append(address))
    report = ingest(tmp_path, root)
    got = {episode: reason for episode, (reason, _) in rejected(tmp_path).items()}
    expected = {i: reason for i, (_, reason) in enumerate(BROKEN.values(), start=1)}
    assert got == expected
    assert (report.episodes, report.quarantined) == (3, len(BROKEN))
    assert all(detail for _, detail in rejected(tmp_path).values())
    assert rejected(tmp_path)[1][1].startswith("state: 1 NaN or infinite values, first y in row 5")
    assert calls == []  # Great Expectations sends nothing
    validation = json.loads((tmp_path / "report/ingestion/validation.json").read_text())
    assert validation["tester"]["success"] is False
    suite = yaml.safe_load((ROOT / "components/ingestion/suites/default.yaml").read_text())
    used = [check for check in suite.values() if check["severity"] != "off"]
    assert validation["tester"]["statistics"]["evaluated_expectations"] == 1 + len(used)
    assert (tmp_path / "report/ingestion/data_docs/index.html").is_file()


def test_an_episode_without_a_task_is_kept_aside(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d")
    change(root, 1, lambda rows: rows.update({"task_index": np.full(ROWS, 77)}))
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0}\nno json\n')
    report = ingest(tmp_path, root)
    assert {k: v[0] for k, v in rejected(tmp_path).items()} == {1: Reason.UNKNOWN_TASK}
    assert any("episodes.jsonl line 2" in line for line in report.warnings)


def test_one_picture_less_is_tolerated_and_two_are_not(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d")
    encode(video_file(root, 0), [9] * (ROWS - 1))
    encode(video_file(root, 1), [9] * (ROWS - 2))
    ingest(tmp_path, root)
    assert {k: v[0] for k, v in rejected(tmp_path).items()} == {1: Reason.VIDEO_LENGTH_MISMATCH}


def test_a_camera_that_few_episodes_have_is_dropped_not_the_episodes(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 4)
    rare = root / "videos/chunk-000/observation.images.rare/episode_000001.mp4"
    encode(rare, [9] * ROWS)
    report = ingest(tmp_path, root)
    assert report.episodes == 4 and rejected(tmp_path) == {}
    assert all(list(e.clips) == [CAMERA] for e in Episodes(tmp_path / "episodes"))
    assert any("rare: 1 of 4 episodes have a video; dropped" in line for line in report.warnings)


def test_nothing_is_written_when_no_episode_passes(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 2)
    for episode in range(2):
        video_file(root, episode).write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of 2 episodes passed.*unreadable_video.: 2"):
        ingest(tmp_path, root)
    assert not (tmp_path / "episodes").exists() and not (tmp_path / "quarantine").exists()


# -- identity, determinism, order -----------------------------------------------------------------


def test_the_same_recording_from_v21_and_v30_has_one_id(tmp_path: Path) -> None:
    first = dataset_v21(tmp_path / "first")
    ingest(tmp_path / "a", first)
    again = tmp_path / "a/episodes/tester"  # v3.0, videos joined in one file
    apart = tmp_path / "apart"  # v3.0 by the recorder's writer, a video file for each episode
    lerobot.write(
        apart,
        [
            lerobot.Recording(
                task=episode.task,
                timestamps_s=episode.timestamps_s,
                state=episode.state,
                action=episode.action,
                videos={CAMERA: video_file(first, source_index(tmp_path / "a", row))},
            )
            for row, episode in enumerate(Episodes(tmp_path / "a/episodes"))
        ],
        robot_type="tester",
        fps=FPS,
        state_names=("x", "y", "z"),
        action_names=("lift", "gripper"),
    )
    report = ingest(tmp_path / "b", again, apart, first)
    assert (report.episodes, report.duplicates) == (3, 6)
    ids = Episodes(tmp_path / "b/episodes").ids
    assert ids == Episodes(tmp_path / "a/episodes").ids
    assert (
        all(len(i) == 20 and set(i) <= set("0123456789abcdef") for i in ids) and len(set(ids)) == 3
    )
    for row in pq.read_table(tmp_path / "b/episodes/manifest.parquet").to_pylist():
        assert [o.rpartition("#")[0] for o in row["origins"]] == [
            str(again),
            str(apart),
            str(first),
        ]
    assert packets(next((tmp_path / "b/episodes").rglob("*.mp4"))) == packets(
        next((tmp_path / "a/episodes").rglob("*.mp4"))
    )


def test_another_signal_video_or_clock_is_another_episode(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 1)
    for number in range(1, 4):
        pq.write_table(pa.table(signals(0)), rows_file(root, number))
        shutil.copy(video_file(root, 0), video_file(root, number))
    change(root, 0, put("action", 3, [0.5, 0.5]))
    table = signals(0)
    table["timestamp"][-1] += np.float32(0.001)
    pq.write_table(pa.table(table), rows_file(root, 1))
    encode(video_file(root, 2), [brightness(0, row) + 1 for row in range(ROWS)])
    assert ingest(tmp_path, root).episodes == 4


def test_clocks_in_single_double_and_epoch_precision_agree() -> None:
    exact = 0.05 + np.arange(200) / 20
    single = exact.astype(np.float32).astype(np.float64)
    assert np.array_equal(relative_s(exact), relative_s(single))
    assert np.array_equal(relative_s(relative_s(exact)), relative_s(exact))
    assert relative_s(1.7e9 + exact) == pytest.approx(np.arange(200) / 20, abs=1e-6)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 4)
    video_file(root, 2).write_bytes(b"no video")
    for out in ("a", "b"):
        ingest(tmp_path / out, root)
    for folder in ("episodes", "quarantine"):
        assert sha256_folder(tmp_path / "a" / folder) == sha256_folder(tmp_path / "b" / folder)
    assert rejected(tmp_path / "a").keys() == {2}


# -- video ----------------------------------------------------------------------------------------


def test_rows_find_their_pictures_after_joining_and_splitting(tmp_path: Path) -> None:
    """Pictures with B frames, in one file and in a file for each episode."""
    root = dataset_v21(tmp_path / "d", 3)
    ingest(tmp_path / "one", root)
    ingest(tmp_path / "noisy", noisy(tmp_path / "big"), config=tight())
    assert len(list((tmp_path / "one/episodes").rglob("*.mp4"))) == 1
    assert len(list((tmp_path / "noisy/episodes").rglob("*.mp4"))) == 3
    episodes = Episodes(tmp_path / "one/episodes")
    for number, episode_id in enumerate(episodes.ids):
        index = source_index(tmp_path / "one", number)
        for row in (0, 1, 11, ROWS - 1):
            assert picture(episodes, episode_id, row) == pytest.approx(
                brightness(index, row), abs=3
            )
    assert all(
        len(e.clips[CAMERA].frames(e.timestamps_s)) == len(e)
        for e in Episodes(tmp_path / "noisy/episodes")
    )


def clock(episode: int) -> np.ndarray:
    """An irregular clock: steps of 0.03 to 0.4 s where the video has 0.05 s."""
    steps = np.random.default_rng(episode).uniform(0.03, 0.4, ROWS - 1)
    return np.concatenate([[0], np.cumsum(steps)]).astype(np.float32)


def test_pictures_take_the_irregular_times_of_their_rows(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 3)
    for episode in range(3):
        change(root, episode, lambda rows, e=episode: rows.update({"timestamp": clock(e)}))
    ingest(tmp_path / "a", root)
    ingest(tmp_path / "b", tmp_path / "a/episodes/tester")
    for out in (tmp_path / "a", tmp_path / "b"):
        episodes = Episodes(out / "episodes")
        files = list((out / "episodes").rglob("*.mp4"))
        copied = [packet for e in range(3) for packet in packets(video_file(root, e))]
        assert len(files) == 1 and packets(files[0]) == copied
        for number, episode_id in enumerate(episodes.ids):
            episode, index = episodes[episode_id], source_index(tmp_path / "a", number)
            shown = episode.clips[CAMERA].frames(episode.timestamps_s).mean(axis=(1, 2, 3))
            assert shown == pytest.approx([brightness(index, k) for k in range(ROWS)], abs=3)
            start_s = episode.clips[CAMERA].start_s
            own_s = times(files[0])[ROWS * index : ROWS * (index + 1)]
            assert own_s - start_s == pytest.approx(episode.timestamps_s, abs=1e-4)
        assert episodes.ids == Episodes(tmp_path / "a/episodes").ids


def test_rows_give_their_times_to_spans_that_begin_between_key_frames(tmp_path: Path) -> None:
    """What only decoding needs goes before the first row, in a time of its own."""
    grey = [brightness(e, row) for e in range(2) for row in range(ROWS)]
    encode(tmp_path / "whole.mp4", grey, gop=20)
    joiner = Joiner(lambda number: tmp_path / f"{number}.mp4", 10**9)
    half_s, clocks = ROWS / FPS, [clock(number).astype(np.float64) for number in range(2)]
    spans = [Span(tmp_path / "whole.mp4", at_s, at_s + half_s) for at_s in (0, half_s)]
    placed = [joiner.append(span, rows_s) for span, rows_s in zip(spans, clocks, strict=True)]
    joiner.close()
    assert placed[1].start_s >= placed[0].end_s + 4 / FPS  # behind four that are never shown
    for number, ((file, start_s, end_s), rows_s) in enumerate(zip(placed, clocks, strict=True)):
        shown = Clip(tmp_path / f"{file}.mp4", start_s, end_s).frames(rows_s).mean(axis=(1, 2, 3))
        assert shown == pytest.approx([brightness(number, k) for k in range(ROWS)], abs=3)


def times(path: Path) -> np.ndarray:
    """When pictures are shown, s; decoding times are checked on the way."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [(p.dts, p.pts) for p in container.demux(stream) if p.size]
        dts, pts = np.array(found, dtype=np.float64).T
        assert (np.diff(dts) > 0).all() and (dts <= pts).all() and (dts < pts).any()
        return np.sort(pts) * float(stream.time_base)


def test_a_regular_video_keeps_its_exact_grid(tmp_path: Path) -> None:
    """Rows are rounded to float32; the pictures of three episodes in a row are not."""
    ingest(tmp_path, dataset_v21(tmp_path / "d", 3))
    (file,) = (tmp_path / "episodes").rglob("*.mp4")
    assert times(file) == pytest.approx(np.arange(3 * ROWS) / FPS, abs=1e-9)
    rows = pq.read_table(tmp_path / "episodes/tester/meta/episodes").to_pylist()
    assert [row[f"videos/{CAMERA}/to_timestamp"] for row in rows] == pytest.approx(
        [ROWS / FPS, 2 * ROWS / FPS, 3 * ROWS / FPS], abs=1e-9
    )


@pytest.mark.parametrize("irregular", [False, True])
@pytest.mark.parametrize("pictures", [ROWS - 1, ROWS + 1])
def test_a_picture_more_or_less_moves_no_other(
    tmp_path: Path, pictures: int, irregular: bool
) -> None:
    """A row without a picture shows the one before, never the next episode's."""
    root = dataset_v21(tmp_path / "d", 2)
    for episode in range(2):
        grey = [brightness(episode, row) for row in range(pictures)]
        encode(video_file(root, episode), grey)
        if irregular:
            change(root, episode, lambda rows, e=episode: rows.update({"timestamp": clock(e)}))
    ingest(tmp_path, root)
    episodes = Episodes(tmp_path / "episodes")
    for number, episode_id in enumerate(episodes.ids):
        index, episode = source_index(tmp_path, number), episodes[episode_id]
        shown = episode.clips[CAMERA].frames(episode.timestamps_s).mean(axis=(1, 2, 3))
        expected = [brightness(index, min(k, pictures - 1)) for k in range(ROWS)]
        assert shown == pytest.approx(expected, abs=3)


def tight() -> Config:
    return CONFIG.model_copy(update={"video_file_mb": 1})


def noisy(root: Path) -> Path:
    """Episodes whose videos have more than half a megabyte each."""
    dataset_v21(root, 3)
    for episode in range(3):
        random = np.random.default_rng(episode)
        with av.open(str(video_file(root, episode)), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 160, 160, "yuv420p"
            stream.options = {"crf": "5", "threads": "1"}
            for _ in range(ROWS):
                image = random.integers(0, 256, (160, 160, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return root


def test_an_episode_that_begins_between_key_frames_keeps_its_pictures(tmp_path: Path) -> None:
    """A v3.0 file encoded in one go: the second episode's first picture needs those before it."""
    root = dataset_v21(tmp_path / "d", 2)
    ingest(tmp_path / "a", root)
    v3 = tmp_path / "a/episodes/tester"
    order = [brightness(e, row) for e in range(2) for row in range(ROWS)]
    encode(next(v3.rglob("*.mp4")), order, gop=20, b_frames=0)
    ingest(tmp_path / "b", v3)
    assert rejected(tmp_path / "b") == {}
    episodes = Episodes(tmp_path / "b/episodes")
    for number, episode_id in enumerate(episodes.ids):
        index = source_index(tmp_path / "b", number)
        for row in (0, 1, ROWS - 1):
            assert picture(episodes, episode_id, row) == pytest.approx(
                brightness(index, row), abs=3
            )


def test_pictures_of_another_size_make_another_data_set(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 3)
    encode(video_file(root, 1), [9] * ROWS, height=64)
    report = ingest(tmp_path, root, dataset_v21(tmp_path / "other", 1, robot="TESTER"))
    assert report.embodiments == {"tester": 2, "tester-2": 1}
    assert report.duplicates == 1  # the same content under another robot's name
    assert {
        e.clips[CAMERA].frames(np.zeros(1)).shape[1] for e in Episodes(tmp_path / "episodes")
    } == {32, 64}


def test_a_recording_with_damaged_parts_can_still_be_written(tmp_path: Path) -> None:
    """The recorder keeps what it got; ingestion judges it."""
    root = dataset_v21(tmp_path / "d", 1)
    rows = signals(0)
    state = np.array(rows["observation.state"], np.float32)
    good = lerobot.Recording(
        task="lift",
        timestamps_s=np.arange(ROWS) / FPS,
        state=state,
        action=np.array(rows["action"], np.float32),
        videos={CAMERA: video_file(root, 0)},
    )
    cut_off = tmp_path / "cut.mp4"
    cut_off.write_bytes(video_file(root, 0).read_bytes()[:700])
    nan = np.where(np.arange(ROWS)[:, None] == 4, np.nan, state).astype(np.float32)
    bad = [
        lerobot.Recording("lift", good.timestamps_s, nan, good.action, good.videos),
        lerobot.Recording("lift", good.timestamps_s, state, good.action, {CAMERA: cut_off}),
        lerobot.Recording("lift", -good.timestamps_s, state, good.action, good.videos),
    ]
    lerobot.write(
        tmp_path / "v3",
        [good, *bad],
        robot_type="r",
        fps=FPS,
        state_names=("x", "y", "z"),
        action_names=("lift", "gripper"),
    )
    stats = json.loads((tmp_path / "v3/meta/stats.json").read_text())
    assert stats["observation.state"]["count"] == [4 * ROWS - 1]
    assert stats["observation.state"]["max"] == pytest.approx(state.max(axis=0))
    ingest(tmp_path, tmp_path / "v3")
    assert {index: reason for index, (reason, _) in rejected(tmp_path).items()} == {
        1: Reason.NAN_IN_SIGNALS,
        2: Reason.UNREADABLE_VIDEO,
        3: Reason.TIMESTAMPS_NOT_INCREASING,
    }


def test_statistics_agree_with_numpy(tmp_path: Path) -> None:
    ingest(tmp_path, dataset_v21(tmp_path / "d", 3))
    stats = json.loads((tmp_path / "episodes/tester/meta/stats.json").read_text())
    every = np.concatenate([np.array(signals(i)["observation.state"]) for i in range(3)])
    assert stats["observation.state"]["mean"] == pytest.approx(every.mean(axis=0), abs=1e-6)
    assert stats["observation.state"]["std"] == pytest.approx(every.std(axis=0), abs=1e-6)
    assert stats["observation.state"]["min"] == pytest.approx(every.min(axis=0))
    assert stats["frame_index"]["max"] == [ROWS - 1]


def test_a_span_of_a_file_outside_its_pictures_is_no_video(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "d", 1)
    assert lerobot.lerobot_stats.of_first_picture(Span(video_file(root, 0))) is not None
    assert lerobot.lerobot_stats.of_first_picture(Span(video_file(root, 0), 9.0, 10.0)) is None


@pytest.mark.parametrize("filler", [b"\x00", b"\xff"])
def test_a_video_damaged_in_the_middle_is_no_episode(tmp_path: Path, filler: bytes) -> None:
    """One key picture is overwritten; the first picture and the last group stay whole."""
    root = dataset_v21(tmp_path / "d")
    path = video_file(root, 1)
    with av.open(str(path)) as container:
        keys = [p for p in container.demux(video=0) if p.is_keyframe and p.size]
    assert len(keys) >= 3
    hit = keys[len(keys) // 2]
    data = bytearray(path.read_bytes())
    data[hit.pos : hit.pos + hit.size] = filler * hit.size
    path.write_bytes(bytes(data))
    ingest(tmp_path / "out", root)
    assert {e: reason for e, (reason, _) in rejected(tmp_path / "out").items()} == {
        1: "unreadable_video"
    }


# -- names and columns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([["a"], ["b", ["c"]]], ["a", "b", "c"]),
        ({"motors": ["a", "b"]}, ["a", "b"]),
        ({"arm": ["a"], "hand": {"fingers": ["b"]}}, ["a", "b"]),
        ({"second": 1, "first": 0}, ["first", "second"]),
        ("only", ["only"]),
        (None, []),
        (3.5, []),
    ],
)
def test_names_become_a_flat_list(names: Any, expected: list[str]) -> None:
    assert columns.flat_names(names) == expected


def test_signals_are_found_under_other_names() -> None:
    table = pa.table({"state": [[1.0, 2.0]], "actions": [[3.0]], "task": ["x"]})
    state, action = columns.find("state", {}, table), columns.find("action", {}, table)
    assert (state.names, action.names) == (("state_0", "state_1"), ("action_0",))
    split = pa.table({"state.gripper": [0.5], "state.ee_pos": [[1, 2, 3]], "state.note": ["x"]})
    found = columns.find("state", {"state.ee_pos": {}, "state.gripper": {}}, split)
    assert found.names == ("ee_x", "ee_y", "ee_z", "gripper_0")
    assert np.array_equal(found.read(split), [[1, 2, 3, 0.5]])
    twice = {"state": {"names": ["a", "a"]}}
    assert columns.find("state", twice, table).names == ("state_0", "state_1")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("observation.images.top", "top"),
        ("video.ego_view", "ego_view"),
        ("observation.image", "image"),
        ("image", "image"),
        ("../../etc", "_etc"),
    ],
)
def test_cameras_get_a_canonical_and_harmless_name(key: str, expected: str) -> None:
    assert columns.camera(key) == f"observation.images.{expected}"


# -- sources and configuration --------------------------------------------------------------------


def edit_listing(path: Path, **changes: Any) -> Path:
    listing = json.loads(path.read_text())
    listing["sources"][0] |= changes
    path.write_text(json.dumps(listing))
    return path


def overwrite_same_size(root: Path) -> None:
    data = bytearray(rows_file(root, 1).read_bytes())
    data[50] ^= 1
    rows_file(root, 1).write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "the folder vanished"),
        (lambda root: rows_file(root, 1).unlink(), "vanished"),
        (lambda root: video_file(root, 1).write_bytes(b"longer or shorter"), r"expected \d+ bytes"),
        (overwrite_same_size, "expected sha256"),
    ],
)
def test_a_source_that_changed_since_it_was_listed_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    root = dataset_v21(tmp_path / "d")
    listing = snapshot(tmp_path / "sources.json", root)
    damage(root)
    with pytest.raises(DataError, match=message):
        run(listing, tmp_path / "episodes", tmp_path / "quarantine", config=CONFIG)
    assert not (tmp_path / "episodes").exists()


def empty_v3(root: Path) -> None:
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps({"fps": 10, "total_episodes": 0}))


def no_format(root: Path) -> None:
    root.mkdir()
    (root / "notes.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")


def bad_info(root: Path) -> None:
    dataset_v21(root)
    (root / "meta/info.json").write_text('{"fps": "fast"}')


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (empty_v3, "is empty: expected at least one episode"),
        (no_format, "no known format in 1 files"),
        (bad_info, "info.json is damaged"),
    ],
)
def test_a_source_without_episodes_is_one_clear_error(
    tmp_path: Path, build: Callable[[Path], None], message: str
) -> None:
    build(tmp_path / "d")
    with pytest.raises(DataError, match=message):
        ingest(tmp_path, tmp_path / "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; run `wamflow snapshot`"),
        ("{", "expected {sources"),
        ('{"sources": [{"uri": 3}]}', "expected {sources"),
        ('{"sources": []}', "no source"),
    ],
)
def test_a_wrong_listing_is_one_clear_error(tmp_path: Path, text: str | None, message: str) -> None:
    listing = tmp_path / "sources.json"
    if text is not None:
        listing.write_text(text)
    with pytest.raises(UserError, match=message):
        run(listing, tmp_path / "e", tmp_path / "q", config=CONFIG)


def test_addresses_and_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    listing = snapshot(tmp_path / "sources.json", dataset_v21(tmp_path / "d"))
    escape = [{"path": "../sources.json", "size": 1, "sha256": ""}]
    for changes, message in (
        ({"uri": "gs://bucket/prefix"}, "expected a folder or s3://bucket/prefix"),
        ({"objects": escape, "uri": str(tmp_path / "d")}, "leaves the source"),
    ):
        with pytest.raises(WamflowError, match=message):
            run(edit_listing(listing, **changes), tmp_path / "e", tmp_path / "q", config=CONFIG)


def test_values_of_the_project_fit_the_config() -> None:
    config = params.section(params.load(ROOT / "params.yaml"), "ingestion", Config)
    assert config.sources
    with pytest.raises(UserError, match="min_frames"):
        params.section(
            {"ingestion": config.model_dump() | {"min_frames": "many"}}, "ingestion", Config
        )


def test_the_config_imports_nothing_heavy() -> None:
    code = (
        "import sys, components.ingestion.stage\n"
        "print(sorted({'torch', 'av', 'great_expectations', 'pandas'} & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_the_tables_have_the_columns_of_the_design(tmp_path: Path) -> None:
    ingest(tmp_path, dataset_v21(tmp_path / "d"))
    manifest = records.read(tmp_path / "episodes/manifest.parquet", records.MANIFEST)
    aside = records.read(tmp_path / "quarantine/quarantine.parquet", records.QUARANTINE)
    assert manifest.num_rows == 3 and aside.num_rows == 0
    row = manifest.to_pylist()[0]
    assert (row["source"], row["embodiment"], row["fps"]) == ("d", "tester", FPS)
    assert row["duration_s"] == pytest.approx((ROWS - 1) / FPS)
