"""An expected failure is one message in the log, not a traceback of the machinery around it."""

from __future__ import annotations

import logging


def expected(kind: type[Exception]) -> None:
    """Prefect's loggers drop the traceback of exceptions of this kind."""

    def without_traceback(record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], kind):
            record.exc_info = None
        return True

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(without_traceback)
