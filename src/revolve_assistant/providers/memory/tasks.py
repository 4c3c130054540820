"""The tasks that the queues of one `memory://name` share, and the moves that they make.

    submit ─▶ delayed ─▶ ready ─▶ leased ─▶ settled: done, buried
                  ▲        ▲        │
                  └────────┴────────┘  released, or the lease ended

Ready tasks stand in heaps, one for each function of a queue: a rule that keeps a function back skips its heap, and
nothing has to be moved when the rule goes. Delays and leases are timers in one more heap. Entries of heaps are dropped
when they are met and no longer true, rather than searched for. Everything here happens under the store's lock.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Literal

from ...engine import Buried, Parcel, Plan, Rule
from .store import Clock, Store

Heap = list[tuple[int, int, "Task"]]  # (-priority, order, task)


class Task:
    """One task that is not over."""

    __slots__ = (
        "body", "deliveries", "due", "id", "name", "order", "priority", "queue", "since", "stage", "token", "unique"
    )  # fmt: skip

    def __init__(self, parcel: Parcel, order: int) -> None:
        self.id = parcel.id
        self.name = parcel.name
        self.unique = parcel.unique
        self.body = bytes(parcel.body)
        self.queue = parcel.queue
        self.priority = parcel.priority
        self.order = order
        self.deliveries = 0
        self.token = 0  # of the latest take
        self.stage: Literal["ready", "delayed", "leased"] = "delayed"
        self.since = 0.0  # when it became ready
        self.due = 0.0  # when a delay or lease ends

    def taken_out(self, reason: str = "", when: float = 0.0) -> Buried:
        return Buried(self.id, self.body, self.queue, self.deliveries, reason, self.name, when)


class Tasks(Store):
    """What all queues of one name share."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.tasks: dict[str, Task] = {}
        self.uniques: dict[str, str] = {}  # key -> id of the task that holds it
        self.graves: dict[str, tuple[float, Buried]] = {}  # by the moment of the burial, by the clock
        self.ready: dict[str, dict[str, Heap]] = {}  # queue -> function -> heap
        self.timers: list[tuple[float, int, Task]] = []  # heap; valid while the task is still due then
        self.takers: dict[threading.Condition, frozenset[str]] = {}
        self.rules: dict[str, Rule] = {}
        self.running: Counter[str] = Counter()  # function -> leases
        self.started: dict[str, deque[float]] = {}  # function with a rate -> moments of its latest takes
        self.plans: dict[str, Plan] = {}
        self.present: dict[threading.Condition, tuple[str, bytes, float]] = {}  # (worker, about, until)

    def unix(self) -> float:
        """Unix time. A clock that was given is taken to tell it."""
        return time.time() if self.clock is time.monotonic else self.clock()

    # ---- moves

    def enter(self, parcel: Parcel) -> str | None:
        """Take a new task in; the id of another one that holds its key, and so keeps it out."""
        if parcel.id in self.tasks:
            return None
        if parcel.unique is not None:
            holder = self.uniques.setdefault(parcel.unique, parcel.id)
            if holder != parcel.id:
                return holder
        self.graves.pop(parcel.id, None)
        task = self.tasks[parcel.id] = Task(parcel, next(self.numbers))
        if parcel.delay > 0:
            self.hold(task, "delayed", parcel.delay)
        else:
            self.make_ready(task)
        return None

    def make_ready(self, task: Task) -> None:
        self._leave(task)
        task.stage = "ready"
        task.since = self.clock()
        heaps = self.ready.setdefault(task.queue, {})
        heapq.heappush(heaps.setdefault(task.name, []), (-task.priority, task.order, task))
        for taker, queues in self.takers.items():
            if task.queue in queues:
                taker.notify_all()

    def hold(self, task: Task, stage: Literal["delayed", "leased"], seconds: float) -> None:
        self._leave(task)
        task.stage = stage
        if stage == "leased":
            self.running[task.name] += 1
        task.due = self.clock() + seconds
        heapq.heappush(self.timers, (task.due, next(self.numbers), task))

    def remove(self, task: Task) -> None:
        """It is over, or taken out."""
        self._leave(task)
        del self.tasks[task.id]
        if task.unique is not None:
            self.uniques.pop(task.unique, None)
        task.body = b""  # heaps may hold the rest of it for a while

    def _leave(self, task: Task) -> None:
        if task.stage != "leased":
            return
        task.stage = "delayed"
        self.running[task.name] -= 1
        if not self.running[task.name]:
            del self.running[task.name]
        if task.name in self.rules:
            self.rouse()

    def rouse(self) -> None:
        """Have all that wait look again."""
        for taker in self.takers:
            taker.notify_all()

    def bury(self, task: Task, reason: str) -> None:
        self.graves[task.id] = (self.clock(), task.taken_out(reason, self.unix()))
        self.remove(task)

    def clear_graves(self, keep: float, most: int) -> None:
        """Forget who was buried more than `keep` seconds ago, and the first of more than `most`."""
        now = self.clock()
        while self.graves:
            first = next(iter(self.graves))
            if len(self.graves) <= most and self.graves[first][0] + keep > now:
                break
            del self.graves[first]

    def tick(self) -> float:
        """End the delays and leases that are due; seconds until the next one is."""
        while self.timers:
            due, _, task = self.timers[0]
            if task.stage == "ready" or task.due != due or self.tasks.get(task.id) is not task:
                heapq.heappop(self.timers)  # extended, settled or cancelled meanwhile
            elif due > (now := self.clock()):
                return due - now
            else:
                heapq.heappop(self.timers)
                self.make_ready(task)
        return threading.TIMEOUT_MAX

    # ---- taking

    def pop(self, queue: str) -> Task | None:
        """The first task of a queue that may be taken."""
        heaps = self.ready.get(queue, {})
        best: Heap | None = None
        for name in list(heaps):
            heap = heaps[name]
            while heap and not self._true(heap[0]):
                heapq.heappop(heap)
            if not heap:
                del heaps[name]
            elif (best is None or heap[0] < best[0]) and (name not in self.rules or self.room(name) > 0):
                best = heap
        if best is not None:
            task = heapq.heappop(best)[2]
            if not best:
                del heaps[task.name]
            if task.name in self.started:
                self.started[task.name].append(self.clock())
        if not heaps:
            self.ready.pop(queue, None)
        return task if best is not None else None

    def _true(self, entry: tuple[int, int, Task]) -> bool:
        _, order, task = entry
        return task.stage == "ready" and task.order == order and self.tasks.get(task.id) is task

    def held(self, id: str, token: object) -> Task | None:
        """The task of a lease that nobody has taken since."""
        task = self.tasks.get(id)
        return task if task is not None and task.token == token and task.stage != "delayed" else None

    # ---- rules

    def room(self, name: str) -> float:
        """How many more of a function may be taken now."""
        rule = self.rules.get(name)
        if rule is None:
            return float("inf")
        room = 0.0 if rule.paused else float("inf")
        if rule.concurrency is not None:
            room = min(room, rule.concurrency - self.running[name])
        if rule.rate is not None:
            started = self.started[name]
            while started and started[0] + rule.per <= self.clock():
                started.popleft()
            room = min(room, rule.rate - len(started))
        return max(0.0, room)

    def patience(self, queues: Iterable[str]) -> float:
        """Seconds until a rate may let something go."""
        soonest = threading.TIMEOUT_MAX
        for queue in queues:
            for name in self.ready.get(queue, ()):
                started = self.started.get(name)
                if started and self.room(name) <= 0:  # that drops the old ones
                    first = started[0] if started else float("inf")
                    soonest = min(soonest, first + self.rules[name].per - self.clock())
        return max(0.0, soonest)
