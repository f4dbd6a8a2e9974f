"""The sample tables of an MP4's video as arrays: read, and written around copied bytes.

No object for each picture, so that small pictures cost little. Boxes: ISO/IEC 14496-12 (8.2 `mvhd`,
8.4 `mdhd` `hdlr`, 8.5 `stsd`, 8.6 `stts` `ctts` `stss` `elst`, 8.7 `stsz` `stsc` `stco` `co64`);
`esds`: ISO/IEC 14496-1, 7.2.6. What is not plain (fragments, several descriptions, edits that cut)
is refused, never guessed at.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

MOST_TABLES = 1 << 26  # bytes of a `moov`
MOST_PICTURES = 1 << 22  # some 39 hours at 30 Hz
MOST_BOXES = 4096  # side by side
HEAD = 16  # bytes of a box's header with a 64-bit size
FIXED = 78  # bytes of a picture's description before its boxes
IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
RATES = {b"btrt", b"free", b"skip"}  # boxes of a description that say nothing of the pictures
# copying within the kernel is not possible between these files
ELSEWHERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class NotPlainError(ValueError):
    """The file is no MP4, is damaged, or is one that only a demuxer understands."""


class Track(NamedTuple):
    """The N pictures of a file's first video, in decoding order."""

    matrix: bytes  # how the picture is turned
    entry: bytes  # its description, without rates: what must agree within one file
    timescale: int  # ticks a second
    offset: Numbers  # (N,) bytes from the file's start
    size: Numbers  # (N,) bytes, above 0
    pts: Numbers  # (N,) ticks
    duration: Numbers  # (N,) ticks
    key: npt.NDArray[np.bool_]  # (N,)

    @property
    def side(self) -> tuple[int, int]:
        """Height and width by the description."""
        width, height = struct.unpack_from(">HH", self.entry, 8 + 24)
        return height, width

    @property
    def boxes(self) -> dict[bytes, bytes]:
        """What the description says more, by kind."""
        return {kind: bytes(box) for kind, box in _boxes(memoryview(self.entry)[8 + FIXED :])}

    def some(self, chosen: npt.NDArray[np.intp]) -> Track:
        """Only the pictures with these numbers."""
        return self._replace(
            offset=self.offset[chosen],
            size=self.size[chosen],
            pts=self.pts[chosen],
            duration=self.duration[chosen],
            key=self.key[chosen],
        )


def read(path: Path) -> Track:
    """The tables of a plain MP4. NotPlainError for any other file; OSError when it is gone.

    Memory goes by the bytes that are there, never by a count that the file claims.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _track(_moov(file, size), size)
        except (struct.error, KeyError, IndexError, OverflowError) as error:
            raise NotPlainError(f"{path.name}: damaged boxes: {error!r}") from error


def _moov(file: BinaryIO, size: int) -> memoryview:
    at, found = 0, None
    for _ in range(MOST_BOXES):
        if at + 8 > size:
            break
        file.seek(at)
        head = file.read(HEAD)
        length, kind, start = _header(head, size - at)
        if kind == b"moof" or length < start:
            raise NotPlainError("fragments, or a box that ends before it begins")
        if kind == b"moov" and found is None and length <= min(MOST_TABLES, size - at):
            file.seek(at + start)
            found = memoryview(file.read(length - start))
        at += length
    if found is None:
        raise NotPlainError("no moov")
    return found


def _header(head: bytes | memoryview, room: int) -> tuple[int, bytes, int]:
    """Length with header, kind, and length of the header."""
    length, kind = struct.unpack_from(">I4s", head)
    if length == 1:
        return *struct.unpack_from(">Q", head, 8), kind, 16
    return length or room, kind, 8


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    for _ in range(MOST_BOXES):
        if at + 8 > len(data):
            return
        length, kind, start = _header(data[at : at + HEAD], len(data) - at)
        if length < start or at + length > len(data):
            raise NotPlainError(f"a box {kind!r} leaves the one around it")
        yield kind, data[at + start : at + length]
        at += length
    raise NotPlainError(f"more than {MOST_BOXES} boxes side by side")


def _inside(data: memoryview, *path: bytes) -> memoryview:
    """The first box of each kind, one within the other. KeyError when one is missing."""
    for kind in path:
        data = dict(reversed(list(_boxes(data))))[kind]
    return data


def _track(moov: memoryview, file_size: int) -> Track:
    if any(kind == b"mvex" for kind, _ in _boxes(moov)):
        raise NotPlainError("fragments")
    for kind, trak in _boxes(moov):
        if kind == b"trak" and bytes(_inside(trak, b"mdia", b"hdlr")[8:12]) == b"vide":
            return _tables(moov, trak, file_size)
    raise NotPlainError("no video")


def _tables(moov: memoryview, trak: memoryview, file_size: int) -> Track:
    stbl = _inside(trak, b"mdia", b"minf", b"stbl")
    dref = _inside(trak, b"mdia", b"minf", b"dinf", b"dref")
    if not dref[19] & 1:
        raise NotPlainError("pictures in another file")
    kinds = [bytes(box[4:8]) for kind, box in _boxes(stbl) if kind == b"sbgp"]
    if {b"rap ", b"sync"} & set(kinds) or any(kind == b"stps" for kind, _ in _boxes(stbl)):
        raise NotPlainError("pictures that are key pictures in part")
    boxes = dict(_boxes(stbl))
    size = _sizes(boxes[b"stsz"], file_size)
    offset = _offsets(boxes, size)
    room = file_size - size
    if size.sum() > file_size or (offset < 0).any() or (offset > room).any():
        raise NotPlainError("pictures outside of the file")
    duration = _repeated(_table(boxes[b"stts"], ">u4", 2), len(size))
    shown = np.cumsum(duration) - duration
    if b"ctts" in boxes:
        shown = shown + _repeated(_table(boxes[b"ctts"], ">i4", 2), len(size))
    scale = _clock(_inside(trak, b"mdia", b"mdhd"))
    pts = shown + _shift(trak, shown, scale, _clock(_inside(moov, b"mvhd")))
    key = _keys(boxes, len(size))
    tkhd = _inside(trak, b"tkhd")
    matrix = bytes(tkhd[52:88] if tkhd[0] else tkhd[40:76])
    track = Track(matrix, _entry(boxes[b"stsd"]), scale, offset, size, pts, duration, key)
    return track.some(np.flatnonzero(size))


def _table(box: memoryview, kind: str, width: int, at: int = 4) -> Numbers:
    """(count, width) numbers behind a count that lies at a place of a box."""
    (count,) = struct.unpack_from(">I", box, at)
    if count * width * np.dtype(kind).itemsize > len(box) - at - 4:
        raise NotPlainError("a table that is longer than its box")
    values = np.frombuffer(box, kind, count * width, at + 4).astype(np.int64)
    return values.reshape(-1, width)


def _sizes(box: memoryview, file_size: int) -> Numbers:
    each, count = struct.unpack_from(">II", box, 4)
    if not 0 < count <= MOST_PICTURES or each * count > file_size:
        raise NotPlainError("no pictures, or too many")
    sizes = np.full(count, each, np.int64) if each else _table(box, ">u4", 1, 8)[:, 0]
    if not sizes.any():
        raise NotPlainError("no bytes of pictures")
    return sizes


def _offsets(boxes: dict[bytes, memoryview], size: Numbers) -> Numbers:
    """Pictures lie one behind the other within a chunk."""
    kind, name = (">u8", b"co64") if b"co64" in boxes else (">u4", b"stco")
    chunk = _table(boxes[name], kind, 1)[:, 0]
    first, count, described = _table(boxes[b"stsc"], ">u4", 3).T
    runs = np.diff(first, append=len(chunk) + 1)
    if first[0] != 1 or (runs <= 0).any() or (described != 1).any() or count.max() > len(size):
        raise NotPlainError("chunks out of order, or of several descriptions")
    if runs @ count != len(size):
        raise NotPlainError("chunks that hold another number of pictures")
    counts = np.repeat(count, runs)
    before = np.cumsum(size) - size
    start = np.cumsum(counts) - counts
    base = chunk - np.append(before, size.sum())[start]
    return np.asarray(np.repeat(base, counts) + before)


def _repeated(runs: Numbers, total: int) -> Numbers:
    """Values (count, value) written out, as many as there are pictures."""
    if runs[:, 0].sum() != total or (runs[:, 0] < 0).any():
        raise NotPlainError("times of another number of pictures")
    return np.repeat(runs[:, 1], runs[:, 0])


def _keys(boxes: dict[bytes, memoryview], total: int) -> npt.NDArray[np.bool_]:
    if b"stss" not in boxes:
        return np.ones(total, np.bool_)
    numbers = _table(boxes[b"stss"], ">u4", 1)[:, 0]
    if not len(numbers) or numbers.min() < 1 or numbers.max() > total:
        raise NotPlainError("key pictures that are none of the pictures")
    key = np.zeros(total, np.bool_)
    key[numbers - 1] = True
    return key


def _clock(box: memoryview) -> int:
    """Ticks a second, of `mdhd` or `mvhd`."""
    (scale,) = struct.unpack_from(">I", box, 20 if box[0] else 12)
    if not scale:
        raise NotPlainError("a clock without ticks")
    return int(scale)


def _shift(trak: memoryview, shown: Numbers, scale: int, movie_scale: int) -> int:
    """What the edit list adds to each picture's time; it may wait, but cut nothing."""
    try:
        box = _inside(trak, b"edts", b"elst")
    except KeyError:
        return 0
    kind = ">Qqi" if box[0] else ">Iii"
    if len(box) > 8 + 2 * struct.calcsize(kind):
        raise NotPlainError("edits")
    edits = list(struct.iter_unpack(kind, box[8:]))
    wait = 0
    if len(edits) == 2 and edits[0][1] == -1:
        wait = round(edits.pop(0)[0] * scale / movie_scale)
    if len(edits) != 1 or edits[0][1] < 0 or edits[0][2] != 1 << 16:
        raise NotPlainError("edits")
    length, start, _ = edits[0]
    end = start + length * scale / movie_scale
    if shown.min() < start or (length and shown.max() >= end):
        raise NotPlainError("edits that cut pictures")
    return int(wait - start)


def _entry(stsd: memoryview) -> bytes:
    """The one description, without its maker's name and rates, which change from file to file."""
    entries = list(_boxes(stsd[8:]))
    if len(entries) != 1 or entries[0][0] in (b"encv", b"resv") or len(entries[0][1]) < FIXED:
        raise NotPlainError("several descriptions, or encrypted pictures")
    kind, said = entries[0]
    fixed = bytes(6) + b"\0\1" + bytes(16) + bytes(said[24:42]) + bytes(32)
    boxes = [
        _box(name, _without_rates(bytes(box)) if name == b"esds" else bytes(box))
        for name, box in _boxes(said[FIXED:])
        if name not in RATES
    ]
    return _box(kind, fixed, bytes(said[74:78]), *boxes)


def _without_rates(esds: bytes) -> bytes:
    """Buffer size and bit rates as zeros, where they are at their usual place."""
    at, data = 4, bytearray(esds)
    for tag, skip in ((3, 3), (4, 2)):
        if at >= len(data) or data[at] != tag:
            return esds
        at += 1
        while at < len(data) and data[at] & 0x80:
            at += 1
        at += 1 + skip
    if at + 11 <= len(data):
        data[at : at + 11] = bytes(11)
    return bytes(data)


def runs(offset: Numbers, size: Numbers) -> Iterator[tuple[int, int]]:
    """Where pictures lie one behind the other: offset and length of each stretch, bytes."""
    if not len(offset):
        return
    starts = np.flatnonzero(np.append(True, offset[1:] != offset[:-1] + size[:-1]))
    lengths = np.add.reduceat(size, starts)
    yield from zip(offset[starts].tolist(), lengths.tolist(), strict=True)


def fill(target: npt.NDArray[np.uint8], handle: int, offset: Numbers, size: Numbers) -> None:
    """Read pictures of an open file one behind the other. ValueError when it became shorter."""
    at = 0
    for start, length in runs(offset, size):
        end, away = at + length, start - at
        while at < end:
            done = os.preadv(handle, [target.data[at:end]], at + away)
            if not done:
                raise ValueError("the video became shorter while it was read")
            at += done


class Writer:
    """One MP4 of one video: bytes copied behind each other, the tables last."""

    def __init__(self, path: Path, track: Track, timescale: int) -> None:
        self._file = path.open("wb")
        self._matrix, self._entry, self._timescale = track.matrix, track.entry, timescale
        self._side = track.side
        brands = b"isom" + struct.pack(">I", 512) + b"isomiso2mp41"
        self._file.write(_box(b"ftyp", brands))
        self._data = self._file.tell()
        self._file.write(bytes(HEAD))
        self._file.flush()
        self._end = self._data + HEAD
        self._chunks: list[tuple[int, int]] = []  # offset, pictures
        self._columns: list[tuple[Numbers, Numbers, Numbers, npt.NDArray[np.bool_]]] = []

    def takes(self, track: Track, limit_bytes: int) -> bool:
        """Whether a track's pictures may follow: described the same, and not too many bytes."""
        agrees = (self._matrix, self._entry) == (track.matrix, track.entry)
        return agrees and self._end - self._data - HEAD + int(track.size.sum()) <= limit_bytes

    def append(self, source: Path, track: Track, pts: Numbers, dts: Numbers) -> None:
        """Copy the pictures of a track, shown at `pts` (N,), decoded at `dts` (N,), ticks.

        ValueError when the source became shorter.
        """
        self._chunks.append((self._end, len(track.size)))
        self._columns.append((track.size, pts, dts, track.key))
        with source.open("rb") as file:
            for offset, length in runs(track.offset, track.size):
                self._copy(file.fileno(), offset, length)

    def _copy(self, source: int, offset: int, length: int) -> None:
        while length:
            try:
                done = os.copy_file_range(source, self._file.fileno(), length, offset, self._end)
            except OSError as error:
                if error.errno not in ELSEWHERE:
                    raise
                data = os.pread(source, min(length, 1 << 23), offset)
                done = os.pwrite(self._file.fileno(), data, self._end)
            if not done:
                raise ValueError("the video became shorter while it was copied")
            offset, length, self._end = offset + done, length - done, self._end + done

    def close(self, end: int) -> None:
        """Write the tables; the last picture is over at `end` ticks."""
        file = self._file
        file.seek(self._data)
        file.write(struct.pack(">I4sQ", 1, b"mdat", self._end - self._data))
        file.seek(self._end)
        file.write(self._moov(end))
        file.close()

    def _moov(self, end: int) -> bytes:
        size, pts, dts, key = (
            np.concatenate(column) for column in zip(*self._columns, strict=True)
        )
        last = end - int(pts.max())
        scale, length = self._timescale, int(dts[-1] - dts[0]) + last
        height, width = self._side
        mvhd = struct.pack(">QQIQIH10x", 0, 0, scale, end, 1 << 16, 1 << 8)
        tkhd = struct.pack(">QQI4xQ8x4H", 0, 0, 1, end, 0, 0, 0, 0)
        elst = struct.pack(">IQqI", 1, end, -int(dts[0]), 1 << 16)
        vmhd, dref = bytes(8), struct.pack(">II", 1, 12) + b"url " + b"\0\0\0\1"
        hdlr = bytes(4) + b"vide" + bytes(12) + b"VideoHandler\0"
        stbl = _box(b"stbl", *self._stbl(size, pts, dts, key, last))
        minf = _box(
            b"minf",
            _full(b"vmhd", vmhd, flags=1),
            _box(b"dinf", _full(b"dref", dref)),
            stbl,
        )
        mdhd = struct.pack(">QQIQHH", 0, 0, scale, length, 0x55C4, 0)
        mdia = _box(b"mdia", _full(b"mdhd", mdhd, 1), _full(b"hdlr", hdlr), minf)
        tkhd += self._matrix + struct.pack(">II", width << 16, height << 16)
        trak = _box(
            b"trak",
            _full(b"tkhd", tkhd, 1, flags=3),
            _box(b"edts", _full(b"elst", elst, 1)),
            mdia,
        )
        mvhd += IDENTITY + bytes(24) + struct.pack(">I", 2)
        return _box(b"moov", _full(b"mvhd", mvhd, 1), trak)

    def _stbl(
        self, size: Numbers, pts: Numbers, dts: Numbers, key: npt.NDArray[np.bool_], last: int
    ) -> Iterator[bytes]:
        yield _full(b"stsd", struct.pack(">I", 1) + self._entry)
        yield _full(b"stts", _counted(_runs_of(np.diff(dts, append=dts[-1] + last))))
        if (pts != dts).any():
            yield _full(b"ctts", _counted(_runs_of(pts - dts)))
        if not key.all():
            yield _full(b"stss", _counted(np.flatnonzero(key)[:, None] + 1))
        offsets, counts = np.array(self._chunks, np.int64).T
        change = np.flatnonzero(np.diff(counts, prepend=-1))
        yield _full(b"stsc", _counted(np.stack([change + 1, counts[change], change * 0 + 1], 1)))
        yield _full(b"stsz", bytes(4) + _counted(size[:, None]))
        if self._end < 1 << 32:
            yield _full(b"stco", _counted(offsets[:, None]))
        else:
            yield _full(b"co64", _counted(offsets[:, None], ">u8"))


def _runs_of(values: Numbers) -> Numbers:
    """Equal neighbours as (count, value)."""
    starts = np.flatnonzero(np.append(True, np.diff(values) != 0))
    return np.stack([np.diff(starts, append=len(values)), values[starts]], axis=1)


def _counted(rows: Numbers, kind: str = ">u4") -> bytes:
    if rows.min() < 0 or rows.max() >= 1 << 8 * np.dtype(kind).itemsize:
        raise ValueError("times or sizes that an MP4 cannot hold")
    return struct.pack(">I", len(rows)) + rows.astype(kind).tobytes()


def _full(kind: bytes, content: bytes, version: int = 0, *, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), content)


def _box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I4s", 8 + len(joined), kind) + joined
