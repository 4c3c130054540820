"""Where listeners and done-callbacks run: a thread of the client's own, or the event loop of `async with`."""

from __future__ import annotations

import logging
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..pool.threads import Gate, OurThread

LEAD = 1.0  # seconds without a call after which the thread goes to sleep
log = logging.getLogger("revolve_assistant")


class Dispatcher:
    """Runs calls one after the other, in the order of `post`. What they raise is logged and disturbs nobody.

    The thread starts at the first `post` and ends with `stop`, after what was posted before.
    """

    def __init__(self) -> None:
        self.gate = Gate()  # held while a call runs: no task is forked off meanwhile
        self._begin()
        self.pump: Any = None  # of the engine: while it has nothing to call, the thread may do the pump's work

    def after_fork(self) -> None:
        """In a forked child: what was posted is the parent's affair."""
        self.gate.renew()
        self._begin()

    def _begin(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._bell = allocate_lock()
        self._bell.acquire()
        self._asleep = False
        self._stopped = False
        self._busy = False
        self.thread: threading.Thread | None = None
        self._called = 0.0  # when the last call ended, monotonic seconds
        self._leading: Callable[[], None] | None = None
        self.call_soon: Callable[[Callable[[], None]], Any] | None = None  # of an event loop
        self.loop_thread: int | None = None

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` soon. Never blocks. Callable from any thread."""
        self._calls.append(call)
        call_soon = self.call_soon
        if call_soon is not None:
            with self._lock:
                if self._busy:
                    return
                self._busy = True
            try:
                call_soon(self._drain)
            except RuntimeError:  # the loop is closed: a thread takes over
                self.call_soon = None
                self._start()
            return
        if self.thread is None:
            self._start()
        elif (wake := self._leading) is not None:
            wake()
        elif self._asleep:
            self._wake()

    def use_loop(self, call_soon: Callable[[Callable[[], None]], Any] | None) -> None:
        """Run the calls from now on through an event loop's thread-safe `call_soon`; None: on our own thread."""
        self.call_soon = call_soon
        self.loop_thread = threading.get_ident() if call_soon is not None else None

    @property
    def inside(self) -> bool:
        """Whether the calling thread is the one that must not block on a task."""
        ident = threading.get_ident()
        if ident == self.loop_thread and self.call_soon is not None:
            closed = getattr(getattr(self.call_soon, "__self__", None), "is_closed", None)
            return closed is None or not closed()
        return self.thread is not None and self.thread.ident == ident

    def stop(self) -> None:
        """End the thread once everything posted has run; joins it unless called from it."""
        with self._lock:
            self._stopped = True
            thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            self._wake()
            thread.join()

    def passes(self, error: BaseException) -> bool:
        """Whether what a listener raised, and is no `Exception`, goes to somebody else than the log."""
        return False

    def get_ready(self) -> None:
        """Start the thread that `post` will need: from 3.12 on none can be started once the interpreter ends."""
        if self.thread is None and self.call_soon is None and not self._stopped:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self.thread is None:
                self.thread = OurThread(self._run, "revolve-dispatch")
                self.thread.start()

    def _wake(self) -> None:
        wake = self._leading
        if wake is not None:
            wake()
        try:
            self._bell.release()
        except RuntimeError:
            pass

    def _run(self) -> None:
        calls = self._calls
        while True:
            if calls:
                while calls:
                    self.gate.acquire()
                    try:
                        self._call(calls.popleft())
                    finally:
                        self.gate.release()
                self._called = monotonic()
            if self._lead():
                continue
            self._asleep = True
            if not calls:
                with self._lock:
                    if self._stopped and not calls:
                        self.thread = None
                        return
                self._bell.acquire()
            self._asleep = False

    def _lead(self) -> bool:
        """Wait for calls by doing the pump's work, for a while after the last call: events come with one wake-up less.

        A listener that takes its time holds nobody up: the pump's own thread goes on 1 ms later.
        """
        pump = self.pump
        if pump is None or self._stopped or monotonic() - self._called > LEAD:
            return False
        return bool(pump.lead(self._due, LEAD, self._listen))

    def _due(self) -> bool:
        return bool(self._calls) or self._stopped

    def _listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._leading = wake
        return self._deaf

    def _deaf(self) -> None:
        self._leading = None

    def _drain(self) -> None:
        with self._lock:
            self._busy = False
        for _ in range(len(self._calls)):
            try:
                call = self._calls.popleft()
            except IndexError:
                return
            self._call(call)

    @staticmethod
    def _call(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("a call of the dispatcher failed")
        except BaseException:
            log.exception("a listener raised what is no Exception; it is logged, as on every other thread")
