"""What the screen shows, and what its keys do: all that blocks, on threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import AssistantError, ClientClosed
from ...event import ENDS
from ...pool.threads import OurThread
from ..board import TaskState
from ..feed import Feed, View

if TYPE_CHECKING:
    from ...caller.client import Client
    from ...engine import Rule

STOPPED = 60.0  # seconds in which a task that was cancelled ought to end


class Known:
    """The tasks of a feed, as they were at the last `refresh`."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._version = 0
        self._open: dict[str, TaskState] = {}
        self._over: dict[str, TaskState] = {}
        self.tasks: list[TaskState] = []
        """Unended ones first, in the order in which they were heard of, then the others, the latest end first."""

    def refresh(self) -> None:
        """Take over what has changed. Does not block."""
        changes = self._feed.changes(self._version)
        if changes.version == self._version:
            return
        self._version = changes.version
        if changes.whole:
            self._open.clear()
            self._over.clear()
        for id in changes.gone:
            self._open.pop(id, None)
            self._over.pop(id, None)
        for task in changes.tasks:
            if task.state in ENDS:
                self._open.pop(task.id, None)
                self._over[task.id] = task
            else:
                self._open[task.id] = task
        self.tasks = [*self._open.values(), *sorted(self._over.values(), key=lambda task: -task.ended)]

    def get(self, id: str) -> TaskState | None:
        """One task; None: nothing is known of it."""
        return self._open.get(id) or self._over.get(id)


class Source:
    """Kept up to date while the block lasts; the screen's thread calls `refresh` and reads.

    Entering it raises `Unsupported` and `Unreachable`; later troubles are in `trouble`.
    """

    def __init__(self, client: Client, every: float) -> None:
        self.client = client
        self.every = every
        self._feed = Feed(client)
        self.place = f"{self._feed.place}  {self._feed.namespace}"
        self.known = Known(self._feed)
        self.view: View = self._feed.look()
        self.rules: dict[str, Rule] = {}
        self._trouble = ""
        self._hurry = threading.Event()
        self._over = False
        self._thread = OurThread(self._run, "revolve top")

    def __enter__(self) -> Source:
        self._look()
        self._feed.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._hurry.set()
        self._thread.join()
        self._feed.close()

    def refresh(self) -> None:
        """Take over what there is now. Does not block."""
        self.known.refresh()
        self.view = self._feed.look()

    @property
    def trouble(self) -> str:
        """What keeps the screen from being up to date, "": nothing."""
        found = self._trouble or self.view.trouble
        return f"trying again: {found}" if found else ""

    def _run(self) -> None:
        while True:
            self._hurry.wait(self.every)
            self._hurry.clear()
            if self._over:
                return
            try:
                self._look()
            except ClientClosed:
                return
            except AssistantError as error:
                self._trouble = str(error)
            else:
                self._trouble = ""

    def _look(self) -> None:
        """What the feed does not tell."""
        self.rules = {rule.name: rule for rule in self.client.rules()}

    # --- acts: each on a thread of its own, `say` hears how it went

    def cancel(self, id: str, say: Callable[[str], Any]) -> None:
        """Have a task stopped, and say how it ended."""

        def act() -> str:
            from ...cli.reach import ends

            task = self.client.attach(id)
            task.cancel()
            state = ends(self.client, task, STOPPED)
            return f"task {id}: {state}" + (", although it was told to stop" if state == "running" else "")

        self._act(act, say)

    def retry(self, id: str, say: Callable[[str], Any]) -> None:
        """Run a buried task again."""
        self._act(lambda: f"queued again as {self._feed.retry(id)}", say)

    def pause(self, name: str, say: Callable[[str], Any]) -> None:
        """Have no worker take tasks of a function, or have them take it again."""

        def act() -> str:
            rule = self.rules.get(name)
            if rule is not None and rule.paused:
                self.client.resume(name)
                return f"{name} is taken again"
            self.client.pause(name)
            return f"{name} is paused: what runs goes on, nothing begins"

        self._act(act, say)

    def _act(self, act: Callable[[], str], say: Callable[[str], Any]) -> None:
        def run() -> None:
            try:
                said = act()
            except (AssistantError, LookupError, OSError, TimeoutError) as error:
                said = str(error.args[0] if isinstance(error, LookupError) and error.args else error)
            self._hurry.set()
            say(said)

        OurThread(run, "revolve top acts").start()
