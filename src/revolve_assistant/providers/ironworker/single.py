"""A Queue that holds the one task of this container: what a Worker takes there.

payload ─▶ take ─▶ the Worker runs it ─▶ settle: done, bury ─▶ over
             ▲                                 │
             └────────── after a delay ────────┘ release
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic

from ... import engine as contract
from ...engine import EngineState, Lease, Outcome, Parcel, Sink
from ...errors import UsageError
from ...traits import Traits


class Single(contract.Queue):
    """One task. `over` is called once, when it is settled for good; on the Worker's thread."""

    traits = Traits(summary="the one task of a container", delays=True, max_wait=3600.0)

    def __init__(self, id: str, body: bytes, queue: str, over: Callable[[], None]) -> None:
        self._lease = Lease(id, body, queue)
        self._over = over
        self._bell = threading.Condition()
        self._due: float | None = 0.0  # when it can be taken (monotonic seconds), None: it cannot
        self._deliveries = 0
        self._woken = False

    def open(self) -> None:
        """There is nothing to connect to."""

    def close(self) -> None:
        self.wake()

    def wake(self) -> None:
        with self._bell:
            self._woken = True
            self._bell.notify_all()

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        raise UsageError("a container has one task, which came with it")

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        deadline = monotonic() + wait
        with self._bell:
            while True:
                now = monotonic()
                if self._due is not None and self._due <= now and limit > 0:
                    self._due = None
                    self._deliveries += 1
                    return [self._lease._replace(deliveries=self._deliveries)]
                if self._woken or now >= deadline:
                    self._woken = False
                    return []
                self._bell.wait(min(deadline, deadline if self._due is None else self._due) - now)

    def extend(self, leases: Sequence[Lease]) -> None:
        """Nobody else could have it."""

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        for _, outcome in outcomes:
            if outcome.kind != "release":
                self._over()
                continue
            with self._bell:
                self._due = monotonic() + max(0.0, outcome.delay)
                self._deliveries -= not outcome.counted
                self._bell.notify_all()

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        return {id: "running" if id == self._lease.id else "unknown" for id in ids}

    def cancel(self, task_id: str) -> bool:
        return False
