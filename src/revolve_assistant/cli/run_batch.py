"""`revolve run` at work: submits items while there is room, shows and writes what their tasks say, counts how they end.

    reader thread ──wake──▶ inbox ◀──ended job── dispatcher thread (hears every task: writes, draws, counts)
    signal handler ─number─▶  │
                              ▼
                         main thread: submit the next items, cancel, leave

Only the main thread submits and cancels, only the dispatcher writes and draws; `inbox` is the one way between them.
At most `window` tasks are under way, so that neither a million items nor an endless stdin takes more memory than few.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..event import ENDS, Event, Progress
from ..views.escape import printable
from .event_json import error_of, fields_of
from .run_items import Ahead, Item
from .run_log import Log, line
from .run_output import ERR, LOG, OUT, Lines, Turns, to_bytes, to_json, to_text, write_all
from .run_report import Failure, first_line, note, short, traceback_of, what

if TYPE_CHECKING:
    from ..caller.client import Client
    from ..caller.task import Task

MOST_FAILURES = 200  # kept for the table at the end
RESTORE = 1.0  # seconds that the bars have to give the terminal back when a second Ctrl-C came


class Job:
    """One item under way. The main thread makes it; then the dispatcher alone changes it."""

    __slots__ = ("begun", "errors", "index", "item", "label", "lines", "task")

    def __init__(self, index: int, item: Item, tag: bool) -> None:
        self.index = index
        self.item = item
        self.label = printable(item.label)
        prefix = f"{self.label}\t" if tag else ""
        self.lines = Lines(prefix)
        self.errors = Lines(prefix)
        self.begun: float | None = None  # Unix time of the first `started`
        self.task: Task[Any] | None = None


class Batch:
    """Runs `function` once for each item. `run()` returns when all have ended or it was stopped.

    `bars` is an entered `open_bars()` or None; `draws` says that it shares the terminal with stdout.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        items: Callable[[Callable[[], object]], Ahead],
        *,
        client: Client,
        options: dict[str, Any],
        window: int,
        name: str,
        bars: Any = None,
        draws: bool = False,
        as_json: bool = False,
        keep_order: bool = False,
        tag: bool = False,
        halt: bool = False,
        tracebacks: bool = False,
        log: Log | None = None,
    ) -> None:
        self._function = function
        self._client = client
        self._submit = client.options(capture=True, **options).submit
        self._window = window
        self._name = name
        self._bars = bars
        self._draws = draws
        self._json = as_json
        self._tag = tag
        self._halt = halt
        self._tracebacks = tracebacks
        self._log = log
        self._inbox: SimpleQueue[Job | int | Exception | None] = SimpleQueue()
        self._ahead = items(lambda: self._inbox.put(None))
        self._turns = Turns(self._write, ordered=keep_order)
        self._hearing = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._next = 0
        self._running = 0
        self._signals = 0
        self._stopped = False
        self.counts: Counter[str] = Counter()
        """How the tasks ended: succeeded, failed, cancelled, lost; and `not started`."""
        self.failures: list[Failure] = []
        """The first failures, for the table."""
        self.signal = 0
        """The signal that stopped it, 0: none."""
        self.halted: str | None = None
        """The item whose failure stopped it."""
        self.broken: Exception | None = None
        """What went wrong with stdout, the log or stdin."""

    @property
    def read_all(self) -> bool:
        """Whether every item there is was read."""
        return self._ahead.ended

    # --- the main thread

    def run(self) -> None:
        """Block until every task has ended."""
        self._ahead.start()
        while True:
            while not self._stopped and len(self._jobs) < self._window and (item := self._ahead.take()) is not None:
                self._start(item)
            if not self._jobs and (self._stopped or not self._ahead.waiting):
                break
            self._obey(self._inbox.get())
        if self._ahead.error is not None and self.broken is None:
            self.broken = self._ahead.error
        with self._hearing, suppress(OSError):
            self._count()
        self._turns.close()

    def _start(self, item: Item) -> None:
        job = Job(self._next, item, self._tag)
        self._next += 1
        self._jobs[job.index] = job
        if item.wrong:
            self._hear(job, Event("", 0, 0, "failed", (ValueError(item.wrong),), time.time()))
            return
        job.task = self._submit(self._function, item.value)
        job.task.add_listener("*", lambda event: self._hear(job, event))

    def _obey(self, message: Job | int | Exception | None) -> None:
        match message:
            case Job():
                del self._jobs[message.index]
                if self.halted is not None:
                    self._stop()
            case int():
                if not self.signal:
                    self.signal = message
                    self._stop()
                    if self._jobs:
                        again = "; Ctrl-C again stops at once" if message == signal.SIGINT else ""
                        self._say(f"stopping: {len(self._jobs)} tasks are being cancelled{again}")
            case Exception():
                self.broken = self.broken or message
                self._stop()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.counts["not started"] += self._ahead.stop()
        for job in list(self._jobs.values()):
            if job.task is not None:
                job.task.cancel()

    # --- signals

    def on_signal(self, number: int, _frame: FrameType | None = None) -> None:
        """A signal handler: the first asks for a stop, the second ends the process."""
        self._signals += 1
        self._inbox.put(number)
        if self._signals == 2:
            threading.Thread(target=self._end_now, args=(number,), daemon=True).start()
        elif self._signals > 2:
            os._exit(128 + number)

    def _end_now(self, number: int) -> None:
        """Give the terminal back and leave, whatever the other threads hang in; the children die with this process."""
        if self._bars is not None:
            restoring = threading.Thread(target=self._bars.__exit__, args=(None, None, None), daemon=True)
            restoring.start()
            restoring.join(RESTORE)
        os._exit(128 + number)

    # --- the dispatcher thread

    def _hear(self, job: Job, event: Event) -> None:
        with self._hearing:
            try:
                self._show(job, event)
            except Exception as error:  # stdout or the log is gone, or a bug here: either way nothing may hang
                self._inbox.put(error)
            if event.name in ENDS:
                try:
                    self._turns.end(job.index)
                except Exception as error:
                    self._inbox.put(error)
                self._inbox.put(job)

    def _show(self, job: Job, event: Event) -> None:
        name, args = event.name, event.args
        if self._json and name not in ENDS:
            self._put(job, OUT, self._as_json(job, event))
        match name:
            case "output" if not self._json:
                self._put(job, OUT, job.lines.add(to_text(args[0]) if args else ""))
            case "error_output" if not self._json:
                self._put(job, ERR, job.errors.add(to_text(args[0]) if args else ""))
            case "log" if not self._json and len(args) == 3:
                self._put(job, ERR, job.errors.rest() + job.errors.add(f"{args[0]}:{args[1]}:{args[2]}\n"))
            case "item" if not self._json and args:
                self._put(job, OUT, job.lines.rest() + job.lines.add(f"{to_text(args[0])}\n"))
            case "started":
                self._started(job, event)
            case "progress" if self._bars is not None and args and isinstance(args[0], Progress):
                self._bars.update(job.index, args[0])
            case "question":
                self._say(f"{job.label} asks {to_text(args[-1])!r}: nobody answers under `revolve run`")
            case "retrying":
                reason, delay = (*args, "", 0.0)[:2]
                self._say(f"{job.label}: attempt {event.attempt} failed, again in {delay:.1f} s: {first_line(reason)}")
            case "waiting" | "gap":
                self._say(f"{job.label}: {name} {' '.join(map(to_text, args))}")
            case _ if name in ENDS:
                self._ended(job, event)

    def _started(self, job: Job, event: Event) -> None:
        if job.begun is None:
            job.begun = event.time
            self._running += 1
            if self._bars is not None:
                self._bars.add(job.index, job.label)
            self._count()

    def _ended(self, job: Job, event: Event) -> None:
        state = event.name
        was_running = job.begun is not None
        seconds = event.time - job.begun if job.begun is not None else 0.0
        if state == "cancelled" and not was_running and self._stopped:
            self.counts["not started"] += 1
        else:
            self.counts[state] += 1
        error = None if state == "succeeded" else self._error(job, event)
        if self._json:
            self._put(job, OUT, self._as_json(job, event, seconds=round(seconds, 3)))
        else:
            self._put(job, OUT, job.lines.rest())
            self._put(job, ERR, job.errors.rest())
            if state == "succeeded" and event.args and event.args[0] is not None:
                self._put(job, OUT, job.lines.add(f"{to_text(event.args[0])}\n"))
        if error is not None and not (self._stopped and state == "cancelled"):
            self._failed(job, event, error)
        if self._log is not None and (was_running or state != "cancelled"):
            entry = line(
                job.item.value if not job.item.wrong else job.item.label,
                state,
                seconds=seconds,
                error=None if error is None else short(error),
                attempt=event.attempt,
                time=event.time,
                function=self._name,
            )
            self._turns.put(job.index, LOG, entry)
        if was_running:
            self._running -= 1
            if self._bars is not None:
                self._bars.done(job.index, state, note(event, error))
        self._count()

    def _error(self, job: Job, event: Event) -> BaseException:
        return error_of(event, job.task)

    def _failed(self, job: Job, event: Event, error: BaseException) -> None:
        if len(self.failures) < MOST_FAILURES:
            tries = f", attempt {event.attempt}" if event.attempt > 1 else ""
            self.failures.append(Failure(job.label, what(event.name, error) + tries, first_line(error)))
        if self._tracebacks:
            self._put(job, ERR, job.errors.add(traceback_of(error)))
        if self._halt and self.halted is None:
            self.halted = job.label

    def _count(self) -> None:
        if self._bars is not None:
            failed = self.counts["failed"] + self.counts["lost"]
            total = self._ahead.seen if self._ahead.ended else None
            ended = sum(self.counts[state] for state in ENDS)
            self._bars.overall(ended, total, self._running, failed)

    def _as_json(self, job: Job, event: Event, **more: Any) -> str:
        fields: dict[str, Any] = {
            "item": job.item.value,
            "task": event.task_id or None,
            "event": event.name,
            "attempt": event.attempt,
            "time": event.time,
            **more,
        }
        fields |= fields_of(event, self._error(job, event) if event.name in ENDS - {"succeeded"} else None)
        return to_json(fields) + "\n"

    # --- writing

    def _put(self, job: Job, stream: int, text: str) -> None:
        if text:
            self._turns.put(job.index, stream, to_bytes(text))

    def _write(self, stream: int, data: bytes) -> None:
        if stream == LOG:
            if self._log is not None:
                self._log.write(data)
        elif self._draws and self._bars is not None:
            self._bars.line(data.decode("utf-8", "surrogateescape").removesuffix("\n"), error=stream == ERR)
        else:
            write_all(1 if stream == OUT else 2, data)

    def _say(self, text: str) -> None:
        """A line of our own, on stderr, above the bars."""
        with self._hearing:
            if self._bars is not None:
                self._bars.line(f"revolve run: {text}", error=True)
            else:
                with suppress(OSError):  # the terminal is gone
                    print(f"revolve run: {text}", file=sys.stderr, flush=True)
