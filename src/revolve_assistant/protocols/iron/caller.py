"""Sends requests to Iron with httpx: time limits, keep-alive, and once more where that helps.

    thread of the user ── call ──▶ a pool of connections            answers within `timeout` a try, `patience` in all
    thread of a poll   ── poll ──▶ a connection of its own ◀── abort ── any thread

A request is sent again after 429 and 5xx, and when the connection failed, with pauses that double and are drawn at
random (full jitter); `Retry-After` is heeded. So a message may be posted twice when an answer was lost: who reads must
count (see `providers.ironmq`). Redirects are not followed, for they would take the token along.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import httpx

from ... import __version__
from ...errors import ClientClosed, Overloaded, ProtocolError, ProviderError, Unreachable, UsageError
from . import answers
from .mq import Request, clears
from .settings import Settings

TIMEOUT = 10.0  # seconds that one try may take, beyond what it waits for by design
PATIENCE = 20.0  # seconds for a request with all its tries
PAUSES = (0.25, 8.0)  # seconds before another try: first, most
CONNECT = 5.0  # seconds
LARGEST = 64 << 20  # bytes of an answer


class Caller:
    """The way to one product of one project. Thread-safe; connects when it is first used, anew after a fork."""

    def __init__(self, settings: Settings, *, timeout: float = TIMEOUT, patience: float = PATIENCE) -> None:
        self.settings = settings
        self._timeout, self._patience = timeout, patience
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._pid = 0
        self._closed = threading.Event()
        self.requests = 0  # that were sent so far, tries included

    def __repr__(self) -> str:
        return f"<Caller {self.settings.base}>"

    def call(
        self,
        request: Request,
        *,
        send: Callable[[Request], bytes] | None = None,
        rest: Callable[[float], bool] | None = None,
    ) -> bytes:
        """The body of the answer. Blocks for `patience` at most, beyond `request.wait`.

        `send` does one try (None: `once`); `rest` waits so long before the next one, True: there is to be none.

        Raises `Missing`, `Denied`, `Overloaded`, `Unreachable`, `ProtocolError`, `ProviderError`, `ClientClosed`.
        """
        deadline = monotonic() + self._patience + request.wait
        pause = PAUSES[0]
        while True:
            try:
                return (send or self.once)(request)
            except (Unreachable, Overloaded) as error:
                seconds = max(random.uniform(0.0, pause), getattr(error, "after", 0.0))
                if monotonic() + seconds >= deadline or (rest or self._closed.wait)(seconds):
                    raise
            pause = min(PAUSES[1], pause * 2)

    def once(self, request: Request, client: httpx.Client | None = None, trace: Any = None) -> bytes:
        """As `call`, with a single try."""
        if clears(request):
            raise UsageError(f"{request.what} names no messages: IronMQ would clear the whole queue")
        if self._closed.is_set():
            raise ClientClosed(f"{self.settings.name} was closed")
        settings = self.settings
        limit = self._timeout + request.wait
        deadline = monotonic() + limit + CONNECT
        headers = {"Content-Type": "application/json"} if request.body is not None else {}
        try:
            with (client or self.client()).stream(
                request.method,
                settings.base + request.path,
                content=request.body,
                headers=headers,
                timeout=httpx.Timeout(limit, connect=min(CONNECT, self._timeout), pool=limit),
                extensions={"trace": trace} if trace is not None else {},
            ) as answer:
                self.requests += 1
                body = self._read(answer, deadline)
        except httpx.HTTPError as error:
            raise self._failure(error) from None  # its request has the headers, and so the token
        if 200 <= answer.status_code < 300:
            if not request.text and not body.lstrip().startswith(b"{"):
                raise answers.stranger(settings, f"its answer to {request.what} is no JSON")
            return body
        problem = answers.error(settings, request.what, answer.status_code, body)
        problem.after = _after(answer.headers.get("Retry-After"))  # type: ignore[attr-defined]
        raise problem

    def _read(self, answer: httpx.Response, deadline: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        for part in answer.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > LARGEST:
                raise answers.stranger(self.settings, f"an answer of more than {LARGEST:,} bytes")
            if monotonic() > deadline:
                raise Unreachable(f"{self.settings.name} at {self.settings.origin} takes too long for an answer")
        return b"".join(parts)

    def _failure(self, error: httpx.HTTPError) -> ProviderError:
        settings = self.settings
        where = f"{settings.name} at {settings.origin}"
        text = settings.token.hide(str(error))
        if isinstance(error, httpx.ConnectTimeout):
            return Unreachable(f"no connection to {where} within {min(CONNECT, self._timeout):g} s")
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(f"{where} does not answer within {self._timeout:g} s")
        if isinstance(error, httpx.ConnectError):
            return Unreachable(f"no connection to {where}: {text}")
        if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in text and "closed" not in text:
            return answers.stranger(settings, text)
        if isinstance(error, httpx.DecodingError | httpx.UnsupportedProtocol):
            return answers.stranger(settings, text)
        return Unreachable(f"the connection to {where} failed: {text or type(error).__name__}")

    def client(self) -> httpx.Client:
        """The pool of connections of this process."""
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                self._client, self._pid = self.new_client(), os.getpid()  # a parent's goes on in the parent
            return self._client

    def new_client(self) -> httpx.Client:
        """One more pool of connections, with the token in its headers."""
        secure = self.settings.protocol == "https"
        return httpx.Client(
            headers={
                "Authorization": f"OAuth {self.settings.token.reveal()}",
                "Accept": "application/json",
                "User-Agent": f"revolve-assistant/{__version__}",
            },
            verify=secure,  # certificates take 25 ms to load, and plain http has none
            follow_redirects=False,
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30.0),
        )

    def close(self) -> None:
        """Let go of the connections; a request that waits for its next try ends. Idempotent."""
        self._closed.set()
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()


class Line:
    """One connection beside those of a Caller, on which a long request can be ended from another thread."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._client: httpx.Client | None = None
        self._stream: Any = None  # httpcore's, of the connection made last
        self._aborted = False

    def send(self, request: Request) -> bytes:
        """A single try. Raises as `Caller.once`, and `ClientClosed` after `abort`."""
        if self._client is None:
            self._client = self._caller.new_client()
        if self._aborted:
            raise ClientClosed("the poll was ended")
        try:
            return self._caller.once(request, self._client, self._trace)
        except (Unreachable, ProtocolError):
            if self._aborted:
                raise ClientClosed("the poll was ended") from None
            raise

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpcore tells of a request: among other things of the connection that it made."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]
            if self._aborted:
                self._shut()

    def abort(self) -> None:
        """End a call that waits in another thread, and every later one."""
        self._aborted = True
        self._shut()

    def _shut(self) -> None:
        held = self._stream.get_extra_info("socket") if self._stream is not None else None
        if held is not None:
            try:
                socket.socket.shutdown(held, socket.SHUT_RDWR)  # past TLS, which has nothing more to say
            except OSError:
                pass

    def close(self) -> None:
        """Let go of the connection; not while a call runs."""
        client, self._client, self._stream = self._client, None, None
        if client is not None:
            client.close()


def _after(text: str | None) -> float:
    """Seconds of a Retry-After; a date counts as none."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0
