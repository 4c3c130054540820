"""The queue of a client once more: to look into it and to steer it, while the client's own threads use theirs.

Nothing is opened before the first call. A queue that was given as an object is used as it is: what has the trait
`manages` or `buries` may be managed from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ClientClosed, Unsupported
from ..wire import envelope as wire
from ..wire.about import About, read
from ..wire.seal import Purpose

if TYPE_CHECKING:
    from ..engine import Buried, Queue
    from ..wire.envelope import Envelope
    from .remote import Remote

T = TypeVar("T")

PAGES = (100, 1000, 10_000)  # buried tasks looked through at once, the latest first


class Desk:
    """Part of `Remote`. Thread-safe: one call at a time. Calls block for a round trip and raise `Unreachable`."""

    def __init__(self, remote: Remote, queue: Queue) -> None:
        self._remote = remote
        self._queue = queue
        self._own = queue is not remote.queue
        self._lock = threading.Lock()
        self._open = self._closed = False

    def ask(self, call: Callable[[Queue], T]) -> T:
        """What `call(queue)` returns. Raises `ClientClosed`, `Unreachable`, and as it does."""
        with self._lock:
            if self._closed:
                raise ClientClosed("the client was shut down")
            if not self._open:
                self._queue.open()
                self._open = True
            return call(self._queue)

    def close(self) -> None:
        """Let go. Idempotent."""
        with self._lock:
            self._closed = True
            if self._open and self._own:
                self._queue.close()
            self._open = False

    # --- what several need

    def workers(self) -> list[About]:
        """Who takes here, by their names."""
        found = self.ask(lambda queue: queue.workers())
        return sorted((read(key, about) for key, about in found.items()), key=lambda each: (each.name, each.key))

    def find_buried(self, task_id: str) -> Buried:
        """A buried task by its id. Raises `LookupError`."""
        for limit in PAGES:
            found = self.ask(partial(_buried, limit))
            for each in found:
                if each.id == task_id:
                    return each
            if len(found) < limit:
                break
        raise LookupError(f"no buried task {task_id!r} at {self._remote.place}: it never failed, or is kept no longer")

    def envelope(self, task: Buried) -> Envelope:
        """What is inside a buried task. Raises `Untrusted`, `ProtocolError`."""
        remote = self._remote
        _, sealed = wire.unwrap(task.body)
        # Who holds the key may run it again, however old it is.
        opened = remote.keys.open(Purpose.TASK, f"{remote.namespace}/{task.queue}", sealed, now=0.0)
        return wire.decode(opened)

    def name_of(self, task: Buried) -> str:
        """The name of its function, "" where nobody can tell."""
        if task.name:
            return task.name
        try:
            return self.envelope(task).name
        except Exception:  # whatever somebody put there
            return ""

    def known(self, name: str) -> bool:
        """Whether a worker that is here has run a function of that name, or a rule holds for it."""
        if any(name in each.functions for each in self.workers()):
            return True
        return any(each.name == name for each in self.ask(lambda queue: queue.rules()))


def _buried(limit: int, queue: Queue) -> Sequence[Buried]:
    return queue.buried(limit=limit)


def desk_of(client: Any) -> Desk:
    """The client's, made at first use. Raises `Unsupported`, `ClientClosed`."""
    engine = client._engine
    if client._shut:
        raise ClientClosed("the client was shut down")
    if not (client._remote and engine.lets_go):
        what = type(engine).__module__.rpartition(".")[2]
        raise Unsupported(f"{what} is no queue that can be looked into or steered: redis and sqlite are")
    if not (engine.traits.manages or engine.traits.buries):
        raise Unsupported(f"{engine.place} cannot be looked into or steered: redis and sqlite can")
    with client._lock:
        if engine.desk is None:
            queue = client._make().queue if client._reopen else engine.queue
            engine.desk = Desk(engine, queue)
        found: Desk = engine.desk
    return found
