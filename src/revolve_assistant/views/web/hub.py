"""All viewers of one web process: each is told what has changed, and of progress only what it sees.

                      ┌▶ Viewer: rows it does not have yet, by id ──▶ its stream, EVERY at most
    Feed ──▶ Hub ─────┼▶ Viewer
     one look for all └▶ Viewer: one task alone, and its Tail

A look takes the changes of all tasks once. A row whose state changed goes to all; one whose progress alone changed, to
those that have it on their screen (`see`). What waits for a slow viewer is one row a task at most. A viewer that comes
again says what it has (`Last-Event-ID`) and gets the rest; to another process's hub that says nothing, and it gets all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ..feed import Feed
from .shown import encode, places, row
from .tail import Tail

if TYPE_CHECKING:
    from ..board import TaskState

EVERY = 0.15  # seconds between two messages to a viewer
GLANCE = 0.1  # seconds between two looks at the feed
COUNT = 1.0  # seconds between two looks at workers, queues, rates
ROWS = 1000  # of one message
SEES = 300  # tasks that a viewer may have on its screen
KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent


class Viewer:
    """One page. `only`: the task it shows, "": the list."""

    def __init__(self, only: str, notes: dict[str, Any], everything: bool) -> None:
        self.key = os.urandom(12).hex()
        self.only = only
        self.sees: frozenset[str] = frozenset({only} if only else ())
        self.rows: dict[str, bytes] = {}
        self.gone: dict[str, None] = {}
        self.whole = False  # what it has besides is to be forgotten
        self.everything = everything
        self.view: bytes | None = None
        self.version = 0
        self.tail: Tail | None = None
        self.closing = False
        self.news = asyncio.Event()
        self._notes = notes

    def tell(self, id: str, data: bytes) -> None:
        """A row to be sent; a newer one replaces it."""
        self.gone.pop(id, None)
        self.rows[id] = data

    def take(self, hub: str) -> bytes:
        """All that is to be said now, as server-sent events; b"": nothing."""
        out: list[bytes] = []
        if self._notes:
            out.append(b"retry: 1000\nevent: hello\ndata: " + encode(self._notes | {"viewer": self.key}) + b"\n\n")
            self._notes = {}
        if self.rows or self.gone or self.whole:
            ids = list(self.rows)
            for at in range(0, max(1, len(ids)), ROWS):
                part = b",".join([self.rows[id] for id in ids[at : at + ROWS]])
                gone = encode(list(self.gone)) if at == 0 else b"[]"
                whole = b"true" if self.whole and at == 0 else b"false"
                last = at + ROWS >= len(ids)
                head = b"event: rows\n" + (f"id: {hub}.{self.version}\n".encode() if last else b"")
                out.append(head + b'data: {"rows":[' + part + b'],"gone":' + gone + b',"whole":' + whole + b"}\n\n")
            self.rows, self.gone, self.whole = {}, {}, False
        if self.view is not None:
            out.append(b"event: view\ndata: " + self.view + b"\n\n")
            self.view = None
        if self.tail is not None:
            found = self.tail.take()
            if found:
                out.append(b"event: told\ndata: " + encode(found) + b"\n\n")
        return b"".join(out)


class Hub:
    """In one event loop. Opens the feed with its first viewer."""

    def __init__(self, feed: Feed, show: frozenset[str]) -> None:
        self.feed = feed
        self.show = show
        self.name = os.urandom(6).hex()
        self.viewers: dict[str, Viewer] = {}
        self._marks: dict[str, tuple[Any, ...]] = {}  # what viewers know of each task but for its progress
        self._version = 0
        self._view: bytes = b""
        self._counted = 0.0
        self._news: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    async def stream(
        self, only: str, since: str, notes: dict[str, Any], *, everything: bool = True
    ) -> AsyncIterator[bytes]:
        """The server-sent events of one viewer, until it leaves. `everything`: workers and queues as well."""
        viewer = Viewer(only, notes, everything)
        self._join(viewer, since)
        sent = 0.0
        try:
            while not viewer.closing:
                data = viewer.take(self.name)
                if data:
                    sent = monotonic()
                    yield data
                try:
                    await asyncio.wait_for(viewer.news.wait(), KEEP_ALIVE)
                except TimeoutError:
                    yield b":\n\n"
                rest = sent + EVERY - monotonic()
                if rest > 0 and not viewer.closing:
                    await asyncio.sleep(rest)
                viewer.news.clear()
        finally:
            del self.viewers[viewer.key]
            if viewer.tail is not None:
                viewer.tail.close()

    def see(self, key: str, ids: list[str]) -> None:
        """What a viewer has on its screen from now on; its progress is told at once. One that is gone: nothing."""
        viewer = self.viewers.get(key)
        if viewer is None:
            return
        before, viewer.sees = viewer.sees, frozenset(ids[:SEES])
        for id in viewer.sees - before:
            task = self.feed.task(id)
            if task is not None and task.progress is not None:
                viewer.tell(id, row(task, self.show))
        if viewer.rows:
            viewer.news.set()

    def close(self) -> None:
        """End all streams: the process ends."""
        for viewer in list(self.viewers.values()):
            viewer.closing = True
            viewer.news.set()
        if self._task is not None:
            self._task.cancel()

    # ---

    def _join(self, viewer: Viewer, since: str) -> None:
        self.feed.open()
        hub, _, number = since.partition(".")
        version = int(number) if hub == self.name and number.isascii() and number.isdigit() else 0
        if viewer.only:
            task = self.feed.task(viewer.only)
            if task is not None:
                viewer.tell(task.id, row(task, self.show))
            viewer.tail = Tail(
                self.feed.client, viewer.only, self.show, viewer.news.set, partial(self._ended, viewer.only)
            )
        else:
            found = self.feed.changes(version)
            viewer.whole, viewer.version = found.whole, found.version
            viewer.gone = dict.fromkeys(found.gone)
            viewer.rows = {task.id: row(task, self.show) for task in found.tasks}
        self.viewers[viewer.key] = viewer
        self._look_around()
        viewer.view = self._view if viewer.everything else None
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            news = self._news = asyncio.Event()
            rung = False

            def ring() -> None:  # on whatever thread: one call into the loop until that has come
                nonlocal rung
                if not rung:
                    rung = True
                    try:
                        loop.call_soon_threadsafe(rang)
                    except RuntimeError:  # it is closed
                        pass

            def rang() -> None:
                nonlocal rung
                rung = False
                news.set()

            self._task = loop.create_task(self._run(ring))

    async def _run(self, ring: Any) -> None:
        news = self._news
        assert news is not None
        self.feed.add_listener(ring)
        looked = 0.0
        try:
            while self.viewers:
                try:
                    await asyncio.wait_for(news.wait(), COUNT)
                except TimeoutError:
                    pass
                rest = looked + GLANCE - monotonic()
                if rest > 0:
                    await asyncio.sleep(rest)
                news.clear()
                self._look()
                took = monotonic()
                looked = took
                if took >= self._counted + COUNT:
                    self._look_around()
        finally:
            self.feed.remove_listener(ring)

    def _ended(self, id: str) -> float:
        task = self.feed.task(id)
        return task.ended if task is not None else 0.0

    def _look(self) -> None:
        found = self.feed.changes(self._version)
        self._version = found.version
        if found.whole:
            self._marks.clear()
        life: dict[str, TaskState] = {}
        moved: dict[str, TaskState] = {}
        marks = self._marks
        for task in found.tasks:
            mark = (task.state, task.attempt, task.worker, task.name, task.buried)
            if marks.get(task.id) != mark:
                marks[task.id] = mark
                life[task.id] = task
            else:
                moved[task.id] = task
        for id in found.gone:
            marks.pop(id, None)
        made: dict[str, bytes] = {}

        def data_of(task: TaskState) -> bytes:
            data = made.get(task.id)
            if data is None:
                data = made[task.id] = row(task, self.show)
            return data

        for viewer in self.viewers.values():
            told = False
            if viewer.only:
                only = life.get(viewer.only) or moved.get(viewer.only)
                if only is not None:
                    viewer.tell(only.id, data_of(only))
                    told = True
            else:
                for id, task in life.items():
                    viewer.tell(id, data_of(task))
                for id in viewer.sees & moved.keys():
                    viewer.tell(id, data_of(moved[id]))
                for id in found.gone:
                    viewer.rows.pop(id, None)
                    viewer.gone[id] = None
                viewer.version = max(viewer.version, found.version)
                told = bool(viewer.rows or viewer.gone)
            if told:
                viewer.news.set()

    def _look_around(self) -> None:
        self._counted = monotonic()
        view = self.feed.look()
        # The seconds in which nothing ended are left out at the front, so that nothing changes while nothing happens.
        rates = view.rates[:-1]  # the running second is not over
        while rates and rates[0] == (0, 0):
            rates.pop(0)
        data = encode(places(view) | {"rates": rates, "clock": round(time(), 1) if rates else 0})
        if data == self._view:
            return
        self._view = data
        for viewer in self.viewers.values():
            if viewer.everything:
                viewer.view = data
                viewer.news.set()
