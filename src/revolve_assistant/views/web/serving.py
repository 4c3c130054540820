"""Serves the pages: in this process on a thread of their own (`Client(…, web=8787)`), or as a program (`revolve web`).

user's threads      client ────────────────────────────────┐
"revolve-web"       event loop ── uvicorn ── Pages ── Feed ─┘      a socket bound before the thread starts
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ...errors import ProviderMissing, Unreachable, UsageError
from ...pool.threads import OurThread
from .gate import Allow, is_loopback
from .pages import Pages

if TYPE_CHECKING:
    from ...caller.client import Client

log = logging.getLogger("revolve_assistant")
PORT = 8787
GRACE = 2  # seconds that requests may still take once it ends


def place_of(where: int | str) -> tuple[str, int]:
    """Host and port of `8787`, `"8787"`, `"host:8787"`, `"[::1]:8787"`. Raises `UsageError`."""
    host, _, port = str(where).rpartition(":")
    try:
        number = int(port)
    except ValueError:
        number = -1
    if isinstance(where, bool) or not 0 <= number < 65536:
        raise UsageError(f"web={where!r} must be a port, or host:port")
    return host.strip("[]") or "127.0.0.1", number


class Serving:
    """The pages of a client on a port; `url` is where. Raises `UsageError`, `Unreachable` (the port is taken)."""

    def __init__(
        self,
        client: Client,
        host: str = "127.0.0.1",
        port: int = PORT,
        *,
        show: Collection[str] | str = (),
        token: str | None = None,
        allow: Allow | None = None,
        hosts: Collection[str] = (),
    ) -> None:
        try:
            import uvicorn
        except ImportError as error:
            raise ProviderMissing("the pages need: pip install 'revolve-assistant[web]'") from error
        if not is_loopback(host) and token is None and allow is None:
            raise UsageError(
                f"the pages on {host} could be seen by others: give a token (--token or REVOLVE_WEB_TOKEN), "
                "or leave the host out"
            )
        names = {*hosts, host} - {"", "0.0.0.0", "::"}
        self.pages = Pages(client, show=show, token=token, allow=allow, hosts=names)
        self._socket = _bound(host, port)
        self.pages.open()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}/"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.pages,
                log_config=None,
                access_log=False,
                log_level="warning",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=GRACE,
                proxy_headers=False,
            )
        )
        self._thread: threading.Thread | None = None
        self._over = threading.Event()  # not `join`: before 3.13 a signal in its midst makes a thread seem to be over
        self._pid = os.getpid()

    def start(self) -> Serving:
        """Serve in the background; returns at once."""
        self._thread = OurThread(self._run, "revolve-web")
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether it is being served."""
        return self._thread is not None and not self._over.is_set()

    def wait(self, timeout: float) -> None:
        """Block until it is no longer served, at most `timeout` seconds."""
        if self._thread is not None:
            self._over.wait(timeout)

    def stop(self) -> None:
        """Begin to end; from any thread, also from a signal handler."""
        self._server.should_exit = True

    def close(self) -> None:
        """End, and wait for that. Idempotent."""
        self.stop()
        if self._pid != os.getpid():  # in a fork: the thread is the parent's
            self._socket.close()
            return
        if self._thread is not None and self._thread is not threading.current_thread():
            self._over.wait(GRACE + 5.0)
        self.pages._feed.close()
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("the pages on %s are no longer served", self.url)
        finally:
            self._over.set()

    async def _serve(self) -> None:
        async def end_streams() -> None:
            while not self._server.should_exit:
                await asyncio.sleep(0.1)
            self.pages.close()

        ending = asyncio.create_task(end_streams())
        # Not `serve`: that takes the process's signals, which are the application's.
        await self._server._serve([self._socket])
        await ending


def _bound(host: str, port: int) -> socket.socket:
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(kind, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{host!r} is no address of this machine: {error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise Unreachable(f"the pages cannot be served at {host}:{port}: {error.strerror or error}") from error
    return bound


def serving(client: Client, where: int | str) -> Any:
    """What `Client(…, web=…)` starts."""
    host, port = place_of(where)
    token = os.environ.get("REVOLVE_WEB_TOKEN") or None
    return Serving(client, host, port, token=token, show=os.environ.get("REVOLVE_WEB_SHOW", "")).start()
