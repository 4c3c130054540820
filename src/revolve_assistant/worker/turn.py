"""A wake-up that a signal handler may give at any moment."""

from __future__ import annotations

import threading


class Turn:
    """An event that a signal handler may set, also while its own thread waits for it or is just leaving `wait`.

    `threading.Event` has a lock in it, on which such a handler would wait for ever. Wakes one waiter.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is set

    def wait(self, seconds: float = -1.0) -> None:
        """Wait until it is set, and unset it; at most so many seconds, if they are not negative."""
        self._lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
