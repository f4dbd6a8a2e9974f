"""TFRecord files and tf.train.Example without TensorFlow: framing, checksums, features.

A record is: its length (uint64), masked CRC-32C of that, the data, masked CRC-32C of the data.
Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

MAX_RECORD_BYTES = 2**31 - 1  # protobuf's own limit
LANES = 1024  # a checksum is computed for so many parts side by side
Words = npt.NDArray[np.uint32]


class Place(NamedTuple):
    """Where a record's data lie in a file."""

    offset: int
    length: int
    checksum: int  # masked


class DamagedError(ValueError):
    """The file is no TFRecord file from here on."""


def places(path: Path) -> tuple[list[Place], str | None]:
    """All records of a file, data unread, and what is wrong where the file breaks off."""
    found: list[Place] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        while (offset := file.tell()) < size:
            try:
                place = _header(file, offset, size)
            except DamagedError as error:
                return found, f"record {len(found)} at byte {offset}: {error}"
            found.append(place)
            file.seek(place.offset + place.length + 4)
    return found, None


def read(path: Path, place: Place) -> bytes:
    """The data of one record. DamagedError when the checksum is another."""
    with path.open("rb") as file:
        file.seek(place.offset)
        data = file.read(place.length)
    if len(data) != place.length or masked(crc32c(data)) != place.checksum:
        raise DamagedError(f"the checksum of the record at byte {place.offset - 12} is wrong")
    return data


def _header(file: BinaryIO, offset: int, size: int) -> Place:
    head = file.read(12)
    if len(head) < 12:
        raise DamagedError("the file ends within a record's header")
    length, checksum = struct.unpack("<QI", head)
    if masked(crc32c(head[:8])) != checksum:
        raise DamagedError("the checksum of the length is wrong")
    if length > MAX_RECORD_BYTES or offset + 16 + length > size:
        raise DamagedError(f"a record of {length} bytes, beyond the end of the file")
    file.seek(offset + 12 + length)
    (data_checksum,) = struct.unpack("<I", file.read(4))
    return Place(offset + 12, length, data_checksum)


def features(data: bytes) -> dict[str, Any]:
    """The features of a tf.train.Example: lists of bytes, or (N,) float32 or int64.

    DamagedError when the data are no Example.
    """
    example = _example_class()()
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        raise DamagedError(f"not a tf.train.Example: {error}") from error
    found: dict[str, Any] = {}
    for entry in example.features.feature:
        kind = entry.value.WhichOneof("kind")
        if kind == "bytes_list":
            found[entry.key] = list(entry.value.bytes_list.value)
        elif kind == "float_list":
            found[entry.key] = np.array(entry.value.float_list.value, np.float32)
        elif kind == "int64_list":
            found[entry.key] = np.array(entry.value.int64_list.value, np.int64)
    return found


@cache
def _example_class() -> Any:
    """The message class, from a schema that is wire-compatible with feature.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="wamflow/example.proto", package="wamflow")
    file.syntax = "proto3"
    kinds = descriptor_pb2.FieldDescriptorProto
    lists = (("BytesList", kinds.TYPE_BYTES), ("FloatList", kinds.TYPE_FLOAT))
    for name, kind in (*lists, ("Int64List", kinds.TYPE_INT64)):
        _add(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        kind = "".join(part.title() for part in name.split("_"))
        _add(
            feature, name, number, kinds.TYPE_MESSAGE, type_name=f".wamflow.{kind}"
        ).oneof_index = 0
    entry = file.message_type.add(name="Entry")  # a map on the wire is a list of entries
    _add(entry, "key", 1, kinds.TYPE_STRING)
    _add(entry, "value", 2, kinds.TYPE_MESSAGE, type_name=".wamflow.Feature")
    group = file.message_type.add(name="Features")
    _add(group, "feature", 1, kinds.TYPE_MESSAGE, type_name=".wamflow.Entry", repeated=True)
    example = file.message_type.add(name="Example")
    _add(example, "features", 1, kinds.TYPE_MESSAGE, type_name=".wamflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("wamflow.Example"))


def _add(
    message: Any, name: str, number: int, kind: Any, *, type_name: str = "", repeated: bool = False
) -> Any:
    labels = descriptor_pb2.FieldDescriptorProto
    label = labels.LABEL_REPEATED if repeated else labels.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, type=kind, label=label)
    if type_name:
        field.type_name = type_name
    return field


def masked(checksum: int) -> int:
    """As TFRecord stores a checksum."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, reflected 0x82F63B78). Parts side by side, then joined pairwise."""
    values = np.frombuffer(data, np.uint8)
    lanes = LANES if len(values) >= 16 * LANES else 1
    steps = -(-len(values) // lanes)
    padded = np.zeros(lanes * steps, np.uint8)  # zeros in front change nothing: no start value
    if len(values):
        padded[len(padded) - len(values) :] = values
    if len(values) >= 4:  # a start value of all ones is the same as these four bits inverted
        padded[len(padded) - len(values) :][:4] ^= 0xFF
    else:
        return _short(data)
    sums: Words = np.zeros(lanes, np.uint32)
    table = _table()
    for column in np.ascontiguousarray(padded.reshape(lanes, steps).T):
        sums = table[(sums ^ column) & 0xFF] ^ (sums >> np.uint32(8))
    shift = _zeros(steps) if lanes > 1 else _table()
    while len(sums) > 1:
        sums = _apply(shift, sums[0::2]) ^ sums[1::2]
        shift = _apply(shift, shift)
    return int(sums[0]) ^ 0xFFFFFFFF


def _short(data: bytes) -> int:
    checksum, table = 0xFFFFFFFF, _table()
    for byte in data:
        checksum = int(table[(checksum ^ byte) & 0xFF]) ^ (checksum >> 8)
    return checksum ^ 0xFFFFFFFF


@cache
def _table() -> Words:
    """What each byte does to the sum, (256,)."""
    sums: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        sums = (sums >> np.uint32(1)) ^ np.where(sums & 1, np.uint32(0x82F63B78), np.uint32(0))
    return sums


def _zeros(count: int) -> Words:
    """What `count` zero bytes do to each bit of the sum, (32,): by repeated squaring."""
    bits: Words = np.uint32(1) << np.arange(32, dtype=np.uint32)
    one: Words = _table()[bits & np.uint32(0xFF)] ^ (bits >> np.uint32(8))
    result: Words = bits
    while count:
        if count & 1:
            result = _apply(one, result)
        one, count = _apply(one, one), count >> 1
    return result


def _apply(matrix: Words, sums: Words) -> Words:
    """A linear map, given by what it does to each of 32 bits, on (N,) sums."""
    result: Words = np.zeros(len(sums), np.uint32)
    for bit in range(32):
        result ^= np.where(sums >> np.uint32(bit) & np.uint32(1), matrix[bit], np.uint32(0))
    return result
