"""Tasks in memory.

    submit ─▶ delayed ─▶ ready ─▶ leased ─▶ settled: done, buried
                  ▲        ▲        │
                  └────────┴────────┘  released, or the lease ended

Delays and leases are timers in one heap; `take` sleeps until a task comes, the next timer ends or its own time is up.
Entries of heaps are dropped when they are met and no longer true, rather than searched for. Leases are fenced by a
token that every take renews. A lease that ended but was not given to somebody else can still be settled or extended:
there is no reason to run again what is done.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ... import engine as contract
from ...engine import Buried, EngineState, Lease, Outcome, Parcel, Sink
from ...traits import Traits
from ..url import Url
from .store import Clock, Member, Store, name_of

LEASE = 30.0  # seconds


class _Task:
    __slots__ = ("body", "deliveries", "due", "id", "name", "order", "priority", "queue", "stage", "token")

    def __init__(self, parcel: Parcel, order: int) -> None:
        self.id = parcel.id
        self.name = parcel.name
        self.body = bytes(parcel.body)
        self.queue = parcel.queue
        self.priority = parcel.priority
        self.order = order
        self.deliveries = 0
        self.token = 0  # of the latest take
        self.stage: Literal["ready", "delayed", "leased"] = "delayed"
        self.due = 0.0  # when a delay or lease ends


class _Tasks(Store):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.tasks: dict[str, _Task] = {}
        self.buried: dict[str, Buried] = {}
        self.ready: dict[str, list[tuple[int, int, _Task]]] = {}  # heaps of (-priority, order, task)
        self.timers: list[tuple[float, int, _Task]] = []  # heap; valid while the task is still due then
        self.takers: dict[threading.Condition, frozenset[str]] = {}

    def make_ready(self, task: _Task) -> None:
        task.stage = "ready"
        heapq.heappush(self.ready.setdefault(task.queue, []), (-task.priority, task.order, task))
        for taker, queues in self.takers.items():
            if task.queue in queues:
                taker.notify_all()

    def hold(self, task: _Task, stage: Literal["delayed", "leased"], seconds: float) -> None:
        task.stage = stage
        task.due = self.clock() + seconds
        heapq.heappush(self.timers, (task.due, next(self.numbers), task))

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

    def pop(self, queue: str) -> _Task | None:
        heap = self.ready.get(queue)
        while heap:
            _, order, task = heapq.heappop(heap)
            if task.stage == "ready" and task.order == order and self.tasks.get(task.id) is task:
                return task
        self.ready.pop(queue, None)
        return None

    def remove(self, task: _Task) -> None:
        del self.tasks[task.id]
        task.body = b""  # heaps may hold the rest of it for a while

    def held(self, lease: Lease) -> _Task | None:
        """The task of a lease that nobody has taken since."""
        task = self.tasks.get(lease.id)
        return task if task is not None and task.token == lease.token and task.stage != "delayed" else None


class Queue(Member[_Tasks], contract.Queue):
    """Tasks in memory, for workers in this process. Every method may be called from any thread.

    An id that is submitted while it is held is one task. `lease`: seconds until a take that is neither settled
    nor extended goes to somebody else.
    """

    traits = Traits(
        summary="tasks in the memory of this process; the reference",
        delays=True,
        priorities=True,
        max_wait=3600.0,
        messenger="memory://",
    )
    _kind = _Tasks

    def __init__(self, name: str = "", *, lease: float = LEASE, clock: Clock = time.monotonic) -> None:
        super().__init__(name, clock=clock)
        self.lease = lease

    @classmethod
    def from_url(cls, url: Url, *, clock: Clock = time.monotonic, **options: object) -> Queue:
        """`memory://name?lease=30`. Raises `UsageError`."""
        url = url.with_options(options).only("lease")
        return cls(name_of(url), lease=url.number("lease", LEASE, least=0.001), clock=clock)

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        store = self._joined()
        with store.lock:
            for parcel in parcels:
                if parcel.id in store.tasks:
                    continue
                store.buried.pop(parcel.id, None)
                task = store.tasks[parcel.id] = _Task(parcel, next(store.numbers))
                if parcel.delay > 0:
                    store.hold(task, "delayed", parcel.delay)
                else:
                    store.make_ready(task)

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        deadline = time.monotonic() + wait
        self._joined()
        with self._arrival:
            while True:
                store = self._joined()
                timer = store.tick()
                leases = self._leases(store, queues, limit)
                left = deadline - time.monotonic()
                if leases or self._woken or left <= 0:
                    self._woken = False
                    return leases
                store.takers[self._arrival] = frozenset(queues)
                try:
                    self._arrival.wait(min(left, timer))
                finally:
                    store.takers.pop(self._arrival, None)

    def _leases(self, store: _Tasks, queues: Sequence[str], limit: int) -> list[Lease]:
        leases: list[Lease] = []
        for queue in queues:
            while len(leases) < limit and (task := store.pop(queue)) is not None:
                task.deliveries += 1
                task.token = next(store.numbers)
                store.hold(task, "leased", self.lease)
                leases.append(Lease(task.id, task.body, task.queue, task.deliveries, task.token))
        return leases

    def extend(self, leases: Sequence[Lease]) -> None:
        store = self._joined()
        with store.lock:
            for lease in leases:
                task = store.held(lease)
                if task is not None:
                    store.hold(task, "leased", self.lease)

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        store = self._joined()
        with store.lock:
            for lease, outcome in outcomes:
                task = store.held(lease)
                if task is None:
                    continue
                task.token = 0
                if outcome.kind == "release":
                    if not outcome.counted:
                        task.deliveries -= 1
                    task.order = next(store.numbers)  # behind what waits already
                    if outcome.delay > 0:
                        store.hold(task, "delayed", outcome.delay)
                    else:
                        store.make_ready(task)
                else:
                    if outcome.kind == "bury":
                        store.buried[task.id] = Buried(
                            task.id, task.body, task.queue, task.deliveries, outcome.reason, task.name, time.time()
                        )
                    store.remove(task)

    def buried(self, *, limit: int = 100) -> list[Buried]:
        """Buried tasks, the latest first."""
        store = self._joined()
        with store.lock:
            return list(store.buried.values())[: -limit - 1 : -1]

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        store = self._joined()
        states: dict[str, EngineState] = {}
        with store.lock:
            store.tick()
            for id in ids:
                task = store.tasks.get(id)
                states[id] = "unknown" if task is None else "running" if task.stage == "leased" else "queued"
        return states

    def cancel(self, task_id: str) -> bool:
        store = self._joined()
        with store.lock:
            store.tick()
            task = store.tasks.get(task_id)
            if task is None or task.stage == "leased":
                return False
            store.remove(task)
            return True
