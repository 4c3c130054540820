"""Says to the queue who takes there: at the start, every 10 seconds, and sooner when something has changed."""

from __future__ import annotations

import os
from collections import deque
from time import monotonic, time
from typing import TYPE_CHECKING

from .. import __version__
from ..wire.about import About, Running, write

if TYPE_CHECKING:
    from .worker import Worker

EVERY = 10.0  # seconds
SOON = 1.0  # the same after a change
SHOWN = 20  # running tasks that are named
NAMES = 200  # functions that are named


class Introduction:
    """Part of the Worker; on the taker's thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._started = time()
        self._said = -EVERY  # monotonic seconds
        self._what: tuple[object, ...] = ()
        self._measured = deque([(monotonic(), 0)])  # when how many were settled, lately
        self.functions: dict[str, None] = {}

    def ran(self, name: str) -> None:
        """A function of this name runs here."""
        if name not in self.functions and len(self.functions) < NAMES:
            self.functions[name] = None

    def again(self) -> None:
        """The queue may have forgotten: it was away."""
        self._said = -EVERY

    def look(self, now: float) -> float:
        """Introduce the worker if it is time; seconds until it will be. Raises as `Queue.introduce`."""
        worker = self._worker
        if not worker.queue.traits.manages:
            return EVERY
        if now < self._said + SOON:
            return self._said + SOON - now
        taker = worker.taker
        what = (worker.state, taker.taken, taker.settled, sum([held.started for held in list(taker.held.values())]))
        if what == self._what and now < self._said + EVERY:
            return self._said + EVERY - now
        self._said, self._what = now, what
        worker.queue.introduce(worker.channel[2:14], write(self._about(now)))
        return SOON  # what was taken just now begins in a moment, and nobody wakes this thread for that

    def _about(self, now: float) -> About:
        worker = self._worker
        taker, wall = worker.taker, time()
        busy: dict[str, int] = {}
        running: list[Running] = []
        for held in list(taker.held.values()):
            if held.started and not held.ended:
                queue = held.lease.queue
                busy[queue] = busy.get(queue, 0) + 1
                if len(running) < SHOWN:
                    name = held.envelope.name if held.envelope is not None else held.lease.name
                    since = round(wall - (now - held.since), 3)
                    running.append(Running(held.id, name, queue, held.lease.deliveries, since))
        measured = self._measured
        while len(measured) > 1 and measured[1][0] <= now - EVERY:
            measured.popleft()
        before, settled = measured[0]
        rate = (taker.settled - settled) / (now - before) if now > before else 0.0
        measured.append((now, taker.settled))
        return About(
            name=worker.name,
            host=os.uname().nodename,
            pid=os.getpid(),
            version=__version__,
            state=worker.state,
            pool=worker.pool,
            queues=worker.queues,
            concurrency=worker.concurrency,
            started=round(self._started, 3),
            time=round(wall, 3),
            busy=busy,
            running=running,
            functions=list(self.functions),
            taken=taker.taken,
            settled=taker.settled,
            rate=round(rate, 3),
            keys=worker.fingerprints,
        )
