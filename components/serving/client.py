"""A small synchronous client of the policy server: patient to connect, clear when it fails.

Speaks the openpi protocol (`server.py`), as `openpi_client.WebsocketClientPolicy` does.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from components.errors import DataError, TemporaryError, UserError
from components.serving import wire
from components.serving.server import MAX_MESSAGE_BYTES

RETRY_S = 0.1


class PolicyError(DataError):
    """The server refused an observation; trying the same one again changes nothing."""


class PolicyClient:
    """One connection to a policy server; use it as a context manager."""

    def __init__(self, uri: str, connect_timeout_s: float = 60.0, timeout_s: float = 60.0) -> None:
        """Connect, trying again until the server is there; read its metadata.

        `timeout_s` bounds each answer. TemporaryError when nothing listens within
        `connect_timeout_s`, UserError for a wrong address, DataError for another protocol.
        """
        self.uri, self.timeout_s = uri, timeout_s
        self._connection = _connect(uri, connect_timeout_s)
        self.metadata: dict[str, Any] = self._receive()

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The server's result for one observation.

        PolicyError when the server refuses it, TemporaryError when the server is gone or too slow.
        """
        message = wire.encode(observation)
        try:
            self._connection.send(message)
        except ConnectionClosed as error:
            raise self._gone(error) from error
        return self._receive()

    def close(self) -> None:
        """Say goodbye to the server."""
        self._connection.close()

    def _receive(self) -> dict[str, Any]:
        try:
            frame = self._connection.recv(timeout=self.timeout_s)
        except TimeoutError as error:
            raise TemporaryError(
                f"policy server {self.uri}: no answer within {self.timeout_s:g} s; "
                "see its log, or allow more time."
            ) from error
        except ConnectionClosed as error:
            raise self._gone(error) from error
        if isinstance(frame, str):
            raise PolicyError(f"policy server {self.uri}: {frame}")
        message = wire.decode(frame)
        if not isinstance(message, dict):
            raise wire.WireError(f"policy server {self.uri}: expected a map; got {type(message)}.")
        return message

    def _gone(self, error: ConnectionClosed) -> TemporaryError:
        return TemporaryError(
            f"policy server {self.uri}: the connection ended ({error}); "
            "see the server's log, start it again and repeat."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _connect(uri: str, timeout_s: float) -> ClientConnection:
    """Try until the server listens; a robot's own machine needs no proxy."""
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            return connect(
                uri, compression=None, max_size=MAX_MESSAGE_BYTES, proxy=None, close_timeout=2
            )
        except InvalidURI as error:
            raise UserError(f"policy server: expected ws://host:port; got {uri!r}.") from error
        except InvalidHandshake as error:
            raise DataError(f"{uri}: not a policy server: {error}") from error
        except OSError as error:  # TimeoutError is one
            if time.monotonic() > until_s:
                raise TemporaryError(
                    f"policy server {uri}: nothing listens there after {timeout_s:g} s ({error}); "
                    "start it with `python -m components.serving CHECKPOINT`."
                ) from error
            time.sleep(RETRY_S)
