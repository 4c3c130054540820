"""The original's way to work: a client that does nothing by itself. What has arrived is dispatched in `read`.

client.handle(task)                      hands it over
while not client.has_completed(task):
    client.read(messenger)               listeners are called here, in this thread; never blocks
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..engine import Parcel
from ..errors import ProviderError, UsageError
from ..providers.url import Url
from ..wire.named import NamedMessenger, captured_by, meeting
from .client import Client
from .options import Options
from .submitter import sink
from .task import Task

if TYPE_CHECKING:
    from .mailbox import Mailbox

WAIT = 0.5  # seconds that `result` waits for one messenger while there is no other
TURN = 0.02  # the same while there are several to look at


class _HandDispatcher:
    """Keeps calls until `run`, which the client's `read` calls."""

    call_soon = None
    pump: Any = None

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._thread: int | None = None
        self._passed: BaseException | None = None

    def post(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def run(self) -> None:
        """Make the calls that are waiting, in order; not those that come meanwhile from within one of them."""
        outer, self._thread = self._thread, threading.get_ident()
        try:
            while self._calls and self._passed is None:
                self._calls.popleft()()
        finally:
            self._thread = outer
        passed, self._passed = self._passed, None
        if passed is not None:
            raise passed

    def passes(self, error: BaseException) -> bool:
        if self._thread is None:
            return False
        self._passed = self._passed or error
        return True

    @property
    def inside(self) -> bool:
        return self._thread == threading.get_ident()

    def get_ready(self) -> None:
        pass

    def after_fork(self) -> None:
        self._calls.clear()
        self._thread = self._passed = None

    def use_loop(self, call_soon: Any) -> None:
        pass

    def stop(self) -> None:
        pass


class _Nowhere:
    """The client of a task that was not handed over: it knows nothing and refuses to wait."""

    _listeners = None
    _listeners_version = 0
    _remote = True
    _shut = False

    def __init__(self) -> None:
        self._dispatcher = _HandDispatcher()
        self._known: dict[str, Any] = {}

    @staticmethod
    def _blocks_itself() -> bool:
        return False

    @staticmethod
    def _owns(task_id: str) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        raise UsageError("this task is not handed over yet: call client.handle(task) first")


_nowhere = _Nowhere()


class HandedTask(Task[Any]):
    """A task made by `Make().task(…)`: listeners can be added before it is handed over. Made once, handled once."""

    def __init__(self, provider: str | None, callback: Callable[[Any], Any], options: Options) -> None:
        super().__init__(_nowhere, Parcel(os.urandom(16).hex(), priority=options.priority), options)  # type: ignore[arg-type]
        self.provider = provider
        self.callback = callback

    def queued(self, timeout: float = 5.0) -> Any:
        self._must_be_handled()
        return super().queued(timeout)

    def _must_be_handled(self) -> None:
        if self._client is _nowhere:  # type: ignore[comparison-overlap]
            raise UsageError(f"task {self.id} is not handed over yet: call client.handle(task) first")

    def _wait(self, timeout: float | None) -> None:
        self._must_be_handled()
        super()._wait(timeout)

    def __await__(self) -> Any:
        self._must_be_handled()
        return super().__await__()


def run_callback(callback: Callable[[Any], Any]) -> Any:
    """What runs in place of a handed task's callback, wherever that is: calls it with the running task."""
    from ..running.api import current_task
    from ..running.body import step

    running = current_task()
    value = callback(running)
    if hasattr(value, "send") and hasattr(value, "__next__"):
        return step(running, value)
    if isinstance(value, Coroutine):
        import asyncio

        return asyncio.run(value)
    return value


class DrivenClient(Client):
    """A client that is driven by hand. Made by `Make().client(…)`; used by one thread at a time.

    `submit`, `map`, `task.result()` and the iterators work too: while they wait, they read.
    """

    def __init__(self, provider: str, url: Url, *, messenger: Any = None, **options: Any) -> None:
        self.provider = provider
        super().__init__(url.reveal(), messenger=messenger, _driven=True, **options)
        self._boxes: dict[NamedMessenger, Mailbox] = {}
        self._turn = threading.RLock()
        self._reads = False

    def handle(self, task: HandedTask) -> DrivenClient:
        """Hand the task over; returns this client, so that calls chain. Never blocks.

        Raises `UsageError` for a task that was handed over before, or was made for another provider; `NotCarriable`.
        """
        if not isinstance(task, HandedTask):
            raise UsageError(f"handle() takes what Make().task(…) made, not {type(task).__name__}; see also submit()")
        if task._client is not _nowhere:  # type: ignore[comparison-overlap]
            raise UsageError(f"task {task.id} was handed over before: make another one")
        if task.provider is not None and task.provider != self.provider:
            raise UsageError(f"the task was made for {task.provider}, this client is of {self.provider}")
        parcel = task._parcel
        if parcel is None:
            raise UsageError(f"task {task.id} has ended")
        with meeting() as met:
            carry = self._carrier.live if self._live else self._carrier.carry
            parcel.work = carry(run_callback, (task.callback,), {})
        for named in {*met, *captured_by(task.callback)}:
            self._open_box(named)
        options = task._options
        parcel.options, parcel.owner, parcel.queue, parcel.delay = options, task, options.queue, options.delay
        task._client = self
        task._function = self._carrier.live(task.callback, (), {}).function
        self._tasks[task._id] = task
        self._known[task._id] = task
        try:
            self._engine.submit((parcel,), sink)
        except BaseException:
            self._tasks.pop(task._id, None)
            task._client = _nowhere  # type: ignore[assignment]
            raise
        return self

    def read(self, messenger: NamedMessenger | None = None) -> DrivenClient:
        """Dispatch what has arrived, on the client's own messenger and on this one; returns this client. Never waits
        for what has not. A server that does not answer is passed over, and tried again at the next call.

        Raises what a listener raises that is no `Exception` (a Ctrl-C), after which nothing is lost or repeated.
        """
        if messenger is not None:
            if not isinstance(messenger, NamedMessenger):
                raise UsageError(f"read() takes what Make().messenger(…) made, not {type(messenger).__name__}")
            self._open_box(messenger)
        self._reads = True
        with self._turn:
            self._look(0.0)
            self._dispatcher.run()
        return self

    def has_completed(self, task: Task[Any]) -> bool:
        """Whether the task has ended, and its end, with all before it on what this client reads, was dispatched."""
        if not self._reads:  # a loop that only asks
            self.read()
        return task.done()

    # --- within

    def _new_dispatcher(self) -> Any:
        return _HandDispatcher()

    def _owns(self, task_id: str) -> bool:
        return super()._owns(task_id) or task_id in self._tasks  # ids of handed tasks are older than this client

    def _wait_for_ends(self, timeout: float | None) -> bool:
        return self._wait("", lambda: not self._tasks, timeout, None)

    def _open_box(self, named: NamedMessenger) -> None:
        if named in self._boxes or named.address == self._engine.natural:
            return
        box = self._engine.mailbox(named.carrier())
        self._boxes[named] = box
        self._engine.add_source(box, named.address)

    def _look(self, wait: float) -> None:
        """Read what has come, from each messenger; the last one may wait."""
        engine = self._engine
        engine.start()
        waiting = {address: engine.inbox.waiting(address) for address in engine.sources.values()}
        for box in list(self._boxes.values()):
            self._take(box, 0.0)
        self._take(engine.main, TURN if wait and self._boxes else wait)
        for box, address in list(engine.sources.items()):
            # what an end has waited for through a whole look is missing
            if waiting[address] and self._take(box, 0.0) == 0:
                engine.report(engine.inbox.drained(address, waiting[address]))

    def _take(self, box: Mailbox, wait: float) -> int:
        engine = self._engine
        if box.fresh:
            return -1  # the sender has to make it first
        try:
            return int(engine.take_all(wait) if box is engine.main else engine.take(box, wait))
        except ProviderError as error:
            engine.lost_touch(error)
            return -1

    def _blocks_itself(self) -> bool:
        return bool(self._dispatcher.inside)

    def _wait(self, task_id: str, ended: Callable[[], bool], timeout: float | None, register: Any) -> bool:
        """Read until it has ended: `result` and the iterators drive this client."""
        deadline = None if timeout is None else monotonic() + timeout
        while not ended():
            left = WAIT if deadline is None else min(WAIT, deadline - monotonic())
            if left <= 0:
                return ended()
            self._check_patience()
            with self._turn:
                if self._engine.main.fresh:
                    self._engine.start()
                    self._engine.until_kept(left)
                else:
                    self._look(left)
                self._dispatcher.run()
        return True
