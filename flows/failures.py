"""Failures that only flows know, and the way back from a failure's class in a file to an exception.

A stage leaves `{"kind", "message"}` where `WAMFLOW_FAILURE` points, because `dvc repro` turns every
failure into 255 (`components/__main__.py` writes it, supervisor and pods read it).
"""

from __future__ import annotations

from typing import ClassVar

from components.errors import (
    DataError,
    OutOfSpaceError,
    StoppedError,
    TemporaryError,
    UserError,
    WamflowError,
)


class LostError(WamflowError):
    """The machine under a stage went away (evicted, preempted); a new attempt can help."""

    exit_code: ClassVar[int] = 74
    kind: ClassVar[str] = "infrastructure"


class CrashError(WamflowError):
    """The stage ended in a way nobody foresaw; its log holds the traceback."""


BY_KIND: dict[str, type[WamflowError]] = {
    "user": UserError,
    "data": DataError,
    "temporary": TemporaryError,
    "infrastructure": OutOfSpaceError,
    "interrupted": StoppedError,
    "crash": CrashError,
}


def failure(kind: str, message: str) -> WamflowError:
    """The exception for a failure's class; what is unknown is a crash."""
    return BY_KIND.get(kind, CrashError)(message)


def worth_a_retry(error: BaseException) -> bool:
    """A network that failed and a machine that went away come back; nothing else does."""
    return isinstance(error, TemporaryError | LostError)
