"""A blocking client of one beanstalkd: pipelines, and is not deaf while it waits for a job.

    thread 1:  reserve(30) ═══════ waits at the server ═══════╗             ╔══ waits on ══▶
    thread 2:               touch(job) ──▶ bell ── put ──▶ the server ──▶ TOUCHED
                                          (a second connection)

beanstalkd reads nothing of a connection whose reserve waits, and a job can be touched, deleted and released on the
connection alone that reserved it. So this connection watches a tube of its own besides: whoever wants something puts a
job there through a second connection, which ends the waiting within a round trip; then the waiting goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...errors import Overloaded, ProtocolError, Unreachable, UsageError
from ..stream import Address, Stream, addresses, named, stranger
from . import commands
from .commands import Answer, Request
from .limits import DEFAULT_JOB, check_tube
from .state import ConnectionState

PORT = 11300
_LONGEST = 30  # seconds that one reserve waits at the server
_DEAF = 1  # seconds: the same where the server takes no wake-up call, since it is draining
_BELL_TTR = 10  # seconds


class Reserved(NamedTuple):
    """A job that is held: its number and its bytes."""

    number: int
    body: bytes


class _Link:
    """One connection, used by one thread at a time."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self.stream = Stream.connect(address, timeout)
        self.state = ConnectionState()
        try:
            self.state.ping()
            self.finish()
        except BaseException:
            self.stream.close()
            raise

    def flush(self) -> None:
        """Send everything, reading what comes meanwhile. Raises `Unreachable`, `ProtocolError`."""
        data = memoryview(self.state.data_to_send())
        while data:
            sent = self.stream.send(data[: 1 << 20])
            data = data[sent:]
            if data and not sent:
                if not self.stream.wait(self.timeout, write=True):
                    raise Unreachable(f"{named(self.address)} has taken nothing for {self.timeout:.3g} s")
                self.read()

    def read(self) -> None:
        """Take what is there. Raises `Unreachable`, `ProtocolError`."""
        data = self.stream.receive()
        if data is not None:
            try:
                self.state.receive(data)
                if self.state.error is not None:
                    raise self.state.error
            except ProtocolError as error:
                raise stranger(self.address, error, "beanstalkd") from error

    def finish(self) -> None:
        """Until all is answered. Raises `Unreachable`, `ProtocolError`."""
        self.flush()
        while self.state.open:
            if not self.stream.wait(self.timeout):
                raise Unreachable(f"{named(self.address)} has not answered for {self.timeout:.3g} s")
            self.read()


class BeanstalkdClient:
    """Any thread may call any method; each blocks up to `timeout` seconds, and `reserve` as long as it is told to.

    A connection that failed is dropped, and with it every job that was held; the next call makes another, which watches
    what this one watched. Not to be shared with a process that was forked.
    """

    def __init__(
        self, server: str | Address = ("127.0.0.1", PORT), *, timeout: float = 10.0, bells: str = "revolve.bell."
    ) -> None:
        """Nothing is connected yet. `bells` is what its own tube's name begins with. Raises `UsageError`."""
        self.address = addresses(server, PORT)[0]
        self.timeout = timeout
        self.watched: dict[bytes, None] = {}
        self.used = b"default"
        self._link: _Link | None = None
        self._bell_link: _Link | None = None
        self._bell = check_tube(bells + os.urandom(8).hex())
        self._turn = threading.Lock()
        self._ring = threading.Lock()  # held by who uses the second connection
        self._count = threading.Condition()
        self._wanted = 0  # threads that want the connection while one waits on it
        self._woken = self._deaf = False
        self._ear, self._mouth = socket.socketpair()
        for end in (self._ear, self._mouth):
            end.setblocking(False)

    def __enter__(self) -> BeanstalkdClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go; what was held is ready again at once. Idempotent; not while another thread is inside."""
        for link in (self._link, self._bell_link):
            if link is not None:
                link.stream.close()
        self._link = self._bell_link = None
        self._ear.close()
        self._mouth.close()

    @property
    def max_job(self) -> int:
        """Bytes that a job of this server may have. Connects at first."""
        with self._turn:
            link = self._connected()
        greeted = link.state.greeted
        told = commands.fields(greeted.answer.body).get("max-job-size", "") if greeted and greeted.answer else ""
        return int(told) if told.isdigit() else DEFAULT_JOB

    # ---- asking

    def ask(self, *requests: Request) -> list[Answer]:
        """Send them all at once, and give their answers in order; an error of the server is an answer too.

        A reserve that waits is refused here: see `reserve`. Raises `Unreachable`, `ProtocolError`.
        """
        if any(request.patience for request in requests):
            raise UsageError("a reserve that waits would keep everybody else waiting: call reserve()")
        with self._count:
            self._wanted += 1
        self._say()
        try:
            with self._turn:
                return self._ask(requests)
        finally:
            with self._count:
                self._wanted -= 1
                self._count.notify_all()

    def one(self, request: Request) -> Answer:
        """`ask` for one. Raises `Overloaded`, `ProtocolError` where the server cannot."""
        return _sound(self.ask(request)[0], request, self.address)

    def put(
        self, bodies: Iterable[bytes], tube: str = "", *, priority: int = 1 << 16, delay: float = 0, ttr: float = 60
    ) -> list[int]:
        """Put jobs into a tube (else the one in use), pipelined; their numbers. Raises `Overloaded` if one was not
        taken, the others having been; `UsageError`, `Unreachable`."""
        requests = [commands.put(body, priority, delay, ttr) for body in bodies]
        head = [commands.use(tube)] if tube else []
        answers = self.ask(*head, *requests)[len(head) :]
        for request, answer in zip(requests, answers, strict=True):
            if answer.word != b"INSERTED":
                said = _said(_sound(answer, request, self.address))
                raise Overloaded(f"{named(self.address)} does not take a job: {said}")
        return [answer.number for answer in answers]

    def reserve(self, timeout: float | None = None) -> Reserved | None:
        """A job of the tubes that are watched; None once `timeout` seconds are up, `wake` was called, or a job that is
        held has less than a second left (touch it). Other threads are served while this one waits."""
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while True:
            with self._count:
                self._count.wait_for(lambda: not self._wanted)
            with self._turn:
                found = self._reserve(deadline)
                if found is not None:
                    return None if not found else found[0]

    def wake(self) -> None:
        """End a `reserve` that waits in another thread, or else the next one."""
        self._woken = True
        self._say()

    def touch(self, *jobs: int) -> list[bool]:
        """Which of the jobs are still held, for another `ttr` now."""
        return [answer.word == b"TOUCHED" for answer in self.ask(*map(commands.touch, jobs))]

    def delete(self, *jobs: int) -> list[bool]:
        """Which of the jobs were there, and are no more."""
        return [answer.word == b"DELETED" for answer in self.ask(*map(commands.delete, jobs))]

    # ---- within

    def _say(self) -> None:
        with contextlib.suppress(OSError):
            self._mouth.send(b"\0")

    def _connected(self) -> _Link:
        link = self._link
        if link is None:
            link = _Link(self.address, self.timeout)
            asked = [commands.watch(tube) for tube in (self._bell, *self.watched)]
            if self.watched and b"default" not in self.watched:
                asked.append(commands.ignore("default"))
            if self.used != b"default":
                asked.append(commands.use(self.used))
            for request in asked:
                link.state.ask(request)
            link.finish()
            self._link = link
        return link

    def _ask(self, requests: Sequence[Request]) -> list[Answer]:
        link = self._connected()
        try:
            for request in requests:
                link.state.ask(request)
            link.finish()
        except BaseException:
            self._drop()
            raise
        answers = []
        for request in requests:
            answer = request.answer
            assert answer is not None
            answers.append(answer)
            self._note(request, answer)
        return answers

    def _note(self, request: Request, answer: Answer) -> None:
        """Remember what the next connection must be told."""
        tube = request.data[len(request.verb) + 1 : -2]
        if answer.word == b"USING":
            self.used = answer.text
        elif answer.word == b"WATCHING" and request.verb == b"watch":
            self.watched[tube] = None
        elif answer.word == b"WATCHING":
            self.watched.pop(tube, None)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.stream.close()

    def _reserve(self, deadline: float) -> list[Reserved] | None:
        """One stretch of waiting: a job, nothing more to wait for (empty), or None: wait on."""
        link = self._connected()
        if self._woken:
            self._woken = False
            return []
        left = deadline - time.monotonic()
        request = commands.reserve(min(_DEAF if self._deaf else _LONGEST, max(0, left)))
        poll = select.poll()
        poll.register(link.stream, select.POLLIN)
        poll.register(self._ear, select.POLLIN)
        try:
            link.state.ask(request)
            link.flush()
            until = min(deadline, time.monotonic() + request.patience) if request.patience else float("inf")
            while request.answer is None:
                wait = min(until - time.monotonic(), self.timeout) if request.patience else self.timeout
                events = poll.poll(max(0.0, wait) * 1000)
                ready = {descriptor for descriptor, _ in events}
                if link.stream.fileno() in ready:
                    link.read()
                if request.answer is None and (not events or self._ear.fileno() in ready):
                    with contextlib.suppress(BlockingIOError):
                        self._ear.recv(4096)
                    if not events or self._wanted or self._woken:
                        self._recall(link, request)
        except BaseException:
            self._drop()
            raise
        answer = request.answer
        if answer.word == b"RESERVED":
            if answer.body == self._bell:
                link.state.ask(commands.delete(answer.number))
                link.finish()
                return None
            return [Reserved(answer.number, answer.body)]
        if answer.word == b"TIMED_OUT":
            return [] if time.monotonic() >= deadline or not request.patience else None
        if answer.word == b"DEADLINE_SOON":
            return []
        raise ProtocolError(f"{named(self.address)} reserves nothing: {_said(_sound(answer, request, self.address))}")

    def _recall(self, link: _Link, request: Request) -> None:
        """Have a reserve that waits be answered now."""
        with self._ring:
            bell = self._bell_link
            if bell is None:
                bell = self._bell_link = _Link(self.address, self.timeout)
                bell.state.ask(commands.use(self._bell))
            job = commands.put(self._bell, 0, 0, _BELL_TTR)
            try:
                bell.state.ask(job)
                bell.finish()
                self._deaf = job.answer is not None and job.answer.word == b"DRAINING"
                patience = self.timeout + (request.patience if self._deaf else 0)
                while request.answer is None:
                    if not link.stream.wait(patience):
                        raise Unreachable(f"{named(self.address)} has not answered for {self.timeout:.3g} s")
                    link.read()
                if job.answer is None or job.answer.word != b"INSERTED":
                    return
                if request.answer.word != b"RESERVED" or request.answer.body != self._bell:
                    bell.state.ask(commands.delete(job.answer.number))  # something else was faster
                    bell.finish()
            except BaseException:
                self._bell_link = None
                bell.stream.close()
                raise


def _sound(answer: Answer, request: Request, address: Address) -> Answer:
    if answer.refused:
        error = Overloaded if answer.word == b"OUT_OF_MEMORY" else ProtocolError
        raise error(f"{named(address)} answers {_said(answer)} to {request.verb.decode()}")
    return answer


def _said(answer: Answer) -> str:
    return " ".join(part.decode("ascii", "replace") for part in (answer.word, answer.text) if part)
