"""Waiting for something another thread will say: from a thread, from asyncio, from trio. No polling anywhere."""

from __future__ import annotations

import sys
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from ..pool.threads import OurThread

Register = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a wake-up to call once from any thread (perhaps at once), returns how to take it back."""


def wait(register: Register, timeout: float | None) -> bool:
    """Block the thread until woken; False: `timeout` seconds passed."""
    lock = allocate_lock()
    lock.acquire()

    def wake() -> None:
        if lock.locked():
            lock.release()

    forget = register(wake)
    try:
        return lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
    finally:
        forget()


async def wait_async(register: Register) -> None:
    """The same for coroutines of asyncio and trio. Cancelling it concerns nobody else."""
    if in_trio():
        trio = sys.modules["trio"]
        event = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wake_trio() -> None:
            try:
                token.run_sync_soon(event.set)
            except trio.RunFinishedError:
                pass

        forget = register(wake_trio)
        try:
            await event.wait()
        finally:
            forget()
        return
    import asyncio

    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        bell = _bells[loop] = _Bell(loop)
    future = loop.create_future()
    ring = bell.ring
    forget = register(lambda: ring(future))
    try:
        await future
    finally:
        forget()


async def aside(call: Callable[[], object]) -> None:
    """Run `call()` in a thread and wait for it; the thread goes on when this is cancelled (in trio it is not).

    A thread of our own: the pools of asyncio and trio keep theirs, and fork:// would then refuse to fork.
    """
    done: list[bool] = []
    wakes: list[Callable[[], None]] = []

    def run() -> None:
        try:
            call()
        finally:
            done.append(True)
            for wake in tuple(wakes):
                wake()

    def register(wake: Callable[[], None]) -> Callable[[], None]:
        wakes.append(wake)
        if done:
            wake()
        return lambda: None

    OurThread(run, "revolve-aside").start()
    if in_trio():
        with sys.modules["trio"].CancelScope(shield=True):
            await wait_async(register)
    else:
        await wait_async(register)


def in_trio() -> bool:
    """Whether the caller is a trio task."""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def in_loop() -> bool:
    """Whether the caller runs in an event loop, which it must not block."""
    asyncio = sys.modules.get("asyncio")
    return (asyncio is not None and asyncio._get_running_loop() is not None) or in_trio()


class _Bell:
    """Wakes the futures of one event loop: one thread crossing for all that are woken before the loop looks."""

    __slots__ = ("_loop", "_rung", "_woken")

    def __init__(self, loop: Any) -> None:
        self._loop = ref(loop)
        self._woken: deque[Any] = deque()
        self._rung = False

    def ring(self, future: Any) -> None:
        self._woken.append(future)
        if not self._rung:
            self._rung = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._woken.clear()

    def _answer(self) -> None:
        self._rung = False
        woken = self._woken
        while woken:
            future = woken.popleft()
            if not future.done():
                future.set_result(None)


_bells: WeakKeyDictionary[Any, _Bell] = WeakKeyDictionary()
