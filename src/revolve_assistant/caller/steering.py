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
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from ..engine import Count, Rule
from ..errors import UsageError

if TYPE_CHECKING:
    from ..wire.about import About
    from .desk import Desk
    from .task import Task

log = logging.getLogger("revolve_assistant")

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
        return list(_desk_of(self).ask(lambda queue: queue.counts()))

    def workers(self) -> list[About]:
        """Who takes from the queue, and what each said of itself within the last seconds."""
        return _desk_of(self).workers()

    def rules(self) -> list[Rule]:
        """What is paused or limited."""
        return list(_desk_of(self).ask(lambda queue: queue.rules()))

    def buried(self, limit: int = 100, *, task_id: str | None = None) -> list[BuriedTask]:
        """Tasks that failed or were refused, the latest first; `retry` runs one again. With `task_id` that one alone,
        or `LookupError`."""
        if limit < 1:
            raise UsageError(f"limit={limit!r} must be at least 1")
        desk = _desk_of(self)
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
        return _set_rule(_desk_of(self), name, paused=True)

    def resume(self, name: str | Callable[..., Any]) -> Rule:
        """End `pause`; limits stay."""
        return _set_rule(_desk_of(self), name, paused=False)

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
        return _set_rule(_desk_of(self), name, **changes)

    def purge(self, queue: str, buried: bool = False) -> int:
        """Take out all tasks of a named queue that nobody has taken, or its buried ones; how many.

        Whoever waits for them is told that they were cancelled (those that are buried have ended already).
        """
        return _purge(self, _desk_of(self), queue, buried)

    def retry(self, task_id: str) -> Task[Any]:
        """A buried task once more, as a task of this client with an id of its own; the old one is then no longer kept.

        Arguments, queue, time limits, retries and history are the same; priority and `unique` are not kept.
        Raises `LookupError` if no such task is buried, `Untrusted` if it was not signed with a secret of this client.
        """
        from .retrying import retry

        return retry(self, _desk_of(self), task_id)


def _desk_of(client: Any) -> Desk:
    from .desk import desk_of  # what only a queue needs is not read by a client that has none

    return desk_of(client)


def _set_rule(desk: Desk, name: str | Callable[..., Any], **changes: Any) -> Rule:
    from ..wire.carry import name_of

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
    from ..wire.frames import CANCELLED

    remote = client._engine
    removed = strange = 0
    while True:
        found = desk.ask(lambda each: each.purge(queue, buried=buried))
        if not found:
            break
        removed += len(found)
        if not buried:
            for task in found:
                strange += not remote.watches.tell(task, (CANCELLED, "unstarted", []))
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
