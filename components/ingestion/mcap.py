"""Reads MCAP recordings with messages in JSON or in ROS 2's CDR.

Chunks are checked by their CRC and bounded in size before they are unpacked. Messages in another
encoding are counted, not decoded. Format: mcap.dev/spec.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from typing import Any, BinaryIO, cast

import lz4.frame
import zstandard
from mcap import records
from mcap.exceptions import McapError
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap_ros2.decoder import DecoderFactory

from components.ingestion import bags, magic
from components.ingestion.source import Source
from components.ingestion.topics import DamagedError, Message, UnknownEncodingError

MAGIC = b"\x89MCAP0\r\n"
MAX_RECORD_BYTES = 2**28  # of one record or unpacked chunk; recorders write chunks of 1 to 64 MB
DAMAGE = (
    McapError,
    ValueError,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    MemoryError,
    RuntimeError,  # lz4
    OverflowError,
    zstandard.ZstdError,
)
UNDECODABLE = (
    McapError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
)


def holds(source: Source) -> bool:
    """Whether one of the source's files is MCAP."""
    return bool(magic.files(source, MAGIC, (".mcap",)))


class Reader(bags.Reader):
    """All MCAP files of one source."""

    def __init__(self, source: Source, min_camera_share: float) -> None:
        files = magic.files(source, MAGIC, (".mcap",))
        super().__init__(source, files, bags.Format("MCAP", messages, notes))
        told = [source.once(path, "encodings", partial(_encodings, source, path)) for path in files]
        encodings = sorted({encoding for said in told for encoding in said})
        self.format = f"MCAP ({', '.join(encodings) or 'no messages'})"


def messages(source: Source, path: str) -> Iterator[Message]:
    """All messages in the order of the file. DamagedError when it cannot be read to its end."""
    schemas: dict[int, records.Schema] = {}
    channels: dict[int, records.Channel] = {}
    decoders: dict[int, Callable[[bytes], Any]] = {}
    for record in _records(source, path):
        if isinstance(record, records.Schema):
            schemas[record.id] = record
        elif isinstance(record, records.Channel):
            channels[record.id] = record
            decoders[record.id] = decoder(record.message_encoding, schemas.get(record.schema_id))
        elif isinstance(record, records.Message):
            if record.channel_id not in channels:
                raise DamagedError(f"a message on channel {record.channel_id}, which is not there")
            decode, data = decoders[record.channel_id], record.data
            yield Message(
                channels[record.channel_id].topic,
                record.log_time,
                lambda decode=decode, data=data: decode(data),  # type: ignore[misc]
            )


def notes(source: Source, path: str) -> dict[str, str]:
    """Metadata records of a file in one mapping; empty when it is damaged."""
    found: dict[str, str] = {}
    try:
        for record in _records(source, path):
            if isinstance(record, records.Metadata):
                found |= record.metadata
    except DamagedError:
        return {}
    return found


def decoder(encoding: str, schema: records.Schema | None) -> Callable[[bytes], Any]:
    """What turns a message's bytes into a mapping or an object; it raises DamagedError."""
    if encoding == "json":
        return _json
    if encoding == "cdr" and schema is not None and schema.encoding == "ros2msg":
        return cdr(schema.name, schema.data.decode(errors="replace"))
    return _refusing(
        f"messages in {encoding or 'no encoding'} are not decoded", UnknownEncodingError
    )


def cdr(name: str, definition: str) -> Callable[[bytes], Any]:
    """A decoder by a definition in the syntax of ROS 2's .msg files; nothing is executed."""
    schema = records.Schema(id=1, name=name, encoding="ros2msg", data=definition.encode())
    try:
        with redirect_stderr(io.StringIO()):  # the parser prints what it then raises
            read = DecoderFactory().decoder_for("cdr", schema)
    except Exception as error:  # the parser raises kinds of its own, and KeyError, ValueError, ...
        return _refusing(f"{name}: the message definition is damaged: {error}")
    if read is None:
        return _refusing(f"{name}: no decoder")

    def decode(data: bytes) -> Any:
        try:
            return read(data)
        except UNDECODABLE as error:
            raise DamagedError(f"{name}: a message cannot be decoded: {error}") from error

    return decode


def _refusing(why: str, kind: type[DamagedError] = DamagedError) -> Callable[[bytes], Any]:
    def refuse(data: bytes) -> Any:
        raise kind(why)

    return refuse


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"a message is no JSON: {error}") from error


def _records(source: Source, path: str) -> Iterator[records.McapRecord]:
    with source.file(path).open("rb") as file:
        reader = StreamReader(
            cast(BinaryIO, _Bounded(file, source.listed[path].size)),
            emit_chunks=True,
            validate_crcs=True,
            record_size_limit=MAX_RECORD_BYTES,
        )
        try:
            for record in reader.records:
                if isinstance(record, records.Chunk):
                    yield from breakup_chunk(_bounded(record), validate_crc=True)
                else:
                    yield record
        except DAMAGE as error:
            said = str(error) or "the file ends in the middle"
            raise DamagedError(f"{type(error).__name__}: {said}"[:200]) from error


class _Bounded:
    """A file that never makes room for more than it holds, whatever length a record names."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, length: int) -> bytes:
        """At most what is left."""
        return self._file.read(min(length, self._size))


def _bounded(chunk: records.Chunk) -> records.Chunk:
    """The chunk, when what it unpacks to is bounded; DamagedError for a decompression bomb."""
    size = chunk.uncompressed_size
    if chunk.compression == "zstd":
        size = max(size, zstandard.frame_content_size(chunk.data))
    elif chunk.compression == "lz4":
        size = max(size, cast(int, lz4.frame.get_frame_info(chunk.data)["content_size"]))
        if lz4.frame.get_frame_info(chunk.data)["content_size"] == 0:
            size = max(size, 255 * len(chunk.data))  # the most that LZ4 unpacks
    if size > MAX_RECORD_BYTES:
        raise DamagedError(f"a chunk of {len(chunk.data)} bytes unpacks to {size}; never unpacked")
    return chunk


def _encodings(source: Source, path: str) -> list[str]:
    try:
        found = [r for r in _records(source, path) if isinstance(r, records.Channel)]
    except DamagedError:
        return []
    said = {"cdr": "ROS 2 CDR", "json": "JSON"}
    return sorted({said.get(c.message_encoding, c.message_encoding) for c in found})
