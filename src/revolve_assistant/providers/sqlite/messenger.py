"""Ordered logs in an SQLite database.

Messages are numbered over all channels, in the order of their transactions, and numbers are never used again; so a
cursor is the channel's number and the message's. A write is one transaction; it rings the readers that wait for one of
its channels. See `reading` for the other side.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from ... import messenger as contract
from ...errors import UsageError
from ...messenger import Batch
from ...traits import Traits
from ..url import Url
from . import sweeping
from .board import READER, mask_of
from .database import Connection
from .joined import LOOK, Joined
from .place import Place
from .reading import Ear

LARGEST = 16 << 20  # bytes of a frame
MOST = (1 << 62) - 1


class Messenger(Joined, contract.Messenger):
    """Ordered logs in a file of this machine. Every method may be called from any thread; `read` by one at a time.

    A write to a channel that nobody keeps is dropped: reading that channel names it as lost.
    """

    traits: ClassVar[Traits] = Traits(
        summary="logs in an SQLite file, for the processes of one machine",
        replays=True,
        fanout=True,
        waits=True,
        keeps=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
    )
    _kind = READER

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._reading = threading.RLock()
        self._ear_line = Connection(place)  # a write need not wait for a read
        self._ear = Ear(self._ear_line, place.namespace)
        self._swept = 0.0

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`sqlite:///jobs.db?namespace=assistant`; for the rest see `place`. Raises `UsageError`."""
        return cls(Place.read(url, options))

    def open(self) -> None:
        self._ear_line.barred = False
        super().open()

    def close(self) -> None:
        self._ear_line.barred = True
        super().close()
        self._ear_line.close()

    def _afresh(self) -> None:
        self._reading = threading.RLock()
        self._ear = Ear(self._ear_line, self.place.namespace)

    # ---- to write

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        for channel, frame in messages:
            if len(frame) > LARGEST:
                raise UsageError(f"{len(frame):,} bytes for {channel!r} are more than the {LARGEST:,} of sqlite")
        member = self._joined()
        if not messages:
            return
        counted: dict[str, int] = {}
        for channel, frame in messages:
            counted[channel] = counted.get(channel, 0) + len(frame)
        with self._line.writing() as db:
            now = self._line.clock.now()
            numbers: dict[str, int] = {}
            trims: list[tuple[int, int]] = []
            for channel, size in counted.items():
                row = db.execute(
                    "UPDATE channel SET bytes = bytes + ? WHERE ns = ? AND name = ? AND expires > ? "
                    "RETURNING number, bytes - cap",
                    (size, self.place.namespace, channel, now),
                ).fetchone()
                if row is not None:
                    numbers[channel] = row[0]
                    if row[1] > 0:
                        trims.append(row)
            db.executemany(
                "INSERT INTO message(channel, frame) VALUES (?, ?)",
                [(numbers[channel], frame) for channel, frame in messages if channel in numbers],
            )
            for number, excess in trims:
                _trim(db, number, excess)
            if time.monotonic() - self._swept >= sweeping.SWEEP and not sweeping.sweep(db, now):
                self._swept = time.monotonic()
        member.ring(READER, mask_of(self.place.namespace, counted))

    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        self._joined()
        names = list(channels)
        if names:
            with self._line.writing() as db:
                now = self._line.clock.now()
                self.keep_in(db, names, now + seconds, cap, now)

    def keep_in(self, db: sqlite3.Connection, channels: Iterable[str], expires: float, cap: int, now: float) -> None:
        """`keep`, inside somebody's transaction in the same database."""
        cap = min(cap, MOST)
        names = list(channels)
        new = "INSERT INTO channel(ns, name, expires, cap, bytes) VALUES (?, ?, ?, ?, 0) ON CONFLICT DO NOTHING"
        rows = [(self.place.namespace, channel, expires, cap) for channel in names]
        if db.executemany(new, rows).rowcount == len(names):
            return  # as the logs of tasks are
        for channel in names:
            key = (self.place.namespace, channel)
            row = db.execute(
                "UPDATE channel SET expires = ?, cap = ? WHERE ns = ? AND name = ? AND expires > ? "
                "RETURNING number, bytes - cap",
                (expires, cap, *key, now),
            ).fetchone()
            if row is None:
                db.execute("DELETE FROM channel WHERE ns = ? AND name = ?", key)  # it has expired
                db.execute(new, (*key, expires, cap))
            elif row[1] > 0:
                _trim(db, *row)

    def forget(self, channel: str, upto: bytes | None = None) -> None:
        member = self._joined()
        key = (self.place.namespace, channel)
        if upto is None:
            with self._line.writing() as db:
                db.execute("DELETE FROM channel WHERE ns = ? AND name = ?", key)
            member.ring(READER, mask_of(self.place.namespace, [channel]))
            return
        number, last = map(int, upto.split(b"."))
        with self._line.writing() as db:
            sql = "SELECT sum(length(frame)) FROM message WHERE channel = ? AND number <= ?"
            size = db.execute(sql, (number, last)).fetchone()[0]
            if size is not None:
                _drop(db, number, last, size)

    # ---- to read

    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        deadline = time.monotonic() + wait
        mask = mask_of(self.place.namespace, cursors)
        with self._reading:
            fresh = True
            while True:
                member = self._joined()
                member.woken = self._woken
                if wait > 0:
                    member.waits(mask)
                batch = self._ear.hear(cursors, limit, fresh)
                fresh = False
                left = deadline - time.monotonic()
                if batch.messages or batch.lost or self._woken or left <= 0:
                    self._woken = False
                    member.rests()
                    return batch
                self._look_around(member)
                member.wait(min(left, LOOK, self._ear.until()))


def _trim(db: sqlite3.Connection, channel: int, excess: int) -> None:
    """Remove the oldest messages, so many bytes or more, but never the newest: it may be a task's end."""
    newest = db.execute("SELECT max(number) FROM message WHERE channel = ?", (channel,)).fetchone()[0]
    last = size = 0
    sql = "SELECT number, length(frame) FROM message WHERE channel = ? ORDER BY number"
    for number, length in db.execute(sql, (channel,)):
        if size >= excess or number == newest:
            break
        last, size = number, size + length
    if last:
        _drop(db, channel, last, size)


def _drop(db: sqlite3.Connection, channel: int, last: int, size: int) -> None:
    db.execute("DELETE FROM message WHERE channel = ? AND number <= ?", (channel, last))
    db.execute("UPDATE channel SET bytes = bytes - ? WHERE number = ?", (size, channel))
