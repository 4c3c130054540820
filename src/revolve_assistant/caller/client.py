"""`Client`: what a caller holds. Hands tasks to an engine, keeps what comes back; an Executor for sync and async."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from .. import telemetry
from ..engine import Engine, Parcel
from ..errors import ClientClosed, NotCarriable
from ..pool.threads import OurThread
from ..wire.carry import Carrier
from .closing import Closing
from .dispatch import Dispatcher
from .ending import _ending, say_unretrieved
from .engines import choose_engine
from .listeners import Listener, Listeners
from .options import PLAIN, Options, options_of
from .patience import Patient
from .scheduling import Scheduling
from .steering import Steering
from .submitter import Submitter, sink
from .task import Task, _cancelled
from .waiting import wait

if TYPE_CHECKING:
    from ..wire.share import Share

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("revolve_assistant")
MAX_BUFFERED = 64 << 20  # bytes of events that a client keeps for all its tasks
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client(Closing, Steering, Scheduling, Patient, concurrent.futures.Executor):
    """Submits callables and hears from them while they run. Thread-safe.

    `url` names the engine (a URL, an engine object, None: `REVOLVE_URL`, else worker processes of this machine);
    `messenger` what carries events (None: the engine's own). `max_workers` None takes the CPUs this process may use.
    `initializer(*initargs)` runs once in each worker before its first task; it may return a context manager, whose
    exit runs when the worker ends. Further options are the provider's: `max_tasks_per_child`, `memory_limit` (bytes
    or "2GiB"), `concurrency` (coroutines at once in one child), `ladder` (three numbers of seconds).

    With the address of a queue (`gearman://…`) tasks go to workers elsewhere (`revolve worker`): `messenger` carries
    events back, `secret` (else REVOLVE_SECRET, REVOLVE_SECRET_FILE, or a file of this user's own on this machine) signs
    all that travels, and `result()` raises `Unreachable` once a server did not answer for `patience` seconds. Leaving
    the block then sends what was submitted and lets go: unfinished tasks raise `ClientClosed` and go on.
    `web` is a port of this machine (0: a free one) on which a browser sees the tasks, at the address `client.web`.

    Under `with` and for a bare `Client()` listeners run on a thread of the client's own, under `async with` in the
    event loop. Leaving the block waits for the ends of all tasks. Raises `UsageError`, `UnknownProvider`.
    """

    def __init__(
        self,
        url: str | Engine | concurrent.futures.Executor | None = None,
        *,
        messenger: Any = None,
        max_workers: int | None = None,
        namespace: str = "assistant",
        secret: str | bytes | Sequence[str | bytes] | None = None,
        patience: float = 300.0,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        web: int | str | None = None,
        **provider_options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, got {initializer!r:.100}")
        self.namespace = namespace
        self._patience = patience
        self._carrier = Carrier()
        self._reopen = not isinstance(url, (Engine, concurrent.futures.Executor))
        self._make: Callable[[], Any] = lambda: choose_engine(
            url, messenger, max_workers, namespace, secret, initializer, tuple(initargs), dict(provider_options)
        )
        self._engine: Any = self._make()
        self._serving: Any = None
        self._live = self._engine.traits.live
        self._remote = bool(getattr(self._engine, "remote", False))
        self._dispatcher = self._new_dispatcher()
        self._dispatcher.pump = self._pump_to_lead()
        self._listeners: Listeners | None = None
        self._listeners_version = 0
        self._tasks: dict[str, Task[Any]] = {}
        self._uniques: dict[str, Task[Any]] = {}
        self._heavy: dict[str, Task[Any]] = {}
        self._pinned: dict[str, Task[Any]] = {}  # attached ones that somebody listens to
        self._maps: set[Any] = set()
        self._ends: tuple[deque[tuple[Task[Any], str, str]], ...] = ()  # of those who want to see them
        self._known: weakref.WeakValueDictionary[str, Task[Any]] = weakref.WeakValueDictionary()
        self._held: dict[str, tuple[float, Task[Any]]] = {}  # for those who have tokens, until they expire
        self._lock = threading.Lock()
        self._drained: list[Callable[[], None]] = []
        self._shut = False
        self._closed = False
        self._loop_ident: int | None = None
        self._number = itertools.count(1)
        self._prefix = os.urandom(10).hex()
        self._finalizer = weakref.finalize(self, _abandon, self._engine, self._dispatcher)
        self._finalizer.atexit = False
        _clients.add(self)
        if web is not None:
            from ..views.web.serving import serving

            self._serving = serving(self, web)

    @property
    def web(self) -> str:
        """Where a browser sees the tasks (`web=`); "": nowhere."""
        return self._serving.url if self._serving is not None else ""

    def _new_dispatcher(self) -> Any:
        return Dispatcher()

    # --- submitting

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Task[T]: ...
    @overload
    def submit(self, fn: str, /, *args: Any, **kwargs: Any) -> Task[bytes]: ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Task[Any]:
        """Hand `fn(*args, **kwargs)` over and return its `Task` at once; does no I/O that could block.

        `fn` may be the name of a function that somebody else's worker serves, on engines that can call those (gearman):
        one bytes or text argument travels as it is, others as JSON; the result is bytes.

        Raises `UsageError` (not callable, wrong options), `NotCarriable` (names the part), `ClientClosed`.
        """
        return self._submit(options_of(fn) or PLAIN, fn, args, kwargs)

    def options(self, **changes: Any) -> Submitter:
        """Something with the same `submit` and `map`, with these options: `client.options(retries=3).submit(fn)`.

        timeout, stall, delay (seconds), retries, retry_on, backoff, priority (−9 … 9), unique, queue, history,
        capture. Raises `UsageError` at once.
        """
        return Submitter(self, changes)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        show: bool = False,
        errors: str = "raise",
    ) -> Generator[T, None, None]:
        """The results of `fn` for the items of `iterables`, in order, as they come; starts at once.

        Items travel in chunks, sized by how long they take (or `chunksize`), but each ends by itself: an exception
        or the death of a child concerns its item alone. `errors="return"` yields exceptions instead of raising
        them; `show=True` draws a bar on stderr; `timeout` seconds from the call raise `TimeoutError`. Closing the
        iterator early cancels what has not started.

        On a queue each item is a task, unless `chunksize` says how many share one: many times faster for short items,
        which then run again one by one if their chunk's process dies, and end when their chunk does.
        """
        return Submitter(self, {}).map(fn, *iterables, timeout=timeout, chunksize=chunksize, show=show, errors=errors)

    def share(self, value: T) -> Share[T]:
        """A handle to pass as an argument: the object is sent once a child, its large arrays in shared memory.

        The callable gets the object itself, numpy arrays read-only.
        """
        from ..wire.share import Share

        return Share(value)

    def _submit(self, options: Options, fn: Callable[..., Any] | str, args: Any, kwargs: Any) -> Task[Any]:
        if self._shut:
            raise ClientClosed("cannot submit: the client was shut down")
        if options.unique is not None:
            with self._lock:
                holder = self._uniques.get(options.unique)
            if holder is not None and holder._end is None:
                return holder
        if not self._live and not self._engine.children:
            self._engine.expect()
        body = b""
        if isinstance(fn, str):
            from .foreign import carry

            work, body = carry(self._engine, options, fn, args, kwargs)
        else:
            work = self._carrier.live(fn, args, kwargs) if self._live else self._carrier.carry(fn, args, kwargs)
        parcel = Parcel(
            self._new_id(),
            work=work,
            body=body,
            queue=options.queue,
            priority=options.priority,
            delay=options.delay if self._remote else 0.0,
        )
        task: Task[Any] = Task(self, parcel, options)
        parcel.owner = task
        if options is not PLAIN:
            parcel.options = options
            if options.retries and not self._remote:
                self._dispatcher.get_ready()
            if options.unique is not None:
                with self._lock:
                    holder = self._uniques.setdefault(options.unique, task)
                    if holder is not task and holder._end is None:
                        return holder
                    self._uniques[options.unique] = task
                task._unique = options.unique
        try:
            self._tasks[parcel.id] = task
            if self._shut:  # shut down meanwhile, by another thread
                raise ClientClosed("cannot submit: the client was shut down")
            if telemetry.tracer is not None:
                telemetry.tracer.submit(parcel)
            if options.delay and not self._remote:
                self._later(task, options.delay)
            else:
                self._engine.submit((parcel,), sink)
        except BaseException:  # also a Ctrl-C: nobody will hear of it, so nobody waits for it
            self._tasks.pop(parcel.id, None)
            raise
        return task

    def _later(self, task: Task[Any], delay: float) -> None:
        """Give a task to the engine after `delay` seconds, unless it is cancelled before."""
        pump = self._engine.pump
        pump.start()
        with self._lock:
            stopping = task._stopping
            if not stopping:
                task._timer = pump.at(monotonic() + delay, lambda: self._now(task))
        if stopping:
            task._settle("cancelled", "unstarted", _cancelled(task, "unstarted"))

    def _now(self, task: Task[Any]) -> None:
        with self._lock:
            parcel = task._parcel
            if task._end is not None or parcel is None:
                return
            task._timer = None
            messages, task._messages = task._messages, None
        try:
            self._engine.submit((parcel,), sink)
        except Exception as error:
            task._settle("lost", "", error)
            return
        for name, packed in messages or ():
            self._engine.send(parcel, name, packed)

    def _again(self, task: Task[Any], delay: float) -> None:
        """Another attempt of a task, after `delay` seconds."""
        old = task._parcel
        if old is None:
            return
        parcel = Parcel(
            old.id,
            work=old.work,
            owner=task,
            options=old.options,
            queue=old.queue,
            priority=old.priority,
            attempt=old.attempt + 1,
            headers=old.headers,
        )
        old.owner = old._ = None
        task._parcel = parcel
        self._later(task, delay)

    # --- what tasks ask

    def _cancel(self, task: Task[Any]) -> bool:
        with self._lock:
            task._stopping = True
            timer, task._timer = task._timer, None
            if timer is not None:
                timer.cancel()
        if timer is not None:  # it waits for its delay or its next attempt: nobody runs it
            task._settle("cancelled", "unstarted", _cancelled(task, "unstarted"))
            return True
        parcel = task._parcel
        if not self._engine.cancel(task._id) and parcel is not None and parcel._ is None:
            task._settle("cancelled", "unstarted", _cancelled(task, "unstarted"))  # it never got there
        return True

    def _send(self, task: Task[Any], name: str, packed: Any) -> bool:
        with self._lock:
            parcel = task._parcel
            if task._end is not None or parcel is None:
                return False
            if task._timer is not None:
                if task._messages is None:
                    task._messages = []
                task._messages.append((name, packed))
                del task._messages[:-1000]
                return True
        return bool(self._engine.send(parcel, name, packed))

    def _grant(self, task: Task[Any]) -> None:
        parcel = task._parcel
        if parcel is not None:
            self._engine.grant(parcel)

    def _weigh(self, task: Any) -> None:
        """Keep the client's buffers within their limit: the heaviest readers behind lose first."""
        heavy = self._heavy
        heavy[task._id] = task
        if len(heavy) > 8 and sum(each._log.weight for each in list(heavy.values()) if each._log) > MAX_BUFFERED:
            heaviest = max(list(heavy.values()), key=lambda each: each._log.weight if each._log else 0)
            if heaviest._log is not None:
                heaviest._log.drop()
            heavy.pop(heaviest._id, None)

    def _ended(self, task: Any) -> None:
        self._tasks.pop(task._id, None)
        for ends in self._ends:
            ends.append((task, task.name, task._options.queue))
        if self._heavy:
            self._heavy.pop(task._id, None)
        key: str | None = task._unique
        if key is not None:
            with self._lock:
                if self._uniques.get(key) is task:
                    del self._uniques[key]
        if task._log is not None:
            self._known[task._id] = task

    def _check_drained(self) -> None:
        """Something ended: perhaps it was the last."""
        if self._shut and not self._tasks and not self._maps:
            with self._lock:
                drained, self._drained = self._drained, []
            for call in drained:
                try:
                    call()
                except Exception:
                    log.exception("what waits for a client's last task failed")

    def _pump_to_lead(self) -> Any:
        """The pump of an engine that keeps children: the dispatcher may do its work while it has none of its own."""
        return self._engine.pump if self._engine.traits.kills and hasattr(self._engine, "pump") else None

    def _new_id(self) -> str:
        return f"{self._prefix}{next(self._number):012x}"

    def _owns(self, task_id: str) -> bool:
        """Whether the task was submitted in this process, and not in one that this one was forked from."""
        return task_id.startswith(self._prefix)

    def _blocks_itself(self) -> bool:
        """Whether this thread is one that must not wait for a task: it is what would end it."""
        pump = getattr(self._engine, "pump", None)
        return self._dispatcher.inside or (pump is not None and pump.inside)

    def _wait(self, task_id: str, ended: Callable[[], bool], timeout: float | None, register: Any) -> bool:
        """Block until `ended()`; False: `timeout` seconds passed. Takes the pump's role where that can be."""
        engine = self._engine
        if self._live and not ended():
            engine.help(task_id)
        pump = getattr(engine, "pump", None)
        if pump is not None and pump.lead(ended, timeout, register) and (ended() or timeout is not None):
            return ended()
        return self._wait_patiently(ended, timeout, register) if self._remote else wait(register, timeout)

    # --- listening

    def add_listener(self, name: str, fn: Callable[..., Any], *, priority: int = 0) -> None:
        """Hear an event of every task from now on; `"*"` hears all, as `Event`."""
        self._dispatcher.get_ready()
        with self._lock:
            if self._listeners is None:
                listeners = Listeners()
                listeners.add(name, Listener(fn, priority))
                self._listeners = listeners
            else:
                self._listeners.add(name, Listener(fn, priority))
            self._listeners_version += 1

    def remove_listener(self, name: str, fn: Callable[..., Any]) -> None:
        """Forget it; one that is not there is passed over."""
        with self._lock:
            if self._listeners is not None:
                self._listeners.remove(name, fn)
                self._listeners_version += 1

    def attach(self, task_id: str, *, within: float = 1.0) -> Task[Any]:
        """The task with this id: its whole history, then live. Never blocks.

        On a queue it may be the task of any client with the same secret, and be stopped and spoken to from here as
        well; so may code that somebody else runs (`reporting`). An id that is unknown, and still is after `within`
        seconds, ends as `LookupError`. Raises `Unsupported` where the messenger keeps no history.
        """
        known = self._tasks.get(task_id) or self._known.get(task_id) or _find(task_id)
        if known is not None and not known._stale:
            return known
        from .attached import attach

        return attach(self, task_id, within)

    def group(self, tasks: Iterable[Task[Any]]) -> Task[list[Any]]:
        """One task for many: its progress is theirs, its result the ordered list of theirs.

        Failures come as one `ExceptionGroup` once all have ended. Cancelling it cancels all.
        """
        from .group import Group

        return Group(self, list(tasks))

    def stack(self, task: Task[Any] | str) -> str:
        """The live stacks of a running task. Blocks some milliseconds. Raises `LookupError`, `Unsupported`."""
        known = self.attach(task) if isinstance(task, str) else task
        parcel = known._parcel
        if parcel is None:
            raise LookupError(f"task {known.id} is not running")
        return str(self._engine.stack(parcel))

    def show(self) -> None:
        """Draw live bars of all tasks, on stderr or in a notebook, until none is left. As `Task.show`."""
        from ..views.show import show

        show(list(self._tasks.values()))

    def __reduce__(self) -> Any:
        raise NotCarriable(
            "a Client cannot travel to another process: let the task make its own, or submit from a listener"
        )

    def _after_fork(self) -> None:
        """In a forked child: what the parent's workers do is the parent's; this process starts afresh."""
        self._inherited = vars(self).copy()  # not freed: that would touch, and so copy, what the parent shares
        self._lock = threading.Lock()
        self._prefix = os.urandom(10).hex()
        self._tasks, self._uniques, self._heavy, self._maps, self._drained = {}, {}, {}, set(), []
        if self._serving is not None:
            self._serving.close()
        self._pinned, self._ends, self._serving = {}, (), None
        self._dispatcher.after_fork()
        if hasattr(self._engine, "after_fork"):
            self._engine.after_fork()
        elif not self._closed and self._reopen:
            self._finalizer.detach()
            if self._remote:
                self._engine.abandon()
            self._engine = self._make()
            self._finalizer = weakref.finalize(self, _abandon, self._engine, self._dispatcher)
            self._finalizer.atexit = False
        self._dispatcher.pump = self._pump_to_lead()

    def __repr__(self) -> str:
        return f"<Client {type(self._engine).__module__.rpartition('.')[2]} {len(self._tasks)} tasks>"


def _find(task_id: str) -> Task[Any] | None:
    """A task of another client of this process, or one that has ended and is still held by somebody."""
    for client in list(_clients):
        task = client._tasks.get(task_id) or client._known.get(task_id)
        if task is not None and not task._attached:
            return task
    return None


def _abandon(engine: Any, dispatcher: Dispatcher) -> None:
    """The client was dropped without tasks in flight: let its workers go, without waiting."""

    def close() -> None:
        engine.close()
        dispatcher.stop()

    OurThread(close, "revolve-closer").start()


def _at_exit() -> None:
    """The interpreter ends: wait for the tasks as other executors do, then end the workers; no noise."""
    for client in list(_clients):
        if client._closed:
            continue
        try:
            client.shutdown(wait=True)
        except KeyboardInterrupt:
            client._close()
    say_unretrieved()


def _in_fork() -> None:
    _ending._at_fork_reinit()  # type: ignore[attr-defined]
    for client in list(_clients):
        client._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_fork)
threading._register_atexit(_at_exit)  # type: ignore[attr-defined] # as concurrent.futures does: before threads are joined
