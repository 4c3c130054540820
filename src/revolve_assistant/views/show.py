"""`task.show()` and `client.show()`: live bars of tasks until they end."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..event import ENDS, Event

if TYPE_CHECKING:
    from ..caller.task import Task


def show(tasks: Sequence[Task[Any]]) -> None:
    """Draw until all have ended, on stderr or in a notebook: a bar each, output lines above them. Blocks.

    Raises `UsageError` on the thread that the tasks' listeners run on: it would wait for itself.
    """
    from ..errors import UsageError
    from .bars import open_bars
    from .telling import Telling

    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    known = {task.id: task for task in tasks}
    if any(task._client._blocks_itself() for task in tasks):
        raise UsageError(
            "show() would wait for the thread that it is called from; under `async with` say "
            "`await asyncio.to_thread(task.show)`"
        )
    left = set(known)
    for task in tasks:
        task.add_listener("*", heard.put)
    try:
        with open_bars() as bars:
            telling = Telling(bars)
            while left:
                event = heard.get()
                telling.take(event, label_of(known[event.task_id]))
                if event.name in ENDS:
                    left.discard(event.task_id)
    finally:
        for task in tasks:
            task.remove_listener("*", heard.put)


def label_of(task: Task[Any]) -> str:
    """The function's name, or the end of the id where it is not known yet (a task of another process)."""
    return task.name.rpartition(":")[2] or f"…{task.id[-8:]}"
