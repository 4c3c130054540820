"""`revolve watch ID …`: see tasks of any process live, from their first event to their end."""

from __future__ import annotations

import queue
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..event import ENDS, Event
from .event_json import error_of, fields_of
from .flags import Command
from .reach import add_flags, code_of, complain, interrupts, open_client
from .run_output import to_bytes, to_json, write_all

if TYPE_CHECKING:
    from ..caller.client import Client
    from ..caller.task import Task

LOOK = 0.5  # seconds between two looks whether the server answers at all
EPILOG = """\
Ctrl-C leaves the tasks alone: they go on, and can be watched again.

exit codes: 0 succeeded, 1 failed (or no server answers), 2 the call was wrong, 3 cancelled, 4 lost or unknown,
130 Ctrl-C; of several tasks the highest. What is shown: bars on a terminal, else plain lines, on stderr."""


def main(argv: list[str]) -> int:
    """Watch until all have ended."""
    command = Command("watch", "Watch tasks live, whoever submitted them: their whole history, then what they say now.",
                      usage="revolve watch [flags] ID …", epilog=EPILOG)  # fmt: skip
    command.add_argument("ids", metavar="ID", nargs="+", help="what `task.id` is where it was submitted")
    command.flag("--json", action="store_true", help="print one JSON object a line for each event and end, on stdout")
    add_flags(command)
    found = command.read(argv)
    with open_client(found) as client:
        tasks = [client.attach(id) for id in dict.fromkeys([*found.ids, *found.tail])]
        return watch("watch", client, tasks, found.json)


def watch(name: str, client: Client, tasks: Sequence[Task[Any]], as_json: bool) -> int:
    """Show the tasks until all have ended; the exit code. Also of `revolve retry --watch`."""
    try:
        with interrupts():
            return _watch_json(client, tasks) if as_json else _watch(client, tasks)
    except KeyboardInterrupt as stop:
        left = [task.id for task in tasks if task.state not in ENDS]
        if left:
            goes_on = "the task goes on" if len(left) == 1 else f"{len(left)} tasks go on"
            complain(name, f"detached, {goes_on}: revolve watch {' '.join(left)}")
        return 128 + (stop.args[0] if stop.args else 2)


class _Heard:
    """The events of some tasks in the order in which they come, until all have ended. Iterate once."""

    def __init__(self, client: Client, tasks: Sequence[Task[Any]]) -> None:
        self._client = client
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.tasks = {task.id: task for task in tasks}
        self.code = 0
        for task in tasks:
            task.add_listener("*", self._queue.put)

    def __iter__(self) -> Any:
        left = set(self.tasks)
        heard = False
        while left:
            try:
                event = self._queue.get(timeout=LOOK)
            except queue.Empty:
                if not heard:
                    self._client._check_patience()
                continue
            heard = True
            if event.name in ENDS:
                left.discard(event.task_id)
                self.code = max(self.code, code_of(event))
            yield event, self.tasks[event.task_id]


def _watch(client: Client, tasks: Sequence[Task[Any]]) -> int:
    from ..views.bars import open_bars
    from ..views.show import label_of
    from ..views.telling import Telling

    heard = _Heard(client, tasks)
    with open_bars() as bars:
        telling = Telling(bars, all=True)
        for event, task in heard:
            telling.take(event, label_of(task))
    return heard.code


def _watch_json(client: Client, tasks: Sequence[Task[Any]]) -> int:
    heard = _Heard(client, tasks)
    sys.stdout.flush()
    for event, task in heard:
        error = error_of(event, task) if event.name in ENDS - {"succeeded"} else None
        fields = {
            "task": event.task_id,
            "function": task.name,
            "event": event.name,
            "attempt": event.attempt,
            "seq": event.seq,
            "time": event.time,
            **fields_of(event, error),
        }
        write_all(1, to_bytes(to_json(fields) + "\n"))
    return heard.code
