"""The reading half of a Messenger: grabs frames, keeps them until they are forgotten, one thread at a time.

A frame that was read and not forgotten is a job that was taken and not completed: if this reader dies gearmand gives
it to the next one.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Collection, Iterable

from ...protocols.gearman.worker_state import Assignment
from ..channel import Entry, Key
from ..holding import READ, Asked, Holding
from ..lines import Line, Lines
from .address import MAX_BODY, Place
from .taking import Taking

_TURN = 64  # frames after which another function gets to be the first
_UNIQUE = re.compile(rb"([wb])([0-9a-f]{16})\.([0-9]{1,19})\Z")


class Reading(Holding):
    """The frames that this reader holds. Not thread-safe, but for `lines.wake`."""

    def __init__(self, place: Place) -> None:
        super().__init__(Lines(place.servers, place.timeout))
        self._place = place
        self._taking = Taking(self.lines, READ, MAX_BODY)
        self._since_turn = 0

    def advance(self, limit: int, asked: Asked) -> tuple[int, bool]:
        now = time.monotonic()
        self._collect(now)
        ready, holes = self._look(asked, now)
        room = self._room(limit, ready, holes, asked)
        if room is None:
            return ready, False
        if self._since_turn >= _TURN:
            self._since_turn = 0
            self._taking.rotate()
        return ready, self._taking.ask(room)

    def close(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        asked = self.lines.lines(READ)
        for line in asked:
            self.lines.attempt(line, line.ping, b"bye")
        self.lines.send(asked)
        while any(line.up and line.state.pinged for line in asked) and time.monotonic() < deadline:
            self.lines.pump(deadline)
        self.lines.close()

    # ---- within

    def _key(self, name: str) -> bytes:
        return self._place.names.channel(name)

    def _turn_to(self, names: Collection[str]) -> None:
        self._taking.only(map(self._key, names))
        self.lines.want(self._taking.role)

    def _turn_from(self, name: str) -> None:
        self._listening.discard(name)
        function = self._key(name)
        self._taking.only(each for each in self._taking.current if each != function)

    def _due(self) -> float:
        return self._taking.patience()

    def _drained(self) -> bool:
        return self._taking.asleep() and len(self.lines.lines(READ)) == len(self.lines.servers)

    def _collect(self, now: float) -> None:
        jobs, self._taking.arrived = self._taking.arrived, []
        if not jobs:
            return
        doubles = []
        for job in jobs:
            name = self._names.get(job.function)
            if name is None:
                doubles.append(job)  # of a channel that was forgotten
                continue
            frame, key = _read(job)
            job.workload = b""
            if not self._take_in(self._channels[name], Entry(frame, job, key), now):
                doubles.append(job)
        self._since_turn += len(jobs)
        self._done(doubles)

    def _done(self, jobs: Iterable[Assignment]) -> None:
        owners: set[Line] = set()
        for job in jobs:
            if not job.ended:
                job.owner.state.complete(job)
                owners.add(job.owner)
        self.lines.send(owners)


def _read(job: Assignment) -> tuple[bytes, Key | None]:
    """The frame of a job, and its writer's name and number; None: it is of somebody else's making."""
    found = _UNIQUE.match(job.unique)
    if found is None:
        return job.workload, None
    frame = job.workload
    if found[1] == b"b":
        try:
            frame = base64.b64decode(frame, validate=True)
        except binascii.Error:
            return frame, None
    return frame, (found[2], int(found[3]))
