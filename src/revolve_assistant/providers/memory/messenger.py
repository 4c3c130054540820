"""Ordered logs in memory.

    write ─▶ log "a" │ 17 ▪ 18 ▪ 21 ▪ ─▶ read({"a": cursor of 17, "b": b""})
             log "b" │ 19 ▪ 20 ▪      ─▶ 18 19 20 21

Messages are numbered across the store, so that a read merges channels in the order of arrival and no busy channel
starves another. A cursor holds the number and the incarnation of its log: a cursor into a log that was forgotten and
made again names the channel as lost rather than skipping what is new.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from ... import messenger as contract
from ...errors import UsageError
from ...messenger import Batch, Message
from ...traits import Traits
from ..url import Url
from .store import Clock, Member, Store, name_of


class _Log:
    """One channel: `(number, frame)` in order, which is alive until `expires`."""

    __slots__ = ("bytes", "cap", "entries", "expires", "incarnation", "readers")

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.entries: list[tuple[int, bytes]] = []
        self.bytes = 0
        self.cap = 0
        self.expires = 0.0
        self.readers: set[threading.Condition] = set()

    def drop(self, count: int) -> None:
        self.bytes -= sum(len(frame) for _, frame in self.entries[:count])
        del self.entries[:count]

    def trim(self) -> None:
        """Back under the cap, oldest first. The newest message stays, whatever its size: it may be a task's end."""
        excess, count = self.bytes - self.cap, 0
        while excess > 0 and count < len(self.entries) - 1:
            excess -= len(self.entries[count][1])
            count += 1
        if count:
            self.drop(count)

    def tell(self) -> None:
        for reader in self.readers:
            reader.notify_all()


class _Logs(Store):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.logs: dict[str, _Log] = {}
        self.ends: list[tuple[float, int, str]] = []  # heap of (expiry, incarnation, channel), one for each log

    def expire(self) -> None:
        """Remove what has expired; a log that was renewed goes back into the heap."""
        now = self.clock()
        while self.ends and self.ends[0][0] <= now:
            _, incarnation, channel = heapq.heappop(self.ends)
            log = self.logs.get(channel)
            if log is None or log.incarnation != incarnation:
                continue
            if log.expires > now:
                heapq.heappush(self.ends, (log.expires, incarnation, channel))
            else:
                self.remove(channel)

    def remove(self, channel: str) -> None:
        log = self.logs.pop(channel, None)
        if log is not None:
            log.tell()


class Messenger(Member[_Logs], contract.Messenger):
    """Ordered logs in memory. Every method may be called from any thread.

    A write to a channel that nobody keeps is dropped: reading that channel names it as lost.
    """

    traits = Traits(
        summary="logs in the memory of this process; the reference",
        replays=True,
        fanout=True,
        waits=True,
        max_bytes=64 << 20,
        max_wait=3600.0,
    )
    _kind = _Logs

    @classmethod
    def from_url(cls, url: Url, *, clock: Clock = time.monotonic, **options: object) -> Messenger:
        """`memory://name`. It has no options. Raises `UsageError`."""
        return cls(name_of(url.with_options(options).only()), clock=clock)

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        for channel, frame in messages:
            if len(frame) > self.traits.max_bytes:
                raise UsageError(f"{len(frame):,} bytes for {channel!r} are more than {self.traits.max_bytes:,}")
        store = self._joined()
        with store.lock:
            store.expire()
            touched = set()
            for channel, frame in messages:
                log = store.logs.get(channel)
                if log is not None:
                    log.entries.append((next(store.numbers), bytes(frame)))
                    log.bytes += len(frame)
                    touched.add(log)
            for log in touched:
                log.trim()
                log.tell()

    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        deadline = time.monotonic() + wait
        self._joined()
        with self._arrival:
            while True:
                store = self._joined()
                store.expire()
                batch = _collect(store, cursors, limit)
                left = deadline - time.monotonic()
                if batch.messages or batch.lost or self._woken or left <= 0:
                    self._woken = False
                    return batch
                watched = [store.logs[channel] for channel in cursors]
                for log in watched:
                    log.readers.add(self._arrival)
                end = min((log.expires for log in watched), default=float("inf")) - store.clock()
                try:
                    self._arrival.wait(min(left, end, threading.TIMEOUT_MAX))
                finally:
                    for log in watched:
                        log.readers.discard(self._arrival)

    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        store = self._joined()
        with store.lock:
            store.expire()
            expires = store.clock() + seconds
            for channel in channels:
                log = store.logs.get(channel)
                if log is None:
                    log = store.logs[channel] = _Log(next(store.numbers))
                    heapq.heappush(store.ends, (expires, log.incarnation, channel))
                if expires < log.expires:
                    heapq.heappush(store.ends, (expires, log.incarnation, channel))
                    log.tell()  # who waits for it does so too long
                log.expires = expires
                log.cap = cap
                log.trim()

    def forget(self, channel: str, upto: bytes | None = None) -> None:
        store = self._joined()
        with store.lock:
            store.expire()
            log = store.logs.get(channel)
            if upto is None:
                store.remove(channel)
            elif log is not None:
                start = _start(log, upto)
                if start:
                    log.drop(start)


def _cursor(log: _Log, number: int) -> bytes:
    return b"%d.%d" % (log.incarnation, number)


def _start(log: _Log, cursor: bytes) -> int | None:
    """Index of the first entry after the cursor; None if the cursor is of an earlier log of that name."""
    if not cursor:
        return 0
    incarnation, _, number = cursor.partition(b".")
    if incarnation != b"%d" % log.incarnation:
        return None
    return bisect_right(log.entries, int(number), key=itemgetter(0))


def _collect(store: _Logs, cursors: Mapping[str, bytes], limit: int) -> Batch:
    lost: set[str] = set()
    streams: list[Iterator[tuple[int, bytes, str, _Log]]] = []
    for channel, cursor in cursors.items():
        log = store.logs.get(channel)
        start = None if log is None else _start(log, cursor)
        if log is None or start is None:
            lost.add(channel)
        elif start < len(log.entries):
            entries = log.entries[start : start + limit]
            streams.append(_stream(entries, channel, log))
    merged = heapq.merge(*streams, key=itemgetter(0)) if len(streams) > 1 else itertools.chain(*streams)
    messages = [
        Message(channel, frame, _cursor(log, number))
        for number, frame, channel, log in itertools.islice(merged, max(0, limit))
    ]
    return Batch(messages, frozenset(lost))


def _stream(entries: list[tuple[int, bytes]], channel: str, log: _Log) -> Iterator[tuple[int, bytes, str, _Log]]:
    for number, frame in entries:
        yield number, frame, channel, log
