"""`python -m components.serving CHECKPOINT`: serve one checkpoint until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from components.__main__ import crashed, failed  # and pins thread counts: equal actions
from components.errors import WamflowError
from components.serving.process import die_with_parent
from components.serving.server import Policy, PolicyServer


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line; `--help` says the rest."""
    parser = argparse.ArgumentParser(prog="python -m components.serving", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder that pretraining wrote")
    parser.add_argument("--embodiment", help="robot to serve, where the model knows several")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--ready-file", type=Path, help="gets the real port once it listens")
    parser.add_argument("--parent", type=int, help="end when this parent process ends")
    return parser.parse_args(arguments)


def main(arguments: list[str], load: Callable[[Path, str | None], Policy]) -> int:
    """Load, serve, end; the exit code says the class of a failure (`components/errors.py`)."""
    chosen = options(arguments)
    if chosen.parent is not None:
        die_with_parent(chosen.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    def listening(port: int) -> None:
        print(f"serving {chosen.checkpoint} on ws://{chosen.host}:{port}", flush=True)
        if chosen.ready_file is not None:
            partial = chosen.ready_file.with_suffix(".partial")
            partial.write_text(f"{port}\n")
            partial.replace(chosen.ready_file)

    try:
        server = PolicyServer(load(chosen.checkpoint, chosen.embodiment))
        asyncio.run(server.run(chosen.host, chosen.port, listening))
    except WamflowError as error:
        return failed(error)
    except Exception as error:
        return crashed(error)
    return 0


def exit_now(code: int) -> None:
    """End without waiting for an inference that still runs in its thread."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    from components.serving.policy import load

    exit_now(main(sys.argv[1:], load))
