"""`Feed`: keeps a `Board` up to date for a client, whatever its engine, and does what a viewer asks for.

    on a queue      monitor channel ─▶ client's reader ─┐
                    workers(), counts(), buried() ──────┼─▶ Board ──▶ changes(since) ──▶ terminal, web page
    on an engine    the client's own tasks ─────────────┘   lock      look(), wait(), stop, retry, answer

The contract, for views:

* `with Feed(client) as feed`: from then on it is kept up to date. It opens no connection but the one with which the
  client steers its queue, has one thread, and costs nothing on the queue's side but that while nobody looks.
* Who calls `changes`, `look` or `wait` looks. For `LOOKED` seconds from then on workers are asked for progress (at most
  4 times a second) and the queue for its counts (once a second); after that only the ends and beginnings that workers
  tell anyway are folded in: who looks again is up to date at once, but for the progress, which comes in a moment.
* `changes(since)` gives what changed since a `version`: copies, which are the caller's. Begin with `since=0`, apply
  `tasks` by id, forget `gone` (if `whole` all others as well), and go on from `changes.version`. Several views of one
  feed have a version each, and none sees half a change.
* `look()` gives the rest as it is now: workers, queues, rates, what is wrong. `changes.places` says that workers or
  queues are others than before.
* `wait(since, timeout)` blocks until there is something newer; `add_listener(fn)` has `fn()` called, on any thread and
  perhaps often, when there is: it must be quick, and not call the feed.
* `stop`, `retry` and `answer` do as the client's own methods, block for a round trip or two, and raise as those do.
* What it tells are names, states, times, progress with its message, and of buried tasks the headline of their error
  (`reason`), which is for the view to hide; never arguments or results.

On an engine of this process a task that ends is kept by the feed for a while (the last `KEPT` ones, `WEIGHT` bytes of
events), so that it can be looked at; a failure nobody asked for is then logged when it is let go. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from ..caller.own import Own
from ..errors import AssistantError, ClientClosed
from ..pool.threads import OurThread
from .board import MOST, Board, Changes, QueueState, TaskState

if TYPE_CHECKING:
    from ..caller.client import Client
    from ..caller.monitoring import Monitored
    from ..wire.about import About

log = logging.getLogger("revolve_assistant")

LOOKED = 15.0  # seconds after a look in which there may be another
ASK = 1.0  # seconds between two looks at the queue
SELDOM = 20.0  # the same while nobody looks, only to keep the channel
BURIED = 100  # of the latest buried tasks
BURIED_EVERY = 15.0  # seconds between two looks at those, unless one is known to have come
RATES = 120  # seconds of which the ends are counted


class View(NamedTuple):
    """What there is beside the tasks."""

    version: int
    time: float
    """Unix time."""
    workers: list[About]
    queues: list[QueueState]
    ends: dict[str, int]
    """How many tasks ended how, since the feed was opened."""
    rates: list[tuple[int, int]]
    """Of each of the last `RATES` seconds, the latest last: how many tasks succeeded, and how many ended otherwise."""
    open: int
    """Tasks that the board knows and that have not ended."""
    dropped: int
    """Tasks that were dropped for want of room."""
    trouble: str
    """What keeps the feed from being up to date; "": nothing."""


class Feed:
    """See the top of the file. `most`: tasks that are remembered. Raises `UsageError`, `ClientClosed`."""

    def __init__(self, client: Client, *, most: int = MOST) -> None:
        engine = client._engine
        queue = bool(client._remote and engine.lets_go)
        self.client = client
        self.place = str(engine.place) if client._remote else f"{_name(engine)} in this process"
        self.namespace = client.namespace
        self.can = frozenset({"stop", "answer", "retry"} if queue and engine.traits.manages else {"stop", "answer"})
        """What a viewer can do here."""
        self._desk = bool(queue and engine.traits.manages)
        self._monitors = bool(queue and engine.messenger.traits.fanout)
        self._own = None if self._monitors else Own(client)
        self._monitor: Monitored | None = None
        self._board = Board(most)
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._bell = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._looked = 0.0  # monotonic seconds
        self._trouble = ""
        self._anew = 0.0  # until when all progress is asked for again, monotonic seconds
        self._buried_known = -1
        self._buried_at = 0.0
        self._counted: deque[list[int]] = deque(maxlen=RATES)  # [second, succeeded, others]
        self._before = (0, 0)
        self._version = 0  # that listeners know of
        self._closed = False
        self._thread: threading.Thread | None = None

    def open(self) -> Feed:
        """Keep it up to date from now on. No I/O here. Raises `ClientClosed`."""
        if self.client._closed or self._closed:
            raise ClientClosed("this feed, or its client, was closed")
        if self._thread is None:
            if self._own is not None:
                self._own.open()
            if self._monitors:
                from ..caller.monitoring import Monitored

                self._monitor = Monitored(self.client._engine, self._heard)
                self.client._engine.overlook(self._monitor, True)
            self._thread = OurThread(self._run, "revolve-feed")
            self._thread.start()
        return self

    def close(self, timeout: float = 10.0) -> None:
        """Let go; the client goes on. Waits for its thread, which may be asking a server. Idempotent."""
        with self._lock:
            begun, self._closed = not self._closed, True
            self._news.notify_all()
        self._bell.set()
        if begun and self._monitor is not None and not self.client._closed:
            self.client._engine.overlook(self._monitor, False)
        if begun and self._own is not None:
            self._own.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def __enter__(self) -> Feed:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- to look

    @property
    def version(self) -> int:
        """The number of the last change."""
        return self._board.version

    def changes(self, since: int = 0) -> Changes:
        """What has changed since `version` was `since`; 0: everything. Does not block."""
        self._look()
        with self._lock:
            found = self._board.changes(since)
            return found._replace(tasks=[replace(each) for each in found.tasks])

    def task(self, id: str) -> TaskState | None:
        """One task as it is now; None: nothing is known of it. Does not block."""
        with self._lock:
            found = self._board.task(id)
            return replace(found) if found is not None else None

    def look(self) -> View:
        """What there is beside the tasks, as it is now. Does not block."""
        self._look()
        with self._lock:
            board = self._board
            return View(
                board.version, time(), list(board.workers.values()), board.queues, dict(board.ends), self._rates(),
                board.open, board.dropped, self._trouble,
            )  # fmt: skip

    def wait(self, since: int, timeout: float | None = None) -> bool:
        """Block until there is something newer than `since`; False: not within `timeout` seconds, or it was closed."""
        self._look()
        with self._lock:
            self._news.wait_for(lambda: self._closed or self._board.version > since, timeout)
            return self._board.version > since

    def add_listener(self, fn: Callable[[], None]) -> None:
        """Call `fn()` when something has changed."""
        with self._lock:
            self._listeners.append(fn)

    def remove_listener(self, fn: Callable[[], None]) -> None:
        """Forget it; one that is not there is passed over."""
        with self._lock:
            if fn in self._listeners:
                self._listeners.remove(fn)

    # --- to act: these block

    def stop(self, id: str) -> bool:
        """Stop a task (`Task.cancel`). False: it has ended. Raises `Unsupported`, `ClientClosed`."""
        return bool(self._reach(id).cancel())

    def answer(self, id: str, text: str) -> bool:
        """Answer what a task asks (`ask`). False: it has ended. Raises `Unsupported`, `ClientClosed`."""
        return bool(self._reach(id).send("answer", text))

    def retry(self, id: str) -> str:
        """Try a buried task again (`Client.retry`); the id of the new one. Raises as that does."""
        task = self.client.retry(id)
        task.add_done_callback(lambda each: each._disarm())  # its failure is shown, and nobody's here to log
        self._buried_known = -1
        self._bell.set()
        return task.id

    def _reach(self, id: str) -> Any:
        task = self.client.attach(id)
        if task._attached:
            task.add_done_callback(_nothing)  # kept to its end: what it is told is not dropped with it
        return task

    # ---

    def _look(self) -> None:
        now = monotonic()
        rested = now - self._looked > LOOKED
        self._looked = now
        if rested:
            self._bell.set()

    def _rates(self) -> list[tuple[int, int]]:
        found = {second: (good, bad) for second, good, bad in self._counted}
        now = int(monotonic())
        return [found.get(second, (0, 0)) for second in range(now - RATES + 1, now + 1)]

    def _count(self) -> None:
        """Under the lock, after what was folded in."""
        ends = self._board.ends
        good = ends["succeeded"]
        bad = sum(ends.values()) - good
        if (good, bad) == self._before:
            return
        second = int(monotonic())
        if not self._counted or self._counted[-1][0] != second:
            self._counted.append([second, 0, 0])
        self._counted[-1][1] += good - self._before[0]
        self._counted[-1][2] += bad - self._before[1]
        self._before = (good, bad)

    def _changed(self) -> None:
        """Without the lock: tell who listens."""
        with self._lock:
            self._count()
            if self._board.version == self._version:
                return
            self._version = self._board.version
            self._news.notify_all()
            listeners = list(self._listeners)
        for fn in listeners:
            fn()

    def _heard(self, worker: str, entries: list[list[Any]]) -> None:
        with self._lock:
            self._board.entries(worker, entries)
        self._changed()

    def _run(self) -> None:
        rest = 0.0
        while not self._closed:
            self._bell.wait(rest)
            self._bell.clear()
            if self._closed:
                return
            looked = monotonic() - self._looked < LOOKED
            try:
                rest = self._gather(looked)
                trouble = ""
            except ClientClosed:
                return
            except AssistantError as error:  # a server that is away: it is said, and tried again
                rest, trouble = ASK, str(error)
            except Exception as error:
                rest, trouble = ASK, f"{type(error).__name__}: {error}"
                if trouble != self._trouble:
                    log.exception("a feed cannot look at its queue")
            self._trouble = trouble or self._gaps()
            self._changed()

    def _gather(self, looked: bool) -> float:
        """Look at what has to be asked for; seconds until the next time."""
        rest = SELDOM
        if self._own is not None:
            rest = self._own.look(self._board, self._lock, looked)
        if self._monitor is not None:
            if looked:
                self._monitor.ask(monotonic() < self._anew)
            self.client._engine.ring()  # so that the channel is kept
        if self._desk and looked:
            workers, counts = self.client.workers(), self.client.counts()
            if not {each.key for each in workers} <= self._board.workers.keys():
                self._anew = monotonic() + 3 * ASK  # it may not have heard that progress is asked for, nor hear it now
                self._bell.set()
            with self._lock:
                self._board.introductions(workers)
                self._board.counts(counts)
            self._exhume(sum(each.buried for each in counts))
        return min(rest, ASK) if looked and (self._desk or self._monitor is not None) else rest

    def _exhume(self, number: int) -> None:
        """Ask for the buried tasks, if there are others than before."""
        now = monotonic()
        if number == self._buried_known and now < self._buried_at + BURIED_EVERY:
            return
        found = self.client.buried(BURIED) if number else []
        with self._lock:
            self._board.buried(found)
        self._buried_known, self._buried_at = number, now

    def _gaps(self) -> str:
        engine = self.client._engine
        if self.client._remote and engine.away_since:
            return f"{engine.place} does not answer: {engine.trouble}"
        monitor = self._monitor
        if monitor is not None and monitor.refused:
            return f"{monitor.refused} messages of workers with another secret were refused"
        return ""


def _name(engine: Any) -> str:
    return type(engine).__module__.rpartition(".")[2]


def _nothing(_: object) -> None: ...
