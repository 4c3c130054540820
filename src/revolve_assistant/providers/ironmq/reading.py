"""The frames that a reader holds: reserved, put in order, kept until they are forgotten. No I/O; thread-safe."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic

from ...messenger import Batch, Message
from ..channel import Channel, Entry
from .intake import Drawn
from .names import Names
from .wrapping import read_frame

WINDOW = 2000  # frames of a channel that are held after they were read
PENDING = 10_000  # frames of a channel that wait for others that come before them
GRACE = 0.5  # seconds that a hole is waited for when nothing says that it may be filled
MARGIN = 5.0  # seconds beyond a reservation within which what was reserved and lost is back

Held = tuple[str, str, str]  # queue, message, reservation


class Job:
    """The message that brought a frame. `ended`: somebody else may have it by now."""

    __slots__ = ("held", "until")

    def __init__(self, drawn: Drawn, reserve: float) -> None:
        self.held: Held = (drawn.queue, drawn.message.id, drawn.message.reservation)
        self.until = drawn.when + reserve

    @property
    def ended(self) -> bool:
        return monotonic() > self.until


class Reading:
    """Part of a Messenger: what it reads. Positions count from 1 in the order in which frames are given."""

    def __init__(self, names: Names, reserve: float) -> None:
        self._names, self._reserve = names, reserve
        self._lock = threading.Lock()
        self._nonce = os.urandom(6).hex().encode()
        self._channels: dict[str, Channel] = {}  # by queue
        self._failed = 0.0

    def listen(self, cursors: Mapping[str, bytes]) -> list[tuple[Channel, int]]:
        """The channels that are asked for, and the positions after which to read."""
        with self._lock:
            asked = []
            for name, cursor in cursors.items():
                queue = self._names.channel(name)
                channel = self._channels.get(queue)
                if channel is None:
                    channel = self._channels[queue] = Channel(name)
                position = self._position(cursor)
                channel.seen = max(channel.seen, position)
                asked.append((channel, position))
            return asked

    def take(self, drawn: Sequence[Drawn]) -> list[Held]:
        """Take what was reserved; the messages that can be deleted, since their frames were here before."""
        gone: list[Held] = []
        now = monotonic()
        with self._lock:
            for each in drawn:
                channel = self._channels.get(each.queue)
                if channel is None:
                    continue  # it was forgotten, and its queue removed
                frame, key = read_frame(each.message.body)
                job = Job(each, self._reserve)
                if not channel.arrive(Entry(frame, job, key), now):
                    gone.append(job.held)
                excess = len(channel.entries) - WINDOW
                if excess > 0 and channel.entries[excess - 1].position <= channel.seen:
                    gone += _held(channel.drop(channel.entries[excess - 1].position))
        return gone

    def ready(self, asked: Iterable[tuple[Channel, int]], failed: float) -> int:
        """How many frames there are to be read. `failed`: when what was reserved last did not arrive."""
        now = monotonic()
        self._failed = failed
        with self._lock:
            for channel in self._channels.values():
                if channel.holes:
                    channel.give_up(now if channel.waiting() > PENDING else now - self._grace(now))
            return sum(channel.count_after(position) for channel, position in asked)

    def until(self) -> float:
        """When to call `ready` again, at the latest (monotonic seconds)."""
        now = monotonic()
        with self._lock:
            oldest = min((channel.oldest_hole() for channel in self._channels.values()), default=float("inf"))
        return max(oldest + self._grace(now), now + 0.02)

    def _grace(self, now: float) -> float:
        """Seconds that a hole is waited for: what an answer that was lost brought is back after its reservation."""
        back = self._reserve + MARGIN
        return back if self._failed and now - self._failed < back else GRACE

    def batch(self, asked: Sequence[tuple[Channel, int]], limit: int) -> Batch:
        """Up to `limit` messages after the positions, each channel in its turn."""
        with self._lock:
            found = [(channel, channel.after(position)) for channel, position in asked]
        messages: list[Message] = []
        left = sum(1 for _, entries in found if entries)
        for channel, entries in sorted(found, key=lambda each: len(each[1])):
            if entries and limit > len(messages):
                share = max(1, (limit - len(messages)) // max(1, left))
                left -= 1
                cursors = (b"%b.%d" % (self._nonce, entry.position) for entry in entries[:share])
                messages += map(Message, [channel.name] * share, (entry.frame for entry in entries[:share]), cursors)
        return Batch(messages)

    def forget(self, name: str, upto: bytes | None) -> list[Held]:
        """Forget what was read of a channel up to a cursor, or the channel; the messages to be deleted."""
        queue = self._names.channel(name)
        with self._lock:
            channel = self._channels.get(queue)
            if channel is None:
                return []
            if upto is None:
                del self._channels[queue]
                return _held(channel.drop_all())
            return _held(channel.drop(self._position(upto)))

    def _position(self, cursor: bytes) -> int:
        nonce, _, position = cursor.partition(b".")
        return int(position) if nonce == self._nonce and position.isdigit() else 0


def _held(entries: Iterable[Entry]) -> list[Held]:
    return [entry.job.held for entry in entries]
