"""One task on the whole screen: where it stands, and all that it says."""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import RichLog, Static

from ...errors import AssistantError
from ...event import ENDS, Event
from ..board import Board, TaskState
from ..escape import printable
from ..queues import span
from ..telling import _why, _words, shown
from .tables import STYLES, bar, measures

if TYPE_CHECKING:
    from ...caller.task import Task
    from .source import Source

MOST = 5000  # lines
AT_ONCE = 500  # events a painting: the screen stays responsive while a long history is read
KEYS = "Esc back  Up Down PgUp PgDn scroll  c cancel  r retry  p pause  ? help  q quit"


class Detail(Screen[None]):
    """The history of a task from its first event on, then live. Leaving it leaves the task alone."""

    def __init__(self, source: Source, id: str, function: str) -> None:
        super().__init__()
        self.id_of_task, self.function = id, function
        self._source = source
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._own = Board(1)  # of what it says itself
        self._followed: Task[Any] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="about")
        yield RichLog(id="said", wrap=True, max_lines=MOST, min_width=20, auto_scroll=True)
        yield Static(Text(f" {KEYS}", no_wrap=True), id="keys")

    def on_mount(self) -> None:
        log = self.query_one(RichLog)
        log.focus()
        try:
            self._followed = self._source.client.attach(self.id_of_task)
        except AssistantError as error:
            log.write(Text(printable(f"what it says cannot be heard: {error}")))
        else:
            self._followed.add_listener("*", self._events.put)
        self.call_after_refresh(self.paint, time.time())

    def on_unmount(self) -> None:
        if self._followed is not None:
            self._followed.remove_listener("*", self._events.put)

    def paint(self, now: float) -> None:
        """What is new."""
        log = self.query_one(RichLog)
        for _ in range(AT_ONCE):
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            self._take(event, log)
        self.query_one("#about", Static).update(self._about(now))

    def _take(self, event: Event, log: RichLog) -> None:
        from ...cli.reach import unknown

        task = self._followed
        if event.name == "lost" and task is not None and (why := unknown(task)):
            log.write(Text(printable(why), "red"))
            return
        self._own.event(event, self.function)
        text = said(event, task)
        if text:
            when = time.strftime("%H:%M:%S", time.localtime(event.time))
            style = STYLES.get(event.name, "red" if event.name == "error_output" else "")
            log.write(Text(f"{when} ", "dim").append(printable(text, keep_newlines=True), style))

    def _about(self, now: float) -> Text:
        known = self._source.known.get(self.id_of_task)
        task = best(known, self._own.task(self.id_of_task)) or TaskState(self.id_of_task)
        buried = known is not None and known.buried
        self.function = self.function or task.name
        state = "buried" if buried else task.state
        text = Text(f" {printable(self.function or '?')}  ", Style(bold=True), overflow="ellipsis", no_wrap=True)
        text.append(f"{state}\n", f"bold {STYLES.get(state, '')}")
        text.append(f" id {printable(task.id)}\n", Style(bold=False))
        queue = task.queue or (known.queue if known is not None else "")
        facts = [f"queue {queue}" if queue else "", f"worker {task.worker}" if task.worker else ""]
        facts.append(f"attempt {task.attempt}" if task.attempt else "")
        if task.started:
            facts.append(f"{'took' if task.ended else 'for'} {span((task.ended or now) - task.started)}")
        text.append(f" {printable('  '.join(filter(None, facts)))}\n", Style(bold=False))
        fraction, note = measures(task)
        if task.state not in ENDS or task.progress is not None:
            percent = "" if fraction is None else f" {fraction:.0%}"
            drawn = bar(fraction, now, 40) if task.state == "running" or fraction is not None else ""
            text.append(f" {drawn}{percent}  {printable(note)}\n", Style(bold=False))
        if known is not None and known.buried:
            text.append(f" {printable(known.reason.strip())}\n", "red")
            text.append(" it is kept: r runs it again\n", Style(bold=False))
        text.rstrip()
        return text


def best(one: TaskState | None, other: TaskState | None) -> TaskState | None:
    """Whichever is further: the board's own sources may be ahead of the task's log, or behind."""
    if one is None or other is None:
        return one or other
    ranks = ("pending", "waiting", "retrying", "running")
    first, second = (
        (each.attempt, each.state in ENDS, ranks.index(each.state) if each.state in ranks else len(ranks))
        for each in (one, other)
    )
    if first == second:
        return one if other.progress is None else other
    return max((first, one), (second, other), key=lambda each: each[0])[1]


def said(event: Event, task: Task[Any] | None) -> str:
    """An event as text, "": it is seen elsewhere on the screen."""
    from ...cli.event_json import error_of
    from ...cli.run_report import traceback_of

    name, args = event.name, event.args
    if name == "progress":
        return ""
    if name == "started":
        return f"started, attempt {event.attempt}" + (f", by {args[0]}" if args else "")
    if name in ("output", "error_output") and args:
        return str(args[0]).removesuffix("\n")
    if name == "retrying" and len(args) > 1:
        return f"again in {args[1]:.1f} s after {args[0]}"
    if name in ("failed", "lost") and task is not None:
        return f"{name}: {_why(args[0]) if args else ''}\n{traceback_of(error_of(event, task))}".rstrip("\n")
    if name in ENDS:
        return name + (f": {shown(args[0])}" if args and args[0] is not None else "")
    return _words(event, False)
