"""What objects of one `memory://name` share, and how they come and go.

A store lives as long as the process; `memory://` is a name too. After a fork the child starts with empty stores, and
the objects it inherited must be opened again. There is one lock a store and one condition an object, so that a write
wakes only who waits for it.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from ...errors import ClientClosed
from ..url import Url

Clock = Callable[[], float]


class Store:
    """What the objects of one name share. `lock` guards all of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        # Starts anywhere, so that a cursor or token from another process or before a fork never fits by chance.
        self.numbers = itertools.count(int.from_bytes(os.urandom(5)))
        self.pid = os.getpid()


S = TypeVar("S", bound=Store)


class Member(Generic[S]):
    """Opening, closing and waking, the same for both."""

    _kind: type[S]
    _stores: ClassVar[dict[tuple[object, ...], Store]] = {}
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str = "", *, clock: Clock = time.monotonic) -> None:
        """`clock` gives seconds, for delays and expiry; a store belongs to a name and a clock."""
        self._name = name
        self._clock = clock
        self._store: S | None = None
        self._arrival = threading.Condition()
        self._woken = False

    def open(self) -> None:
        """Join the store. Never blocks."""
        if self._store is not None and self._store.pid == os.getpid():
            return
        key = (self._kind, self._name, self._clock)
        with self._making:
            store = self._stores.get(key)
            if store is None:
                store = self._stores[key] = self._kind(self._clock)
        assert isinstance(store, self._kind)
        self._arrival = threading.Condition(store.lock)
        self._store = store

    def close(self) -> None:
        """Leave the store, which stays; a waiting read or take ends."""
        if self._store is not None and self._store.pid == os.getpid():
            with self._arrival:
                self._store = None
                self._arrival.notify_all()
        self._store = None

    def wake(self) -> None:
        """End the waiting read or take, or the next one. From any thread."""
        self._woken = True
        if self._store is not None and self._store.pid == os.getpid():
            with self._arrival:
                self._woken = True
                self._arrival.notify_all()

    def _joined(self) -> S:
        store = self._store
        if store is None or store.pid != os.getpid():
            raise ClientClosed(f"memory://{self._name} is not open (in this process): call open() first")
        return store


def _after_fork() -> None:
    Member._stores.clear()
    Member._making = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def name_of(url: Url) -> str:
    """`memory://a/b` is the store "a/b"."""
    return "/".join(part for part in (url.host, url.path) if part)
