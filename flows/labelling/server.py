"""The page's server: this machine only, an address that cannot be guessed, nothing from elsewhere.

Everything lies under a random token; other hosts' names, other origins and other paths are refused,
and the page may load nothing but its own files. Starlette and uvicorn do the HTTP.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.corrections import CaptionCorrection, EventCorrection
from components.errors import UserError, WamflowError
from flows.labelling import clips
from flows.labelling.overlay import ChangedError, Overlay
from flows.labelling.view import View

HOST = "127.0.0.1"
KEPT_CLIPS = 64
LARGEST_BODY = 5_000_000  # bytes
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "media-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Save(BaseModel, extra="forbid"):
    """What the page sends: what it had seen, who speaks, and rows without author and episode."""

    version: str
    author: str
    events: list[dict[str, Any]]
    captions: list[dict[str, Any]]


class Page:
    """The answers; `scratch` keeps clips that were asked for."""

    def __init__(self, view: View, overlay: Overlay, author: str, scratch: Path) -> None:
        self.view, self.overlay, self.author, self.scratch = view, overlay, author, scratch
        self._cuts: dict[str, float] = {}  # clip -> its episode's start; last asked for, last
        self._cutting = Lock()

    def episodes(self, _: Request) -> Response:
        """The run and its episodes."""
        listed = self.view.listed(self.overlay.read())
        return JSONResponse({"run": self.view.run, "author": self.author, "episodes": listed})

    def episode(self, request: Request) -> Response:
        """One episode as it stands now."""
        return JSONResponse(self._shown(self._known(request)))

    def clip(self, request: Request) -> Response:
        """Where a camera's video is, and where the episode starts in it."""
        name, start_s = self._cut(request)
        return JSONResponse({"video": f"api/clips/{name}", "start_s": start_s})

    def video(self, request: Request) -> Response:
        """A clip that was cut, by its name."""
        name = request.path_params["name"]
        if name not in self._cuts:
            raise HTTPException(404, "no such clip")
        return FileResponse(self.scratch / name, media_type="video/mp4")

    async def save(self, request: Request) -> Response:
        """Add corrections; 409 with the present state when somebody else did so before."""
        body = await request.body()
        return await run_in_threadpool(self._save, self._known(request), body)

    def _save(self, episode_id: str, body: bytes) -> Response:
        try:
            sent = Save.model_validate_json(body)
            about = {"author": sent.author, "episode_id": episode_id}
            events = [EventCorrection.model_validate(row | about) for row in sent.events]
            captions = [CaptionCorrection.model_validate(row | about) for row in sent.captions]
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            return JSONResponse({"error": "; ".join(wrong)}, 422)
        times_s = self.view.episode(episode_id).timestamps_s
        try:
            self.overlay.add(episode_id, sent.version, events, captions, times_s)
        except ChangedError as changed:
            shown = self._shown(episode_id)
            return JSONResponse({"by": changed.said.last_author, "episode": shown}, 409)
        return JSONResponse(self._shown(episode_id))

    def _shown(self, episode_id: str) -> dict[str, Any]:
        return self.view.shown(episode_id, self.overlay.of(episode_id))

    def _known(self, request: Request) -> str:
        """The episode that an address names, one of the run's own."""
        episode_id = str(request.path_params["episode_id"])
        if episode_id not in self.view:
            raise HTTPException(404, "no such episode in this run")
        return episode_id

    def _cut(self, request: Request) -> tuple[str, float]:
        """Name of the camera's clip, made when it is first asked for, and where it starts."""
        episode = self.view.episode(self._known(request))
        number, cameras = request.path_params["camera"], sorted(episode.clips)
        if number >= len(cameras):
            raise HTTPException(404, "no such camera")
        key = f"{episode.episode_id}/{number}"
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.mp4"
        with self._cutting:
            start_s = self._cuts.get(name)
            if start_s is None:
                place = self.scratch / name
                start_s = clips.cut(episode, cameras[number], self.view.root, place)
            others = {other: at_s for other, at_s in self._cuts.items() if other != name}
            self._cuts = others | {name: start_s}
            self._forget()
            return name, start_s

    def _forget(self) -> None:
        """Keep the clips that were asked for last."""
        while len(self._cuts) > KEPT_CLIPS:
            oldest = next(iter(self._cuts))
            del self._cuts[oldest]
            (self.scratch / oldest).unlink(missing_ok=True)


def app(page: Page, token: str) -> ASGIApp:
    """All routes, under the token."""
    routes = [
        Route("/api/episodes", page.episodes),
        Route("/api/episodes/{episode_id}", page.episode),
        Route("/api/episodes/{episode_id}/corrections", page.save, methods=["POST"]),
        Route("/api/episodes/{episode_id}/clips/{camera:int}", page.clip),
        Route("/api/clips/{name}", page.video),
        Mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True)),
    ]
    inner = Starlette(routes=[Mount(f"/{token}", routes=routes)], exception_handlers=_HANDLERS)
    return Guarded(inner, token)


def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


_HANDLERS: dict[Any, Any] = {WamflowError: _failed}


class Guarded:
    """Refuses what does not come from the page itself, and says what the page may load."""

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self.inner, self.token = inner, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refused(scope)
        await (refused or self.inner)(scope, receive, answered)

    def _refused(self, scope: Scope) -> Response | None:
        """The refusal of a request; None for a good one."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        first = scope["path"].lstrip("/").split("/")[0]
        if host.rsplit(":", 1)[0] not in (HOST, "localhost"):
            return PlainTextResponse("this page answers to 127.0.0.1 only", 421)
        if not secrets.compare_digest(first.encode(), self.token.encode()):
            return PlainTextResponse("open the whole address that `wamflow label` printed", 403)
        if scope["method"] not in ("GET", "HEAD"):
            same = headers.get("origin") in (None, f"http://{host}")
            typed = headers.get("content-type", "").startswith("application/json")
            if not same or not typed:
                return PlainTextResponse("this comes from another page", 403)
            if int(headers.get("content-length", LARGEST_BODY + 1)) > LARGEST_BODY:
                return PlainTextResponse("too much at once", 413)
        return None


def listening(port: int) -> socket.socket:
    """A socket of this machine only; port 0 takes a free one. UserError when it is taken."""
    listens = socket.socket()
    listens.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listens.bind((HOST, port))
        listens.listen()  # whoever is told the address may come before uvicorn is ready
    except OSError as error:
        listens.close()
        raise UserError(f"port {port}: {error.strerror}; name another `--port`.") from error
    return listens


def serve(
    view: View,
    overlay: Overlay,
    author: str,
    listens: socket.socket,
    ready: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C (KeyboardInterrupt); `ready` is told the address."""
    token = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="wamflow-clips-") as scratch, listens:
        page = Page(view, overlay, author, Path(scratch))
        config = uvicorn.Config(
            app(page, token),
            log_level="warning",
            access_log=False,  # addresses have the token
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        ready(f"http://{HOST}:{listens.getsockname()[1]}/{token}/")
        uvicorn.Server(config).run(sockets=[listens])
