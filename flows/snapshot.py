"""The state of the sources as a file: every object with size and digest, in `inputs/sources.json`.

Objects in S3 have their ETag, and their version where the bucket keeps versions; nothing of them is
downloaded, and no key or endpoint is written.
It is ingestion's dependency, so DVC sees that something is new, and history says what was there.
Digests are remembered in `.wamflow/digests.sqlite` by path, size, both times and inode, so that a
second snapshot reads nothing; a file that changed in the last seconds is always read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.outputs import sha256, write_json
from components.s3_failures import hidden

SETTLED_S = 2.0  # a younger file could change again within one tick of its clock


def sources(values: dict[str, dict[str, Any]]) -> list[str]:
    """`ingestion.sources` of params.yaml. UserError when it is no list of addresses."""
    found = values.get("ingestion", {}).get("sources")
    if not isinstance(found, list) or not all(isinstance(address, str) for address in found):
        raise UserError(
            "params.yaml: ingestion.sources: expected a list of folders and s3:// addresses; got "
            f"{found!r}. Write it as [folder, s3://bucket/prefix]."
        )
    return found


def write(sources: list[str], base: Path, target: Path, shared: Path) -> Path:
    """List all sources (relative ones lie in `base`) into `target`; `shared` keeps the digests.

    UserError names a source that is missing, empty or unreadable; TemporaryError when S3 does not
    answer.
    """
    with closing(_digests(shared)) as known, known:
        listed = [_source(address, base, known) for address in sources]
    write_json(target, {"sources": listed})
    return target


def _source(address: str, base: Path, known: sqlite3.Connection) -> dict[str, Any]:
    """One source: absolute address, name (the address's last part), objects sorted by path."""
    if address.startswith("s3://"):
        from components.ingestion import bucket

        return bucket.listed(address).model_dump(exclude_defaults=True)
    if "://" in address:
        raise UserError(
            f"source {hidden(address)}: expected a folder or s3://bucket/prefix. Other "
            "servers that speak S3 are named by AWS_ENDPOINT_URL."
        )
    folder = (base / Path(address).expanduser()).resolve()
    objects = list(_local(folder, known))
    if not objects:
        raise UserError(f"source {folder}: empty; expected the files of a data set.")
    return {"uri": str(folder), "name": folder.name, "objects": objects}


def _local(folder: Path, known: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """Files of a folder with their digests; hidden files and folders are no data."""
    if not folder.is_dir():
        raise UserError(
            f"source {folder}: no such folder; expected recordings there, or s3://bucket/prefix. "
            "Correct `ingestion.sources` in params.yaml, or record one: `wamflow record --help`."
        )
    for path in sorted(_files(folder), key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        try:
            digest = _digest(path, known)
            yield {"path": name, "size": path.stat().st_size, "sha256": digest}
        except OSError as error:
            raise UserError(f"source {path}: cannot be read: {error.strerror}.") from error


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root) / name for name in files if not name.startswith("."))


def _digest(path: Path, known: sqlite3.Connection) -> str:
    """sha256 of a file, from memory where the file is what it was."""
    state = path.stat()
    key = (str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    row = known.execute(
        "SELECT sha256 FROM files "
        "WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND inode = ?",
        key,
    ).fetchone()
    if row:
        return str(row[0])
    digest = sha256(path)
    if time.time() - state.st_mtime > SETTLED_S:
        known.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (*key, digest))
    return digest


def _digests(shared: Path) -> sqlite3.Connection:
    """The remembered digests; several processes may use them at once."""
    known = sqlite3.connect(shared / "digests.sqlite", timeout=60)
    known.execute(
        "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, "
        "mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, sha256 TEXT)"
    )
    return known
