"""A task's events as its caller keeps them: appended by the pump, read by any number of readers at their own pace.

       trimmed (a reader that wants them gets one `gap`)
    0 ···············┊ first ───────────────────────────── end   append ◀── pump
                              ▲ reader      ▲ reader
Kept are the last 1,000 events or 1 MiB; what an attached reader has not taken yet is kept beyond that, and the child
gets no more credit (`want`) until the slowest reader has caught up. `progress` takes no credit and never blocks: of
what a lagging reader has not taken only the newest of it stays (`_coalesce`, `_thin`). So memory stays bounded whatever
anybody does.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import Any

from ..event import Event, Progress
from ..pool.reports import PACKED, PROGRESS
from ..running.running import OBJECT

LOCAL = -1  # (LOCAL, 0, name, time, arguments): records made on this side
GAP = -2

MAX_EVENTS = 1000
MAX_BYTES = 1 << 20
THIN = 2000  # records from which on progress between other events is thinned out
BEHIND = 100  # unread events, those just coming included, from which progress nobody has read is replaced by newer


class Reader:
    """A place in a log. `wake` is called (from any thread, must be quick) when there is something to take."""

    __slots__ = ("log", "next", "wake")

    def __init__(self, log: Log, wake: Callable[[], None]) -> None:
        self.log = log
        self.next = 0
        self.wake = wake

    def take(self, limit: int = 256) -> list[tuple[int, int, Any]]:
        """Up to `limit` records after the last one taken, each with its attempt and number in it (`seq`).

        A gap comes as one record of its own, with the number 0.
        """
        log = self.log
        with log.lock:
            found: list[tuple[int, int, Any]] = []
            if self.next < log.first:
                missing = log.first - self.next
                self.next = log.first
                gap = (GAP, 0, "gap", log.records[0][3] if log.records else 0.0, (missing,))
                found.append((log.attempt_at(log.first)[0], 0, gap))
            start = log.place(self.next)
            stop = min(len(log.records), start + limit)
            if start < stop:
                found += log.placed(start, stop)
                self.next = log.index(stop - 1) + 1
            grant = log.settle()
        if grant is not None:
            grant()
        return found

    def close(self) -> None:
        log = self.log
        with log.lock:
            if self in log.readers:
                log.readers.remove(self)
            grant = log.settle()
        if grant is not None:
            grant()


class Log:
    """The buffer of one task. Thread-safe."""

    __slots__ = (
        "_bytes",
        "_indices",
        "_thin_at",
        "attempts",
        "ended",
        "first",
        "grant",
        "lock",
        "readers",
        "records",
        "want",
    )

    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entered when the collector closes a reader in its midst
        self.records: deque[Any] = deque()
        self.first = 0  # index of records[0]
        self.readers: list[Reader] = []
        self.attempts: list[int] = []  # index of each attempt's first record
        self.ended = False
        self.want: int | None = None  # index up to which readers must have read before more credit is granted
        self.grant: Callable[[], None] | None = None
        self._bytes = 0.0
        self._indices: deque[int] | None = None  # of the records, once some between them were left out
        self._thin_at = THIN

    # --- indices: they count every record, those that were left out since as well

    @property
    def end(self) -> int:
        """The index of the next record."""
        return self._indices[-1] + 1 if self._indices else self.first + len(self.records)

    def index(self, place: int) -> int:
        """The index of `records[place]`."""
        return self._indices[place] if self._indices else self.first + place

    def place(self, index: int) -> int:
        """Where in `records` the first record of this index or a higher one is."""
        return bisect_left(self._indices, index) if self._indices else index - self.first

    # ---

    def begin_attempt(self) -> None:
        """The next record is the first of a new attempt."""
        with self.lock:
            self.attempts.append(self.end)

    def append(self, records: list[Any], size: int) -> None:
        """Add records of `size` bytes in all, and wake the readers."""
        with self.lock:
            kept = self.records
            end = self.end
            readers = self.readers
            slowest = min((reader.next for reader in readers), default=end)
            if records and end + len(records) - slowest > BEHIND:
                before = len(records)
                records = [
                    record
                    for record, after in zip(records, [*records[1:], None], strict=True)
                    if record[0] != PROGRESS or after is None or after[0] != PROGRESS
                ]
                records = self._coalesce(records, max((reader.next for reader in readers), default=0))
                size = size * len(records) // before
            kept += records
            if self._indices:
                self._indices.extend(range(end, end + len(records)))
            self._bytes += size
            self._trim()
            if len(kept) > self._thin_at and readers:
                self._thin()
            wakes = [reader.wake for reader in readers]
        for wake in wakes:
            wake()

    def _coalesce(self, records: list[Any], newest_read: int) -> list[Any]:
        """A run of progress goes on in the place of its last one, if nobody has read that, and no attempt began."""
        kept = self.records
        while (
            kept
            and records
            and records[0][0] == PROGRESS
            and kept[-1][0] == PROGRESS
            and self.end - 1 >= newest_read
            and (not self.attempts or self.attempts[-1] < self.end)
        ):
            kept[-1] = records[0]
            records = records[1:]
        return records

    def _thin(self) -> None:
        """Of the progress that some reader has not taken leave only each attempt's newest.

        Looks at every unread record, but only each time when their count has doubled.
        """
        kept = self.records
        indices = self._indices or range(self.first, self.end)
        slowest = min(reader.next for reader in self.readers)
        begins = list(self.attempts)
        newer = False
        left: list[Any] = []
        their: list[int] = []
        for record, index in zip(reversed(kept), reversed(indices), strict=True):
            while begins and index < begins[-1]:
                begins.pop()
                newer = False
            is_progress = record[0] == PROGRESS
            if not (is_progress and newer and index >= slowest):
                left.append(record)
                their.append(index)
            newer = newer or is_progress
        if len(left) < len(kept):
            self._bytes *= len(left) / len(kept)
            self.records = deque(reversed(left))
            self._indices = deque(reversed(their))
        self._thin_at = max(THIN, 2 * len(left))

    def _trim(self) -> None:
        kept = self.records
        over = len(kept) - MAX_EVENTS
        if over <= 0 and self._bytes <= MAX_BYTES:
            return
        needed = self.place(min((reader.next for reader in self.readers), default=self.end))
        while needed > 0 and len(kept) > 1 and (over > 0 or self._bytes > MAX_BYTES):
            self._bytes -= self._bytes / len(kept)
            self._drop_first()
            needed -= 1
            over -= 1

    def _drop_first(self) -> None:
        self.records.popleft()
        indices = self._indices
        if indices:
            dropped = indices.popleft()
            self.first = indices[0]
            for reader in self.readers:  # what lay between was progress that newer progress replaced: no gap
                if dropped < reader.next < self.first:
                    reader.next = self.first
            if indices[-1] - indices[0] < len(indices):  # none is missing between them any more
                self._indices = None
        else:
            self.first += 1

    def drop(self) -> None:
        """Drop everything but the newest record, also what readers still want: they get a gap."""
        with self.lock:
            while len(self.records) > 1:
                self._drop_first()
            self._bytes = 0.0

    @property
    def size(self) -> float:
        """Bytes that the records took on the wire."""
        return self._bytes

    @property
    def weight(self) -> float:
        """Bytes of memory, about."""
        return self._bytes + OBJECT * len(self.records)

    def settle(self) -> Callable[[], None] | None:
        """Under the lock: trim what readers released; returns the grant of credit that is due, to be called after."""
        self._trim()
        want = self.want
        if want is None or any(reader.next < want for reader in self.readers):
            return None
        self.want = None
        grant, self.grant = self.grant, None
        return grant

    def wanted(self, grant: Callable[[], None]) -> None:
        """The child asks for credit: grant it once every reader has taken what is here now."""
        with self.lock:
            self.want = self.end
            self.grant = grant
            due = self.settle()
        if due is not None:
            due()

    def reader(self, wake: Callable[[], None]) -> Reader:
        reader = Reader(self, wake)
        with self.lock:
            self.readers.append(reader)
        return reader

    def attempt_at(self, index: int) -> tuple[int, int]:
        """(attempt, index of its first record) of the record at `index`."""
        attempts = self.attempts
        number = len(attempts)
        while number > 1 and attempts[number - 1] > index:
            number -= 1
        return max(1, number), attempts[number - 1] if attempts else 0

    def placed(self, start: int, stop: int) -> list[tuple[int, int, Any]]:
        """(attempt, number, record) of the records at these places in `records`. Under the lock; `start < stop`."""
        records = self.records
        part = records if start == 0 and stop == len(records) else [records[i] for i in range(start, stop)]
        attempt, begin = self.attempt_at(self.index(start))
        if not self._indices and self.attempt_at(self.index(stop - 1))[0] == attempt:
            return [(attempt, seq, record) for seq, record in enumerate(part, self.first + start - begin + 1)]
        found = []
        for place, record in enumerate(part, start):
            index = self.index(place)
            attempt, begin = self.attempt_at(index)
            found.append((attempt, index - begin + 1, record))
        return found


def arguments(record: Any) -> Any:
    """The arguments of a record, as a sequence."""
    kind = record[0]
    if kind == PROGRESS:
        return (Progress(*record[4:8]),)
    if kind == PACKED:
        import pickle

        try:
            return pickle.loads(record[4])
        except Exception as error:
            return tuple(f"<cannot be rebuilt here: {text} ({type(error).__name__}: {error})>" for text in record[5])
    return record[4]


def event(task_id: str, attempt: int, seq: int, record: Any) -> Event:
    """A record as the event that users see."""
    return Event(task_id, attempt, seq, record[2], tuple(arguments(record)), record[3])
