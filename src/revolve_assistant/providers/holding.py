"""The frames that a reader of several channels holds: jobs that it took from servers of jobs, until they are forgotten.

    a server ── job ──▶ Channel ── in order ──▶ batch ──▶ the reader
                          └─ held until `forget`, or until there is no room ── done ──▶ the server

What may be held is bounded: past that the oldest ones that the reader has moved on from, as the cursors that it gives
say, are done with, without being forgotten. A cursor is of one `Holding` alone: another one's is the start.

How jobs are asked for, and what a server is told of those that are done, is the provider's.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..messenger import Batch, Message
from .channel import Channel, Entry
from .lines import Lines

READ = "read"
"""The role of the lines."""
WINDOW = 1000, 16 << 20
"""Frames, and their bytes, that are held after they were read."""
PENDING = 10_000, 64 << 20
"""Frames, and their bytes, that are held while they wait for others that come before them."""
GRACE = 0.25
"""Seconds that a hole is waited for when the servers have nothing more."""
_LONGEST = 2.0  # … and when they have
_FOLLOW = 256  # frames asked for at once to fill a hole

Asked = Sequence[tuple[Channel, int]]
"""Channels, and the positions after which to read."""


class Holding(ABC):
    """Not thread-safe, but for `lines.wake`. A provider's `Reading` says how jobs come and go."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.woken = False  # by the user, not only for something to do
        self._nonce = os.urandom(6).hex().encode()
        self._channels: dict[str, Channel] = {}
        self._names: dict[bytes, str] = {}
        self._listening: set[str] = set()
        self._count = self._bytes = 0  # held
        self._largest = 1.0  # bytes of a frame, of late

    # ---- what a provider says

    @abstractmethod
    def advance(self, limit: int, asked: Asked) -> tuple[int, bool]:
        """Take what has come, ask for more; how many frames there are to be read, and whether answers are due that are
        worth waiting for."""

    @abstractmethod
    def close(self, patience: float) -> None:
        """Let go, once the servers have what was said to them, or after `patience` seconds."""

    @abstractmethod
    def _key(self, name: str) -> bytes:
        """By what a job tells its channel."""

    @abstractmethod
    def _turn_to(self, names: Collection[str]) -> None:
        """Take jobs of these channels, and of no others."""

    @abstractmethod
    def _turn_from(self, name: str) -> None:
        """A channel was dropped."""

    @abstractmethod
    def _due(self) -> float:
        """When to call `advance` again, at the latest (monotonic seconds), holes aside."""

    @abstractmethod
    def _drained(self) -> bool:
        """Whether every server is there, and has said that there is nothing."""

    @abstractmethod
    def _done(self, jobs: Iterable[Any]) -> None:
        """Tell the servers that these are done, as far as they are held still."""

    # ---- reading

    def listen(self, cursors: Mapping[str, bytes]) -> list[tuple[Channel, int]]:
        """Take frames of these channels and of no others; the channels, and the positions after which to read.

        May block for a round trip when the channels are not those of before.
        """
        if self._listening != cursors.keys():
            for name in cursors:
                if name not in self._channels:
                    self._channels[name] = Channel(name)
                    self._names[self._key(name)] = name
            self._listening = set(cursors)
            self._turn_to(cursors.keys())
        asked = [(self._channels[name], self._position(cursor)) for name, cursor in cursors.items()]
        for channel, position in asked:
            channel.seen = max(channel.seen, position)
        return asked

    def until(self) -> float:
        """When to call `advance` again, at the latest (monotonic seconds)."""
        now = time.monotonic()
        hole = min((channel.oldest_hole() for channel in self._channels.values() if channel.holes), default=None)
        due = self._due()
        return due if hole is None else min(due, max(hole + GRACE, now + 0.02))

    def batch(self, asked: Asked, limit: int) -> Batch:
        """Up to `limit` messages after the positions, each channel in its turn."""
        found = [channel.after(position) for channel, position in asked]
        total = sum(len(entries) for entries in found)
        if total > limit:
            share = max(1, limit // max(1, sum(map(bool, found))))
            kept, left = [], limit
            for entries in found:
                kept.append(min(len(entries), share, left))
                left -= kept[-1]
            for at, entries in enumerate(found):
                more = min(left, len(entries) - kept[at])
                kept[at] += more
                left -= more
            found = [entries[:count] for entries, count in zip(found, kept, strict=True)]
        nonce = self._nonce
        return Batch(
            [
                Message(channel.name, entry.frame, b"%b.%d" % (nonce, entry.position))
                for (channel, _), entries in zip(asked, found, strict=True)
                for entry in entries
            ]
        )

    def forget(self, name: str, upto: bytes | None) -> None:
        """Be done with the jobs of a channel up to a cursor, or with all that are held."""
        channel = self._channels.get(name)
        if channel is None:
            return
        if upto is None:
            self._let_go(channel.drop_all())
            del self._channels[name], self._names[self._key(name)]
            self._turn_from(name)
        else:
            self._let_go(channel.drop(self._position(upto)))

    # ---- for the provider

    def _take_in(self, channel: Channel, entry: Entry, now: float) -> bool:
        """Take a frame. False: it was here before, and its job is done."""
        size = len(entry.frame)
        self._largest = max(size, self._largest * 0.98, 1.0)
        if not channel.arrive(entry, now):
            return False
        if entry.position or channel.holds(entry):  # else it is another job for one that is here
            self._count += 1
            self._bytes += size
        return True

    def _look(self, asked: Asked, now: float) -> tuple[int, bool]:
        """How many frames are to be read, and whether any wait for a hole; those that are old enough are given up."""
        holes = any(channel.holes for channel in self._channels.values())
        if holes:
            self._give_up(now)
        ready = 0
        for channel, position in asked:
            ready += channel.count_after(position)
        return ready, holes

    def _room(self, limit: int, ready: int, holes: bool, asked: Asked) -> int | None:
        """How many more frames may be asked for, once room was made; None: the reader has enough."""
        room = _FOLLOW if holes else min(limit - ready, WINDOW[0])
        if room <= 0:
            return None
        most, size = PENDING if holes else WINDOW
        if self._count + room > most or self._bytes + self._largest > size:
            self._make_room([channel for channel, _ in asked], room)
        room = min(room, max(most - self._count, 0 if ready else 1))
        return min(room, max(int((size - self._bytes) / self._largest), 0 if ready else 1))

    # ---- within

    def _position(self, cursor: bytes) -> int:
        nonce, _, position = cursor.partition(b".")
        return int(position) if nonce == self._nonce and position.isdigit() else 0

    def _give_up(self, now: float) -> None:
        """Stop waiting for frames that will hardly come."""
        # A server that is away may come back with some of them, if it stores what it has.
        drained = self._drained()
        full = self._count >= PENDING[0] or self._bytes >= PENDING[1]
        for channel in self._channels.values():
            if channel.holes:
                channel.give_up(now if full else now - (GRACE if drained else _LONGEST))

    def _make_room(self, asked: Iterable[Channel], room: int) -> None:
        """Be done with the oldest that were read, in the order of the channels; at least a quarter of the window."""
        excess = max(self._count + room - WINDOW[0], WINDOW[0] // 4)
        size = max(self._bytes + int(self._largest) - WINDOW[1], 0)
        for channel in asked:
            entries = channel.entries
            upto = 0
            while upto < len(entries) and (excess > 0 or size > 0) and entries[upto].position <= channel.seen:
                excess -= 1
                size -= len(entries[upto].frame)
                upto += 1
            if upto:
                self._let_go(channel.drop(entries[upto - 1].position))

    def _let_go(self, entries: Iterable[Entry]) -> None:
        gone = list(entries)
        self._count -= len(gone)
        self._bytes -= sum(len(entry.frame) for entry in gone)
        self._done([entry.job for entry in gone])
