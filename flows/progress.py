"""How far a running stage is, in the Prefect UI: read from the lines `step N/M` of its log.

Components know no Prefect, and a stage in a pod has its log only, so the log is what both have.
Prefect that does not answer is one line in the log, never a failed stage.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

SAID = re.compile(r"^(?:step|decoded) (\d+)/([1-9]\d*)\b.*")
EVERY_S = 5.0


class Progress:
    """Hands lines on to `log`, and the newest share done to one artifact, at most every 5 s."""

    def __init__(self, stage: str, log: Callable[[str], None]) -> None:
        self.stage, self.log = stage, log
        self._artifact: Any = None
        self._shown_s = float("-inf")
        self._given_up = False

    def __call__(self, line: str) -> None:
        """One line of the stage's log."""
        self.log(line)
        said = SAID.match(line)
        if said is None or self._given_up:
            return
        done, whole = map(int, said.groups())
        if done >= whole or time.monotonic() - self._shown_s > EVERY_S:
            self._shown_s = time.monotonic()
            try:
                self._show(100 * min(done / whole, 1), line)
            except Exception as error:  # whatever an HTTP client raises
                self._given_up = True
                self.log(f"warning: progress is not shown: {type(error).__name__}: {error}")

    def _show(self, percent: float, line: str) -> None:
        from prefect import artifacts

        if self._artifact is None:
            key = f"{self.stage.replace('_', '-')}-progress"
            self._artifact = artifacts.create_progress_artifact(percent, key, line)
        else:
            artifacts.update_progress_artifact(self._artifact, percent, line)
