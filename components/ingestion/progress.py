"""How far a download is: a line every few seconds on standard error, and one at a long one's end.

Single objects that come at once say nothing.
"""

from __future__ import annotations

import sys
import threading
import time

EVERY_S = 5.0


class Progress:
    """Counts bytes and objects of one source from many threads."""

    def __init__(self, uri: str, needed: int, missing: int, listed: int) -> None:
        self.bytes = 0
        self._uri, self._needed, self._missing, self._listed = uri, needed, missing, listed
        self._objects = 0
        self._began = self._said = time.monotonic()
        self._spoke = False
        self._lock = threading.Lock()

    def came(self, count: int) -> None:
        """Some bytes are here."""
        with self._lock:
            self.bytes += count
            if time.monotonic() - self._said > EVERY_S:
                self._say("")

    def done(self) -> None:
        """An object is whole."""
        with self._lock:
            self._objects += 1
            if self._objects == self._missing and (self._missing > 1 or self._spoke):
                self._say(f"; {self._listed - self._missing} were here already")

    def _say(self, more: str) -> None:
        self._said, self._spoke = time.monotonic(), True
        rate = self.bytes / 1e6 / max(self._said - self._began, 1e-3)
        print(
            f"{self._uri}: {self._objects} of {self._missing} objects, {self.bytes / 1e6:.1f} of "
            f"{self._needed / 1e6:.1f} MB, {rate:.1f} MB/s{more}",
            file=sys.stderr,
            flush=True,
        )
