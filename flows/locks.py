"""Locks between processes on one machine: `flock`, which the kernel releases when a holder dies."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import UserError


@contextmanager
def held(path: Path, what: str) -> Iterator[int]:
    """Hold the lock and yield its file descriptor; a child that inherits it holds it too.

    UserError at once when another process holds it.
    """
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{what}: another process works on it (lock {path}); wait for it, or end it."
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def waited(path: Path) -> Iterator[None]:
    """Hold the lock, waiting without limit for a holder to finish; stderr says so."""
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process (lock {path})", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock now."""
    if not path.exists():
        return False
    try:
        with held(path, "lock"):
            return False
    except UserError:
        return True


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
