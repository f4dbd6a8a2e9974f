"""Robot and operator, where the formats carry them, by the keys that recorders use."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
from mcap.writer import Writer as McapWriter

from components import records
from components.ingestion import formats, unlisted, who
from tests import grown
from tests import test_readers as readers
from tests.test_ingestion import dataset_v21, ingest

ADA = {"operator": "Ada", "robot_serial": "7"}


def told(folder: Path) -> list[dict[str, str]]:
    """What the reader of a folder says of each episode."""
    reader = formats.open_source(unlisted.opened(str(folder)), 0.5)
    return [reader.who(index, reader.read(index).notes) for index in reader.indices]


def test_keys_of_recorders() -> None:
    assert who.of({"user": "Ada", "robot_serial": "panda-295341"}) == {
        "operator": "Ada", "robot_serial": "panda-295341",
    }  # fmt: skip
    assert who.of({"robot": {"serial": 7}, "teleoperatorName": [" Ada\n L "]}) == {
        "operator": "Ada L", "robot_serial": "7",
    }  # fmt: skip
    assert who.of({"operator": ""}, {"operator": b"Bob"}) == {"operator": "Bob"}
    nothing = {"robot_type": "panda", "serialization": "cdr", "users": 3, "operator": {"a": 1.5}}
    assert who.of(nothing) == {}


def test_lerobot_says_it_of_episodes_or_of_all(tmp_path: Path) -> None:
    root = dataset_v21(tmp_path / "v21", 2)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"robot_id": "7", "operator": "Bob"}))
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"operator": "Ada"})
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    assert told(root) == [ADA | {"operator": "Bob"}, ADA]
    ingest(tmp_path, root)
    rows = records.read(tmp_path / "episodes/manifest.parquet", records.MANIFEST).to_pylist()
    assert {(row["operator"], row["robot_serial"]) for row in rows} == {("Bob", "7"), ("Ada", "7")}


def test_lerobot_v3_says_it_in_its_table(tmp_path: Path) -> None:
    root = grown.lerobot_v3(tmp_path / "v3", range(2))
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path).append_column("operator", pa.array(["Ada", None]))
    pq.write_table(table.append_column("robot_serial", pa.array([7, 7])), path)
    assert told(root) == [ADA, {"robot_serial": "7"}]


def test_hdf5_says_it_in_attributes(tmp_path: Path) -> None:
    path = readers.robomimic(tmp_path / "h/a.hdf5", 2, False)
    with h5py.File(path, "a") as file:
        file.attrs["robot_serial"] = 7
        file["data"].attrs["operator"] = "Bob"
        file["data/demo_1"].attrs["operator"] = "Ada"
    assert told(path.parent) == [ADA | {"operator": "Bob"}, ADA]


def test_names_that_are_no_text_break_nothing(tmp_path: Path) -> None:
    path = readers.robomimic(tmp_path / "h/a.hdf5", 1, False)
    with h5py.File(path, "a") as file:
        told_in = file["data/demo_0"].attrs
        told_in.create("operator", "J\xfcrgen".encode("latin-1"), dtype=h5py.string_dtype())
        h5py.h5a.create(
            file["data/demo_0"].id, b"when", h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR)
        )
    (who,) = told(path.parent)
    assert who["operator"].encode().decode() == who["operator"] == "J?rgen"


def test_mcap_says_it_in_metadata_records(tmp_path: Path) -> None:
    (tmp_path / "panda").mkdir()
    with (tmp_path / "panda/a.mcap").open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        writer.add_metadata("recording", ADA)
        schema = writer.register_schema(name="s", encoding="jsonschema", data=b"{}")
        channels = {name: writer.register_channel(name, "json", schema) for name in ("s", "a")}
        for row in range(9):
            data = json.dumps({"position": [row, row]}).encode()
            for channel in channels.values():
                writer.add_message(channel, log_time=row, data=data, publish_time=row)
        writer.finish()
    assert told(tmp_path / "panda") == [ADA]


def test_rlds_says_it_in_episode_metadata(tmp_path: Path) -> None:
    named = readers.steps(0) | {"episode_metadata/operator": [b"Ada"]}
    named |= {"episode_metadata/robot_serial": [b"7"]}
    both = [readers.framed(readers.example(v)) for v in (named, readers.steps(1))]
    assert told(readers.rlds(tmp_path / "panda", both)) == [ADA, {}]
