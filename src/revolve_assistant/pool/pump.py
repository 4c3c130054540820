"""One thread that waits for descriptors and for points in time, and calls what belongs to them.

A thread that waits for a task anyway may *lead*: it does the pump's work itself until its task has ended, and the
pump's own thread stands by. That saves a crossing of threads, a third of a round trip.

    pump     poll ──▶ calls ──▶ poll ·· stands by ········································ poll ──▶ …
    leader            result() ──▶ poll ──▶ calls ──▶ (its task has ended) ──▶ returns
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import signal
import threading
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from importlib import import_module
from time import monotonic
from typing import Any

from .threads import OurThread, making

Register = Callable[[Callable[[], None]], Callable[[], None]]
log = logging.getLogger("revolve_assistant")
_signal = import_module("_signal")  # what signal.py wraps into enumerations, at ten times the cost
getsignal, set_signal = _signal.getsignal, _signal.signal
STAND_BY = 0.001  # seconds that the pump's thread leaves to the next leader
READ, WRITE = select.POLLIN, select.POLLOUT


class Timer:
    """A call at a point in time; `cancel` forgets it."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None] | None) -> None:
        self.call = call

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
        self._turn = allocate_lock()  # held by the thread that polls
        self._gate = allocate_lock()  # where the pump's thread stands by
        self._gate.acquire()
        self._leader = 0  # ident of the thread that leads
        self._led = 0.0  # when the last one stopped
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, once. Raises `OSError` when descriptors or threads cannot be had; nothing is left then."""
        with self._lock, making:
            if self.thread is not None or self._stopped:
                return
            thread = OurThread(self._run, self._name)
            self._milliseconds = not hasattr(select, "epoll")
            self._read, self._write = os.pipe()
            try:
                os.set_blocking(self._read, False)
                os.set_blocking(self._write, False)
                self._poller = select.poll() if self._milliseconds else select.epoll()
                self.watch(self._read, READ, self._drain)
                thread.start()
            except (OSError, RuntimeError) as error:
                self._calls.pop(self._read, None)
                if not self._milliseconds and self._poller is not None:
                    self._poller.close()
                self._poller = None
                os.close(self._read)
                os.close(self._write)
                self._read = self._write = -1
                raise OSError(f"cannot start the pump: {error}") from error
            self.thread = thread

    def stop(self, wait: bool = True) -> None:
        """End the thread after what is due now; `wait` joins it (unless called from it)."""
        with self._lock:
            self._stopped = True
            thread = self.thread
        if thread is not None:
            self.poke()
            self._let_go()
            if wait and thread is not threading.current_thread():
                thread.join()

    @property
    def inside(self) -> bool:
        return threading.current_thread() is self.thread

    def after_fork(self) -> None:
        """In a forked child: the thread is not here; close our copies of the descriptors."""
        self._stopped = True
        if self.thread is not None and not self._ended:
            self._close_descriptors()

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

    def lead(self, ended: Callable[[], bool], timeout: float | None, register: Register) -> bool:
        """Do the pump's work in the calling thread until `ended()` or for `timeout` seconds.

        False: not possible now, wait in some other way. `register` as in `caller.waiting`: for an end that another
        thread brings about.
        """
        me = get_ident()
        if self._leader or self._stopped or self.thread is None or self.thread.ident == me:
            return False
        if threading.current_thread() is not threading.main_thread():
            return self._lead(me, ended, timeout, register, None)
        shield = Shield()
        shield.install()
        try:
            return self._lead(me, ended, timeout, register, shield)
        finally:
            shield.remove()

    def _lead(
        self,
        me: int,
        ended: Callable[[], bool],
        timeout: float | None,
        register: Register,
        shield: Shield | None,
    ) -> bool:
        with self._lock:
            if self._leader or self._stopped:
                return False
            self._leader = me
        began = monotonic()
        deadline = float("inf") if timeout is None else began + timeout
        forget = register(self._poke_leader)
        try:
            if not self._turn.acquire(False):
                self.poke()
                self._turn.acquire()
            try:
                while not ended() and not self._stopped and monotonic() < deadline:
                    self._round(deadline, shield)
            finally:
                self._led = monotonic()
                self._turn.release()
        finally:
            self._leader = 0
            forget()
            if self._led - began > STAND_BY or self._stopped:
                self._let_go()
        return True

    def _poke_leader(self) -> None:
        if get_ident() != self._leader:
            self.poke()

    def _let_go(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:  # it does not stand by
            pass

    def _run(self) -> None:
        patience = STAND_BY
        while not self._stopped:
            if self._leader or monotonic() - self._led < STAND_BY:
                # short at first, for the next result() comes soon or not at all; the end of a long lead lets go
                self._gate.acquire(timeout=patience)
                patience = min(2 * patience, 1.0) if self._leader else STAND_BY
                continue
            patience = STAND_BY
            with self._turn:
                self._round(float("inf"), None)
        with self._turn, self._lock, making:
            self._close()

    def _round(self, deadline: float, shield: Shield | None) -> None:
        with self._lock:
            timers = self._timers
            while timers and timers[0][2].call is None:
                heapq.heappop(timers)
            due_at = timers[0][0] if timers else float("inf")
            until = self._until = min(due_at, deadline)
        rest = -1.0 if until == float("inf") else max(0.0, until - monotonic())
        if self._soon:
            rest = 0.0
        if self._milliseconds and rest > 0:
            rest *= 1000
        poll = self._poller.poll
        ready = poll(rest) if shield is None else shield.wait(poll, rest)
        self._call(ready, due_at)

    def _call(self, ready: list[tuple[int, int]], until: float) -> None:
        timers = self._timers
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
        self._close_descriptors()
        self._timers.clear()

    def _close_descriptors(self) -> None:
        self._ended = True
        if not self._milliseconds:
            self._poller.close()
        os.close(self._read)
        os.close(self._write)
        self._read = self._write = -1


class Shield:
    """Holds back signal handlers of the main thread while it leads, but for the time it waits.

    A handler may raise at any byte code, as KeyboardInterrupt does; here that would lose what was half taken in.
    While it waits in `poll` nothing is lost: descriptors that are ready are ready in the next round too.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        known = ((number, getsignal(number)) for number in self.SIGNALS)
        self._handlers = {number: handler for number, handler in known if callable(handler)}
        self._held: list[tuple[int, Any]] = []
        self._open = True  # handlers are called, not held

    def _handle(self, number: int, frame: Any) -> None:
        if self._open:
            self._handlers[number](number, frame)
        else:
            self._held.append((number, frame))

    def install(self) -> None:
        try:
            self._install_all()
            self._open = False
        except BaseException:
            self.remove()
            raise

    def _install_all(self) -> None:
        # loops in functions of their own: on 3.13.0 a signal at a loop's end escapes the `try` around that loop
        for number in self._handlers:
            set_signal(number, self._handle)

    def _put_back(self, left: list[tuple[int, Any]]) -> None:
        while left:
            set_signal(*left[-1])
            left.pop()

    def _catch_up(self) -> None:
        while self._held:
            self._handle(*self._held.pop(0))

    def wait(self, poll: Callable[[float], list[tuple[int, int]]], rest: float) -> list[tuple[int, int]]:
        try:
            self._open = True
            self._catch_up()
            return poll(rest)
        finally:
            self._open = False

    def remove(self) -> None:
        """Put the handlers back, whatever they raise meanwhile, then handle what was held."""
        left = list(self._handlers.items())
        problem: BaseException | None = None
        while left:
            try:
                self._put_back(left)
            except BaseException as error:
                problem = error
        self._open = True
        if problem is not None:
            raise problem
        while self._held:
            self._handle(*self._held.pop(0))
