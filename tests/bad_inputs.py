"""Generated bad input of every format: each a folder with one good recording and one bad one.

`cases(folder)` makes them one by one: (name, source folder, the reason of the bad one). The reason
is None where nothing of the source can be told apart, so that the whole source must be refused with
an error of `components.errors`. Good recordings of a kind are all the same episode.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import h5py
import lz4.frame
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components import lerobot
from components.ingestion.reasons import Reason
from tests import test_readers as readers
from tests.test_ingestion import (
    BROKEN,
    CAMERA,
    FPS,
    ROWS,
    brightness,
    change,
    dataset_v21,
    encode,
    put,
    rows_file,
    signals,
    video_file,
)

BAD = 1  # number of the bad episode where a folder holds two


class Case(NamedTuple):
    """One kind of bad input."""

    name: str
    folder: Path
    reason: Reason | None  # None: the source is refused


Build = Callable[[Path], object]


def cases(folder: Path) -> Iterator[Case]:
    """All kinds; a folder is only made when its turn comes."""
    for name, (build, reason) in KINDS.items():
        place = folder / name.replace(" ", "_").replace("/", "_").replace(":", "")
        build(place)
        yield Case(name, place, reason)


# -- LeRobot v2 -----------------------------------------------------------------------------------


def v2(damage: Callable[[Path, int], object]) -> Build:
    """A v2.1 folder of two episodes, the second damaged."""
    return lambda folder: damage(dataset_v21(folder, 2), BAD)


def overwritten(path: Path, start: int, stop: int, filler: bytes = b"\xff") -> None:
    data = bytearray(path.read_bytes())
    data[start:stop] = (filler * (stop - start))[: stop - start]
    path.write_bytes(bytes(data))


def parquet_bomb(root: Path, episode: int) -> None:
    """300 million equal rows in a file of some kilobytes."""
    times = pa.chunked_array([pa.array(np.zeros(10**7, np.float32))] * 30)
    columns = {"timestamp": times, "action": times, "observation.state": times}
    pq.write_table(pa.table(columns), rows_file(root, episode), row_group_size=10**8)


def faststart_cut(root: Path, episode: int) -> None:
    """The index is in front, so that only pictures are missing."""
    path = video_file(root, episode)
    whole = path.with_suffix(".whole.mp4")
    path.rename(whole)
    with av.open(str(whole)) as source:
        options = {"movflags": "faststart"}
        with av.open(str(path), "w", format="mp4", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    whole.unlink()
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def sound_only(root: Path, episode: int) -> None:
    with av.open(str(video_file(root, episode)), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


def picture_packets(path: Path, *, key: bool) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        found = [p for p in container.demux(video=0) if p.size]
    return [(p.pos, p.size) for p in found if p.is_keyframe == key]


def hit(*, key: bool, filler: bytes = b"\x00") -> Callable[[Path, int], object]:
    """One encoded picture in the middle is overwritten."""

    def damage(root: Path, episode: int) -> None:
        path = video_file(root, episode)
        places = picture_packets(path, key=key)
        at, size = places[len(places) // 2]
        overwritten(path, at, at + size, filler)

    return damage


def again(root: Path, episode: int) -> None:
    """Two different files say that they are the same episode."""
    other = root / "data/chunk-001" / rows_file(root, episode).name
    other.parent.mkdir()
    pq.write_table(pa.table(signals(episode + 40)), other)


def film_again(root: Path, episode: int) -> None:
    other = root / f"videos/chunk-001/{CAMERA}" / video_file(root, episode).name
    encode(other, [brightness(episode + 3, row) for row in range(ROWS)])


def doubled(rows: dict[str, Any]) -> None:
    rows.update({name: [*values, *values] for name, values in rows.items()})


def claimed(root: Path, index: str) -> None:
    """The metadata name an episode that is not there."""
    with (root / "meta/episodes.jsonl").open("a") as file:
        file.write(f'\n{{"episode_index": {index}, "tasks": ["x"], "length": 24}}\n')


def no_sentence(root: Path, episode: int) -> None:
    change(root, episode, lambda rows: rows.update({"task_index": np.full(ROWS, 9)}))
    (root / "meta/episodes.jsonl").write_text("")


def looped(root: Path, episode: int) -> None:
    path = rows_file(root, episode)
    path.unlink()
    path.symlink_to(path.name)


def dangling(root: Path, episode: int) -> None:
    path = video_file(root, episode)
    path.unlink()
    path.symlink_to("nowhere.mp4")


def clock(change_it: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, int], object]:
    def damage(root: Path, episode: int) -> None:
        times = change_it(0.05 + np.arange(ROWS) / FPS)
        change(root, episode, lambda rows: rows.update({"timestamp": times}))

    return damage


def info(text: str) -> Build:
    """`meta/info.json` is something else."""

    def build(folder: Path) -> None:
        dataset_v21(folder, 2)
        (folder / "meta/info.json").write_text(text)

    return build


def info_with(**values: Any) -> Build:
    def build(folder: Path) -> None:
        dataset_v21(folder, 2)
        path = folder / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return build


class Trap:
    """Whoever loads this makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("a-pickle-was-loaded",))


V2: dict[str, tuple[Callable[[Path, int], object], Reason]] = {
    **BROKEN,
    "hour lost": (clock(lambda t: t + 3600 * (np.arange(ROWS) > 9)), Reason.CLOCK_JUMP),
    "clock in nanoseconds": (clock(lambda t: (t * 1e9).astype(np.int64)), Reason.CLOCK_JUMP),
    "clock resets": (clock(lambda t: np.concatenate([t[:12], t[:12]])),
                     Reason.TIMESTAMPS_NOT_INCREASING),
    "clock runs backwards": (clock(lambda t: t[::-1].copy()), Reason.TIMESTAMPS_NOT_INCREASING),
    "clock of words": (clock(lambda t: np.array([str(v) for v in t])), Reason.MISSING_COLUMN),
    "clock of pairs": (lambda r, e: change(
        r, e, lambda rows: rows.update({"timestamp": [[0.1, 0.2]] * ROWS})), Reason.MISSING_COLUMN),
    "rows twice": (lambda r, e: change(r, e, doubled), Reason.TIMESTAMPS_NOT_INCREASING),
    "no action": (lambda r, e: change(r, e, lambda rows: rows.pop("action")),
                  Reason.MISSING_COLUMN),
    "beyond float32": (lambda r, e: change(r, e, lambda rows: rows.update(
        {"action": [[1e300, 0.0]] * ROWS})), Reason.NAN_IN_SIGNALS),
    "a million wide": (lambda r, e: change(r, e, lambda rows: rows.update(
        {"action": [np.zeros(10**5, np.float32)] * ROWS})), Reason.WRONG_WIDTH),
    "null in the action": (lambda r, e: change(r, e, put("action", 3, [None, 0.0])),
                           Reason.NAN_IN_SIGNALS),
    "null for a row": (lambda r, e: change(r, e, put("action", 3, None)), Reason.WRONG_WIDTH),
    "same index in two files": (again, Reason.DUPLICATE_INDEX),
    "same index in two videos": (film_again, Reason.DUPLICATE_INDEX),
    "named but not there": (lambda r, e: claimed(r, "7"), Reason.MISSING_DATA),
    "index below zero": (lambda r, e: claimed(r, "-1"), Reason.MISSING_DATA),
    "index of 10^300": (lambda r, e: claimed(r, "1" + "0" * 300), Reason.MISSING_DATA),
    "no sentence": (no_sentence, Reason.UNKNOWN_TASK),
    "parquet footer flipped": (lambda r, e: overwritten(
        rows_file(r, e), rows_file(r, e).stat().st_size - 60, rows_file(r, e).stat().st_size - 20),
        Reason.UNREADABLE_DATA),
    "parquet pages flipped": (lambda r, e: overwritten(rows_file(r, e), 10, 700),
                              Reason.UNREADABLE_DATA),
    "parquet magic wrong": (lambda r, e: overwritten(
        rows_file(r, e), rows_file(r, e).stat().st_size - 4, rows_file(r, e).stat().st_size, b"?"),
        Reason.UNREADABLE_DATA),
    "parquet bomb": (parquet_bomb, Reason.UNREADABLE_DATA),
    "a pickle as rows": (lambda r, e: rows_file(r, e).write_bytes(pickle.dumps(Trap())),
                         Reason.UNREADABLE_DATA),
    "video cut, index in front": (faststart_cut, Reason.UNREADABLE_VIDEO),
    "video of sound only": (sound_only, Reason.UNREADABLE_VIDEO),
    "video magic wrong": (lambda r, e: overwritten(video_file(r, e), 0, 12),
                          Reason.UNREADABLE_VIDEO),
    "video is one picture": (lambda r, e: video_file(r, e).write_bytes(
        readers.packed(readers.picture(3))), Reason.VIDEO_LENGTH_MISMATCH),
    "key picture overwritten": (hit(key=True), Reason.UNREADABLE_VIDEO),
    "picture between overwritten": (hit(key=False), Reason.UNREADABLE_VIDEO),
    "picture between random": (hit(key=False, filler=bytes(range(7, 250, 3))),
                               Reason.UNREADABLE_VIDEO),
}  # fmt: skip


# -- LeRobot v3 -----------------------------------------------------------------------------------


def v3(damage: Callable[[Path], object]) -> Build:
    """A v3.0 folder of two episodes in one data file, with a video file each."""

    def build(folder: Path) -> None:
        films = dataset_v21(folder.with_name(f".{folder.name}"), 2)
        recordings = []
        for episode in range(2):
            rows = signals(episode)
            state, action = (np.array(rows[k], np.float32) for k in ("observation.state", "action"))
            recordings.append(
                lerobot.Recording(
                    "lift the cube" if episode == 0 else "drop the cube",
                    np.arange(ROWS) / FPS,
                    state,
                    action,
                    {CAMERA: video_file(films, episode)},
                )
            )
        lerobot.write(
            folder,
            recordings,
            robot_type="tester",
            fps=FPS,
            state_names=("x", "y", "z"),
            action_names=("lift", "gripper"),
        )
        shutil.rmtree(films)
        damage(folder)

    return build


def meta(name: str, value: Any) -> Callable[[Path], object]:
    """A cell of the second row of meta/episodes."""

    def damage(root: Path) -> None:
        path = next((root / "meta/episodes").rglob("*.parquet"))
        rows = pq.read_table(path).to_pylist()
        rows[1][name] = value
        pq.write_table(pa.Table.from_pylist(rows), path)

    return damage


def data(change_it: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        path = next((root / "data").rglob("*.parquet"))
        pq.write_table(change_it(pq.read_table(path)), path)

    return damage


def film(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """The video file of the second episode."""
    return lambda root: damage(sorted((root / "videos").rglob("*.mp4"))[1])


SPAN = f"videos/{CAMERA}"
V3: dict[str, tuple[Callable[[Path], object], Reason | None]] = {
    "v3 rows of the episode are gone": (
        data(lambda t: t.filter(pc.field("episode_index") == 0)), Reason.EMPTY_EPISODE),
    "v3 data file of another number": (meta("data/file_index", 7), Reason.MISSING_DATA),
    "v3 data file below zero": (meta("data/chunk_index", -1), Reason.MISSING_DATA),
    "v3 no data file said": (meta("data/file_index", None), Reason.MISSING_DATA),
    "v3 video of another number": (meta(f"{SPAN}/file_index", 9), Reason.MISSING_VIDEO),
    "v3 span behind the video": (meta(f"{SPAN}/from_timestamp", 99.0), Reason.UNREADABLE_VIDEO),
    "v3 span ends before it begins": (meta(f"{SPAN}/to_timestamp", -3.0), Reason.UNREADABLE_VIDEO),
    "v3 span is half": (meta(f"{SPAN}/to_timestamp", 0.6), Reason.VIDEO_LENGTH_MISMATCH),
    "v3 span of NaN": (meta(f"{SPAN}/from_timestamp", float("nan")), Reason.UNREADABLE_VIDEO),
    "v3 video empty": (film(lambda p: p.write_bytes(b"")), Reason.UNREADABLE_VIDEO),
    "v3 no episode_index": (
        data(lambda t: t.drop_columns(["episode_index"])), Reason.MISSING_COLUMN),
    "v3 episodes damaged": (
        lambda r: next((r / "meta/episodes").rglob("*.parquet")).write_bytes(b"PAR1"), None),
    "v3 tasks damaged": (lambda r: (r / "meta/tasks.parquet").write_bytes(b""), None),
}  # fmt: skip


# -- HDF5, MCAP: what test_readers.py has not -----------------------------------------------------


def hdf5(damage: Build) -> Build:
    def build(folder: Path) -> None:
        readers.robomimic(folder / "00.hdf5", demos=1)
        damage(readers.robomimic(folder / "01.hdf5", demos=1))

    return build


def gzip_bomb(path: Path) -> None:
    """2 GB of zeros in 2 MB, each chunk of it really stored."""
    import zlib

    rows, chunk = 2**26, 2**20
    packed = zlib.compress(bytes(chunk * 7 * 4), 9)
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        item = file["data/demo_0"].create_dataset(
            "actions", (rows, 7), "f4", chunks=(chunk, 7), compression="gzip"
        )
        for start in range(0, rows, chunk):
            item.id.write_direct_chunk((start, 0), packed)


def huge_chunk(path: Path) -> None:
    """Pictures whose smallest unit of reading is 1.2 GB."""
    import zlib

    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/agentview_image"]
        shape = (readers.ROWS, 6000, 6000, 3)
        item = file["data/demo_0/obs"].create_dataset(
            "agentview_image", shape, "u1", chunks=shape, compression="gzip"
        )
        stream = zlib.compressobj(1)
        packed = b"".join(stream.compress(bytes(2**24)) for _ in range(78)) + stream.flush()
        item.id.write_direct_chunk((0, 0, 0, 0), packed)


def mcap(damage: Build) -> Build:
    def build(folder: Path) -> None:
        readers.mcap_json(folder / "00.mcap", readers.json_timeline())
        damage(readers.mcap_json(folder / "01.mcap", readers.json_timeline()))

    return build


def lz4_bomb(path: Path) -> None:
    """A chunk of zeros that says it holds 1000 bytes."""
    out = io.BytesIO()
    with lz4.frame.open(out, "wb") as file:
        for _ in range(32):
            file.write(bytes(2**26))
    packed = out.getvalue()
    body = struct.pack("<QQQI", 0, 1, 1000, 0) + struct.pack("<I", 3) + b"lz4"
    body += struct.pack("<Q", len(packed)) + packed
    records = [(1, struct.pack("<I", 0) * 2), (6, body)]
    parts = [bytes([op]) + struct.pack("<Q", len(d)) + d for op, d in records]
    path.write_bytes(b"\x89MCAP0\r\n" + b"".join(parts))


def encoded(encoding: str, schema: str) -> Build:
    """Messages in an encoding that is not read."""

    def damage(path: Path) -> None:
        from mcap.writer import Writer

        with path.open("wb") as file:
            writer = Writer(file)
            writer.start()
            for topic in ("/joint_states", "/action"):
                number = writer.register_schema(name=schema, encoding=encoding, data=b"\x00")
                channel = writer.register_channel(topic, encoding, number)
                for row in range(readers.ROWS):
                    at = readers.START_NS + row * 10**8
                    writer.add_message(channel, log_time=at, data=b"\x0a\x01x", publish_time=at)
            writer.finish()

    return damage


def compressed_video(path: Path) -> None:
    """A camera as a stream of H.264 in messages."""
    messages = readers.json_timeline()
    video = {"timestamp": {"sec": 1, "nsec": 0}, "frame_id": "c", "data": "AAAB", "format": "h264"}
    more = [(at, "/camera/video", video) for at, topic, _ in messages if topic == "/action"]
    readers.mcap_json(path, sorted([*messages, *more], key=lambda m: m[0]))


HDF5: dict[str, tuple[Build, Reason]] = {
    **readers.BAD_HDF5,
    "gzip bomb": (gzip_bomb, Reason.UNREADABLE_DATA),
    "huge chunk": (huge_chunk, Reason.UNREADABLE_VIDEO),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(Trap())), Reason.UNREADABLE_DATA),
}
MCAP: dict[str, tuple[Build, Reason]] = {
    **readers.BAD_MCAP,
    "lz4 bomb": (lz4_bomb, Reason.UNREADABLE_DATA),
    "protobuf": (encoded("protobuf", "foxglove.JointStates"), Reason.UNKNOWN_ENCODING),
    "ROS 1": (encoded("ros1", "sensor_msgs/JointState"), Reason.UNKNOWN_ENCODING),
    "compressed video": (compressed_video, Reason.UNKNOWN_ENCODING),
}


def renamed(name: str) -> Build:
    """A damaged recording with an awkward name."""

    def damage(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:200])
        path.rename(path.with_name(name))

    return damage


NAMES = {
    "right to left": "\u202e\u05d0\u05d1 5pdh\u202c.mcap",
    "newline": "two\nlines.mcap",
    "quotes": "'; DROP TABLE episodes; --.mcap",
    "hash and spaces": "a #1 b%2F..%2F.mcap",
    "emoji": "\U0001f916.mcap",
    "as long as may be": "x" * 240 + ".mcap",
}


def records(record: bytes) -> Build:
    good = readers.framed(readers.example(readers.steps(0)))
    return lambda folder: readers.rlds(folder, [good, record])


def bags(damage: Build) -> Build:
    def build(folder: Path) -> None:
        readers.bag(folder / "good", readers.timeline())
        damage(next(readers.bag(folder / "x", readers.timeline()).glob("*.db3")))

    return build


# -- whole sources --------------------------------------------------------------------------------


def only(name: str, content: bytes) -> Build:
    def build(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)

    return build


def features(text: str) -> Build:
    def build(folder: Path) -> None:
        readers.rlds(folder, [readers.framed(readers.example(readers.steps(0)))])
        (folder / "features.json").write_text(text)

    return build


SOURCES: dict[str, Build] = {
    "info.json empty": info(""),
    "info.json a list": info("[]"),
    "info.json cut": info('{"fps": 20, "feat'),
    "info.json of endless depth": info('{"fps": 20, "features": ' + '{"a":' * 200_000),
    "fps of zero": info_with(fps=0),
    "fps below zero": info_with(fps=-20),
    "fps infinite": info('{"fps": 1e999, "features": {}}'),
    "fps NaN": info('{"fps": NaN, "features": {}}'),
    "fps of words": info_with(fps="fast"),
    "features a list": info_with(features=[1, 2]),
    "no known format": only("notes.txt", b"hello"),
    "only a pickle": only("data.pkl", pickle.dumps(Trap())),
    "only an empty file": only("episode.hdf5", b""),
    "ROS 1 bag": only("recording.bag", b"#ROSBAG V2.0\n" + bytes(4096)),
    "only text called mcap": only("a.mcap", b"no mcap\n" * 40),
    "features.json damaged": features("{"),
    "features.json of endless depth": features("[" * 200_000),
    "link to itself": v2(looped),
    "link to nowhere": v2(dangling),
}

RLDS, DB3 = readers.BAD_RECORDS, readers.BAD_BAG
LOST = Reason.UNREADABLE_DATA
KINDS: dict[str, tuple[Build, Reason | None]] = {
    **{f"lerobot: {name}": (v2(damage), reason) for name, (damage, reason) in V2.items()},
    **{f"lerobot: {name}": (v3(damage), reason) for name, (damage, reason) in V3.items()},
    **{f"hdf5: {name}": (hdf5(damage), reason) for name, (damage, reason) in HDF5.items()},
    **{f"rlds: {name}": (records(record), reason) for name, (record, reason) in RLDS.items()},
    **{f"mcap: {name}": (mcap(damage), reason) for name, (damage, reason) in MCAP.items()},
    **{f"mcap: named {kind}": (mcap(renamed(name)), LOST) for kind, name in NAMES.items()},
    **{f"db3: {name}": (bags(damage), reason) for name, (damage, reason) in DB3.items()},
    **{f"source: {name}": (build, None) for name, build in SOURCES.items()},
}  # fmt: skip
