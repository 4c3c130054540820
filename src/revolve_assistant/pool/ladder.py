"""The cancel ladder: how a running task is stopped, rung by rung, each with its deadline.

    flag ──0.5 s──▶ exception ──5 s──▶ SIGTERM ──2 s──▶ SIGKILL of the process group

A task that waits is simply removed; one that was given to a child and has not begun is taken back. What waits behind
the task is taken back before the first rung, so whatever happens to the child concerns nobody else.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import TaskError, TaskStalled, TaskTimeout, UsageError
from . import board as at
from .jobs import ENDED, NOTHING, WAITING, Job
from .reports import INTERRUPT, REPORT_CANCELLED, REPORT_LOST, REPORT_RAISED, STOPPING
from .watch import lost

if TYPE_CHECKING:
    from .supervisor import Supervisor

RUNGS = ("flag", "exception", "SIGTERM", "SIGKILL")
DEADLINES = (0.5, 5.0, 2.0)  # seconds after which the next rung is tried
ALONE = 30.0  # seconds that the other coroutines of a child have to end before it is killed for one of them


def check_deadlines(deadlines: Sequence[float] | None) -> tuple[float, ...]:
    """The seconds after which each next rung is tried; None takes ours. Raises `UsageError`."""
    if deadlines is None:
        return DEADLINES
    if (
        not isinstance(deadlines, (tuple, list))
        or len(deadlines) != 3
        or not all(isinstance(d, (int, float)) and d >= 0 for d in deadlines)
    ):
        raise UsageError("ladder must be three numbers of seconds: until the exception, SIGTERM and SIGKILL")
    return tuple(deadlines)


class Ladder:
    """Part of the supervisor; works under its lock."""

    def __init__(self, supervisor: Supervisor, deadlines: Sequence[float] = DEADLINES) -> None:
        self.supervisor = supervisor
        self.deadlines = deadlines

    # --- clocks of a running task

    def watch(self, job: Job) -> None:
        """The job has started: mind its `timeout` and `stall`."""
        options = job.parcel.options
        if options is None:
            return
        if options.timeout is not None:
            job.stalled = self.supervisor.pump.at(job.started + options.timeout, lambda: self._late(job))
        if options.stall is not None:
            job.silence = self.supervisor.pump.at(job.heard + options.stall, lambda: self._silent(job))

    def _late(self, job: Job) -> None:
        with self.supervisor.lock:
            if job.state != ENDED and job.started:
                seconds = job.parcel.options.timeout
                job.verdict = job.verdict or TaskTimeout(f"{job.name} ran longer than timeout={seconds:g} s")
                self.stop(job, "timeout")
        self.supervisor.deliver()

    def _silent(self, job: Job) -> None:
        with self.supervisor.lock:
            if job.state != ENDED and job.started:
                seconds = job.parcel.options.stall
                if monotonic() < job.heard + seconds:
                    job.silence = self.supervisor.pump.at(job.heard + seconds, lambda: self._silent(job))
                    return
                last = f", the last one was {job.last_event!r}" if job.last_event else ""
                job.verdict = job.verdict or TaskStalled(f"{job.name} sent no event for stall={seconds:g} s{last}")
                self.stop(job, "stall")
        self.supervisor.deliver()

    # --- the rungs

    def stop(self, job: Job, reason: str) -> None:
        """Start to stop a job; a second call changes nothing."""
        if job.state == ENDED or job.reason:
            return
        job.reason = reason
        supervisor = self.supervisor
        child = job.child
        if job.state == WAITING or child is None:
            supervisor.feeder.drop(job)
            job.state = WAITING
            supervisor.end(job, self.ended(job, "unstarted"))
            job.parcel = NOTHING
            return
        if child.kind == "plain":
            if len(child.jobs) > 1 or child.words[at.RUNNING] < job.seq:
                supervisor.watch.recall(child)
                # once that has settled, it is either back (and ended) or the one that runs
                job.timer = supervisor.pump.at(monotonic() + 2 * at.SETTLE, lambda: self._climb(job, 0))
                return
            child.blocked = True
        self._climb(job, 0)

    def _climb(self, job: Job, rung: int) -> None:
        supervisor = self.supervisor
        with supervisor.lock:
            child = job.child
            if job.state == ENDED or child is None or child.dead:
                return
            job.timer = None
            name = RUNGS[rung]
            if child.kind == "plain" and child.words[at.ENDED] >= job.seq:
                pass  # it is over; its last words are on their way
            elif rung == 0:
                job.rung = name
                if child.kind == "plain":
                    child.words[at.FLAG] = job.seq
                supervisor.tell(child, (STOPPING, job.seq))
            elif rung == 1:
                job.rung = name
                if child.kind == "plain":
                    child.words[at.RAISE] = job.seq
                    child.signal(signal.SIGINT)
                supervisor.tell(child, (INTERRUPT, job.seq))
            elif child.kind == "async" and rung == 2:
                child.blocked = True  # no new coroutines; the others may end
                self._when_alone(job, monotonic() + ALONE)
                return
            else:
                self._kill(job, rung)
            if rung < len(self.deadlines):
                job.timer = supervisor.pump.at(monotonic() + self.deadlines[rung], lambda: self._climb(job, rung + 1))

    def _when_alone(self, job: Job, deadline: float) -> None:
        with self.supervisor.lock:
            child = job.child
            if job.state == ENDED or child is None or child.dead:
                return
            if len(child.jobs) > 1 and monotonic() < deadline:
                job.timer = self.supervisor.pump.at(monotonic() + 0.1, lambda: self._when_alone(job, deadline))
            else:
                self._kill(job, 3)

    def _kill(self, job: Job, rung: int) -> None:
        with self.supervisor.lock:
            child = job.child
            if job.state == ENDED or child is None or child.dead:
                return
            job.rung = RUNGS[rung]
            child.stopping = True
            # coroutines share the process, and its end
            culprits = [f"{each.name} (task {each.parcel.id})" for each in child.jobs.values() if each.reason][:3]
            for other in child.jobs.values():
                if other.started and other.verdict is None and not other.reason:
                    why = f"it was killed to stop {', '.join(culprits)} beside it, which did not heed cancelling"
                    other.verdict = lost(other, why)
            child.signal_group(signal.SIGTERM if rung == 2 else signal.SIGKILL)

    # --- the end

    def ended(self, job: Job, rung: str) -> tuple[Any, ...]:
        """The report of a job that was stopped, or stopped itself."""
        if job.verdict is not None:
            return (job.parcel, REPORT_RAISED, self._with_rung(job.verdict, rung))
        return (job.parcel, REPORT_CANCELLED, rung)

    def died(self, job: Job, error: BaseException, item: int) -> tuple[Any, ...]:
        """The report of a job whose child is gone."""
        if job.reason == "close":
            return (job.parcel, REPORT_CANCELLED, "SIGKILL")
        if job.reason and job.rung in ("SIGTERM", "SIGKILL"):
            return self.ended(job, job.rung)
        return (job.parcel, REPORT_LOST, error, item)

    def forget(self, job: Job) -> None:
        """The job is over: its clocks stop, the board forgets it."""
        for timer in (job.timer, job.stalled, job.silence):
            if timer is not None:
                timer.cancel()
        job.timer = job.stalled = job.silence = None
        child = job.child
        if job.reason and child is not None and not child.dead:
            if child.kind == "async":
                child.blocked = False
            words = child.words
            if words[at.FLAG] == job.seq:
                words[at.FLAG] = 0
            if words[at.RAISE] == job.seq:
                words[at.RAISE] = 0

    @staticmethod
    def _with_rung(error: BaseException, rung: str) -> BaseException:
        if isinstance(error, TaskError):
            error.add_note(f"stopped by: {rung}")
        return error
