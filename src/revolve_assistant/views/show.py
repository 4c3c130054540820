"""`task.show()` and `client.show()`: live bars of tasks until they end."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..event import ENDS, Event

if TYPE_CHECKING:
    from ..caller.task import Task


def show(tasks: Sequence[Task[Any]]) -> None:
    """Draw on stderr until all have ended: a bar each, output lines above them. Blocks."""
    from .bars import open_bars

    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    left = {task.id for task in tasks}
    names = {task.id: task.name.rpartition(":")[2] for task in tasks}
    for task in tasks:
        task.add_listener("*", heard.put)
    try:
        with open_bars() as bars:
            while left:
                event = heard.get()
                key = event.task_id
                if event.name == "started" and event.attempt == 1:
                    bars.add(key, names[key])
                elif event.name == "progress" and event.args and hasattr(event.args[0], "fraction"):
                    bars.update(key, event.args[0])
                elif event.name in ("output", "error_output") and event.args:
                    bars.line(str(event.args[0]), error=event.name == "error_output")
                elif event.name == "retrying":
                    bars.line(f"{names[key]}: again in {event.args[1]:.1f} s after {event.args[0]}", error=True)
                elif event.name in ENDS:
                    note = "" if event.name == "succeeded" else f"{event.args[0]}" if event.args else ""
                    bars.done(key, event.name, note)
                    left.discard(key)
    finally:
        for task in tasks:
            task.remove_listener("*", heard.put)
