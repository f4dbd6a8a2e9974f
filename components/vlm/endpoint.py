"""Any OpenAI-compatible endpoint (`POST <base_url>/chat/completions`) over httpx.

Requests run side by side within a bound and a rate; 429, 5xx, time-outs and cut connections are
tried again after a growing pause, or the server's own `Retry-After`. The key comes from an
environment variable only and is sent nowhere but to `base_url`: redirects are not followed.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import io
import json
import os
import random
import re
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from components.errors import TemporaryError, UserError
from components.vlm.dialogue import NO_ANSWER, Dialogue, Reply, digest

if TYPE_CHECKING:
    import httpx
    from PIL.Image import Image

LARGEST_REPLY = 1_000_000  # bytes
FIRST_PAUSE_S = 1.0  # doubled at every try
LONGEST_PAUSE_S = 60.0  # a server that asks for more is not waited for
IN_A_ROW = 3  # questions that nobody answered, or all refused: it is not the question's fault
SAID = 200  # characters of a server's own words in a message
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """How hard an endpoint is asked, and how patiently."""

    concurrent: int
    tries: int
    timeout_s: float
    requests_per_minute: float


@dataclass
class Spent:
    """What this run sent; a matter of the day's network, so no part of any output."""

    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Pace:
    """At most so many starts a minute; a pause holds everybody, who waits already too."""

    def __init__(self, per_minute: float) -> None:
        self._gap_s = 60.0 / per_minute
        self._next = 0.0  # start, by a clock that stands still while there is a pause
        self._paused_s = 0.0  # in all
        self._until = 0.0  # end of the last pause

    async def turn(self) -> None:
        """Return when the next request may start."""
        start = max(self._next, max(self._until, time.monotonic()) - self._paused_s)
        self._next = start + self._gap_s
        while (left_s := start + self._paused_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)

    def hold(self, seconds: float) -> None:
        """Nobody starts within the next `seconds`."""
        begins = max(self._until, time.monotonic())
        self._until = max(begins, time.monotonic() + seconds)
        self._paused_s += self._until - begins


class _TryAgainError(Exception):
    """This try failed in a way that may pass; `after_s` is what the server asks for."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Endpoint:
    """`dialogue.Model` on a server.

    `section` of the values names it in messages; `key` is the environment variable of its key.
    """

    captioner = "openai"

    def __init__(
        self,
        base_url: str,
        model: str,
        decoding: dict[str, Any],
        limits: Limits,
        section: str,
        key: str,
    ) -> None:
        self.base_url, self.model, self.section = base_url.rstrip("/"), model, section
        server = urlsplit(self.base_url)
        self.digest = digest(f"{server.netloc}{server.path}\n{model}")  # a gateway's paths differ
        self.settings, self.decoding = decoding, json.dumps(decoding, sort_keys=True)
        self.limits, self.pace, self.spent = limits, Pace(limits.requests_per_minute), Spent()
        self._key_name, self._key = key, key_from(key)
        self._answered = False  # by this server, ever
        self._silent = self._refused = 0  # questions in a row

    def sent(self) -> dict[str, int]:
        """Requests, retries and tokens of this run so far."""
        return asdict(self.spent)

    def replies(self, dialogues: list[Dialogue]) -> list[Reply]:
        """One reply for each dialogue, in their order.

        TemporaryError when the endpoint does not answer, UserError when it does not want us.
        """
        return asyncio.run(self._replies(dialogues))

    async def _replies(self, dialogues: list[Dialogue]) -> list[Reply]:
        import httpx

        bound = asyncio.Semaphore(self.limits.concurrent)
        client = httpx.AsyncClient(
            timeout=self.limits.timeout_s,
            follow_redirects=False,
            trust_env=urlsplit(self.base_url).hostname not in LOOPBACK,
            limits=httpx.Limits(max_connections=self.limits.concurrent),
        )
        try:
            async with client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._reply(client, bound, d)) for d in dialogues]
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        found = [task.result() for task in tasks]
        if found and not self._answered and self._silent:
            raise self._down(found[-1].refused)
        return found

    async def _reply(
        self, client: httpx.AsyncClient, bound: asyncio.Semaphore, dialogue: Dialogue
    ) -> Reply:
        async with bound:
            reply = await self._tries(client, json.dumps(self._request(dialogue)))
        self._silent = self._silent + 1 if reply.refused.startswith(NO_ANSWER) else 0
        self._refused = self._refused + 1 if reply.refused.startswith("refused") else 0
        if self._silent >= IN_A_ROW:
            raise self._down(reply.refused)
        if self._refused >= IN_A_ROW and not self._answered:
            raise UserError(
                f"{self.section}: {self.base_url} refuses every question ({reply.refused}). "
                f"Check {self.section}.model, and whether it takes pictures."
            )
        self._answered |= not reply.refused
        return reply

    async def _tries(self, client: httpx.AsyncClient, body: str) -> Reply:
        why = ""
        for count in range(self.limits.tries):
            await self.pace.turn()
            self.spent.requests += 1
            self.spent.retries += count > 0
            try:
                return await self._try(client, body)
            except _TryAgainError as again:
                why, asked_s = str(again), again.after_s
            if asked_s > LONGEST_PAUSE_S:
                why += f", which asks to wait for {asked_s:.0f} s"
                break
            self.pace.hold(asked_s)
            if count + 1 < self.limits.tries:
                pause_s = FIRST_PAUSE_S * 2**count * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(asked_s, min(pause_s, LONGEST_PAUSE_S)))
        return Reply(refused=f"{NO_ANSWER}: {why}")

    async def _try(self, client: httpx.AsyncClient, body: str) -> Reply:
        import httpx

        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url, content = f"{self.base_url}/chat/completions", b""
        try:
            async with (
                asyncio.timeout(self.limits.timeout_s),
                client.stream("POST", url, content=body, headers=headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > LARGEST_REPLY:
                        return Reply(refused="reply too large")
        except (TimeoutError, httpx.TimeoutException):
            raise _TryAgainError(f"no whole reply within {self.limits.timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise _TryAgainError(f"connection failed ({type(error).__name__})") from None
        document = _document(content)
        code = _error_code(document) if response.is_success else response.status_code
        return self._read(document) if code is None else self._failed(response, content, code)

    def _failed(self, response: httpx.Response, content: bytes, code: int) -> Reply:
        """`code` is the status or, of an error sent with success, its own; 0 where it has none."""
        status = f"HTTP {response.status_code}"
        if response.is_success:
            status += f" with error {code or 'of no known code'}"
        said = content.decode(errors="replace")
        said = " ".join((said.replace(self._key, "***") if self._key else said).split())[:SAID]
        if code in (0, 408, 409, 425, 429) or code >= 500:
            raise _TryAgainError(
                f"{status}: {said}" if response.is_success else status,
                retry_after_s(response.headers.get("Retry-After", "")),
            )
        if code in (400, 413, 415, 422):  # something about this one question
            return Reply(refused=f"refused: {status}: {said}")
        raise UserError(
            f"{self.section}: {self.base_url} answered {status} for model {self.model!r}: "
            f"{said}. Check {self.section}.base_url and .model; the key is read from "
            f"${self._key_name}, which is {'set' if self._key else 'not set'}."
        )

    def _read(self, document: Any) -> Reply:
        """A reply of any other form than the protocol's is an empty text, which is asked again."""
        try:
            text = document["choices"][0]["message"]["content"]
            usage = document.get("usage") or {}
            counts = [_count(usage.get(n)) for n in ("prompt_tokens", "completion_tokens")]
        except (LookupError, TypeError, AttributeError):
            return Reply()
        self.spent.input_tokens += counts[0]
        self.spent.output_tokens += counts[1]
        text = text if isinstance(text, str) else ""
        return Reply(text.encode(errors="replace").decode(), "", *counts)  # no half characters

    def _request(self, dialogue: Dialogue) -> dict[str, Any]:
        question = dialogue.question
        picture = {"type": "image_url", "image_url": {"url": data_uri(question.picture)}}
        text = {"type": "text", "text": question.text}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [picture, text]}]
        for turn in dialogue.turns:
            messages.append({"role": "assistant", "content": turn.reply})
            messages.append({"role": "user", "content": turn.then})
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.settings["max_new_tokens"],
            "temperature": self.settings["temperature"],
            "seed": self.settings["seed"],
        }

    def _down(self, why: str) -> TemporaryError:
        return TemporaryError(
            f"{self.section}: {self.base_url} does not answer ({why}; {self.limits.tries} tries "
            "for each question). Run again later."
        )


def _document(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _error_code(document: Any) -> int | None:
    """HTTP status of an error in place of a reply, as some gateways send it; 0 where it has none.

    None where there is no such error.
    """
    if not isinstance(document, dict) or document.get("choices"):
        return None
    if (error := document.get("error")) is None:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    known = isinstance(code, int | str) and re.fullmatch("[345][0-9][0-9]", str(code))
    return int(known[0]) if known else 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1_000_000_000 else 0


def key_from(name: str) -> str:
    """The key from the environment, empty for none. UserError, without the key, when malformed."""
    found = os.environ.get(name, "").strip()
    if not (found.isascii() and found.isprintable() and " " not in found):
        raise UserError(f"${name}: expected one line of printable ASCII without spaces.")
    return found


def retry_after_s(header: str) -> float:
    """Seconds of a `Retry-After` header, a number or a date (RFC 9110, 10.2.3); 0 for none."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return seconds if 0 < seconds < float("inf") else 0.0


def data_uri(picture: Image) -> str:
    """A picture as JPEG in a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
