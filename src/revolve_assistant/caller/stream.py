"""Iterators over a task's events and items, for `for` and `async for`."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import TaskError, TaskRestarted, UsageError
from ..event import ENDS, Event
from .log import GAP, arguments, event
from .waiting import wait_async

if TYPE_CHECKING:
    from .task import Task


class _Stream:
    """A reader of a task's log that blocks, or awaits, until there is more. Used by one thread at a time."""

    def __init__(self, task: Task[Any]) -> None:
        self._task = task
        self._found: deque[Any] = deque()
        self._over = False  # the end was delivered
        self._closed = False
        self._rung = False
        self._wake: Callable[[], None] | None = None
        task._refuse_foreign()  # before its log is touched: another thread may have locked it at the fork
        self._reader = task._ensure_log().reader(_ringer(weakref.ref(self)))

    def __iter__(self) -> Any:
        return self

    def __aiter__(self) -> Any:
        return self

    def close(self) -> None:
        """Stop reading; what comes is no longer kept for this iterator."""
        self._closed = True
        self._found.clear()
        self._reader.close()

    def __del__(self) -> None:
        if hasattr(self, "_reader") and not self._task._foreign:
            self._reader.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- taking

    def _take(self) -> bool:
        """Take what the log has; False: nothing yet."""
        self._task._refuse_foreign()
        self._rung = False
        found = self._reader.take()
        self._found += found
        return bool(found)

    def _ring(self) -> None:
        self._rung = True
        wake = self._wake
        if wake is not None:
            wake()

    def _register(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._wake = wake
        if self._rung:
            wake()
        return self._unregister

    def _unregister(self) -> None:
        self._wake = None

    def _next(self) -> Any:
        while not self._found:
            if self._over:
                if not self._closed:
                    self._task._wait_quietly()
                raise StopIteration
            if self._closed:
                raise StopIteration
            if not self._take():
                self._task._refuse_blocking("events() would wait")
                self._wait(None)
        return self._found.popleft()

    def _wait(self, timeout: float | None) -> bool:
        return self._task._client._wait(self._task.id, self._has_rung, timeout, self._register)

    def _has_rung(self) -> bool:
        return self._rung

    async def _anext(self) -> Any:
        while not self._found:
            if self._over:
                if not self._closed:
                    await self._task._wait_quietly_async()
                raise StopAsyncIteration
            if self._closed:
                raise StopAsyncIteration
            if not self._take():
                await wait_async(self._register)
        return self._found.popleft()


def _ringer(stream: weakref.ref[_Stream]) -> Callable[[], None]:
    """What wakes a stream without keeping it alive: one that is dropped no longer holds the task up."""

    def ring() -> None:
        alive = stream()
        if alive is not None:
            alive._ring()

    return ring


class Events(_Stream):
    """The task's events of the given names (all when none is given), the end event last."""

    def __init__(self, task: Task[Any], names: tuple[str, ...]) -> None:
        super().__init__(task)
        for name in names:
            if not isinstance(name, str):
                raise UsageError(f"events() takes event names, got {name!r:.100}")
        self._names = frozenset(names)

    def __next__(self) -> Event:
        while True:
            found = self._pick(self._next())
            if found is not None:
                return found

    async def __anext__(self) -> Event:
        while True:
            found = self._pick(await self._anext())
            if found is not None:
                return found

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None when none came within `timeout` seconds. Raises StopIteration after the end."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            if not (self._found or self._over or self._closed or self._take()):
                rest = None if deadline is None else deadline - monotonic()
                if rest is not None and rest <= 0:
                    return None
                self._task._refuse_blocking("next() would wait")
                self._wait(rest)
                continue
            found = self._pick(self._next())
            if found is not None:
                return found

    def _pick(self, found: Any) -> Event | None:
        attempt, seq, record = found
        name = record[2]
        if name in ENDS and record[0] < 0:
            self._over = True
            self._reader.close()
        elif self._names and name not in self._names and record[0] != GAP:
            return None
        return event(self._task.id, attempt, seq, self._task._materialize(record))


class Items(_Stream):
    """What a generator task yielded."""

    _attempt = 0

    def __next__(self) -> Any:
        while True:
            yielded, value = self._pick(self._next())
            if yielded:
                return value

    async def __anext__(self) -> Any:
        while True:
            yielded, value = self._pick(await self._anext())
            if yielded:
                return value

    def _pick(self, found: Any) -> tuple[bool, Any]:
        attempt, _, record = found
        if record[0] == GAP:
            self.close()
            raise TaskError(f"{record[4][0]} events of task {self._task.id} were trimmed before they were read")
        if record[0] < 0:
            if record[2] in ENDS:
                self._over = True
            return False, None
        if record[2] != "item":
            return False, None
        if self._attempt and attempt != self._attempt:
            self.close()
            raise TaskRestarted(
                f"task {self._task.id} began attempt {attempt} after items of attempt {self._attempt} were delivered"
            )
        self._attempt = attempt
        return True, arguments(record)[0]
