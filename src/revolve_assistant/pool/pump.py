"""One thread that waits for descriptors and for points in time, and calls what belongs to them."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

log = logging.getLogger("revolve_assistant")
READ, WRITE = select.POLLIN, select.POLLOUT


class Timer:
    """A call at a point in time; `cancel` forgets it."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Pump:
    """Starts its thread at the first `start`. Everything but `start` and `stop` is cheap; all is thread-safe.

    Calls run on the pump's thread; what they raise is logged and ends nothing.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._poller: Any = None
        self._milliseconds = False
        self._read = self._write = -1
        self._calls: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._until = 0.0  # when the thread will wake up by itself; 0: it is awake
        self._poked = False
        self._stopped = False
        self._ended = False
        self._soon: list[Callable[[], None]] = []
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        with self._lock:
            if self.thread is None and not self._stopped:
                self._milliseconds = not hasattr(select, "epoll")
                self._poller = select.poll() if self._milliseconds else select.epoll()
                self._read, self._write = os.pipe()
                os.set_blocking(self._read, False)
                os.set_blocking(self._write, False)
                self.watch(self._read, READ, self._drain)
                self.thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self.thread.start()

    def stop(self, wait: bool = True) -> None:
        """End the thread after what is due now; `wait` joins it (unless called from it)."""
        with self._lock:
            self._stopped = True
            thread = self.thread
        if thread is not None:
            self.poke()
            if wait and thread is not threading.current_thread():
                thread.join()

    @property
    def inside(self) -> bool:
        return threading.current_thread() is self.thread

    # --- descriptors

    def watch(self, fd: int, mask: int, call: Callable[[int], None]) -> None:
        self._calls[fd] = call
        self._poller.register(fd, mask)

    def change(self, fd: int, mask: int) -> None:
        if self._ended:
            return
        self._poller.modify(fd, mask)

    def forget(self, fd: int) -> None:
        if self._calls.pop(fd, None) is not None and not self._ended:
            self._poller.unregister(fd)

    # --- time

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call at `when` (monotonic seconds)."""
        timer = Timer(call)
        with self._lock:
            heapq.heappush(self._timers, (when, next(self._count), timer))
            poke = self._until > when
        if poke:
            self.poke()
        return timer

    def soon(self, call: Callable[[], None]) -> None:
        """Call as soon as possible on the pump's thread."""
        self._soon.append(call)
        self.poke()

    def poke(self) -> None:
        """Let the thread look at its timers and calls now."""
        if not self._poked:
            self._poked = True
            try:
                os.write(self._write, b"!")
            except (BlockingIOError, OSError):
                pass

    def _drain(self, _mask: int) -> None:
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass
        self._poked = False

    # --- the thread

    def _run(self) -> None:
        while not self._stopped:
            self._round()
        with self._lock:
            self._close()

    def _round(self) -> None:
        with self._lock:
            timers = self._timers
            while timers and timers[0][2].call is None:
                heapq.heappop(timers)
            until = timers[0][0] if timers else float("inf")
            self._until = until
        rest = -1.0 if until == float("inf") else max(0.0, until - monotonic())
        if self._soon:
            rest = 0.0
        ready = self._poller.poll(rest * 1000 if self._milliseconds and rest > 0 else rest)
        self._until = 0.0
        for fd, mask in ready:
            call = self._calls.get(fd)
            if call is not None:
                try:
                    call(mask)
                except Exception:
                    log.exception("the pump's call for descriptor %d failed", fd)
        while self._soon:
            self._guard(self._soon.pop(0))
        if until != float("inf"):
            now = monotonic()
            due = []
            with self._lock:
                while timers and timers[0][0] <= now:
                    due.append(heapq.heappop(timers)[2])
            for timer in due:
                if timer.call is not None:
                    self._guard(timer.call)

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("a call of the pump failed")

    def _close(self) -> None:
        self._ended = True
        if not self._milliseconds:
            self._poller.close()
        os.close(self._read)
        os.close(self._write)
        self._read = self._write = -1
        self._timers.clear()
