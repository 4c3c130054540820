"""Iterators over a task's events and items, for `for` and `async for`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import TaskRestarted, UsageError
from ..event import ENDS, Event
from .log import GAP, Reader, arguments, event
from .waiting import wait, wait_async

if TYPE_CHECKING:
    from .task import Task


class _Stream:
    """A reader of a task's log that blocks, or awaits, until there is more. Used by one thread at a time."""

    def __init__(self, task: Task[Any]) -> None:
        self._task = task
        self._reader: Reader | None = None
        self._found: deque[Any] = deque()
        self._over = False
        self._rung = False
        self._wake: Callable[[], None] | None = None

    def __iter__(self) -> Any:
        return self

    def __aiter__(self) -> Any:
        return self

    def close(self) -> None:
        """Stop reading; what comes is no longer kept for this iterator."""
        self._over = True
        self._found.clear()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __del__(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- taking

    def _take(self) -> bool:
        """Take what the log has; False: nothing yet."""
        if self._reader is None:
            self._reader = self._task._ensure_log().reader(self._ring)
        self._rung = False
        records = self._reader.take()
        if not records:
            return False
        index = self._reader.next - len(records) + (records[0][0] == GAP)
        log = self._reader.log
        for record in records:
            if record[0] == GAP:
                attempt, first = log.attempt_at(index)
                self._found.append((attempt, 0, record))
                continue
            attempt, first = log.attempt_at(index)
            self._found.append((attempt, index - first + 1, record))
            index += 1
        return True

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
                self._task._wait_quietly()
                raise StopIteration
            if not self._take():
                self._task._refuse_blocking("events() would wait")
                self._wait(None)
        return self._found.popleft()

    def _wait(self, timeout: float | None) -> bool:
        return wait(self._register, timeout)

    async def _anext(self) -> Any:
        while not self._found:
            if self._over:
                await self._task._wait_quietly_async()
                raise StopAsyncIteration
            if not self._take():
                await wait_async(self._register)
        return self._found.popleft()


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
            if not self._found and not self._over and not self._take():
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
            if self._reader is not None:
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
