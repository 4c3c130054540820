"""A task that this worker holds: its lease, its run, and what of it was not written yet."""

from __future__ import annotations

import logging
from time import time
from typing import TYPE_CHECKING, Any

from ..caller.options import delay_of
from ..engine import Lease, Outcome, Parcel
from ..errors import NotCarriable, TaskLost
from ..pool.reports import (
    NOT_SET_UP,
    REPORT_CANCELLED,
    REPORT_ELSEWHERE,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETURNED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_WANT,
    UNKNOWN,
    decode,
)
from ..wire import frames as wire
from ..wire.carry import ATOMS, pack
from ..wire.remote import headline, pack_error
from .admission import Unimportable

if TYPE_CHECKING:
    from ..wire.envelope import Envelope
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

DONE = Outcome()
NEXT_SETUP = 5.0  # seconds until a task is offered again whose child could not be set up


class Stream:
    """What a task writes to one further messenger."""

    __slots__ = ("next", "records", "size")

    def __init__(self) -> None:
        self.next = 1
        self.records: list[Any] = []
        self.size = 0


class Held:
    """One lease being run; owner of its parcel. Changed under the speaker's lock."""

    __slots__ = (
        "asides",
        "began",
        "coroutine",
        "elsewhere",
        "ended",
        "failure",
        "envelope",
        "id",
        "inbox",
        "lease",
        "listed",
        "log",
        "next",
        "outcome",
        "parcel",
        "progress",
        "records",
        "releasing",
        "run",
        "since",
        "size",
        "started",
        "verdict",
        "wants",
        "worker",
    )

    def __init__(self, worker: Worker, lease: Lease, inbox: str, envelope: Envelope | None) -> None:
        self.worker = worker
        self.lease = lease
        self.id = lease.id
        self.coroutine = False  # it runs among others in one child
        self.inbox = inbox
        self.envelope = envelope
        self.parcel: Parcel | None = None
        self.progress: Any = None  # its newest record of that; kept by `monitor`
        self.run = next(worker.runs)
        self.next = 1  # number of the first record that was not written yet
        self.records: list[Any] = []
        self.asides: list[tuple[str, Any]] = []  # (inbox, record): what belongs to no run
        self.log = wire.log_of(lease.id) if envelope is not None and envelope.history else ""
        self.elsewhere: dict[str, Stream] | None = None  # by the address of a messenger
        self.size = 0  # bytes of the records, about
        self.listed = False  # the speaker knows that there is something
        self.started = False
        self.began = 0.0  # Unix seconds, as it said; kept by `lifecycle`
        self.verdict: BaseException | None = None  # what its child could not tell: it was killed
        self.failure = ""  # of an exposed function, in one line
        self.since = 0.0  # when it was taken, monotonic seconds
        self.ended = False
        self.releasing = False  # the worker shuts down: it goes back to the queue
        self.outcome: Outcome | None = None
        self.wants = False  # its child asks for credit

    # --- reports of the local engine

    def take(self, report: tuple[Any, ...]) -> None:
        """Note what a report says. Under the speaker's lock."""
        if self.ended:
            return
        kind = report[1]
        if report[-1] is NOT_SET_UP:
            self._not_set_up(report[2])
        elif kind == REPORT_EVENTS:
            if not self.started:
                self._start(self.worker.name, time())
            self.records += report[2]
            self.size += report[3]
        elif kind == REPORT_RETURNED:
            self._returned(report[2])
        elif kind == REPORT_SUCCEEDED:
            payload, buffers = report[2], report[3]
            whole = bytes(payload)
            beside = [bytes(each) for each in buffers or ()]
            self._end((wire.SUCCEEDED, whole, beside, self._written()), DONE, len(whole) + sum(map(len, beside)))
        elif kind == REPORT_STARTED:
            self._start(report[2], report[3])
        elif kind == REPORT_WANT:
            self.wants = True
        elif kind == REPORT_ELSEWHERE:
            self._write_elsewhere(report[2], report[3])
        elif kind == REPORT_FAILED:
            self._failed(report[2], report[3])
        elif kind == REPORT_RAISED:
            self._raised(report[2])
        elif kind == REPORT_CANCELLED:
            if self.releasing:
                self.give_back("the worker shuts down")
            else:
                self._end((wire.CANCELLED, report[2], self._written()), DONE)
        elif kind == REPORT_LOST:
            self._died(report[2])

    def _write_elsewhere(self, address: str, packed: bytes) -> None:
        record = decode(packed)
        if self.envelope is None or address not in self.envelope.reads:
            self.records.append(record)  # the caller reads it with all the rest
            self.size += len(packed)
            return
        if self.elsewhere is None:
            self.elsewhere = {}
        stream = self.elsewhere.get(address)
        if stream is None:
            stream = self.elsewhere[address] = Stream()
        stream.records.append(record)
        stream.size += len(packed)

    def _written(self) -> list[list[Any]]:
        """(messenger, last number) of each that the task wrote to."""
        found = (self.elsewhere or {}).items()
        return [[address, stream.next + len(stream.records) - 1] for address, stream in found]

    def _start(self, worker: str, when: float) -> None:
        if not self.started:
            self.started = True
            name = self.envelope.name if self.envelope is not None else ""
            self.records.append((wire.STARTED, worker, when, self.worker.channel, name))

    def _end(self, record: tuple[Any, ...], outcome: Outcome, size: int = 0) -> None:
        if not self.started and record[0] != wire.WAITING:
            self._start(self.worker.name, time())
        self.records.append(record)
        self.size += size
        if (record[0] == wire.FAILED or record[0] == wire.LOST) and outcome is DONE and self.worker.buries:
            outcome = Outcome("bury", reason=headline(record[1])[:500])  # for whoever wants to look, or try again
        self.outcome = outcome
        self.ended = True

    def _returned(self, value: Any) -> None:
        if _plain(value):
            self._end(
                (wire.RETURNED, value, self._written()), DONE, len(value) if isinstance(value, (str, bytes)) else 0
            )
            return
        try:
            payload, buffers = pack(value, "result")
        except NotCarriable as error:
            self._end((wire.FAILED, pack_error(error), self._written()), DONE)
            return
        beside = [bytes(each.raw()) for each in buffers or ()]
        self._end((wire.SUCCEEDED, payload, beside, self._written()), DONE, len(payload) + sum(map(len, beside)))

    def _failed(self, packed: bytes, again: float | None) -> None:
        if again == UNKNOWN:
            self.unknown(headline(packed))
        elif self.releasing:  # interrupted by us: whatever it made of that is no failure of its own
            self.give_back("the worker shuts down")
        elif again is not None:
            self._again(headline(packed), again)
        else:
            self._end((wire.FAILED, packed, self._written()), DONE, len(packed))

    def _raised(self, error: BaseException) -> None:
        if isinstance(error, Unimportable):
            self.unknown(str(error))
            return
        if self.releasing:
            self.give_back("the worker shuts down")
            return
        delay = self._delay(error)
        if not self.worker.live or self.worker.engine.traits.kills:  # else its thread has told
            self.verdict = error
        if delay is not None:
            self._again(f"{type(error).__name__}: {error}", delay)
        else:
            packed = pack_error(error)
            self._end((wire.FAILED, packed, self._written()), DONE, len(packed))

    def _died(self, error: BaseException) -> None:
        """Its child is gone. It runs again, but not for ever: what kills every child is buried."""
        if self.releasing:
            self.give_back("the worker shuts down")
            return
        text = f"{type(error).__name__}: {error}"
        self.verdict = error
        delay = self._delay(error)
        if delay is None and self.lease.deliveries < self.worker.deaths:
            delay = 0.0
        if delay is not None:
            self._again(text, delay)
        elif self.worker.deaths == 1:
            packed = pack_error(error)
            self._end((wire.LOST, packed, self._written()), DONE, len(packed))
        else:
            error.add_note(f"{self.lease.deliveries} children died of it: it is buried")
            packed = pack_error(error)
            self._end((wire.FAILED, packed, self._written()), Outcome("bury", reason=text), len(packed))

    def _not_set_up(self, error: BaseException) -> None:
        """No child could be made for it: that is its worker's trouble, not its own."""
        why = f"{type(error).__name__}: {error}"
        log.error("task %s goes back: this worker cannot set up a child: %s", self.id, why)
        self._end((wire.WAITING, f"{self.worker.name} cannot set up a child: {why}"),
                  Outcome("release", NEXT_SETUP, counted=False, reason=why))  # fmt: skip

    def worn_out(self) -> None:
        """It was handed out too often without ever coming to an end: whatever takes its workers along is in it."""
        times = self.lease.deliveries - 1
        error = TaskLost(f"it was handed out {times} times and never came to an end: its workers were lost with it")
        self._end((wire.FAILED, pack_error(error), []), Outcome("bury", reason=str(error)))

    def _delay(self, error: BaseException) -> float | None:
        """Seconds until another attempt, None: there is none. Decided here where no child can say it any more."""
        terms = self.envelope.terms if self.envelope is not None else None
        if terms is None or terms.retry is None:
            return None
        retry = terms.retry if self.worker.live else [*terms.retry[:4], None]  # a supervisor never unpickles
        return delay_of(retry, self.lease.deliveries, error)

    def _again(self, reason: str, delay: float) -> None:
        self._end((wire.RETRYING, reason, delay), Outcome("release", delay))

    def give_back(self, reason: str) -> None:
        """Let somebody else run it, from the start; it does not count. The caller hears of it only if it had begun."""
        if self.ended:
            return
        if self.started:
            self.records.append((wire.RETRYING, reason, 0.0))
        self.outcome = Outcome("release", counted=False, reason=reason)
        self.ended = True

    def unknown(self, why: str) -> None:
        """This worker cannot import the function: another one may, after an upgrade; but not for ever."""
        delay = self.worker.unknown.delay(self.id)
        name = self.envelope.name if self.envelope is not None else "?"
        if delay is None:
            from ..errors import UnknownTask

            text = f"no worker could import {name} for {self.worker.unknown.after:g} s: {why}"
            self._end((wire.FAILED, pack_error(UnknownTask(text)), []), DONE)
            return
        log.warning("task %s waits: %s cannot be imported here: %s", self.id, name, why)
        self._end((wire.WAITING, f"{name} cannot be imported by {self.worker.name}: {why}"),
                  Outcome("release", delay, counted=False, reason=why))  # fmt: skip


def _plain(value: Any) -> bool:
    """Whether msgpack gives the value back as it is."""
    kind = type(value)
    if kind not in ATOMS:
        return False
    if kind is int:
        return bool(-(1 << 63) <= value < 1 << 64)
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # lone surrogates
            return False
    return True
