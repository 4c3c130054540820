"""Channels as functions of gearmand, frames as background jobs.

    write ─ submit ─▶ NAMESPACE.c.CHANNEL on the server of the channel's hash (or the next one, where that is down)
    read  ─ grab ──── on every server, so that nothing depends on who saw which server down
    forget ─ complete

A channel has one reader at a time. It gets each writer's frames in the order of their writing, also those that come
again after a reader died, which gearmand puts last and backwards: see `channel`. Frames that a dead server held are a
hole, which the layer above sees by its own numbers.

gearmand has no bound on what it holds for a channel that nobody reads: `sweep` removes those. (Its `maxqueue` would
refuse the newest frames, a task's end among them, and with it whoever writes.)
"""

from __future__ import annotations

import base64
import os
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ... import messenger as contract
from ...errors import ClientClosed, UsageError
from ...messenger import Batch
from ...protocols.gearman.client_state import Request
from ...traits import Traits
from ..lines import Lines
from ..preference import Preference
from ..url import Url
from .address import LARGEST, MAX_BODY, Place
from .delivery import SUBMIT, Delivery, background, refused
from .reading import READ, Reading
from .sweeping import Sweeper, drain

_CLOSING = 2.0  # seconds
_CHANNELS = 10_000  # that a writer remembers its place in
_SWEEP = 300.0  # seconds between sweeps, or a little more
_ABANDONED = 3600.0  # seconds without a reader


class _Place:
    """A writer's place in a channel: a name that no other has, and the number of the next frame."""

    __slots__ = ("function", "next", "order", "prefix")

    def __init__(self, function: bytes, order: tuple[int, ...], kind: str) -> None:
        self.function = function
        self.order = order
        self.prefix = f"{kind}{os.urandom(8).hex()}."
        self.next = 0


class Messenger(contract.Messenger):
    """Channels on one or several gearmands. `keep`, `forget` and `sweep` may be called from any thread too.

    Reading does not replay: what this object has read and not forgotten it gives again from memory, to another reader
    it is not there, until this one closes or dies. A channel exists by being used.
    """

    traits = Traits(
        summary="channels are functions of gearmand, frames are background jobs",
        waits=True,
        keeps=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
    )

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pid = 0
        self._open = False
        self._connect()

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`gearman://host:4730,host2/namespace?timeout=5&encode=base64`. Raises `UsageError`."""
        return cls(Place.read(url, options))

    # ---- open, close, wake

    def _connect(self) -> None:
        """As new, and nothing connected; also in a child that was forked, whose parent goes on with its own."""
        self._writing = threading.Lock()
        self._reading_lock = threading.Lock()
        self._out: Lines | None = None
        self._delivery: Delivery | None = None
        self._reading: Reading | None = None
        self._preference = Preference(self._place.servers)
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._to_forget: deque[tuple[str, bytes | None]] = deque()
        self._sweeper = Sweeper(self._place)
        self._next_sweep = time.monotonic() + _SWEEP * random.uniform(0.5, 1.5)

    def open(self) -> None:
        """Connect; returns once each server answered or failed, for `timeout` seconds at most. Raises `Unreachable`."""
        if self._open and self._pid == os.getpid():
            return
        self._abandon()
        lines = Lines(self._place.servers, self._place.timeout)
        delivery = Delivery(lines, MAX_BODY)
        try:
            lines.want(delivery.role)
            while lines.undecided(SUBMIT, hopeful=bool(lines.lines(SUBMIT))):
                lines.pump(time.monotonic() + 0.5)
            if not lines.lines(SUBMIT):
                raise lines.unreachable()
        except BaseException:
            lines.close()
            raise
        self._connect()
        self._out, self._delivery = lines, delivery
        self._reading = Reading(self._place)
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

    # ---- writing

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Also raises `Overloaded` where a server does not store a frame; the others may have been written."""
        self._check()
        for channel, frame in messages:
            if len(frame) > LARGEST:
                raise UsageError(f"{len(frame):,} bytes for {channel!r} are more than {LARGEST:,}")
        if not messages:
            return
        with self._writing:
            if self._delivery is None or self._out is None:
                raise ClientClosed(f"{self._place.text} was closed")
            requests: list[Request] = []
            try:
                self._delivery.deliver(self._requests(messages, requests))
            except BaseException:
                # Nobody knows which of them are there. What is written again has other numbers, of other writers, so
                # that no reader waits for the rest of these.
                for channel, _ in messages:
                    self._places.pop(channel, None)
                raise
            refused(requests, f"{len(requests)} frames")

    def _requests(
        self, messages: Sequence[tuple[str, bytes]], made: list[Request]
    ) -> Iterator[tuple[tuple[int, ...], Request]]:
        for channel, frame in messages:
            order, request = self._request(channel, frame)
            made.append(request)
            yield order, request

    def _request(self, channel: str, frame: bytes) -> tuple[tuple[int, ...], Request]:
        place = self._places.get(channel)
        encoded = self._place.base64
        if place is None:
            function = self._place.names.channel(channel)
            place = self._places[channel] = _Place(function, self._preference.order(function), "b" if encoded else "w")
            if len(self._places) > _CHANNELS:
                self._places.popitem(last=False)
        else:
            self._places.move_to_end(channel)
        data = base64.b64encode(frame) if encoded else bytes(frame)
        request = background(place.function, f"{place.prefix}{place.next}", data)
        place.next += 1
        return place.order, request

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
            raise ClientClosed(f"{self._place.text} was closed")
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
                raise ClientClosed(f"{self._place.text} was closed")
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
        """Complete the jobs of what this object has read, up to a cursor of its own; or drop the whole channel: what
        waits on the servers too, for which it connects to each of them."""
        self._check()
        self._to_forget.append((channel, upto))
        self._forget_soon()
        if upto is None:
            drain(self._place, [self._place.names.channel(channel)])

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

    def _forget_now(self, reading: Reading) -> None:
        while self._to_forget:
            channel, upto = self._to_forget.popleft()
            reading.forget(channel, upto)
