"""One fold for every view: what is told goes in, the state of every task, worker and queue comes out.

    events of tasks ───────┐
    the monitor's entries ─┼──▶ Board ──▶ tasks · workers · queues        no clock, no I/O, no threads
    introductions, counts ─┘

The same thing may be told twice, by a task's own events and by the monitor, and by either of them late. So a task's
state only moves forward: by attempt, and in an attempt from `pending` over `running` and `waiting` to its end. Whatever
the order in which two sources are heard, the state is the same. What a worker or a queue says of itself replaces what
it said before.

Memory is bounded: past `most` tasks the one that ended first goes first, and of unended ones the one that was heard of
first; `dropped` counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..event import ENDS, Event, Progress

if TYPE_CHECKING:
    from ..engine import Count
    from ..wire.about import About

MOST = 10_000  # tasks
_RANK = {"pending": 0, "running": 1, "waiting": 2, "retrying": 3} | dict.fromkeys(ENDS, 4)
_STATES = {"started": "running"} | {name: name for name in ("waiting", "retrying", *ENDS)}


class TaskState(msgspec.Struct):
    """What is known of a task. Unix times in seconds, 0.0: not known."""

    id: str
    name: str = ""
    queue: str = ""
    worker: str = ""
    state: str = "pending"
    """`pending`, `running`, `waiting`, `retrying` or an end."""
    attempt: int = 0
    progress: Progress | None = None
    started: float = 0.0
    ended: float = 0.0


class QueueState(msgspec.Struct):
    """A named queue: its counts, and who works on it."""

    queue: str
    pending: int = 0
    delayed: int = 0
    blocked: int = 0
    leased: int = 0
    buried: int = 0
    oldest: float = 0.0
    running: int = 0
    workers: int = 0


class Board:
    """The fold. One thread at a time."""

    def __init__(self, most: int = MOST) -> None:
        self._most = max(1, most)
        self._open: dict[str, TaskState] = {}  # in the order in which they were heard of
        self._over: dict[str, TaskState] = {}  # in the order of their ends
        self._counts: dict[str, Count] = {}
        self.workers: dict[str, About] = {}
        self.dropped = 0

    # --- in

    def event(self, event: Event, name: str = "", queue: str = "") -> None:
        """An event of a task, in the order of its reader."""
        if event.name == "progress":
            if event.args and isinstance(event.args[0], Progress):
                task = self._known(event.task_id, name, queue)
                if task.state not in ENDS and event.attempt >= task.attempt:
                    self._move(task, "running", event.attempt, event.time)
                    task.progress = event.args[0]
            return
        worker = str(event.args[0]) if event.name == "started" and event.args else ""
        self._told(event.task_id, name, queue, event.name, event.attempt, event.time, worker)

    def entries(self, worker: str, entries: Iterable[Sequence[Any]]) -> None:
        """What a worker wrote on the monitor channel: (task, function, queue, event, attempt, Unix time) each."""
        for id, function, queue, event, attempt, when, *_ in entries:
            self._told(id, function, queue, event, attempt, when, worker)

    def introductions(self, workers: Iterable[About]) -> None:
        """All workers there are, as `client.workers()` has them, with what they run."""
        self.workers = {each.key or each.name: each for each in workers}
        for worker in self.workers.values():
            for each in worker.running:
                self._told(each.id, each.name, each.queue, "started", each.attempt, each.since, worker.name)

    def counts(self, counts: Iterable[Count]) -> None:
        """All queues that hold something, as `client.counts()` has them."""
        self._counts = {each.queue: each for each in counts}

    # --- out

    @property
    def tasks(self) -> list[TaskState]:
        """Unended ones first, in the order in which they were heard of, then the others, the latest end first."""
        return [*self._open.values(), *reversed(self._over.values())]

    def task(self, id: str) -> TaskState | None:
        """One task; None: nothing was told of it, or it was dropped."""
        return self._open.get(id) or self._over.get(id)

    @property
    def queues(self) -> list[QueueState]:
        """Those that hold something or that somebody takes from, by name."""
        found = {name: QueueState(*count) for name, count in self._counts.items()}
        for worker in self.workers.values():
            for name in worker.queues:
                found.setdefault(name, QueueState(name)).workers += 1
            for name, number in worker.busy.items():
                if name in found:
                    found[name].running += number
        return [found[name] for name in sorted(found)]

    # ---

    def _known(self, id: str, name: str, queue: str) -> TaskState:
        task = self._open.get(id) or self._over.get(id)
        if task is None:
            task = self._open[id] = TaskState(id)
            self._bound()
        task.name = task.name or name
        task.queue = task.queue or queue
        return task

    def _told(self, id: str, name: str, queue: str, event: str, attempt: int, when: float, worker: str) -> None:
        task = self._known(id, name, queue)
        state = _STATES.get(event)
        if state is not None:
            self._move(task, state, attempt, when)
            if worker and attempt == task.attempt:
                task.worker = worker

    def _move(self, task: TaskState, state: str, attempt: int, when: float) -> None:
        """Forward, never back; an end is final."""
        if task.state in ENDS or (attempt, _RANK[state]) <= (task.attempt, _RANK[task.state]):
            return
        if attempt > task.attempt:
            task.progress = None
            task.started = 0.0
            task.worker = ""
        task.attempt, task.state = attempt, state
        if state == "running":
            task.started = when
        elif state in ENDS:
            task.ended = when
            self._open.pop(task.id, None)
            self._over[task.id] = task
            self._bound()

    def _bound(self) -> None:
        while len(self._open) + len(self._over) > self._most:
            first = self._over or self._open
            del first[next(iter(first))]
            self.dropped += 1
