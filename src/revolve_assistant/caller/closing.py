"""The end of a `Client`: shut down, leave its block, let go of what it holds.

with, async with ──▶ shutdown ──▶ no more tasks ──▶ wait for the ends ──▶ close
                                    └▶ a queue's tasks are their workers': what was submitted is flushed
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

from ..errors import UsageError
from ..pool.threads import OurThread
from .waiting import aside, in_trio, wait, wait_async


class Closing:
    """The part of a `Client` that ends it."""

    _engine: Any
    _dispatcher: Any
    _serving: Any
    _finalizer: Any
    _tasks: dict[str, Any]
    _known: Any
    _maps: set[Any]
    _lock: threading.Lock
    _drained: list[Callable[[], None]]
    _remote: bool
    _shut: bool
    _closed: bool
    _blocks_itself: Callable[[], bool]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; `wait` blocks until all have ended, then lets go of workers and threads.

        `cancel_futures` cancels those that have not started. Without `wait` the rest ends in the background.
        """
        lets_go = self._remote and self._engine.lets_go
        if wait and self._tasks and not lets_go and self._blocks_itself():
            raise UsageError("shutdown(wait=True) in a listener would wait for itself: call shutdown(wait=False)")
        self._begin_shutdown(cancel_futures)
        if lets_go:
            self._close()  # what was submitted is flushed; the rest is the workers' affair
        elif wait:
            self._wait_for_ends(None)
            self._close()
        elif not self._closed:  # at once: from 3.12 on no thread can be started once the interpreter ends
            OurThread(self._close_when_drained, "revolve-closer").start()

    def _close_when_drained(self) -> None:
        self._wait_for_ends(None)
        self._close()

    def _begin_shutdown(self, cancel_futures: bool) -> None:
        self._shut = True
        if cancel_futures:
            for mapping in list(self._maps):
                mapping.stop()
            for task in list(self._tasks.values()):
                if not task.running():
                    task.cancel()

    def _when_drained(self, call: Callable[[], None]) -> Callable[[], None]:
        with self._lock:
            if self._tasks or self._maps:
                self._drained.append(call)
                return lambda: self._drained.remove(call) if call in self._drained else None
        call()
        return lambda: None

    def _wait_for_ends(self, timeout: float | None) -> bool:
        return wait(self._when_drained, timeout)

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._finalizer.detach()
        if self._serving is not None:
            self._serving.close()
        self._engine.close()
        attached = [task for task in list(self._known.values()) if task._end is None and not task._foreign]
        for task in [*self._tasks.values(), *attached]:
            task._close("the client was closed before the task ended")
            if self._remote and self._engine.lets_go:
                task._disarm()  # it goes on where it is: no failure that somebody has to hear of
        for mapping in list(self._maps):
            mapping.stop()
        self._dispatcher.stop()

    def _interrupted(self) -> None:
        for mapping in list(self._maps):
            mapping.stop()
        for task in list(self._tasks.values()):
            task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, tb: Any) -> bool | None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._interrupted()
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:  # a second one: stop hard
            self._close()
            raise
        return None

    async def __aenter__(self) -> Self:
        if in_trio():
            import sys

            trio = sys.modules["trio"]
            token = trio.lowlevel.current_trio_token()
            self._dispatcher.use_loop(token.run_sync_soon)
        else:
            import asyncio

            self._dispatcher.use_loop(asyncio.get_running_loop().call_soon_threadsafe)
        return self

    async def __aexit__(self, kind: Any, error: Any, tb: Any) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._interrupted()
        self._begin_shutdown(False)
        try:
            if not (self._remote and self._engine.lets_go):
                await wait_async(self._when_drained)
        finally:
            self._dispatcher.use_loop(None)
            await aside(self._close)
