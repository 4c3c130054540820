"""Sorts what comes back from workers: which task, which run, what is new of it. Pure: no I/O, no threads.

        frames of run a:   1 2 3 ┄┄┄ (its worker dies)          7 8 (a late one: dropped, run a is fenced)
        frames of run b:              1 2 ┄ 5 6 end
        the task hears:    1 2 3  retrying  1 2 gap(2) 5 6 end

A run that was not seen before is newer than the one before it, and fences that off. Numbers within a run have no
holes, so what was sent twice is dropped and what is missing is said. The end of a fenced run is kept aside: it counts
only if the newer run turns out to be lost.

A task that also writes to other messengers (`task.write_to`) numbers what it writes to each. Its end names the last
number of each, and waits here until those that this client reads have come up to there, or are known to be missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any

from ..errors import ProtocolError, Untrusted
from ..pool.reports import (
    EVENT,
    PACKED,
    PROGRESS,
    REPORT_CANCELLED,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETRYING,
    REPORT_RETURNED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_WAITING,
)
from ..wire import frames as wire
from ..wire.remote import unpack_error
from .log import LOCAL

if TYPE_CHECKING:
    from ..engine import Parcel, Sink

log = logging.getLogger("revolve_assistant")
MAX_FENCED = 100  # runs of one task that are remembered as over
MAX_LOOSE = 1000  # writes outside of any run that are remembered, so that one that was repeated counts once


class RemoteJob:
    """A task that is somewhere else, as its caller knows it."""

    __slots__ = (
        "acknowledged",
        "asked",
        "attached",
        "control",
        "ended",
        "fenced",
        "follows",
        "heard",
        "history",
        "key",
        "log",
        "loose",
        "messages",
        "next",
        "others",
        "over",
        "parcel",
        "reported",
        "resent",
        "run",
        "sink",
        "spare",
        "started",
        "stopping",
        "waiting_end",
        "wakes",
        "within",
    )

    def __init__(self, parcel: Parcel, sink: Sink) -> None:
        self.parcel = parcel
        self.key = parcel.id  # what its caller calls it; the parcel's id is that of the task that it follows
        self.sink = sink
        self.attached = False  # somebody else submitted it
        self.within = 0.0  # seconds that it may take until its log is there
        self.reported = False  # by code that somebody else runs, and perhaps runs again under the same id
        self.loose: dict[bytes, None] | None = None  # writes outside of any run that were heard
        self.history = 0.0  # seconds that its log is kept after its end; 0: it has none
        self.log: Any = None  # the `Watch` that reads its log
        self.follows = ""  # the task that it is in truth
        self.acknowledged = False  # the queue has it
        self.run: bytes | None = None  # the execution that is heard
        self.next = 1  # number of its next event
        self.over = False  # it said that another run follows
        self.started = False
        self.ended = False
        self.fenced: set[bytes] | None = None
        self.spare: tuple[Any, ...] | None = None  # the end of a fenced run
        self.control = ""  # channel of the worker that has it
        self.messages: list[tuple[str, Any]] | None = None  # sent before it started
        self.stopping = False
        self.heard = 0.0  # monotonic seconds
        self.asked = 0.0  # when somebody was asked about it, monotonic seconds; 0: nobody was
        self.resent = 0
        self.wakes: list[Callable[[], None]] | None = None  # of who waits for the acknowledgement
        self.others: dict[str, int] | None = None  # next number of what this run writes to another messenger
        self.waiting_end: tuple[tuple[Any, ...], dict[str, int]] | None = None  # and up to where it waits


class Inbox:
    """The tasks of one client that are somewhere else. Used by one thread at a time."""

    def __init__(self, jobs: dict[str, RemoteJob], begun: Callable[[RemoteJob], None]) -> None:
        self._jobs = jobs
        self._begun = begun  # called when a task is known to run, with the channel of its worker
        self.reads: set[str] = set()  # further messengers that this client reads
        self.unknown = 0  # frames of tasks that nobody here has

    def take(
        self, frames: list[Any], now: float, source: str = "", sender: str = ""
    ) -> list[tuple[Sink, tuple[Any, ...]]]:
        """The reports that follow from the frames, in order.

        `source` is the messenger, "" for the client's own; `sender` the control channel of the worker that wrote them.
        """
        out: list[tuple[Sink, tuple[Any, ...]]] = []
        for id, run, first, records in frames:
            job = self._jobs.get(id)
            if job is None or job.ended:
                self.unknown += 1
                continue
            try:
                job.heard = now
                job.asked = 0.0
                if first == 0:
                    if not self._heard(job, run, records):
                        self._aside(job, records, out)
                elif run == job.run or self._begin(job, run, records, out):
                    if source:
                        self._elsewhere(job, source, first, records, out)
                    else:
                        self._numbered(job, first, records, out, sender)
            except (LookupError, TypeError, ValueError, AttributeError, ProtocolError) as error:
                log.warning("what came for task %s is no event of ours: %s", id, error)
        return out

    def _begin(self, job: RemoteJob, run: bytes, records: list[Any], out: list[Any]) -> bool:
        """A run that is not the one being heard. False: an older one."""
        fenced = job.fenced
        if fenced is not None and run in fenced:
            if records and records[-1][0] in wire.ENDS:
                job.spare = self._end(job, records[-1])
            return False
        if job.run is not None:
            if job.waiting_end is not None:
                job.spare = job.waiting_end[0]
            if fenced is None:
                fenced = job.fenced = set()
            if len(fenced) >= MAX_FENCED:
                fenced.pop()
            fenced.add(job.run)
            if not job.over:
                out.append((job.sink, (job.parcel, REPORT_RETRYING, "the worker that had it was lost", 0.0)))
        job.run, job.next, job.over, job.started = run, 1, False, False
        job.others = job.waiting_end = None
        return True

    def _numbered(self, job: RemoteJob, first: int, records: list[Any], out: list[Any], sender: str) -> None:
        if job.over:
            return
        if first > job.next:
            self._local(job, "gap", (first - job.next,), out)
        elif first < job.next:
            records = records[job.next - first :]
            first = job.next
        job.next = first + len(records)
        if not job.started and records and records[0][0] not in (wire.STARTED, wire.WAITING):
            job.started, job.control = True, sender  # what said so was lost
            self._begun(job)
        events: list[Any] = []
        for record in records:
            kind = record[0]
            if kind == EVENT or kind == PACKED or kind == PROGRESS:
                events.append(record)
                continue
            if events:
                out.append((job.sink, (job.parcel, REPORT_EVENTS, events, _size(events))))
                events = []
            if kind == wire.STARTED:
                job.started = True
                job.control = record[3]
                if len(record) > 4 and not job.parcel.name:
                    job.parcel.name = record[4]
                if len(record) > 5 and record[5]:
                    job.reported = True
                out.append((job.sink, (job.parcel, REPORT_STARTED, record[1], record[2])))
                self._begun(job)
            elif kind in wire.ENDS:
                self._ended(job, record, out)
                return
            elif kind == wire.RETRYING:
                job.over, job.started = True, False  # what is said now is for the run that follows
                out.append((job.sink, (job.parcel, REPORT_RETRYING, record[1], record[2])))
            elif kind == wire.WAITING:
                job.over, job.started = True, False
                out.append((job.sink, (job.parcel, REPORT_WAITING, record[1])))
        if events:
            out.append((job.sink, (job.parcel, REPORT_EVENTS, events, _size(events))))

    def _ended(self, job: RemoteJob, record: list[Any], out: list[Any]) -> None:
        others = job.others or {}
        missing = {name: last for name, last in record[-1] if name in self.reads and others.get(name, 1) <= last}
        end = self._end(job, record)
        if missing:
            job.waiting_end = (end, missing)
            return
        job.ended = True
        out.append((job.sink, end))

    def _elsewhere(self, job: RemoteJob, source: str, first: int, records: list[Any], out: list[Any]) -> None:
        """What a run wrote to another messenger."""
        others = job.others
        if others is None:
            others = job.others = {}
        wanted = others.get(source, 1)
        if first > wanted:
            self._local(job, "gap", (first - wanted,), out)
        elif first < wanted:
            records = records[wanted - first :]
            first = wanted
        others[source] = first + len(records)
        if records:
            out.append((job.sink, (job.parcel, REPORT_EVENTS, records, _size(records))))
        self._release(job, source, out)

    def _release(self, job: RemoteJob, source: str, out: list[Any]) -> None:
        if job.waiting_end is None:
            return
        end, missing = job.waiting_end
        if source in missing and (job.others or {}).get(source, 1) > missing[source]:
            del missing[source]
        if not missing:
            job.waiting_end = None
            job.ended = True
            out.append((job.sink, end))

    def drained(self, source: str, before: set[str]) -> list[tuple[Sink, tuple[Any, ...]]]:
        """A messenger was read to its end: what tasks in `before` still miss of it will not come."""
        out: list[tuple[Sink, tuple[Any, ...]]] = []
        for id in before:
            job = self._jobs.get(id)
            if job is None or job.waiting_end is None or source not in job.waiting_end[1]:
                continue
            last, others = job.waiting_end[1][source], job.others or {}
            self._local(job, "gap", (last + 1 - others.get(source, 1),), out)
            job.others = {**others, source: last + 1}
            self._release(job, source, out)
        return out

    def waiting(self, source: str) -> set[str]:
        """The tasks whose end waits for what comes from this messenger."""
        return {id for id, job in self._jobs.items() if job.waiting_end is not None and source in job.waiting_end[1]}

    @staticmethod
    def _heard(job: RemoteJob, run: bytes, records: list[Any]) -> bool:
        """Whether this write outside of any run is one that was repeated."""
        if not records or records[0][0] in wire.ASIDE:
            return False
        loose = job.loose
        if loose is None:
            loose = job.loose = {}
        if run in loose:
            return True
        if len(loose) >= MAX_LOOSE:
            del loose[next(iter(loose))]
        loose[run] = None
        return False

    def _aside(self, job: RemoteJob, records: list[Any], out: list[Any]) -> None:
        for record in records:
            if record[0] == wire.REFUSED and not job.started:
                job.ended = True
                out.append((job.sink, (job.parcel, REPORT_RAISED, Untrusted(record[1]))))
            elif record[0] == wire.FOLLOWS and job.log is not None and not job.started:
                job.follows = record[1]
            elif record[0] == wire.STARTED:
                self._begins(job, record, out)
            elif record[0] == EVENT or record[0] == PACKED or record[0] == PROGRESS:
                self._outside(job, record, out)
            elif record[0] in wire.ENDS:
                job.ended = True
                out.append((job.sink, self._end(job, record)))
                return

    @staticmethod
    def _begins(job: RemoteJob, record: list[Any], out: list[Any]) -> None:
        """A program outside of any run says that it begins (`revolve emit --start`), perhaps once more."""
        job.reported = True
        if job.started:
            out.append((job.sink, (job.parcel, REPORT_RETRYING, "it was started again", 0.0)))
        job.started = True
        job.parcel.name = job.parcel.name or record[4]
        out.append((job.sink, (job.parcel, REPORT_STARTED, record[1], record[2])))

    @staticmethod
    def _outside(job: RemoteJob, record: list[Any], out: list[Any]) -> None:
        """An event that a program outside of any run says (`revolve emit`): they come in the order of the log."""
        if not job.started:
            job.started = True
            out.append((job.sink, (job.parcel, REPORT_STARTED, "", record[3])))
        out.append((job.sink, (job.parcel, REPORT_EVENTS, [record], _size([record]))))

    @staticmethod
    def _local(job: RemoteJob, name: str, args: tuple[Any, ...], out: list[Any]) -> None:
        out.append((job.sink, (job.parcel, REPORT_EVENTS, [(LOCAL, 0, name, time(), args)], 64)))

    @staticmethod
    def _end(job: RemoteJob, record: list[Any]) -> tuple[Any, ...]:
        kind, parcel = record[0], job.parcel
        if kind == wire.RETURNED:
            return (parcel, REPORT_RETURNED, record[1])
        if kind == wire.SUCCEEDED:
            return (parcel, REPORT_SUCCEEDED, record[1], record[2])
        if kind == wire.FAILED:
            return (parcel, REPORT_FAILED, record[1])
        if kind == wire.CANCELLED:
            return (parcel, REPORT_CANCELLED, record[1])
        return (parcel, REPORT_LOST, unpack_error(record[1]))


def _size(events: list[Any]) -> int:
    """Bytes that the events take, about: what a task's buffers are measured with."""
    size = 0
    for record in events:
        size += 64
        if record[0] == PACKED:
            size += len(record[4])
        elif record[0] == EVENT:
            size += sum([len(arg) if type(arg) is str or type(arg) is bytes else 16 for arg in record[4]])
    return size
