"""A Messenger whose channels are spread over several servers of jobs, with frames as jobs.

    write ─ submit ─▶ the server of the channel's hash (or the next one, where that is down)
    read  ─ take ──── from every server, so that nothing depends on who saw which server down
    forget ─ done

Two threads at most are within: one writes, over lines of its own, one reads, over those of the `Holding`. What another
one wants to forget while that reads waits in line: who has the lock does it.

How frames are put on a server, taken from it and swept off it is the provider's.
"""

from __future__ import annotations

import os
import random
import threading
import time
from abc import abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from .. import messenger as contract
from ..errors import ClientClosed, UsageError
from ..messenger import Batch
from ..protocols.stream import Address
from .holding import READ, Holding
from .lines import Lines, Role
from .preference import Order, Preference

_CLOSING = 2.0  # seconds
_CHANNELS = 10_000  # that a writer remembers its place in
_SWEEP = 300.0  # seconds between sweeps, or a little more
_ABANDONED = 3600.0  # seconds without a reader


class Names(Protocol):
    def channel(self, channel: str, /) -> bytes:
        """What a channel is called on the servers."""


class Place(Protocol):
    """Where the messages are, as a provider reads it from its URL."""

    @property
    def servers(self) -> tuple[Address, ...]: ...
    @property
    def names(self) -> Names: ...
    @property
    def timeout(self) -> float: ...
    @property
    def text(self) -> str: ...


class Sweeper(Protocol):
    def sweep(self, older_than: float, /) -> int:
        """See `Spread.sweep`."""


W = TypeVar("W")
"""What a writer remembers of a channel: its own name there, and the number of the next frame."""


class Spread(contract.Messenger, Generic[W]):
    """`keep`, `forget` and `sweep` may be called from any thread."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pid = 0
        self._open = False
        self._connect()

    # ---- what a provider says

    @abstractmethod
    def _dial(self) -> tuple[Lines, Role]:
        """New lines to write over, and the role of those; it is not wanted yet."""

    @abstractmethod
    def _hold(self) -> Holding:
        """A new reader."""

    @abstractmethod
    def _writer(self, channel: str, name: bytes, order: Order) -> W:
        """A new writer to a channel: what that is called on the servers, and which of them it goes to."""

    @abstractmethod
    def _put(self, frames: Iterator[tuple[W, bytes]]) -> None:
        """Write each frame at its writer's place. Raises `Overloaded` where a server does not store one."""

    @abstractmethod
    def _sweeping(self) -> Sweeper:
        """One that has seen nothing yet."""

    @abstractmethod
    def _drain(self, name: bytes) -> None:
        """Drop what waits on the servers under this name."""

    # ---- open, close, wake

    def _connect(self) -> None:
        """As new, and nothing connected; also in a child that was forked, whose parent goes on with its own."""
        self._writing = threading.Lock()
        self._reading_lock = threading.Lock()
        self._out: Lines | None = None
        self._reading: Holding | None = None
        self._preference = Preference(self._place.servers)
        self._places: OrderedDict[str, W] = OrderedDict()
        self._to_forget: deque[tuple[str, bytes | None]] = deque()
        self._sweeper = self._sweeping()
        self._next_sweep = time.monotonic() + _SWEEP * random.uniform(0.5, 1.5)

    def open(self) -> None:
        """Connect; returns once each server answered or failed, for `timeout` seconds at most. Raises `Unreachable`."""
        if self._open and self._pid == os.getpid():
            return
        self._abandon()
        lines, role = self._dial()
        try:
            lines.want(role)
            while lines.undecided(role.name, hopeful=bool(lines.lines(role.name))):
                lines.pump(time.monotonic() + 0.5)
            if not lines.lines(role.name):
                raise lines.unreachable()
        except BaseException:
            lines.close()
            raise
        self._connect()
        self._out = lines
        self._reading = self._hold()
        self._pid = os.getpid()
        self._open = True

    def close(self) -> None:
        was_open, self._open = self._open, False
        if self._pid != os.getpid():
            self._abandon()
            return
        if not was_open:
            return
        reading = self._reading
        if reading is not None:
            reading.lines.wake()
            held = self._reading_lock.acquire(timeout=self._place.timeout + _CLOSING)
            try:
                self._forget_now(reading)
                reading.close(_CLOSING)
                self._reading = None
            finally:
                if held:
                    self._reading_lock.release()
        held = self._writing.acquire(timeout=2 * self._place.timeout + _CLOSING)
        try:
            if self._out is not None:
                self._out.close()
                self._out = None
        finally:
            if held:
                self._writing.release()

    def wake(self) -> None:
        reading = self._reading
        if reading is not None:
            reading.woken = True
            reading.lines.wake()

    def _abandon(self) -> None:
        """Close our copies of the connections of the process that forked, without a word."""
        if self._out is not None:
            self._out.close()
        if self._reading is not None:
            self._reading.lines.close()
        self._out = self._reading = None

    def _check(self) -> None:
        if self._open and self._pid != os.getpid():
            self.open()
        if not self._open:
            raise ClientClosed(f"{self._place.text} is not open: call open() first")

    def _closed(self) -> ClientClosed:
        return ClientClosed(f"{self._place.text} was closed")

    # ---- writing

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Also raises `Overloaded` where a server does not store a frame; the others may have been written."""
        self._check()
        largest = self.traits.max_bytes
        for channel, frame in messages:
            if len(frame) > largest:
                raise UsageError(f"{len(frame):,} bytes for {channel!r} are more than {largest:,}")
        if not messages:
            return
        with self._writing:
            if self._out is None:
                raise self._closed()
            try:
                self._put((self._writer_to(channel), frame) for channel, frame in messages)
            except BaseException:
                self._begin_anew(messages)
                raise

    def _writer_to(self, channel: str) -> W:
        """Our place in a channel, from its beginning where we have not written to it of late."""
        place = self._places.get(channel)
        if place is None:
            name = self._place.names.channel(channel)
            place = self._places[channel] = self._writer(channel, name, self._preference.order(name))
            if len(self._places) > _CHANNELS:
                self._places.popitem(last=False)
        else:
            self._places.move_to_end(channel)
        return place

    def _begin_anew(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Nobody knows which of them are there. What is written again has other numbers, of other writers, so that no
        reader waits for the rest of these."""
        for channel, _ in messages:
            self._places.pop(channel, None)

    # ---- reading

    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        self._check()
        began = time.monotonic()
        try:
            with self._reading_lock:
                return self._read(cursors, limit, began, began + wait)
        finally:
            self._forget_soon()

    def _read(self, cursors: Mapping[str, bytes], limit: int, began: float, deadline: float) -> Batch:
        reading = self._reading
        if reading is None:
            raise self._closed()
        lines = reading.lines
        looked = deadline > began  # who does not wait sees at least what has come
        asked = None
        while True:
            lines.hush()
            if asked is None or self._to_forget:
                self._forget_now(reading)
                asked = reading.listen(cursors)  # anew, since a channel may have been forgotten meanwhile
            ready, busy = reading.advance(limit, asked)
            now = time.monotonic()
            if ready and (not busy or ready >= limit):
                return reading.batch(asked, limit)
            if not self._open:
                raise self._closed()
            if not busy:
                if reading.woken:
                    reading.woken = False
                    return Batch([])
                up = lines.lines(READ)
                if not up and (lines.hopeless() or now >= began + lines.timeout):
                    raise lines.unreachable()
                if looked and now >= deadline and (up or not lines.undecided(READ, hopeful=True)):
                    if not up and not lines.undecided(READ):
                        raise lines.unreachable()
                    return Batch([])
            until = deadline if now < deadline else now + 0.25 if looked else now
            lines.pump(min(until, reading.until()))
            looked = True

    # ---- keeping and forgetting

    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        """Does nothing for the channels, which exist by being used; now and then it sweeps, see `sweep`."""
        self._check()
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP * random.uniform(1.0, 1.5)
            self.sweep(max(_ABANDONED, 2 * seconds))

    def forget(self, channel: str, upto: bytes | None = None) -> None:
        """Be done with the jobs of what this object has read, up to a cursor of its own; or drop the whole channel:
        what waits on the servers too, for which it connects to each of them."""
        self._check()
        self._to_forget.append((channel, upto))
        self._forget_soon()
        if upto is None:
            self._drain(self._place.names.channel(channel))

    def sweep(self, older_than: float) -> int:
        """Drop the channels of this namespace that have had no reader for so many seconds, as far as this object has
        seen: it must have been called so long ago too. How many were dropped; a server that is away is passed over.

        It blocks, for a few round trips to each server.
        """
        self._check()
        return self._sweeper.sweep(older_than)

    def _forget_soon(self) -> None:
        """Forget now, or have the thread that reads do it."""
        while self._to_forget:
            if not self._reading_lock.acquire(blocking=False):
                reading = self._reading
                if reading is not None:
                    reading.lines.wake()
                return  # whoever has the lock looks again after letting go of it
            try:
                if self._reading is None:
                    return
                self._forget_now(self._reading)
            finally:
                self._reading_lock.release()

    def _forget_now(self, reading: Holding) -> None:
        while self._to_forget:
            channel, upto = self._to_forget.popleft()
            reading.forget(channel, upto)
