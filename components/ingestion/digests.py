"""What `wamflow snapshot` remembers of local files, so that none is read twice for it.

A file is what was listed when its size, both times and inode are those at its digest; the time of
the last change of an inode cannot be set back. Without a snapshot's memory every file is read.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from components.shards import place


def is_known(local: Path, sha256: str) -> bool:
    """Whether the file, as it is now, is remembered with this digest."""
    memory = (place() / "digests.sqlite").absolute()
    if not memory.is_file():
        return False
    state = local.resolve().stat()
    key = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    with closing(sqlite3.connect(f"{memory.as_uri()}?mode=ro", uri=True, timeout=60)) as known:
        try:
            row = known.execute(
                "SELECT sha256 FROM files "
                "WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND inode = ?",
                (str(local.resolve()), *key),
            ).fetchone()
        except sqlite3.Error:  # no memory at all, or one of another version
            return False
    return row is not None and row[0] == sha256
