"""Tasks for the checks of a Queue: made, submitted, taken, and seen to be gone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..engine import EngineState, Lease, Outcome, Parcel, Queue
from .checks import equal, eventually, needs

Make = Callable[..., Queue]

DONE = Outcome("done")


class _Sink:
    """A sink that nothing may reach: a Queue reports through the parcel's messenger."""

    def deliver(self, reports: Sequence[Any]) -> None:
        raise AssertionError("a Queue reported to the sink of the submitter")


def submit(queue: Queue, *parcels: Parcel) -> Mapping[str, str]:
    """What was kept out for its key, and who holds that."""
    return dict(queue.submit(parcels, _Sink()) or {})


def some(queue: str, count: int, /, **fields: Any) -> list[Parcel]:
    return [Parcel(f"{queue}.{n}", body=b"%d" % n, queue=queue, **fields) for n in range(count)]


def take(taker: Queue, names: str | Iterable[str], count: int = 1, *, limit: int = 1) -> list[Lease]:
    """Take until there are `count` leases."""
    names = [names] if isinstance(names, str) else list(names)
    leases: list[Lease] = []

    def look() -> bool:
        found = taker.take(names, limit=min(limit, count - len(leases)), wait=0.5)
        leases.extend(found)
        return len(leases) >= count

    eventually(look, f"{count} tasks to take (so far {len(leases)})")
    return leases


def take_for(taker: Queue, name: str, limit: int, wait: float) -> Sequence[Lease]:
    return taker.take([name], limit=limit, wait=wait)


def none_left(taker: Queue, name: str, what: str) -> None:
    equal([lease.id for lease in taker.take([name], limit=10, wait=0.2)], [], what)


def state(queue: Queue, task_id: str) -> EngineState:
    return queue.state([task_id])[task_id]


def has_lease(make: Make) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return any(one.name == "lease" or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


def brief(make: Make, seconds: float) -> Callable[[], Queue]:
    """`make` for queues with leases so short."""
    needs(has_lease(make), "has no lease time of its own (make takes no lease=)")
    return lambda: make(lease=seconds)
