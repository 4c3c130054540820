"""A Gearman client for Python 3: blocking, bounded, safe to share between threads.

client = GearmanClient([("127.0.0.1", 4730)])
print(client.submit("reverse", b"hello").result(timeout=10))
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ...errors import ClientClosed, Overloaded, ProtocolError, ProviderError, Unreachable
from ..stream import Address, Server, addresses, named
from .admin import Refused
from .client_state import Request, echo_request, status_request, status_unique_request, submission
from .job import Job, JobStatus
from .link import Link
from .packets import MAX_BODY, Kind, Packet

Work = tuple[str | bytes, bytes] | tuple[str | bytes, bytes, str | bytes]


class QueueFull(Refused, Overloaded):
    """The server takes no more jobs of this function (`maxqueue`), or could not store one."""


class GearmanClient:
    """Submits jobs to the first server that answers, and hears from them.

    It connects at the first call. When a server fails, the next one in the list is used, and stays in use until it
    fails in turn; one that failed is left alone for 0.05 s, then twice as long each time, up to 5 s.

    Every method may be called from any thread; a fork is noticed, and the child connects anew. A call without an answer
    within `timeout` seconds (10 by default) raises `Unreachable`, which names each server and what is wrong with it.
    A submission without an acknowledgement when its connection ends is sent again, so that in rare cases it runs
    twice; while it waits its `unique` prevents that.
    """

    def __init__(
        self,
        servers: str | Address | Iterable[str | Address] = (("127.0.0.1", 4730),),
        *,
        timeout: float = 10.0,
        connect_timeout: float = 3.0,
        heartbeat: float = 15.0,
        exceptions: bool = True,
        max_body: int = MAX_BODY,
    ) -> None:
        """Nothing is connected yet.

        `timeout` bounds each call that says no other, `connect_timeout` each attempt to connect, both in seconds.
        A server silent for `heartbeat` seconds while somebody waits is pinged, and given up after `timeout` more.
        `exceptions`: hear what workers raise, not only that they failed. `max_body`: bytes of the largest packet.
        """
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.heartbeat = heartbeat
        self.exceptions = exceptions
        self.max_body = max_body
        self._servers = [Server(address) for address in addresses(servers)]
        self._links: dict[Address, Link] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False

    def __enter__(self) -> GearmanClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. Jobs that wait in the foreground are lost with it. Idempotent."""
        self._forked()
        with self._lock:
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.fail(Unreachable(f"this client closed its connection to {named(link.address)}"))

    # ---- jobs

    def submit(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: str | bytes | None = None,
        background: bool = False,
        priority: int = 0,
        at: float | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Submit a job; returns once a server has acknowledged it, within `timeout` seconds.

        In the foreground the job is this connection's: its reports and its end come here, and if the connection ends
        while it waits, it never runs. In the background it runs whatever becomes of us, and reports to nobody.
        `priority`: above 0 high, below 0 low. `unique`: the same job while one of this function waits or runs under
        it (`-`: a hash of the workload); None makes one up. Do not mix foreground and background under one unique:
        gearmand then drops the job when the one in the foreground leaves. `at` (Unix seconds): in the background,
        not before; gearmand before 2.0 wakes no worker for it, ours look every 10 s.

        Raises `UsageError`, `Unreachable`, `QueueFull`, `Refused`.
        """
        request = submission(
            function,
            workload,
            unique=_fresh() if unique is None else unique,
            background=background,
            priority=priority,
            at=None if at is None else round(at),
            max_body=self.max_body,
        )
        job = request.owner = Job(request)
        self._call([request], timeout)
        self._check([request])
        return job

    def submit_many(
        self,
        work: Iterable[Work],
        *,
        priority: int = 0,
        batch: int = 1000,
        timeout: float | None = None,
    ) -> list[Job]:
        """Submit many background jobs, `(function, workload)` or `(function, workload, unique)` each; in their order.

        One round trip and as a rule one system call for `batch` of them; `timeout` bounds each batch. A batch is
        checked whole before any of it is sent. If some are refused, the error is raised after their batch and
        `accepted` holds the jobs that were taken.
        """
        jobs: list[Job] = []
        for some in _batches(iter(work), max(1, batch)):
            requests = []
            for function, workload, *unique in some:
                request = submission(
                    function,
                    workload,
                    unique=unique[0] if unique else _fresh(),
                    background=True,
                    priority=priority,
                    max_body=self.max_body,
                )
                request.owner = Job(request)
                requests.append(request)
            try:
                self._call(requests, timeout)
                self._check(requests)
            except Refused as error:
                error.accepted = (*jobs, *(each.owner for each in requests if each.handle))
                raise
            jobs += [request.owner for request in requests]
        return jobs

    def status(self, job: Job | str, *, timeout: float | None = None) -> JobStatus:
        """What its server knows of a job, or of a handle (asked of the server in use)."""
        request = status_request(job.request.handle if isinstance(job, Job) else job)
        link = job.link if isinstance(job, Job) else None
        self._call([request], timeout, None if link is None else link.address)
        return _status(self._answer(request))

    def status_unique(self, unique: str | bytes, *, timeout: float | None = None) -> JobStatus:
        """What the server in use knows of a job by its unique, whatever its function."""
        request = status_unique_request(unique)
        self._call([request], timeout)
        return _status(self._answer(request))

    def echo(self, data: bytes = b"", *, timeout: float | None = None) -> bytes:
        """Have the server in use send the bytes back: whether it is there."""
        request = echo_request(data, self.max_body)
        self._call([request], timeout)
        return self._answer(request).args[0]

    @property
    def server(self) -> Address | None:
        """Host and port of the server in use; None: not connected."""
        with self._lock:
            link = self._links.get(self._servers[0].address)
        return link.address if link is not None and link.error is None else None

    # ---- within

    def _call(self, requests: list[Request], timeout: float | None, address: Address | None = None) -> None:
        """Send the requests and wait for every answer, on the next server what one left open."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        left = requests
        while left:
            link = self._link(deadline, address)
            for request in left:
                if request.owner is not None:
                    request.owner.link = link
            asked, last = time.monotonic(), left[-1]
            try:
                link.ask(left)
                if not link.wait(lambda: last.answer is not None, deadline):  # noqa: B023  # called at once
                    open_ = sum(request.answer is None for request in left)
                    error = Unreachable(f"{named(link.address)} left {open_} of {len(left)} requests unanswered")
                    if time.monotonic() - asked >= self.connect_timeout and link.last_heard < asked:
                        link.fail(error)  # else only slow: late answers find their requests, others use the link
                    raise error
            except (Unreachable, ProtocolError) as error:
                if link.error is not None:
                    self._drop(link, error)
                if isinstance(error, ProtocolError) or time.monotonic() >= deadline:
                    raise
            left = [request for request in left if request.answer is None]

    def _link(self, deadline: float, address: Address | None) -> Link:
        """The connection to the server in use (or to that one); connects, waits and tries the others if need be."""
        self._forked()
        while True:
            with self._locked(deadline):
                if self._closed:
                    raise ClientClosed("this GearmanClient is closed; make another one")
                servers = [each for each in self._servers if address is None or each.address == address]
                for server in servers:
                    link = self._links.get(server.address)
                    if link is not None and link.sound():
                        if address is None:
                            self._use(server)
                        return link
                    now = time.monotonic()
                    if server.not_before > now or now >= deadline:
                        continue
                    try:
                        link = Link(
                            server.address,
                            timeout=min(self.connect_timeout, deadline - now),
                            heartbeat=self.heartbeat,
                            max_body=self.max_body,
                            exceptions=self.exceptions,
                            heard=_hear,
                            lost=_lose,
                        )
                    except (Unreachable, ProtocolError) as error:
                        server.failed(error)
                        continue
                    server.worked()
                    self._links[server.address] = link
                    if address is None:
                        self._use(server)
                    return link
                soonest = min(server.not_before for server in servers)
            now = time.monotonic()
            wrong = [server.error for server in servers if isinstance(server.error, ProtocolError)]
            if len(wrong) == len(servers):  # waiting does not make a Gearman server of them
                raise wrong[0]
            if max(soonest, now) >= deadline:
                raise Unreachable("; ".join(f"{each.error or named(each.address)}" for each in servers))
            threading.Event().wait(max(0.0, soonest - now))

    @contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        """The lock, which another thread may hold while it connects."""
        lock = self._lock
        if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            names = ", ".join(named(server.address) for server in self._servers)
            raise Unreachable(f"no time left to connect; another thread still tries {names}")
        try:
            yield
        finally:
            lock.release()

    def _use(self, server: Server) -> None:
        """The first in the list is the one in use."""
        if server is not self._servers[0]:
            at = self._servers.index(server)
            self._servers = self._servers[at:] + self._servers[:at]

    def _drop(self, link: Link, error: Exception) -> None:
        with self._lock:
            if self._links.get(link.address) is link:
                del self._links[link.address]
                for server in self._servers:
                    if server.address == link.address:
                        server.failed(error)

    def _forked(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.Lock()
            links, self._links = self._links, {}
            for link in links.values():
                link.abandon()

    def _check(self, requests: list[Request]) -> None:
        for request in requests:
            if not request.handle:
                self._answer(request)

    def _answer(self, request: Request) -> Packet:
        answer = request.answer
        if answer is None:
            raise ProviderError("no answer")  # not reached: `_call` returns with every answer
        if answer.kind is Kind.ERROR:
            code, text = (arg.decode("utf-8", "backslashreplace") for arg in answer.args)
            kind = QueueFull if code == "QUEUE_ERROR" else Refused
            raise kind.of(code, text, f"the Gearman server, asked for {request.packet.kind.name},")
        return answer


def _hear(request: Request, packet: Packet) -> None:
    if request.owner is not None:
        request.owner.hear(packet)


def _lose(request: Request, error: Exception) -> None:
    if request.owner is not None and request.handle:
        request.owner.lose(error)


def _fresh() -> str:
    return os.urandom(16).hex()


def _batches(work: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(work, size)):
        yield some


def _status(packet: Packet) -> JobStatus:
    known, running, numerator, denominator, *clients = (int(arg) for arg in packet.args[1:])
    return JobStatus(known != 0, running != 0, numerator, denominator, clients[0] if clients else None)
