"""What becomes of the tasks of a Worker, told to whoever asked: listeners, metrics, traces.

    speaker ──_Taken──▶ notices ──▶ Metrics.note                 at once, on the speaker's thread: it only counts
                              └──▶ Listening.note ──▶ queue ──▶ listeners, "watch" spans     on a thread of its own

Nobody asked: nothing of this runs. The queue is bounded; what a slow listener lets fall out of it is one event `gap`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..caller.listeners import Listener, Listeners
from ..errors import UsageError
from ..event import LIFECYCLE
from ..pool.threads import Gate, OurThread
from ..wire.remote import described
from .monitor import NAMES

if TYPE_CHECKING:
    from ..telemetry.tracing import Tracer
    from .held import Held
    from .served import Served
    from .speaker import _Taken
    from .worker import Worker

log = logging.getLogger("revolve_assistant")
BEHIND = 10_000  # notices that may wait for the listeners


class WorkerEvent(msgspec.Struct, frozen=True):
    """Something that became of a task on a Worker: what its listeners get.

    `name` is `started`, `succeeded`, `failed`, `cancelled`, `lost`, `retrying`, `waiting` or `gap`; `function` is
    `module:qualname`; `attempt` counts from 1; `time` is Unix seconds; `seconds` since the attempt's start, None where
    it has none. `reason` says why, in one line; `error_type` (with its module, unless it is a builtin), `message` and
    `traceback` are of the error, as texts: the worker unpickles nothing. `delay`: seconds until the next attempt.
    `count`: events that a `gap` stands for. Never arguments or results.
    """

    name: str
    task_id: str = ""
    function: str = ""
    queue: str = ""
    attempt: int = 0
    time: float = 0.0
    worker: str = ""
    seconds: float | None = None
    reason: str = ""
    error_type: str = ""
    message: str = ""
    traceback: str = ""
    delay: float | None = None
    count: int = 0


class Notice(NamedTuple):
    """What became of a held task, as the parts of the worker pass it on."""

    held: Held
    name: str
    function: str
    record: Sequence[Any]
    time: float  # Unix seconds
    began: float  # of the attempt, Unix seconds; 0.0: it did not begin


class Lifecycle:
    """Part of the Worker. `watchers` are called with each batch of notices, on the speaker's thread or the engine's."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.watchers: list[Callable[[list[Notice]], None]] = []
        self.listening: Listening | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """The worker starts."""
        from .. import telemetry

        if telemetry.tracer is not None:
            self.listen().tracer = telemetry.tracer

    def listen(self) -> Listening:
        """What has a thread for those who take their time."""
        with self._lock:
            if self.listening is None:
                self.listening = Listening(self._worker.name)
                self.watchers.append(self.listening.note)
            return self.listening

    def tell(self, taken: Iterable[_Taken]) -> None:
        """Pass on what was taken to be said."""
        now = time()
        found: list[Notice] = []
        for each in taken:
            held = each.held
            for record in each.records:
                name = NAMES.get(record[0])
                if name is not None:
                    if name == "started":
                        held.began = record[2]
                    function = held.envelope.name if held.envelope is not None else ""
                    found.append(Notice(held, name, function, record, now, held.began))
        self._pass_on(found)

    def tell_served(self, ended: Iterable[Served]) -> None:
        """Pass on what became of exposed functions, unless another worker gets them."""
        now, at = time(), monotonic()
        found: list[Notice] = []
        for each in ended:
            if not each.releasing:
                name = "failed" if each.failure else "succeeded"
                found.append(Notice(each, name, each.lease.name, (None, each.failure), now, now - (at - each.since)))
        self._pass_on(found)

    def _pass_on(self, found: list[Notice]) -> None:
        if found:
            for watcher in self.watchers:
                try:
                    watcher(found)
                except Exception:
                    log.exception("what became of %d tasks was not noted", len(found))

    def end(self, deadline: float) -> None:
        """Let listeners hear the rest, until `deadline` (monotonic seconds)."""
        if self.listening is not None:
            self.listening.stop(deadline)


class Listening:
    """Calls listeners and makes spans, on a thread that starts with the first notice. Thread-safe."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._listeners = Listeners()
        self._lock = threading.Lock()
        self._bell = threading.Condition(self._lock)
        self._waiting: deque[tuple[WorkerEvent, Notice | None]] = deque()  # the notice, if it is to be traced
        self._lost = 0
        self._closing = False
        self._gate = Gate()  # held while it is in the user's code, which must not fork meanwhile
        self._thread: threading.Thread | None = None
        self.tracer: Tracer | None = None

    def add(self, name: str, fn: Callable[[WorkerEvent], Any], priority: int) -> None:
        """Raises `UsageError`."""
        if name != "*" and name not in LIFECYCLE:
            from ..providers.url import nearest

            raise UsageError(f"a worker tells nothing of {name!r}{nearest(str(name), {*LIFECYCLE, '*'})}")
        with self._lock:
            self._listeners.add(name, Listener(fn, priority))

    def remove(self, name: str, fn: Callable[..., Any]) -> None:
        with self._lock:
            self._listeners.remove(name, fn)

    def note(self, notices: list[Notice]) -> None:
        """Have them heard soon, where somebody wants that. Keeps neither arguments nor results. Never blocks."""
        wanted = self._listeners.by_name
        found: list[tuple[WorkerEvent, Notice | None]] = []
        for notice in notices:
            traced = self.tracer is not None and _untold(self.tracer, notice)
            if traced or "*" in wanted or notice.name in wanted:
                found.append((_event(notice, self._worker), notice if traced else None))
        if not found:
            return
        with self._lock:
            if self._closing:
                return
            self._waiting.extend(found)
            while len(self._waiting) > BEHIND:
                self._waiting.popleft()
                self._lost += 1
            if self._thread is None:
                self._thread = OurThread(self._run, "revolve-listeners")
                self._thread.start()
            self._bell.notify()

    def stop(self, deadline: float) -> None:
        with self._lock:
            self._closing = True
            self._bell.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - monotonic()))
            with self._lock:
                left = len(self._waiting)
                self._waiting.clear()
            if left:
                log.warning("%d events were not heard: a listener of the worker takes its time", left)

    # --- the thread

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closing:
                    self._bell.wait()
                if not self._waiting:
                    return
                event, traced = self._waiting.popleft()
                lost, self._lost = self._lost, 0
                named, every = (self._listeners.by_name.get(name, ()) for name in (event.name, "*"))
                gaps = (*self._listeners.by_name.get("gap", ()), *every) if lost else ()
            if lost:
                self._call(gaps, WorkerEvent("gap", time=event.time, worker=self._worker, count=lost))
            if self.tracer is not None and traced is not None:
                _trace(self.tracer, traced)
            if named or every:
                self._call(sorted((*named, *every), key=lambda each: -each.priority), event)

    def _call(self, listeners: Iterable[Listener], event: WorkerEvent) -> None:
        for each in listeners:
            self._gate.acquire()
            try:
                each.fn(event)
            except BaseException:  # also SystemExit: it is not the listener's thread to end
                log.exception("listener %r failed at event %r of task %s", each.fn, event.name, event.task_id)
            finally:
                self._gate.release()


def _untold(tracer: Tracer, notice: Notice) -> bool:
    """Whether the run could not tell of it in its own span."""
    held = notice.held
    if held.parcel is None or notice.name == "started":
        return False
    return held.verdict is not None or (notice.name == "cancelled" and tracer.kills(notice.record[1]))


def _trace(tracer: Tracer, notice: Notice) -> None:
    held, record = notice.held, notice.record
    rung = record[1] if notice.name == "cancelled" else ""
    delay = record[2] if notice.name == "retrying" else None
    if held.parcel is None:
        return
    try:
        tracer.watched(held.parcel, notice.function, notice.name, rung, held.verdict, delay, notice.began, notice.time)
    except Exception:
        log.exception("the end of task %s is not traced", held.id)


def _event(notice: Notice, worker: str) -> WorkerEvent:
    held, record, name = notice.held, notice.record, notice.name
    reason = kind = message = text = ""
    if name in ("failed", "lost") and type(record[1]) is bytes:
        kind, message, text = described(record[1])
        reason = f"{kind}: {message}" if message else kind
    elif name in ("failed", "cancelled", "retrying", "waiting"):
        reason = str(record[1])
    seconds = notice.time - notice.began if notice.began and name not in ("started", "waiting") else None
    return WorkerEvent(
        name,
        held.id,
        notice.function,
        held.lease.queue,
        held.lease.deliveries,
        notice.began if name == "started" else notice.time,
        worker,
        seconds,
        reason,
        kind,
        message,
        text,
        record[2] if name == "retrying" else None,
    )
