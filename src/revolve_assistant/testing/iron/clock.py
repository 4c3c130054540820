"""The time of a stand-in: that of the machine, or one that a test moves."""

from __future__ import annotations

import threading
import time


class Clock:
    """The machine's time."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def wait(self, changed: threading.Condition, seconds: float, most: float = 60.0) -> None:
        """Wait for a change or for so long, `most` seconds of the machine's; `changed` is held."""
        changed.wait(max(0.0, min(seconds, most)))


class VirtualClock(Clock):
    """Stands still until it is moved: a reservation of a minute is over at once."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._waiting: set[threading.Condition] = set()

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass. From any thread."""
        with self._lock:
            self._now += seconds
            waiting = list(self._waiting)
        for changed in waiting:
            with changed:
                changed.notify_all()

    def wait(self, changed: threading.Condition, seconds: float, most: float = 60.0) -> None:
        until = self._now + seconds
        with self._lock:
            self._waiting.add(changed)
        if self._now < until:
            changed.wait(most)
