"""How far tasks are, drawn on a terminal (`Bars`, on rich) or written as plain lines (`PlainBars`).

    update(), done(), overall() ──▶ plain state under a lock           (any thread, about 1 µs, no I/O)
    line() ──▶ waiting lines ──┐
                               ├──▶ the painter, a thread of Bars ──▶ terminal, at most `per_second` times a second
    state ─────────────────────┘

Everything goes to standard error, so that standard output stays data. What tasks say is shown escaped: it never acts
on the terminal. An output that cannot be written to any more is given up silently; the work goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar

from ..event import Progress
from ..pool.threads import Gate, OurThread
from .escape import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .notebook import NotebookBars

T = TypeVar("T")
PER_SECOND = 10.0  # redraws
PLAIN_EVERY = 1.0  # seconds between two lines about one task
MOST_ROWS = 30
MARGIN = 4  # columns: two times ^C


class Row:
    """One task as it is now."""

    __slots__ = ("due", "label", "progress", "said", "started", "total")

    def __init__(self, label: str, total: float | None) -> None:
        self.label, self.total = printable(label), total
        self.progress = Progress()
        self.started = time.monotonic()
        self.due = 0.0  # PlainBars: when the next line may be written
        self.said = ""  # PlainBars: the last one

    def numbers(self) -> tuple[float | None, str, str]:
        """Fraction, `done/total` and message."""
        progress = self.progress
        total = self.total if progress.total is None else progress.total
        fraction = progress.fraction
        if fraction is None and progress.done is not None and total:
            fraction = progress.done / total
        if fraction is not None:
            fraction = min(1.0, max(0.0, fraction))
        count = "" if progress.done is None else f"{progress.done:.12g}"
        if count and total is not None:
            count += f"/{total:.12g}"
        return fraction, count, printable(progress.message or "")

    def text(self) -> str:
        fraction, count, message = self.numbers()
        parts = ["" if fraction is None else f"{fraction:.0%}", count, "" if message == self.label else message]
        return " ".join(filter(None, parts))


def summary(done: int, total: int | None, running: int, failed: int) -> str:
    count = f"{done} done" if total is None else f"{done}/{total} done"
    return f"{count}, {running} running" + (f", {failed} failed" if failed else "")


def _ending(label: str, state: str, note: str) -> str:
    return f"{label}: {state}" + (f": {printable(note)}" if note else "")


class PlainBars:
    """The interface of `Bars` for files, pipes and dumb terminals: lines, few and none twice.

    At most one progress line a task and one summary line a second. Thread-safe; writes block as the file does.
    """

    def __init__(self, file: IO[str] | None = None, *, clock: Any = time.monotonic) -> None:
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._lock = threading.RLock()
        self._rows: dict[Any, Row] = {}
        self._overall = Row("", None)

    def __enter__(self) -> PlainBars:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def add(self, key: Any, label: str, total: float | None = None) -> None:
        """A task begins. `total` counts items, where its progress does not say."""
        with self._lock:
            self._rows[key] = Row(label, total)

    def update(self, key: Any, progress: Progress) -> None:
        """Its newest progress. An unknown key is passed over."""
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                row.progress = progress
                if self._clock() >= row.due and (text := row.text()):
                    self._say(row, f"{row.label}: {text}")

    def done(self, key: Any, state: str, note: str = "") -> None:
        """It ended. Writes a line unless it succeeded and there is neither a note nor an earlier line about it."""
        with self._lock:
            row = self._rows.pop(key, None)
            if row is not None and (state != "succeeded" or note or row.said):
                self._write(_ending(row.label, state, note))

    def overall(self, done: int, total: int | None, running: int, failed: int) -> None:
        """All tasks together."""
        with self._lock:
            if self._clock() >= self._overall.due or done == total:
                self._say(self._overall, summary(done, total, running, failed))

    def line(self, text: str, error: bool = False) -> None:
        """Write a line (or lines) of its own, escaped."""
        self._write(printable(text.removesuffix("\n"), keep_newlines=True))

    def _say(self, row: Row, text: str) -> None:
        if text != row.said:
            row.said, row.due = text, self._clock() + PLAIN_EVERY
            self._write(text)

    def _write(self, text: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            self._file.write(_encodable(text, self._file) + "\n")
            self._file.flush()


class Bars:
    """Bars on a terminal: one a running task, as many as fit, and one for all together at the bottom.

    Those that succeeded vanish; others, and those with a note, become a line above. Thread-safe. Inside the `with`
    a thread paints; leaving it takes the bars away and leaves the lines.
    """

    def __init__(self, file: IO[str] | None = None, *, per_second: float = PER_SECOND) -> None:
        self._file = sys.stderr if file is None else file
        self._redirect = file is None
        self._every = 1.0 / per_second
        self._lock = threading.Lock()
        self._rows: dict[Any, Row] = {}
        self._overall: tuple[int, int | None, int, int] | None = None
        self._lines: list[tuple[str, bool]] = []
        self._stop = threading.Event()
        self._painter: threading.Thread | None = None
        self._gate = Gate()
        self._started = time.monotonic()

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.live import Live

        # soft_wrap keeps the lines as they are; without colours rich still draws the bars (NO_COLOR).
        self._console: Console = Console(
            file=self._file, force_terminal=True, highlight=False, markup=False, emoji=False
        )
        self._console.on_broken_pipe = _gone  # type: ignore[method-assign]  # rich's closes stdout and exits
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stderr=self._redirect,
            redirect_stdout=self._redirect and sys.stdout is not None and sys.stdout.isatty(),
        )
        self._measure()
        self._live.start()
        self._stop.clear()
        self._painter = OurThread(self._paint, "revolve bars")
        self._painter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._painter is not None:
            self._painter.join()
            self._painter = None
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            self._flush()
        with contextlib.suppress(OSError, ValueError):
            self._live.stop()

    def add(self, key: Any, label: str, total: float | None = None) -> None:
        """A task begins. `total` counts items, where its progress does not say."""
        with self._lock:
            self._rows[key] = Row(label, total)

    def update(self, key: Any, progress: Progress) -> None:
        """Its newest progress. An unknown key is passed over."""
        row = self._rows.get(key)
        if row is not None:
            row.progress = progress

    def done(self, key: Any, state: str, note: str = "") -> None:
        """It ended: the bar goes. Leaves a line unless it succeeded without a note."""
        with self._lock:
            row = self._rows.pop(key, None)
            if row is not None and (state != "succeeded" or note):
                self._lines.append((_ending(row.label, state, note), state in ("failed", "lost")))

    def overall(self, done: int, total: int | None, running: int, failed: int) -> None:
        """All tasks together."""
        self._overall = (done, total, running, failed)

    def line(self, text: str, error: bool = False) -> None:
        """Print a line (or lines) above the bars, escaped, else untouched. Shown at the next painting."""
        text = printable(text.removesuffix("\n"), keep_newlines=True)
        with self._lock:
            self._lines.append((text, error))
        if self._painter is None:
            self._flush()

    def _paint(self) -> None:
        while not self._stop.wait(self._every):
            self._gate.acquire()  # no task is forked off in the middle of a write
            try:
                self._measure()
                self._flush()
                self._live.refresh()
            except (OSError, ValueError):
                return
            finally:
                self._gate.release()

    def _measure(self) -> None:
        """Take the size of our own terminal: rich asks standard input's first, which may be another or none."""
        if "COLUMNS" not in os.environ:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                size = os.get_terminal_size(self._file.fileno())
                if size.columns and size.lines:
                    from rich.console import ConsoleDimensions

                    self._console.size = ConsoleDimensions(size.columns, size.lines)

    def _flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        if not lines:
            return
        from rich.text import Text

        text = Text("\n").join(
            Text(_encodable(line, self._file), style="red" if error else "", end="") for line, error in lines
        )
        self._console.print(text, soft_wrap=True)

    def _render(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            rows = list(self._rows.values())
            overall = self._overall
        width, height = self._console.size
        room = max(1, min(MOST_ROWS, height - 3))
        bar_width = max(4, min(40, width // 4))
        # Not up to the edge: the terminal's own ^C would begin a new line there, and a bar would be left behind.
        table = Table.grid(padding=(0, 1))
        table.width = width - MARGIN if width >= 40 else width
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
        table.add_column(width=bar_width)
        table.add_column(no_wrap=True, justify="right", width=4)
        if width >= 60:
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
        now = time.monotonic()

        def put(label: str, fraction: float | None, rest: str, started: float, style: str = "") -> None:
            # Without a fraction the bar pulses; its phase is its own, so that bars do not blink together.
            bar = ProgressBar(
                1.0 if fraction is not None else None,
                fraction or 0.0,
                width=bar_width,
                pulse=fraction is None,
                animation_time=now - started,
            )
            percent = "" if fraction is None else f"{fraction:.0%}"
            cells: list[Any] = [Text(_encodable(label, self._file), style=style), bar, Text(percent)]
            if width >= 60:
                cells.append(Text(_encodable(rest, self._file), style="dim"))
            table.add_row(*cells)

        for row in rows[:room]:
            fraction, count, message = row.numbers()
            put(
                row.label,
                fraction,
                " ".join(filter(None, [count, "" if message == row.label else message])),
                row.started,
            )
        if len(rows) > room:
            table.add_row(Text(f"+{len(rows) - room} more", style="dim"))
        if overall is not None:
            done, total, running, failed = overall
            label, _, rest = summary(done, total, running, failed).partition(", ")
            put(label, done / total if total else None, rest, self._started, "bold red" if failed else "bold")
        return table


AnyBars: TypeAlias = "Bars | PlainBars | NotebookBars"


def _gone() -> None:
    raise BrokenPipeError


def _encodable(text: str, file: IO[str]) -> str:
    """`text` as the file can write it: what its encoding lacks becomes an escape."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    if text.isascii() or encoding.lower().replace("-", "") == "utf8":
        return text
    return text.encode(encoding, "backslashreplace").decode(encoding)


def is_live(file: IO[str] | None = None) -> bool:
    """Whether bars can be drawn there: a terminal that can move its cursor."""
    file = sys.stderr if file is None else file
    try:
        return file is not None and file.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def open_bars(file: IO[str] | None = None) -> AnyBars:
    """Bars where `file` (None: standard error) is a terminal, in the display of a notebook's cell, else plain lines.

    Use it as a context manager.
    """
    if file is None and _in_notebook():
        from .notebook import NotebookBars

        return NotebookBars()
    return Bars(file) if is_live(file) else PlainBars(file)


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from .notebook import in_notebook

    return in_notebook()


# ---------------------------------------------------------------- track() outside of a task

_local: AnyBars | None = None  # shared by nested loops: two sets of bars on one terminal would overwrite each other
_loops = 0
_local_lock = threading.Lock()


def local_track(iterable: Iterable[T], description: str | None = None, total: float | None = None) -> Iterator[T]:
    """Yield from `iterable` under a bar, on standard error or in a notebook; elsewhere it is just `iter(iterable)`."""
    return _drawn(iterable, description, total) if is_live() or _in_notebook() else iter(iterable)


def _drawn(iterable: Iterable[T], description: str | None, total: float | None) -> Iterator[T]:
    global _local, _loops  # noqa: PLW0603
    if total is None:
        from operator import length_hint

        total = length_hint(iterable, 0) or None
    with _local_lock:
        bars = _local
        if bars is None:
            bars = _local = (open_bars() if _in_notebook() else Bars(per_second=20.0)).__enter__()
        _loops += 1
    key, done, due = object(), 0, 0.0
    clock, began = time.monotonic, time.monotonic()
    state = "stopped"
    try:
        bars.add(key, description or "working", total)
        bars.update(key, Progress(done=0, total=total))
        for item in iterable:
            yield item
            done += 1
            if (now := clock()) >= due:
                bars.update(key, Progress(done=done, total=total))
                due = now + 0.05
        state = "done"
    finally:
        count = f"{done}/{total:.12g}" if total is not None else f"{done}"
        bars.done(key, state, f"{count} in {clock() - began:.1f} s")
        with _local_lock:
            _loops -= 1
            if not _loops:
                _local = None
                bars.__exit__()
