"""The items of `revolve run`: from the command line, a file or an endless stdin, read a bounded way ahead.

    stdin ──os.read──▶ reader thread ──[ at most 10,000 items or 4 MiB ]──▶ take() by the loop that submits

Reading ahead costs little memory and makes the total known early, so that the bar of a usual list has an end.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..pool.threads import OurThread

AHEAD_ITEMS = 10_000
AHEAD_BYTES = 4 << 20


class Item(NamedTuple):
    """One unit of work: `label` to show, `value` to pass, `wrong` when it could not be read as JSON."""

    label: str
    value: Any
    wrong: str = ""


def plain(text: str) -> Item:
    """The text itself, passed as one str."""
    return Item(text, text)


def from_json(text: str) -> Item:
    """One JSON value, passed as one argument; what is not JSON fails when its turn comes, alone."""
    try:
        return Item(text.strip(), json.loads(text))
    except (ValueError, RecursionError) as error:
        return Item(text, text, f"not JSON: {error}")


def lines(fd: int, separator: bytes = b"\n") -> Iterator[str]:
    """Pieces of a stream up to each separator, exact but for it; empty ones are passed over.

    Bytes that are no UTF-8 survive as they do in `os.fsdecode`: file names come out whole.
    """
    begun: list[bytes] = []
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:  # somebody else made our stdin non-blocking
            select.select([fd], [], [])
            continue
        first, *rest = chunk.split(separator)
        begun.append(first)
        if rest or not chunk:
            for piece in (b"".join(begun), *rest[:-1]):
                if piece:
                    yield os.fsdecode(piece)
            begun = rest[-1:]
        if not chunk:
            return


class Ahead:
    """Items read ahead of their turn by a thread of their own, so that a slow stdin holds up nothing.

    `wake()` is called, from that thread, when there is something to take after there was nothing, and at the end.
    The thread is a daemon: it may hang in `read` on a terminal or a pipe for ever.
    """

    def __init__(self, source: Iterable[Item], wake: Callable[[], object]) -> None:
        self._source = source
        self._wake = wake
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._stopped = False
        self.seen = 0
        """Items read so far."""
        self.ended = False
        """Nothing more will come: `seen` is the total."""
        self.error: Exception | None = None
        """What ended the reading before its time."""

    def start(self) -> None:
        """Begin to read; returns at once."""
        OurThread(self._read, "revolve-items").start()

    def take(self) -> Item | None:
        """The next item, None when there is none at the moment. Never blocks."""
        with self._changed:
            if not self._items:
                return None
            item = self._items.popleft()
            self._bytes -= len(item.label)
            self._changed.notify()
            return item

    def stop(self) -> int:
        """Read no further; how many items were read and not taken."""
        with self._changed:
            self._stopped = True
            left = len(self._items)
            self._items.clear()
            self._changed.notify()
            return left

    @property
    def waiting(self) -> bool:
        """Whether `take` would give an item, or may later."""
        with self._changed:
            return bool(self._items) or not self.ended

    def _read(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    return
        except Exception as error:
            self.error = error
        with self._changed:
            self.ended = True
        self._wake()

    def _put(self, item: Item) -> bool:
        with self._changed:
            while not self._stopped and (len(self._items) >= AHEAD_ITEMS or self._bytes >= AHEAD_BYTES):
                self._changed.wait()
            if self._stopped:
                return False
            first = not self._items
            self._items.append(item)
            self._bytes += len(item.label)
            self.seen += 1
        if first:
            self._wake()
        return True
