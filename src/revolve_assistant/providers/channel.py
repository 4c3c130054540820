"""One channel as its reader sees it: frames of several writers, put back into the order of each.

    jobs as they come:    w1.7 w1.8 w2.0 │ after a reader died, those that it held come last, and backwards: w1.6 w1.5
                               │
    entries:              w1.5 w1.6 w1.7 w1.8 w2.0        in order, at positions 1, 2, 3 …; until they are forgotten
    waiting for a hole:   w2.3                            until w2.1 and w2.2 come, or are given up

Every frame has a number of its writer's. What a writer sent twice, since a server failed before it answered, is one
frame. A hole is given up when the servers have nothing more and a moment has passed; what it lacked is passed on late
if it still comes: the layer above has numbers of its own, and shows what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SKIPPED = 16  # ranges of numbers that were given up, of each writer
_WRITERS = 1000

Key = tuple[bytes, int]


class Entry:
    """A frame, the job that brought it, and its place in the channel: 0 while it waits for a hole.

    Of a job no more is asked than whether it has `ended`: nobody can complete it any more.
    """

    __slots__ = ("frame", "job", "key", "position")

    def __init__(self, frame: bytes, job: Any, key: Key | None) -> None:
        self.frame = frame
        self.job = job
        self.key = key
        self.position = 0


class _Writer:
    __slots__ = ("expected", "hole", "skipped", "waiting")

    def __init__(self) -> None:
        self.expected = 0
        self.waiting: dict[int, Entry] = {}
        self.hole: float | None = None  # since when
        self.skipped: list[range] = []


class Channel:
    """Frames in order, and those that wait to get there. `arrive` says what becomes of a job."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: list[Entry] = []
        self.seen = 0  # position up to which the reader has it
        self._last = 0
        self._held: dict[Key, Entry] = {}
        self._writers: dict[bytes, _Writer] = {}
        self._holes: set[bytes] = set()

    @property
    def holes(self) -> bool:
        return bool(self._holes)

    def holds(self, entry: Entry) -> bool:
        """Whether this very entry is here, in order or waiting."""
        return entry.key is not None and self._held.get(entry.key) is entry

    def waiting(self) -> int:
        """Frames that wait for a hole."""
        return sum(len(self._writers[name].waiting) for name in self._holes)

    def arrive(self, entry: Entry, now: float) -> bool:
        """Take a frame. False: it was here before, and its job may be completed."""
        if entry.key is None:
            self._append(entry)
            return True
        held = self._held.get(entry.key)
        if held is not None:
            if not held.job.ended:
                return False
            held.job = entry.job  # it came again after a connection was lost; forgetting it means this job now
            return True
        name, number = entry.key
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = _Writer()
            self._prune()
        if number == writer.expected:
            self._append(entry)
            writer.expected += 1
            if writer.waiting:
                self._follow(name, writer)
        elif number > writer.expected:
            writer.waiting[number] = entry
            self._held[entry.key] = entry
            self._holes.add(name)
            writer.hole = writer.hole or now
        elif any(number in one for one in writer.skipped):
            self._append(entry)  # late
        else:
            return False
        return True

    def give_up(self, before: float) -> bool:
        """Pass over the holes that have been there since before then. Whether there were any."""
        found = False
        for name in list(self._holes):
            writer = self._writers[name]
            if writer.hole is not None and writer.hole <= before:
                found = True
                first = min(writer.waiting)
                writer.skipped = [*writer.skipped[1 - _SKIPPED :], range(writer.expected, first)]
                writer.expected = first
                self._follow(name, writer)
                if writer.waiting:
                    writer.hole = before  # the next hole is as old
        return found

    def oldest_hole(self) -> float:
        return min((self._writers[name].hole or 0.0 for name in self._holes), default=float("inf"))

    def count_after(self, position: int) -> int:
        return max(0, min(self._last - position, len(self.entries)))

    def after(self, position: int) -> list[Entry]:
        """The entries after that position."""
        if not self.entries:
            return []
        at = max(0, position - self.entries[0].position + 1)
        return self.entries[at:] if at else list(self.entries)

    def drop(self, upto: int) -> Iterator[Entry]:
        """Forget the entries up to that position, and give them back."""
        if self.entries:
            count = max(0, min(upto - self.entries[0].position + 1, len(self.entries)))
            gone = self.entries[:count]
            del self.entries[:count]
            for entry in gone:
                if entry.key is not None:
                    self._held.pop(entry.key, None)
            yield from gone

    def drop_all(self) -> Iterator[Entry]:
        """Forget everything, what waits included; the numbers of the writers stay known."""
        yield from self.drop(self._last)
        for name in self._holes:
            writer = self._writers[name]
            yield from writer.waiting.values()
            writer.expected = max(writer.waiting) + 1
            writer.waiting.clear()
            writer.hole = None
        self._holes.clear()
        self._held.clear()

    def _append(self, entry: Entry) -> None:
        self._last += 1
        entry.position = self._last
        self.entries.append(entry)
        if entry.key is not None:
            self._held[entry.key] = entry

    def _follow(self, name: bytes, writer: _Writer) -> None:
        """Append what waited for the number that is expected now."""
        while (entry := writer.waiting.pop(writer.expected, None)) is not None:
            self._append(entry)
            writer.expected += 1
        if not writer.waiting:
            writer.hole = None
            self._holes.discard(name)

    def _prune(self) -> None:
        if len(self._writers) > _WRITERS:
            for name in self._writers:
                if name not in self._holes:
                    del self._writers[name]
                    return
