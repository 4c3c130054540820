"""Calls of functions that other people's workers serve: foreground jobs, many at once, on connections of their own.

    call, from any thread ──▶ incoming ══▶ SUBMIT_JOB ┄┄▶ a worker somewhere      "revolve-calls", a thread that starts
    sink ◀── reports ◀══ WORK_STATUS, WORK_DATA, WORK_WARNING, WORK_COMPLETE …    with the first call

The first server of the URL that answers gets them all, as with the C client. A job in the foreground belongs to its
connection: if that ends, gearmand drops what waits, and what runs goes on unheard. So what was accepted is then lost;
what was not acknowledged yet goes to the next server, and in rare cases runs twice. gearmand does not say when a job
starts: its first report says so, or an answer to GET_STATUS, which is asked about those that stay silent.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ...engine import Parcel, Sink
from ...errors import ClientClosed, ProtocolError, ProviderError, RemoteError, TaskLost
from ...pool.reports import (
    EVENT,
    PROGRESS,
    REPORT_ACCEPTED,
    REPORT_AWAY,
    REPORT_EVENTS,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETURNED,
    REPORT_STARTED,
)
from ...protocols.gearman import GearmanAdmin, Kind, Packet
from ...protocols.gearman.client import QueueFull
from ...protocols.gearman.client_state import ClientState, Request, option_request, status_request, submission
from ...protocols.stream import Address, named
from ..lines import Line, Lines, Role
from .address import MAX_BODY, Place
from .names import unique

log = logging.getLogger("revolve_assistant")

_CALL = "call"
_OPEN = 5000  # submissions under way on one connection
_BACKLOG = 1 << 20  # bytes handed to one connection at once
_LOOK = (0.2, 5.0)  # seconds until a silent call is asked about: first, most
_LOOKS = 200  # calls asked about at once
_LONELY = 5.0  # seconds without a start after which it is looked whether there is any worker
_AWAY = 1.0  # seconds between reports that no server answers
_BRIEF = 1.0  # seconds that a server has for an administrator's question
_CLOSING = 5.0  # seconds
_TEXT = 64 << 10  # bytes of an exception's text that are kept
_FROZEN = re.compile(rb"\x05.(?:[\x0a\x17](.)|[\x01\x18](.{4}))(.*)\Z", re.S)


class _Call:
    """One call. `over`: its end was reported, or nobody listens any more."""

    __slots__ = ("accepted", "line", "look", "over", "parcel", "request", "sink", "started", "warning")

    def __init__(self, parcel: Parcel, sink: Sink, request: Request) -> None:
        self.parcel = parcel
        self.sink = sink
        self.request = request
        request.owner = self
        self.line: Line | None = None
        self.accepted = 0.0  # monotonic seconds
        self.look = _LOOK[0]
        self.started = False
        self.over = False
        self.warning = b""  # the latest, for want of an exception's text

    @property
    def function(self) -> str:
        return self.request.packet.args[0].decode("utf-8", "backslashreplace")


class Calling:
    """Part of the Queue. Every method may be called from any thread."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lines: Lines | None = None
        self._calls: dict[str, _Call] = {}
        self._incoming: deque[_Call] = deque()
        self._dropped: deque[_Call] = deque()
        # of the thread alone:
        self._waiting: deque[_Call] = deque()
        self._silent: list[tuple[float, int, _Call]] = []  # a heap
        self._numbers = itertools.count()
        self._reports: list[tuple[Sink, tuple[Any, ...]]] = []
        self._admins: dict[Address, GearmanAdmin] = {}
        self._lonely: set[bytes] = set()
        self._complained = 0.0
        self._role = Role(_CALL, lambda: ClientState(max_body=MAX_BODY), _greet, self._heard, self._lost)

    def call(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        """See `engine.Queue.call`."""
        calls = []
        for parcel in parcels:
            request = submission(
                self._place.names.foreign(parcel.work.function.name),
                parcel.body,
                unique=unique(parcel.id),
                priority=parcel.priority,
                max_body=MAX_BODY,
            )
            calls.append(_Call(parcel, sink, request))
        if self._pid != os.getpid():  # the calls are the parent's
            self._begin()
        with self._lock:
            if self._closed:
                raise ClientClosed(f"{self._place.text} is closed")
            for call in calls:
                self._calls[call.parcel.id] = call
            self._incoming.extend(calls)
            if self._thread is None:
                self._lines = Lines(self._place.servers, self._place.timeout)
                self._thread = threading.Thread(target=self._run, name="revolve-calls", daemon=True)
                self._thread.start()
            elif self._lines is not None:
                self._lines.wake()

    def cancel(self, task_id: str) -> bool:
        """See `engine.Queue.cancel_call`."""
        with self._lock:
            call = self._calls.pop(task_id, None)
            if call is None:
                return False
            call.over = True
            self._dropped.append(call)
            if self._lines is not None:
                self._lines.wake()
        return True

    def close(self) -> None:
        """Let go of every call; what waits at a server does not start any more. Idempotent."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            thread, lines = self._thread, self._lines
            if lines is not None:
                lines.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSING + self._place.timeout)

    # ---- the thread

    def _run(self) -> None:
        lines = self._lines
        assert lines is not None
        lines.want(self._role)
        try:
            while not self._closed:
                try:
                    lines.hush()
                    self._turn(lines)
                except Exception:
                    log.exception("the thread that calls functions of %s failed; it goes on", self._place.text)
                    lines.pump(time.monotonic() + _BRIEF)
        finally:
            with self._lock:
                self._closed = True
                self._lines = None
            lines.close()
            for admin in self._admins.values():
                admin.close()

    def _turn(self, lines: Lines) -> None:
        with self._lock:
            self._waiting.extend(self._incoming)
            self._incoming.clear()
            dropped, self._dropped = self._dropped, deque()
        for call in dropped:
            if call.request.handle and not call.request.ended and not call.started:
                self._take_back(call)
        until = min(self._place_calls(lines), self._look(lines))
        self._deliver()
        lines.pump(until)
        self._deliver()

    def _place_calls(self, lines: Lines) -> float:
        """Submit what waits; when to do so again, at the latest (monotonic seconds)."""
        waiting = self._waiting
        while waiting:
            line = self._choose(lines)
            if line is None:
                return self._complain(lines)
            if line.backlog > _BACKLOG or line.state.open >= _OPEN:
                break
            size = 0
            while waiting and size <= _BACKLOG and line.state.open < _OPEN:
                call = waiting.popleft()
                if call.over:
                    continue
                line.state.ask(call.request)
                size += len(call.request.packet.args[-1])
            lines.send([line])
        return float("inf")

    def _choose(self, lines: Lines) -> Line | None:
        for index, server in enumerate(lines.servers):
            line = lines.line(_CALL, index)
            if line is not None and line.up:
                return line
            if line is not None and server.error is None:
                return None  # it has not failed: wait for it, a moment
        return None

    def _complain(self, lines: Lines) -> float:
        """Say that no server answers, once all have failed."""
        now = time.monotonic()
        if not all(server.error for server in lines.servers):
            return now + _AWAY
        error = lines.unreachable()
        if lines.hopeless():
            while self._waiting:
                self._end(self._waiting.popleft(), REPORT_RAISED, error)
        elif now >= self._complained:
            self._complained = now + _AWAY
            for call in self._waiting:
                if not call.over:
                    self._report(call, REPORT_AWAY, error)
                    break
        return now + _AWAY

    def _look(self, lines: Lines) -> float:
        """Ask whether silent calls have started; when to do so again (monotonic seconds)."""
        silent, now = self._silent, time.monotonic()
        asked: set[Line] = set()
        for _ in range(_LOOKS):
            if not silent or silent[0][0] > now:
                break
            _, _, call = heapq.heappop(silent)
            line = call.line
            if call.over or call.started or line is None or not line.up:
                continue
            request = status_request(call.request.handle)
            request.owner = call
            line.state.ask(request)
            asked.add(line)
        lines.send(asked)
        return silent[0][0] if silent else float("inf")

    def _heard(self, line: Line, found: list[tuple[Request, Packet]]) -> None:
        for request, packet in found:
            call: _Call | None = request.owner
            if call is None:
                continue
            kind = packet.kind
            if request.answers is Kind.STATUS_RES:
                self._answered(call, packet)
            elif kind is Kind.JOB_CREATED:
                self._accepted(call, line)
            elif not call.over:
                self._take(call, packet)

    def _accepted(self, call: _Call, line: Line) -> None:
        call.line, call.accepted = line, time.monotonic()
        call.request.packet = call.request.packet._replace(args=(call.request.packet.args[0], b"", b""))  # sent
        call.parcel.body = b""
        if call.over:
            self._take_back(call)
            return
        self._report(call, REPORT_ACCEPTED)
        self._look_later(call)

    def _look_later(self, call: _Call) -> None:
        heapq.heappush(self._silent, (time.monotonic() + call.look, next(self._numbers), call))
        call.look = min(_LOOK[1], call.look * 2)

    def _answered(self, call: _Call, packet: Packet) -> None:
        """What GET_STATUS said of a silent call."""
        if call.over or call.started or packet.kind is not Kind.STATUS_RES:
            return
        if packet.args[2] == b"1":
            self._started(call)
            return
        self._look_later(call)
        function = call.request.packet.args[0]
        if time.monotonic() - call.accepted >= _LONELY and function not in self._lonely and call.line is not None:
            self._lonely.add(function)
            with contextlib.suppress(ProviderError):
                status = self._admin(call.line.server.address).status().get(call.function)
                if status is not None and not status.workers:
                    log.warning("no worker at %s serves the function %r: a call of it waits until one comes",
                                named(call.line.server.address), call.function)  # fmt: skip

    def _take(self, call: _Call, packet: Packet) -> None:
        """A report of a job, or the refusal of a submission."""
        kind, now = packet.kind, time.time()
        if kind is Kind.ERROR:
            code, text = (arg.decode("utf-8", "backslashreplace") for arg in packet.args)
            where = f"gearmand, asked for the function {call.function!r},"
            error: Exception = ProtocolError(f"{where} refused: {code} {text}")
            self._end(call, REPORT_RAISED, QueueFull.of(code, text, where) if code == "QUEUE_ERROR" else error)
            return
        if kind is Kind.WORK_FAIL:
            why = f"; its last warning: {_text(call.warning)}" if call.warning else ""
            self._end(call, REPORT_RAISED, RemoteError(f"{call.function} failed{why}"))
            return
        if not call.started:
            self._started(call)
        if kind is Kind.WORK_COMPLETE:
            self._end(call, REPORT_RETURNED, packet.args[1])
        elif kind is Kind.WORK_EXCEPTION:
            self._end(call, REPORT_RAISED, RemoteError(f"{call.function} failed: {_text(packet.args[1])}"))
        elif kind is Kind.WORK_STATUS:
            done, total = int(packet.args[1]), int(packet.args[2])
            fraction = min(1.0, done / total) if total else None
            self._say(call, (PROGRESS, 0, "progress", now, fraction, done, total or None, None), 64)
        else:
            name, data = "data", packet.args[1]
            if kind is Kind.WORK_WARNING:
                name, call.warning = "warning", data[:_TEXT]
            self._say(call, (EVENT, 0, name, now, (data,)), 64 + len(data))

    def _say(self, call: _Call, record: tuple[Any, ...], size: int) -> None:
        reports = self._reports
        if reports and reports[-1][1][0] is call.parcel and reports[-1][1][1] == REPORT_EVENTS:
            parcel, kind, records, before = reports[-1][1]
            records.append(record)
            reports[-1] = (call.sink, (parcel, kind, records, before + size))
        else:
            self._report(call, REPORT_EVENTS, [record], size)

    def _started(self, call: _Call) -> None:
        call.started = True
        handle = call.request.handle.decode("utf-8", "backslashreplace")
        where = f"{named(call.line.server.address)} {handle}" if call.line is not None else handle
        self._report(call, REPORT_STARTED, where, time.time())

    def _end(self, call: _Call, kind: int, what: Any) -> None:
        with self._lock:
            if call.over:
                return
            call.over = True
            self._calls.pop(call.parcel.id, None)
        self._report(call, kind, what)

    def _lost(self, line: Line) -> None:
        state: ClientState = line.state
        again = [
            request.owner
            for request in state.unanswered
            if request.owner is not None and request.answers is Kind.JOB_CREATED and not request.owner.over
        ]
        self._waiting.extendleft(reversed(again))
        for request in state.running:
            call: _Call = request.owner
            running = "it may go on" if call.started else "whether it runs is not known"
            self._end(call, REPORT_LOST, TaskLost(f"{line.error}; nobody hears {call.function} any more, {running}"))

    def _take_back(self, call: _Call) -> None:
        """Keep it from starting, if it has not."""
        if call.line is not None:
            with contextlib.suppress(ProviderError):
                self._admin(call.line.server.address).cancel(call.request.handle)

    def _admin(self, address: Address) -> GearmanAdmin:
        admin = self._admins.get(address)
        if admin is None:
            admin = self._admins[address] = GearmanAdmin(address, timeout=min(self._place.timeout, _BRIEF))
        return admin

    def _report(self, call: _Call, kind: int, *rest: Any) -> None:
        self._reports.append((call.sink, (call.parcel, kind, *rest)))

    def _deliver(self) -> None:
        reports, self._reports = self._reports, []
        for sink, several in itertools.groupby(reports, key=lambda each: each[0]):
            sink.deliver([report for _, report in several])


def _greet(line: Line) -> None:
    line.state.ask(option_request("exceptions"))


def _text(data: bytes) -> str:
    """What to show of an exception or warning. Perl's worker sends a text as its Storable freezes it."""
    found = _FROZEN.match(data)
    if found is not None and int.from_bytes(found[1] or found[2]) == len(found[3]):
        data = found[3]
    return data[:_TEXT].decode("utf-8", "backslashreplace").strip()
