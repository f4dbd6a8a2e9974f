"""One object of S3 into one file, in ranged parts, going on where an earlier attempt ended.

Beside the partial file lies a journal: a line for each part that is there, with its CRC-32. A new
attempt, also after SIGKILL or a lost disk cache, keeps the parts whose bytes still have it.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from components import store
from components.errors import DataError, StoppedError
from components.outputs import sha256
from components.store import CutError, Object

PART_BYTES = 8 * 2**20  # of one request: a kill costs no more than this for each part under way
PART_S = 300.0  # a part takes longer only by waiting for its first byte
TRIES = 5  # of a part, in a row, without one byte more
LONGEST_WAIT_S = 8.0

PARTIAL, JOURNAL = ".partial", ".parts"


@dataclass(frozen=True)
class Download:
    """What the parts of one object share; `came` is told of bytes as they come."""

    uri: str
    wanted: Object
    folder: Path
    stop: threading.Event
    came: Callable[[int], None]

    @property
    def partial(self) -> Path:
        """Where the bytes are put before anybody may see them."""
        return self.folder / PARTIAL


def bring(download: Download, pool: Executor) -> str:
    """Complete the partial file and check it; its sha256. The caller holds the object's lock.

    DataError when the object changed, or when twice other bytes came than its ETag says;
    UserError and TemporaryError as in `store.read`; what came is kept for the next attempt.
    """
    for _ in range(2):
        _complete(download, pool)
        if (md5 := _other_md5(download)) is None:
            return sha256(download.partial)
        for name in (PARTIAL, JOURNAL):
            (download.folder / name).unlink(missing_ok=True)
    raise DataError(
        f"{download.uri}: object {download.wanted['path']!r} came twice with MD5 {md5}; "
        f"expected its ETag {download.wanted['etag']}. The object, or what stands between, is "
        "damaged."
    )


def missing_bytes(wanted: Object, folder: Path) -> int:
    """Bytes of an object that an earlier attempt did not leave in its folder, by the journal."""
    there = _journal(folder).keys()
    return sum(end - start for i, (start, end) in enumerate(_parts(wanted)) if i not in there)


def _complete(download: Download, pool: Executor) -> None:
    """Fill the partial file; parts that an earlier attempt left stay."""
    download.partial.touch()
    journal_path = download.folder / JOURNAL
    with download.partial.open("r+b") as file, journal_path.open("ab") as journal:
        file.truncate(download.wanted["size"])
        parts, there = _parts(download.wanted), _journal(download.folder)
        left = [i for i, part in enumerate(parts) if not _has(file, part, there.get(i))]

        def one(index: int) -> None:
            crc = _part(download, file.fileno(), *parts[index])
            os.write(journal.fileno(), f"{index} {crc:08x}\n".encode())  # appended as a whole

        if len(left) == 1:
            one(left[0])
            return
        futures = [pool.submit(one, index) for index in left]
        try:
            for future in futures:
                future.result()
        finally:  # the file is closed only when nobody writes to it
            for future in futures:
                future.cancel()
            wait(futures)


def _part(download: Download, file: int, start: int, end: int) -> int:
    """Bring bytes `start` to `end` in as many requests as it takes; their CRC-32."""
    crc, at, tries = 0, start, 0
    by = time.monotonic() + PART_S

    def write(piece: bytes) -> None:
        nonlocal crc, at, tries
        if download.stop.is_set():
            raise StoppedError(f"{download.uri}: stopped; what came is kept.")
        os.pwrite(file, piece, at)
        crc = zlib.crc32(piece, crc)
        at, tries = at + len(piece), 0
        download.came(len(piece))

    while at < end:
        try:
            store.read(
                download.uri, download.wanted, at, end, write, within_s=by - time.monotonic()
            )
        except CutError:
            tries += 1
            if tries >= TRIES or time.monotonic() > by:
                raise
            download.stop.wait(random.uniform(0, min(LONGEST_WAIT_S, 2.0**tries / 4)))
    return crc


def _parts(wanted: Object) -> list[tuple[int, int]]:
    """(start, end) of every part."""
    size = wanted["size"]
    return [(start, min(start + PART_BYTES, size)) for start in range(0, size, PART_BYTES)]


def _journal(folder: Path) -> dict[int, str]:
    """Part -> its CRC-32; a last line that was cut by a kill says nothing."""
    try:
        lines = (folder / JOURNAL).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    words = [line.split() for line in lines]
    return {int(w[0]): w[1] for w in words if len(w) == 2 and w[0].isdigit() and len(w[1]) == 8}


def _has(file: BinaryIO, part: tuple[int, int], crc: str | None) -> bool:
    start, end = part
    found = crc and f"{zlib.crc32(os.pread(file.fileno(), end - start, start)):08x}"
    return crc is not None and found == crc


def _other_md5(download: Download) -> str | None:
    """The file's MD5 if the object's ETag is another one; None where the ETag is no MD5."""
    if not re.fullmatch(r"[0-9a-f]{32}", download.wanted["etag"]):
        return None
    with download.partial.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    same = found == download.wanted["etag"] or not store.has_md5(download.uri, download.wanted)
    return None if same else found
