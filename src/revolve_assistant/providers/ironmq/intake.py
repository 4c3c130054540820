"""Gets messages reserved for whoever waits for them, and lets him be woken without losing any.

    draw ──▶ one queue, time to wait:  a long poll (30 s at most), in a thread of its own ─▶ found ─▶ draw
         ──▶ several queues:           each asked in turn, then one of them polled for a second
         ──▶ no time to wait:          each asked in turn

A long poll that is cut off may have been answered already, and what it brought would be hidden from everybody until its
reservation ends. So waking only wakes who waits: the poll goes on, and what it brings is there for the next draw. When
nobody comes for it within a second it is given back. There is one poll at a time, whatever it is waited for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from ...errors import ClientClosed, ProviderError
from ...pool.threads import OurThread
from ...protocols.iron import Missing, mq
from ...protocols.iron.caller import Caller, Line
from ...protocols.iron.limits import LONGEST_POLL

LEAVE = 1.0  # seconds that what was found waits for somebody to come for it
TURN = 1.0  # seconds of a poll while other queues are to be looked at too
PAUSES = (0.02, 0.25)  # seconds between two looks of who has less than a second to wait
_CLOSING = 5.0  # seconds


class Drawn(NamedTuple):
    """A reserved message: from which queue, and when it was got (monotonic seconds)."""

    queue: str
    message: mq.Reserved
    when: float


class Intake:
    """One thread draws at a time; `wake` and `close` may come from any.

    `make(queue)` makes a queue that is not there; `give_back` takes what nobody came for (None: it is kept for whoever
    comes, in the end).
    """

    def __init__(
        self,
        caller: Caller,
        timeout: float,
        make: Callable[[str], None],
        give_back: Callable[[list[Drawn]], None] | None = None,
    ) -> None:
        self._caller, self._timeout, self._make, self._give_back = caller, timeout, make, give_back
        self.woken = False
        self.failed = 0.0  # when a reservation was last asked for and no answer came, monotonic seconds
        self.pid = os.getpid()
        self._bell = threading.Condition()
        self._line = Line(caller)
        self._thread: OurThread | None = None
        self._job: tuple[str, int, float] | None = None  # queue, limit, seconds: the poll that is under way
        self._found: list[Drawn] = []
        self._error: ProviderError | None = None
        self._closing = False
        self._lingering = False  # the thread waits whether somebody comes for what it found
        self._turn = 0
        self._pause = PAUSES[0]

    # --- who waits

    def draw(self, queues: Sequence[str], limit: int, until: float) -> list[Drawn]:
        """Up to `limit` messages, of earlier queues first; waits until then (monotonic seconds) for one.

        May return early and empty; at once when woken. Raises as `Caller.call`.
        """
        left = until - monotonic()
        if found := self._take(queues, limit):
            return found
        if left > 0 and len(queues) == 1 and (left >= TURN or self._polls(queues[0])):
            return self._poll(queues, queues[0], limit, left, until)
        for queue in queues:
            if len(found) < limit:
                found += self._reserve(queue, limit - len(found))
        if found or left <= 0:
            self._pause = PAUSES[0]
            return found
        if left >= TURN:
            self._turn += 1
            return self._poll(queues, queues[self._turn % len(queues)], limit, TURN, min(until, monotonic() + TURN))
        with self._bell:
            if not self.woken and not self._closing:
                self._bell.wait(min(until - monotonic(), self._pause))
        self._pause = min(PAUSES[1], self._pause * 2)
        return []

    def wake(self) -> None:
        """End the draw that waits, or the next one that would."""
        with self._bell:
            self.woken = True
            self._bell.notify_all()

    def close(self) -> list[Drawn]:
        """End the poll; what was found and nobody came for. Idempotent."""
        with self._bell:
            self._closing = True
            self._bell.notify_all()
        thread = self._thread
        if self.pid == os.getpid():
            self._line.abort()
            if thread is not None:
                thread.join(_CLOSING)
            self._line.close()
        found, self._found = self._found, []
        return found

    def _take(self, queues: Sequence[str], limit: int) -> list[Drawn]:
        with self._bell:
            if not self._found:
                return []
            mine = [each for each in self._found if each.queue in queues][:limit]
            self._found = [each for each in self._found if each not in mine]
            self._bell.notify_all()
            return mine

    def _polls(self, queue: str) -> bool:
        return self._job is not None and self._job[0] == queue

    def _poll(self, queues: Sequence[str], queue: str, limit: int, seconds: float, until: float) -> list[Drawn]:
        """Wait for the poll that is under way, or one of this queue."""
        began = False
        with self._bell:
            while self._error is None and not self.woken and not self._closing:
                left = until - monotonic()
                if left <= 0 or any(each.queue in queues for each in self._found):
                    break
                if self._job is None and not self._lingering:
                    if began:
                        break
                    began = True
                    self._job = (queue, limit, min(seconds, left, float(LONGEST_POLL)))
                    if self._thread is None:
                        self._thread = OurThread(self._run, "revolve-ironmq")
                        self._thread.start()
                    self._bell.notify_all()
                self._bell.wait(left)
            error, self._error = self._error, None
        found = self._take(queues, limit)
        if error is not None and not found:
            raise error
        return found

    def _rest(self, seconds: float) -> bool:
        """Wait before another try; True: somebody woke us."""
        self.failed = monotonic()
        with self._bell:
            if not self.woken and not self._closing:
                self._bell.wait(seconds)
            return self.woken or self._closing

    def _reserve(self, queue: str, limit: int) -> list[Drawn]:
        request = mq.reserve(queue, n=limit, timeout=self._timeout)
        try:
            held = self._caller.call(request, rest=self._rest)
        except Missing:
            return []  # whoever waits for it makes it
        except ProviderError:
            self.failed = monotonic()
            raise
        now = monotonic()
        return [Drawn(queue, message, now) for message in mq.reserved(held)]

    # --- the thread

    def _run(self) -> None:
        while True:
            with self._bell:
                while self._job is None and not self._closing:
                    self._bell.wait()
                job = self._job
            if self._closing or job is None:
                return
            found: list[Drawn] = []
            problem: ProviderError | None = None
            try:
                found = self._ask(*job)
            except ProviderError as error:
                self.failed = monotonic()
                problem = error
            except ClientClosed:
                pass
            with self._bell:
                self._found += found
                self._error = problem
                self._job = None
                self._bell.notify_all()
                left = self._linger() if self._give_back is not None and found else []
            if left and self._give_back is not None:
                self._give_back(left)

    def _linger(self) -> list[Drawn]:
        """Wait whether somebody comes for what was found; what he left."""
        deadline = monotonic() + LEAVE
        self._lingering = True
        while self._found and not self._closing and monotonic() < deadline:
            self._bell.wait(max(0.01, deadline - monotonic()))
        self._lingering = False
        left: list[Drawn] = []
        if not self._closing:
            left, self._found = self._found, []
        self._bell.notify_all()
        return left

    def _ask(self, queue: str, limit: int, seconds: float) -> list[Drawn]:
        request = mq.reserve(queue, n=limit, timeout=self._timeout, wait=seconds)
        try:
            held = self._caller.call(request, send=self._line.send, rest=self._away)
        except Missing:
            self._make(queue)
            held = self._caller.call(request, send=self._line.send, rest=self._away)
        now = monotonic()
        return [Drawn(queue, message, now) for message in mq.reserved(held)]

    def _away(self, seconds: float) -> bool:
        self.failed = monotonic()
        with self._bell:
            if not self._closing:
                self._bell.wait(seconds)
            return self._closing
