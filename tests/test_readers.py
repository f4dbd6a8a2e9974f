"""Readers of HDF5, RLDS, MCAP and ROS 2 bags: what is sound comes through, the rest goes aside.

Every file here is written by something else than the code under test: h5py, the mcap and rosbags
writers, and TFRecords framed by hand with a checksum computed bit by bit.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from mcap_ros2.decoder import DecoderFactory
from PIL import Image
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as BagWriter
from rosbags.typesys import Stores, get_typestore

from components.episodes import Episodes
from components.errors import DataError
from components.ingestion import arrays, formats, source, tfrecord, topics
from components.ingestion.raw import RawEpisode
from components.ingestion.reasons import Reason
from components.ingestion.said import Said
from components.ingestion.writing import Reader
from tests.test_ingestion import CONFIG, ingest, rejected, shared, snapshot

ROWS = 12
ROS = get_typestore(Stores.ROS2_JAZZY)
START_NS = 1_700_000_000 * 10**9


@pytest.fixture(autouse=True)
def _report_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAMFLOW_REPORT", str(tmp_path / "report"))


def opened(folder: Path) -> Reader:
    listing = folder.with_name(f"{folder.name}.sources.json")
    return formats.open_source(source.load(snapshot(listing, folder))[0], 0.5)


def read(folder: Path) -> list[RawEpisode]:
    reader = opened(folder)
    return [reader.read(index) for index in reader.indices]


def state(rows: int = ROWS, width: int = 3) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)


def picture(row: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Grey, brighter from row to row."""
    return np.full((height, width, 3), 20 + 15 * row, np.uint8)


def packed(image: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


# -- real recordings ------------------------------------------------------------------------------

REAL = {  # episodes, frames, state, action, cameras, kept aside: from ../shared/data/README.md
    "franka-stack-hdf5": (10, 2328, 18, 7, 0, 16),
    "bridge-rlds": (25, 250, 7, 7, 4, 0),
    "franka-teach-mcap": (4, 16, 9, 7, 0, 0),
    "ats-ros2-mcap": (1, 93, 3, 3, 0, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_recording_comes_through(name: str, tmp_path: Path) -> None:
    count, frames, width, commands, cameras, aside = REAL[name]
    report = ingest(tmp_path, shared(name), config=CONFIG.model_copy(update={"min_frames": 2}))
    assert (report.episodes, report.frames, report.quarantined) == (count, frames, aside)
    episodes = Episodes(tmp_path / "episodes")
    for episode in episodes:
        assert episode.state.shape == (len(episode), width)
        assert episode.action.shape == (len(episode), commands)
        assert np.isfinite(episode.state).all() and np.isfinite(episode.action).all()
        assert episode.timestamps_s[0] == 0 and (np.diff(episode.timestamps_s) > 0).all()
        assert len(episode.clips) == cameras
        assert (episode.gripper is None) == (name == "ats-ros2-mcap")


def test_failed_demonstrations_are_kept_aside_by_their_own_word(tmp_path: Path) -> None:
    report = ingest(tmp_path, shared("franka-stack-hdf5"))
    assert report.reasons == {"failed_demonstration": 16}
    assert any("_failed.hdf5 holds failures only" in line for line in report.warnings)
    with h5py.File(shared("franka-stack-hdf5") / "generated_dataset_small.hdf5") as file:
        theirs = file["data/demo_2"]
        place, actions = theirs["obs/eef_pos"][()], theirs["actions"][()]
    episodes = Episodes(tmp_path / "episodes")
    row = next(r for r in episodes.manifest.to_pylist() if r["source_uri"].endswith("#demo_2"))
    episode = episodes[row["episode_id"]]
    assert np.array_equal(episode.end_effector_m, place)
    assert np.array_equal(episode.action, actions)
    assert row["task"] == "stack cube"


def test_a_validation_split_that_is_the_training_split_collapses(tmp_path: Path) -> None:
    report = ingest(tmp_path, shared("bridge-rlds"))
    assert (report.episodes, report.duplicates) == (25, 25)
    assert any("is_last and is_terminal never set" in line for line in report.warnings)
    episodes = Episodes(tmp_path / "episodes")
    origins = episodes.manifest["origins"].to_pylist()
    assert all(len(o) == 2 and "-train" in o[0] and "-val" in o[1] for o in origins)
    tasks = set(episodes.manifest["task"].to_pylist())
    assert "put carrot on plate" in tasks and len(tasks) == 4
    black = [e.clips["observation.images.image_3"].frames(e.timestamps_s) for e in episodes]
    assert max(int(b.max()) for b in black) < 10


def test_log_times_of_zero_are_no_times(tmp_path: Path) -> None:
    reader = opened_shared("franka-teach-mcap", tmp_path)
    found = [reader.read(index) for index in reader.indices]
    assert [len(e.timestamps_s) for e in found] == [5, 4, 4, 3]
    assert all(e.timestamps_s[-1] < 2 for e in found)
    text = "\n".join(reader.warnings)
    assert "log_time 0 mixed with time since 1970: 6 messages" in text
    assert "sometimes empty" in text and "joint_velocities" in text


def test_commands_are_the_last_before_each_state(tmp_path: Path) -> None:
    """By hand from the bag's own messages, decoded by the reference reader."""
    folder = shared("ats-ros2-mcap")
    episode = opened_shared("ats-ros2-mcap", tmp_path).read(0)
    every: dict[str, list[tuple[int, Any]]] = {}
    wanted_topics = ["/servo/out/state", "/controller/out/servo_positions"]
    with next(folder.glob("*.mcap")).open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        for _, channel, message, body in reader.iter_decoded_messages(wanted_topics):
            every.setdefault(channel.topic, []).append((message.log_time, list(body.position)))
    commands = every["/controller/out/servo_positions"]
    rows = [row for row in every["/servo/out/state"] if row[0] >= commands[0][0]]
    assert len(rows) == len(episode.timestamps_s) == 93
    for (time, position), have, action in zip(rows, episode.state, episode.action, strict=True):
        assert np.array_equal(np.float32(position), have)
        wanted = [c for at, c in commands if at <= time][-1]
        assert np.array_equal(np.float32(wanted), action)
    seconds = (rows[-1][0] - rows[0][0]) / 1e9
    assert episode.timestamps_s[-1] == pytest.approx(seconds, abs=1e-5)


def opened_shared(name: str, tmp_path: Path) -> Reader:
    listing = snapshot(tmp_path / "sources.json", shared(name))
    return formats.open_source(source.load(listing)[0], 0.5)


# -- HDF5 -----------------------------------------------------------------------------------------


def robomimic(path: Path, demos: int = 2, pictures: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        arguments = {"env_name": "Lift", "env_kwargs": {"robots": ["Panda"], "control_freq": 20}}
        data.attrs["env_args"] = json.dumps(arguments)
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            actions = np.concatenate([state(width=6), np.ones((ROWS, 1))], axis=1) + number
            demo["actions"] = actions * [1, 1, 1, 1, 1, 1, 0] + [0, 0, 0, 0, 0, 0, 1]
            demo["obs/robot0_joint_pos"] = state(width=7) + number
            demo["obs/robot0_eef_pos"] = state()
            demo["obs/robot0_gripper_qpos"] = state(width=2)
            demo["obs/robot0_joint_vel"] = state(width=7)
            if pictures:
                images = np.stack([picture(row) for row in range(ROWS)])
                demo.create_dataset("obs/agentview_image", data=images, compression="gzip")
    return path


def test_robomimic_becomes_named_signals_and_film(tmp_path: Path) -> None:
    robomimic(tmp_path / "d/low.hdf5", demos=11)
    report = ingest(tmp_path / "out", tmp_path / "d")
    assert (report.episodes, report.embodiments) == (11, {"panda": 11})
    episodes = Episodes(tmp_path / "out/episodes")
    row = next(r for r in episodes.manifest.to_pylist() if r["source_uri"].endswith("#demo_10"))
    assert (row["task"], row["fps"]) == ("lift", 20.0)
    episode = episodes[row["episode_id"]]
    assert episode.state_names == (
        *(f"joint_pos_{i}" for i in range(7)),
        *("eef_x", "eef_y", "eef_z", "gripper_qpos_0", "gripper_qpos_1"),
    )
    assert np.array_equal(episode.state[:, :7], state(width=7) + 10)
    assert episode.action_names[-1] == "gripper" and episode.gripper_command is not None
    shown = episode.clips["observation.images.agentview_image"].frames(episode.timestamps_s)
    expected = [picture(row).mean() for row in range(ROWS)]
    assert np.abs(shown.mean(axis=(1, 2, 3)) - expected).max() < 3


def aloha(path: Path, squeeze: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, squeeze
        file["action"], file["observations/qpos"] = state(width=14), state(width=14)
        file["observations/qvel"] = state(width=14)
        images = [picture(row, 31, 47) for row in range(ROWS)]
        if squeeze:
            files = [np.frombuffer(packed(image, "JPEG"), np.uint8) for image in images]
            longest = max(map(len, files))
            padded = [np.pad(f, (0, longest - len(f))) for f in files]
            file["observations/images/cam_high"] = np.stack(padded)
        else:
            file["observations/images/cam_high"] = np.stack(images)
    return path


@pytest.mark.parametrize("squeeze", [False, True])
def test_aloha_is_one_episode_a_file(tmp_path: Path, squeeze: bool) -> None:
    aloha(tmp_path / "aloha_cups/episode_0.hdf5", squeeze)
    aloha(tmp_path / "aloha_cups/episode_1.hdf5", squeeze)
    reader = opened(tmp_path / "aloha_cups")
    assert (reader.layout.robot_type, reader.layout.fps) == ("aloha", 50.0)
    assert reader.layout.state_names[6] == "left_gripper" == reader.layout.action_names[6]
    episode = reader.read(1)
    assert episode.problem is None and episode.task == "cups"
    assert np.array_equal(episode.state, state(width=14))
    assert set(episode.videos) == {"observation.images.cam_high"}
    report = ingest(tmp_path / "out", tmp_path / "aloha_cups")
    assert (report.episodes, report.duplicates) == (1, 1)
    first = next(iter(Episodes(tmp_path / "out/episodes")))
    shown = first.clips["observation.images.cam_high"].frames(first.timestamps_s)
    assert shown.shape == (ROWS, 32, 48, 3), "an odd side is rounded up"


def external(path: Path) -> None:
    secret = path.with_name("elsewhere.bin")
    with h5py.File(secret, "w") as file:
        file["secret"] = state(width=7)
    secret.rename(path.parents[1] / "elsewhere.bin")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = h5py.ExternalLink("../elsewhere.bin", "secret")


def virtual(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        layout = h5py.VirtualLayout((ROWS, 7), "f4")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (ROWS, 7))
        file["data/demo_0"].create_virtual_dataset("actions", layout)


def raw_external(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0"].create_dataset(
            "actions", (ROWS, 7), "f4", external=[("/etc/passwd", 0, ROWS * 28)]
        )


def absurd(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0"].create_dataset("actions", (2**40, 7), "f4", chunks=(1024, 7))


def bomb(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/agentview_image"]
        shape = (ROWS, 60_000, 60_000, 3)
        file["data/demo_0/obs"].create_dataset(
            "agentview_image", shape, "u1", chunks=(1, 1000, 1000, 3), compression="gzip"
        )


def edit(change: Callable[[h5py.Group], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file["data/demo_0"])

    return damage


def put(group: h5py.Group, name: str, values: Any) -> None:
    del group[name]
    group[name] = values


def nest(group: h5py.Group) -> None:
    group["loop"] = group


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    """The tree of names is overwritten."""
    data = bytearray(path.read_bytes())
    data[40:2000] = bytes(b ^ 0x5A for b in data[40:2000])
    path.write_bytes(bytes(data))


def flip_compressed(path: Path) -> None:
    with h5py.File(path) as file:
        info = file["data/demo_0/obs/agentview_image"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    middle = info.byte_offset + info.size // 2
    data[middle : middle + 4] = bytes(b ^ 0xFF for b in data[middle : middle + 4])
    path.write_bytes(bytes(data))


def other_magic(path: Path) -> None:
    path.write_bytes(b"PK\3\4" + path.read_bytes()[4:])


BAD_HDF5: dict[str, tuple[Callable[[Path], object], Reason]] = {
    "truncated": (halve, Reason.UNREADABLE_DATA),
    "empty": (lambda p: p.write_bytes(b""), Reason.UNREADABLE_DATA),
    "magic only": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), Reason.UNREADABLE_DATA),
    "wrong magic": (other_magic, Reason.UNREADABLE_DATA),
    "names overwritten": (scribble, Reason.UNREADABLE_DATA),
    "a bit in pictures": (flip_compressed, Reason.UNREADABLE_VIDEO),
    "external link": (external, Reason.MISSING_COLUMN),
    "virtual": (virtual, Reason.UNREADABLE_DATA),
    "external bytes": (raw_external, Reason.UNREADABLE_DATA),
    "absurd rows": (absurd, Reason.UNREADABLE_DATA),
    "absurd pictures": (bomb, Reason.UNREADABLE_VIDEO),
    "loop of groups": (edit(nest), Reason.UNREADABLE_DATA),
    "no actions": (edit(lambda g: g.pop("actions")), Reason.MISSING_COLUMN),
    "another width": (edit(lambda g: put(g, "actions", state(width=8))), Reason.WRONG_WIDTH),
    "fewer actions": (edit(lambda g: put(g, "actions", state(5, 7))), Reason.MISSING_DATA),
    "no rows": (edit(lambda g: [put(g, k, state(ROWS, w)[:0]) for k, w in WIDTHS.items()]),
                Reason.EMPTY_EPISODE),
    "NaN": (edit(lambda g: put(g, "actions", state(width=7) * np.nan)), Reason.NAN_IN_SIGNALS),
    "text": (edit(lambda g: put(g, "actions", ["a"] * ROWS)), Reason.WRONG_WIDTH),
    "no pictures": (edit(lambda g: g.pop("obs/agentview_image")), Reason.MISSING_VIDEO),
    "failed": (edit(lambda g: g.attrs.update(success=False)), Reason.FAILED_DEMONSTRATION),
}  # fmt: skip
WIDTHS = {
    "actions": 7,
    "obs/robot0_joint_pos": 7,
    "obs/robot0_eef_pos": 3,
    "obs/robot0_gripper_qpos": 2,
}


def test_every_kind_of_bad_hdf5_is_kept_aside_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "lift"
    robomimic(folder / "00_good.hdf5")
    names = {}
    for number, (name, (damage, _)) in enumerate(BAD_HDF5.items(), start=1):
        damage(robomimic(folder / f"{number:02d}.hdf5", demos=1))
        names[f"{number:02d}.hdf5"] = name
    report = ingest(tmp_path / "out", folder)
    assert report.episodes == 2
    kept = {names[Path(k).name]: r for k, (r, _) in by_file(tmp_path / "out").items()}
    assert kept == {name: reason.value for name, (_, reason) in BAD_HDF5.items()}


def by_file(out: Path) -> dict[str, tuple[str, str]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(out / "quarantine/quarantine.parquet").to_pylist()
    return {row["source_uri"].partition("#")[0]: (row["reason"], row["detail"]) for row in rows}


# -- RLDS -----------------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """Bit by bit, by the polynomial."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = (checksum >> 1) ^ (0x82F63B78 if checksum & 1 else 0)
    return checksum ^ 0xFFFFFFFF


def mask(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return (
        length
        + struct.pack("<I", mask(crc32c(length)))
        + data
        + struct.pack("<I", mask(crc32c(data)))
    )


HUGE = struct.pack("<Q", 2**60) + struct.pack("<I", mask(crc32c(struct.pack("<Q", 2**60))))


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def part(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(values: dict[str, Any]) -> bytes:
    """tf.train.Example on the wire."""
    entries = b""
    for key, value in values.items():
        if isinstance(value, list):
            feature = part(1, b"".join(part(1, item) for item in value))
        elif np.issubdtype(value.dtype, np.floating):
            feature = part(2, part(1, value.astype("<f4").tobytes()))
        else:
            feature = part(3, part(1, b"".join(varint(int(item)) for item in value)))
        entries += part(1, part(1, key.encode()) + part(2, feature))
    return part(1, entries)


def steps(episode: int, rows: int = ROWS) -> dict[str, Any]:
    action = state(rows, 7) + episode
    action[:, 6] = np.arange(rows) % 2
    return {
        "steps/action": action.ravel(),
        "steps/observation/state": (state(rows, 8) + episode).ravel(),
        "steps/observation/image": [packed(picture(row, 24, 24)) for row in range(rows)],
        "steps/language_instruction": [b"stack the cups"] * rows,
        "steps/is_last": np.arange(rows) == rows - 1,
        "steps/is_terminal": np.zeros(rows, np.int64),
    }


def tensor(*sides: int, dtype: str = "float32") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(s) for s in sides]}, "dtype": dtype}}


FEATURES = {
    "featuresDict": {"features": {"steps": {"sequence": {"feature": {"featuresDict": {"features": {
        "action": tensor(7),
        "language_instruction": {"text": {}},
        "is_last": tensor(dtype="bool"),
        "is_terminal": tensor(dtype="bool"),
        "observation": {"featuresDict": {"features": {
            "state": tensor(8),
            "image": {"image": {"shape": {"dimensions": ["24", "24", "3"]}}},
        }}},
    }}}}}}}
}  # fmt: skip


def rlds(folder: Path, records: list[bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps(FEATURES))
    info = {"name": "cups", "splits": [{"name": "train", "shardLengths": [str(len(records))]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "cups-train.tfrecord-00000-of-00001").write_bytes(b"".join(records))
    return folder


def test_the_fast_checksum_is_the_slow_one() -> None:
    assert tfrecord.crc32c(b"123456789") == 0xE3069283  # RFC 3720
    random = np.random.default_rng(0)
    for size in (0, 1, 3, 4, 1000, 16_383, 16_384, 50_001):
        data = random.bytes(size)
        assert tfrecord.crc32c(data) == crc32c(data), size


def test_rlds_becomes_rows_and_a_film(tmp_path: Path) -> None:
    rlds(tmp_path / "cups/1.0.0", [framed(example(steps(e))) for e in range(3)])
    report = ingest(tmp_path / "out", tmp_path / "cups")
    assert (report.episodes, report.quarantined) == (3, 0)
    episodes = Episodes(tmp_path / "out/episodes")
    row = next(r for r in episodes.manifest.to_pylist() if r["source_uri"].endswith("#2"))
    episode = episodes[row["episode_id"]]
    assert (episode.task, episode.fps) == ("stack the cups", 10.0)
    assert np.array_equal(episode.state.ravel(), steps(2)["steps/observation/state"])
    assert np.array_equal(episode.action.ravel(), steps(2)["steps/action"])
    assert any("is_terminal never set" in line for line in report.warnings)
    shown = episode.clips["observation.images.image"].frames(episode.timestamps_s)
    assert np.abs(shown.mean(axis=(1, 2, 3)) - [20 + 15 * r for r in range(ROWS)]).max() < 3


def changed(**values: Any) -> bytes:
    return framed(example({**steps(1), **{k.replace("__", "/"): v for k, v in values.items()}}))


def without(key: str) -> bytes:
    return framed(example({k: v for k, v in steps(1).items() if k != key}))


def flipped(record: bytes, at: int) -> bytes:
    return record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]


def large_picture() -> bytes:
    """A PNG that says it has 4 * 10^10 pixels."""
    file = bytearray(packed(picture(0)))
    import zlib

    file[16:24] = struct.pack(">II", 200_000, 200_000)
    file[29:33] = struct.pack(">I", zlib.crc32(bytes(file[12:29])))
    return bytes(file)


BAD_RECORDS: dict[str, tuple[bytes, Reason]] = {
    "a bit in the data": (flipped(framed(example(steps(1))), 200), Reason.UNREADABLE_DATA),
    "no Example": (framed(b"\xff" * 50), Reason.UNREADABLE_DATA),
    "empty": (framed(b""), Reason.MISSING_COLUMN),
    "no action": (without("steps/action"), Reason.MISSING_COLUMN),
    "no state": (without("steps/observation/state"), Reason.MISSING_COLUMN),
    "no pictures": (without("steps/observation/image"), Reason.MISSING_VIDEO),
    "no sentence": (without("steps/language_instruction"), Reason.UNKNOWN_TASK),
    "another width": (changed(steps__action=np.zeros(80, np.float32)), Reason.WRONG_WIDTH),
    "action of text": (changed(steps__action=[b"x"] * ROWS), Reason.WRONG_WIDTH),
    "fewer states": (
        changed(steps__observation__state=np.zeros(32, np.float32)),
        Reason.MISSING_DATA,
    ),
    "not a picture": (
        changed(steps__observation__image=[b"GIF89a"] * ROWS),
        Reason.UNREADABLE_VIDEO,
    ),
    "bomb": (changed(steps__observation__image=[large_picture()] * ROWS), Reason.UNREADABLE_VIDEO),
    "other sizes": (
        changed(steps__observation__image=[packed(picture(0, 8 + 2 * r)) for r in range(ROWS)]),
        Reason.UNREADABLE_VIDEO,
    ),
    "fewer pictures": (
        changed(steps__observation__image=[packed(picture(0))] * 3),
        Reason.UNREADABLE_VIDEO,
    ),
    "short": (framed(example(steps(1, 4))), Reason.TOO_SHORT),
}


def test_every_kind_of_bad_record_is_kept_aside_with_its_reason(tmp_path: Path) -> None:
    records = [framed(example(steps(0))), *(record for record, _ in BAD_RECORDS.values())]
    rlds(tmp_path / "cups", records)
    report = ingest(tmp_path / "out", tmp_path / "cups")
    assert report.episodes == 1
    found = rejected(tmp_path / "out")
    kept = {name: found[i][0] for i, name in enumerate(BAD_RECORDS, start=1)}
    assert kept == {name: reason.value for name, (_, reason) in BAD_RECORDS.items()}


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (lambda r: r[: len(r) // 2], "beyond the end of the file"),
        (lambda r: r[:7], "within a record's header"),
        (lambda r: flipped(r, 3), "checksum of the length"),
        (lambda r: HUGE, "beyond the end"),
    ],
)  # fmt: skip
def test_a_broken_end_of_a_record_file_keeps_what_came_before(
    tmp_path: Path, tail: Callable[[bytes], bytes], said: str
) -> None:
    good = [framed(example(steps(e))) for e in range(2)]
    folder = rlds(tmp_path / "cups", [*good, tail(framed(example(steps(2))))])
    reader = opened(folder)
    found = [reader.read(index) for index in reader.indices]
    assert [e.problem is None for e in found] == [True, True, False]
    assert found[2].problem is not None and found[2].problem.reason is Reason.UNREADABLE_DATA
    assert said in found[2].problem.detail


def test_a_split_that_lacks_episodes_is_said(tmp_path: Path) -> None:
    folder = rlds(tmp_path / "cups", [framed(example(steps(0)))])
    info = {"splits": [{"name": "train", "shardLengths": ["100"]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert any("has 100 episodes, 1 are here" in line for line in opened(folder).warnings)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"featuresDict": 3}', "[" * 100_000])
def test_damaged_features_are_one_clear_error(tmp_path: Path, text: str) -> None:
    folder = rlds(tmp_path / "cups", [framed(example(steps(0)))])
    (folder / "features.json").write_text(text)
    with pytest.raises(DataError, match=r"features\.json is damaged"):
        opened(folder)


# -- MCAP and ROS 2 bags --------------------------------------------------------------------------


def joints(row: int, names: list[str], shift: float = 0.0) -> Any:
    header = ROS.types["std_msgs/msg/Header"](
        stamp=ROS.types["builtin_interfaces/msg/Time"](sec=1, nanosec=row), frame_id=""
    )
    values = np.arange(len(names)) + row / 10 + shift
    empty = np.zeros(0)
    return ROS.types["sensor_msgs/msg/JointState"](
        header=header, name=names, position=values, velocity=empty, effort=empty
    )


def image(row: int, encoding: str = "rgb8") -> Any:
    pixels = picture(row, 24, 24).copy()
    pixels[:, :, 0] += 15  # reddish, so that the order of colours shows
    ordered = pixels if encoding == "rgb8" else pixels[:, :, ::-1]
    return ROS.types["sensor_msgs/msg/Image"](
        header=joints(row, []).header,
        height=24,
        width=24,
        encoding=encoding,
        is_bigendian=0,
        step=72,
        data=np.ascontiguousarray(ordered).ravel(),
    )


def text(sentence: str) -> Any:
    return ROS.types["std_msgs/msg/String"](data=sentence)


Timed = tuple[int, str, str, Any]  # nanoseconds, topic, type, message


def timeline(rows: int = ROWS, pictures: bool = True) -> list[Timed]:
    """State at 20 Hz, commands at 7 Hz from 0.1 s on, pictures at 10 Hz."""
    found: list[Timed] = [(START_NS, "/task", "std_msgs/msg/String", text("wipe the table"))]
    kind = "sensor_msgs/msg/JointState"
    for row in range(rows):
        at = START_NS + row * 50_000_000
        found.append((at, "/arm/joint_states", kind, joints(row, ["a", "b", "c"])))
    for row in range(int(rows * 0.35) + 1):
        at = START_NS + 100_000_000 + row * 142_000_000
        found.append((at, "/arm/joint_commands", kind, joints(row, ["c", "b", "a"], 5.0)))
    for row in range(rows // 2 if pictures else 0):
        at = START_NS + row * 100_000_000
        found.append((at, "/front/image_raw", "sensor_msgs/msg/Image", image(row, "bgr8")))
    return sorted(found, key=lambda item: item[0])


def mcap_cdr(path: Path, messages: list[Timed], chunk: int = 4096) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = McapWriter(file, chunk_size=chunk, compression=CompressionType.ZSTD)
        writer.start(profile="ros2")
        channels: dict[str, int] = {}
        for at, topic, kind, message in messages:
            if topic not in channels:
                definition = ROS.generate_msgdef(kind, ros_version=2)[0].encode()
                schema = writer.register_schema(name=kind, encoding="ros2msg", data=definition)
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            data = bytes(ROS.serialize_cdr(message, kind))
            writer.add_message(channels[topic], log_time=at, data=data, publish_time=at)
        writer.finish()
    return path


def bag(folder: Path, messages: list[Timed]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with BagWriter(folder, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections: dict[str, Any] = {}
        for at, topic, kind, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=ROS)
            writer.write(connections[topic], at, ROS.serialize_cdr(message, kind))
    return folder


def mcap_json(path: Path, messages: list[tuple[int, str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = McapWriter(file, compression=CompressionType.LZ4)
        writer.start()
        channels: dict[str, int] = {}
        for at, topic, message in messages:
            if topic not in channels:
                schema = writer.register_schema(name=topic, encoding="jsonschema", data=b"{}")
                channels[topic] = writer.register_channel(topic, "json", schema)
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            writer.add_message(channels[topic], log_time=at, data=data, publish_time=at)
        writer.finish()
    return path


def written(kind: str, folder: Path) -> Path:
    if kind == "mcap":
        mcap_cdr(folder / "one.mcap", timeline())
    else:
        bag(folder / "one", timeline())
    return folder


@pytest.mark.parametrize("kind", ["mcap", "db3"])
def test_topics_at_three_rates_meet_on_the_clock_of_the_state(kind: str, tmp_path: Path) -> None:
    report = ingest(tmp_path / "out", written(kind, tmp_path / "panda_wipe"))
    assert (report.episodes, report.embodiments) == (1, {"panda": 1})
    episode = next(iter(Episodes(tmp_path / "out/episodes")))
    assert (episode.task, episode.fps) == ("wipe the table", 20.0)
    assert (episode.state_names, episode.action_names) == (("a", "b", "c"), ("c", "b", "a"))
    times = np.arange(2, ROWS) * 0.05  # the first command comes with row 2
    assert np.allclose(episode.timestamps_s, times - 0.1, atol=1e-6)
    assert np.allclose(episode.state, np.arange(3) + np.arange(2, ROWS)[:, None] / 10)
    command = np.floor((times - 0.1 + 1e-9) / 0.142)
    assert np.allclose(episode.action, np.arange(3) + 5 + command[:, None] / 10)
    shown = episode.clips["observation.images.front"].frames(episode.timestamps_s)
    earlier = np.floor((times + 1e-9) / 0.1)
    assert np.abs(shown[:, :, :, 1].mean(axis=(1, 2)) - (20 + 15 * earlier)).max() < 3
    assert (shown[..., 0].mean(axis=(1, 2)) - shown[..., 2].mean(axis=(1, 2)) > 8).all(), "red"


def test_a_bag_and_an_mcap_of_one_recording_are_one_episode(tmp_path: Path) -> None:
    folders = [written(kind, tmp_path / f"panda_{kind}") for kind in ("mcap", "db3")]
    report = ingest(tmp_path / "out", *folders)
    assert (report.episodes, report.duplicates) == (1, 1)


def test_a_bag_without_its_own_definitions_is_read_by_the_standard_ones(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    folder = written("db3", tmp_path / "panda")
    file = next(folder.rglob("*.db3"))
    with closing(sqlite3.connect(file)) as database:
        database.execute("DROP TABLE message_definitions")
        database.commit()
    (next(folder.rglob("metadata.yaml"))).unlink()
    found = read(folder)
    assert [e.problem for e in found] == [None] and found[0].state.shape == (ROWS - 2, 3)


def json_timeline(rows: int = ROWS) -> list[tuple[int, str, Any]]:
    found: list[tuple[int, str, Any]] = [(0, "/robot_description", {"data": "<robot/>"})]
    for row in range(rows):
        at = START_NS + row * 100_000_000
        values = {"name": ["a", "b"], "position": [row, -row], "velocity": []}
        found.append((at, "/joint_states", values))
        found.append((at, "/action", {"data": [row + 0.5, 1]}))
    return found


def test_json_messages(tmp_path: Path) -> None:
    mcap_json(tmp_path / "fr3/one.mcap", json_timeline())
    reader = opened(tmp_path / "fr3")
    episode = reader.read(0)
    assert episode.problem is None
    assert np.array_equal(episode.state, [[r, -r] for r in range(ROWS)])
    assert np.array_equal(episode.action, [[r + 0.5, 1] for r in range(ROWS)])
    assert reader.layout.robot_type == "fr3" and reader.layout.fps == 10
    assert any("log_time 0 mixed" in line for line in reader.warnings)


def flip(path: Path) -> None:
    """In the middle of the first chunk."""
    data = bytearray(path.read_bytes())
    data[data.index(b"lz4") + 100] ^= 0x10
    path.write_bytes(bytes(data))


def replaced(row: int, topic: str, message: Any) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        messages = json_timeline()
        index = [i for i, item in enumerate(messages) if item[1] == topic][row]
        messages[index] = (messages[index][0], topic, message)
        mcap_json(path, messages)

    return damage


def only(*topics_kept: str) -> Callable[[Path], object]:
    return lambda path: mcap_json(path, [m for m in json_timeline() if m[1] in topics_kept])


def back(path: Path) -> None:
    messages = json_timeline()
    middle = len(messages) // 2
    shifted = [(at - 300_000_000, topic, m) for at, topic, m in messages[middle:]]
    mcap_json(path, messages[:middle] + shifted)


def chunk_bomb(path: Path) -> None:
    """A chunk of zeros that says it holds less than it does."""
    import zstandard

    packer = zstandard.ZstdCompressor().compressobj()
    data = b"".join(packer.compress(bytes(2**24)) for _ in range(128)) + packer.flush()
    body = struct.pack("<QQQI", 0, 1, 1000, 0) + struct.pack("<I", 4) + b"zstd"
    body += struct.pack("<Q", len(data)) + data
    header = struct.pack("<I", 0) * 2
    magic = b"\x89MCAP0\r\n"
    record = lambda op, data: bytes([op]) + struct.pack("<Q", len(data)) + data  # noqa: E731
    path.write_bytes(magic + record(1, header) + record(6, body))


BAD_MCAP: dict[str, tuple[Callable[[Path], object], Reason]] = {
    "truncated": (halve, Reason.UNREADABLE_DATA),
    "a bit": (flip, Reason.UNREADABLE_DATA),
    "empty": (lambda p: p.write_bytes(b""), Reason.UNREADABLE_DATA),
    "wrong magic": (other_magic, Reason.UNREADABLE_DATA),
    "absurd record": (
        lambda p: p.write_bytes(b"\x89MCAP0\r\n\x01" + struct.pack("<Q", 2**62)),
        Reason.UNREADABLE_DATA,
    ),
    "bomb": (chunk_bomb, Reason.UNREADABLE_DATA),
    "no messages": (lambda p: mcap_json(p, []), Reason.EMPTY_EPISODE),
    "no commands": (only("/joint_states"), Reason.MISSING_COLUMN),
    "no state": (only("/action", "/robot_description"), Reason.MISSING_COLUMN),
    "not JSON": (replaced(6, "/joint_states", b"{"), Reason.UNREADABLE_DATA),
    "other joints": (
        replaced(6, "/joint_states", {"name": ["x", "y"], "position": [1, 2]}),
        Reason.WRONG_WIDTH,
    ),
    "wider": (replaced(6, "/action", {"data": [1, 2, 3]}), Reason.WRONG_WIDTH),
    "NaN": (
        replaced(6, "/joint_states", b'{"name": ["a", "b"], "position": [NaN, 1]}'),
        Reason.NAN_IN_SIGNALS,
    ),
    "infinite": (replaced(6, "/action", b'{"data": [1e999, 1]}'), Reason.NAN_IN_SIGNALS),
    "too large": (replaced(6, "/action", b'{"data": [1e300, 1]}'), Reason.NAN_IN_SIGNALS),
    "absurd chunk": (
        lambda p: p.write_bytes(
            b"\x89MCAP0\r\n\x06" + struct.pack("<QQQQII", 50, 0, 1, 10, 0, 0) + b"\xff" * 22
        ),
        Reason.UNREADABLE_DATA,
    ),
    "clock jumps back": (back, Reason.TIMESTAMPS_NOT_INCREASING),
    "few messages": (lambda p: mcap_json(p, json_timeline(5)), Reason.TOO_SHORT),
}


def test_every_kind_of_bad_mcap_is_kept_aside_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "fr3"
    mcap_json(folder / "00.mcap", json_timeline())
    names = {}
    for number, (name, (damage, _)) in enumerate(BAD_MCAP.items(), start=1):
        damage(mcap_json(folder / f"{number:02d}.mcap", json_timeline()))
        names[f"{number:02d}.mcap"] = name
    report = ingest(tmp_path / "out", folder)
    assert report.episodes == 1
    kept = {names[Path(k).name]: r for k, (r, _) in by_file(tmp_path / "out").items()}
    assert kept == {name: reason.value for name, (_, reason) in BAD_MCAP.items()}


def sql(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(path)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return damage


BAD_BAG: dict[str, tuple[Callable[[Path], object], Reason]] = {
    "truncated": (halve, Reason.UNREADABLE_DATA),
    "empty": (lambda p: p.write_bytes(b""), Reason.UNREADABLE_DATA),
    "wrong magic": (other_magic, Reason.UNREADABLE_DATA),
    "no tables": (sql("DROP TABLE messages"), Reason.UNREADABLE_DATA),
    "no topics": (sql("DELETE FROM topics"), Reason.UNREADABLE_DATA),
    "no messages": (sql("DELETE FROM messages"), Reason.EMPTY_EPISODE),
    "cut messages": (
        sql("UPDATE messages SET data = substr(data, 1, 30)"), Reason.UNREADABLE_DATA),
    "text for data": (sql("UPDATE messages SET data = 'x'"), Reason.UNREADABLE_DATA),
    "unknown type": (
        sql("UPDATE topics SET type = 'x/msg/Y'"), Reason.UNKNOWN_ENCODING),
    "no commands": (
        sql("DELETE FROM messages WHERE topic_id IN "
            "(SELECT id FROM topics WHERE name = '/arm/joint_commands')"),
        Reason.MISSING_COLUMN),
    "broken pictures": (
        sql("UPDATE messages SET data = substr(data, 1, length(data) - 20) WHERE topic_id IN "
            "(SELECT id FROM topics WHERE name = '/front/image_raw')"),
        Reason.UNREADABLE_VIDEO),
}  # fmt: skip


def test_every_kind_of_bad_bag_is_kept_aside_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "panda"
    bag(folder / "good", timeline())
    names = {}
    for number, (name, (damage, _)) in enumerate(BAD_BAG.items(), start=1):
        file = next(bag(folder / f"x{number:02d}", timeline()).glob("*.db3"))
        damage(file)
        names[file.name] = name
    report = ingest(tmp_path / "out", folder)
    assert report.episodes == 1
    kept = {names[Path(k).name]: r for k, (r, _) in by_file(tmp_path / "out").items()}
    assert kept == {name: reason.value for name, (_, reason) in BAD_BAG.items()}


# -- all formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hdf5", "tfrecord", "mcap", "db3"])
def test_random_damage_never_crashes(kind: str, tmp_path: Path) -> None:
    """Sixty times some bytes are overwritten or the end is cut: an episode or a typed reason."""
    folder = tmp_path / "d"
    build: dict[str, Callable[[], object]] = {
        "hdf5": lambda: robomimic(folder / "a.hdf5", demos=1),
        "tfrecord": lambda: rlds(folder, [framed(example(steps(0, 4)))]),
        "mcap": lambda: mcap_cdr(folder / "a.mcap", timeline()),
        "db3": lambda: bag(folder / "a", timeline()),
    }
    build[kind]()
    file = next(p for p in sorted(folder.rglob("*")) if f".{kind}" in p.name)
    whole, random = file.read_bytes(), np.random.default_rng(7)
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(0, len(data), random.integers(1, 40)):
            data[at] = random.integers(256)
        file.write_bytes(
            bytes(data[: random.integers(1, len(data) + 1)] if random.random() < 0.3 else data)
        )
        try:
            found = read(folder)
        except DataError:
            continue
        assert all(e.problem is not None or len(e.timestamps_s) for e in found)


def test_a_pickle_among_the_files_is_never_opened(tmp_path: Path) -> None:
    robomimic(tmp_path / "d/low.hdf5", pictures=False)
    (tmp_path / "d/meta.pkl").write_bytes(b"cos\nabort\n(tR.")
    assert [e.problem for e in read(tmp_path / "d")] == [None, None]


def test_a_file_of_another_name_is_found_by_its_first_bytes(tmp_path: Path) -> None:
    robomimic(tmp_path / "d/recording.bin", pictures=False)
    assert opened(tmp_path / "d").format.startswith("HDF5")
    mcap_json(tmp_path / "e/recording", json_timeline())
    assert opened(tmp_path / "e").format == "MCAP (JSON)"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0", "stack cube"),
        ("NutAssemblySquare", "nut assembly square"),
        ("PickPlace_D0", "pick place d0"),
    ],
)
def test_words_of_an_environment(name: str, words: str) -> None:
    assert arrays.sentence(name) == words


def test_topics_that_cover_little_of_a_recording_are_no_signals() -> None:
    def body(names: list[str]) -> Callable[[], Any]:
        return lambda: {"name": names, "position": [0.0] * len(names)}

    def messages() -> Iterator[topics.Message]:
        for row in range(10):
            yield topics.Message("/joint_states", START_NS + row * 10**9, body(["a"]))
            yield topics.Message("/joint_command", START_NS + row * 10**9, body(["b"]))
            yield topics.Message("/in/first_command", START_NS + row * 10**7, body(["c"]))

    chosen = topics.roles(topics.survey(messages()), Said())
    assert chosen is not None and (chosen.state, chosen.action) == (
        ("/joint_states",),
        ("/joint_command",),
    )
