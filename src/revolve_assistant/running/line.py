"""The line on which this process reports what somebody else's program does here: one for each messenger.

    with reporting(id):     Report ─┐
    another thread's        Report ─┼▶ "revolve-reporting" ══ keep, write ══▶ t.<id>      the logs that are watched
                                    │                                       ▶ i.<…>      who asked something
    cancel_requested, receive ◀─────┴─ "revolve-hearing"   ◀═══ read ════════ w.<…>      what watchers say

Made at the first report, gone a second after the last. Code that reports meets no I/O: it is all on these two threads.
A log is kept from its first event on. A process that was killed answers no more on its control channel, which is how
watchers notice. A messenger that is away is tried again, with the same bytes; readers drop what they have.

How an exit of the interpreter meets a block that was not left: an `atexit` function says `lost` for it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import ProviderError, TaskLost, UsageError
from ..pool.threads import OurThread
from ..wire import frames as wire
from ..wire.seal import Keyring, Purpose
from .report import Report, failed, lost

if TYPE_CHECKING:
    from ..messenger import Messenger
    from .hearing import Hearing

log = logging.getLogger("revolve_assistant")

AWAY = 0.5  # seconds that an exit waits for a messenger that did not answer before
LEASE = 60.0  # seconds that a control channel outlives a process that does not renew it, and a log at least
RENEW = 20.0  # seconds between renewals
CAP = 8 << 20  # bytes of a log
GATHER = 0.02  # seconds between two writes
LINGER = 1.0  # seconds that the line stays for whoever reports next
PAUSES = (0.05, 2.0)  # seconds between attempts to reach the messenger: first, most
LEFT = 1000  # reports that have ended and wait to be written
LEFT_BYTES = 32 << 20  # what they take together
FLUSH = 5.0  # seconds that the ends of blocks wait for their last words to be stored; all of one outage together


class Line:
    """One messenger of this process. Not opened before somebody reports."""

    def __init__(self, messenger: Messenger, keys: Keyring, namespace: str, *, owned: bool = True) -> None:
        self.messenger = messenger
        self._owned = owned  # made for this line: closed with it
        self._opened = False
        self.keys = keys
        self.namespace = namespace
        self.control = f"w.{os.urandom(16).hex()}"
        self.reports: dict[tuple[str, bytes], Report] = {}  # by id and run, those that have not ended
        self.users = 0  # reports that are not written to their end; under `_lines_lock`
        self.inherited = False  # by a fork: it is another process's
        self.closing = False
        self.away_since = 0.0  # monotonic seconds since when the messenger does not answer; 0: it does
        self.patience = FLUSH  # seconds that may still be waited for it
        self._ready: deque[Report] = deque()
        self._left: deque[Report] = deque()
        self._answers: list[tuple[str, tuple[Any, ...]]] = []  # (inbox, frame)
        self._urgent = False
        self._sleeping = False
        self._renewed = float("-inf")
        self.renew()
        self._hearing: Hearing | None = None
        self.thread: threading.Thread | None = None

    def renew(self) -> None:
        """Fresh locks: at the start, and in a fork, where another thread may have held them."""
        self.lock = threading.Lock()
        self._bell = threading.Condition(self.lock)

    # --- told by reports, under the lock

    def enlist(self, report: Report) -> None:
        """It has something to say."""
        report.listed = True
        self._ready.append(report)
        if self._sleeping:
            self._sleeping = False
            self._bell.notify()

    def leave(self, report: Report) -> None:
        """It has ended: somebody waits until that is written."""
        self.reports.pop((report.id, report.run), None)
        if not report.listed:
            self.enlist(report)
        self._urgent = True
        self._bell.notify()
        if self.away_since:
            self._left.append(report)

    # --- told by the hearing

    def find(self, task_id: str, run: bytes) -> Report | None:
        """The report that a message is for; without a run, the newest of that id."""
        with self.lock:
            if run:
                return self.reports.get((task_id, run))
            return next((each for each in reversed(self.reports.values()) if each.id == task_id), None)

    def answer(self, inbox: str, report: Report, record: tuple[Any, ...]) -> None:
        with self.lock:
            self._answers.append((inbox, (report.id, report.run, 0, [record])))
            self._urgent = True
            self._bell.notify()

    def missed(self) -> None:
        """The messenger forgot the control channel, and perhaps more: all is kept anew."""
        with self.lock:
            self._renewed = float("-inf")
            self._urgent = True
            self._bell.notify()

    # --- the thread

    def begin(self) -> None:
        """Start the thread. Under `_lines_lock`."""
        self.thread = OurThread(self._run, "revolve-reporting")
        self.thread.start()

    def _run(self) -> None:
        try:
            while not _retire(self):
                try:
                    self._speak()
                except Exception:
                    log.exception("the thread that writes reports failed; it goes on")
                    with self.lock:
                        self._bell.wait(PAUSES[1])
        finally:
            self.closing = True
            if self._hearing is not None:
                self.messenger.wake()
                self._hearing.join(5.0)
            if self._owned:
                self.messenger.close()

    def _speak(self) -> None:
        """Write what there is, wait for more; returns when there was nothing for long."""
        last = monotonic() - GATHER
        while True:
            batch = self._gather(last)
            if batch is None:
                return
            self._write(batch)
            if self._hearing is None and any(not each.loose for each, _, _ in batch.parts):
                self._listen()
            last = monotonic()
            self._settle(batch)

    def _listen(self) -> None:
        from .hearing import Hearing

        hearing = Hearing(self)
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and takes no more threads (Python 3.12)
            hearing.start()
            self._hearing = hearing

    def _gather(self, last: float) -> _Batch | None:
        """What is to be written now; waits for it. None: nobody reports any more."""
        with self.lock:
            while True:
                now = monotonic()
                due = self._renewed + RENEW
                if self._urgent or (self._ready and now >= last + GATHER):
                    break
                if self.reports and now >= due:
                    break
                if self._ready:
                    self._bell.wait(last + GATHER - now)
                    continue
                self._sleeping = True
                woken = self._bell.wait(due - now if self.reports else LINGER)
                self._sleeping = False
                if not woken and not self.reports and not self._ready and not self._urgent:
                    return None
            self._urgent = False
            batch = _Batch()
            batch.renew = now >= due
            batch.answers, self._answers = self._answers, []
            ready, self._ready = self._ready, deque()
            for report in ready:
                run, first, records = report.take()
                report.listed = False
                if report.pending:  # more than one message
                    self.enlist(report)
                    self._urgent = True
                batch.parts.append((report, (report.id, run, first, records), report.ended and not report.pending))
            return batch

    def _write(self, batch: _Batch) -> None:
        """Write until it is stored. What no messenger would ever take is left out."""
        messages: list[tuple[str, bytes]] | None = None
        pause = PAUSES[0]
        while True:
            try:
                if not self._opened:
                    self.messenger.open()
                    self._opened = True
                self._keep(batch)
                if messages is None:
                    messages = self._messages(batch)
                if messages:
                    self.messenger.write(messages)
            except (ProviderError, OSError) as error:
                self._opened = False
                self._away(error)
                batch.renew = True  # what was kept may be gone
                self._drop_left()
                with self.lock:
                    self._bell.wait(pause)
                pause = min(PAUSES[1], pause * 2)
            except UsageError as error:
                log.error("what was reported is lost: %s", error)
                return
            else:
                if self.away_since:
                    log.warning("the messenger of reports answers again after %.1f s", monotonic() - self.away_since)
                    with self.lock:
                        self.away_since = 0.0
                        self._left.clear()
                self.patience = FLUSH
                return

    def _keep(self, batch: _Batch) -> None:
        """Make the logs before anything is written to them, and renew their leases.

        Before its end each is kept for as long as was said from then on; a server that was restarted meanwhile would
        else not take the end.
        """
        asked = monotonic()
        over = {report for report, _, ended in batch.parts if ended and not report.loose}
        with self.lock:
            due = [each for each in self.reports.values() if batch.renew or not each.kept]
        due += [each for each, _, _ in batch.parts if (batch.renew or not each.kept) and each not in due]
        due += [each for each in over if each not in due]
        logs: dict[float, list[str]] = {}
        if any(not each.loose and each not in over for each in due):
            logs[LEASE] = [self.control]
        for each in due:
            seconds = each.history if each.loose or each in over else max(LEASE, each.history)
            logs.setdefault(seconds, []).append(each.channel)
        for seconds, channels in logs.items():
            self.messenger.keep(channels, seconds=seconds, cap=CAP)
        for each in due:
            each.kept = asked
        if batch.renew:
            batch.renew = False
            self._renewed = asked

    def _messages(self, batch: _Batch) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = []
        for report, frame, _ in batch.parts:
            if frame[3]:
                self._seal(report.channel, frame, found)
        for inbox, frame in batch.answers:
            self._seal(inbox, frame, found)
        return found

    def _seal(self, channel: str, frame: tuple[Any, ...], found: list[tuple[str, bytes]]) -> None:
        id, run, first, records = frame
        raw = [msgspec.Raw(each) if type(each) is bytes else each for each in records]
        data = wire.encode(self.control, list(self.keys.fingerprints), [(id, run, first, raw)])
        sealed = self.keys.seal(Purpose.EVENT, f"{self.namespace}/{channel}", data)
        try:
            found += [(channel, piece) for piece in wire.pieces(sealed, self.messenger.traits.max_bytes)]
        except UsageError as error:
            half = len(records) // 2
            if half:
                self._seal(channel, (id, run, first, records[:half]), found)
                other = run if first else os.urandom(8)
                self._seal(channel, (id, other, first + half if first else 0, records[half:]), found)
            elif type(records[0]) is bytes and records[0][1] in wire.ENDS and len(records[0]) > CAP:
                self._seal(channel, (id, run, first, [failed(UsageError(f"the end does not fit: {error}"))]), found)
            else:  # what is missing shows as a gap
                log.warning("an event of %s was left out: %s", id, error)

    def _settle(self, batch: _Batch) -> None:
        over = [report for report, _, ended in batch.parts if ended]
        if over:
            with self.lock:
                wakes = [wake for report in over if not report.stored for wake in report.finish()]
            _left(self, len(over))
            for wake in wakes:
                wake()

    def _away(self, error: Exception) -> None:
        if not self.away_since:
            log.warning("what is reported waits, the program goes on: %s", error)
            with self.lock:
                self.away_since = monotonic()

    def _drop_left(self) -> None:
        """A messenger that never comes back costs no more memory every hour."""
        wakes = []
        gone = 0
        with self.lock:
            size = sum([report.size for report in self._left])
            while len(self._left) > LEFT or size > LEFT_BYTES:
                report = self._left.popleft()
                size -= report.size
                if report in self._ready:
                    self._ready.remove(report)
                    wakes += report.finish()
                    gone += 1
        if gone:
            log.error("the last words of %d reports are lost: the messenger is away for long", gone)
            _left(self, gone)
        for wake in wakes:
            wake()


class _Batch:
    """What is written at once: frames of reports, and whether each is its report's last."""

    __slots__ = ("answers", "parts", "renew")

    def __init__(self) -> None:
        self.parts: list[tuple[Report, tuple[str, bytes, int, list[bytes]], bool]] = []
        self.answers: list[tuple[str, tuple[Any, ...]]] = []
        self.renew = False


# --- the lines of this process

_lines: dict[Any, Line] = {}
_lines_lock: Any = threading.Lock()
_gone = threading.Condition(_lines_lock)  # a line has no users any more
_parents: list[Line] = []  # not freed in a fork: closing what is shared would disturb the parent


def report_on(key: Any, make: Any, id: str, history: float, *, loose: bool = False) -> Report:
    """A new report on the line that `key` names; `make()` gives a line not known yet. No I/O of the messenger."""
    with _lines_lock:
        line = _lines.get(key)
        if line is None:
            line = _lines[key] = make()
        line.users += 1
        report = Report(line, id, history, loose=loose)
        with line.lock:
            line.reports[id, report.run] = report
        if line.thread is None:
            line.begin()
    return report


def _left(line: Line, count: int) -> None:
    with _gone:
        line.users -= count
        if not line.users:
            _gone.notify_all()


def _retire(line: Line) -> bool:
    """Whether the line is not used any more, and then nobody gets it any more."""
    with _lines_lock:
        if line.users:
            return False
        for key in [key for key, each in _lines.items() if each is line]:
            del _lines[key]
        return True


@atexit.register
def _at_exit() -> None:
    """The interpreter ends: say so for the blocks that were not left, and have all last words written."""
    with _lines_lock:
        lines = list(dict.fromkeys(_lines.values()))
    unsaid = []
    for line in lines:
        with line.lock:
            unsaid += list(line.reports.values())
    for report in unsaid:
        report.end(None if report.loose else lost(TaskLost(f"{report.id}: its interpreter ended, and said no end")))
    patience = max((AWAY if line.away_since else line.patience for line in lines), default=0.0)
    with _gone:
        _gone.wait_for(lambda: not any(line.users for line in lines), patience)


def _in_fork() -> None:
    global _gone  # noqa: PLW0603 - another thread's
    _lines_lock._at_fork_reinit()
    _gone = threading.Condition(_lines_lock)
    for line in _lines.values():
        line.inherited = True
        line.renew()
        _parents.append(line)
    _lines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_fork)
