"""What one block of code reports: its buffer, its numbers, its end.

    emit ─▶ put ─▶ │ started ▪ ▪ ▪ progress │ ─▶ take: (number of the first, records) ─▶ the line's thread (`line`)

The code that reports is never held up: what waits is bounded, consecutive progress is one, and past the bound the
oldest goes, which leaves a hole in the numbers, so that readers hear of a `gap`.

A report of `revolve emit` belongs to no run (`loose`): its records have no numbers, each batch an identity of its own.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import NotCarriable
from ..pool.reports import ELSEWHERE, PROGRESS
from ..wire import frames as wire
from .running import ATOMS, Running

if TYPE_CHECKING:
    from .line import Line

ROOM = 4 << 20  # bytes that wait to be written
OBJECT = 64  # bytes that a record counts beside its own
CHUNK = 256 << 10  # bytes written as one message

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Reporting(Running):
    """What code sees of itself that somebody else runs. `result` is what its end will carry."""

    __slots__ = ("result",)

    def __init__(self, report: Report, id: str) -> None:
        super().__init__(report, 1, id, 1)
        self._credit = self._mark = 1 << 62  # it never waits for its readers
        self.result: Any = None


class Report:
    """The port of a `Reporting`. Thread-safe; all that changes changes under the line's lock."""

    __slots__ = (
        "channel",
        "dropped",
        "ended",
        "flagged",
        "history",
        "id",
        "kept",
        "line",
        "listed",
        "loose",
        "next",
        "pending",
        "run",
        "running",
        "size",
        "stored",
        "thread",
        "wakes",
    )

    def __init__(self, line: Line, id: str, history: float, *, loose: bool = False) -> None:
        self.line = line
        self.id = id
        self.channel = wire.log_of(id)
        self.history = history
        self.loose = loose
        self.run = os.urandom(8)
        self.running = Reporting(self, id)
        self.thread = threading.get_ident()
        self.next = 1
        self.dropped = 0  # of those that waited, since the last `take`
        self.pending: deque[bytes] = deque()
        self.size = 0
        self.listed = False  # the line knows that there is something
        self.kept = 0.0  # when its log was made or renewed, monotonic seconds; 0: never
        self.flagged = False  # it is asked to stop
        self.ended = False
        self.stored = False  # its end was written, or given up
        self.wakes: list[Callable[[], None]] = []

    # --- the port

    def put(self, record: bytes) -> None:
        kind = record[1]
        if kind == ELSEWHERE:  # who watches reads its log, nothing else
            record = _decode(record)[3]
            kind = record[1]
        line = self.line
        with line.lock:
            if self.ended or line.inherited:
                return
            pending = self.pending
            if kind == PROGRESS and pending and pending[-1][1] == PROGRESS:
                self.size += len(record) - len(pending[-1])
                pending[-1] = record
                return
            pending.append(record)
            self.size += len(record) + OBJECT
            if self.size > ROOM:
                self._trim()
            if not self.listed:
                line.enlist(self)

    def stopping(self, running: Running) -> bool:
        return self.flagged

    def flag(self) -> None:
        """Ask the code to stop; it looks when it likes."""
        self.flagged = True
        self.running.nudge()

    # --- for the line, under its lock

    def _trim(self) -> None:
        while self.size > ROOM and len(self.pending) > 1:
            self.size -= len(self.pending.popleft()) + OBJECT
            self.dropped += 1

    def take(self) -> tuple[bytes, int, list[bytes]]:
        """`(run, number of the first, records)` to be written now; the rest, if any, stays."""
        dropped, self.dropped = self.dropped, 0
        records: list[bytes] = []
        size = 0
        pending = self.pending
        while pending and size < CHUNK:
            record = pending.popleft()
            size += len(record)
            self.size -= len(record) + OBJECT
            records.append(record)
        if self.loose:
            if dropped:
                records.insert(0, event("gap", dropped))
            return os.urandom(8), 0, records
        first = self.next + dropped
        self.next = first + len(records)
        return self.run, first, records

    def finish(self) -> list[Callable[[], None]]:
        """The end was written, or nobody will: who is to be woken for that."""
        self.stored = True
        wakes, self.wakes = self.wakes, []
        return wakes

    # --- from any thread

    def end(self, record: bytes | None) -> None:
        """Say the last word (None: there is none), and have it written now."""
        line = self.line
        with line.lock:
            if self.ended or line.inherited:
                return
            self.ended = True
            if record is not None:
                self.pending.append(record)
                self.size += len(record)
            line.leave(self)

    def when_stored(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` once all was written, or given up; perhaps at once."""
        with self.line.lock:
            if not self.stored and not self.line.inherited:
                self.wakes.append(wake)
                return lambda: self.wakes.remove(wake) if wake in self.wakes else None
        wake()
        return lambda: None


# --- records


def event(name: str, *args: Any) -> bytes:
    """An event of ours; its arguments are msgpack's."""
    from ..pool.reports import EVENT

    return _encode((EVENT, 1, name, time(), args))


def started(worker: str, control: str, name: str) -> bytes:
    """The first record of a run. Its last field says that the run may be one of several by somebody else's will."""
    return _encode((wire.STARTED, worker, time(), control, name, True))


def succeeded(value: Any) -> bytes:
    """The end of what gave `value`; one that cannot be carried is a failure."""
    if type(value) in ATOMS:
        try:
            return _encode((wire.RETURNED, value, []))
        except (OverflowError, UnicodeEncodeError):  # past 64 bits, lone surrogates
            pass
    from ..wire.carry import pack

    try:
        payload, buffers = pack(value, "result")
    except NotCarriable as error:
        return failed(error)
    return _encode((wire.SUCCEEDED, payload, [bytes(each.raw()) for each in buffers or ()], []))


def failed(error: BaseException) -> bytes:
    from ..wire.remote import pack_error

    return _encode((wire.FAILED, pack_error(error), []))


def cancelled(rung: str) -> bytes:
    return _encode((wire.CANCELLED, rung, []))


def lost(error: BaseException) -> bytes:
    from ..wire.remote import pack_error

    return _encode((wire.LOST, pack_error(error), []))


def retrying(reason: str, delay: float) -> bytes:
    """The run is over, another one will follow."""
    return _encode((wire.RETRYING, reason, delay))
