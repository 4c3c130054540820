"""A buried task once more, as a new one: what was in its envelope, sealed anew for this client."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Any

from msgspec.structs import replace

from ..engine import Buried, Parcel
from ..errors import ClientClosed, Unreachable, UsageError
from ..wire import envelope as wire
from ..wire.carry import Function, Work
from ..wire.seal import Purpose
from .desk import Desk
from .options import PLAIN, merge
from .outbox import EXPIRY
from .submitter import sink
from .task import Task
from .waiting import wait

ACKNOWLEDGED = 30.0  # seconds that `retry` waits for the queue


def retry(client: Any, desk: Desk, task_id: str) -> Task[Any]:
    """See `Client.retry`. Blocks until the queue has the new task, up to 30 s."""
    if client._blocks_itself():
        raise UsageError("retry() would wait for the thread that it is called from: call it from another one")
    old = desk.find_buried(task_id)
    task = _again(client, old, desk.envelope(old))
    job = task._parcel._ if task._parcel is not None else None

    def register(wake: Callable[[], None]) -> Callable[[], None]:
        parcel = task._parcel
        if parcel is None:
            wake()
            return lambda: None
        return client._engine.when_acknowledged(parcel, wake)  # type: ignore[no-any-return]

    if not wait(register, ACKNOWLEDGED):
        task.cancel()
        raise Unreachable(f"{client._engine.place} has not taken task {task_id} again within {ACKNOWLEDGED:g} s")
    if job is not None and job.ended and job.run is None:  # nobody ran it: it was not taken
        task.result(ACKNOWLEDGED)
    desk.ask(lambda queue: queue.exhume(task_id))  # last: who is killed in between leaves two of it rather than none
    return task


def _again(client: Any, old: Buried, envelope: wire.Envelope) -> Task[Any]:
    """Submit what is in an old task as a new one."""
    remote = client._engine
    id = client._new_id()
    history = envelope.history if remote.messenger.traits.replays else 0.0
    fresh = replace(
        envelope, id=id, inbox=remote.inbox_name, sent=time(), reads=list(remote.inbox.reads), history=history
    )
    parcel = Parcel(
        id,
        work=Work(Function(0, envelope.name, envelope.kind, b"", False)),
        queue=old.queue,
        name=envelope.name,
        options=merge(PLAIN, queue=old.queue, history=history or False),
    )
    sealed = remote.keys.seal(
        Purpose.TASK, f"{remote.namespace}/{old.queue}", wire.encode(fresh), expires=time() + EXPIRY
    )
    parcel.body = wire.wrap(remote.inbox_name, sealed)
    parcel.unique = f"retry {old.id}"  # of several who retry it at once, all hear the same new task
    task: Task[Any] = Task(client, parcel, parcel.options)
    parcel.owner = task
    client._tasks[id] = task
    try:
        if client._shut:
            raise ClientClosed("cannot submit: the client was shut down")
        if history:
            remote.outbox.again[id] = old.id
        remote.submit((parcel,), sink)
    except BaseException:
        client._tasks.pop(id, None)
        remote.outbox.again.pop(id, None)
        raise
    return task
