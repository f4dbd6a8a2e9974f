"""Reads ROS 2 bags in SQLite files (`.db3`), with or without their `metadata.yaml`.

Types of messages come from the bag itself where it has them (since Iron), else from the standard
interfaces that the package rosbags carries. Format: ros2/rosbag2, storage plugin sqlite3.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from typing import Any
from urllib.parse import quote

from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.base import TypesysError

from components.ingestion import bags, magic, mcap
from components.ingestion.source import Source
from components.ingestion.topics import DamagedError, Message

MAGIC = b"SQLite format 3\0"
MAX_MESSAGE_BYTES = 2**28


def holds(source: Source) -> bool:
    """Whether one of the source's files is an SQLite database."""
    return bool(magic.files(source, MAGIC, (".db3",)))


class Reader(bags.Reader):
    """All bags of one source."""

    def __init__(self, source: Source, min_camera_share: float) -> None:
        files = magic.files(source, MAGIC, (".db3",))
        super().__init__(source, files, bags.Format("ROS 2 bag (.db3)", messages, _no_notes))


def messages(source: Source, path: str) -> Iterator[Message]:
    """All messages by time. DamagedError when the file is no bag or cannot be read to its end."""
    address = f"file:{quote(str(source.file(path)))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as bag:
            decoders, names = _decoders(bag)
            rows = bag.execute(
                "SELECT topic_id, timestamp, data FROM messages ORDER BY timestamp, id"
            )
            for topic, time_ns, data in rows:
                if topic not in names or not isinstance(time_ns, int):
                    raise DamagedError(f"a message of topic {topic}, which is not there")
                if not isinstance(data, bytes) or len(data) > MAX_MESSAGE_BYTES:
                    raise DamagedError(f"a message of {names[topic]} is no data")
                decode = decoders[topic]
                yield Message(
                    names[topic],
                    time_ns,
                    lambda decode=decode, data=data: decode(data),  # type: ignore[misc]
                )
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DamagedError(f"not a readable bag: {error}") from error


def _decoders(bag: sqlite3.Connection) -> tuple[dict[int, Callable[[bytes], Any]], dict[int, str]]:
    own: dict[str, str] = {}
    tables = {name for (name,) in bag.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    if "message_definitions" in tables:
        rows = bag.execute(
            "SELECT topic_type, encoded_message_definition FROM message_definitions "
            "WHERE encoding = 'ros2msg'"
        )
        own = {str(name): str(text) for name, text in rows}
    decoders: dict[int, Callable[[bytes], Any]] = {}
    names: dict[int, str] = {}
    for number, name, kind, encoding in bag.execute(
        "SELECT id, name, type, serialization_format FROM topics"
    ):
        names[number] = str(name)
        definition = own.get(kind) or _standard(str(kind))
        decoders[number] = (
            mcap.cdr(str(kind), definition)
            if encoding == "cdr" and definition
            else mcap.decoder(f"{kind} as {encoding}", None)
        )
    return decoders, names


@cache
def _standard(kind: str) -> str | None:
    """The definition of a standard type with all that it needs; None for another type."""
    try:
        return get_typestore(Stores.ROS2_JAZZY).generate_msgdef(kind, ros_version=2)[0]
    except TypesysError:
        return None


def _no_notes(source: Source, path: str) -> dict[str, str]:
    return {}
