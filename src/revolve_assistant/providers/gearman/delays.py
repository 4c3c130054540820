"""Tasks that are not due yet.

    NAMESPACE.delayed ── grabbed in the second in which it is due ──▶ held here ── due ──▶ its queue's function

gearmand holds a job back until a whole second (SUBMIT_JOB_EPOCH). 1.1.20 wakes nobody when that comes, and a job that
is not due hides others from workers: later functions, lower classes. So these jobs have a function, and a connection,
of their own: whoever takes from the queues looks there twice a second as well, holds what is due within the second, and
puts it into its queue on time. While they wait they cost gearmand a look at each of them with every look of a worker.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import defaultdict
from collections.abc import Callable

from ...protocols.gearman.worker_state import Assignment
from ..lines import Line, Lines
from .address import MAX_BODY, Place
from .delivery import SUBMIT, Delivery
from .moving import Move, move
from .taking import Taking
from .wrapping import Wrapped, unwrap

_HELD = 100  # tasks held at once
_EARLY = 5.0  # seconds before it is due that a task given out goes back: gearmand's clock is wrong, or it is forged
_LAG = 0.012  # seconds after which gearmand has noticed that a second began
_AGAIN = 0.5  # seconds, where a task could not be put into its queue


class Delays:
    """Moves delayed tasks of every queue, while somebody calls `tend`."""

    def __init__(self, lines: Lines, delivery: Delivery, place: Place, clock: Callable[[], float] = time.time) -> None:
        self._lines = lines
        self._delivery = delivery
        self._place = place
        self._clock = clock
        self._taking = Taking(lines, "delays", MAX_BODY)
        self._taking.functions([place.names.delayed])
        self._held: list[tuple[float, int, Assignment, Wrapped]] = []  # a heap
        self._numbers = itertools.count()
        self._tick = 0.0

    def start(self) -> None:
        self._lines.want(self._delivery.role)
        self._lines.want(self._taking.role)

    def tend(self) -> None:
        """Look for tasks that are due, move those that are. Blocks for a round trip when there are."""
        now = time.monotonic()
        if now >= self._tick:
            # Soon after a whole second, by a clock that may lag by 10 ms; and between two, if gearmand's is off.
            self._tick = now + 0.5 - (self._clock() - _LAG) % 0.5
            self._taking.nudge()
        elif not self._held and self._taking.resting():
            return
        self._taking.ask(_HELD - len(self._held))
        self._collect()
        wall = self._clock()
        due: dict[int, list[tuple[Assignment, Wrapped]]] = defaultdict(list)
        while self._held and self._held[0][0] <= wall:
            _, _, job, task = heapq.heappop(self._held)
            if not job.ended:
                due[job.owner.index].append((job, task))
        for index, jobs in due.items():
            self._move(self._lines.line(SUBMIT, index), jobs)

    def until(self) -> float:
        """When to call `tend` again, at the latest (monotonic seconds)."""
        if not self._held and self._taking.resting():
            return self._tick
        due = self._held[0][0] - self._clock() if self._held else float("inf")
        return min(self._tick, time.monotonic() + due, self._taking.patience())

    def _collect(self) -> None:
        jobs, self._taking.arrived = self._taking.arrived, []
        for job in jobs:
            task = unwrap(job.unique, "default", job.workload)
            due = 0.0 if task.due > self._clock() + _EARLY else task.due
            heapq.heappush(self._held, (due, next(self._numbers), job, task))

    def _target(self, job: Assignment, task: Wrapped) -> Move:
        names = self._place.names
        if task.due > self._clock() + _EARLY:
            return Move(names.delayed, task, job.unique, int(task.due))
        return Move(names.queue(task.queue, task.priority), task._replace(due=0.0), job.unique)

    def _move(self, line: Line | None, jobs: list[tuple[Assignment, Wrapped]]) -> None:
        moved = [False] * len(jobs)
        if line is not None and line.up:
            moves = [self._target(job, task) for job, task in jobs]
            moved, _ = move(self._delivery, line, moves, self._place.base64)
        owners = set()
        for (job, task), safe in zip(jobs, moved, strict=True):
            if job.ended:
                continue
            if safe or task.void:
                job.owner.state.complete(job)
                owners.add(job.owner)
            else:
                heapq.heappush(self._held, (self._clock() + _AGAIN, next(self._numbers), job, task))
        self._lines.send(owners)
