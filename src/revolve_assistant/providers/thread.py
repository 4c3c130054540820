"""Runs callables in threads of this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ..engine import Parcel, Sink
from ..errors import Unreachable, UsageError
from ..pool.jobs import SENT, WAITING, Lanes
from ..pool.live import LiveEngine, LiveJob, entered
from ..pool.reports import NOT_SET_UP, REPORT_RAISED
from ..pool.threads import OurThread
from ..traits import Traits
from .url import Url


class Engine(LiveEngine):
    """`thread://`: `max_workers` threads (None: as ThreadPoolExecutor), started when there is work for them.

    A thread cannot be stopped against its will: `cancel`, `timeout` and `stall` raise the flag, and the task ends
    when the callable heeds it.
    """

    traits: ClassVar[Traits] = Traits(
        summary="threads of this process", local=True, live=True, cancels=True, priorities=True
    )

    def __init__(
        self,
        *,
        max_workers: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        super().__init__()
        if max_workers is not None and (not isinstance(max_workers, int) or max_workers <= 0):
            raise UsageError(f"max_workers={max_workers!r} must be a whole number greater than 0")
        self.max_workers = max_workers or min(32, (os.cpu_count() or 1) + 4)
        self._initialize = (initializer, initargs) if initializer is not None else None

    def begin(self) -> None:
        super().begin()
        self._lanes = Lanes()
        self._work = threading.Condition(self.lock)
        self._threads: list[threading.Thread] = []
        self._idle = 0

    @classmethod
    def from_url(cls, url: Url, **options: Any) -> Engine:
        return cls(**options)

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        with self._work:
            if self.closing:
                raise Unreachable("the engine is closed")
            for parcel in parcels:
                self._lanes.push(self.take(parcel, sink))  # type: ignore[arg-type]
                if self._idle >= self._lanes.count:
                    self._work.notify()
                elif len(self._threads) < self.max_workers:
                    thread = OurThread(self._serve, f"revolve-{len(self._threads) + 1}")
                    self._threads.append(thread)
                    thread.start()

    def drop(self, job: LiveJob) -> bool:
        if job.state != WAITING:  # a thread has taken it
            return False
        self._lanes.drop(job)  # type: ignore[arg-type]
        return True

    def _serve(self) -> None:
        problem: Exception | None = None
        context: Any = None
        if self._initialize is not None:
            initializer, initargs = self._initialize
            try:
                context = entered(initializer, initargs)
            except Exception as error:
                error.add_note("raised by the initializer of the thread")
                problem = error
        while True:
            with self._work:
                while True:
                    job: Any = self._lanes.pop()
                    if job is not None:
                        job.state = SENT
                    if job is not None or self.closing:
                        break
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                if job is None:
                    break
            if problem is not None:
                self.end(job, (job.parcel, REPORT_RAISED, problem, NOT_SET_UP))
            else:
                self.run(job)
            del job
        if context is not None:
            context.__exit__(None, None, None)

    def close(self) -> None:
        super().close()
        with self._work:
            self._work.notify_all()
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(5.0)
