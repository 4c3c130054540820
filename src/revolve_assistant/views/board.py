"""One fold for every view: what is told goes in, the state of every task, worker and queue comes out.

    events of tasks ───────┐
    the monitor's entries ─┼──▶ Board ──▶ tasks · workers · queues        no clock, no I/O, no threads
    introductions, counts ─┘

The same thing may be told twice, by a task's own events and by the monitor, and by either of them late. So a task's
state only moves forward: by attempt, and in an attempt from `pending` over `running` and `waiting` to its end. Whatever
the order in which two sources are heard, the state is the same. What a worker or a queue says of itself replaces what
it said before.

Each change has a number, so that a view asks for what has changed since (`changes`) and needs no copy of everything.

Memory is bounded: past `most` tasks the one that ended first goes first, and of unended ones the one that was heard of
first; `dropped` counts them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..event import ENDS, Event, Progress

if TYPE_CHECKING:
    from ..caller.steering import BuriedTask
    from ..engine import Count
    from ..wire.about import About

MOST = 10_000  # tasks
SURE = 2.0  # seconds by which what a worker says may be behind what it does
GONE = 10_000  # dropped tasks that are remembered, for views that have not heard of it
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
    """Of the attempt."""
    ended: float = 0.0
    buried: bool = False
    """It failed, and the queue keeps it: it can be tried again."""
    reason: str = ""
    """Why it was buried: the headline of an error, which may hold what it worked on."""
    changed: int = 0
    """The number of its last change."""


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


class Changes(NamedTuple):
    """What a view has to be told to be up to date with `version`."""

    version: int
    tasks: list[TaskState]
    """Those that are new or changed, the longest unchanged first; the board's own objects, which go on changing."""
    gone: list[str]
    """Ids of tasks that were dropped."""
    whole: bool
    """It is everything there is: what the view knows besides is to be forgotten."""
    places: bool
    """Workers or queues have changed."""


class Board:
    """The fold. One thread at a time."""

    def __init__(self, most: int = MOST) -> None:
        self._most = max(1, most)
        self._open: dict[str, TaskState] = {}  # in the order in which they were heard of
        self._over: dict[str, TaskState] = {}  # in the order of their ends
        self._counts: dict[str, Count] = {}
        self._latest: dict[str, TaskState] = {}  # all of them, the one that changed last at the end
        self._gone: deque[tuple[int, str]] = deque(maxlen=GONE)
        self._places = 0  # the number of the last change of workers or queues
        self.workers: dict[str, About] = {}
        self.version = 0  # the number of the last change
        self.dropped = 0
        self.ends: dict[str, int] = dict.fromkeys(sorted(ENDS), 0)
        """How many tasks ended how, while the board was told; those that were dropped are counted too."""

    # --- in

    def event(self, event: Event, name: str = "", queue: str = "") -> None:
        """An event of a task, in the order of its reader."""
        if event.name == "progress":
            if event.args and isinstance(event.args[0], Progress):
                task = self._known(event.task_id, name, queue)
                self._progress(task, event.attempt, event.args[0])
            return
        worker = str(event.args[0]) if event.name == "started" and event.args else ""
        self._told(event.task_id, name, queue, event.name, event.attempt, event.time, worker)

    def entries(self, worker: str, entries: Iterable[Sequence[Any]]) -> None:
        """What a worker wrote on the monitor channel (see `worker.monitor`)."""
        for id, function, queue, event, attempt, when, *more in entries:
            if not attempt:  # it was taken out of the queue, whichever attempt was to follow
                known = self._open.get(id)
                if known is not None and event in ENDS:
                    self._move(known, event, max(1, known.attempt), when)
            elif event != "progress":
                self._told(id, function, queue, event, attempt, when, worker)
            elif len(more) >= 4:
                task = self._known(id, function, queue)
                self._progress(task, attempt, Progress(*more[:4]))
                if attempt == task.attempt and not task.worker:
                    task.worker = worker

    def introductions(self, workers: Iterable[About]) -> None:
        """All workers there are, as `client.workers()` has them, with what they run."""
        before, self.workers = self.workers, {each.key or each.name: each for each in workers}
        if self.workers != before:
            self._places = self._next()
        for worker in self.workers.values():
            for each in worker.running:
                self._told(each.id, each.name, each.queue, "started", each.attempt, each.since, worker.name)
        self._missed()

    def counts(self, counts: Iterable[Count]) -> None:
        """All queues that hold something, as `client.counts()` has them."""
        before, self._counts = self._counts, {each.queue: each for each in counts}
        if self._counts != before:
            self._places = self._next()

    def buried(self, tasks: Iterable[BuriedTask]) -> None:
        """The latest of the tasks that the queue keeps because they failed, as `client.buried()` has them."""
        found = {each.id: each for each in tasks}
        for task in list(self._over.values()):
            if task.buried and task.id not in found:
                task.buried = False
                self._touch(task)
        for each in reversed(found.values()):
            if each.id not in self._over:
                self._told(each.id, each.name, each.queue, "failed", max(1, each.deliveries), each.when, "", False)
            known = self._over.get(each.id)
            if known is not None and not known.buried:
                known.buried, known.reason = True, each.reason
                self._touch(known)

    # --- out

    @property
    def tasks(self) -> list[TaskState]:
        """Unended ones first, in the order in which they were heard of, then the others, the latest end first."""
        return [*self._open.values(), *reversed(self._over.values())]

    @property
    def open(self) -> int:
        """How many of them have not ended."""
        return len(self._open)

    def task(self, id: str) -> TaskState | None:
        """One task; None: nothing was told of it, or it was dropped."""
        return self._open.get(id) or self._over.get(id)

    def changes(self, since: int = 0) -> Changes:
        """What has changed since the board had this `version`; 0: everything. O(changes)."""
        gone: list[str] = []
        whole = since <= 0 or since > self.version or (len(self._gone) == GONE and self._gone[0][0] > since + 1)
        if whole:
            since = 0
        else:
            for number, id in reversed(self._gone):
                if number <= since:
                    break
                if id not in self._latest:
                    gone.append(id)
        found: list[TaskState] = []
        for task in reversed(self._latest.values()):
            if task.changed <= since:
                break
            found.append(task)
        found.reverse()
        return Changes(self.version, found, gone, whole, self._places > since)

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

    def _next(self) -> int:
        self.version += 1
        return self.version

    def _missed(self) -> None:
        """Drop tasks that ended while nobody heard it: the worker that had one names others that it runs, and not it.

        It names the oldest ones; should the end still be told, the task is there again.
        """
        named = {each.id for worker in self.workers.values() for each in worker.running}
        until: dict[str, float] = {}
        for worker in self.workers.values():
            whole = len(worker.running) >= sum(worker.busy.values())
            until[worker.name] = (
                worker.time if whole else max((each.since for each in worker.running), default=0.0)
            ) - SURE
        for task in list(self._open.values()):
            if task.state == "running" and task.id not in named and 0.0 < task.started < until.get(task.worker, 0.0):
                self._drop(self._open, task.id)

    def _drop(self, where: dict[str, TaskState], id: str) -> None:
        del where[id], self._latest[id]
        self._gone.append((self._next(), id))

    def _touch(self, task: TaskState) -> None:
        task.changed = self._next()
        latest = self._latest
        latest.pop(task.id, None)
        latest[task.id] = task

    def _known(self, id: str, name: str, queue: str) -> TaskState:
        task = self._open.get(id) or self._over.get(id)
        if task is None:
            task = self._open[id] = TaskState(id, name, queue)
            self._touch(task)
            self._bound()
        elif (name and not task.name) or (queue and not task.queue):
            task.name = task.name or name
            task.queue = task.queue or queue
            self._touch(task)
        return task

    def _told(
        self, id: str, name: str, queue: str, event: str, attempt: int, when: float, worker: str, live: bool = True
    ) -> None:
        task = self._known(id, name, queue)
        state = _STATES.get(event)
        if state is not None:
            self._move(task, state, attempt, when, live)
            if attempt == task.attempt and (
                (worker and worker != task.worker) or (state == "running" and not task.started)
            ):
                task.worker = worker or task.worker
                task.started = task.started or (when if state == "running" else 0.0)
                self._touch(task)

    def _progress(self, task: TaskState, attempt: int, progress: Progress) -> None:
        if task.state not in ENDS and attempt >= task.attempt:
            self._move(task, "running", attempt, 0.0)
            task.progress = progress
            self._touch(task)

    def _move(self, task: TaskState, state: str, attempt: int, when: float, live: bool = True) -> None:
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
            self.ends[state] += live
            self._open.pop(task.id, None)
            self._over[task.id] = task
        self._touch(task)
        if state in ENDS:
            self._bound()

    def _bound(self) -> None:
        while len(self._open) + len(self._over) > self._most:
            first = self._over or self._open
            self._drop(first, next(iter(first)))
            self.dropped += 1
