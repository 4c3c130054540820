"""Runs tasks on any `concurrent.futures.Executor`: threads, processes, loky, MPI, Parsl.

Over threads of this process the callable itself runs. Over anything else the callable is carried as to our own
children, and its events come back over a Unix socket of this machine:

    executor's process ── events, end ──▶ socket (a folder of mode 0700, a random token) ──▶ pump
                       ◀── cancel, send, credit ──
                       ── the executor's own future: the end again, for a process that cannot reach the socket
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Sequence
from time import monotonic, time
from typing import Any, ClassVar

from ..engine import Parcel, Sink
from ..errors import NotCarriable, TaskLost, Unreachable, UsageError
from ..pool.child import frames
from ..pool.live import LiveEngine, LiveJob
from ..pool.pump import READ
from ..pool.remote import remote_call
from ..pool.reports import (
    CANCELLED,
    CREDIT,
    ERROR,
    REPORT_CANCELLED,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_WANT,
    RESULT,
    SEND,
    STARTED,
    STOPPING,
    WANT,
)
from ..pool.shared import frame
from ..traits import Traits
from ..wire.carry import Carrier, encode
from ..wire.share import by_value
from .url import Url

DRAIN = 5.0  # seconds that events may still be on their way when the executor's own future is done


class RemoteJob(LiveJob):
    """A task in another process of the executor."""

    __slots__ = ("connection", "future", "incoming", "over", "token")

    def __init__(self, engine: Engine, parcel: Parcel, sink: Sink) -> None:
        super().__init__(engine, parcel, sink)
        self.token = secrets.token_bytes(16)
        self.connection: socket.socket | None = None
        self.incoming = bytearray()
        self.future: concurrent.futures.Future[Any] | None = None
        self.over: tuple[Any, ...] | None = None

    def tell(self, message: tuple[Any, ...]) -> None:
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.sendall(frame(message))

    def flag(self) -> None:
        self.flagged = True
        self.tell((STOPPING, 1))


class Engine(LiveEngine):
    """An engine over `executor`, which stays the caller's: it is not shut down with the client.

    Cancelling removes what has not started and raises the flag of what runs; no executor can do more.
    """

    traits: ClassVar[Traits] = Traits(summary="any concurrent.futures.Executor", local=True, live=True, cancels=True)
    worker = "executor"

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        if not isinstance(executor, concurrent.futures.Executor):
            raise UsageError(f"executor={executor!r:.100} must be a concurrent.futures.Executor")
        super().__init__()
        self.executor = executor
        self.in_process = isinstance(executor, concurrent.futures.ThreadPoolExecutor)
        self.max_workers = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        self._carrier = Carrier()
        self._made_in = os.getpid()

    @classmethod
    def from_url(cls, url: Url, *, executor: Any = None, **options: Any) -> Engine:
        if executor is None:
            raise UsageError("executor:// needs the executor: Client(executor), or Client('executor://', executor=…)")
        return cls(executor, **options)

    def after_fork(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in (*self._waiting, *(getattr(job, "connection", None) for job in self.jobs.values())):
            if connection is not None:
                connection.close()
        super().after_fork()

    def begin(self) -> None:
        super().begin()
        self._pid = os.getpid()
        self._folder: str | None = None
        self._server: socket.socket | None = None
        self._waiting: dict[socket.socket, bytearray] = {}
        self._futures: dict[str, Any] = {}

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        if self._pid != self._made_in:
            raise UsageError(
                f"the executor was made in the process that this one was forked from (pid {self._made_in}), and its "
                "workers are there: make one, and a Client for it, in this process"
            )
        if self.closing:
            raise Unreachable("the engine is closed")
        for parcel in parcels:
            if self.in_process:
                job = self.take(parcel, sink)
                self._futures[parcel.id] = self.executor.submit(self.run, job)
            else:
                self._submit_remote(parcel, sink)

    def drop(self, job: LiveJob) -> bool:
        future = job.future if isinstance(job, RemoteJob) else self._futures.get(job.parcel.id)
        return future is not None and future.cancel()

    def end(self, job: LiveJob, report: tuple[Any, ...]) -> None:
        self._futures.pop(job.parcel.id, None)
        super().end(job, report)

    # --- processes

    def _submit_remote(self, parcel: Parcel, sink: Sink) -> None:
        fn, args, kwargs = parcel.work.live
        job = RemoteJob(self, parcel, sink)
        try:
            with by_value():  # nothing can be sent to a stranger's process beforehand
                work = self._carrier.carry(fn, args, kwargs)
                payload = encode((args, kwargs), None) if work.buffers else work.payload
        except NotCarriable as error:
            parcel._ = job
            self.jobs[parcel.id] = job
            self.end(job, (parcel, REPORT_RAISED, error))
            return
        address = self._listen()
        parcel._ = job
        self.jobs[parcel.id] = job
        function = work.function
        capture = parcel.options is not None and parcel.options.capture
        what = (function.name, function.kind, function.body, payload)
        call = (*what, parcel.id, parcel.attempt, capture, parcel.queue, parcel.headers)
        job.future = self.executor.submit(remote_call, address, job.token, call)
        job.future.add_done_callback(lambda future: self.pump.soon(lambda: self._done(job, monotonic() + DRAIN)))

    def _listen(self) -> str:
        with self.lock:
            if self._server is None:
                self._folder = tempfile.mkdtemp(prefix="revolve-")
                self._server = socket.socket(socket.AF_UNIX)
                self._server.bind(os.path.join(self._folder, "events"))
                self._server.listen(128)
                self._server.setblocking(False)
                self.pump.start()
                self.pump.watch(self._server.fileno(), READ, self._accept)
            return os.path.join(self._folder or "", "events")

    def _accept(self, _mask: int) -> None:
        server = self._server
        if server is None:
            return
        with contextlib.suppress(BlockingIOError):
            connection, _ = server.accept()
            connection.setblocking(False)
            self._waiting[connection] = bytearray()
            self.pump.watch(connection.fileno(), READ, lambda _mask: self._greet(connection))

    def _greet(self, connection: socket.socket) -> None:
        """The first 16 bytes say which task it is; whoever does not know them is shown out."""
        pending = self._waiting.get(connection)
        if pending is None:
            return
        try:
            data = connection.recv(16 - len(pending))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        pending += data
        if data and len(pending) < 16:
            return
        del self._waiting[connection]
        self.pump.forget(connection.fileno())
        job = next((job for job in self.jobs.values() if isinstance(job, RemoteJob) and job.token == pending), None)
        if not data or job is None:
            connection.close()
            return
        with self.lock:
            job.connection = connection
            early, job.messages = job.messages, []
        connection.setblocking(True)
        for name, packed in early:
            job.tell((SEND, 1, name, packed))
        if job.flagged:
            job.flag()
        connection.setblocking(False)
        self.pump.watch(connection.fileno(), READ, lambda _mask: self._hear(job))

    def _hear(self, job: RemoteJob) -> None:
        connection = job.connection
        if connection is None:
            return
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.pump.forget(connection.fileno())
            connection.close()
            job.connection = None
            if job.over is not None:
                self.end(job, job.over)
            return
        job.incoming += data
        reports: list[Any] = []
        parcel = job.parcel
        for record in frames(job.incoming):
            kind = record[0]
            if kind == STARTED:
                job.started = job.heard = monotonic()
                reports.append((parcel, REPORT_STARTED, f"{self.worker}:{record[2]}", time()))
                self._mind(job)
            elif kind == WANT:
                reports.append((parcel, REPORT_WANT))
            elif kind == RESULT:
                job.over = (parcel, REPORT_SUCCEEDED, record[3], None)
            elif kind == ERROR:
                job.over = (parcel, REPORT_FAILED, record[3])
            elif kind == CANCELLED:
                job.over = (parcel, REPORT_CANCELLED, record[3])
            else:
                job.heard = monotonic()
                reports.append((parcel, REPORT_EVENTS, [record], len(data)))
            if job.over is not None and job.verdict is not None and kind != RESULT:
                job.over = (parcel, REPORT_RAISED, job.verdict)
        if reports:
            job.sink.deliver(reports)

    def _done(self, job: RemoteJob, deadline: float) -> None:
        """The executor says it is over; what the socket says comes first, while it is there."""
        if job.ended or job.future is None:
            return
        if job.future.cancelled():
            self.end(job, (job.parcel, REPORT_CANCELLED, "unstarted"))
            return
        error = job.future.exception()
        if job.connection is not None and error is None and monotonic() < deadline:
            self.pump.at(monotonic() + 0.05, lambda: self._done(job, deadline))
            return
        if job.over is not None:
            self.end(job, job.over)
        elif error is not None:
            lost = TaskLost(f"{job.parcel.work.function.name}: its executor failed: {type(error).__name__}: {error}")
            lost.__cause__ = error
            self.end(job, (job.parcel, REPORT_LOST, lost))
        else:
            kind, value = job.future.result()
            if kind == "result":
                self.end(job, (job.parcel, REPORT_SUCCEEDED, value, None))
            elif kind == "error":
                self.end(job, (job.parcel, REPORT_FAILED, value))
            else:
                self.end(job, (job.parcel, REPORT_CANCELLED, value))

    def send(self, parcel: Parcel, name: str, packed: Any) -> bool:
        job = parcel._
        if not isinstance(job, RemoteJob):
            return super().send(parcel, name, packed)
        with self.lock:
            if job.ended:
                return False
            if job.connection is None:
                job.messages.append((name, packed))
                del job.messages[:-1000]
            else:
                job.tell((SEND, 1, name, packed))
            return True

    def grant(self, parcel: Parcel) -> None:
        job = parcel._
        if isinstance(job, RemoteJob):
            job.tell((CREDIT, 1))
        else:
            super().grant(parcel)

    def close(self) -> None:
        super().close()
        for job in list(self.jobs.values()):
            if isinstance(job, RemoteJob):
                self.end(job, (job.parcel, REPORT_LOST, TaskLost("the client was closed before the task ended")))
                if job.connection is not None:
                    job.connection.close()
        for connection in self._waiting:
            connection.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
