"""Ordered logs in memcached: what the contract asks for, over any number of servers.

    write ─▶ Writer ─▶ lane "writing" ─▶ server of the channel      one connection a lane and server,
    read  ◀─ Reader ◀─ lane "reading" ◀─ server of the channel      so that neither waits for the other

A channel lives on one server, chosen by rendezvous hashing over the list of the URL, which must name the same servers
on every side (in any order). A server that is down makes its channels `Unreachable`; they are never moved, since a log
that is in two places is in none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from ... import messenger as contract
from ...errors import ClientClosed, ProviderError, Unreachable, UsageError
from ...messenger import Batch
from ...traits import Traits
from ..url import Url
from .block import LONGEST, Keys, digest, keys_of
from .keeping import Keeper, each, forget
from .reading import Look, Reader
from .server import Server
from .writing import Writer

PORT = 11211
LARGEST = 64 << 20  # bytes
_URGENT = 1.0  # seconds of `wait` up to which a reader is in a hurry
_QUICK, _SOON, _SLOW = 0.001, 0.008, 0.25  # seconds between two looks: right after something came, in a hurry, else


class _Side:
    """Connections, used by one thread at a time but for the lock of each server."""

    def __init__(self, places: Sequence[tuple[str, int]], account: tuple[str, str] | None, timeout: float) -> None:
        self.servers = [Server(host, port, account=account, timeout=timeout) for host, port in places]
        self.lock = threading.Lock()


class _Opened:
    """What is there between `open` and `close`, in one process."""

    def __init__(self, places: Sequence[tuple[str, int]], account: tuple[str, str] | None, timeout: float) -> None:
        self.pid = os.getpid()
        self.reading = _Side(places, account, timeout)
        self.writing = _Side(places, account, timeout)
        self.reader, self.writer, self.keeper = Reader(), Writer(), Keeper()
        self.woken = threading.Event()
        self.active = time.monotonic()  # when something was last found
        self.rest = 0.0  # no look before this time: all was read a moment ago
        self.owed: Unreachable | None = None  # what the last read did not say, since it had messages to give

    @property
    def servers(self) -> list[Server]:
        return self.reading.servers + self.writing.servers


class Messenger(contract.Messenger):
    """Ordered logs in memcached. Every method may be called from any thread; `read` waits in one thread at a time.

    A write to a channel that nobody keeps is dropped: reading that channel names it as lost. After a fork the child
    connects afresh.
    """

    traits = Traits(
        summary="logs in the memory of memcached 1.6; polled",
        replays=True,
        fanout=True,
        waits=False,
        max_bytes=LARGEST,
        max_wait=3600.0,
    )

    def __init__(
        self,
        servers: Sequence[tuple[str, int]] = (("127.0.0.1", PORT),),
        namespace: str = "assistant",
        *,
        user: str | None = None,
        password: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        """`timeout` (seconds) bounds connecting and every request. Nothing is connected yet. Raises `UsageError`."""
        if not servers:
            raise UsageError("memcached needs at least one server, as in memcached://127.0.0.1:11211/namespace")
        if len(set(servers)) < len(servers):
            raise UsageError(f"memcached: a server is named twice: {', '.join(f'{h}:{p}' for h, p in servers)}")
        if (user is None) != (password is None):
            raise UsageError("memcached needs both a user and a password, or neither")
        self._places = list(servers)
        self._namespace = namespace
        self._account = (user, password) if user is not None and password is not None else None
        self._timeout = timeout
        self._names = [f"{host}:{port}" for host, port in servers]
        self._opened: _Opened | None = None
        self._after_fork: dict[tuple[int, int], _Opened] = {}  # by process, and what it inherited
        self._where = lru_cache(10_000)(self._place)

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`memcached://[user:password@]host[:port][,host2…]/namespace?timeout=5`. Raises `UsageError`."""
        url = url.with_options(options).only("timeout")
        return cls(
            url.addresses(PORT),
            url.path or "assistant",
            user=url.user,
            password=url.password,
            timeout=url.number("timeout", 5.0, least=0.01, most=3600.0),
        )

    def __repr__(self) -> str:
        return f"<memcached.Messenger {','.join(self._names)}/{self._namespace}>"

    def open(self) -> None:
        """Connect to every server; some may be away, as long as one is there. Blocks up to the time-out.

        Raises `Unreachable` when none is, and at once `ProtocolError` for a server that is no memcached.
        """
        if self._opened is None:
            self._opened = _Opened(self._places, self._account, self._timeout)
        opened = self._here()
        failures = []
        deadline = time.monotonic() + self._timeout
        try:
            for server in opened.writing.servers:
                try:
                    server.connect(max(0.2, deadline - time.monotonic()))
                except Unreachable as error:
                    failures.append(error)
        except BaseException:
            self.close()
            raise
        if len(failures) == len(self._places):
            self.close()
            raise failures[0]

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            if opened.pid == os.getpid():
                for server in opened.servers:
                    server.close()
                opened.woken.set()
            else:
                _abandon(opened)

    def wake(self) -> None:
        if self._opened is not None:
            self._here().woken.set()

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """As the contract says; a batch to one channel is stored whole as long as it is under a megabyte.

        Raises `Unreachable`, and `Overloaded` when the server is full and evicts nothing (-M): again later.
        """
        for channel, frame in messages:
            if len(frame) > LARGEST:
                raise UsageError(f"{len(frame):,} bytes for {channel!r} are more than {LARGEST:,}")
        opened = self._here()
        gathered: dict[str, list[bytes]] = {}
        for channel, frame in messages:
            gathered.setdefault(channel, []).append(bytes(frame))
        with opened.writing.lock:

            def write(server: Server, channels: Sequence[str]) -> None:
                opened.writer.write(
                    server, [(channel, self._where(channel)[1], gathered[channel]) for channel in channels]
                )

            self._spread(opened.writing, gathered, write)

    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        deadline = time.monotonic() + wait
        opened = self._here()
        owed, opened.owed = opened.owed, None
        if owed is not None:
            raise owed
        with opened.reading.lock:
            opened.reader.prune(cursors)
            if wait > 0 and opened.rest > (now := time.monotonic()):
                opened.woken.wait(min(opened.rest - now, wait))
            while True:
                began = time.monotonic()
                look = self._look(opened, cursors, limit)
                now = time.monotonic()
                if self._opened is not opened and not look.found:
                    opened = self._here()  # raises, unless it was opened again
                if look.found or opened.woken.is_set() or now >= deadline or limit <= 0:
                    if look.found:
                        opened.active = now
                        # Of a stream that is read as fast as it comes some may gather, or each look finds but one.
                        opened.rest = 0.0 if look.more else began + _QUICK
                    opened.woken.clear()
                    return look.batch()
                if look.again:
                    continue
                # A quarter of the silence so far.
                most = _SOON if wait <= _URGENT or look.waiting else _SLOW
                pause = min(most, max(_QUICK, (now - opened.active) / 4))
                opened.woken.wait(min(max(0.0, began + pause - now), deadline - now))

    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        """As the contract says. Raises `Unreachable`, `Overloaded`."""
        opened = self._here()
        seconds = min(seconds, LONGEST)
        with opened.writing.lock:
            self._spread(
                opened.writing,
                each(channels),
                lambda server, own: opened.keeper.keep(server, [self._where(one)[1] for one in own], seconds, cap),
            )

    def forget(self, channel: str, upto: bytes | None = None) -> None:
        opened = self._here()
        number, keys = self._where(channel)
        forget(opened.reading.servers[number], keys, upto)

    # ---- inside

    def _here(self) -> _Opened:
        """What was opened, made anew in a process that was forked since."""
        opened = self._opened
        if opened is None:
            raise ClientClosed(f"memcached://{','.join(self._names)} is not open: call open() first")
        if opened.pid != os.getpid():
            _abandon(opened)
            # Atomic: of two threads of the child the second finds what the first has made.
            made = _Opened(self._places, self._account, self._timeout)
            opened = self._after_fork.setdefault((os.getpid(), id(opened)), made)
            self._opened = opened
        return opened

    def _place(self, channel: str) -> tuple[int, Keys]:
        """The number of a channel's server, and its keys."""
        own = keys_of(self._namespace, channel)
        scores = [digest(name, own.stem.decode()) for name in self._names]
        return scores.index(max(scores)), own

    def _spread(self, side: _Side, channels: Iterable[str], call: Callable[[Server, Sequence[str]], object]) -> None:
        """Call for each server with its channels. One that fails does not keep the others from being served."""
        failure: ProviderError | UsageError | None = None
        for number, own in self._by_server(channels).items():
            try:
                call(side.servers[number], own)
            except (ProviderError, UsageError) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _by_server(self, channels: Iterable[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for channel in channels:
            found.setdefault(self._where(channel)[0], []).append(channel)
        return found

    def _look(self, opened: _Opened, cursors: Mapping[str, bytes], limit: int) -> Look:
        look = Look(limit)
        failure: Unreachable | None = None
        for number, own in self._by_server(cursors).items():
            channels = {channel: (self._where(channel)[1], cursors[channel]) for channel in own}
            try:
                opened.reader.look(opened.reading.servers[number], channels, look)
            except Unreachable as error:
                failure = failure or error
        if failure is not None:
            if not look.found:
                raise failure
            opened.owed = failure  # what other servers gave comes first
        return look


def _abandon(opened: _Opened) -> None:
    for server in opened.servers:
        server.abandon()
