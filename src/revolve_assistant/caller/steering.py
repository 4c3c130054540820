"""What a `Client` can see of a queue and change about it, from any process and any thread.

                         ┌▶ counts, workers, rules, buried          what there is
    Client ──▶ Desk ──▶ Queue
                         └▶ pause, resume, limit, purge, retry      what is to be

Needs a queue with the trait `manages`. Every call here blocks for a round trip or a few, takes its turn with others of
the same client, and raises `Unsupported`, `Unreachable` and `ClientClosed`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import sleep, time
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from ..engine import Buried, Count, Parcel, Rule
from ..errors import ClientClosed, Unreachable, UsageError
from ..wire import envelope as wire
from ..wire import frames
from ..wire.carry import Function, Work, name_of
from ..wire.seal import Purpose
from .desk import Desk, desk_of
from .options import PLAIN, merge
from .outbox import EXPIRY
from .submitter import sink
from .task import Task
from .waiting import wait

if TYPE_CHECKING:
    from ..wire.about import About

log = logging.getLogger("revolve_assistant")

ACKNOWLEDGED = 30.0  # seconds that `retry` waits for the queue
ROOM = 10_000  # words to waiters that may be on their way while more tasks are purged
_UNSAID: Any = object()


class BuriedTask(NamedTuple):
    """A task that came to a bad end, as people read it. `when` is the Unix time of that."""

    id: str
    name: str
    queue: str
    deliveries: int
    reason: str
    when: float


class Steering:
    """The part of a `Client` that looks into its queue and steers it."""

    # --- what there is

    def counts(self) -> list[Count]:
        """How many tasks of each named queue wait, are delayed, kept back by a rule, taken, buried; empty ones not."""
        return list(desk_of(self).ask(lambda queue: queue.counts()))

    def workers(self) -> list[About]:
        """Who takes from the queue, and what each said of itself within the last seconds."""
        return desk_of(self).workers()

    def rules(self) -> list[Rule]:
        """What is paused or limited."""
        return list(desk_of(self).ask(lambda queue: queue.rules()))

    def buried(self, limit: int = 100, *, task_id: str | None = None) -> list[BuriedTask]:
        """Tasks that failed or were refused, the latest first; `retry` runs one again. With `task_id` that one alone,
        or `LookupError`."""
        if limit < 1:
            raise UsageError(f"limit={limit!r} must be at least 1")
        desk = desk_of(self)
        found = (
            [desk.find_buried(task_id)] if task_id is not None else desk.ask(lambda queue: queue.buried(limit=limit))
        )
        return [
            BuriedTask(each.id, desk.name_of(each), each.queue, each.deliveries, each.reason, each.when)
            for each in found
        ]

    # --- what is to be

    def pause(self, name: str | Callable[..., Any]) -> Rule:
        """Have no worker take tasks of a function (`module:qualname`, or itself) until `resume`; what runs goes on.

        Tasks can still be submitted, and wait. A name that no worker knows is taken too, and a warning is logged.
        """
        return _set_rule(desk_of(self), name, paused=True)

    def resume(self, name: str | Callable[..., Any]) -> Rule:
        """End `pause`; limits stay."""
        return _set_rule(desk_of(self), name, paused=False)

    def limit(
        self,
        name: str | Callable[..., Any],
        *,
        concurrency: int | None = _UNSAID,
        rate: int | None = _UNSAID,
        per: float = 1.0,
    ) -> Rule:
        """Have at most `concurrency` tasks of a function run at once on all workers together, and at most `rate` be
        started in any `per` seconds. None takes a limit away, what is not said stays as it is. Raises `UsageError`."""
        changes: dict[str, Any] = {}
        for word, value in (("concurrency", concurrency), ("rate", rate)):
            if value is _UNSAID:
                continue
            if value is not None and (type(value) is not int or value < 1):
                hint = ": pause() keeps all back" if value == 0 else ""
                raise UsageError(f"{word}={value!r} must be a whole number from 1 on, or None{hint}")
            changes[word] = value
        if not changes:
            raise UsageError("limit() needs concurrency= or rate=; None takes one away")
        if "rate" in changes:
            if not isinstance(per, (int, float)) or not 0 < per < 1e9:
                raise UsageError(f"per={per!r} must be a number of seconds")
            changes["per"] = float(per)
        return _set_rule(desk_of(self), name, **changes)

    def purge(self, queue: str, buried: bool = False) -> int:
        """Take out all tasks of a named queue that nobody has taken, or its buried ones; how many.

        Whoever waits for them is told that they were cancelled (those that are buried have ended already).
        """
        return _purge(self, desk_of(self), queue, buried)

    def retry(self, task_id: str) -> Task[Any]:
        """A buried task once more, as a task of this client with an id of its own; the old one is then no longer kept.

        Arguments, queue, time limits, retries and history are the same; priority and `unique` are not kept.
        Raises `LookupError` if no such task is buried, `Untrusted` if it was not signed with a secret of this client.
        """
        return _retry(self, desk_of(self), task_id)


def _set_rule(desk: Desk, name: str | Callable[..., Any], **changes: Any) -> Rule:
    called = name if isinstance(name, str) else name_of(name)
    module, mark, rest = called.partition(":")
    if not (module and mark and rest and called.isprintable() and len(called.encode()) <= 512):
        raise UsageError(f"{called[:100]!r} is not the name of a function: module:qualname, such as app:resize")
    known = desk.known(called)
    rule = desk.ask(lambda queue: queue.set_rule(called, **changes))
    if not known:
        log.warning("no worker here has run %s yet: if that is its name, the rule holds from its first task on", called)
    return rule


def _purge(client: Any, desk: Desk, queue: str, buried: bool) -> int:
    remote = client._engine
    removed = strange = 0
    while True:
        found = desk.ask(lambda each: each.purge(queue, buried=buried))
        if not found:
            break
        removed += len(found)
        if not buried:
            for task in found:
                strange += not remote.watches.tell(task, (frames.CANCELLED, "unstarted", []))
            remote.start()
            remote.ring()
            _let_pass(client, remote)
    if strange:
        log.warning(
            "%d of them were signed with another secret: who waits for those is not told, and may send them again",
            strange,
        )
    return removed


def _let_pass(client: Any, remote: Any) -> None:
    """Wait until what is to be said to those who wait is not too much. Raises `Unreachable`."""
    while len(remote.outbox.words) > ROOM:
        client._check_patience()
        sleep(0.01)


def _retry(client: Any, desk: Desk, task_id: str) -> Task[Any]:
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
