"""A task that another process, or an earlier one, submitted: heard, stopped and spoken to through its log.

It is heard as long as somebody holds it, iterates over it, or listens to it; then it costs nothing more.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..engine import Parcel
from ..errors import ClientClosed
from .listeners import Listener
from .options import PLAIN
from .submitter import sink
from .task import Task, missing

if TYPE_CHECKING:
    from .client import Client


class AttachedTask(Task[Any]):
    """Made by `Client.attach`. Dropping it costs the work nothing, and its failure is nobody's here to hear of."""

    _attached = True

    def __init__(self, client: Client, task_id: str) -> None:
        super().__init__(client, Parcel(task_id), PLAIN)
        self._pid = os.getpid()
        self._called = ""

    @property
    def name(self) -> str:
        """`module:qualname` of the callable, once it is known to have started; "" before."""
        parcel = self._parcel
        if parcel is not None and parcel.name:
            self._called = parcel.name
        return self._called

    @property
    def _foreign(self) -> bool:
        return self._end is None and self._pid != os.getpid()

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        self._pin()
        super().add_done_callback(fn)

    def _add(self, name: str, listener: Listener) -> None:
        self._pin()
        super()._add(name, listener)

    def _pin(self) -> None:
        """Somebody will be called, whether or not anybody holds the task."""
        if self._end is None:
            self._client._pinned[self._id] = self

    def _settle(self, state: str, rung: str = "", error: BaseException | None = None) -> None:
        _ = self.name  # before the parcel goes
        self._stale = self._parcel is not None and self._parcel._ is not None and self._parcel._.reported
        super()._settle(state, rung, error)
        self._disarm()
        self._client._pinned.pop(self._id, None)


class _Owner:
    """Takes the reports of a task that is held only as long as somebody else holds it."""

    __slots__ = ("_task",)

    def __init__(self, task: AttachedTask) -> None:
        self._task = weakref.ref(task)

    def take(self, report: tuple[Any, ...]) -> None:
        task = self._task()
        if task is not None:
            task.take(report)


def attach(
    client: Client, task_id: str, within: float, before: Callable[[Task[Any]], object] | None = None
) -> Task[Any]:
    """The task with this id, as far as the messenger can tell. Raises `Unsupported`, `ClientClosed`.

    `before` is called with the task when nothing was heard of it yet: who begins to read there misses nothing.
    """
    if not client._remote:
        return missing(client, task_id)
    if client._shut:
        raise ClientClosed("cannot attach: the client was shut down")
    task = AttachedTask(client, task_id)
    parcel = task._parcel
    assert parcel is not None
    parcel.owner = _Owner(task)
    client._known[task_id] = task
    task._noted = True
    if before is not None:
        before(task)
    engine = client._engine
    try:
        fits = engine.attach(parcel, sink, within)
    except BaseException:
        client._known.pop(task_id, None)
        raise
    if not fits:
        client._known.pop(task_id, None)
        return missing(client, task_id)
    weakref.finalize(task, engine.detach, parcel).atexit = False
    return task
