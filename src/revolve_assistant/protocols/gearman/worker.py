"""A Gearman worker for Python 3: functions by name, any number of servers, several jobs at a time.

    server 1 ══ WorkerState ══╗                        ╔══ thread: fn(job) ─┐
    server 2 ══ WorkerState ══╬═ work(): poll, assign ═╬══ thread: fn(job) ─┤ job.data(…), its end: sent by the
                     stop() ──╝                        ╚══ …                ┘ thread itself, under the link's lock

With one thread (the usual case) `work` runs the functions itself, in the thread that called it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

from ...errors import ProtocolError, Unreachable, UsageError
from ..stream import Address, Server, Stream, addresses, named, stranger
from .job import JobFailed
from .limits import check_client_id, check_function
from .packets import MAX_BODY
from .worker_state import Assignment, Refusal, WorkerState

log = logging.getLogger("revolve_assistant.gearman")

_STRETCH = 0.005  # seconds for which quick jobs are done one after the other without a look at the network

Function = Callable[["WorkerJob"], "bytes | None"]


class WorkerJob:
    """A job to do. Its methods may be called from any thread; after its end, or its connection's, they do nothing.

    Each returns whether it was sent: False says that the job is no longer ours, and somebody else does it by now.
    """

    __slots__ = ("_assignment", "_link")

    def __init__(self, assignment: Assignment, link: _WorkerLink) -> None:
        self._assignment = assignment
        self._link = link

    def __repr__(self) -> str:
        return f"<WorkerJob {self.handle} of {self.function}>"

    @property
    def handle(self) -> str:
        return self._assignment.handle.decode("utf-8", "surrogateescape")

    @property
    def function(self) -> str:
        return self._assignment.function.decode("utf-8", "surrogateescape")

    @property
    def unique(self) -> str:
        return self._assignment.unique.decode("utf-8", "surrogateescape")

    @property
    def workload(self) -> bytes:
        return self._assignment.workload

    @property
    def ended(self) -> bool:
        """Whether its end was sent, or its connection was lost."""
        return self._assignment.ended

    def status(self, numerator: int, denominator: int) -> bool:
        """Tell the client how far it is."""
        return self._link.report(self._assignment, lambda state, job: state.status(job, numerator, denominator))

    def data(self, data: bytes) -> bool:
        """Send the client a part of the result."""
        return self._link.report(self._assignment, lambda state, job: state.data(job, data))

    def warning(self, data: bytes) -> bool:
        """Send the client a warning."""
        return self._link.report(self._assignment, lambda state, job: state.warning(job, data))

    def complete(self, result: bytes = b"") -> bool:
        """End it with a result; the same as returning it."""
        return self._link.report(self._assignment, lambda state, job: state.complete(job, result))

    def fail(self) -> bool:
        """End it as failed, without a word; the same as raising `JobFailed`."""
        return self._link.report(self._assignment, lambda state, job: state.fail(job))

    def exception(self, data: bytes) -> bool:
        """End it as failed, with these bytes; raising any other exception sends its class and message."""
        return self._link.report(self._assignment, lambda state, job: state.exception(job, data))


class GearmanWorker:
    """Takes jobs from every server of a list at once.

        with GearmanWorker([("127.0.0.1", 4730)]) as worker:
            worker.register("reverse", lambda job: job.workload[::-1])
            worker.work()

    `threads` functions run at a time; `prefetch` more jobs are taken ahead, which saves round trips and keeps them from
    other workers. A server that fails is tried again after 0.05 … 5 s; its jobs go to other workers. One
    thread calls `register` and `work`; `stop` and the methods of a job may be called from any.
    """

    def __init__(
        self,
        servers: str | Address | Iterable[str | Address] = (("127.0.0.1", 4730),),
        *,
        threads: int = 1,
        prefetch: int = 0,
        client_id: str | None = None,
        timeout: float = 10.0,
        connect_timeout: float = 3.0,
        heartbeat: float = 10.0,
        max_body: int = MAX_BODY,
    ) -> None:
        """Nothing is connected yet. `client_id` is what the server's list of workers shows.

        Seconds: `timeout` bounds each send and each answer to a ping, `connect_timeout` each attempt to connect; a
        server silent for `heartbeat` is pinged, and asked for jobs that became due meanwhile.
        """
        if threads < 1 or prefetch < 0:
            raise UsageError(f"threads={threads}, prefetch={prefetch}: at least 1 thread, and 0 or more taken ahead")
        self.threads = threads
        self.prefetch = prefetch
        self.client_id = check_client_id(client_id) if client_id is not None else None
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.heartbeat = heartbeat
        self.max_body = max_body
        self._functions: dict[bytes, Function] = {}
        self._links = [_WorkerLink(self, Server(address)) for address in addresses(servers)]
        self._stopping = False
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._waiting: deque[WorkerJob] = deque()  # taken and not started
        self._busy = 0  # functions that run in threads
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._todo: queue.SimpleQueue[WorkerJob | None] = queue.SimpleQueue()
        self._pool: list[threading.Thread] = []

    def __enter__(self) -> GearmanWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def register(self, name: str | bytes, function: Function) -> None:
        """Do jobs of this name with `function(job)`: the bytes that it returns are the result (None: none).

        Before `work`. What it raises fails the job, and is sent along as `Class: message`; `JobFailed` is not.
        """
        self._functions[check_function(name)] = function

    def stop(self) -> None:
        """Have `work` return once the functions that run have returned. From any thread, and from a signal handler."""
        self._stopping = True
        self.ring()

    def work(self, *, max_jobs: int | None = None, timeout: float | None = None) -> int:
        """Do jobs until `stop`, until `max_jobs` were done, or until `timeout` seconds passed; how many were done.

        Then disconnects: jobs taken and not started go back to the servers. A server away is no error: it is tried
        again, and logged once. A function's BaseException (KeyboardInterrupt) ends it too, and is raised.
        """
        if self._bell.fileno() < 0:
            raise UsageError("this GearmanWorker is closed; make another one")
        if not self._functions:
            raise UsageError("this worker can do nothing; call register(name, function) first")
        done = 0
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                over = (
                    self._stopping
                    or (max_jobs is not None and done >= max_jobs)
                    or (deadline is not None and time.monotonic() >= deadline)
                )
                if over and not self._busy:
                    return done
                room = self.threads + self.prefetch
                if max_jobs is not None:
                    room = min(room, max_jobs - done)
                self._exchange(0 if over else room, None if over else deadline)
                look_again = time.monotonic() + _STRETCH
                while not over and self._waiting and self._busy < self.threads and not self._stopping:
                    job = self._waiting.popleft()
                    if job.ended:  # with its connection
                        continue
                    if self.threads > 1:
                        self._hand_over(job)
                        continue
                    self._run(job)
                    done += 1
                    if time.monotonic() >= look_again or done == max_jobs:
                        break
                while not self._ended.empty():
                    self._busy -= 1
                    done += 1
                    error = self._ended.get()
                    if error is not None:
                        raise error
        finally:
            self._disconnect()

    def close(self) -> None:
        """Let go of everything. Idempotent; not while `work` runs (see `stop`)."""
        self._disconnect()
        self._bell.close()
        self._ear.close()

    # ---- within

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake anyway
            self._bell.send(b"!")

    def _exchange(self, room: int, deadline: float | None) -> None:
        """Connect what is due, send and take what is there; waits if nothing is to be done."""
        now = time.monotonic()
        held = sum(link.held for link in self._links)
        wake_at = [] if deadline is None else [deadline]
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        for link in self._links:
            # Room is shared: what one server gave leaves less to ask the others for.
            wake_at.append(link.prepare(now, max(0, room - held) + link.held))
            if link.stream is not None:  # only this thread sets it, or closes it
                poll.register(link.stream, select.POLLIN)
        ready = (self._waiting and self._busy < self.threads) or not self._ended.empty() or self._stopping
        pause = 0.0 if ready and (room or not self._busy) else max(0.0, min(wake_at) - time.monotonic())
        events = {fd for fd, _ in poll.poll(pause * 1000)}
        if self._ear.fileno() in events:
            self._ear.recv(4096)
        for link in self._links:
            if link.stream is not None and link.stream.fileno() in events:
                self._waiting.extend(link.take())

    def _run(self, job: WorkerJob) -> None:
        function = self._functions.get(job._assignment.function)
        if function is None:
            log.warning("%s assigned %s, which this worker does not do", named(job._link.server.address), job.function)
            job.fail()
            return
        try:
            result = function(job)
            if not job.ended:
                job.complete(result if result is not None else b"")
        except JobFailed:
            job.fail()
        except Exception as error:
            log.warning("job %s of %s failed", job.handle, job.function, exc_info=True)
            job.exception(_described(error)[: self.max_body - 100])

    def _hand_over(self, job: WorkerJob) -> None:
        self._busy += 1
        self._todo.put(job)
        if len(self._pool) < self._busy:
            thread = threading.Thread(target=self._serve, name=f"gearman-worker-{len(self._pool)}", daemon=True)
            self._pool.append(thread)
            thread.start()

    def _serve(self) -> None:
        while (job := self._todo.get()) is not None:
            error: BaseException | None = None
            try:
                self._run(job)
            except BaseException as caught:
                error = caught
            self._ended.put(error)
            self.ring()

    def _disconnect(self) -> None:
        for link in self._links:
            link.close()
        self._waiting.clear()
        for _ in self._pool:
            self._todo.put(None)
        for thread in self._pool:
            thread.join()
        self._pool.clear()
        while not self._ended.empty():
            self._ended.get()
        self._busy = 0
        self._stopping = False


class _WorkerLink:
    """One server of a worker. `report` comes from any thread, the rest from the one in `work`."""

    def __init__(self, worker: GearmanWorker, server: Server) -> None:
        self.worker = worker
        self.server = server
        self.stream: Stream | None = None
        self._state = WorkerState()
        self._lock = threading.Lock()
        self._last = 0.0
        self._pinged: float | None = None
        self._pid = 0
        self._dead = False

    @property
    def held(self) -> int:
        return len(self._state.held)

    def prepare(self, now: float, limit: int) -> float:
        """Connect if it is time, ask for up to `limit` jobs; when to look again at the latest."""
        with self._lock:
            if self.stream is not None and (self._dead or self._pid != os.getpid()):
                self._close()
            if self.stream is None:
                if self.server.not_before > now:
                    return self.server.not_before
                if not self._connect():
                    return self.server.not_before
                now = time.monotonic()
            self._state.limit = limit
            if self._pinged is not None and now - self._pinged >= self.worker.timeout:
                if not self._stream_has_data():
                    self._lost(Unreachable(f"{named(self.server.address)} is silent for {now - self._last:.3g} s"))
                    return self.server.not_before
            elif self._pinged is None and now - self._last >= self.worker.heartbeat:
                self._pinged = now
                self._state.ping()
                self._state.nudge()
            self._flush()
            if self._pinged is None:
                return self._last + self.worker.heartbeat
            return self._pinged + self.worker.timeout

    def take(self) -> list[WorkerJob]:
        """Read what is there: the jobs in it."""
        jobs: list[WorkerJob] = []
        with self._lock:
            try:
                data = self.stream.receive() if self.stream is not None and not self._dead else None
                if data is None:
                    return jobs
                self._last, self._pinged = time.monotonic(), None
                for found in self._state.receive(data):
                    if isinstance(found, Refusal):
                        log.warning("%s refused a report: %s %s", named(self.server.address), *found)
                    else:
                        jobs.append(WorkerJob(found, self))
                if self._state.error is not None:
                    raise self._state.error
                self.server.worked()
                self._flush()
            except ProtocolError as error:
                self._lost(stranger(self.server.address, error))
            except Unreachable as error:
                self._lost(error)
        return jobs

    def report(self, job: Assignment, write: Callable[[WorkerState, Assignment], None]) -> bool:
        with self._lock:
            if job not in self._state.held:
                return False
            write(self._state, job)
            return self._flush()

    def close(self) -> None:
        with self._lock:
            self._close()

    def _connect(self) -> bool:
        try:
            others = any(link.stream is not None for link in self.worker._links)
            timeout = min(self.worker.connect_timeout, 0.5) if others else self.worker.connect_timeout
            self.stream = Stream.connect(self.server.address, timeout)
        except Unreachable as error:
            self._failed(error)
            return False
        self._state = WorkerState(limit=0, max_body=self.worker.max_body)
        self._pid, self._dead = os.getpid(), False
        self._last = self._pinged = time.monotonic()
        self._state.ping()  # whoever does not answer this is no Gearman server
        if self.worker.client_id is not None:
            self._state.client_id(self.worker.client_id)
        for name in self.worker._functions:
            self._state.can_do(name)
        return True

    def _flush(self) -> bool:
        """Send what the state has; True if the connection lives."""
        if self.stream is None or self._dead:
            return False
        data = memoryview(self._state.data_to_send())
        deadline = time.monotonic() + self.worker.timeout
        try:
            while data:
                sent = self.stream.send(data)
                data = data[sent:]
                if data and not sent and not self.stream.wait(deadline - time.monotonic(), write=True, read=False):
                    raise Unreachable(f"{named(self.server.address)} takes no more data; {len(data)} bytes are left")
        except Unreachable as error:
            self._lost(error)
            return False
        except BaseException:  # half a packet may be out
            self._lost(Unreachable(f"interrupted while sending to {named(self.server.address)}"))
            raise
        return True

    def _stream_has_data(self) -> bool:
        return self.stream is not None and self.stream.wait(0)

    def _lost(self, error: Exception) -> None:
        """End the connection. The thread in `work`, which may be polling it, wakes and closes it."""
        if self.stream is not None:
            self.stream.shutdown()
        self._dead = True
        with contextlib.suppress(ProtocolError):
            self._state.end()
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self.server.error is None:
            log.warning("%s; trying again", error)
        self.server.failed(error)

    def _close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        with contextlib.suppress(ProtocolError):
            self._state.end()
        self._pinged = None


def _described(error: Exception) -> bytes:
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be made)"
    return f"{type(error).__name__}: {text}".encode("utf-8", "backslashreplace")
