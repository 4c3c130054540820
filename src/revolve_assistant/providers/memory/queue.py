"""Tasks in memory: see `tasks` for their moves, and `managing` for what steers them.

`take` sleeps until a task comes, the next timer ends or its own time is up. Leases are fenced by a token that every
take renews. A lease that ended but was not given to somebody else can still be settled or extended: there is no reason
to run again what is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from ... import engine as contract
from ...engine import EngineState, Lease, Outcome, Parcel, Sink
from ...traits import Traits
from ..url import Url
from .managing import Managing
from .store import Clock, name_of
from .tasks import Tasks

LEASE = 30.0  # seconds
KEEP_BURIED = 7 * 86400.0  # seconds
MOST_BURIED = 10_000


class Queue(Managing, contract.Queue):
    """Tasks in memory, for workers in this process. Every method may be called from any thread.

    An id that is submitted while it is held is one task. `lease`: seconds until a take that is neither settled
    nor extended goes to somebody else. Buried tasks are kept for `keep_buried` seconds, and the latest `most_buried`.
    """

    traits = Traits(
        summary="tasks in the memory of this process; the reference",
        delays=True,
        priorities=True,
        manages=True,
        max_wait=3600.0,
        messenger="memory://",
    )
    _kind = Tasks

    def __init__(
        self,
        name: str = "",
        *,
        lease: float = LEASE,
        keep_buried: float = KEEP_BURIED,
        most_buried: int = MOST_BURIED,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(name, clock=clock)
        self.lease = lease
        self._keep = (keep_buried, most_buried)

    @classmethod
    def from_url(cls, url: Url, *, clock: Clock = time.monotonic, **options: object) -> Queue:
        """`memory://name?lease=30&keep_buried=604800&most_buried=10000`. Raises `UsageError`."""
        url = url.with_options(options).only("lease", "keep_buried", "most_buried")
        return cls(
            name_of(url),
            lease=url.number("lease", LEASE, least=0.001),
            keep_buried=url.number("keep_buried", KEEP_BURIED, least=0.001),
            most_buried=url.whole("most_buried", MOST_BURIED),
            clock=clock,
        )

    def close(self) -> None:
        """Leave the store, which stays; a waiting take ends."""
        self._leave()
        super().close()

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> Mapping[str, str] | None:
        store = self._joined()
        kept_out = {}
        with store.lock:
            store.tick()
            for parcel in parcels:
                holder = store.enter(parcel)
                if holder is not None:
                    kept_out[parcel.id] = holder
        return kept_out

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
                    self._seen(store)
                    return leases
                store.takers[self._arrival] = frozenset(queues)
                try:
                    self._arrival.wait(min(left, timer, store.patience(queues)))
                finally:
                    store.takers.pop(self._arrival, None)

    def _leases(self, store: Tasks, queues: Sequence[str], limit: int) -> list[Lease]:
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
            self._seen(store)
            for lease in leases:
                task = store.held(lease.id, lease.token)
                if task is not None:
                    store.hold(task, "leased", self.lease)

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        store = self._joined()
        with store.lock:
            self._seen(store)
            for lease, outcome in outcomes:
                task = store.held(lease.id, lease.token)
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
                elif outcome.kind == "bury":
                    store.bury(task, outcome.reason)
                    store.clear_graves(*self._keep)
                else:
                    store.remove(task)

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
