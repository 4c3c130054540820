"""Removes the queues that nobody keeps any more: IronMQ lets messages expire, and queues never.

    keep ──▶ a notice in NAMESPACE.kept, delayed until the queue's time is over; the one before it is deleted
    a notice comes up: nobody renewed it ──▶ the queue is empty: it is removed
                                        └──▶ it is not: the notice comes again later

Whoever keeps channels takes the notices, now and then. If a queue is removed that is still read (its keeper was
stopped for long) it is made anew, as one of which nothing is there.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from time import monotonic

from ...errors import ProviderError
from ...protocols.iron import Denied, Missing, mq
from ...protocols.iron.caller import Caller
from ...protocols.iron.limits import LONGEST_DELAY, LONGEST_EXPIRATION, whole
from .names import Names

EVERY = 120.0  # seconds between two looks, or a little more or less
MARGIN = 60.0  # seconds that a queue outlives the time that it was kept for
_HELD = 60.0  # seconds of a notice's reservation


class Janitor:
    """Used by one thread at a time."""

    def __init__(self, caller: Caller, names: Names) -> None:
        self._caller, self._names = caller, names
        self._notices: dict[str, str] = {}  # queue -> message of its notice
        self._made = False
        self._next = monotonic() + EVERY * random.uniform(0.2, 1.2)

    def keep(self, queues: Iterable[str], seconds: float) -> None:
        """Have these queues removed so many seconds from now, unless this is said again."""
        queues = list(queues)
        self._make()
        delay = whole(seconds + MARGIN, LONGEST_DELAY)
        for start in range(0, len(queues), 100):
            some = queues[start : start + 100]
            ids = mq.posted(self._caller.call(mq.post(self._names.kept, [mq.Text(queue, delay) for queue in some])))
            old = [self._notices[queue] for queue in some if queue in self._notices]
            self._notices.update(zip(some, ids, strict=False))
            self._remove(old)

    def forget(self, queue: str) -> None:
        """It was removed."""
        old = self._notices.pop(queue, None)
        if old is not None:
            self._remove([old])

    def tend(self, *, now: bool = False) -> int:
        """Look, if it is time (or `now`), and remove what nobody keeps; how many queues were removed."""
        if not now and monotonic() < self._next:
            return 0
        self._next = monotonic() + EVERY * random.uniform(0.8, 1.2)
        removed = 0
        try:
            held = mq.reserved(self._caller.call(mq.reserve(self._names.kept, n=100, timeout=_HELD)))
        except Missing:
            return 0
        for notice in held:
            removed += self._look_after(notice)
        return removed

    def _look_after(self, notice: mq.Reserved) -> int:
        queue, done = notice.body, 0
        if queue.startswith(self._names.prefix):
            try:
                size = mq.info(self._caller.call(mq.look(queue))).size
                if size:
                    self._caller.call(mq.release(self._names.kept, notice.id, notice.reservation, LONGEST_DELAY / 14))
                    return 0
                self._caller.call(mq.drop(queue))
                done = 1
            except Missing:
                pass
        try:
            self._caller.call(mq.delete_one(self._names.kept, notice.id, notice.reservation))
        except (Missing, Denied):
            pass
        return done

    def _make(self) -> None:
        if not self._made:
            self._caller.call(mq.create(self._names.kept, timeout=_HELD, expiration=LONGEST_EXPIRATION))
            self._made = True

    def _remove(self, notices: list[str]) -> None:
        """Notices that are of no use any more; one that is being looked at is left to whoever does."""
        if not notices:
            return
        try:
            self._caller.call(mq.delete(self._names.kept, [(id, None) for id in notices]))
            return
        except (Missing, Denied):
            if len(notices) == 1:
                return
        except ProviderError:
            return
        for id in notices:
            self._remove([id])
