"""Taking tasks from several servers.

    look     queue after queue, server after server (another one first each time): jobs that are there now
    wait     all of them at once: a reserve that waits at each server, until one brings something
    recall   what still waits is called back, and what it brought beyond the room for it is given back

Each job that comes is asked about at once (`stats-job`): how often it was handed out, how urgent it is, how long it may
be held. What a large task is made of is fetched in the same round trip (`peek`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from ...protocols.beanstalkd import Answer, Request
from ...protocols.beanstalkd import commands as ask
from ..lines import Line, Lines
from .address import Place
from .delivery import SUBMIT
from .names import UNCOUNTED, uncounted_of
from .reserving import Reserving
from .told import Told
from .wrapping import Task, read_task

TAKE = "take"


class Hold:
    """A job that is held. `over`: it is settled, or somebody else's by now."""

    __slots__ = (
        "body", "described", "line", "number", "over", "parts", "priority", "reserves", "task", "taking", "ttr", "tube",
        "_pieces",
    )  # fmt: skip

    def __init__(self, taking: Taking, line: Line, number: int, body: bytes) -> None:
        self.taking = taking
        self.line = line
        self.number = number
        self.over = False
        self.described = False
        self.tube = b""
        self.priority = self.reserves = 0
        self.ttr = 1
        self.task: Task | None = read_task(body)
        self.body = body if self.task is None else self.task.body
        self.parts = self.task.parts if self.task is not None else ()
        self._pieces: list[bytes | None] = []
        for part in self.parts:
            peek = ask.peek(part)
            peek.owner = self
            line.state.ask(peek)
        line.state.ask(ask.stats_of(number, self))

    @property
    def deliveries(self) -> int:
        return max(1, self.reserves - uncounted_of(self.priority))

    @property
    def whole(self) -> bool:
        """Whether all of its body is there."""
        return None not in self._pieces

    def heard(self, line: Line, request: Request, answer: Answer) -> None:
        """An answer to what was asked about it; that of `stats-job` comes last."""
        if request.verb == b"peek":
            self._pieces.append(answer.body if answer.word == b"FOUND" else None)
            return
        try:
            lines = answer.body.split(b"\n", 11)
            self.tube = lines[2][6:].strip(b'"')  # may be quoted since 1.13
            self.priority, self.ttr, self.reserves = int(lines[4][5:]), int(lines[7][5:]), int(lines[10][10:])
        except (IndexError, ValueError):  # NOT_FOUND: it was held for too long already
            self.end()
        if self._pieces and self.whole:
            self.body = b"".join(each for each in self._pieces if each)
            self._pieces = []
        self.described = True
        self.taking.describing -= 1
        if not self.over:
            self.taking.ready.append(self)

    def end(self) -> None:
        """It is ours no more."""
        self.over = True
        held = self.line.owner.held
        if held.get(self.number) is self:
            del held[self.number]


class Taking:
    """Part of the Queue, on its one thread. What was taken and not given out stands in `ready`."""

    def __init__(self, lines: Lines, place: Place) -> None:
        self._lines = lines
        self._reserving = Reserving(lines, place, TAKE, self._arrived, self._touch, self._lost)
        self.role = self._reserving.role
        self.ready: list[Hold] = []
        self.describing = 0  # jobs that are being asked about
        self._turn = itertools.count()

    # ---- taking

    def take(self, groups: Sequence[set[bytes]], limit: int, began: float, deadline: float) -> list[Hold]:
        """Up to `limit` jobs of the groups of tubes, the first ones first. Raises `Unreachable`, `ProtocolError`."""
        lines = self._lines
        lines.want(self.role)
        if not self._reserving.lines():
            lines.pump(began)  # dials again what is due, also for who only looks in now and then
        found: list[Hold] = []
        try:
            return self._take(groups, limit, began, deadline, found)
        finally:
            lines.send(self._reserving.lines())
            self._recall(found, limit)

    def _take(
        self, groups: Sequence[set[bytes]], limit: int, began: float, deadline: float, found: list[Hold]
    ) -> list[Hold]:
        lines, reserving = self._lines, self._reserving
        everything = set().union(*groups)
        planned = False
        plan: Iterator[tuple[Line, set[bytes]]] | None = None
        step: tuple[Line, set[bytes]] | None = None
        while True:
            self._collect(found, limit)
            if self.describing or any(reserving.busy(line) for line in reserving.lines()):
                lines.pump(min(time.monotonic() + 0.25, reserving.until()))
                continue
            if len(found) >= limit:
                return found
            up = reserving.lines()
            if not planned and up:
                planned = True
                if deadline <= began or len(up) > 1 or len(groups) > 1:  # else waiting finds what is there as well
                    plan = self._plan(groups, up)
            if plan is not None:
                if step is None or not step[0].up or reserving.dry(step[0]) or reserving.under_way(step[0]):
                    step = next(plan, None)
                    if step is not None:
                        reserving.damp(step[0])
                if step is None:
                    plan = None
                elif step[0].up and not reserving.under_way(step[0]):
                    reserving.look(*step, limit - len(found))
                continue
            if found or lines.hush():
                return found
            now = time.monotonic()
            if now >= deadline and (up or not lines.undecided(TAKE, hopeful=True)):
                if not up:
                    raise lines.unreachable()
                return found
            if not up and (lines.hopeless() or now >= began + lines.timeout):
                raise lines.unreachable()
            if now < deadline:
                for line in up:
                    if not reserving.under_way(line):
                        reserving.wait(line, everything, limit if len(up) == 1 else 1)
                lines.send(up)  # also what stood there before, on one that rests
            lines.pump(min(reserving.until(), deadline if now < deadline else now + 0.25))

    def _plan(self, groups: Sequence[set[bytes]], up: Sequence[Line]) -> Iterator[tuple[Line, set[bytes]]]:
        start = next(self._turn) % len(up) if up else 0
        turned = [*up[start:], *up[:start]]
        return iter([(line, tubes) for tubes in groups for line in turned])

    def _collect(self, found: list[Hold], limit: int) -> None:
        room = limit - len(found)
        if room > 0 and self.ready:
            found += [hold for hold in self.ready[:room] if not hold.over]
            del self.ready[:room]

    def _recall(self, found: list[Hold], limit: int) -> None:
        """Leave no reserve behind that waits: it would take a job that nobody is there to run."""
        lines = self._lines
        waiting = [line for line in self._reserving.lines() if line.state.reserving]
        if waiting:
            self._reserving.recall(waiting, SUBMIT)
            deadline = time.monotonic() + lines.timeout
            while self.describing and time.monotonic() < deadline:
                lines.pump(time.monotonic() + 0.25)
        if self.ready:
            self._collect(found, limit)
            self._give_back(self.ready)

    def _give_back(self, holds: list[Hold]) -> None:
        """Release what there is no room for, as if it had not been taken."""
        owners = set()
        for hold in holds:
            if not hold.over:
                hold.line.state.ask(ask.release(hold.number, self.uncounted(hold)))
                owners.add(hold.line)
                hold.end()
        holds.clear()
        self._lines.send(owners)

    @staticmethod
    def uncounted(hold: Hold) -> int:
        """The priority with which a release does not count as an attempt."""
        if hold.task is None or uncounted_of(hold.priority) >= UNCOUNTED:
            return hold.priority  # of somebody else's making: left as it is
        return hold.priority + 1

    # ---- holding

    def touch(self) -> list[Request]:
        """Renew all that is held; the requests, which must be waited for."""
        return [request for line in self._reserving.lines() for request in self._touch(line)]

    def _touch(self, line: Line) -> list[Request]:
        told: Told = line.owner
        requests = []
        for number, hold in told.held.items():
            request = ask.touch(number)
            request.owner = _Touch(hold)
            line.state.ask(request)
            requests.append(request)
        return requests

    def holding(self) -> bool:
        return any(line.owner.held for line in self._reserving.lines())

    # ---- within

    def _arrived(self, line: Line, number: int, body: bytes) -> None:
        held = line.owner.held
        before = held.get(number)
        if before is not None:
            before.over = True  # its time ran out, and it came to us again
        self.describing += 1
        held[number] = Hold(self, line, number, body)

    def _lost(self, line: Line) -> None:
        for hold in list(line.owner.held.values()):
            if not hold.described:
                hold.described = True
                self.describing -= 1
            hold.over = True
        line.owner.held.clear()
        self.ready = [hold for hold in self.ready if not hold.over]


class _Touch:
    """What hears of a touch."""

    __slots__ = ("hold",)

    def __init__(self, hold: Hold) -> None:
        self.hold = hold

    def heard(self, line: Line, request: Request, answer: Answer) -> None:
        if answer.word == b"NOT_FOUND":
            self.hold.end()
