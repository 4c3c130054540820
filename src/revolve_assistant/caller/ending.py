"""How a task ends: once, then its waiters and done-callbacks, whoever they are.

    _settle ──▶ (listeners of the end, on the dispatcher) ──▶ _finish ──▶ wakes, concurrent.futures' waiters, callbacks

One lock guards the ends of all tasks, held for well under a microsecond. What `concurrent.futures.wait` locks is a
condition of each task's own, made when it is first asked for: it locks many futures in the order of their ids, so a
lock shared by several would deadlock with it. Order: a task's own condition, then `_ending`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from time import time
from typing import TYPE_CHECKING, Any

from .. import telemetry
from ..errors import ClientClosed, UsageError
from ..wire.carry import unpack
from ..wire.remote import not_rebuilt, unpack_error
from .waiting import wait, wait_async

if TYPE_CHECKING:
    from ..engine import Parcel
    from ..wire.carry import Function
    from .client import Client

log = logging.getLogger("revolve_assistant")
_ending = threading.RLock()


class _Unretrieved:
    """Logs a failure that nobody asked for, when the task is dropped."""

    __slots__ = ("__weakref__", "error", "packed", "pid", "text")

    def __init__(self, text: str, error: BaseException | None, packed: bytes | None) -> None:
        self.text = text
        self.error = error
        self.packed = packed
        self.pid = os.getpid()  # a fork has it, too
        _unretrieved.add(self)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.say()

    def say(self) -> None:
        if self.text and self.pid == os.getpid():
            error = self.error or unpack_error(self.packed or b"")
            log.error("%s: %s: %s", self.text, type(error).__name__, error)
            self.text = ""


_unretrieved: weakref.WeakSet[_Unretrieved] = weakref.WeakSet()


def say_unretrieved() -> None:
    """The interpreter ends: log the failures nobody asked for, also of tasks that are still held."""
    for each in list(_unretrieved):
        each.say()


class Ending:
    """The part of a `Task` that knows its end. Class-wide defaults: a task costs what it uses."""

    _id: str
    _client: Client
    _parcel: Parcel | None
    _function: Function | None
    _state = PENDING
    _end: tuple[str, float, str] | None = None  # (name, Unix time, rung)
    _packed: tuple[Any, ...] | None = None  # (pickle, buffers) of a result nobody asked for yet
    _result: Any = None
    _exception: BaseException | None = None
    _packed_error: bytes | None = None
    _unretrieved: _Unretrieved | None = None
    _wakes: list[Callable[[], None]] | None = None
    _callbacks: list[Callable[[Any], Any]] | None = None
    _cf_waiters: list[Any] | None = None
    _own_condition: threading.Condition | None = None

    @property
    def name(self) -> str:
        """`module:qualname` of the callable."""
        return self._function.name if self._function is not None else ""

    def done(self) -> bool:
        return self._state is FINISHED or self._state is CANCELLED_AND_NOTIFIED

    @property
    def _foreign(self) -> bool:
        """It was submitted in a process that this one was forked from, and had not ended then."""
        return self._end is None and not self._client._owns(self._id)

    def _refuse_foreign(self) -> None:
        if self._foreign:
            raise UsageError(
                f"task {self._id} belongs to the process that this one (pid {os.getpid()}) was forked from, and only "
                "that one hears of it: use it there, or submit another task here"
            )

    # --- what concurrent.futures.wait and as_completed touch

    @property
    def _condition(self) -> threading.Condition:
        self._refuse_foreign()
        condition = self._own_condition
        if condition is None:
            with _ending:
                condition = self._own_condition
                if condition is None:
                    condition = self._own_condition = threading.Condition()
        return condition

    @property
    def _waiters(self) -> list[Any]:
        waiters = self._cf_waiters
        if waiters is None:
            waiters = self._cf_waiters = []
        return waiters

    # --- the end

    def _before_end(self, now: float) -> bool:
        """Under `_ending`, before the end is set. True: somebody listens, who comes first."""
        return False

    def _log_end(self) -> None:
        """Under `_ending`, after the end was set."""

    def _post(self) -> None:
        """Let listeners hear the end; then `_finish`."""

    def _settle(self, state: str, rung: str = "", error: BaseException | None = None) -> None:
        """The end is known, and the first one counts: log it; listeners of the end come before waiters."""
        with _ending:
            if self._end is not None:
                return
            now = time()
            if state != "succeeded":
                self._exception = error
                if state != "cancelled":
                    text = f"task {self._id} ({self.name}) {state}, and nobody asked"
                    self._unretrieved = _Unretrieved(text, error, self._packed_error)
            listened = self._before_end(now)
            self._end = (state, now, rung)
            self._log_end()
        if telemetry.tracer is not None and state != "succeeded":
            telemetry.tracer.ended(self, state, rung, error)
        if listened:
            self._post()
        else:
            self._finish()

    def _finish(self) -> None:
        """Wake whoever waits."""
        while True:
            own = self._own_condition
            if own is None:
                with _ending:
                    if self.done():
                        return
                    if self._own_condition is None:
                        wakes, callbacks = self._mark_finished()
                        break
            else:
                with own, _ending:
                    if self.done():
                        return
                    wakes, callbacks = self._mark_finished()
                    break
        client = self._client
        client._ended(self)
        if wakes is not None:
            for wake in wakes:
                wake()
        if callbacks is not None:
            for fn in callbacks:
                client._dispatcher.post(lambda fn=fn: self._call_back(fn))
        if client._shut:
            client._check_drained()

    def _mark_finished(self) -> tuple[list[Callable[[], None]] | None, list[Callable[[Any], Any]] | None]:
        state = self._end[0] if self._end is not None else "lost"
        self._state = CANCELLED_AND_NOTIFIED if state == "cancelled" else FINISHED
        wakes, self._wakes = self._wakes, None
        callbacks, self._callbacks = self._callbacks, None
        for waiter in self._cf_waiters or ():
            if state == "cancelled":
                waiter.add_cancelled(self)
            elif state == "succeeded":
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
        parcel = self._parcel
        if parcel is not None:
            parcel.owner = parcel._ = None  # no cycles: the arguments go now
            self._parcel = None
        return wakes, callbacks

    def _call_back(self, fn: Callable[[Any], Any]) -> None:
        try:
            fn(self)
        except Exception:
            log.exception("done-callback %r of task %s failed", fn, self._id)

    # --- waiting

    def _register(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._refuse_foreign()
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
        if self.done() or (self._end is not None and self._client._dispatcher.inside):
            return  # in a listener of the end, the end is known
        self._refuse_blocking("result() would wait")
        if not self._client._wait(self._id, self.done, timeout, self._register):
            raise TimeoutError(f"task {self._id} has not ended within {timeout} s")

    def _wait_quietly(self) -> None:
        if not self.done() and not self._client._dispatcher.inside:
            wait(self._register, None)

    async def _wait_quietly_async(self) -> None:
        if not self.done() and not self._client._dispatcher.inside:
            await wait_async(self._register)

    def _refuse_blocking(self, what: str) -> None:
        self._refuse_foreign()
        if self._client._blocks_itself():
            raise UsageError(
                f"{what} for ever: this is the thread that serves task {self._id}; "
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
        self._settle("lost", "", ClientClosed(text))
        if self._client._remote and isinstance(self._exception, ClientClosed):  # it goes on: that is no failure
            self._stale = True
            self._disarm()


def _nothing() -> None:
    pass
