"""`revolve watch ID …`: see tasks of any process live, from their first event to their end."""

from __future__ import annotations

import queue
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..event import ENDS, Event
from .event_json import error_of, fields_of
from .flags import Command
from .reach import add_flags, code_of, complain, interrupts, open_client, unknown
from .run_output import to_bytes, to_json, write_all
from .run_report import traceback_of

if TYPE_CHECKING:
    from ..caller.client import Client
    from ..caller.task import Task
    from ..views.asking import Asking
    from ..views.bars import AnyBars

LOOK = 0.5  # seconds between two looks whether the server answers at all
GLANCE = 0.1  # the same where somebody may press a key
SILENT = 2.0  # seconds after which it is said that nothing is to be seen
MOST_HELD = 1000  # events that wait while somebody types
EPILOG = """\
A question can be answered right here, on a terminal; elsewhere by `revolve send ID answer …`.
On a terminal `c` cancels the tasks, by the ladder of `revolve cancel`, and shows how they end.
Ctrl-C leaves the tasks alone: they go on, and can be watched again.

exit codes: 0 succeeded, 1 failed (or no server answers), 2 the call was wrong, 3 cancelled, 4 lost or unknown,
130 Ctrl-C; of several tasks the highest. What is shown: bars on a terminal, else plain lines, on stderr."""


def main(argv: list[str]) -> int:
    """Watch until all have ended."""
    command = Command("watch", "Watch tasks live, whoever submitted them: their whole history, then what they say now.",
                      usage="revolve watch [flags] ID …", epilog=EPILOG)  # fmt: skip
    command.add_argument("ids", metavar="ID", nargs="+", help="what `task.id` is where it was submitted")
    command.flag("--json", action="store_true", help="print one JSON object a line for each event and end, on stdout")
    command.flag("--traceback", action="store_true", help="show the traceback of each failure")
    add_flags(command)
    found = command.read(argv)
    with open_client(found) as client:
        tasks = [client.attach(id) for id in dict.fromkeys([*found.ids, *found.tail])]
        return watch("watch", client, tasks, found.json, found.traceback)


def watch(
    name: str, client: Client, tasks: Sequence[Task[Any]], as_json: bool = False, tracebacks: bool = False
) -> int:
    """Show the tasks until all have ended; the exit code. Also of `revolve retry --watch`."""
    try:
        with interrupts():
            return _watch_json(client, tasks) if as_json else _watch(client, tasks, name, tracebacks)
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
        self.left = set(self.tasks)
        self.silent = dict(self.tasks)  # those of which nothing came yet
        self._heard = False
        self.code = 0
        for task in tasks:
            task.add_listener("*", self._queue.put)

    @property
    def up_to_date(self) -> bool:
        """Whether all that was heard was looked at."""
        return self._queue.empty()

    def next(self, wait: float = LOOK) -> tuple[Event, Task[Any]] | None:
        """The next one, None: there was none for so many seconds. Raises `Unreachable` while there never was any."""
        try:
            event = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
        except queue.Empty:
            if not self._heard:
                self._client._check_patience()
            return None
        self._heard = True
        self.silent.pop(event.task_id, None)
        if event.name in ENDS:
            self.left.discard(event.task_id)
            self.code = max(self.code, code_of(event))
        return event, self.tasks[event.task_id]


def _watch(client: Client, tasks: Sequence[Task[Any]], command: str, tracebacks: bool) -> int:
    from ..views.asking import SETTLED, Asking, is_attended
    from ..views.bars import open_bars
    from ..views.keys import Keys

    heard = _Heard(client, tasks)
    with open_bars() as bars, Keys(is_attended()) as keys:
        asking = Asking(bars)
        if asking.attended:
            bars.line("(Ctrl-C detaches, c cancels)")
        shown = _Shown(command, bars, asking, tracebacks, len(tasks) > 1)
        patient_until = monotonic() + SILENT
        while heard.left:
            if heard.silent and monotonic() >= patient_until:
                patient_until = float("inf")
                shown.wait(heard.silent.values())
            if asking.due and heard.up_to_date:
                with keys.away():
                    _answer(heard, asking, shown)
            if "c" in keys.get():
                shown.cancel([heard.tasks[id] for id in heard.left])
            found = heard.next(SETTLED if asking else GLANCE if asking.attended else LOOK)
            if found is not None:
                shown.take(*found)
    return heard.code


def _answer(heard: _Heard, asking: Asking, shown: _Shown) -> None:
    """Put a question to whoever sits here; what others say meanwhile is shown afterwards, unless it gets much."""
    later: deque[tuple[Event, Task[Any]]] = deque()
    with asking.put() as prompt:
        while not prompt.look():
            while (found := heard.next(0.0)) is not None:
                shown.note(*found)
                later.append(found)
                if len(later) > MOST_HELD:
                    shown.draw(*later.popleft())
    while later:
        shown.draw(*later.popleft())


class _Shown:
    """What a person sees of the events."""

    def __init__(self, command: str, bars: AnyBars, asking: Asking, tracebacks: bool, several: bool) -> None:
        from ..views.telling import Telling

        self._command, self._bars, self._asking, self._tracebacks = command, bars, asking, tracebacks
        self._several = several
        self._telling = Telling(bars, all=True, attended=asking.attended)

    def take(self, event: Event, task: Task[Any]) -> None:
        self.note(event, task)
        self.draw(event, task)

    def wait(self, tasks: Iterable[Task[Any]]) -> None:
        """Say of tasks that nothing was heard of them."""
        for task in tasks:
            self._bars.line(f"{task.id} waits: nobody has begun it yet")

    def cancel(self, tasks: Sequence[Task[Any]]) -> None:
        """Have tasks stopped, and say so."""
        for task in tasks:
            task.cancel()
            self._bars.line(f"{self._label(task)}: cancelling")

    def note(self, event: Event, task: Task[Any]) -> None:
        """What has to be known at once."""
        self._asking.hear(event, task, self._label(task))

    def draw(self, event: Event, task: Task[Any]) -> None:
        """What is to be seen."""
        if event.name == "lost" and (why := unknown(task)):
            self._bars.line(f"revolve {self._command}: {why}", error=True)
            return
        if event.name in ("failed", "lost") and self._tracebacks:
            self._bars.line(traceback_of(error_of(event, task)), error=True)
        self._telling.take(event, self._label(task))

    def _label(self, task: Task[Any]) -> str:
        from ..views.show import label_of

        label = label_of(task)
        return f"{label} {task.id[:4]}…{task.id[-4:]}" if self._several and task.name else label


def _watch_json(client: Client, tasks: Sequence[Task[Any]]) -> int:
    heard = _Heard(client, tasks)
    sys.stdout.flush()
    while heard.left:
        found = heard.next()
        if found is None:
            continue
        event, task = found
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
