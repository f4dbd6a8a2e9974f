"""The policy server: openpi's websocket protocol, with inference in a thread of its own.

The first frame to a client is the policy's metadata; then each binary frame is one observation and
is answered by one result. As in openpi's `websocket_policy_server.py`, an error is a text frame,
then close 1011; but it is one typed line, and the traceback stays in this server's log. Since
inference runs beside the event loop, `/healthz` and pings are answered however long it takes. One
inference runs at a time.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Protocol

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from components.errors import UserError, WamflowError
from components.serving import wire

GRACE_S = 2.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # four raw full-HD pictures are 25 MB
HEALTH_PATHS = (
    "/healthz",
    "/livez",
    "/readyz",
)  # the server listens only once the policy is loaded

log = logging.getLogger("wamflow.serving")


class Policy(Protocol):
    """What is served: `components/serving/policy.py`, or anything of this shape."""

    metadata: dict[str, Any]

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """One observation in, one result with `actions` (H, A) out; called in one thread."""


class PolicyServer:
    """Serves one policy to any number of clients."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    async def run(
        self, host: str, port: int, listening: Callable[[int], None] = lambda port: None
    ) -> None:
        """Serve until SIGTERM or SIGINT. `listening` gets the real port; port 0 takes a free one.

        UserError when the port is occupied or the address is not of this machine.
        """
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stopped.set)
        try:
            server = await serve(
                self.converse,
                host,
                port,
                process_request=answer_health,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                close_timeout=2,
            )
        except OSError as error:
            raise UserError(
                f"policy server: cannot listen on {host}:{port}: {error.strerror}; "
                "end the program that holds the port, or take a free one with --port 0."
            ) from error
        listening(next(iter(server.sockets)).getsockname()[1])
        await stopped.wait()
        server.close()
        with suppress(TimeoutError):  # an inference may take longer than anybody waits
            await asyncio.wait_for(server.wait_closed(), GRACE_S)
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def converse(self, connection: ServerConnection) -> None:
        """One client, from its metadata frame to its end."""
        total_ms: float | None = None
        try:
            await connection.send(wire.encode(self.policy.metadata))
            async for frame in connection:
                start_s = time.monotonic()
                reply = await asyncio.get_running_loop().run_in_executor(
                    self._worker, self.answer, frame, total_ms
                )
                await connection.send(reply)
                if isinstance(reply, str):
                    await connection.close(1011, "inference failed")
                    return
                total_ms = (time.monotonic() - start_s) * 1000
        except ConnectionClosed as gone:
            log.info("client %s ended: %s", connection.remote_address, gone)

    def answer(self, frame: str | bytes, prev_total_ms: float | None) -> bytes | str:
        """The reply to one frame: bytes for a result, text (one line) for an error."""
        try:
            if isinstance(frame, str):
                raise wire.WireError("expected a binary frame with an observation; got text.")
            observation = wire.decode(frame)
            if not isinstance(observation, dict):
                raise wire.WireError(f"expected a map; got {type(observation).__name__}.")
            start_s = time.monotonic()
            result = self.policy.infer(observation)
            timing = {"infer_ms": (time.monotonic() - start_s) * 1000}
            if prev_total_ms is not None:
                timing["prev_total_ms"] = prev_total_ms
            return wire.encode({**result, "server_timing": timing})
        except WamflowError as error:
            log.warning("refused a request: %s", error)
            return f"{type(error).__name__}: {error}"
        except Exception:
            log.exception("inference failed")
            return "InferenceError: the policy failed on this observation; see the server's log."


def answer_health(connection: ServerConnection, request: Request) -> Response | None:
    """GET on a health path is answered over HTTP; every other path goes on to the websocket."""
    if request.path.split("?")[0] in HEALTH_PATHS:
        return connection.respond(HTTPStatus.OK, "OK\n")
    return None
