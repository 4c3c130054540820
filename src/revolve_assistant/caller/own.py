"""The tasks of one client, looked at from time to time for whoever wants to see them.

client._tasks ──┐                 what a task does costs nothing more for that: its newest state and progress
client._ends ───┴─▶ Own ──▶ Board   are where they are anyway, and its end is noted in one line
"""

from __future__ import annotations

import os
import threading
from collections import deque
from itertools import islice
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..engine import Count
from ..event import Event
from ..wire.about import About

if TYPE_CHECKING:
    from ..views.board import Board
    from .client import Client
    from .task import Task

EVERY = 0.05  # seconds between two looks
SHARE = 20  # times the seconds that a look took, at least
SELDOM = 1.0  # seconds between two looks while nobody looks
ENDS = 10_000  # ends that are noted until the next look
SEEN = 5000  # unended tasks that are looked at, the oldest first
KEPT = 100  # ended tasks that are kept, so that they can be looked at
WEIGHT = 32 << 20  # bytes of their events and results


class Own:
    """On one thread but for `open` and `close`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ends: deque[tuple[Task[Any], str, str]] = deque(maxlen=ENDS)
        self._kept: deque[tuple[Task[Any], float]] = deque()
        self._weight = 0.0
        self._known: dict[str, tuple[Any, Any]] = {}  # what was told of each: (started, progress)
        self._began = time()
        self._settled: deque[tuple[float, int]] = deque([(monotonic(), 0)])
        self._ended = 0

    def open(self) -> None:
        """Have the ends noted."""
        self._client._ends = (*self._client._ends, self._ends)

    def close(self) -> None:
        """Let go of them."""
        self._client._ends = tuple(each for each in self._client._ends if each is not self._ends)
        self._ends.clear()
        self._kept.clear()

    def look(self, board: Board, lock: threading.Lock, looked: bool) -> float:
        """Fold in what has happened; seconds until the next time. `looked`: somebody sees it."""
        began = monotonic()
        client = self._client
        with lock:
            ends = self._ends
            while ends:
                self._over(board, *ends.popleft())
            if looked:
                pending: dict[str, int] = {}
                busy: dict[str, int] = {}
                known: dict[str, tuple[Any, Any]] = {}
                for task in islice(list(client._tasks.values()), SEEN):
                    queue = task._options.queue
                    started, progress = task._started, task._progress
                    where = pending if started is None else busy
                    where[queue] = where.get(queue, 0) + 1
                    told = self._known.get(task._id)
                    if told is None or told[0] is not started or told[1] is not progress:
                        self._tell(board, task, queue, started, progress)
                        told = (started, progress)
                    known[task._id] = told
                self._known = known
                rest = max(0, len(client._tasks) - SEEN)
                if rest:
                    pending["default"] = pending.get("default", 0) + rest
                board.counts(Count(name, pending=number) for name, number in sorted(pending.items()))
                board.introductions([self._about(busy)])
        took = monotonic() - began
        return max(EVERY, took * SHARE) if looked else SELDOM

    def _tell(self, board: Board, task: Task[Any], queue: str, started: Any, progress: Any) -> None:
        """That it is there, and what of it has changed."""
        id, name, attempt = task._id, task.name, _attempt(task)
        if started is not None:
            worker, when = started
            board.event(Event(id, attempt, 0, "started", (getattr(worker, "name", worker),), when), name, queue)
            if progress is not None:
                board.event(Event(id, attempt, 0, "progress", (progress,), time()), name, queue)
        elif task._log is not None and task._log.attempts:  # it ran, and waits for its next attempt
            board.event(Event(id, attempt, 0, "retrying", (), time()), name, queue)
        else:
            board.event(Event(id, attempt, 0, "queued", (), time()), name, queue)

    def _over(self, board: Board, task: Task[Any], name: str, queue: str) -> None:
        self._known.pop(task._id, None)
        self._ended += 1
        end = task._end
        if end is None:
            return
        attempt = _attempt(task)
        if task._started is not None:
            self._tell(board, task, queue, task._started, task._progress)
        board.event(Event(task._id, attempt, 0, end[0], (), end[1]), name, queue)
        self._keep(task)

    def _keep(self, task: Task[Any]) -> None:
        packed = task._packed
        weight = 1000.0 + (task._log.weight if task._log is not None else 0.0)
        if packed is not None:
            weight += len(packed[0]) + sum(memoryview(each).nbytes for each in packed[1] or ())
        if weight > WEIGHT / 4:
            return
        task.id  # noqa: B018 - from now on it is known by that
        self._kept.append((task, weight))
        self._weight += weight
        while len(self._kept) > KEPT or self._weight > WEIGHT:
            self._weight -= self._kept.popleft()[1]

    def _about(self, busy: dict[str, int]) -> About:
        now = monotonic()
        measured = self._settled
        while len(measured) > 1 and measured[1][0] <= now - 10.0:
            measured.popleft()
        then, number = measured[0]
        rate = (self._ended - number) / (now - then) if now > then + 0.2 else 0.0
        if now > measured[-1][0] + 1.0:
            measured.append((now, self._ended))
        engine = self._client._engine
        worker = getattr(engine, "worker", None) if self._client._remote else None
        return About(
            name="this process",
            host=os.uname().nodename,
            pid=os.getpid(),
            version=__version__,
            state="running",
            pool=worker.pool if worker is not None else type(engine).__module__.rpartition(".")[2],
            queues=sorted({"default", *busy}),
            concurrency=int(getattr(worker or engine, "concurrency" if worker else "max_workers", 0) or 0),
            started=round(self._began, 3),
            time=time() // 10 * 10,
            busy=busy,
            settled=self._ended,
            rate=round(rate, 1),
        )


def _attempt(task: Task[Any]) -> int:
    """The attempt that runs or ran last, from 1."""
    log, parcel = task._log, task._parcel
    if log is not None and log.attempts:
        return len(log.attempts)
    return parcel.attempt if parcel is not None else 1
