"""Outputs of a stage: all or nothing, and the same bytes for the same content."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import OutOfSpaceError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty sibling folder and rename it to `target` at the end; leave nothing on errors.

    Siblings left by a killed run are removed first. Renames are atomic, so a reader sees the old
    folder, or none, or the whole new one. OutOfSpaceError when the disk is full.
    """
    partial = target.with_name(f".{target.name}.partial")
    old = target.with_name(f".{target.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_full_disk(error):
            raise OutOfSpaceError(
                f"{target}: no space left on the disk while writing; nothing was kept. "
                "Make room (`dvc gc --workspace`, or a larger disk) and run again."
            ) from error
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means a full disk or quota; safetensors says so in words only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    said = str(error) if type(error).__name__ == "SafetensorError" else ""
    return any(f"os error {code}" in said.lower() for code in full)


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, two spaces, final newline, written whole; floats as Python prints them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
    partial.replace(path)


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet with pinned options (zstd, fixed row groups): equal rows give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=65_536,
        version="2.6",
        store_schema=True,
        write_statistics=True,
    )


def sha256(path: Path) -> str:
    """Digest of one file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Digest of a folder: the names and digests of all its files, sorted by name."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()
