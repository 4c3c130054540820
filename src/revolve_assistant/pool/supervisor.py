"""The process engine: keeps children alive, feeds them, hears them, and stops what must be stopped.

     submit ──▶ an idle child at once
           └──▶ lanes (by priority) ──▶ refill: as many as the child will finish within AHEAD seconds
     pump ◀── frames of records ── children;  and a look at each busy child's board now and then (`watch`)

How far ahead a child is fed follows from measured durations: nothing is queued behind a callable that was never
seen or is known to be slow; and when one turns out slow, what was queued behind it is taken back (`board`).
So one slow task never holds back fast ones, and nobody but the task that runs can die with a child.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, ClassVar

from ..engine import Engine, EngineState, Parcel, Sink
from ..errors import TaskLost, Unreachable, UsageError
from ..traits import Traits
from . import board as at
from .feeder import Feeder
from .jobs import ENDED, NOTHING, SENT, WAITING, Job
from .ladder import Ladder, check_deadlines
from .process import ChildProcess, child_environment, start_child
from .pump import READ, WRITE, Pump
from .reports import (
    CANCELLED,
    CREDIT,
    ELSEWHERE,
    ERROR,
    EVENT,
    ITEM_RESULT,
    PACKED,
    PROGRESS,
    READY,
    REPORT_ELSEWHERE,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_ITEMS,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETURNED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_WANT,
    RESULT,
    RETURNED,
    SEND,
    SETUP_FAILED,
    SKIPPED,
    STARTED,
    STOP,
    WANT,
)
from .threads import making
from .vitals import default_memory_limit, parse_memory, usable_cpus
from .watch import Watch

if TYPE_CHECKING:
    from ..wire.share import Share

log = logging.getLogger("revolve_assistant")

LINGER = 5.0  # seconds a child has to end by itself when asked
CONCURRENCY = 100  # coroutines at once in one child


class Supervisor(Engine):
    """Runs tasks in child processes of this machine. Thread-safe; nothing starts before the first `submit`.

    `max_workers` children at most (None: the CPUs this process may use), started when there is work for them;
    `memory_limit` is the resident memory of a child in bytes, or text as "2GiB" (None: 80% of the control group's
    limit divided by the children, unlimited where there is none).
    """

    traits: ClassVar[Traits] = Traits(
        summary="worker processes on this machine",
        local=True,
        cancels=True,
        kills=True,
        priorities=True,
    )

    def __init__(
        self,
        *,
        max_workers: int | None = None,
        initializer: bytes | None = None,
        max_tasks_per_child: int | None = None,
        memory_limit: int | str | None = None,
        concurrency: int = CONCURRENCY,
        ladder: Sequence[float] | None = None,
    ) -> None:
        if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
            raise UsageError(f"max_workers={max_workers!r} must be a whole number")
        if max_workers is not None and max_workers <= 0:
            raise UsageError(f"max_workers={max_workers} must be greater than 0")
        if max_tasks_per_child is not None and (not isinstance(max_tasks_per_child, int) or max_tasks_per_child < 1):
            raise UsageError(f"max_tasks_per_child={max_tasks_per_child!r} must be a whole number >= 1")
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise UsageError(f"concurrency={concurrency!r} must be a whole number >= 1 (coroutines at once in a child)")
        self.withheld: tuple[str, ...] = ()  # variables of the environment that children do not get
        self.max_workers = max_workers or usable_cpus()
        self.initializer = initializer
        self.shares: tuple[Share[Any], ...] = ()  # that the initializer needs
        self.max_tasks_per_child = max_tasks_per_child
        self.concurrency = concurrency
        self.memory_limit = (
            parse_memory(memory_limit) if memory_limit is not None else default_memory_limit(self.max_workers)
        )
        self.deadlines = check_deadlines(ladder)
        self.closing = False
        self.begin()

    def begin(self) -> None:
        """The state of a supervisor that has nothing to do yet, in a process of its own."""
        self.lock = threading.RLock()
        self.children: list[ChildProcess] = []
        self.pump = Pump("revolve-pump")
        self.ladder = Ladder(self, self.deadlines)
        self.watch = Watch(self)
        self.feeder = self.make_feeder()
        self._growing = True  # more children may be wanted
        self._open: dict[str, Job] = {}  # jobs by id that have not ended
        self.reports: list[tuple[Sink, Any]] = []
        self._delivering = threading.Lock()
        self._starting = {"plain": 0, "async": 0}

    def make_feeder(self) -> Feeder:
        return Feeder(self)

    # --- the contract

    def open(self) -> None:
        pass

    def wake(self) -> None:
        self.pump.poke()

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        if self.closing:
            raise Unreachable("the engine is closed")
        coroutines = False
        for parcel in parcels:
            job = parcel._ = Job(parcel, sink)
            self._open[parcel.id] = job
            self.feeder.inbox.append(job)
            if parcel.work.function.kind not in self.feeder.plain:
                coroutines = True
        # Without the lock, so that a caller in a loop does not wait for the pump: who makes a child idle looks into
        # the inbox afterwards, so one of the two sees the other.
        if self.feeder.idle or self._growing or coroutines or self.closing:
            try:
                with self.lock:
                    self.feeder.take_in()
                    if self.feeder.waiting:
                        self.want_children()
            except BaseException:  # a Ctrl-C in our midst: what was not sent after all goes elsewhere
                self.pump.soon(self.watch.recall_all)
                raise
            if self.reports:
                self.deliver()

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        found: dict[str, EngineState] = {}
        with self.lock:
            for id in ids:
                job = self._open.get(id)
                found[id] = "unknown" if job is None else "running" if self.is_running(job) else "queued"
        return found

    def cancel(self, task_id: str) -> bool:
        with self.lock:
            self.feeder.take_in()
            job = self._open.get(task_id)
            if job is None:
                return False
            self.ladder.stop(job, "cancel")
        self.deliver()
        return True

    def close(self) -> None:
        """Stop: waiting tasks are reported lost, running ones killed, children ended (5 s, then killed)."""
        with self.lock:
            if self.closing:
                return
            self.closing = True
            self.feeder.take_in()
            waiting = [job for lanes in self.feeder.lanes.values() for job in lanes.clear()]
            for job in waiting:
                self.end(job, (job.parcel, REPORT_LOST, TaskLost("the engine was closed before the task started")))
            children = list(self.children)
            for child in children:
                if child.jobs:
                    for job in child.jobs.values():
                        job.reason = "close"
                    child.signal_group(signal.SIGKILL)
                else:
                    self.retire(child)
        self.deliver()
        deadline = monotonic() + LINGER
        if not self.pump.inside:
            for child in children:
                if not child.dead and not child.wait(max(0.0, deadline - monotonic())):
                    child.signal_group(signal.SIGKILL)
                    child.wait(LINGER)
        self.pump.stop()
        with self.lock:
            for child in list(self.children):
                self.watch.bury(child)
            self.feeder.close()
            self.shares = ()
        self.deliver()

    def after_fork(self) -> None:
        """In a forked child: the children are the parent's. Close our copies of what leads to them, start afresh."""
        self._inherited = vars(self).copy()  # not freed: that would touch, and so copy, what is shared with the parent
        for child in self.children:
            child.popen.returncode = 0  # so that nobody here waits for it
            child.close()
        self.feeder.close()
        self.pump.after_fork()
        self.begin()

    # --- what the client asks of a running task

    def is_running(self, job: Job) -> bool:
        child = job.child
        if child is None or child.dead:
            return False
        if child.kind == "async":
            return job.started > 0
        return child.running is job

    def send(self, parcel: Parcel, name: str, packed: Any) -> bool:
        """Hand a message to a task, kept until it starts. False: it has ended."""
        with self.lock:
            job: Job | None = parcel._
            if job is None or job.state == ENDED:
                return False
            if not job.started:  # kept until it has begun: it may be taken back and go to another child
                if job.messages is None:
                    job.messages = []
                job.messages.append((name, packed))
                del job.messages[:-1000]
            if job.child is not None:
                self.tell(job.child, (SEND, job.seq, name, packed))
            return True

    def grant(self, parcel: Parcel) -> None:
        """Say that the events before the last WANT were taken."""
        with self.lock:
            job: Job | None = parcel._
            if job is not None and job.child is not None and job.state == SENT:
                self.tell(job.child, (CREDIT, job.seq))

    def withdraw(self, ids: Iterable[str]) -> list[str]:
        """Take back, without a report, those of these tasks that no child was given; which they were."""
        found = []
        with self.lock:
            self.feeder.take_in()
            for id in ids:
                job = self._open.get(id)
                if job is not None and job.state == WAITING and job.child is None:
                    self.feeder.drop(job)
                    del self._open[id]
                    job.parcel = NOTHING
                    found.append(id)
        return found

    def trim(self, task_id: str) -> None:
        """Let a chunk end after its running item."""
        with self.lock:
            self.feeder.take_in()
            job = self._open.get(task_id)
            if job is None:
                return
            if job.child is None or not self.is_running(job):
                self.ladder.stop(job, "cancel")
            else:
                job.child.words[at.STOP_AT] = job.child.words[at.ITEM] + 1
        self.deliver()

    def stack(self, parcel: Parcel) -> str:
        """The live stacks of the child that runs the task. Raises `LookupError` when none does."""
        from .stacks import of_child

        return of_child(self, parcel)

    def tell(self, child: ChildProcess, message: tuple[Any, ...], fd: int = -1) -> None:
        if child.dead:
            if fd >= 0:
                os.close(fd)
        elif not child.tell(message, fd):
            self.pump.change(child.control.fileno(), READ | WRITE)

    # --- children

    def want_children(self) -> None:
        """Start what the waiting tasks need, on the pump's thread."""
        if self.feeder.inbox:
            self.feeder.take_in()
        plain = [child for child in self.children if child.kind == "plain" and not child.stopping]
        starting = sum(not child.ready for child in plain)
        lanes, begun = self.feeder.lanes, self._starting
        wanted = min(self.max_workers - len(plain), lanes["plain"].count - starting) - begun["plain"]
        grown = [child for child in self.children if child.kind == "async" and not child.stopping]
        limit = self.max_tasks_per_child or float("inf")
        full = all(each.ready and (len(each.jobs) >= self.concurrency or each.given >= limit) for each in grown)
        more = lanes["async"].count and full and len(grown) < self.max_workers and not begun["async"]
        self._growing = len(plain) < self.max_workers or bool(grown) or bool(lanes["async"].count)
        if wanted <= 0 and not more:
            return
        try:
            self.pump.start()
        except OSError as error:
            self._cannot_start(error, [*lanes["plain"].clear(), *lanes["async"].clear()])
            return
        for kind in ["plain"] * wanted + ["async"] * bool(more):
            begun[kind] += 1
            self.pump.soon(partial(self._start, kind))

    def _cannot_start(self, error: OSError, jobs: list[Job]) -> None:
        """Nothing can be started (no descriptors, no processes left): tasks fail of it, none waits for ever."""
        for job in jobs:
            self.end(job, (job.parcel, REPORT_RAISED, Unreachable(f"cannot start a child process: {error}")))

    def expect(self) -> None:
        """A task is about to come: start the first child while it is being packed."""
        with self.lock:
            if not self.children and not self._starting["plain"] and not self.closing:
                try:
                    self.pump.start()
                except OSError:
                    return  # the task itself will say so
                self._starting["plain"] += 1
                self.pump.soon(lambda: self._start("plain", True))

    def grow(self) -> None:
        """A child is gone: `submit` looks again whether one is wanted."""
        self._growing = True

    def _start(self, kind: str, expected: bool = False) -> None:
        with self.lock:
            self._starting[kind] -= 1
            if self.closing or not (expected or self.feeder.lanes[kind].count):
                return
            try:
                with making:
                    child = start_child(
                        kind,
                        child_environment(max(1, usable_cpus() // self.max_workers), self.withheld),
                        {
                            "path": [str(each) for each in sys.path],
                            "argv": sys.argv,
                            "initializer": self.initializer,
                            "shares": [each.key for share in self.shares for each in share.family()],
                            "kind": kind,
                        },
                    )
                    self.adopt(child)
            except OSError as error:
                log.error("cannot start a child process: %s", error)
                if not self.children:
                    job = self.feeder.lanes[kind].pop()
                    if job is not None:
                        self._cannot_start(error, [job])
                        self.want_children()
            else:
                try:
                    self.feeder.give_shares(child, self.shares)
                except OSError as error:
                    log.error("cannot share objects with a child process: %s", error)
                    child.kill()
        self.deliver()

    def adopt(self, child: ChildProcess) -> None:
        """From now on the pump hears the child."""
        self.children.append(child)
        self.pump.watch(child.tasks.fileno(), READ if not child.out else READ | WRITE, listener(self, child))
        self.pump.watch(child.control.fileno(), READ, lambda _mask: self._hear_control(child))
        if child.pidfd >= 0:
            self.pump.watch(child.pidfd, READ, lambda _mask: self.watch.gone(child))

    def retire(self, child: ChildProcess) -> None:
        """Ask a child without tasks to end."""
        if child.retired:
            return
        child.retired = True
        child.stopping = True
        self._growing = True
        if child in self.feeder.idle:
            self.feeder.idle.remove(child)
        if not child.write([(STOP,)]):
            self.pump.change(child.tasks.fileno(), READ | WRITE)
        child.farewell = self.pump.at(monotonic() + LINGER, child.kill)

    # --- hearing

    def hear(self, child: ChildProcess, mask: int) -> None:
        """The task socket can be read or written."""
        closed = False
        with self.lock:
            if child.dead:
                return
            if mask & WRITE and child.write_more():
                self.pump.change(child.tasks.fileno(), READ)
            if mask & ~WRITE:
                records, size, closed = child.read()
                if records:
                    child.heard = monotonic()
                    self.take(child, records, size)
                if child.nonsense:
                    self.watch.give_up(child, "it sent what is no record")
                if closed:
                    self.pump.forget(child.tasks.fileno())
                    if child.pidfd < 0 or not child.wait(0):
                        # exec'd, closed its sockets, or is about to exit: give it a moment, then make sure
                        self.pump.at(monotonic() + 0.2, child.kill)
                        if child.pidfd < 0:
                            self.pump.at(monotonic() + 0.5, lambda: self.watch.gone(child))
                elif child.kind == "plain":
                    self.feeder.refill(child)
                else:
                    self.feeder.refill_async()
        self.deliver()

    def _hear_control(self, child: ChildProcess) -> None:
        with self.lock:
            if not child.dead:
                if child.control_out and child.tell_more():
                    self.pump.change(child.control.fileno(), READ)
                if not child.read_control():
                    self.pump.forget(child.control.fileno())

    def take(self, child: ChildProcess, records: list[list[Any]], size: int) -> None:
        """Turn a child's records into reports."""
        jobs, out = child.jobs, self.reports
        events: list[list[Any]] = []
        speaker: Job | None = None
        share = size // len(records) + 1
        now = monotonic()
        items: list[list[Any]] = []
        for record in records:
            kind = record[0]
            if kind >= ITEM_RESULT:
                items.append(record)
                continue
            if items:
                self._take_items(jobs, items)
                items = []
            if kind == EVENT or kind == PACKED or kind == PROGRESS:
                job = jobs.get(record[1])
                if job is None:
                    continue
                if job is not speaker:
                    if speaker is not None:
                        out.append((speaker.sink, (speaker.parcel, REPORT_EVENTS, events, share * len(events))))
                    if not job.started:
                        self.announce(child, job)
                    speaker, events = job, []
                    job.heard = now
                events.append(record)
                job.last_event = record[2]
                continue
            if speaker is not None:
                out.append((speaker.sink, (speaker.parcel, REPORT_EVENTS, events, share * len(events))))
                speaker, events = None, []
            if kind == RETURNED:
                job = jobs.pop(record[1], None)
                if job is not None:
                    self.feeder.measure(child, job, record[2])
                    if job.parcel.chunk:
                        self.end(job, (job.parcel, REPORT_SUCCEEDED, None, record[2] * 1e-9))
                    else:
                        self.end(job, (job.parcel, REPORT_RETURNED, record[3]))
            elif kind == RESULT:
                job = jobs.pop(record[1], None)
                if job is None:
                    continue
                self.feeder.measure(child, job, record[2])
                buffers = None
                if record[4]:
                    child.read_control()
                    buffers = child.received.pop(record[1], None)
                payload = record[3]
                if buffers and not payload:
                    payload = buffers.pop(0)
                self.end(job, (job.parcel, REPORT_SUCCEEDED, payload, buffers))
            elif kind == ERROR:
                job = jobs.pop(record[1], None)
                if job is not None:
                    self.feeder.measure(child, job, record[2])
                    if job.verdict is not None or job.rung in ("SIGTERM", "SIGKILL"):
                        self.end(job, self.ladder.ended(job, job.rung))
                    else:
                        self.end(job, (job.parcel, REPORT_FAILED, record[3], record[4]))
            elif kind == CANCELLED:
                job = jobs.pop(record[1], None)
                if job is not None:
                    self.feeder.measure(child, job, record[2])
                    self.end(job, self.ladder.ended(job, record[3]))
            elif kind == SKIPPED:
                job = jobs.pop(record[1], None)
                if job is not None:  # the supervisor had seen it begin before it was skipped
                    self.feeder.again([job])
            elif kind == ELSEWHERE:
                job = jobs.get(record[1])
                if job is not None:
                    if not job.started:
                        self.announce(child, job)
                    job.heard = now
                    out.append((job.sink, (job.parcel, REPORT_ELSEWHERE, record[2], record[3])))
            elif kind == STARTED:
                job = jobs.get(record[1])
                if job is not None:
                    self.announce(child, job, record[2])
            elif kind == WANT:
                job = jobs.get(record[1])
                if job is not None:
                    out.append((job.sink, (job.parcel, REPORT_WANT)))
            elif kind == READY:
                child.ready = True
                self.watch.came_up()
            elif kind == SETUP_FAILED:
                child.setup_error = record[1]
        if speaker is not None:
            out.append((speaker.sink, (speaker.parcel, REPORT_EVENTS, events, share * len(events))))
        if items:
            self._take_items(jobs, items)
        if child.check is None and jobs:
            self.watch.look_at(child)

    def _take_items(self, jobs: dict[int, Job], records: list[list[Any]]) -> None:
        """Items of chunks that ended, handed on as one report for each chunk."""
        while records:
            seq = records[0][1]
            mine = records if records[-1][1] == seq else [record for record in records if record[1] == seq]
            job = jobs.get(seq)
            if job is not None:
                self.reports.append((job.sink, (job.parcel, REPORT_ITEMS, mine)))
            records = [] if mine is records else [record for record in records if record[1] != seq]

    def announce(self, child: ChildProcess, job: Job, started: int = 0) -> None:
        """Report that the job started, and start its clocks."""
        if job.started:
            return
        now = monotonic()
        if not started and child.words[at.RUNNING] == job.seq:
            started = child.words[at.STARTED]
        job.messages = None
        job.started = job.heard = min(now, started * 1e-9) if started else now
        self.reports.append((job.sink, (job.parcel, REPORT_STARTED, child.name, time() - (now - job.started))))
        self.ladder.watch(job)

    def end(self, job: Job, report: tuple[Any, ...]) -> None:
        """The job is over: report it once, stop its clocks."""
        if job.state == ENDED:
            return
        job.state = ENDED
        self._open.pop(job.parcel.id, None)
        if job.parcel.options is not None or job.reason:
            self.ladder.forget(job)
        self.reports.append((job.sink, report))

    def deliver(self) -> None:
        """Hand the gathered reports to their sinks, in order, outside the lock.

        One thread at a time; another one that comes meanwhile leaves its reports to that one.
        """
        while self.reports:
            if not self._delivering.acquire(blocking=False):
                return
            try:
                with self.lock:
                    reports, self.reports = self.reports, []
                batch: list[Any] = []
                last: Sink | None = None
                for sink, report in reports:
                    if sink is not last:
                        if last is not None:
                            last.deliver(batch)
                        batch, last = [], sink
                    batch.append(report)
                if last is not None:
                    last.deliver(batch)
            finally:
                self._delivering.release()


def listener(supervisor: Supervisor, child: ChildProcess) -> Callable[[int], None]:
    """The pump's call for a child's task socket."""
    return lambda mask: supervisor.hear(child, mask)
