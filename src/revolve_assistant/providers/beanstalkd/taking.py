"""Taking tasks from several servers.

    look     queue after queue, server after server (another one first each time): jobs that are there now
    wait     all of them at once: a reserve that waits at each server, until one brings something
    recall   what still waits is called back, and what it brought beyond the room for it is given back

Each job that comes is asked about (`stats-job`), but for those that must be new (see `firsts`): how often it was handed
out, how urgent it is, how long it may be held. What a large task is made of is fetched in the same round trip (`peek`).
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
from .firsts import Firsts
from .names import UNCOUNTED, uncounted_of
from .reserving import Reserving
from .told import Told
from .wrapping import Task, read_task

TAKE = "take"
_NEW = [b"reserves: 1", b"timeouts: 0", b"releases: 0", b"buries: 0\nkicks: 0\n"]
"""How `stats-job` ends, of a job that is handed out for the first time."""


class Hold:
    """A job that is held. `over`: it is settled, or somebody else's by now; `deliveries`: how often it was handed out,
    of a job of another program without those that it was given back after."""

    __slots__ = (
        "body", "deliveries", "era", "line", "number", "over", "parts", "priority", "task", "taking", "ttr", "tube",
        "_pieces",
    )  # fmt: skip

    def __init__(self, taking: Taking, line: Line, number: int, body: bytes) -> None:
        self.taking = taking
        self.line = line
        self.number = number
        self.over = False
        self.task: Task | None = read_task(body)
        self.body = body if self.task is None else self.task.body
        self.parts = self.task.parts if self.task is not None else ()
        self.era = line.owner.firsts.era

    def ask(self) -> None:
        """Have the server tell what a job does not say of itself."""
        state = self.line.state
        self._pieces: list[bytes | None] = []
        for part in self.parts:
            peek = ask.peek(part)
            peek.owner = self
            state.ask(peek)
        state.ask(ask.stats_of(self.number, self))

    def new(self, task: Task, tube: bytes) -> None:
        """It was never handed out before: it is as it was put."""
        self.tube, self.priority, self.ttr = tube, task.priority, max(1, task.ttr)
        self.deliveries = 1

    @property
    def whole(self) -> bool:
        """Whether all of its body is there."""
        return not self.parts or None not in self._pieces

    def heard(self, line: Line, request: Request, answer: Answer) -> None:
        """An answer to what was asked about it; that of `stats-job` comes last."""
        if request.verb == b"peek":
            self._pieces.append(answer.body if answer.word == b"FOUND" else None)
            return
        try:
            lines = answer.body.split(b"\n", 13)
            self.tube = lines[2][6:].strip(b'"')  # may be quoted since 1.13
            self.priority, self.ttr, reserves = int(lines[4][5:]), int(lines[7][5:]), int(lines[10][10:])
            not_counted = uncounted_of(self.priority) if self.task is not None else int(lines[12][10:])
            self.deliveries = max(1, reserves - not_counted)
            if lines[10:] == _NEW and lines[6] == b"delay: 0":
                line.owner.firsts.learn(self.tube, self.priority, self.number, self.era, int(lines[5][5:]))
        except (IndexError, ValueError):  # NOT_FOUND: it was held for too long already
            self.end()
        if self.parts and self.whole:
            self.body = b"".join(each for each in self._pieces if each)
        self.taking.unknown.discard(self)

    def end(self) -> None:
        """It is ours no more."""
        self.over = True
        held = self.line.owner.held
        if held.get(self.number) is self:
            del held[self.number]


class _Round:
    """Reserves on a line, all of one tube of tasks. What they bring waits for what is asked behind them."""

    __slots__ = ("holds", "taking", "tube")

    def __init__(self, taking: Taking, tube: bytes) -> None:
        self.taking = taking
        self.tube = tube
        self.holds: list[Hold] = []

    def heard(self, line: Line, request: Request, answer: Answer) -> None:
        """What the server says of itself now: see `firsts`."""
        firsts: Firsts = line.owner.firsts
        firsts.counted(answer.body)
        unknown, tube = self.taking.unknown, self.tube
        for hold in self.holds:
            task = hold.task
            if task is not None and firsts.new(tube, task.priority, hold.number, hold.era):
                hold.new(task, tube)
                unknown.discard(hold)
            else:
                hold.ask()


class Taking:
    """Part of the Queue, on its one thread. What was taken and not given out stands in `ready`."""

    def __init__(self, lines: Lines, place: Place) -> None:
        self._lines = lines
        self._reserving = Reserving(lines, place, TAKE, self._arrived, self._touch, self._lost, self._behind)
        self.role = self._reserving.role
        self.ready: list[Hold] = []
        self.unknown: set[Hold] = set()  # those of them that are being asked about
        self._rounds: dict[Line, _Round] = {}
        self._own = f"{place.names.prefix}.".encode()  # what the tubes of our queues begin with
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
            lines.send([line for line in self._reserving.lines() if line.state.unsent])
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
            if self.unknown or reserving.busy():
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
        if not self.ready or self.unknown:
            return
        room = limit - len(found)
        if room > 0:
            found += [hold for hold in self.ready[:room] if not hold.over]
            del self.ready[:room]

    def _recall(self, found: list[Hold], limit: int) -> None:
        """Leave no reserve behind that waits: it would take a job that nobody is there to run."""
        lines = self._lines
        waiting = [line for line in self._reserving.lines() if line.state.reserving]
        if waiting:
            self._reserving.recall(waiting, SUBMIT)
            deadline = time.monotonic() + lines.timeout
            while self.unknown and time.monotonic() < deadline:
                lines.pump(time.monotonic() + 0.25)
        if self.ready and not self.unknown:
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

    def _behind(self, line: Line, tubes: set[bytes]) -> None:
        """Ask what must be known once the reserves that were asked for are answered."""
        self._rounds.pop(line, None)
        if len(tubes) == 1:
            (tube,) = tubes
            if tube.startswith(self._own):
                stats = ask.stats()
                stats.owner = self._rounds[line] = _Round(self, tube)
                line.state.ask(stats)

    def _arrived(self, line: Line, number: int, body: bytes) -> None:
        held = line.owner.held
        before = held.get(number)
        if before is not None:
            before.over = True  # its time ran out, and it came to us again
        hold = held[number] = Hold(self, line, number, body)
        self.ready.append(hold)
        self.unknown.add(hold)
        round_ = self._rounds.get(line)
        if round_ is None or hold.task is None or hold.parts:
            hold.ask()
        else:
            round_.holds.append(hold)

    def _lost(self, line: Line) -> None:
        for hold in line.owner.held.values():
            hold.over = True
        line.owner.held.clear()
        self._rounds.pop(line, None)
        self.unknown = {hold for hold in self.unknown if hold.line is not line}
        self.ready = [hold for hold in self.ready if hold.line is not line]


class _Touch:
    """What hears of a touch."""

    __slots__ = ("hold",)

    def __init__(self, hold: Hold) -> None:
        self.hold = hold

    def heard(self, line: Line, request: Request, answer: Answer) -> None:
        if answer.word == b"NOT_FOUND":
            self.hold.end()
