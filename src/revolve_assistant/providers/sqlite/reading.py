"""What a reader remembers of its channels, so that a look costs what is new and not what is there.

Of each channel it knows the number, its own place in it and when it expires. Since numbers of messages grow over all
channels, one walk over those after the last one it has seen says which channels have something; the others are not
asked. Once a second it makes sure that its channels still are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from ...messenger import Batch, Message
from .database import Connection

LOOK = 1.0  # seconds between looks whether the channels still are
LOAD = 8 << 20  # bytes fetched at once, about
NAMES = 500  # channels asked for at once
_AFTER = "SELECT number, frame FROM message WHERE channel = ? AND number > ? ORDER BY number LIMIT ?"


class _Heard:
    """One channel."""

    __slots__ = ("behind", "cursor", "expires", "last", "number")

    def __init__(self, cursor: bytes) -> None:
        self.cursor = cursor
        own, _, last = cursor.partition(b".")
        self.number = int(own) if cursor else 0  # of the channel; 0: whichever has the name
        self.last = int(last) if cursor else 0
        self.expires = math.inf
        self.behind = True  # there may be messages after `last`


class Ear:
    """Part of a Messenger: what it reads."""

    def __init__(self, line: Connection, namespace: str) -> None:
        self._line, self._ns = line, namespace
        self._heard: dict[str, _Heard] = {}
        self._names: dict[int, str] = {}  # channel's number -> name
        self._seen = 0  # number of the last message that was looked at
        self._look = 0.0

    def until(self) -> float:
        """Seconds until one of its channels expires."""
        if not self._heard:
            return math.inf
        return max(0.0, min(heard.expires for heard in self._heard.values()) - self._line.clock.now())

    def hear(self, cursors: Mapping[str, bytes], limit: int, fresh: bool) -> Batch:
        """What is there now. `fresh`: the cursors may be others than last time."""
        new = self._agree(cursors) if fresh else []
        lost = self._ask(new)
        now = time.monotonic()
        if now >= self._look or self.until() <= 0:
            self._look = now + LOOK
            lost |= self._ask(list(self._heard))
        self._notice()
        messages = self._fetch(limit)
        return Batch(messages, frozenset(lost))

    def _agree(self, cursors: Mapping[str, bytes]) -> list[str]:
        """Know a channel for each that is asked for, where it is asked from, and no other; those that are new."""
        heard = self._heard
        new = []
        for channel, cursor in cursors.items():
            known = heard.get(channel)
            if known is None or known.cursor != cursor:
                heard[channel] = _Heard(cursor)
                new.append(channel)
        if len(heard) > len(cursors):
            for channel in [channel for channel in heard if channel not in cursors]:
                del heard[channel]
            self._names = {one.number: channel for channel, one in heard.items()}
        return new

    def _ask(self, channels: list[str]) -> set[str]:
        """Find out which of these still are."""
        lost: set[str] = set()
        for at in range(0, len(channels), NAMES):
            part = channels[at : at + NAMES]
            marks = ",".join("?" * len(part))
            sql = f"SELECT name, number, expires FROM channel WHERE ns = ? AND name IN ({marks})"
            found = {row[0]: row[1:] for row in self._line.rows(sql, (self._ns, *part))}
            now = self._line.clock.now()
            for channel in part:
                heard = self._heard[channel]
                number, expires = found.get(channel, (0, 0.0))
                if expires <= now or heard.number not in (0, number):
                    lost.add(channel)
                    del self._heard[channel]
                    self._names.pop(heard.number, None)
                    continue
                heard.number, heard.expires = number, expires
                self._names[number] = channel
        return lost

    def _notice(self) -> None:
        """Which channels have got something since the last look."""
        if all(heard.behind for heard in self._heard.values()):
            row = self._line.rows("SELECT max(number) FROM message")[0]
            self._seen = max(self._seen, row[0] or 0)
            return
        sql = "SELECT number, channel FROM message WHERE number > ? ORDER BY number"
        for number, channel in self._line.rows(sql, (self._seen,)):
            self._seen = number
            name = self._names.get(channel)
            if name is not None:
                self._heard[name].behind = True

    def _fetch(self, limit: int) -> list[Message]:
        """Up to `limit` messages of the channels that have some, in the order in which they were written."""
        found: list[tuple[int, str, bytes]] = []
        behind = [(name, heard) for name, heard in self._heard.items() if heard.behind]
        size = 0
        left = set()  # names of which more is there
        for name, heard in behind:
            most = limit if size < LOAD else 0
            rows, whole = self._line.some(_AFTER, (heard.number, heard.last, most), LOAD) if most > 0 else ([], False)
            if not whole or len(rows) >= most:
                left.add(name)
            found += [(number, name, frame) for number, frame in rows]
            size += sum(len(frame) for _, frame in rows)
        found.sort(key=lambda one: one[0])
        left.update(name for _, name, _ in found[limit:])
        for name, heard in behind:
            heard.behind = name in left
        messages = []
        for number, name, frame in found[: max(0, limit)]:
            heard = self._heard[name]
            heard.last = number
            heard.cursor = b"%d.%d" % (heard.number, number)
            messages.append(Message(name, frame, heard.cursor))
        return messages
