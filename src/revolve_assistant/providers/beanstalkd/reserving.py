"""Reserving jobs on lines: pipelined, and interruptible while a reserve waits at the server.

    take line    watch A, watch bell ── reserve-with-timeout 3 ═══ waits ═══╗ RESERVED bell ── delete, touch, …
    submit line                                 use bell ── put ────────────╜

The bell is a tube of this process alone. A job in it is the most urgent there is, and ends the waiting within a round
trip. One that came too late is deleted by its number; one that a killed process left is swept, see `sweeping`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from ...protocols.beanstalkd import Answer, Request
from ...protocols.beanstalkd import commands as ask
from ...protocols.beanstalkd.state import ConnectionState
from ..lines import Line, Lines, Role
from . import told as telling
from .address import MAX_BODY, Place
from .told import Told

WAIT = 3
"""Seconds that one reserve waits at the server."""
_WAIT_DEAF = 1
"""The same on a server that is draining, and takes no wake-up call either."""
MOST = 256
"""Reserves under way on one line at once."""
_FEWEST = 2
"""Reserves of a round, where there is room: the second one says that there was no more, without another round."""
_SLOW = 0.25  # seconds after which the answer to a reserve that does not wait is not waited for
_RING_TTR = 10  # seconds
_BREATH = 0.05  # seconds without a reserve after two DEADLINE_SOON in a row: touching did not help
_POLL, _PATIENT, _PATIENT_DEAF = map(ask.reserve, (0, WAIT, _WAIT_DEAF))  # for all: answers are heard, not looked up

Arrived = Callable[[Line, int, bytes], None]


class Reserving:
    """The lines of a role that reserve jobs. `arrived` gets each job: the line, the number, the bytes.

    `soon` is called where a job that a line holds has less than a second left, `behind` with a line and the tubes to
    ask what belongs behind the reserves that were just asked for.
    """

    def __init__(
        self, lines: Lines, place: Place, name: str, arrived: Arrived, soon: Callable[[Line], object],
        lost: Callable[[Line], None], behind: Callable[[Line, set[bytes]], None] | None = None,
    ) -> None:  # fmt: skip
        self._lines = lines
        self.role = Role(name, lambda: ConnectionState(max_body=MAX_BODY), telling.meet, self._heard, self._lost)
        self.bell = place.names.bell(os.urandom(8).hex())
        self._arrived = arrived
        self._soon = soon
        self._gone = lost
        self._behind = behind
        self._asked: dict[Line, float] = {}  # since when reserves are under way
        self._zeros: dict[Line, int] = {}  # that do not wait, and are not answered; at least one
        self._stride: dict[Line, int] = {}
        self._found: dict[Line, int] = {}  # by the reserves of this round
        self._dry: set[Line] = set()  # had nothing at the last look
        self._hurried: dict[Line, int] = {}  # DEADLINE_SOON in a row
        self._breath: dict[Line, float] = {}  # until when no reserve is sent
        self._deleted: set[tuple[int, int]] = set()  # bells: the servers and their numbers

    def lines(self) -> list[Line]:
        return self._lines.lines(self.role.name)

    def under_way(self, line: Line) -> int:
        """Reserves whose answers are due."""
        return self._zeros.get(line, 0) + int(line.state.reserving)

    def dry(self, line: Line) -> bool:
        """Whether it had nothing the last time that it was asked."""
        return line in self._dry

    def damp(self, line: Line) -> None:
        """Whether it has something is not known any more."""
        self._dry.discard(line)

    def look(self, line: Line, tubes: set[bytes], room: int) -> None:
        """Ask for up to `room` jobs that are there now. Nothing may be under way."""
        if self._rests(line):
            return
        self._watch(line, tubes)
        self._dry.discard(line)
        self._ask(line, min(room, self._stride.get(line, _FEWEST)))
        if self._behind is not None:
            self._behind(line, tubes)
        self._lines.send([line])

    def wait(self, line: Line, tubes: set[bytes], room: int) -> None:
        """Wait at the server for one, and take others that come with it. Nothing may be under way, and what is asked
        must be sent."""
        if self._rests(line):
            return
        self._watch(line, tubes)
        self._dry.discard(line)
        line.state.ask(_PATIENT_DEAF if line.owner.draining else _PATIENT)
        self._ask(line, min(room, self._stride.get(line, _FEWEST)) - 1)
        if self._behind is not None:
            self._behind(line, tubes)

    def busy(self) -> bool:
        """Whether answers are due that are worth waiting for."""
        return bool(self._zeros) and any(
            line.up and not line.state.reserving and time.monotonic() - self._asked[line] < _SLOW
            for line in self._zeros
        )

    def until(self) -> float:
        """When to look again, at the latest (monotonic seconds)."""
        if not self._asked and not self._breath:
            return float("inf")
        now = time.monotonic()
        due = min((since + _SLOW for since in self._asked.values() if since + _SLOW > now), default=float("inf"))
        return min(due, min((until for until in self._breath.values() if until > now), default=float("inf")))

    def recall(self, lines: Iterable[Line], submit: str) -> None:
        """Have the reserves that wait on these lines be answered, over lines of the role `submit`. Blocks for a round
        trip; where no other connection to the server is up, for as long as the reserve waits."""
        waiting = [line for line in lines if line.up and line.state.reserving]
        rung: dict[Line, tuple[Line, Request]] = {}
        deadline = time.monotonic() + WAIT + self._lines.timeout
        while waiting and time.monotonic() < deadline:
            for line in waiting:
                other = self._lines.line(submit, line.index)
                if line not in rung and other is not None and other.up:
                    telling.use(other, self.bell)
                    ring = ask.put_plain(self.bell, 0, 0, _RING_TTR)
                    other.state.ask(ring)
                    self._lines.send([other])
                    rung[line] = (other, ring)
            self._lines.pump(time.monotonic() + 0.25)
            waiting = [line for line in waiting if line.up and line.state.reserving]
        for line, (other, ring) in rung.items():
            while other.up and ring.answer is None:
                self._lines.pump(time.monotonic() + 0.25)
            while line.up and line.state.waiting:  # what was asked behind the reserve
                self._lines.pump(time.monotonic() + 0.25)
            answer = ring.answer
            if answer is not None and answer.word == b"DRAINING" and line.up:
                line.owner.draining = other.owner.draining = True
            if answer is not None and answer.word == b"INSERTED" and (line.index, answer.number) not in self._deleted:
                other.state.ask(ask.delete(answer.number))
                self._lines.send([other])
        self._deleted.clear()

    # ---- within

    def _rests(self, line: Line) -> bool:
        until = self._breath.get(line)
        if until is None:
            return False
        if time.monotonic() < until:
            self._dry.add(line)
            return True
        del self._breath[line]
        return False

    def _watch(self, line: Line, tubes: set[bytes]) -> None:
        told: Told = line.owner
        if self.bell not in tubes:
            tubes = tubes | {self.bell}
        if told.watched != tubes:
            telling.watch(line, tubes)

    def _ask(self, line: Line, count: int) -> None:
        if count > 0:
            line.state.ask_all(_POLL.data * count, [_POLL] * count)
            self._zeros[line] = count
            self._asked[line] = time.monotonic()
        self._found[line] = 0

    def _heard(self, line: Line, found: list[tuple[Request, Answer]]) -> None:
        left, jobs = self._zeros.get(line, 0), self._found.get(line, 0)
        for request, answer in found:
            if request.verb != b"reserve":
                if request.owner is not None:
                    request.owner.heard(line, request, answer)
                continue
            if not request.patience:
                left -= 1
            word = answer.word
            if word == b"RESERVED":
                if answer.body == self.bell:
                    line.state.ask(ask.delete(answer.number))
                    self._deleted.add((line.index, answer.number))
                    continue
                jobs += 1
                if self._hurried:
                    self._hurried.pop(line, None)
                self._arrived(line, answer.number, answer.body)
            elif word == b"DEADLINE_SOON":
                self._hurry(line)
            else:
                self._dry.add(line)
            if left <= 0 and not line.state.reserving:
                self._step(line, jobs)
        self._found[line] = jobs
        if left > 0:
            self._zeros[line] = left
        else:
            self._zeros.pop(line, None)
            self._asked.pop(line, None)

    def _step(self, line: Line, count: int) -> None:
        """A round is over: take bigger steps where all of it brought something, smaller ones where little did."""
        stride = self._stride.get(line, _FEWEST)
        self._stride[line] = min(MOST, stride * 2) if count >= stride else max(_FEWEST, count)

    def _hurry(self, line: Line) -> None:
        self._dry.add(line)
        self._soon(line)
        count = self._hurried[line] = self._hurried.get(line, 0) + 1
        if count > 1:
            self._breath[line] = time.monotonic() + _BREATH

    def _lost(self, line: Line) -> None:
        for known in (self._asked, self._zeros, self._stride, self._found, self._hurried, self._breath):
            known.pop(line, None)
        self._dry.discard(line)
        self._gone(line)
