"""What a Queue and a Messenger have in common: a connection, a slot on the board, opening, closing, waking."""

from __future__ import annotations

import os
import threading
import time

from ...errors import ClientClosed
from . import sweeping
from .board import Member
from .database import Connection
from .place import Place

LOOK = 1.0  # seconds after which a waiting one looks anyway


class Joined:
    """Part of both. After a fork the child is a member of its own."""

    _kind: int
    _lease_told = 0.0

    def __init__(self, place: Place) -> None:
        self.place = place
        self._line = Connection(place)
        self._member: Member | None = None
        self._open = False
        self._woken = False
        self._pid = os.getpid()
        self._opening = threading.RLock()
        self._looked = 0.0

    def open(self) -> None:
        """Open the database, which is made if need be, and recover what dead processes held.

        Raises `Unreachable` (locked, no such folder), `ProviderError` (no database, damaged, of a newer release, not
        writable), `UsageError` (a network file system).
        """
        with self._opening:
            self._line.barred = False
            self._open = True
            try:
                self._joined()
                with self._line.lock:
                    self._line.ready()
                assert self._member is not None
                sweeping.recover(self._line, self._member)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the database. A call that waits ends."""
        with self._opening:
            self._open = False
            self._line.barred = True
            member, self._member = self._member, None
            if member is not None and self._pid == os.getpid():
                member.wake()
                member.leave()
            self._line.close()

    def wake(self) -> None:
        self._woken = True
        member = self._member
        if member is not None:
            member.wake()

    def _joined(self) -> Member:
        """Its slot. Raises `ClientClosed`."""
        member = self._member
        if member is not None and self._pid == os.getpid() and self._open:
            return member
        if not self._open:
            raise ClientClosed(f"{self.place.text} is not open: call open() first")
        if self._pid != os.getpid():  # a child that was forked
            self._pid = os.getpid()
            self._opening = threading.RLock()
            self._member = None
            self._afresh()
        with self._opening:
            if self._member is None:
                with self._line.lock:
                    self._line.ready()  # its errors say more
                self._member = Member(self.place.path, self._kind, self._lease_told)
            return self._member

    def _afresh(self) -> None:
        """Forget what is the parent's."""

    def _look_around(self, member: Member) -> None:
        """Once a second: recover what the dead held, remove what has expired."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        sweeping.recover(self._line, member)
        if sweeping.is_due(self._line, self._line.clock.now()):
            with self._line.writing() as db:
                if sweeping.sweep(db, self._line.clock.now()):
                    self._looked = 0.0  # go on at the next occasion
