"""What the screen shows, and what its keys do: all that blocks, on threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import AssistantError, ClientClosed
from ...pool.threads import OurThread
from ..board import Board

if TYPE_CHECKING:
    from ...caller.client import Client
    from ...caller.steering import BuriedTask
    from ...engine import Rule

MOST_BURIED = 500  # listed
STOPPED = 60.0  # seconds in which a task that was cancelled ought to end


class Source:
    """A board that is kept up to date while the block lasts. The screen's thread reads it with `lock` held."""

    def __init__(self, client: Client, every: float) -> None:
        self.client = client
        self.place = f"{client._engine.place}  {client._engine.namespace}"
        self.board = Board()
        self.rules: dict[str, Rule] = {}
        self.buried: list[BuriedTask] = []
        self.wants_buried = False
        self.trouble = ""
        self.lock = threading.Lock()
        self._every = every
        self._hurry = threading.Event()
        self._over = False
        self._thread = OurThread(self._run, "revolve top")

    def __enter__(self) -> Source:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self.hurry()
        self._thread.join()

    def hurry(self) -> None:
        """Look again now: something was done."""
        self._hurry.set()

    def _run(self) -> None:
        while True:
            self._hurry.wait(self._every)
            self._hurry.clear()
            if self._over:
                return
            try:
                self._look()
            except ClientClosed:
                return
            except AssistantError as error:
                self.trouble = f"{error}; trying again"
            else:
                self.trouble = ""

    def _look(self) -> None:
        client = self.client
        counts, workers, rules = client.counts(), client.workers(), client.rules()
        buried = client.buried(limit=MOST_BURIED) if self.wants_buried else None
        with self.lock:
            self.board.counts(counts)
            self.board.introductions(workers)
            self.rules = {rule.name: rule for rule in rules}
            if buried is not None:
                self.buried = buried

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
        self._act(lambda: f"queued again as {self.client.retry(id).id}", say)

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
            say(said)
            self.hurry()

        OurThread(run, "revolve top acts").start()
