"""Jobs on their way to several servers, each to the first of its own order that takes jobs, until all are answered.

What a server left unanswered when it failed goes to the next one: it may have been taken there already, so that there
are two of it. So does what one refuses that is draining (`DRAINING`). The order of loads with one order of servers is
kept, as long as no server fails.

    Load ── its jobs: all at once (frames), or parts first and then the task that names them
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator

from ...errors import Overloaded, ProtocolError
from ...protocols.beanstalkd import Answer, Request
from ...protocols.beanstalkd import commands as ask
from ...protocols.beanstalkd.state import ConnectionState
from ...protocols.stream import named
from ..lines import Line, Lines, Role
from ..preference import Order
from . import told as telling
from .address import MAX_BODY
from .told import Told

SUBMIT = "submit"
_BACKLOG = 1 << 20  # bytes handed to one connection at once
_CHUNK = 250  # loads made before the first of them are sent
_OPEN = 5000  # requests on one connection at once


class Load(ABC):
    """Something to be put on one server. A subclass says what: `begin`, and `heard` for the answers.

    `order` is that of the servers, `line` the one that it was given to, `ended` whether it is there or was refused;
    then `refusal` says why.
    """

    __slots__ = ("ended", "line", "order", "refusal")

    def __init__(self, order: Order) -> None:
        self.order = order
        self.line: Line | None = None
        self.ended = False
        self.refusal: Answer | None = None

    @abstractmethod
    def begin(self, line: Line) -> int:
        """Ask for it on this line; its bytes, about."""

    @abstractmethod
    def heard(self, line: Line, request: Request, answer: Answer) -> bool:
        """Take an answer. False: the server takes no jobs, try another one."""


class Delivery:
    """Puts loads over lines of the role "submit" of `lines`, which it brings along. One thread uses it."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.role = Role(SUBMIT, lambda: ConnectionState(max_body=MAX_BODY), telling.meet, self._heard, self._lost)
        self._groups: dict[Order, deque[Load]] = {}
        self._out: dict[Line, dict[Load, None]] = {}  # on their way
        self._answered = 0

    def deliver(self, loads: Iterable[Load]) -> None:
        """Takes new loads as they are made; returns when all have `ended`; see `refused`.

        Raises `Unreachable` or `ProtocolError` when no server answers for the time-out of the lines, and `Overloaded`
        when every one that does is draining.
        """
        lines = self._lines
        lines.want(self.role)
        groups = self._groups
        groups.clear()
        source = iter(loads)
        last = time.monotonic()
        before, more = -1, True
        try:
            while True:
                waiting = sum(map(len, groups.values()))
                if more and waiting < _CHUNK:
                    more = self._pull(source)
                if groups:
                    self._place()
                    waiting = sum(map(len, groups.values()))
                if more and waiting < _CHUNK:
                    lines.pump(0.0)  # the servers work while the next ones are made
                    continue
                if not waiting and not any(self._out.values()):
                    return
                now = time.monotonic()
                if self._answered != before:
                    before, last = self._answered, now
                elif waiting:
                    self._despair(now >= last + lines.timeout)
                lines.pump(now + 0.5)
        finally:
            groups.clear()
            self._out.clear()

    def ask(self, line: Line, requests: Iterable[Request]) -> None:
        """Over this line or not at all: what it left unanswered when it failed has the answer None."""
        requests = list(requests)
        for request in requests:
            line.state.ask(request)
        self._lines.send([line])
        while line.up and any(request.answer is None for request in requests):
            self._lines.pump(time.monotonic() + 0.5)

    def _despair(self, late: bool) -> None:
        """Raise if there is nobody to wait for."""
        lines = self._lines
        up = lines.lines(SUBMIT)
        if not up and (late or lines.hopeless()):
            raise lines.unreachable()
        if up and all(line.owner.draining for line in up) and (late or not lines.undecided(SUBMIT, hopeful=True)):
            names = ", ".join(named(line.server.address) for line in up)
            raise Overloaded(f"{names} takes no more jobs, it is draining: start it anew, or name another server")

    def _pull(self, source: Iterator[Load]) -> bool:
        """Put the next ones into their groups; whether there were enough of them that more may follow."""
        groups = self._groups
        count = 0
        for load in itertools.islice(source, _CHUNK):
            group = groups.get(load.order)
            if group is None:
                group = groups[load.order] = deque()
            group.append(load)
            count += 1
        return count == _CHUNK

    def _place(self) -> None:
        """Give loads to lines that have room."""
        for order, group in list(self._groups.items()):
            while group:
                line = self._choose(order)
                if line is None:
                    break
                state, room = line.state, _OPEN - line.state.open
                if line.backlog > _BACKLOG or room <= 0:
                    break
                out = self._out.setdefault(line, {})
                size = 0
                while group and state.open < _OPEN and size <= _BACKLOG:
                    load = group.popleft()
                    load.line = line
                    out[load] = None
                    size += load.begin(line)
                self._lines.send([line])
            if not group:
                del self._groups[order]

    def _choose(self, order: Order) -> Line | None:
        for index in order:
            line = self._lines.line(SUBMIT, index)
            if line is None:
                continue
            if line.up:
                if line.owner.draining:
                    continue
                return line
            if line.server.error is None:
                return None  # it has not failed: wait for it, a moment
        return None

    def _heard(self, line: Line, found: list[tuple[Request, Answer]]) -> None:
        out = self._out.get(line)
        again: list[Load] = []
        for request, answer in found:
            load: Load | None = request.owner
            if load is None or load.line is not line or out is None:
                continue
            self._answered += 1
            if load.heard(line, request, answer):
                if load.ended:
                    out.pop(load, None)
            elif load in out:
                told: Told = line.owner
                told.draining = True
                del out[load]
                again.append(load)
        self._return(again)

    def _lost(self, line: Line) -> None:
        self._return(self._out.pop(line, {}))

    def _return(self, loads: Iterable[Load]) -> None:
        for load in reversed(list(loads)):
            load.line = None
            self._groups.setdefault(load.order, deque()).appendleft(load)


def refused(loads: Iterable[Load], what: str) -> None:
    """Raise `Overloaded` or `ProtocolError` if a server refused any of these."""
    loads = list(loads)
    wrong = [load for load in loads if load.refusal is not None]
    if not wrong:
        return
    first = wrong[0]
    assert first.refusal is not None
    said = first.refusal.word.decode("ascii", "replace")
    server = named(first.line.server.address) if first.line is not None else "beanstalkd"
    where = f"beanstalkd at {server}, given {what} ({len(loads) - len(wrong)} of {len(loads)} taken),"
    if said in ("OUT_OF_MEMORY", "BURIED"):
        raise Overloaded(f"{where} has no memory, or no room on its disk, for more: {said}")
    if said == "JOB_TOO_BIG":
        raise ProtocolError(f"{where} refused: JOB_TOO_BIG, though it said how much it takes (-z): try again")
    raise ProtocolError(f"{where} refused: {said}")


def put_requests(line: Line, tube: bytes, jobs: Iterable[bytes], ttr: int, load: Load) -> int:
    """Ask for jobs of the highest priority on a line; how many bytes they have."""
    telling.use(line, tube)
    size = 0
    for body in jobs:
        line.state.ask(ask.put_plain(body, 0, 0, ttr, load))
        size += len(body)
    return size
