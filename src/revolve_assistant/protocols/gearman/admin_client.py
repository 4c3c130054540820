"""What an administrator asks a server: its functions, workers and jobs."""

from __future__ import annotations

import threading
import time
from typing import TypeVar

from ...errors import ProtocolError, ProviderError, Unreachable
from ..stream import Address, Stream, addresses, named, stranger
from . import admin
from .admin import AdminState, Command, FunctionStatus, JobInfo, PriorityStatus, WorkerInfo
from .packets import MAX_BODY

T = TypeVar("T")


class GearmanAdmin:
    """One server's administration. Connects at the first call, anew when the connection was lost.

    Every method may be called from any thread, one at a time works. Each is bounded by `timeout` seconds and raises
    `Unreachable` then; `Refused` with the server's word for what it does not do.
    """

    def __init__(
        self, server: str | Address = ("127.0.0.1", 4730), *, timeout: float = 10.0, max_bytes: int = MAX_BODY
    ) -> None:
        """Nothing is connected yet. An answer of more than `max_bytes` bytes is a `ProtocolError`."""
        (self.address,) = addresses([server])
        self.timeout = timeout
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._state = AdminState()

    def __enter__(self) -> GearmanAdmin:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. The next call connects again."""
        with self._lock:
            self._drop()

    def status(self) -> dict[str, FunctionStatus]:
        """Jobs and workers of each function."""
        return self._ask(admin.status())

    def prioritystatus(self) -> dict[str, PriorityStatus]:
        """Waiting jobs of each function, by priority."""
        return self._ask(admin.prioritystatus())

    def workers(self) -> list[WorkerInfo]:
        """Every connection of the server, this one too."""
        return self._ask(admin.workers())

    def jobs(self) -> list[JobInfo]:
        """Every job that waits or runs."""
        return self._ask(admin.show_jobs())

    def unique_jobs(self) -> list[str]:
        """The uniques of the jobs that wait or run."""
        return self._ask(admin.show_unique_jobs())

    def cancel(self, handle: str | bytes) -> bool:
        """Keep a job from starting; its clients hear that it failed. One that runs goes on. False: no such job."""
        return self._ask(admin.cancel_job(handle))

    def max_queue(self, function: str | bytes, *limits: int) -> None:
        """The most jobs of a function (which must exist) that may wait: nothing for no limit, one number for all
        priorities together, or high, normal, low."""
        self._ask(admin.maxqueue(function, *limits))

    def create_function(self, function: str | bytes) -> None:
        """Have the server know a function before any worker or job does."""
        self._ask(admin.create_function(function))

    def drop_function(self, function: str | bytes) -> None:
        """Have the server forget a function that has no workers and no jobs."""
        self._ask(admin.drop_function(function))

    def pid(self) -> int:
        """The server's process."""
        return self._ask(admin.getpid())

    def version(self) -> str:
        """The server's version."""
        return self._ask(admin.version())

    def verbosity(self) -> str:
        """How much the server logs."""
        return self._ask(admin.verbose())

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _ask(self, command: Command[T]) -> T:
        with self._lock:
            deadline = time.monotonic() + self.timeout
            fresh = self._stream is None
            try:
                try:
                    return self._exchange(command, deadline)
                except Unreachable:
                    if fresh or time.monotonic() >= deadline:
                        raise
                    self._drop()  # an old connection; the server may have been restarted
                    return self._exchange(command, deadline)
            except admin.Refused:
                raise
            except ProtocolError as error:
                self._drop()
                raise stranger(self.address, error) from error
            except BaseException:
                self._drop()
                raise

    def _exchange(self, command: Command[T], deadline: float) -> T:
        if self._stream is None:
            self._stream = Stream.connect(self.address, deadline - time.monotonic())
            self._state = AdminState(max_bytes=self.max_bytes)
        stream = self._stream
        asked = self._state.ask(command)
        data = self._state.data_to_send()
        while data or not asked.done:
            sent = stream.send(data) if data else 0
            data = data[sent:]
            received = stream.receive()
            if received is not None:
                self._state.receive(received)
                if self._state.error is not None:
                    raise self._state.error
            elif not sent and not stream.wait(deadline - time.monotonic(), write=bool(data)):
                line = command.line.decode()
                raise Unreachable(f"{named(self.address)} did not answer {line!r} within {self.timeout:.3g} s")
        if asked.error is not None:
            raise asked.error
        if asked.value is None:
            raise ProviderError(f"no value for {command.line.decode()!r}")
        return asked.value
