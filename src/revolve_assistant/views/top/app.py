"""The screen of `revolve top`: a line of totals, the pages, a list, a line for questions and news, a line of keys."""

from __future__ import annotations

import asyncio
import queue
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rich.style import Style
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from ...event import ENDS
from ..escape import printable
from ..feed import View
from .detail import Detail
from .rows import Rows
from .source import Source
from .tables import Failures, Functions, Page, Queues, Tasks, Workers, failures, functions, queue_rates, rate, searched

PER_LOOK = 2.0  # paintings between two looks (`--every`): bars move, and a slow line keeps up
NEWS = 10.0  # seconds that a line of news stays
KEYS = "Enter open  / search  c cancel  r retry  p pause  1-5 Tab page  ? help  q quit"
HELP = """\
Up Down j k   a row                PgUp PgDn Home End   far
1 … 5  Tab    a page               Enter   a task: what it says, its traceback
/             search               Esc     out of a task, or of a search
c             have a task stopped: asked first, then by signals
r             run a task again that failed and is kept (buried)
p             pause a function: nothing of it begins; p again resumes it
q  Ctrl-C     quit: tasks and workers go on; Ctrl-Z suspends

Ended tasks are listed below those that run, the latest first.
EACH S is of the last ten seconds.
"""


class Confirm(ModalScreen[bool]):
    """A question at the bottom of the screen: y or anything else."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,Y", "dismiss(True)", show=False),
        Binding("n,N,escape,enter,q,ctrl+c", "dismiss(False)", show=False),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(f" {self._text} [y/N] ", Style(bold=True, reverse=True), no_wrap=True), id="confirm")


class Help(ModalScreen[None]):
    """The keys, until one is pressed."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,space,q,question_mark,ctrl+c", "dismiss")]

    def compose(self) -> ComposeResult:
        yield Static(Text(HELP.rstrip("\n")), id="help")


class Top(App[None]):
    """The program. Reads its source and never waits for it."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen, ModalScreen { background: ansi_default; color: ansi_default; overflow: hidden; }
    ModalScreen { background: transparent; }
    Static { height: 1; background: ansi_default; color: ansi_default; }
    Rows { height: 1fr; background: ansi_default; }
    #confirm { dock: bottom; }
    #help { dock: bottom; height: auto; border: solid ansi_default; padding: 0 1; }
    #about { height: auto; max-height: 50%; }
    #said { height: 1fr; background: ansi_default; color: ansi_default; scrollbar-size-vertical: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", show=False, priority=False),
        Binding("ctrl+z", "suspend_process", show=False),
        Binding("question_mark", "keys", show=False),
        Binding("tab", "page(1)", show=False, priority=True),
        Binding("shift+tab", "page(-1)", show=False, priority=True),
        *(Binding(str(number), f"page_at({number - 1})", show=False) for number in range(1, 6)),
        Binding("escape", "leave", show=False),
        Binding("c", "cancel", show=False),
        Binding("r", "retry", show=False),
        Binding("p", "pause", show=False),
    ]

    def __init__(self, source: Source) -> None:
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self.source = source
        self.queues = Queues()
        self.pages: tuple[Page, ...] = (Tasks(), Functions(), self.queues, Workers(), Failures())
        self._page = 0
        self._news = ""
        self._news_until = 0.0
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def compose(self) -> ComposeResult:
        yield Static(id="totals")
        yield Static(id="pages")
        yield Rows()
        yield Static(id="news")
        yield Static(id="keys")

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._stop, 128 + number)
        loop.add_signal_handler(signal.SIGINT, self._stop, 0)
        self.rows.focus()
        self.paint()
        self.set_interval(self.source.every / PER_LOOK, self.paint)

    def _stop(self, code: int) -> None:
        self.exit(return_code=code)

    @property
    def rows(self) -> Rows:
        return self.screen_stack[0].query_one(Rows)

    @property
    def page(self) -> Page:
        return self.pages[self._page]

    # --- painting

    def paint(self) -> None:
        """What there is now."""
        self._hear()
        source, now = self.source, time.time()
        source.refresh()
        lists = self._lists(now)
        self.rows.fill(self.page, searched(self.page, lists[self._page], self.rows.search))
        self._paint_lines([len(each) for each in lists], source.view)
        if isinstance(self.screen, Detail):
            self.screen.paint(now)

    def _lists(self, now: float) -> list[Sequence[Any]]:
        view, tasks = self.source.view, self.source.known.tasks
        self.queues.rates = queue_rates(tasks, now)
        return [
            tasks,
            functions(tasks, view.workers, self.source.rules, now),
            view.queues,
            sorted(view.workers, key=lambda each: (each.name, each.key)),
            failures(tasks),
        ]

    def _paint_lines(self, sizes: list[int], view: View) -> None:
        workers = len(view.workers)
        known = sum(task.state == "running" for task in self.source.known.tasks)
        running = max(known, sum(sum(each.busy.values()) for each in view.workers))  # of which each names twenty
        waiting = sum(each.pending + each.delayed + each.blocked for each in view.queues)
        right = f"{workers} worker{'s' * (workers != 1)}  {running:,} running  {waiting:,} waiting  {rate(view):.1f}/s "
        width = self.size.width
        left = Text(f" {printable(self.source.place)}", no_wrap=True, end="")
        left.truncate(max(0, width - len(right) - 1), overflow="ellipsis", pad=True)
        base = self.screen_stack[0]
        base.query_one("#totals", Static).update(left.append(f" {right}"))
        pages = Text(" ", no_wrap=True)
        for at, (page, size) in enumerate(zip(self.pages, sizes, strict=True)):
            chosen = at == self._page
            title = f"{at + 1} {page.title} {size:,}"
            pages.append(f"[{title}]" if chosen else f" {title} ", Style(bold=chosen, reverse=chosen))
        base.query_one("#pages", Static).update(pages)
        news = Text(no_wrap=True, overflow="ellipsis")
        if time.monotonic() < self._news_until:  # the answer to a key goes first
            news.append(f" {printable(self._news)}", "bold")
        elif self.source.trouble:
            news.append(f" {printable(self.source.trouble)}", "bold red")
        else:
            notes = [self.rows.place]
            if self.rows.search and not self.rows.typing:
                notes.append(f"search: {printable(self.rows.search)} (Esc ends it)")
            if view.dropped:
                notes.append(f"{view.dropped:,} older ones are not kept")
            news.append(f" {'  '.join(filter(None, notes))}", "dim")
        base.query_one("#news", Static).update(news)
        keys = Text(f" {KEYS}", no_wrap=True)
        if self.rows.typing:
            keys = Text(f" /{printable(self.rows.search)}", Style(bold=True), no_wrap=True)
            keys.append("_  ", Style(bold=True)).append("every word has to occur; Enter keeps it, Esc ends it", "dim")
        base.query_one("#keys", Static).update(keys)

    # --- news

    def say(self, text: str) -> None:
        """Show a line for a while. From any thread."""
        self._heard.put(text)

    def _hear(self) -> None:
        while True:
            try:
                self._news = self._heard.get_nowait()
            except queue.Empty:
                return
            self._news_until = time.monotonic() + NEWS

    # --- keys

    def action_keys(self) -> None:
        self.push_screen(Help())

    def action_page(self, by: int) -> None:
        self.action_page_at((self._page + by) % len(self.pages))

    def action_page_at(self, at: int) -> None:
        if not isinstance(self.screen, (Detail, ModalScreen)):
            self._page = at
            self.paint()

    def on_rows_searched(self, _event: Rows.Searched) -> None:
        self.paint()

    def action_leave(self) -> None:
        """Out of a task, or out of a search."""
        if isinstance(self.screen, Detail):
            self.pop_screen()
        else:
            self.rows.search_for("")
            self.paint()

    def on_rows_opened(self, _event: Rows.Opened) -> None:
        item = self.rows.current
        if isinstance(self.page, (Tasks, Failures)):
            self.push_screen(Detail(self.source, item.id, item.name))
        elif isinstance(self.page, (Functions, Queues, Workers)):  # its tasks
            word = self.page.cells(item, 0.0)[0]
            self.rows.search_for(word)
            self.action_page_at(0)

    def _chosen(self) -> tuple[str, str] | None:
        """Id and function of the task that a key is about."""
        if isinstance(self.screen, Detail):
            return self.screen.id_of_task, self.screen.function
        item = self.rows.current
        if item is None or not isinstance(self.page, (Tasks, Failures)):
            self.say("no task is chosen: pages 1 and 5 list tasks")
            self.paint()
            return None
        return item.id, item.name

    def action_cancel(self) -> None:
        found = self._chosen()
        if found is None:
            return
        id, name = found
        task = self.source.known.get(id)
        if task is None or task.state in ENDS:
            self._tell(f"task {id} has ended")
            return
        self._ask(f"Stop {name or 'task'} …{id[-8:]}?", lambda: self.source.cancel(id, self.say), f"stopping {id}")

    def action_retry(self) -> None:
        found = self._chosen()
        if found is None:
            return
        id, name = found
        self._ask(f"Run {name or 'task'} …{id[-8:]} again?", lambda: self.source.retry(id, self.say), f"retrying {id}")

    def action_pause(self) -> None:
        item = self.rows.current
        screen = self.screen
        name = screen.function if isinstance(screen, Detail) else "" if item is None else self.page.function(item)
        if not name:
            self._tell("no function is chosen: page 2 lists functions")
            return
        rule = self.source.rules.get(name)
        if rule is not None and rule.paused:
            self._ask(f"Resume {name}?", lambda: self.source.pause(name, self.say), f"resuming {name}")
        else:
            self._ask(f"Pause {name} on all workers?", lambda: self.source.pause(name, self.say), f"pausing {name}")

    def _tell(self, text: str) -> None:
        self.say(text)
        self.paint()

    def _ask(self, text: str, act: Callable[[], None], doing: str) -> None:
        def answer(yes: bool | None) -> None:
            if yes:
                self._tell(f"{doing} …")
                act()

        self.push_screen(Confirm(printable(text)), answer)
