"""`Task`: what a caller holds of its work. A `concurrent.futures.Future` that also speaks and listens.

    reports ──▶ take ──▶ log ──▶ readers: iterators, the dispatcher (listeners)
                  └────▶ _settle ──▶ (listeners of the end) ──▶ _finish: waiters, done-callbacks

A task that says nothing and to which nobody listens has no log at all; its start and end are filled in when somebody
asks later. The result stays pickled until it is asked for, so no thread of ours runs the user's code for it.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, PENDING
from time import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .. import telemetry
from ..errors import RemoteError, TaskCancelled, Unreachable, UsageError
from ..event import Progress
from ..pool.pump import Timer
from ..pool.reports import (
    REPORT_CANCELLED,
    REPORT_ELSEWHERE,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETRYING,
    REPORT_RETURNED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_WAITING,
    REPORT_WANT,
)
from ..pool.reports import decode as decode_record
from .ending import _ending
from .hearing import Hearing
from .listeners import Listener
from .log import LOCAL
from .stream import Events, Items
from .waiting import in_loop, in_trio, wait, wait_async

if TYPE_CHECKING:
    from ..engine import Parcel
    from .client import Client
    from .options import Options

T = TypeVar("T")
State = Literal["pending", "running", "succeeded", "failed", "cancelled", "lost"]

log = logging.getLogger("revolve_assistant")


class _Acknowledged:
    """What `queued()` returns: awaitable, and done already unless it was called from an event loop."""

    def __init__(self, waiting: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        self._waiting = waiting

    def __await__(self) -> Generator[Any, None, None]:
        if self._waiting is not None:
            yield from self._waiting().__await__()


class Task(Hearing, concurrent.futures.Future[T]):  # type: ignore[override]
    """A callable handed over: a future that is awaitable (asyncio, trio), sends events and takes messages.

    Thread-safe. Made by `Client.submit`.
    """

    _messages: list[tuple[str, Any]] | None = None  # sent before the engine had it
    _timer: Any = None  # of its delay, or of its next attempt
    _stopping = False
    _noted = False
    _unique: str | None = None
    _attached = False  # somebody else's
    _stale = False  # it has ended here; its id goes on elsewhere, or may mean another run by now

    def __init__(self, client: Client, parcel: Parcel, options: Options) -> None:
        self._client = client
        self._parcel: Parcel | None = parcel
        self._function = parcel.work.function if parcel.work is not None else None
        self._options = options
        self._id: str = parcel.id

    @property
    def id(self) -> str:
        """32 hexadecimal digits; who knows it can `attach` while anybody holds the task."""
        if not self._noted:
            self._noted = True
            self._client._known[self._id] = self
        return self._id

    # --- the future

    @property
    def state(self) -> State:
        """`pending`, `running`, `succeeded`, `failed`, `cancelled` or `lost`."""
        if self._end is not None:
            return self._end[0]  # type: ignore[return-value]
        if self._foreign:
            return "lost"
        return "running" if self.running() else "pending"

    @property
    def progress(self) -> Progress | None:
        """The latest `Progress`, or None."""
        return self._progress

    def running(self) -> bool:
        if self._end is not None:
            return False
        if self._started is not None:
            return True
        parcel = self._parcel
        return (
            parcel is not None and parcel._ is not None and self._client._engine.state([self.id])[self.id] == "running"
        )

    def cancelled(self) -> bool:
        """True once the task has ended as cancelled."""
        return self._state is CANCELLED_AND_NOTIFIED

    def cancel(self) -> bool:
        """Start the ladder that stops the task: flag, exception, SIGTERM, SIGKILL. Returns at once.

        True: it has not ended, the request is taken (the work may still succeed). False: it has ended.
        """
        if self._end is not None:
            return False
        self._refuse_foreign()
        return self._client._cancel(self)

    def result(self, timeout: float | None = None) -> T:
        """The callable's return value; blocks up to `timeout` seconds, then raises `TimeoutError`.

        Raises what the callable raised; `TaskCancelled`, `TaskLost`, `TaskTimeout`, `TaskStalled`, `ClientClosed`.
        """
        if self._state is PENDING:
            self._wait(timeout)
        error = self._error()
        if error is not None:
            try:
                raise error
            finally:
                self = None  # type: ignore[assignment] # noqa: PLW0642 - no cycle through the traceback
                error = None
        value: T = self._value()
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None; blocks likewise. Raises `TaskCancelled` itself, as futures do."""
        if self._state is PENDING:
            self._wait(timeout)
        error = self._error()
        if isinstance(error, TaskCancelled):
            raise error
        if error is None and self._packed is not None:
            try:
                self._value()
            except RemoteError as problem:
                error = problem
        return error

    def add_done_callback(self, fn: Callable[[Task[T]], Any]) -> None:
        """Call `fn(task)` once the task has ended and its end's listeners have run, on the dispatcher."""
        self._refuse_foreign()
        with _ending:
            if not self.done():
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                self._client._dispatcher.get_ready()
                return
        self._client._dispatcher.post(lambda: self._call_back(fn))

    def __await__(self) -> Generator[Any, None, T]:
        while not self.done():
            yield from wait_async(self._register).__await__()
        return self.result()

    def queued(self, timeout: float = 5.0) -> _Acknowledged:
        """Return once the engine has acknowledged the task; an engine on this machine has it at once. Awaitable.

        In plain code it blocks; called from an event loop it has to be awaited. Raises `Unreachable` after `timeout`
        seconds.
        """
        client, parcel = self._client, self._parcel
        if not client._remote or parcel is None:
            return _Acknowledged()
        return _acknowledged(client, parcel, timeout)

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.name} {self.state}>"

    def set_running_or_notify_cancel(self) -> bool:
        raise UsageError("a Task is driven by its client")

    def set_result(self, result: T) -> None:
        raise UsageError("a Task is driven by its client")

    def set_exception(self, exception: BaseException | None) -> None:
        raise UsageError("a Task is driven by its client")

    # --- events and messages

    def events(self, *names: str) -> Events:
        """An iterator (`for` and `async for`) over the events, of these names when given: buffered ones, then live.

        The end event comes last whatever the names. Never raises the task's failure. What was trimmed before it
        was read is one event `gap(count)`. Each call is independent; while one is open and unread, the task may
        run up to 4 MiB of events ahead of it, then its `emit` waits.
        """
        return Events(self, names)

    def items(self) -> Items:
        """An iterator (`for` and `async for`) over what a generator task yields.

        Raises `TaskRestarted` when a new attempt begins after items were delivered.
        """
        return Items(self)

    def send(self, name: str, *args: Any) -> bool:
        """Send a message to the callable (`current_task().receive()`, `.on(name)`, or the answer to `ask`).

        Kept, up to 1,000, until the task starts. Never blocks. False: the task has ended. Raises `NotCarriable`.
        """
        from ..running.running import check_name
        from ..wire.values import pack_args

        check_name(name)
        self._refuse_foreign()
        return self._client._send(self, name, pack_args(args))

    def add_listener(self, name: str, fn: Callable[..., Any], *, priority: int = 0) -> None:
        """Call `fn(*args)` for every event `name`; `"*"` takes all, as `Event`. Higher priorities first.

        One added late first receives what is buffered.
        """
        self._add(name, Listener(fn, priority))

    def add_one_time_listener(self, name: str, fn: Callable[..., Any], *, priority: int = 0) -> None:
        """As `add_listener`, for one event."""
        self._add(name, Listener(fn, priority, True))

    def remove_listener(self, name: str, fn: Callable[..., Any]) -> None:
        """Forget the listener; one that is not there is passed over."""
        with _ending:
            if self._listeners is not None:
                self._listeners.remove(name, fn)
            if self._late:
                self._late = [(n, each) for n, each in self._late if n != name or each.fn != fn]
            self._routes = None

    def remove_all_listeners(self, name: str | None = None) -> None:
        """Forget all listeners, of `name` if given."""
        with _ending:
            if self._listeners is not None:
                self._listeners.clear(name)
            if self._late:
                self._late = [(n, each) for n, each in self._late if name is not None and n != name]
            self._routes = None

    def has_listeners(self, name: str | None = None) -> bool:
        """Whether anybody listens, to `name` if given."""
        return bool(self.get_listeners(name))

    def get_listeners(self, name: str | None = None) -> list[Callable[..., Any]]:
        """The listeners, of `name` if given, in the order in which they are called."""
        with _ending:
            known = self._listeners
            names = [name] if name is not None else list(known.by_name) if known is not None else []
            found = [fn for each in names for fn in (known.get(each) if known is not None else ())]
            return found + [each.fn for n, each in self._late or () if name is None or n == name]

    def emit(self, name: str, *args: Any) -> None:
        """Call the listeners of `name` here and now, in this thread; nothing is sent."""
        record = (LOCAL, 0, name, time(), args)
        self._call_listeners(record, 1, 1)
        for late in tuple(self._late or ()):  # added a moment ago, not yet sorted in by the dispatcher
            heard, listener = late
            if heard == name or heard == "*":
                if listener.once:
                    with _ending:
                        if late not in (self._late or ()):
                            continue
                        self._late.remove(late)  # type: ignore[union-attr]
                self._call_one(listener.fn, record, heard == "*", 1, 1)

    def emit_batch(self, events: Sequence[tuple[Any, ...]]) -> None:
        """`emit` each `(name, *args)` in order."""
        for name, *args in events:
            self.emit(name, *args)

    def show(self) -> Task[T]:
        """Draw a live bar, on stderr or in a notebook, until the task ends; returns the task. Blocks.

        Raises `UsageError` in the event loop that serves the task: `await asyncio.to_thread(task.show)`.
        """
        from ..views.show import show

        show([self])
        return self

    # --- reports of the engine (on its thread)

    def take(self, report: tuple[Any, ...]) -> None:
        kind = report[1]
        if kind == REPORT_SUCCEEDED:
            self._packed = report[2:]
            self._settle("succeeded")
        elif kind == REPORT_EVENTS:
            self._take_events(report[2], report[3])
        elif kind == REPORT_STARTED:
            self._take_start(report[2], report[3])
        elif kind == REPORT_WANT:
            self._ensure_log().wanted(lambda: self._client._grant(self))
        elif kind == REPORT_RETRYING:
            self._say_over("retrying", report[2], report[3])
        elif kind == REPORT_WAITING:
            self._say_over("waiting", report[2])
        elif kind == REPORT_CANCELLED:
            self._settle("cancelled", report[2], _cancelled(self, report[2]))
        elif kind == REPORT_RETURNED:
            self._result = report[2]
            self._settle("succeeded")
        elif kind == REPORT_FAILED:
            self._packed_error = report[2]
            self._attempt_failed("failed", None)
        elif kind == REPORT_RAISED:
            self._attempt_failed("failed", report[2])
        elif kind == REPORT_ELSEWHERE:  # nobody reads it there: it comes as any other
            self._take_events([decode_record(report[3])], len(report[3]))
        elif kind == REPORT_LOST:
            self._attempt_failed("lost", report[2])

    def _attempt_failed(self, state: str, error: BaseException | None) -> None:
        """An attempt failed: another one, or the end. What decides may run the user's code: not on the pump."""
        if self._options.retries and not self._stopping and not self._client._remote:  # there a worker decides
            self._client._dispatcher.post(lambda: self._retry_or_fail(state, error))
        else:
            self._settle(state, "", error)

    def _retry_or_fail(self, state: str, error: BaseException | None) -> None:
        from .options import next_delay

        parcel = self._parcel
        shown = error or self._unpack_error()
        delay = next_delay(self._options, parcel.attempt, shown) if parcel is not None and not self._stopping else None
        if delay is None or parcel is None:
            self._settle(state, "", shown)
            return
        with self._client._lock:
            if not self._stopping:
                self._timer = Timer(None)  # from now on it waits: messages are kept for the next attempt
        with _ending:
            self._packed_error = self._exception = None
        if telemetry.tracer is not None:
            telemetry.tracer.ended(self, "retrying", "", shown, delay)
        self._say_over("retrying", f"{type(shown).__name__}: {shown}", delay)
        self._client._again(self, delay)

    def _say_over(self, name: str, reason: str, *more: float) -> None:
        """An attempt is over, and another one follows."""
        if self._started is None:
            self._start_late(time())
        self._ensure_log().append([(LOCAL, 0, name, time(), (reason, *more))], 64 + len(reason))
        self._started = None
        self._progress = None
        if self._listened:
            self._post()


def _acknowledged(client: Client, parcel: Parcel, timeout: float) -> _Acknowledged:
    engine = client._engine

    def late() -> Unreachable:
        why = f": {engine.trouble}" if engine.trouble is not None else ""
        return Unreachable(f"{engine.place} has not acknowledged task {parcel.id} within {timeout:g} s{why}")

    def register(wake: Callable[[], None]) -> Callable[[], None]:
        return engine.when_acknowledged(parcel, wake)  # type: ignore[no-any-return]

    async def waiting() -> None:
        if in_trio():
            import sys

            with sys.modules["trio"].move_on_after(timeout):
                await wait_async(register)
                return
        else:
            import asyncio

            try:
                await asyncio.wait_for(wait_async(register), timeout)
                return
            except TimeoutError:
                pass
        raise late()

    if in_loop():
        return _Acknowledged(waiting)
    if not wait(register, timeout):
        raise late()
    return _Acknowledged()


def _cancelled(task: Task[Any], rung: str) -> TaskCancelled:
    error = TaskCancelled(f"task {task.id} was cancelled ({rung})")
    error.rung = rung
    return error


def missing(client: Client, task_id: str) -> Task[Any]:
    """A task that has ended because nobody knows its id."""
    from ..engine import Parcel
    from .options import PLAIN

    task: Task[Any] = Task(client, Parcel(task_id), PLAIN)
    text = f"no task {task_id!r} is known in this process: it may have ended and been dropped"
    task._settle("lost", "", LookupError(text))
    task._disarm()
    return task
