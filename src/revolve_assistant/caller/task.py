"""`Task`: what a caller holds of its work. A `concurrent.futures.Future` that also speaks and listens.

    reports ──▶ take ──▶ log ──▶ readers: iterators, the dispatcher (listeners)
                  └────▶ _settle ──▶ (listeners of the end) ──▶ _finish: waiters, done-callbacks

A task that says nothing and to which nobody listens has no log at all; its start and end are filled in when somebody
asks later. The result stays pickled until it is asked for, so no thread of ours runs the user's code for it.
"""

from __future__ import annotations

import concurrent.futures
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from time import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import ClientClosed, RemoteError, TaskCancelled, UsageError
from ..event import ENDS, Progress
from ..pool.reports import (
    PROGRESS,
    REPORT_CANCELLED,
    REPORT_EVENTS,
    REPORT_FAILED,
    REPORT_LOST,
    REPORT_RAISED,
    REPORT_RETURNED,
    REPORT_STARTED,
    REPORT_SUCCEEDED,
    REPORT_WANT,
)
from ..wire.carry import unpack
from ..wire.remote import not_rebuilt, unpack_error
from .listeners import Listener, Listeners
from .log import GAP, LOCAL, Log, Reader, arguments, event
from .stream import Events, Items
from .waiting import wait, wait_async

if TYPE_CHECKING:
    from ..engine import Parcel
    from .client import Client
    from .options import Options

T = TypeVar("T")
State = Literal["pending", "running", "succeeded", "failed", "cancelled", "lost"]

log = logging.getLogger("revolve_assistant")
_ending = threading.RLock()  # guards the ends of all tasks: a few hundred nanoseconds each
_condition = threading.Condition(_ending)  # what concurrent.futures.wait and as_completed lock


class _Unretrieved:
    """Logs a failure that nobody asked for, when the task is dropped."""

    __slots__ = ("__weakref__", "error", "packed", "text")

    def __init__(self, text: str, error: BaseException | None, packed: bytes | None) -> None:
        self.text = text
        self.error = error
        self.packed = packed
        _unretrieved.add(self)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.say()

    def say(self) -> None:
        if self.text:
            error = self.error or unpack_error(self.packed or b"")
            log.error("%s: %s: %s", self.text, type(error).__name__, error)
            self.text = ""


_unretrieved: weakref.WeakSet[_Unretrieved] = weakref.WeakSet()


def say_unretrieved() -> None:
    """The interpreter ends: log the failures nobody asked for, also of tasks that are still held."""
    for each in list(_unretrieved):
        each.say()


class _Acknowledged:
    """What `queued()` returns: done already, and awaitable."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class Task(concurrent.futures.Future[T]):
    """A callable handed over: a future that is awaitable (asyncio, trio), sends events and takes messages.

    Thread-safe. Made by `Client.submit`.
    """

    # class-wide defaults: a task costs what it uses
    _state = PENDING
    _log: Log | None = None
    _listeners: Listeners | None = None
    _late: list[tuple[str, Listener]] | None = None
    _reader: Reader | None = None
    _routes: dict[str, Any] | None = None
    _routes_version = -1
    _posted = False
    _started: tuple[Any, float] | None = None  # (worker, Unix time)
    _progress: Progress | None = None
    _end: tuple[Any, ...] | None = None  # (name, time)
    _packed: tuple[bytes, Any] | None = None
    _result: Any = None
    _exception: BaseException | None = None
    _packed_error: bytes | None = None
    _unretrieved: _Unretrieved | None = None
    _wakes: list[Callable[[], None]] | None = None
    _callbacks: list[Callable[[Any], Any]] | None = None
    _cf_waiters: list[Any] | None = None
    _messages: list[tuple[str, Any]] | None = None
    _timer: Any = None
    _stopping = False
    _unique: str | None = None

    def __init__(self, client: Client, parcel: Parcel, options: Options) -> None:
        self._client = client
        self._parcel: Parcel | None = parcel
        self._function = parcel.work.function if parcel.work is not None else None
        self._options = options
        self.id: str = parcel.id

    # --- what concurrent.futures.wait and as_completed touch

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        return _condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        waiters = self._cf_waiters
        if waiters is None:
            waiters = self._cf_waiters = []
        return waiters

    # --- the future

    @property
    def name(self) -> str:
        """`module:qualname` of the callable."""
        return self._function.name if self._function is not None else ""

    @property
    def state(self) -> State:
        """`pending`, `running`, `succeeded`, `failed`, `cancelled` or `lost`."""
        if self._end is not None:
            return self._end[0]  # type: ignore[no-any-return]
        return "running" if self.running() else "pending"

    @property
    def progress(self) -> Progress | None:
        """The latest `Progress`, or None."""
        return self._progress

    def done(self) -> bool:
        return self._state is FINISHED or self._state is CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        if self._end is not None:
            return False
        if self._started is not None:
            return True
        parcel = self._parcel
        return parcel is not None and parcel._ is not None and self._client._engine.state([self.id])[self.id] == "running"

    def cancelled(self) -> bool:
        """True once the task has ended as cancelled."""
        return self._state is CANCELLED_AND_NOTIFIED

    def cancel(self) -> bool:
        """Start the ladder that stops the task: flag, exception, SIGTERM, SIGKILL. Returns at once.

        True: it has not ended, the request is taken (the work may still succeed). False: it has ended.
        """
        if self._end is not None:
            return False
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
        return self._value()

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

    def add_done_callback(self, fn: Callable[[Task[T]], Any]) -> None:  # type: ignore[override]
        """Call `fn(task)` once the task has ended and its end's listeners have run, on the dispatcher."""
        with _ending:
            if not self.done():
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        self._client._dispatcher.post(lambda: self._call_back(fn))

    def _call_back(self, fn: Callable[[Task[T]], Any]) -> None:
        try:
            fn(self)
        except Exception:
            log.exception("done-callback %r of task %s failed", fn, self.id)

    def __await__(self) -> Generator[Any, None, T]:
        while not self.done():
            yield from wait_async(self._register).__await__()
        return self.result()

    def queued(self, timeout: float = 5.0) -> _Acknowledged:
        """Return once the engine has acknowledged the task; an engine on this machine has it at once. Awaitable.

        Raises `Unreachable` after `timeout` seconds.
        """
        return _Acknowledged()

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
        self._call_listeners((LOCAL, 0, name, time(), args), 1, 0)

    def emit_batch(self, events: Sequence[tuple[Any, ...]]) -> None:
        """`emit` each `(name, *args)` in order."""
        for name, *args in events:
            self.emit(name, *args)

    def show(self) -> Task[T]:
        """Draw a live bar on stderr until the task ends; returns the task. Blocks."""
        from ..views.show import show

        show([self])
        return self

    # --- reports of the engine (on its thread)

    def take(self, report: tuple[Any, ...]) -> None:
        kind = report[1]
        if kind == REPORT_SUCCEEDED:
            self._packed = report[2:]
            if self._log is None and not self._listened and not self._end_quietly():
                return
            self._settle("succeeded")
        elif kind == REPORT_EVENTS:
            self._take_events(report[2], report[3])
        elif kind == REPORT_STARTED:
            self._take_start(report[2], report[3])
        elif kind == REPORT_WANT:
            self._ensure_log().wanted(lambda: self._client._grant(self))
        elif kind == REPORT_CANCELLED:
            self._fail("cancelled", _cancelled(self, report[2]), report[2])
        elif kind == REPORT_RETURNED:
            self._result = report[2]
            self._settle("succeeded")
        elif kind == REPORT_FAILED:
            self._packed_error = report[2]
            self._attempt_failed("failed", None)
        elif kind == REPORT_RAISED:
            self._attempt_failed("failed", report[2])
        elif kind == REPORT_LOST:
            self._attempt_failed("lost", report[2])

    def _end_quietly(self) -> bool:
        """The commonest end, in one step: success that nobody listens to. True: somebody does after all."""
        with _ending:
            if self._log is not None or self._listened:
                return True
            if self._end is not None:
                return False
            now = time()
            parcel = self._parcel
            if parcel is not None:
                if self._started is None:
                    self._started = (getattr(parcel._, "child", None), now)
                parcel.owner = None
                self._parcel = None
            self._end = ("succeeded", now, "")
            self._state = FINISHED
            wakes, self._wakes = self._wakes, None
            callbacks, self._callbacks = self._callbacks, None
            if self._cf_waiters:
                for waiter in self._cf_waiters:
                    waiter.add_result(self)
        if wakes is not None:
            for wake in wakes:
                wake()
        if callbacks is not None:
            self._post_callbacks(callbacks)
        self._client._ended(self)
        return False

    def _post_callbacks(self, callbacks: list[Callable[[Any], Any]]) -> None:
        for fn in callbacks:
            self._client._dispatcher.post(lambda fn=fn: self._call_back(fn))  # type: ignore[misc]

    def _take_events(self, records: list[Any], size: int) -> None:
        for record in reversed(records):
            if record[0] == PROGRESS:
                self._progress = Progress(*record[4:8])
                break
        kept = self._log or self._ensure_log()
        kept.append(records, size)
        if self._listened:
            self._post()
        if kept.size > 65536:
            self._client._weigh(self)

    def _take_start(self, worker: str, when: float) -> None:
        with _ending:
            self._started = (worker, when)
            kept = self._log
            if kept is None and self._listened:
                self._ensure_log()
            elif kept is not None:
                kept.begin_attempt()
                kept.append([(LOCAL, 0, "started", when, (worker,))], 64)
        if self._listened:
            self._post()

    @property
    def _listened(self) -> bool:
        return self._listeners is not None or self._late is not None or self._client._listeners is not None

    def _attempt_failed(self, state: str, error: BaseException | None) -> None:
        """An attempt failed: another one, or the end. What decides may run the user's code: not on the pump."""
        if self._options.retries and not self._stopping:
            self._client._dispatcher.post(lambda: self._retry_or_fail(state, error))
        else:
            self._fail(state, error)

    def _retry_or_fail(self, state: str, error: BaseException | None) -> None:
        from .options import next_delay

        parcel = self._parcel
        shown = error or self._unpack_error()
        delay = next_delay(self._options, parcel.attempt, shown) if parcel is not None and not self._stopping else None
        if delay is None or parcel is None:
            self._fail(state, shown)
            return
        self._packed_error = None
        if self._started is None:
            self._start_late(time())
        kept = self._ensure_log()
        reason = f"{type(shown).__name__}: {shown}"
        kept.append([(LOCAL, 0, "retrying", time(), (reason, delay))], 64 + len(reason))
        self._started = None
        self._progress = None
        if self._listened:
            self._post()
        self._client._again(self, delay)

    def _fail(self, state: str, error: BaseException | None, rung: str = "") -> None:
        self._exception = error
        if state != "cancelled":
            text = f"task {self.id} ({self.name}) {state}, and nobody asked"
            self._unretrieved = _Unretrieved(text, error, self._packed_error)
        self._settle(state, rung)

    def _settle(self, state: str, rung: str = "") -> None:
        """The end is known: log it; listeners of the end come before waiters."""
        with _ending:
            if self._end is not None:
                return
            now = time()
            if self._started is None:
                self._start_late(now)
            self._end = (state, now, rung)
            kept = self._log
            listened = self._listened
            if kept is None and listened:
                kept = self._ensure_log()
            elif kept is not None:
                self._log_end(kept)
        if listened:
            self._post()
        else:
            self._finish()

    def _start_late(self, now: float) -> None:
        """It ended before its start was announced; one that never started stays without."""
        parcel = self._parcel
        job = parcel._ if parcel is not None else None
        child = getattr(job, "child", None)
        if child is not None:
            if self._log is not None or self._listened:
                self._take_start(child.name, now)
            else:
                self._started = (child, now)

    def _log_end(self, kept: Log) -> None:
        end = self._end
        assert end is not None
        if not kept.attempts:
            kept.begin_attempt()
        kept.append([(LOCAL, 0, end[0], end[1], None)], 64)

    def _finish(self) -> None:
        """Wake whoever waits."""
        with _ending:
            cancelled = self._end is not None and self._end[0] == "cancelled"
            self._state = CANCELLED_AND_NOTIFIED if cancelled else FINISHED
            wakes, self._wakes = self._wakes, None
            callbacks, self._callbacks = self._callbacks, None
            if self._cf_waiters:
                for waiter in self._cf_waiters:
                    if cancelled:
                        waiter.add_cancelled(self)
                    elif self._end is not None and self._end[0] == "succeeded":
                        waiter.add_result(self)
                    else:
                        waiter.add_exception(self)
            parcel = self._parcel
            if parcel is not None:
                parcel.owner = None
                self._parcel = None
        if wakes is not None:
            for wake in wakes:
                wake()
        if callbacks is not None:
            self._post_callbacks(callbacks)
        self._client._ended(self)

    # --- the log

    def _ensure_log(self) -> Log:
        with _ending:
            kept = self._log
            if kept is None:
                kept = Log()
                if self._started is not None:
                    worker, when = self._started
                    worker = getattr(worker, "name", worker)
                    kept.begin_attempt()
                    kept.append([(LOCAL, 0, "started", when, (worker,))], 64)
                if self._end is not None:
                    self._log_end(kept)
                self._log = kept
            return kept

    def _materialize(self, record: Any) -> Any:
        """A record whose arguments can be read: the end's are made when they are needed."""
        if record[0] == LOCAL and record[4] is None:
            state = record[2]
            if state == "succeeded":
                error = None
                try:
                    value = self._value()
                except BaseException as problem:  # it cannot be rebuilt here: result() says so
                    value, error = None, problem
                args: tuple[Any, ...] = (value if error is None else error,)
            elif state == "cancelled":
                args = (self._end[2] if self._end is not None else "",)
            elif state == "lost":
                args = (str(self._error()),)
            else:
                args = (self._error(),)
            return (LOCAL, 0, state, record[3], args)
        return record

    # --- listeners (on the dispatcher)

    def _add(self, name: str, listener: Listener) -> None:
        check = Listeners()
        check.add(name, listener)
        with _ending:
            if self._reader is None and self._log is None and self._end is None:
                if self._listeners is None:
                    self._listeners = Listeners()
                self._listeners.add(name, listener)
                self._routes = None
                return
            if self._late is None:
                self._late = []
            self._late.append((name, listener))
        self._ensure_log()
        self._post()

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            self._client._dispatcher.post(self._dispatch)

    def _dispatch(self) -> None:
        """Call the listeners of what has come. Runs on the dispatcher alone."""
        self._posted = False
        kept = self._ensure_log()
        if self._late:
            with _ending:
                late, self._late = self._late, None
                if self._listeners is None:
                    self._listeners = Listeners()
            for name, listener in late:
                self._catch_up(kept, name, listener)
        if self._end is not None and self.done():
            return
        reader = self._reader
        if reader is None:
            reader = self._reader = kept.reader(_nothing)
        while True:
            records = reader.take()
            if not records:
                return
            index = reader.next - len(records)
            if records[0][0] == GAP:
                index += 1
            call = self._call_listeners
            for record in records:
                call(record, 0, index)
                index += record[0] != GAP
            if records[-1][0] == LOCAL and records[-1][2] in ENDS:
                reader.close()
                self._finish()
                return

    def _catch_up(self, kept: Log, name: str, listener: Listener) -> None:
        """A late listener hears first what is buffered and was already dispatched."""
        reader = self._reader
        stop = reader.next if reader is not None else 0
        if self.done():
            stop = kept.first + len(kept.records)
        with kept.lock:
            first = kept.first
            records = [kept.records[i] for i in range(min(stop - first, len(kept.records)))] if stop > first else []
        heard = False
        for offset, record in enumerate(records):
            if heard and listener.once:
                break
            if name == "*" or record[2] == name:
                heard = True
                self._call_one(listener.fn, record, name == "*", first + offset)
        if not (heard and listener.once):
            with _ending:
                if self._listeners is not None:
                    self._listeners.add(name, listener)
                self._routes = None

    def _route(self, name: str) -> Any:
        """(listener, takes the Event, whose) for an event, in the order of their calls."""
        client = self._client._listeners
        version = self._client._listeners_version
        if self._routes is None or self._routes_version != version:
            self._routes = {}
            self._routes_version = version
        route = []
        for listeners, mine in ((self._listeners, True), (client, False)):
            if listeners is not None:
                found = [(each, False, mine, name) for each in listeners.by_name.get(name, ())]
                found += [(each, True, mine, "*") for each in listeners.by_name.get("*", ())]
                found.sort(key=lambda entry: -entry[0].priority)
                route += found
        self._routes[name] = route
        return route

    def _call_listeners(self, record: Any, seq: int, index: int) -> None:
        routes = self._routes
        name = record[2]
        if routes is None or self._routes_version != self._client._listeners_version:
            route = self._route(name)
        else:
            found = routes.get(name)
            route = self._route(name) if found is None else found
        if not route:
            return
        if record[0] == LOCAL and record[4] is None:
            record = self._materialize(record)
        for listener, star, mine, key in route:
            if listener.once:
                owner = self._listeners if mine else self._client._listeners
                if owner is None or not owner.discard(key, listener):
                    continue
                self._routes = None
                if not mine:
                    self._client._listeners_version += 1
            if star:
                self._call_one(listener.fn, record, True, index, seq)
            else:
                try:
                    listener.fn(*arguments(record))
                except Exception:
                    self._complain(listener.fn, name)
                except BaseException:
                    self._complain(listener.fn, name)

    def _call_one(self, fn: Callable[..., Any], record: Any, star: bool, index: int, seq: int = 0) -> None:
        record = self._materialize(record)
        try:
            if star:
                kept = self._log
                attempt, first = kept.attempt_at(index) if kept is not None else (1, 0)
                fn(event(self.id, attempt, seq or (0 if record[0] == GAP else index - first + 1), record))
            else:
                fn(*arguments(record))
        except BaseException:
            self._complain(fn, record[2])

    def _complain(self, fn: Callable[..., Any], name: str) -> None:
        log.exception("listener %r failed at event %r of task %s", fn, name, self.id)

    # --- waiting

    def _register(self, wake: Callable[[], None]) -> Callable[[], None]:
        with _ending:
            if not self.done():
                if self._wakes is None:
                    self._wakes = []
                self._wakes.append(wake)
                return lambda: self._forget(wake)
        wake()
        return _nothing

    def _forget(self, wake: Callable[[], None]) -> None:
        with _ending:
            if self._wakes is not None and wake in self._wakes:
                self._wakes.remove(wake)

    def _wait(self, timeout: float | None) -> None:
        if self.done():
            return
        self._refuse_blocking("result() would wait")
        if not self._client._wait(self.id, self.done, timeout, self._register):
            raise TimeoutError(f"task {self.id} has not ended within {timeout} s")

    def _wait_quietly(self) -> None:
        if not self.done() and not self._client._dispatcher.inside:
            wait(self._register, None)

    async def _wait_quietly_async(self) -> None:
        if not self.done() and not self._client._dispatcher.inside:
            await wait_async(self._register)

    def _refuse_blocking(self, what: str) -> None:
        if self._client._blocks_itself():
            raise UsageError(
                f"{what} for ever: this is the thread that serves task {self.id}; "
                "await the task, or add a done-callback"
            )

    # --- outcome

    def _value(self) -> Any:
        packed = self._packed
        if packed is None:
            return self._result
        try:
            value = unpack(*packed)
        except BaseException as problem:
            error = not_rebuilt(self.name, problem)
            with _ending:
                self._exception = error
                self._packed = None
            raise error from problem
        with _ending:
            if self._packed is not None:
                self._result = value
                self._packed = None
        return self._result

    def _error(self) -> BaseException | None:
        self._disarm()
        if self._exception is None and self._packed_error is not None:
            self._unpack_error()
        return self._exception

    def _unpack_error(self) -> BaseException:
        error = unpack_error(self._packed_error or b"")
        with _ending:
            if self._exception is None:
                self._exception = error
            self._packed_error = None
            return self._exception

    def _disarm(self) -> None:
        unretrieved = self._unretrieved
        if unretrieved is not None:
            self._unretrieved = None
            unretrieved.text = ""

    def _close(self, text: str) -> None:
        """End here what goes on elsewhere."""
        self._exception = ClientClosed(text)
        self._settle("lost")


def _cancelled(task: Task[Any], rung: str) -> TaskCancelled:
    error = TaskCancelled(f"task {task.id} was cancelled ({rung})")
    error.rung = rung
    return error


def missing(client: Client, task_id: str) -> Task[Any]:
    """A task that has ended because nobody knows its id."""
    from ..engine import Parcel
    from .options import PLAIN

    task: Task[Any] = Task(client, Parcel(task_id), PLAIN)
    task._exception = LookupError(f"no task {task_id!r} is known in this process: it may have ended and been dropped")
    task._settle("lost")
    return task


def _nothing() -> None:
    pass

