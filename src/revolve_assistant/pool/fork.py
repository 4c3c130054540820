"""The fork engine: one forked child for each task, and the supervisor's own ways of hearing and stopping it.

    submit ──▶ room? fork at once, in the caller's thread ──▶ child runs the task ──▶ ends ──▶ reaped, there is room
           └──▶ lanes (by priority) ──────────────────────────▶ fork on the pump's thread (or its leader's)

A task is on the board as running before its child exists, so whatever becomes of the child concerns this task alone,
and it is never run twice. No fork happens in another thread's import or in the middle of a listener (`threads`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from _thread import get_ident
from collections.abc import Callable, Sequence
from importlib import import_module
from time import monotonic, monotonic_ns, sleep
from typing import Any, ClassVar

from ..engine import Parcel, Sink
from ..errors import Unreachable, UsageError
from ..traits import Traits
from . import board as at
from . import copies
from .feeder import Feeder
from .forked import SEQ, live
from .jobs import SENT, Job
from .process import READ, ChildProcess, Ends
from .pump import Shield
from .reports import REPORT_RAISED, SEND
from .supervisor import LINGER, Supervisor
from .threads import importing, making, shut_gates, strangers
from .vitals import UNKNOWN_EXIT

log = logging.getLogger("revolve_assistant")
_signal = import_module("_signal")
_everything = tuple(_signal.valid_signals())
PATIENCE = 0.5  # seconds that a fork waits for another thread's import or listener to end
AGAIN = 0.002  # seconds until it looks again


class ForkedProcess:
    """A fork of this process, with as much of `subprocess.Popen` as a supervisor uses."""

    __slots__ = ("pid", "returncode")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: Any = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status as `Popen.returncode`, `UNKNOWN_EXIT` where somebody else has waited for it."""
        if self.returncode is None:
            deadline = None if timeout is None else monotonic() + timeout
            while True:
                try:
                    pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
                except ChildProcessError:
                    self.returncode = UNKNOWN_EXIT
                    break
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
                    break
                if deadline is not None and monotonic() >= deadline:
                    import subprocess

                    raise subprocess.TimeoutExpired([], timeout or 0.0)
                sleep(0.001)
        return int(self.returncode)


class ForkFeeder(Feeder):
    """Every kind of callable waits in one lane; no child gets a second task."""

    plain = ("plain", "generator", "async", "asyncgen")

    def refill(self, child: ChildProcess) -> None:
        if not child.jobs and not child.dead:
            self.supervisor.retire(child)

    def measure(self, child: ChildProcess, job: Job, duration: int) -> None:
        pass


class ForkSupervisor(Supervisor):
    """Forks this process for each task, `max_workers` at once (None: the CPUs this process may use). Thread-safe.

    Nothing is pickled on the way in; the result and the events are on the way back. `other_threads`: `"refuse"`
    raises `UsageError` where threads run that are neither the main thread nor this library's, `"allow"` forks anyway.
    """

    traits: ClassVar[Traits] = Traits(
        summary="a fork of this process for each task",
        local=True,
        live=True,
        cancels=True,
        kills=True,
        priorities=True,
    )

    def __init__(
        self,
        *,
        max_workers: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        other_threads: str = "refuse",
        ladder: Sequence[float] | None = None,
    ) -> None:
        if other_threads not in ("refuse", "allow"):
            raise UsageError(f"other_threads={other_threads!r} must be 'refuse' or 'allow'")
        if not hasattr(os, "fork"):
            raise UsageError(f"fork:// needs os.fork, which {sys.platform} does not have: use Client() instead")
        self.other_threads = other_threads
        self._initialize = (initializer, tuple(initargs)) if initializer is not None else None
        super().__init__(max_workers=max_workers, ladder=ladder)
        self.memory_limit = None  # what is shared with the parent would count as the child's
        copies.notice()

    def begin(self) -> None:
        super().begin()
        self._buffer: memoryview | None = None
        self._flushed = False  # nothing is buffered, and no other thread writes
        self._asked = False  # the pump is to fork for what waits
        self._put_off = 0.0  # since when a fork waits for another thread, monotonic seconds

    def make_feeder(self) -> Feeder:
        return ForkFeeder(self)

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        """Raises `UsageError` where other threads run."""
        if self.closing:
            raise Unreachable("the engine is closed")
        names = self._strangers()
        if names:
            raise _refusal(names)
        if get_ident() != threading.main_thread().ident:
            self._submit(parcels, sink)
            return
        flush_streams()  # here, where the caller may have to wait for it; what a later fork finds unwritten, it drops
        shield = Shield()
        shield.install()
        try:
            self._submit(parcels, sink, flushed=True)
        finally:
            shield.remove()

    def _submit(self, parcels: Sequence[Parcel], sink: Sink, flushed: bool = False) -> None:
        with self.lock:
            for parcel in parcels:
                job = parcel._ = Job(parcel, sink)
                self._open[parcel.id] = job
                self.feeder.lanes["plain"].push(job)
            try:
                self.pump.start()
            except OSError as error:
                self._cannot_start(error, self.feeder.lanes["plain"].clear())
            else:
                self._flushed = flushed and self.other_threads == "refuse"
                self._fork_for_waiting()
                self._flushed = False
        self.deliver()

    def help(self, task_id: str) -> None:
        """Tasks that wait for tasks fork from their own process: they never fill each other's places."""

    def want_children(self) -> None:
        """There may be room: fork for what waits, on the pump's thread, once what happens now was reported."""
        if self.feeder.lanes["plain"].count and not self._asked:
            self._asked = True
            self.pump.soon(self._room_came)

    def _room_came(self) -> None:
        with self.lock:
            self._asked = False
            self._fork_for_waiting()
        self.deliver()

    def retire(self, child: ChildProcess) -> None:
        """Its task is over and it ends by itself, or is ended."""
        if not child.retired:
            child.retired = True
            child.farewell = self.pump.at(monotonic() + LINGER, child.kill)

    # --- forking

    def _strangers(self) -> list[str]:
        return strangers() if self.other_threads == "refuse" else []

    def _fork_for_waiting(self) -> None:
        """Under the lock: fork for what waits, as far as there is room, unless another thread must be waited for."""
        lanes = self.feeder.lanes["plain"]
        while lanes.count and not self.closing:
            if sum(not child.stopping for child in self.children) >= self.max_workers:
                return
            gates = self._quiet()
            if gates is None:
                if not self._asked:
                    self._asked = True
                    self.pump.at(monotonic() + AGAIN, self._room_came)
                return
            try:
                job = lanes.pop()
                if job is not None and not self._fork(job):
                    return
            finally:
                for gate in gates:
                    gate.release()

    def _quiet(self) -> list[Any] | None:
        """The gates, shut, if no other thread is where a fork would do harm, or after `PATIENCE`; else None."""
        gates = None if importing() else shut_gates()
        if gates is None:
            now = monotonic()
            self._put_off = self._put_off or now
            if now < self._put_off + PATIENCE:
                return None
        self._put_off = 0.0
        return gates or []

    def _fork(self, job: Job) -> bool:
        """Give the job a child. False: none can be had now, it waits for the end of another."""
        parcel = job.parcel
        names = self._strangers()
        if names:
            self.end(job, (parcel, REPORT_RAISED, _refusal(names)))
            return True

        before, flushed = self.pump, self._flushed

        def renew() -> None:
            if self.pump is before:  # no client has done it
                self.after_fork()

        def begin(child: ChildProcess, ends: Ends) -> ForkedProcess:
            child.words[at.STARTED] = monotonic_ns()
            child.words[at.RUNNING] = SEQ
            mask = _signal.pthread_sigmask(signal.SIG_BLOCK, _everything)
            try:
                pid = fork_quietly()
                if not pid:
                    live(child, ends, parcel, self._initialize, renew, flushed)
            finally:
                _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return ForkedProcess(pid)

        if self._buffer is None:
            self._buffer = memoryview(bytearray(READ))
        try:
            with making:
                child = ChildProcess("plain", begin, self._buffer)
                self.adopt(child)
        except OSError as error:
            if not self.children:
                self._cannot_start(error, [job])
                return True
            log.error("cannot fork: %s", error)
            self.feeder.lanes["plain"].push_back([job])
            return False
        child.ready = True
        self.watch.came_up()
        child.given = job.seq = SEQ
        job.child, job.state = child, SENT
        child.jobs[SEQ] = job
        for name, packed in job.messages or ():
            self.tell(child, (SEND, SEQ, name, packed))
        self.announce(child, job)
        self.watch.look_at(child)
        self.watch.keep_ticking()
        return True


def _refusal(names: list[str]) -> UsageError:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return UsageError(
        f"fork:// does not fork while other threads run ({shown}): a lock that one of them holds would stay locked in "
        "the fork for ever. Submit before they start, use Client() instead, or, if you know that they hold none that "
        "the task needs, Client('fork://?other_threads=allow')"
    )


def flush_streams() -> None:
    """Write what was printed so far, so that it comes before what a child prints."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # none, closed, or nobody reads it
            stream.flush()


_hush: Any = None


def fork_quietly() -> int:
    """`os.fork`, without the warning of 3.12 and later that this process has threads: they were looked at."""
    global _hush  # noqa: PLW0603
    if sys.version_info >= (3, 12) and (_hush is None or warnings.filters[:1] != [_hush]):
        # Not catch_warnings, which changes what other threads see meanwhile; this filter concerns this module alone.
        warnings.filterwarnings("ignore", "This process .*is multi-threaded", DeprecationWarning, _here)
        _hush = warnings.filters[0]
    return os.fork()


_here = __name__.replace(".", r"\.") + "$"
