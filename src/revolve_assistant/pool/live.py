"""What the engines share that run the callable object itself, in this process: thread, inline, executor over threads.

Nothing is pickled on the way in; events pass through the same encoding as everywhere, so that what a listener gets is
the same, and later changes of an emitted list do not reach it. Nothing here can stop a callable against its will:
cancelling raises the flag, and the end says so.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from time import monotonic, time
from typing import Any

import msgspec

from ..engine import Engine, EngineState, Parcel, Sink
from ..errors import CancelSignal, TaskLost, TaskStalled, TaskTimeout
from ..running import api
from ..running.body import run, run_async
from ..running.running import Running
from ..telemetry import begin
from ..wire.share import unshare
from ..wire.values import unpack_message
from .jobs import NOTHING, WAITING
from .pump import Pump
from .reports import (
    ELSEWHERE,
    REPORT_CANCELLED,
    REPORT_ELSEWHERE,
    REPORT_EVENTS,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETURNED,
    REPORT_STARTED,
    REPORT_WANT,
    WANT,
)
from .threads import at_work

_decode = msgspec.msgpack.Decoder().decode


def entered(initializer: Callable[..., Any], initargs: tuple[Any, ...]) -> Any:
    """Run an initializer; what it returned, entered if it is a context manager, else None."""
    args, _ = unshare(initargs, {})
    value = initializer(*args)
    if hasattr(value, "__enter__") and hasattr(value, "__exit__"):
        value.__enter__()
        return value
    return None


class LiveJob:
    """A parcel that runs, or waits to, in this process; the `Port` of its `Running`."""

    __slots__ = (
        "engine",
        "ended",
        "flagged",
        "heard",
        "last_event",
        "messages",
        "parcel",
        "running",
        "silence",
        "sink",
        "started",
        "state",
        "thread",
        "timer",
        "verdict",
    )

    def __init__(self, engine: LiveEngine, parcel: Parcel, sink: Sink) -> None:
        self.engine = engine
        self.parcel = parcel
        self.sink = sink
        self.running: Running | None = None
        self.messages: list[tuple[str, Any]] = []
        self.state = WAITING
        self.flagged = False
        self.ended = False
        self.started = 0.0
        self.heard = 0.0
        self.last_event: str | None = None
        self.thread: int | None = None
        self.timer: Any = None
        self.silence: Any = None
        self.verdict: BaseException | None = None

    def put(self, record: bytes) -> None:
        found = _decode(record)
        if found[0] == WANT:
            self.sink.deliver([(self.parcel, REPORT_WANT)])
            return
        self.heard = monotonic()
        if found[0] == ELSEWHERE:
            self.sink.deliver([(self.parcel, REPORT_ELSEWHERE, found[2], found[3])])
            return
        self.last_event = found[2]
        self.sink.deliver([(self.parcel, REPORT_EVENTS, [found], len(record))])

    def stopping(self, running: Running) -> bool:
        return self.flagged

    def flag(self) -> None:
        self.flagged = True
        running = self.running
        if running is not None:
            running.nudge()


class LiveEngine(Engine):
    """Base of the engines that run callables in this process. Thread-safe."""

    worker = "thread"

    def __init__(self) -> None:
        self.closing = False
        self.begin()

    def begin(self) -> None:
        """The state of an engine that has nothing to do yet, in a process of its own."""
        self.lock = threading.RLock()
        self.pump = Pump("revolve-clock")
        self.jobs: dict[str, LiveJob] = {}

    def open(self) -> None:
        pass

    def wake(self) -> None:
        self.pump.poke()

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        found: dict[str, EngineState] = {}
        for id in ids:
            job = self.jobs.get(id)
            found[id] = "unknown" if job is None else "running" if job.started else "queued"
        return found

    def cancel(self, task_id: str) -> bool:
        with self.lock:
            job = self.jobs.get(task_id)
            if job is None:
                return False
            if not job.started and self.drop(job):
                self.end(job, (job.parcel, REPORT_CANCELLED, "unstarted"))
                job.parcel = NOTHING
            else:
                job.flag()
        return True

    def drop(self, job: LiveJob) -> bool:
        """Remove a job that waits; False: it does not wait any more."""
        return False

    def help(self, task_id: str) -> None:
        """A running task is about to wait for another one of the same engine: if that waits too, run it right here.

        Otherwise tasks that wait for tasks would fill all threads and wait for ever.
        """
        if api.in_context.get() is None:
            return
        with self.lock:
            job = self.jobs.get(task_id)
            if job is None or job.started or job.parcel.delay or not self.drop(job):
                return
        self.run(job)

    def send(self, parcel: Parcel, name: str, packed: Any) -> bool:
        with self.lock:
            job = parcel._
            if job is None or job.ended:
                return False
            running = job.running
            if running is None:
                job.messages.append((name, packed))
                del job.messages[:-1000]
                return True
        token = api.in_context.set(running)  # a handler's emit is the task's
        try:
            message = unpack_message(name, packed)
            if message is not None:
                running.put_message(message)
        finally:
            api.in_context.reset(token)
        return True

    def grant(self, parcel: Parcel) -> None:
        job = parcel._
        if job is not None and job.running is not None:
            job.running.grant()

    def stack(self, parcel: Parcel) -> str:
        job = parcel._
        frame = sys._current_frames().get(job.thread) if job is not None and job.thread is not None else None
        if frame is None:
            raise LookupError(f"task {parcel.id} is not running")
        return "".join(traceback.format_stack(frame))

    def take(self, parcel: Parcel, sink: Sink) -> LiveJob:
        job = parcel._ = LiveJob(self, parcel, sink)
        self.jobs[parcel.id] = job
        return job

    def end(self, job: LiveJob, report: tuple[Any, ...]) -> None:
        with self.lock:
            if job.ended:
                return
            job.ended = True
            for timer in (job.timer, job.silence):
                if timer is not None:
                    timer.cancel()
            self.jobs.pop(job.parcel.id, None)
        job.sink.deliver([report])

    def run(self, job: LiveJob) -> None:
        """Run the job in this thread, from its start to its end."""
        parcel = job.parcel
        work = parcel.work
        running = Running(job, 1, parcel.id, parcel.attempt)
        with self.lock:
            if job.ended:
                return
            if job.flagged:  # cancelled between its lane and here
                self.end(job, (parcel, REPORT_CANCELLED, "unstarted"))
                return
            for name, packed in job.messages:
                message = unpack_message(name, packed)
                if message is not None:
                    running.put_message(message)
            job.messages = []
            job.running = running
            job.started = job.heard = monotonic()
            job.thread = thread = threading.get_ident()
        outer = at_work.get(thread)
        at_work[thread] = work.function.name
        job.sink.deliver([(parcel, REPORT_STARTED, f"{self.worker}:{threading.current_thread().name}", time())])
        self._mind(job)
        token = api.in_context.set(running)
        trace = None
        if parcel.headers is not None:
            trace = begin(running, work.function.name, parcel.queue, parcel.headers)
        try:
            value = self._call(running, parcel, work)
            if trace is not None:
                trace.returned(running)
            if job.verdict is not None:
                report: tuple[Any, ...] = (parcel, REPORT_RAISED, job.verdict)
            elif running._noticed:
                report = (parcel, REPORT_CANCELLED, "flag")
            else:
                report = (parcel, REPORT_RETURNED, value)
        except CancelSignal:
            if trace is not None:
                trace.cancelled("flag")
            report = (parcel, REPORT_RAISED, job.verdict) if job.verdict else (parcel, REPORT_CANCELLED, "flag")
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            from ..wire.remote import pack_error, unpack_error

            if trace is not None:
                trace.failed(error)
            report = (parcel, REPORT_RAISED, unpack_error(pack_error(error)))
        except BaseException as error:
            error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
            if trace is not None:
                trace.failed(error)
            report = (parcel, REPORT_RAISED, error)
        finally:
            api.in_context.reset(token)
            job.thread = None
            if outer is None:
                at_work.pop(thread, None)
            else:
                at_work[thread] = outer
        self.end(job, report)

    def _call(self, running: Running, parcel: Parcel, work: Any) -> Any:
        fn, args, kwargs = work.live
        args, kwargs = unshare(args, kwargs)
        kind = work.function.kind
        if parcel.options is not None and parcel.options.capture:
            from ..running.capture import capturing

            with capturing(running.emit, thread_ident=threading.get_ident()):
                return self._call_kind(running, kind, fn, args, kwargs)
        return self._call_kind(running, kind, fn, args, kwargs)

    def _call_kind(self, running: Running, kind: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if kind in ("plain", "generator"):
            return run(running, kind, fn, args, kwargs)
        import asyncio

        if asyncio._get_running_loop() is None:
            return asyncio.run(run_async(running, kind, fn, args, kwargs))
        box: list[Any] = []  # called from an event loop: the coroutine gets a loop in a thread of its own

        def other() -> None:
            try:
                box.append((True, asyncio.run(run_async(running, kind, fn, args, kwargs))))
            except BaseException as error:
                box.append((False, error))

        thread = threading.Thread(target=copy_context().run, args=(other,))  # its emits are the task's
        thread.start()
        thread.join()
        fine, value = box[0]
        if fine:
            return value
        raise value

    def _mind(self, job: LiveJob) -> None:
        """Start the clocks of `timeout` and `stall`: both can but raise the flag."""
        options = job.parcel.options
        if options is None or (options.timeout is None and options.stall is None):
            return
        self.pump.start()
        name = job.parcel.work.function.name
        if options.timeout is not None:
            error = TaskTimeout(f"{name} ran longer than timeout={options.timeout:g} s")
            job.timer = self.pump.at(job.started + options.timeout, lambda: self._overdue(job, error))
        if options.stall is not None:
            job.silence = self.pump.at(job.heard + options.stall, lambda: self._silent(job, options.stall))

    def _overdue(self, job: LiveJob, error: BaseException) -> None:
        if not job.ended and job.verdict is None:
            job.verdict = error
            job.flag()

    def _silent(self, job: LiveJob, stall: float) -> None:
        if job.ended:
            return
        if monotonic() < job.heard + stall:
            job.silence = self.pump.at(job.heard + stall, lambda: self._silent(job, stall))
        else:
            self._overdue(job, TaskStalled(f"{job.parcel.work.function.name} sent no event for stall={stall:g} s"))

    def after_fork(self) -> None:
        """In a forked child: what runs is the parent's; here everything starts afresh."""
        self._inherited = vars(self).copy()  # not freed: that would touch, and so copy, what is shared with the parent
        self.pump.after_fork()
        self.begin()

    def close(self) -> None:
        with self.lock:
            self.closing = True
            jobs = list(self.jobs.values())
        for job in jobs:
            if job.started:
                job.flag()
            else:
                self.end(job, (job.parcel, REPORT_LOST, TaskLost("the engine was closed before the task started")))
        self.pump.stop()
