"""A Prefect server of the project's own: for one run, or for people (`wamflow up`).

Its database lies in `.wamflow/prefect`; a server at work holds a lock on it, so runs that start at
the same time get databases of their own. It listens on 127.0.0.1 only and reports to nobody.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from components.errors import OutOfSpaceError, TemporaryError, UserError
from flows import guard, locks

HOST = "127.0.0.1"
START_S = 120.0  # a first start makes the database
STOP_S = 5.0
SERVING_STOP_S = 75.0  # longer than a stage has to save
ORPHAN_STOP_S = 15.0


def environment(shared: Path) -> None:
    """Prefect's settings for this process and its children; what the user has set stays.

    To be called before Prefect is imported.
    """
    chosen = {
        "PREFECT_HOME": str(shared / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLI_PROMPT": "false",
    }
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


@contextmanager
def reached(shared: Path, *, until_exit: bool = False) -> Iterator[str]:
    """API of a server: the user's own (PREFECT_API_URL), `wamflow up`'s, or a temporary one.

    With `until_exit` a temporary one ends last in this process, after Prefect has sent it the logs
    and events that it sends at exit; to be entered before Prefect is imported.
    """
    url = os.environ.get("PREFECT_API_URL") or announced_url(shared)
    if url:
        os.environ["PREFECT_API_URL"] = url
        yield url
        return
    stack = ExitStack()
    if until_exit:
        atexit.register(stack.close)  # what is registered first is called last
    try:
        database = stack.enter_context(_database(shared))
        url = stack.enter_context(_started(shared, database, _free_port(), services=False))
        os.environ["PREFECT_API_URL"] = url
        yield url
    finally:
        if not until_exit:
            _send_the_rest()
            os.environ.pop("PREFECT_API_URL", None)
            stack.close()


def _send_the_rest() -> None:
    """Logs and events that this process still holds; once the server is gone it is too late."""
    if "prefect.logging.handlers" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5)
        EventsWorker.drain_all(timeout=5)


@contextmanager
def announced(shared: Path, port: int) -> Iterator[str]:
    """The server that people look at, on a fixed port; later runs find it. UserError when taken."""
    if url := announced_url(shared):
        raise UserError(f"{url.removesuffix('/api')}: this project's server is up already.")
    _refuse_taken(port)
    note = _note(shared)
    with ExitStack() as stack:
        database = stack.enter_context(_database(shared))
        url = stack.enter_context(_started(shared, database, port, services=True))
        note.write_text(json.dumps({"url": url}))
        try:
            yield url
        finally:
            note.unlink(missing_ok=True)


@contextmanager
def guarded(
    command: list[str], env: dict[str, str], log: Path | None, grace_s: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this one; its output goes to `log`, or to where ours goes."""
    life, ours = os.pipe()
    limits = [str(life), str(grace_s), str(min(grace_s, ORPHAN_STOP_S)), "both"]
    out = log.open("wb") if log else None
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", guard.__file__, *limits, *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
            start_new_session=True,
            pass_fds=(life,),
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
    finally:
        os.close(life)
        os.close(ours)
        if out:
            out.close()


def announced_url(shared: Path) -> str | None:
    """The API of a running `wamflow up`, if there is one."""
    try:
        url = str(json.loads(_note(shared).read_text())["url"])
    except (OSError, ValueError, KeyError):
        return None
    return url if _healthy(url) else None


def _note(shared: Path) -> Path:
    (shared / "prefect").mkdir(parents=True, exist_ok=True)
    return shared / "prefect" / "server.json"


@contextmanager
def _database(shared: Path) -> Iterator[Path]:
    """The first database that no other server has open."""
    number = 0
    while True:
        path = shared / "prefect" / ("prefect.db" if number == 0 else f"prefect-{number}.db")
        with ExitStack() as stack:
            try:
                stack.enter_context(locks.held(path.with_suffix(".lock"), str(path)))
            except UserError:  # another server has it
                number += 1
                continue
            yield path
            return


@contextmanager
def _started(shared: Path, database: Path, port: int, *, services: bool) -> Iterator[str]:
    """A server at work. TemporaryError with the end of its log when it does not answer."""
    url = f"http://{HOST}:{port}/api"
    env = os.environ | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        "PREFECT_SERVER_UI_API_URL": url,
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    log = database.with_suffix(".log")
    flags = [] if services else ["--no-scheduler", "--no-late-runs", "--no-ui"]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST]
    with guarded([*command, "--port", str(port), *flags], env, log, STOP_S) as process:
        deadline = time.monotonic() + START_S
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")
                tail = "\n".join(said.splitlines()[-10:])
                if "disk is full" in said or "No space left" in said:
                    raise OutOfSpaceError(f"{database}: no space left on the disk; make room.")
                raise TemporaryError(f"the Prefect server did not start on port {port}:\n{tail}")
            time.sleep(0.1)
        yield url


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} of {HOST}: cannot be used ({error}). Choose another: "
                "`wamflow up --port N`, or end the program that has it."
            ) from None


def serve(project: Path, shared: Path, port: int) -> None:
    """Server and deployment until a signal ends them."""
    with announced(shared, port) as url:
        env = os.environ | {"PREFECT_API_URL": url}
        command = [sys.executable, "-m", "flows.serving"]
        pages = [sys.executable, "-m", "flows.reports", str(port + 1), str(shared.parent / ".runs")]
        log = shared / "prefect" / "reports.log"
        with (
            guarded(pages, env, log, STOP_S),
            guarded(command, env, None, SERVING_STOP_S) as process,
        ):
            print(f"Prefect is up: {url.removesuffix('/api')}  (Ctrl-C ends it)", flush=True)
            code = process.wait()
    if code:
        raise TemporaryError(f"serving the flow ended with code {code}; its message is above.")
