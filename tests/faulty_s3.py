"""A proxy in front of an S3 server that fails as networks and servers do, and counts."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FaultyS3:
    """Hands requests on. Each list is consumed by the next answers, one entry an answer.

    `failing` meets any request, the others bodies of ranged requests only.
    """

    def __init__(self, server: str) -> None:
        self.failing: list[int] = []  # statuses to answer instead
        self.cuts: list[int] = []  # bytes of the body before the connection is cut
        self.stalls: list[int] = []  # bytes of the body before nothing more comes
        self.lies: list[int] = []  # added to Content-Length
        self.late: list[float] = []  # seconds before the first byte
        self.trickle_s = 0.0  # between bytes, for all
        self.part_s = 0.0  # before each body, for all
        self.damage: Callable[[bytes], bytes] = bytes  # done to every body
        self.ranges: list[tuple[str, int, int]] = []  # key, first byte, one past the last
        self.sent = 0  # bytes of ranged bodies
        self.requests = 0
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, urlsplit(server).netloc))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def forget(self) -> None:
        """Count from here on."""
        self.ranges, self.sent, self.requests = [], 0, 0

    def close(self) -> None:
        """No more requests."""
        self.http.shutdown()
        self.http.server_close()


def _handler(proxy: FaultyS3, target: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            proxy.requests += 1
            if proxy.failing:
                self.send_response(proxy.failing.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            try:
                self._hand_on()
            except OSError:  # who asked has gone
                self.close_connection = True

        do_HEAD = do_GET

        def _hand_on(self) -> None:
            connection = http.client.HTTPConnection(target, timeout=30)
            connection.request(self.command, self.path, headers=dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            ranged = "Range" in self.headers and answer.status == 206
            body = proxy.damage(body) if ranged else body
            lie = proxy.lies.pop(0) if ranged and proxy.lies else 0
            if ranged:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                key = unquote(urlsplit(self.path).path).split("/", 2)[2]
                proxy.ranges.append((key, int(first), int(last) + 1))
                time.sleep(proxy.late.pop(0) if proxy.late else proxy.part_s)
            self.send_response(answer.status)
            dropped = ("transfer-encoding", "connection") + ("content-length",) * ranged
            for name, value in answer.getheaders():
                if name.lower() not in dropped:
                    self.send_header(name, value)
            if ranged:
                self.send_header("Content-Length", str(len(body) + lie))
            self.end_headers()
            if self.command == "GET":
                self._send(body, ranged, lie)

        def _send(self, body: bytes, ranged: bool, lie: int) -> None:
            if not ranged:
                self.wfile.write(body)
                return
            ends = proxy.cuts or proxy.stalls
            stalled = ends is proxy.stalls and bool(ends)
            self.close_connection = bool(ends or lie)
            body = body[: ends.pop(0)] if ends else body
            pieces = [body[i : i + 1] for i in range(len(body))] if proxy.trickle_s else [body]
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                proxy.sent += len(piece)
                time.sleep(proxy.trickle_s)
            time.sleep(3 if stalled else 0)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
