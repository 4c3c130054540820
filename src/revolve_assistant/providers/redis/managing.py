"""What can be seen of a queue and changed about it: counts, buried tasks, rules, plans, who takes.

On a connection of its own, since a take waits on the other one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...engine import Buried, Count, Overdue, Parcel, Plan, Rule
from ...errors import ClientClosed, Unreachable, UsageError
from .address import Place
from .connection import Connection
from .hearing import Hearing
from .scripts import script

FAR = 3600.0  # seconds after which to look at the plans again, if none is due
LONG = 366 * 86400.0  # seconds
PAGE = 100  # buried tasks asked for at once


class Managing:
    """Part of a Queue: its connections, and what needs no lease."""

    lease: float
    _hearing: Hearing
    _keep: tuple[int, int]

    def __init__(self, place: Place) -> None:
        self._place = place
        self._base = f"{{{place.namespace}}}:q".encode()
        self._open = False
        self._sought: dict[tuple[Any, ...], str] = {}  # what was asked to be taken out, and may have been: request
        self._found = ""  # the last such request that was answered
        self._begin_lines()

    def _begin_lines(self) -> None:
        self._pid = os.getpid()
        self._busy = threading.RLock()
        self._line = Connection(self._place)
        self._desk = threading.RLock()
        self._second = Connection(self._place)

    def _begin(self) -> None:
        self._line.abandon()
        self._second.abandon()
        self._begin_lines()

    def _part(self) -> None:
        if self._pid == os.getpid():
            self._line.close()
            self._second.close()
        else:
            self._line.abandon()
            self._second.abandon()

    def _prepare(self) -> None:
        """Make a connection that is new known."""

    def _joined(self) -> None:
        if not self._open:
            raise ClientClosed(f"{self._place.text} is not open: call open() first")
        if self._pid != os.getpid():
            self._begin()

    # ---- to ask

    def _ask(self, name: str, *args: Any) -> Any:
        """A script's answer. One that is lost with the connection is asked for again, once: scripts bear that."""
        line = self._line
        began = time.monotonic()
        again = True
        while True:
            try:
                line.ready()
                self._prepare()
                return self._run(line, name, *args)
            except Unreachable:
                if not again or time.monotonic() - began >= self._place.timeout / 2:
                    raise
                again = False

    def _run(self, line: Connection, name: str, *args: Any) -> Any:
        """A script's answer, on the connection as it is."""
        return line.call(script(name), 1, self._base, *args)

    def _manage(self, name: str, *args: Any) -> Any:
        """As `_ask`, from whatever thread."""
        self._joined()
        with self._desk:
            try:
                return self._run(self._second, name, *args)
            except Unreachable:
                if not self._second.made:
                    raise
            return self._run(self._second, name, *args)

    # ---- to see

    def counts(self) -> Sequence[Count]:
        found = self._manage("counts", *self._keep)
        counts = []
        for at in range(0, len(found), 7):
            pending, delayed, blocked, leased, buried, oldest = map(int, found[at + 1 : at + 7])
            counts.append(Count(found[at].decode(), pending, delayed, blocked, leased, buried, oldest / 1000))
        return sorted(counts)

    def buried(self, *, limit: int = 100) -> Sequence[Buried]:
        found: list[Buried] = []
        while len(found) < limit:
            page = self._manage("buried", len(found), min(limit - len(found), PAGE), self._keep[0])
            found += [_buried(page[at : at + 7]) for at in range(0, len(page), 7)]
            if not page:
                break
        return found

    def exhume(self, task_id: str) -> Buried | None:
        found = self._taken_out("exhume", task_id)
        return _buried(found) if found else None

    def purge(self, queue: str, *, buried: bool = False, limit: int = 1000) -> Sequence[Buried]:
        """As the contract has it; no more than some 4 MB of bodies at once."""
        found = self._taken_out("purge", queue, int(buried), limit)
        return [_buried(found[at : at + 7]) for at in range(0, len(found), 7)]

    def _taken_out(self, name: str, *args: Any) -> Any:
        """Ask for what exists nowhere else afterwards: again the same request, if its answer was lost."""
        with self._desk:
            number = self._sought.setdefault((name, *args), os.urandom(8).hex())
            found = self._manage(name, number, self._found, *args)
            del self._sought[(name, *args)]
            self._found = number
            return found

    # ---- rules

    def rules(self) -> Sequence[Rule]:
        self._joined()
        with self._desk:
            found = self._second.call("HGETALL", self._base + b":rules")
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return sorted(_rule(name.decode(), text) for name, text in pairs)

    def set_rule(self, name: str, **changes: Any) -> Rule:
        """Raises `UsageError` for what is no field of a rule, or no value of it."""
        args: list[Any] = []
        for field, value in changes.items():
            if field == "paused":
                args += (field, int(bool(value)))
            elif field in ("concurrency", "rate"):
                if value is not None and (type(value) is not int or value < 0):
                    raise UsageError(f"{field} of {name} must be a whole number or None, not {value!r}")
                args += (field, "-" if value is None else value)
            elif field == "per":
                if not 0 < value < LONG:
                    raise UsageError(f"per of {name} must be a number of seconds, not {value!r}")
                args += (field, repr(float(value)))
            else:
                raise UsageError(f"a rule has no {field!r}: {', '.join(Rule._fields[1:])}")
        return _rule(name, self._manage("rule", name, *args))

    # ---- plans

    def plans(self) -> Sequence[Plan]:
        return sorted(_plans(self._manage("plans", 0)))

    def plan(self, key: str, spec: bytes, due: float) -> None:
        self._manage("plan", key, spec, repr(float(due)))

    def unplan(self, key: str) -> bool:
        return bool(self._manage("plan", key))

    def overdue(self) -> Overdue:
        found = self._manage("plans", 1)
        now = float(found[0])
        return Overdue(now, _plans(found), min(now + FAR, float(found[1] or "inf")))

    def fire(self, plan: Plan, next: float, parcel: Parcel | None) -> bool:
        args: list[Any] = [plan.key, repr(float(plan.due)), repr(float(next)), os.urandom(8).hex()]
        if parcel is not None:
            args += (*group(parcel)[:-1], 1, parcel.id, parcel.body)
        return bool(self._manage("fire", *args))

    # ---- who takes

    def introduce(self, worker: str, about: bytes) -> None:
        self._joined()
        hearing = self._hearing
        hearing.about = (worker, about)
        self._manage("hello", hearing.taker, 0, "", round(self.lease * 1000), worker, about)
        hearing.known = True

    def workers(self) -> Mapping[str, bytes]:
        found = self._manage("workers")
        return {worker.decode(): about for worker, about in zip(found[::2], found[1::2], strict=True)}


def group(parcel: Parcel) -> tuple[Any, ...]:
    """What a run of like parcels starts with in the arguments of a script; the last one is their count."""
    priority = max(-9, min(9, parcel.priority))
    return parcel.queue, priority, max(0.0, parcel.delay) * 1000, parcel.name, parcel.unique or "", 0


def _buried(found: Sequence[Any]) -> Buried:
    id, body, queue, deliveries, reason, name, when = found
    return Buried(
        id.decode(), body, queue.decode(), int(deliveries), reason.decode(), name.decode(), float(when) / 1000
    )


def _rule(name: str, text: bytes) -> Rule:
    paused, concurrency, rate, per = text.decode().split()
    return Rule(
        name,
        paused == "1",
        None if concurrency == "-" else int(concurrency),
        None if rate == "-" else int(rate),
        float(per),
    )


def _plans(found: Sequence[Any]) -> list[Plan]:
    return [Plan(found[at].decode(), found[at + 1], float(found[at + 2])) for at in range(2, len(found), 3)]
