"""Failures by what to do about them: the type says whether a retry helps, the code tells a shell.

Every message names where, what was expected, what was got, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class WamflowError(Exception):
    """A failure with a class of its own and an exit code that stages, pods and flows agree on."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "crash"


class UserError(WamflowError):
    """Wrong configuration, path or argument; trying again changes nothing."""

    exit_code = 10
    kind = "user"


class DataError(WamflowError):
    """The data break a contract that the next stage relies on; trying again changes nothing."""

    exit_code = 11
    kind = "data"


class DivergedError(WamflowError):
    """Training met NaN or Inf; trying again with the same values changes nothing."""

    exit_code = 12
    kind = "data"


class StoppedError(WamflowError):
    """A signal asked the stage to end; its state is saved and a new start resumes it."""

    exit_code = 13
    kind = "interrupted"


class TemporaryError(WamflowError):
    """The network or a service failed; trying again later can help (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75
    kind = "temporary"


class OutOfSpaceError(WamflowError):
    """The disk is full; trying again helps once somebody has made room."""

    exit_code = 74
    kind = "infrastructure"
