"""Requests on their way to several servers, each to the first of its own order that is up, until all are answered.

What a server left unanswered when it failed goes to the next one: it may have been accepted there already, so that
there are two of it. The order of requests with one order of servers is kept, as long as no server fails.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ...errors import ProtocolError, ProviderError
from ...protocols.gearman import Kind, Packet
from ...protocols.gearman.client import QueueFull
from ...protocols.gearman.client_state import ClientState, Request
from ..lines import Line, Lines, Role
from ..preference import Order

SUBMIT = "submit"
_BACKLOG = 1 << 20  # bytes handed to one connection at once
_CHUNK = 250  # requests made before the first of them are sent
_OPEN = 5000  # requests on one connection at once

_KINDS = {1: Kind.SUBMIT_JOB_HIGH_BG, 0: Kind.SUBMIT_JOB_BG, -1: Kind.SUBMIT_JOB_LOW_BG}


class Delivery:
    """Sends requests over lines of the role "submit" of `lines`, which it brings along. One thread uses it."""

    def __init__(self, lines: Lines, max_body: int) -> None:
        self._lines = lines
        self.role = Role(SUBMIT, lambda: ClientState(max_body=max_body), _nothing, _heard, self._lost)
        self._groups: dict[Order, deque[Request]] = {}
        self._left = 0

    def deliver(self, requests: Iterable[tuple[Order, Request]]) -> None:
        """Takes new requests as they are made; returns when all are answered, an ERROR being an answer; see `refused`.

        Raises `Unreachable` or `ProtocolError` when no server answers for the time-out of the lines.
        """
        lines = self._lines
        lines.want(self.role)
        groups = self._groups
        groups.clear()
        everything: list[Request] = []
        source = iter(requests)
        last = time.monotonic()
        left, more = -1, True
        try:
            while True:
                if more and sum(map(len, groups.values())) < _CHUNK:
                    more = self._pull(source, everything)
                self._place()
                if more and sum(map(len, groups.values())) < _CHUNK:
                    lines.pump(0.0)  # the servers work while the next ones are made
                    continue
                open_ = sum(map(len, groups.values())) + sum(line.state.open for line in lines.lines(SUBMIT))
                if not open_:
                    if all(request.answer is not None for request in everything):
                        return
                    raise ProviderError("a request got lost")  # not reached: what a line leaves goes to the next
                now = time.monotonic()
                if open_ != left:
                    left, last = open_, now
                elif not lines.lines(SUBMIT) and (now >= last + lines.timeout or lines.hopeless()):
                    raise lines.unreachable()
                lines.pump(now + 0.5)
        finally:
            groups.clear()
            for request in everything:
                request.owner = None  # what is open still is of no interest any more

    def _pull(self, source: Iterator[tuple[Order, Request]], everything: list[Request]) -> bool:
        """Put the next ones into their groups; whether there were enough of them that more may follow."""
        groups = self._groups
        some = list(itertools.islice(source, _CHUNK))
        for order, request in some:
            request.owner = order
            group = groups.get(order)
            if group is None:
                group = groups[order] = deque()
            group.append(request)
            everything.append(request)
        return len(some) == _CHUNK

    def ask(self, line: Line, requests: Sequence[Request]) -> None:
        """Over this line or not at all: what it left unanswered when it failed has the answer None."""
        for request in requests:
            request.owner = None
            line.state.ask(request)
        self._lines.send([line])
        while line.up and any(request.answer is None for request in requests):
            self._lines.pump(time.monotonic() + 0.5)

    def _place(self) -> None:
        """Give requests to lines that have room."""
        for order, group in self._groups.items():
            while group:
                line = self._choose(order)
                if line is None:
                    break
                state, room = line.state, _OPEN - line.state.open
                if line.backlog > _BACKLOG or room <= 0:
                    break
                size = 0
                while group and room and size <= _BACKLOG:
                    request = group.popleft()
                    state.ask(request)
                    size += len(request.packet.args[-1])
                    room -= 1
                self._lines.send([line])

    def _choose(self, order: Order) -> Line | None:
        for index in order:
            line = self._lines.line(SUBMIT, index)
            if line is None:
                continue
            if line.up:
                return line
            if line.server.error is None:
                return None  # it has not failed: wait for it, a moment
        return None

    def _lost(self, line: Line) -> None:
        for request in reversed(line.state.unanswered):
            if request.owner is not None and request.answers is Kind.JOB_CREATED:
                self._groups.setdefault(request.owner, deque()).appendleft(request)


def background(function: bytes, key: str, data: bytes, priority: int = 0, at: int | None = None) -> Request:
    """A job to submit, of names that were made here and need no checking."""
    if at is not None:
        packet = Packet(Kind.SUBMIT_JOB_EPOCH, (function, key.encode(), b"%d" % at, data))
    else:
        packet = Packet(_KINDS[(priority > 0) - (priority < 0)], (function, key.encode(), data))
    return Request(packet, Kind.JOB_CREATED)


def refused(requests: Iterable[Request], what: str) -> None:
    """Raise `Overloaded` or `ProtocolError` if a server answered any of these with an ERROR."""
    requests = list(requests)
    errors = [request for request in requests if request.answer is not None and request.answer.kind is Kind.ERROR]
    if not errors:
        return
    answer = errors[0].answer
    assert answer is not None
    code, text = (arg.decode("utf-8", "backslashreplace") for arg in answer.args)
    where = f"gearmand, given {what} ({len(requests) - len(errors)} of {len(requests)} accepted),"
    if code == "QUEUE_ERROR":
        raise QueueFull.of(code, text, where)
    raise ProtocolError(f"{where} refused: {code} {text}")


def _nothing(line: Line) -> None:
    pass


def _heard(line: Line, found: list[object]) -> None:
    pass  # each request has its answer
