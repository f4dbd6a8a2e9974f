"""An OpenAI-compatible server on a free local port that misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = {
    "subtask": "the part in which the arm moves",
    "action": "work with the arm",
    "segment": "The arm is at work in front of the camera.",
}
Act = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Server:
    """`acts` are done in turn, then `usual` for ever; `seen` has every request."""

    url: str = ""
    acts: list[Act] = field(default_factory=list)
    usual: Act = lambda handler, body: handler.say(json.dumps(GOOD))
    seen: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


class Handler(BaseHTTPRequestHandler):
    server_state: Server
    lock: threading.Lock
    counted = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.server_state
        with self.lock:
            about = {"path": self.path, "headers": dict(self.headers), "time_s": time.monotonic()}
            state.seen.append(about | {"body": body})
            state.at_once += 1
            self.counted = True
            state.most_at_once = max(state.most_at_once, state.at_once)
            act = state.acts.pop(0) if state.acts else state.usual
        try:
            act(self, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away
        finally:
            self._ends()

    def _ends(self) -> None:
        """It counts no longer: before the client has all of the answer, and asks the next."""
        with self.lock:
            self.server_state.at_once -= self.counted
            self.counted = False

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self._ends()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def say(self, text: object) -> None:
        """A well-formed reply with `text`, of 100 tokens asked and 20 answered."""
        document = {
            "choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20},
        }
        self.answer(200, json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        """Silence."""


def status(code: int, content: bytes = b"{}", **headers: str) -> Act:
    return lambda handler, body: handler.answer(code, content, **headers)


def says(text: object) -> Act:
    return lambda handler, body: handler.say(text)


def cut(handler: Handler, body: dict[str, Any]) -> None:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')


def late(handler: Handler, body: dict[str, Any]) -> None:
    """Says nothing for longer than anybody waits here."""
    time.sleep(1.0)


def dripping(handler: Handler, body: dict[str, Any]) -> None:
    """One byte at a time: each read is quick, the whole never ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()
    about = {"server_state": state, "lock": threading.Lock()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), about))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
