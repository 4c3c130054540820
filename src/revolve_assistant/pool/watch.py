"""Looks after children: reads their boards, takes tasks back, watches memory and health, buries the dead."""

from __future__ import annotations

import signal
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import TaskLost
from ..wire.remote import unpack_error
from . import board as at
from .jobs import Job
from .process import ChildProcess
from .reports import NOT_SET_UP, REPORT_LOST, REPORT_RAISED, REPORT_TRIMMED
from .threads import making
from .vitals import describe_exit, is_stopped, oom_kills, peak, resident

if TYPE_CHECKING:
    from .supervisor import Supervisor

LOOK = 0.002  # seconds from a child's last sign to the look at its board
SLOW = 0.002  # seconds after which what waits behind a running task is taken back
TICK = 0.5  # seconds between two looks at memory and health, while tasks run
NEAR = 0.05  # the same, for memory, while a child uses more than half of what it may
STILLBORN = 10
STOPPED_TICKS = 4  # ticks after which a child that was stopped (SIGSTOP) is given up


class Watch:
    """Part of the supervisor; works under its lock, on the pump's thread."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._ticking = False
        self._oom_kills = 0
        self._stillborn = 0  # children in a row that died before they were ready
        self.came = self.deaths = 0  # children that came up, and that ended without being asked to
        self._peaks: dict[int, int] = {}  # pid -> resident bytes seen, at most

    def came_up(self) -> None:
        """A child is ready."""
        self._stillborn = 0
        self.came += 1

    # --- looking

    def look_at(self, child: ChildProcess) -> None:
        """Look at the child's board in a moment."""
        child.check = self.supervisor.pump.at(monotonic() + LOOK, lambda: self._look(child))

    def _look(self, child: ChildProcess) -> None:
        supervisor = self.supervisor
        with supervisor.lock:
            child.check = None
            if child.dead:
                return
            again = False
            records, size = child.peek()
            if records:
                again = True
                supervisor.take(child, records, size)
            if child.kind == "plain" and child.jobs:
                self._look_for_unsent(child)
            if child.kind == "plain" and child.jobs:
                again = self._look_at_running(child) or again
            # a record held just after the last frame may be younger than this look
            again = again or monotonic() < child.heard + LOOK
            if again and child.check is None:
                self.look_at(child)
        supervisor.deliver()

    def _look_for_unsent(self, child: ChildProcess) -> None:
        """Tasks run in their order, so one that was passed over and said nothing never got to the child.

        That happens when a signal handler raises in the thread that was about to send it.
        """
        words = child.words
        begun = words[at.RUNNING]
        if next(iter(child.jobs)) < begun and words[at.FRAME] == child.frames and words[at.OUT] >> 32 == child.peeked:
            unsent = [job for seq, job in child.jobs.items() if seq < begun]
            for job in unsent:
                del child.jobs[job.seq]
            self.supervisor.feeder.again(unsent)
            child.functions.clear()  # one that was to be sent with them may be missing too: all are sent again
            child.function_bytes = 0
            if not child.jobs:
                self.supervisor.feeder.refill(child)

    def _look_at_running(self, child: ChildProcess) -> bool:
        """Announce what runs; take back what waits behind a slow task. True: look again soon."""
        running = child.running
        if running is None:
            return True
        if not running.started:
            self.supervisor.announce(child, running)
        if running.parcel.chunk:
            if self.supervisor.feeder.idle and monotonic() - child.words[at.STARTED] * 1e-9 > SLOW:
                self._trim(child, running)
            return child.words[at.STOP_AT] == at.NEVER
        if len(child.jobs) == 1:
            return False
        if not child.blocked and monotonic() - child.words[at.STARTED] * 1e-9 > SLOW:
            self.recall(child)
        return not child.blocked

    def _trim(self, child: ChildProcess, job: Job) -> None:
        """Take back the items behind a slow one of a chunk, by the same reasoning as `recall`."""
        if child.words[at.STOP_AT] != at.NEVER:
            return
        first = child.words[at.ITEM] + 1
        child.words[at.STOP_AT] = first

        def settled() -> None:
            with self.supervisor.lock:
                # the child may have begun one more before it saw the mark: then it says so by its result
                if not child.dead and child.running is job and child.words[at.ITEM] < first:
                    self.supervisor.reports.append((job.sink, (job.parcel, REPORT_TRIMMED, first)))
            self.supervisor.deliver()

        self.supervisor.pump.at(monotonic() + at.SETTLE, settled)

    def recall(self, child: ChildProcess) -> None:
        """Take back what the child has not begun; it goes elsewhere in a moment (`board` says how)."""
        child.blocked = True
        words = child.words
        begun, high = words[at.RUNNING], child.given  # what is given later is not taken back
        if words[at.HIGH] <= begun:
            words[at.HIGH] = high
            words[at.LOW] = begun + 1
        else:
            words[at.HIGH] = high
        self.supervisor.pump.at(monotonic() + at.SETTLE, lambda: self._recalled(child, high))

    def recall_all(self) -> None:
        """Take back whatever no child has begun."""
        with self.supervisor.lock:
            self.supervisor.feeder.take_in()
            for child in self.supervisor.children:
                if child.jobs and child.kind == "plain" and not child.dead:
                    self.recall(child)

    def _recalled(self, child: ChildProcess, high: int) -> None:
        supervisor = self.supervisor
        with supervisor.lock:
            if child.dead:
                return
            begun = child.words[at.RUNNING]
            back = [job for seq, job in child.jobs.items() if begun < seq <= high]
            for job in back:
                del child.jobs[job.seq]
            child.cost = 0.0
            if back:
                supervisor.feeder.again(back)
            if not child.jobs:
                supervisor.feeder.refill(child)
        supervisor.deliver()

    # --- health

    def keep_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._oom_kills = oom_kills()
            self.supervisor.pump.at(monotonic() + min(TICK, 0.1), self._tick)

    def _tick(self) -> None:
        supervisor = self.supervisor
        limit = supervisor.memory_limit
        soon = TICK
        with supervisor.lock:
            busy = [child for child in supervisor.children if child.jobs and not child.dead]
            for child in busy:
                used = resident(child.pid)
                if used > self._peaks.get(child.pid, 0):
                    self._peaks[child.pid] = used
                if limit is not None:
                    if used > limit:
                        self._over_memory(child, used, limit)
                    elif used > limit // 2:
                        soon = NEAR
                if is_stopped(child.pid):
                    child.stopped_ticks += 1
                    if child.stopped_ticks >= STOPPED_TICKS:
                        self.give_up(child, "it was stopped by a signal (SIGSTOP) and did not go on")
                else:
                    child.stopped_ticks = 0
            self._ticking = bool(busy)
        if self._ticking:
            supervisor.pump.at(monotonic() + soon, self._tick)
        supervisor.deliver()

    def _over_memory(self, child: ChildProcess, used: int, limit: int) -> None:
        self.give_up(
            child,
            f"it used {_size(used)} of memory, more than memory_limit={_size(limit)}",
            memory_limit=limit,
            peak_memory=max(used, peak(child.pid)),
        )

    def give_up(self, child: ChildProcess, why: str, **facts: Any) -> None:
        """Kill a child for what its running task does to it."""
        for job in self._victims(child):
            if job.verdict is None:
                job.verdict = lost(job, why, **facts)
        child.signal_group(signal.SIGKILL)

    def _victims(self, child: ChildProcess) -> list[Job]:
        """The jobs that die with the child: those it has begun."""
        if child.kind == "async":
            return [job for job in child.jobs.values() if job.started]
        running = child.running
        return [running] if running is not None else []

    # --- death

    def gone(self, child: ChildProcess) -> None:
        """The child's process has ended."""
        with self.supervisor.lock:
            if not child.dead:
                self.bury(child)
        self.supervisor.deliver()

    def bury(self, child: ChildProcess) -> None:
        """Take its last words, end the task it died of, give the others to somebody else, close everything."""
        supervisor = self.supervisor
        pump = supervisor.pump
        for fd in (child.tasks.fileno(), child.control.fileno(), child.pidfd):
            if fd >= 0:
                pump.forget(fd)
        highest = max(self._peaks.pop(child.pid, 0), peak(child.pid) if child.jobs else 0)
        status = child.reap()
        records, size, _ = child.read()
        if records:
            supervisor.take(child, records, size)
        records, size = child.peek(dead=True)
        if records:
            supervisor.take(child, records, size)
        victims = self._victims(child)
        jobs = [job for job in child.jobs.values() if job not in victims]
        item = child.words[at.ITEM]
        stacks = child.stacks() if victims else ""
        text, number, code = describe_exit(status)
        text = f"it was {text}" if number is not None else f"it {text}"
        never = not child.ready and not child.stopping and not supervisor.closing
        self.deaths += not (child.retired or supervisor.closing)
        child.jobs.clear()
        for timer in (child.check, child.farewell):
            if timer is not None:
                timer.cancel()
        with making:
            child.close()
            if child in supervisor.children:
                supervisor.children.remove(child)
        supervisor.grow()
        if child in supervisor.feeder.idle:
            supervisor.feeder.idle.remove(child)
        if (status is None or number == signal.SIGKILL) and oom_kills() > self._oom_kills:
            self._oom_kills = oom_kills()
            text += " (the system ran out of memory)"
        for job in victims:
            error = job.verdict or lost(
                job, text, signal=number, exit_code=code, peak_memory=highest or None, stacks=stacks
            )
            if isinstance(error, TaskLost) and error.signal is None and error.exit_code is None:
                error.signal, error.exit_code = number, code
            supervisor.end(job, supervisor.ladder.died(job, error, item))
        if never:
            self._never_ready(child, text, number, code)
        supervisor.feeder.again(jobs)
        supervisor.want_children()

    def _never_ready(self, child: ChildProcess, text: str, number: int | None, code: int | None) -> None:
        """A child that did not come up. One waiting task fails of a failed initializer, or of too many such deaths
        in a row: so this cannot go on for ever, and one unlucky kill costs nobody anything."""
        self._stillborn += 1
        if child.setup_error is None and self._stillborn < STILLBORN:
            return
        job = self.supervisor.feeder.lanes[child.kind].pop()
        if job is None:
            return
        if child.setup_error is not None:
            error = unpack_error(child.setup_error)
            error.add_note("raised by the initializer of the child process")
            self.supervisor.end(job, (job.parcel, REPORT_RAISED, error, NOT_SET_UP))
        else:
            error = lost(job, f"{text} before it was ready", signal=number, exit_code=code)
            self.supervisor.end(job, (job.parcel, REPORT_LOST, error, 0, NOT_SET_UP))


def lost(job: Job, why: str, *, stacks: str = "", **facts: Any) -> TaskLost:
    """The error of a task whose process died."""
    last = f"; its last event was {job.last_event!r}" if job.last_event else "; it had sent no event"
    error = TaskLost(f"{job.name}: the process running it is gone: {why}{last}")
    error.last_event = job.last_event
    for name, value in facts.items():
        setattr(error, name, value)
    if stacks.strip():
        from .stacks import without_our_frames

        error.add_note(without_our_frames(stacks).strip()[-4000:])
    return error


def _size(number: int) -> str:
    return f"{number / (1 << 20):.0f} MiB"
