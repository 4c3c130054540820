"""The reading half of a Messenger: grabs frames, keeps them until they are forgotten, one thread at a time.

A frame that was read and not forgotten is a job that was taken and not completed: if this reader dies gearmand gives
it to the next one. What may be held so is bounded; past that the oldest ones that the reader has moved on from, as the
cursors that it gives say, are completed without being forgotten.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from ...messenger import Batch, Message
from ...protocols.gearman.worker_state import Assignment
from ..channel import Channel, Entry, Key
from ..lines import Line, Lines
from .address import MAX_BODY, Place
from .taking import Taking

READ = "read"
WINDOW = 1000, 16 << 20
"""Frames, and their bytes, that are held after they were read."""
PENDING = 10_000, 64 << 20
"""Frames, and their bytes, that are held while they wait for others that come before them."""
GRACE = 0.25
"""Seconds that a hole is waited for when the servers have nothing more."""
_LONGEST = 2.0  # … and when they have
_TURN = 64  # frames after which another function gets to be the first
_FOLLOW = 256  # frames asked for at once to fill a hole
_UNIQUE = re.compile(rb"([wb])([0-9a-f]{16})\.([0-9]{1,19})\Z")


class Reading:
    """The frames that this reader holds. Not thread-safe, but for `lines.wake`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.lines = Lines(place.servers, place.timeout)
        self.woken = False  # by the user, not only for something to do
        self._taking = Taking(self.lines, READ, MAX_BODY)
        self._nonce = os.urandom(6).hex().encode()
        self._channels: dict[str, Channel] = {}
        self._functions: dict[bytes, str] = {}
        self._listening: set[str] = set()
        self._count = self._bytes = 0  # held
        self._largest = 1.0  # bytes of a frame, of late
        self._since_turn = 0

    # ---- reading

    def listen(self, cursors: Mapping[str, bytes]) -> list[tuple[Channel, int]]:
        """Take frames of these channels and of no others; the channels, and the positions after which to read."""
        if self._listening != cursors.keys():
            names = self.place.names
            for name in cursors:
                if name not in self._channels:
                    self._channels[name] = Channel(name)
                    self._functions[names.channel(name)] = name
            self._taking.only(names.channel(name) for name in cursors)
            self._listening = set(cursors)
            self.lines.want(self._taking.role)
        asked = [(self._channels[name], self._position(cursor)) for name, cursor in cursors.items()]
        for channel, position in asked:
            channel.seen = max(channel.seen, position)
        return asked

    def advance(self, limit: int, asked: Sequence[tuple[Channel, int]]) -> tuple[int, bool]:
        """Take what has come, ask for more; how many frames there are to be read, and whether answers are due that are
        worth waiting for."""
        now = time.monotonic()
        self._collect(now)
        holes = any(channel.holes for channel in self._channels.values())
        if holes:
            self._give_up(now)
        ready = 0
        for channel, position in asked:
            ready += channel.count_after(position)
        room = _FOLLOW if holes else min(limit - ready, WINDOW[0])
        if room <= 0:
            return ready, False
        most, size = PENDING if holes else WINDOW
        if self._count + room > most or self._bytes + self._largest > size:
            self._make_room([channel for channel, _ in asked], room)
        room = min(room, max(most - self._count, 0 if ready else 1))
        room = min(room, max(int((size - self._bytes) / self._largest), 0 if ready else 1))
        if self._since_turn >= _TURN:
            self._since_turn = 0
            self._taking.rotate()
        return ready, self._taking.ask(room)

    def until(self) -> float:
        """When to call `advance` again, at the latest (monotonic seconds)."""
        now = time.monotonic()
        hole = min((channel.oldest_hole() for channel in self._channels.values() if channel.holes), default=None)
        due = self._taking.patience()
        return due if hole is None else min(due, max(hole + GRACE, now + 0.02))

    def batch(self, asked: Sequence[tuple[Channel, int]], limit: int) -> Batch:
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

    # ---- forgetting

    def forget(self, name: str, upto: bytes | None) -> None:
        """Complete the jobs of a channel up to a cursor, or all that are held; the lines must be sent after."""
        channel = self._channels.get(name)
        if channel is None:
            return
        if upto is None:
            self._complete(channel.drop_all())
            function = self.place.names.channel(name)
            del self._channels[name], self._functions[function]
            self._listening.discard(name)
            self._taking.only(each for each in self._taking.current if each != function)
        else:
            self._complete(channel.drop(self._position(upto)))

    def close(self, patience: float) -> None:
        """Let go, once the servers have what was said to them, or after `patience` seconds."""
        deadline = time.monotonic() + patience
        asked = self.lines.lines(READ)
        for line in asked:
            self.lines.attempt(line, line.ping, b"bye")
        self.lines.send(asked)
        while any(line.up and line.state.pinged for line in asked) and time.monotonic() < deadline:
            self.lines.pump(deadline)
        self.lines.close()

    # ---- within

    def _position(self, cursor: bytes) -> int:
        nonce, _, position = cursor.partition(b".")
        return int(position) if nonce == self._nonce and position.isdigit() else 0

    def _collect(self, now: float) -> None:
        jobs, self._taking.arrived = self._taking.arrived, []
        if not jobs:
            return
        doubles = []
        for job in jobs:
            name = self._functions.get(job.function)
            if name is None:
                doubles.append(job)  # of a channel that was forgotten
                continue
            frame, key = _read(job)
            job.workload = b""
            entry = Entry(frame, job, key)
            channel = self._channels[name]
            self._largest = max(len(frame), self._largest * 0.98, 1.0)
            before = len(channel.entries) + channel.waiting()
            if not channel.arrive(entry, now):
                doubles.append(job)
            elif len(channel.entries) + channel.waiting() > before:
                self._count += 1
                self._bytes += len(frame)
        self._since_turn += len(jobs)
        self._done(doubles)

    def _give_up(self, now: float) -> None:
        """Stop waiting for frames that will hardly come."""
        # A server that is away may come back with some of them, if it stores what it has.
        drained = self._taking.asleep() and len(self.lines.lines(READ)) == len(self.lines.servers)
        full = self._count >= PENDING[0] or self._bytes >= PENDING[1]
        for channel in self._channels.values():
            if channel.holes:
                channel.give_up(now if full else now - (GRACE if drained else _LONGEST))

    def _make_room(self, asked: Iterable[Channel], room: int) -> None:
        """Complete the oldest that were read, in the order of the channels; at least a quarter of the window."""
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
                self._complete(channel.drop(entries[upto - 1].position))

    def _complete(self, entries: Iterable[Entry]) -> None:
        gone = list(entries)
        self._count -= len(gone)
        self._bytes -= sum(len(entry.frame) for entry in gone)
        self._done([entry.job for entry in gone])

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
