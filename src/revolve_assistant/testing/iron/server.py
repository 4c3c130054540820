"""The stand-in as an HTTP server of this machine, and the faults that a test can switch on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from ...errors import UsageError
from .clock import Clock
from .queues import IronQueues, Problem
from .routes import Answer, serve
from .tasks import IronTasks

Fault = int | Literal["cut", "cut after", "garbage", "truncated", "slow"]
_KNOWN = ("cut", "cut after", "garbage", "truncated", "slow")


class Seen(NamedTuple):
    """A request that came. `path` follows the project, `status` 0: it was cut."""

    method: str
    path: str
    body: bytes
    status: int


class _Fault:
    def __init__(self, kind: Fault, times: int, match: str, after: int) -> None:
        self.kind, self.times, self.match, self.after = kind, times, match, after


class IronServer:
    """A project on the stand-in. `limit`: bytes of a request with messages; `slots`: IronWorker tasks at once.

    It serves within `with`, or from `start` on. `clock`: the machine's, or a `VirtualClock`. Thread-safe.
    """

    def __init__(
        self,
        *,
        project: str = "5f0c0ffee0000000000000ab",
        token: str = "stand-in-token",
        clock: Clock | None = None,
        limit: int = 64 << 10,
        slots: int = 4,
    ) -> None:
        self.project, self.token, self.limit = project, token, limit
        self.host, self.port = "127.0.0.1", 0
        self.clock = clock or Clock()
        self._seen: deque[Seen] = deque(maxlen=10_000)
        self.counts: Counter[str] = Counter()  # requests by method and last word of the path, "POST reservations"
        self.queues = IronQueues(self.clock)
        self.tasks = IronTasks(self.clock, project, slots)
        self.released = threading.Event()  # ends what is slow
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> IronServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- life

    def start(self) -> None:
        """Serve, on the same port as before. Raises `UsageError` if it does already."""
        if self._server is not None:
            raise UsageError(f"the stand-in serves already, on port {self.port}")
        self.queues.closing = False
        self.released.clear()
        self._server = _Server((self.host, self.port), _Handler, self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="iron-server")
        self._thread.start()

    def stop(self) -> None:
        """As a crash: connections are cut, nobody listens. What it holds stays. Idempotent."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        self._thread.join()
        with self.queues.changed:
            self.queues.closing = True
            self.queues.changed.notify_all()
        self.released.set()
        server.cut()
        server.server_close()

    def restart(self, *, wipe: bool = False) -> None:
        """`stop` and `start`; `wipe`: the queues are gone."""
        self.stop()
        if wipe:
            again, self.queues = self.queues.again, IronQueues(self.clock)
            self.queues.again = again
        self.start()

    def close(self) -> None:
        """`stop`, and kill the tasks that run. Idempotent."""
        self.stop()
        self.tasks.close()

    # --- what clients need

    def url(self, path: str = "", *, scheme: str = "ironmq", port: int | None = None, **options: Any) -> str:
        """Its address for this library, the token included; `port`: of a door before it."""
        words = {"protocol": "http", **options}
        tail = "&".join(f"{name}={quote(str(value), safe='/:')}" for name, value in words.items())
        return f"{scheme}://{self.project}:{quote(self.token, safe='')}@{self.host}:{port or self.port}/{path}?{tail}"

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the official clients."""
        return {
            "host": self.host,
            "port": self.port,
            "protocol": "http",
            "project_id": self.project,
            "token": self.token,
        }

    def environment(self) -> dict[str, str]:
        """The same as variables: IRON_HOST, IRON_TOKEN …"""
        return {f"IRON_{name.upper()}": str(value) for name, value in self.settings().items()}

    @property
    def seen(self) -> list[Seen]:
        """The requests that came, the last 10,000."""
        with self._lock:
            return list(self._seen)

    # --- what tests do

    def code(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, config: Any = None
    ) -> None:
        """Have a code package run this command; `env` are its variables, `config` its configuration (JSON)."""
        self.tasks.code(name, command, env or {}, config)

    def fail(self, fault: Fault, *, times: int = 1, match: str = "", after: int = 0) -> None:
        """Have the next `times` requests fail whose "METHOD path" holds `match`, once `after` such have passed.

        A status answers with that, and does nothing; "cut" ends the connection before anything was done, "cut after"
        after; "garbage" answers what is no JSON, "truncated" half of the answer; "slow" answers once `released` is set.
        """
        if not isinstance(fault, int) and fault not in _KNOWN:
            raise UsageError(f"fault={fault!r} must be a status, or one of {', '.join(_KNOWN)}")
        with self._lock:
            self._faults.append(_Fault(fault, times, match, after))

    def heal(self) -> None:
        """No faults any more."""
        with self._lock:
            self._faults.clear()
        self.released.set()

    # --- requests, on the connections' threads

    def fault_of(self, what: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.match in what:
                    if fault.after > 0:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault.kind
        return None

    def answer(
        self,
        method: str,
        target: str,
        token: str | None,
        content_type: str,
        body: bytes,
        gone: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """What is answered to a request, but for the faults."""
        version, _, rest = target.lstrip("/").partition("/")
        project, _, path = rest.removeprefix("projects/").partition("/")
        try:
            if version not in ("2", "3") or not rest.startswith("projects/"):
                raise Problem(404, "Not found")
            if token != f"OAuth {self.token}" or project != self.project:
                raise Problem(401, "Invalid project/token combination")
            return serve(self, method, f"/{version}/{path}", content_type, body, gone)
        except Problem as problem:
            return Answer(problem.status, {"msg": problem.text})

    def note(self, method: str, target: str, body: bytes, status: int) -> None:
        path = target.partition("/projects/")[2].partition("/")[2]
        with self._lock:
            self._seen.append(Seen(method, path, body, status))
            self.counts[f"{method} {path.partition('?')[0].rpartition('/')[2]}"] += 1
            self.counts["all"] += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], iron: IronServer) -> None:
        self.iron = iron
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody hung up."""

    def cut(self) -> None:
        """End every connection."""
        with self._guard:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body as one segment
    server: _Server

    def _serve(self) -> None:
        iron = self.server.iron
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = iron.fault_of(f"{self.command} {self.path}")
        if fault == "cut":
            iron.note(self.command, self.path, body, 0)
            self._hang_up()
            return
        if fault == "slow":
            iron.released.wait(60.0)
        if isinstance(fault, int):
            answer = Answer(fault, {"msg": f"{fault} as the test has it"})
        else:
            answer = iron.answer(
                self.command,
                self.path,
                self.headers.get("Authorization"),
                self.headers.get("Content-Type") or "",
                body,
                self._gone,
            )
        if fault == "cut after":
            iron.note(self.command, self.path, body, 0)
            self._hang_up()
            return
        iron.note(self.command, self.path, body, answer.status)
        self._say(answer, fault)

    def _say(self, answer: Answer, fault: Fault | None) -> None:
        text = isinstance(answer.body, bytes)
        data = answer.body if text else json.dumps(answer.body).encode()
        if fault == "garbage":
            data = b"<html><body>" + os.urandom(32).hex().encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._hang_up()
            return
        self.wfile.write(data)

    def _gone(self) -> bool:
        """Whether whoever asked has hung up meanwhile."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server calls them so

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `IronServer.seen`."""
