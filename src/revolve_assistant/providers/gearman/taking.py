"""Taking jobs from several servers: grabs, sleeps and wakes on the lines of one role.

A grab is a promise to take what it brings, so that no more of them are under way than there is room for: servers that
may have something are asked in turn, and one that has nothing sleeps until it says NOOP, at which one job is grabbed at
once if there is room. If a server does not answer in time the next one is asked; what it assigns later is kept for the
next time.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ...protocols.gearman.worker_state import Assignment, WorkerState
from ..lines import Line, Lines, Role

_SLOW = 0.25  # seconds after which the answer to a grab is not waited for
_CLIENT_ID = re.compile(r"[^!-~]")
_NUDGE = 10.0  # seconds of sleep after which a server is asked all the same


class Taking:
    """The lines of a role that takes jobs of certain functions. What was assigned stands in `arrived`."""

    def __init__(self, lines: Lines, name: str, max_body: int) -> None:
        self._lines = lines
        self.role = Role(name, lambda: WorkerState(limit=0, max_body=max_body), self._up, self._heard, self._lost)
        self.arrived: list[Assignment] = []
        self._functions: tuple[bytes, ...] = ()
        self._turn = itertools.count()
        self._asked: dict[Line, float] = {}  # since when grabs are under way
        self._slept: dict[Line, float] = {}

    @property
    def current(self) -> tuple[bytes, ...]:
        """The functions of which jobs are taken, the first ones first."""
        return self._functions

    def functions(self, functions: Sequence[bytes]) -> None:
        """Take jobs of these, the first ones first as far as the server does that."""
        wanted = tuple(functions)
        if wanted != self._functions:
            self._functions = wanted
            for line in self._lines.lines(self.role.name):
                line.state.reset()
                self._can(line)
                self._lines.send([line])

    def only(self, functions: Iterable[bytes]) -> None:
        """Take jobs of these, in any order: only what changed is said."""
        wanted = set(functions)
        if wanted == set(self._functions):
            return
        gone = [function for function in self._functions if function not in wanted]
        new = [function for function in wanted if function not in self._functions]
        self._functions = (*new, *(function for function in self._functions if function in wanted))
        for line in self._lines.lines(self.role.name):
            for function in gone:
                line.state.cant_do(function)
            for function in reversed(new):
                line.state.can_do(function)
            self._lines.send([line])

    def rotate(self) -> None:
        """Have the function that comes last come first, so that a busy one does not keep it from being seen."""
        if len(self._functions) > 1:
            last = self._functions[-1]
            self._functions = (last, *self._functions[:-1])
            for line in self._lines.lines(self.role.name):
                line.state.cant_do(last)
                line.state.can_do(last)

    def asleep(self) -> bool:
        """Whether every server that is up has said that there is nothing."""
        return all(line.state.asleep for line in self._lines.lines(self.role.name))

    def ask(self, room: int) -> bool:
        """Send grabs for up to `room` jobs; whether answers are due that are worth waiting for."""
        lines = self._lines.lines(self.role.name)
        now = time.monotonic()
        busy = False
        for line in lines:
            if not line.state.grabs:
                self._asked.pop(line, None)
            elif now - self._asked.setdefault(line, now) < _SLOW:
                busy = True
                room -= line.state.grabs
        if len(lines) > 1:
            start = next(self._turn) % len(lines)
            lines = lines[start:] + lines[:start]
        for line in lines:
            state: WorkerState = line.state
            if state.grabs:
                continue
            if state.asleep and now - self._slept.setdefault(line, now) >= _NUDGE:
                state.nudge()
            if not state.asleep:
                self._slept.pop(line, None)
                if room > 0:
                    state.grab(room)
                    self._lines.send([line])
                    self._asked[line] = now
                    room -= state.grabs
                    busy = busy or bool(state.grabs)
            if state.asleep:
                state.stand_by(room > 0)
                room -= 1
        return busy

    def stand_down(self) -> None:
        """Nobody is there to take a job for which a server wakes us."""
        for line in self._lines.lines(self.role.name):
            line.state.stand_by(False)

    def patience(self) -> float:
        """When `ask` should be called again, at the latest (monotonic seconds)."""
        now = time.monotonic()
        due = float("inf")
        for line, since in self._asked.items():
            if line.state.grabs and now < since + _SLOW < due:
                due = since + _SLOW
        for since in self._slept.values():
            due = min(due, since + _NUDGE)
        return due

    def resting(self) -> bool:
        """Whether nothing has arrived, and nothing will before a server wakes us."""
        return not self.arrived and self.asleep()

    def nudge(self) -> None:
        """Have every server asked once more, though it sleeps."""
        for line in self._lines.lines(self.role.name):
            line.state.nudge()

    def _up(self, line: Line) -> None:
        line.state.client_id(_CLIENT_ID.sub("_", f"{os.uname().nodename}:{os.getpid()}")[:200])
        self._can(line)

    def _can(self, line: Line) -> None:
        # gearmand before 2.0 looks at the function first that was named last.
        for function in reversed(self._functions):
            line.state.can_do(function)

    def _heard(self, line: Line, found: list[Any]) -> None:
        for one in found:
            if isinstance(one, Assignment):
                one.owner = line
                self.arrived.append(one)
            # else a refusal: a report on a job that somebody else has now; it is over for us either way

    def _lost(self, line: Line) -> None:
        self._asked.pop(line, None)
        self._slept.pop(line, None)
        self.arrived = [job for job in self.arrived if not job.ended]
