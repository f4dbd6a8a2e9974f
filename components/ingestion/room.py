"""What the mirror of S3 may take of the disk: what was used longest ago goes first.

Before bytes come, entries are removed until the mirror is within `WAMFLOW_MIRROR_GB` (200) and the
disk has room for what comes. What a living process has used stays, so one copy of the sources of
one ingestion must fit; and nothing is removed while another process works with the mirror.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from components.errors import OutOfSpaceError, UserError

LIMIT_GB = "200"
SPARE_BYTES = 2**30  # of the disk, left to others


def use(root: Path, entry: Path) -> None:
    """Keep an entry from being removed as long as this process lives."""
    _hold(root, os.getpid())
    _used(root, os.getpid()).add(entry)


def make(root: Path, needed: int) -> None:
    """Remove what was used longest ago until `needed` bytes fit.

    OutOfSpaceError when they do not fit even so; UserError when WAMFLOW_MIRROR_GB is no number.
    """
    held = _hold(root, os.getpid())
    with (root / "removing").open("wb") as removing:
        # while one asks for the lock alone, it has none for a moment: so one at a time asks
        if locked(removing.fileno(), fcntl.LOCK_EX):
            if locked(held, fcntl.LOCK_EX):
                _remove(root, needed)
            fcntl.flock(held, fcntl.LOCK_SH)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OutOfSpaceError(
            f"{root}: {needed / 1e9:.2f} GB are to come from S3, and the disk has "
            f"{free / 1e9:.2f} GB left. Make room, or give `.wamflow` a larger disk."
        )


def locked(file: int, how: int) -> bool:
    """Whether a file's lock could be had at once; the system gives it back when a process dies."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _remove(root: Path, needed: int) -> None:
    used = _used(root, os.getpid())
    entries = sorted(_entries(root))
    over = sum(size for _, size, _ in entries) + needed - _limit_bytes()
    for _, size, entry in entries:
        short = needed + SPARE_BYTES - shutil.disk_usage(root).free
        if over <= 0 and short <= 0:
            return
        if entry not in used:
            shutil.rmtree(entry, ignore_errors=True)
            over -= size


def _entries(root: Path) -> Iterator[tuple[float, int, Path]]:
    """(last use, bytes on the disk, folder) of every entry, also of unfinished ones."""
    for entry in root.glob("??/*"):
        states = [path.stat() for path in entry.iterdir()]
        times, blocks = [s.st_mtime for s in states], [s.st_blocks for s in states]
        yield max(times, default=0.0), 512 * sum(blocks), entry


def _limit_bytes() -> int:
    said = os.environ.get("WAMFLOW_MIRROR_GB", LIMIT_GB)
    try:
        return int(float(said) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"WAMFLOW_MIRROR_GB={said}: expected a number of gigabytes.") from None


@functools.cache
def _hold(root: Path, process: int) -> int:
    """The open lock that says that a process works with the mirror; held until it ends."""
    root.mkdir(parents=True, exist_ok=True)
    held = os.open(root / "in-use", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


@functools.cache
def _used(root: Path, process: int) -> set[Path]:
    """Entries that a process has asked for."""
    return set()
