"""Functions of other programs, called by name: `client.submit("reverse", b"…")`. Plain bytes go there and come back.

    submit ─▶ Calls ─▶ Queue.call ┄┄▶ somebody else's worker
    task   ◀─ Calls ◀─ reports    ◀┄┄ WORK_STATUS: progress, WORK_DATA: `data`, WORK_WARNING: `warning`, the result

Nothing is signed, and nothing is unpickled. Nobody over there knows of our time limits and cancels: both end the wait
here, keep a call from starting where that can be, and leave what runs alone.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import threading
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import NotCarriable, TaskTimeout, Unreachable, Unsupported, UsageError
from ..pool.reports import (
    REPORT_ACCEPTED,
    REPORT_AWAY,
    REPORT_CANCELLED,
    REPORT_EVENTS,
    REPORT_RAISED,
    REPORT_STARTED,
)
from ..wire.carry import Function, Work
from .inbox import RemoteJob
from .options import PLAIN, Options

if TYPE_CHECKING:
    from ..engine import Parcel, Sink
    from .remote import Remote

LET_GO = "let go"
"""The rung of a cancelled call that had started: nobody listens any more; the work may go on."""

_WITHOUT = ("retries", "stall", "delay", "queue", "history", "capture")  # options that nobody there knows of
_DEPTH = 100


class Foreign(Work):
    """A call of somebody else's function."""

    __slots__ = ()


def carry(
    engine: Any, options: Options, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Work, bytes]:
    """The call and its bytes. Raises `Unsupported`, `UsageError`, `NotCarriable` (names the part)."""
    if not engine.traits.foreign:
        kind = type(engine).__module__.removeprefix("revolve_assistant.providers.")
        place = getattr(engine, "place", "") or kind
        raise Unsupported(
            f"{place} calls no functions of other programs, such as {name!r}: pass the callable itself, "
            "or use a Client with the address of a gearmand"
        )
    for option in _WITHOUT:
        value = getattr(options, option)
        if value != getattr(PLAIN, option):
            raise UsageError(
                f"{option}={value!r} says nothing to another program's worker: calls of {name!r} take timeout, "
                "priority and unique"
            )
    return Foreign(Function(0, name, "plain", b"", True)), workload(name, args, kwargs)


def workload(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """One bytes argument as it is, one text as UTF-8, all else as JSON: an array, or an object of keywords."""
    if args and kwargs:
        raise UsageError(f"{name} gets positional arguments or keywords, not both: the call is a JSON array or object")
    if len(args) == 1 and isinstance(args[0], (bytes, bytearray, memoryview)):
        return bytes(args[0])
    if len(args) == 1 and isinstance(args[0], str):
        try:
            return args[0].encode()
        except UnicodeEncodeError as error:
            raise NotCarriable(f"argument 1 of {name} is no text that UTF-8 can hold: {error}") from None
    for at, value in enumerate(args, 1):
        _check(value, f"argument {at} of {name}", _DEPTH)
    for key, value in kwargs.items():
        _check(value, f"argument {key} of {name}", _DEPTH)
    return json.dumps(kwargs or args, ensure_ascii=False, separators=(",", ":")).encode()


def _check(value: Any, path: str, depth: int) -> None:
    kind = type(value)
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise NotCarriable(f"{path} is no text that UTF-8 can hold: {error}") from None
    elif value is None or kind is bool or kind is int or (kind is float and math.isfinite(value)):
        pass
    elif depth == 0:
        raise NotCarriable(f"{path} is nested more than {_DEPTH} deep")
    elif kind is list or kind is tuple:
        for at, each in enumerate(value):
            _check(each, f"{path}[{at}]", depth - 1)
    elif kind is dict:
        for key, each in value.items():
            if type(key) is not str:
                raise NotCarriable(f"{path} has the key {key!r:.60}, and JSON's keys are text")
            _check(key, f"a key of {path}", 0)
            _check(each, f"{path}[{key!r:.60}]", depth - 1)
    else:
        what = f"the number {value}" if kind is float else f"a {kind.__qualname__}"
        raise NotCarriable(f"{path} is {what}, which JSON cannot hold; a lone bytes argument travels as it is")


class Call(RemoteJob):
    """A call on its way."""

    __slots__ = ()


class Calls:
    """Part of `Remote`, and the sink of its calls. Thread-safe."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._lock = threading.Lock()
        self._bell = threading.Condition(self._lock)
        self._calls: dict[str, Call] = {}
        self._deadlines: list[tuple[float, int, Call]] = []  # a heap
        self._numbers = itertools.count()
        self._clock: threading.Thread | None = None
        self._closed = False

    def submit(self, parcels: Iterable[Parcel], sink: Sink) -> None:
        """Hand them over; no I/O. Raises `UsageError`, `Unreachable`."""
        if self._closed:
            raise Unreachable("the client is closed")
        parcels = list(parcels)
        for parcel in parcels:
            call = parcel._ = Call(parcel, sink)
            self._calls[parcel.id] = call
        try:
            self._remote.queue.call(parcels, self)
        except BaseException:
            for parcel in parcels:
                self._calls.pop(parcel.id, None)
                parcel._ = None
            raise

    def cancel(self, task_id: str) -> bool:
        """End the wait. False: no such call."""
        call = self._calls.get(task_id)
        if call is None:
            return False
        self._remote.queue.cancel_call(task_id)
        self._end(call, REPORT_CANCELLED, LET_GO if call.started else "unstarted")
        return True

    def close(self) -> None:
        """Keep no more time. What waits at a server is dropped there once the queue is closed."""
        with self._lock:
            self._closed = True
            self._bell.notify_all()
        if self._clock is not None and self._clock is not threading.current_thread():
            self._clock.join(5.0)

    # --- the sink, on the queue's own thread

    def deliver(self, reports: Sequence[Any]) -> None:
        for report in reports:
            parcel, kind = report[0], report[1]
            call: Call | None = parcel._
            if call is None or call.ended:
                continue
            if kind == REPORT_ACCEPTED:
                self._remote.in_touch()
                self._remote.acknowledge([call])
                options = parcel.options
                if options is not None and options.timeout is not None:
                    self._limit(call, options.timeout)
            elif kind == REPORT_AWAY:
                self._remote.lost_touch(report[2])
            elif kind == REPORT_EVENTS:
                call.sink.deliver((report,))
            elif kind == REPORT_STARTED:
                call.started = True
                call.sink.deliver((report,))
            else:
                self._end(call, *report[1:])

    def _end(self, call: Call, kind: int, what: Any) -> None:
        with self._lock:
            if call.ended:
                return
            call.ended = True
            self._calls.pop(call.parcel.id, None)
        if call.wakes:
            self._remote.acknowledge([call])
        call.sink.deliver(((call.parcel, kind, what),))

    # --- time limits

    def _limit(self, call: Call, seconds: float) -> None:
        with self._lock:
            heapq.heappush(self._deadlines, (monotonic() + seconds, next(self._numbers), call))
            if self._clock is None and not self._closed:
                self._clock = threading.Thread(target=self._keep_time, name="revolve-deadlines", daemon=True)
                self._clock.start()
            self._bell.notify()

    def _keep_time(self) -> None:
        while True:
            with self._lock:
                while not self._closed and (not self._deadlines or self._deadlines[0][0] > monotonic()):
                    self._bell.wait(self._deadlines[0][0] - monotonic() if self._deadlines else None)
                if self._closed:
                    return
                _, _, call = heapq.heappop(self._deadlines)
            if call.ended:
                continue
            parcel = call.parcel
            self._remote.queue.cancel_call(parcel.id)
            limit, name = parcel.options.timeout, parcel.work.function.name
            what = "it may go on" if call.started else "it had not started"
            self._end(call, REPORT_RAISED, TaskTimeout(f"{name} was not done within timeout={limit:g} s; {what}"))
