"""A job as its client sees it: a handle, then reports, then an end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from ...errors import TaskError, UsageError
from .client_state import TERMINAL, Request
from .packets import Kind, Packet, number

if TYPE_CHECKING:
    from .link import Link

MAX_KEPT = 16 << 20
"""Bytes of reports that a Job keeps for `events`; past that the oldest go, and are counted in `dropped`."""
_COST = 100  # bytes that a kept report counts besides its own


class JobFailed(TaskError):
    """The worker says that the job failed. `data`: the bytes of its exception, None if it sent none."""

    data: bytes | None = None


class JobStatus(NamedTuple):
    """What a server knows of a job. Not `known`: it has ended, was lost, or never was; gearmand cannot tell which."""

    known: bool
    running: bool
    numerator: int
    denominator: int
    clients: int | None = None  # that wait for it; only when asked by unique


class Event(NamedTuple):
    """A report: `data` or `warning` with its bytes, `status` with `numerator` and `denominator`."""

    kind: Literal["data", "warning", "status"]
    data: bytes = b""
    numerator: int = 0
    denominator: int = 0


class Job:
    """A job that a server has acknowledged. Every method may be called from any thread.

    `handle` names it on its server, as long as that runs: handles start again at 1 after a restart. `unique` is what
    it was submitted with, or was given. Background jobs never report: `result`, `exception` and `events` refuse.
    """

    __slots__ = ("request", "link", "progress", "dropped", "_events", "_kept", "_end", "_lost")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.link: Link | None = None
        self.progress: tuple[int, int] | None = None
        """The latest status: numerator and denominator."""
        self.dropped = 0
        self._events: deque[Event] | None = deque() if request.reports else None
        self._kept = 0
        self._end: Packet | None = None
        self._lost: Exception | None = None

    def __repr__(self) -> str:
        kind = "background job" if self.background else "ended job" if self.done() else "job"
        return f"<{kind} {self.handle} of {self.function}>"

    @property
    def handle(self) -> str:
        return self.request.handle.decode("utf-8", "surrogateescape")

    @property
    def function(self) -> str:
        return self.request.packet.args[0].decode("utf-8", "surrogateescape")

    @property
    def unique(self) -> str:
        return self.request.packet.args[1].decode("utf-8", "surrogateescape")

    @property
    def background(self) -> bool:
        return not self.request.reports

    def done(self) -> bool:
        """Whether its end is known, or known to be lost. Does not look at the network; `wait` does."""
        return self._end is not None or self._lost is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it has ended; False after `timeout` seconds. None: as long as the server answers."""
        return self._wait(self.done, timeout)

    def result(self, timeout: float | None = None) -> bytes:
        """Block until its end; what the worker sent with it.

        Raises `JobFailed`; `Unreachable` when the connection ended before the job, which then may run or not;
        `TimeoutError` after `timeout` seconds (None: as long as the server answers its pings).
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        assert self._end is not None
        return self._end.args[1]

    def exception(self, timeout: float | None = None) -> Exception | None:
        """The same; the error that `result` would raise for its end, or None."""
        if not self.wait(timeout):
            raise TimeoutError(f"job {self.handle} has not ended after {timeout} s; it goes on")
        end = self._end
        if end is None:
            return self._lost
        if end.kind is Kind.WORK_COMPLETE:
            return None
        error = JobFailed(f"job {self.handle} of {self.function} failed")
        if end.kind is Kind.WORK_EXCEPTION:
            error = JobFailed(f"job {self.handle} of {self.function} failed: {_text(end.args[1])}")
            error.data = end.args[1]
        return error

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Its reports, as they come, each once; stops at its end. `TimeoutError` after `timeout` seconds without one.

        Kept until they are taken here, up to 16 MiB; past that the oldest are lost and counted in `dropped`. After
        the death of a worker the job runs again, and its reports follow those of the first run.
        """
        events = self._events
        if events is None:
            raise self._mute()
        while True:
            while events:
                event = events.popleft()
                self._kept -= len(event.data) + _COST
                yield event
            if self.done():
                return
            if not self._wait(lambda: bool(events) or self.done(), timeout):
                raise TimeoutError(f"no report of job {self.handle} for {timeout} s; it goes on")

    # ---- the client's side, called under the lock of the link

    def hear(self, packet: Packet) -> None:
        kind = packet.kind
        if kind in TERMINAL:
            self._end = packet
        elif kind is Kind.WORK_STATUS:
            self.progress = number(packet.args[1]), number(packet.args[2])
            self._keep(Event("status", b"", *self.progress))
        elif kind is Kind.WORK_DATA:
            self._keep(Event("data", packet.args[1]))
        elif kind is Kind.WORK_WARNING:
            self._keep(Event("warning", packet.args[1]))

    def lose(self, error: Exception) -> None:
        if self._end is None and self.request.reports:
            self._lost = type(error)(f"{error}; whether job {self.handle} of {self.function} runs is not known")
            self._lost.__cause__ = error

    def _keep(self, event: Event) -> None:
        events = self._events
        if events is None:
            return
        events.append(event)
        self._kept += len(event.data) + _COST
        while self._kept > MAX_KEPT and len(events) > 1:
            self._kept -= len(events.popleft().data) + _COST
            self.dropped += 1

    def _wait(self, done: object, timeout: float | None) -> bool:
        if self._events is None:
            raise self._mute()
        if self.done() or self.link is None:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        return self.link.wait(done, deadline)  # type: ignore[arg-type]

    def _mute(self) -> UsageError:
        return UsageError(f"{self!r} never reports to its client; submit it with background=False, or ask `status`")


def _text(data: bytes) -> str:
    return data[:500].decode("utf-8", "backslashreplace")
