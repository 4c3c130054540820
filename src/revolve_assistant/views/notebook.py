"""The bars of `bars` in a notebook: one display of the cell, renewed in place; lines go to the cell's own output.

    update(), done() ──▶ plain state, a lock ──▶ painter, a thread ──▶ one `display_data`, then `update_display_data`

It is renewed at most `PER_SECOND` times a second, and only when it looks different. What tasks say is escaped twice:
control characters are shown as such, and nothing is markup. Without JavaScript or a widget, so that it is still there
when the notebook was saved, and in what nbconvert makes of it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from html import escape as escaped
from typing import Any

from ..event import Progress
from ..pool.threads import Gate, OurThread
from .bars import MOST_ROWS, Row, summary
from .escape import printable

PER_SECOND = 8.0  # with the first and the last still not more than ten in any second
COLOURS = {"succeeded": "#2e7d32", "done": "#2e7d32", "failed": "#c62828", "lost": "#c62828"}
RUNNING, OTHER = "#1976d2", "#757575"
LINE = "display:flex;gap:.8em;align-items:center;font-size:.9em;line-height:1.6"
LABEL = "flex:0 1 14em;min-width:4em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
TRACK = "flex:0 1 14em;min-width:4em;height:.6em;border-radius:.3em;background:rgba(128,128,128,.25)"
PERCENT = "flex:0 0 3em;text-align:right;font-variant-numeric:tabular-nums"
REST = "flex:1 1 0;min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"


def in_notebook() -> bool:
    """Whether this program is a notebook's kernel. Imports nothing."""
    shells = sys.modules.get("IPython.core.interactiveshell")
    if shells is None:
        return False
    try:
        made = shells.InteractiveShell.initialized() and shells.InteractiveShell.instance()
    except Exception:  # of another kind than the one that was made
        return False
    return bool(made) and getattr(made, "kernel", None) is not None


class _Cell(Row):
    """A task, also after its end: the display stays."""

    __slots__ = ("seconds", "state")

    def __init__(self, label: str, total: float | None) -> None:
        super().__init__(label, total)
        self.state = ""
        self.seconds = 0.0


class NotebookBars:
    """The interface of `Bars`. Thread-safe. Leaving the block shows how all ended, and leaves it there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[Any, _Cell] = {}
        self._ended = 0  # rows that are shown no more
        self._overall: tuple[int, int | None, int, int] | None = None
        self._stop = threading.Event()
        self._gate = Gate()
        self._painter: threading.Thread | None = None
        self._handle: Any = None
        self._shown: dict[str, str] = {}

    def __enter__(self) -> NotebookBars:
        self._stop.clear()
        self._paint()
        self._painter = OurThread(self._run, "revolve bars")
        self._painter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._painter is not None:
            self._painter.join()
            self._painter = None
        self._paint()

    def add(self, key: Any, label: str, total: float | None = None) -> None:
        """A task begins. `total` counts items, where its progress does not say."""
        with self._lock:
            self._rows[key] = _Cell(label, total)

    def update(self, key: Any, progress: Progress) -> None:
        """Its newest progress. An unknown key is passed over."""
        row = self._rows.get(key)
        if row is not None:
            row.progress = progress

    def done(self, key: Any, state: str, note: str = "") -> None:
        """It ended."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                return
            row.state, row.said = state, printable(note)
            row.seconds = time.monotonic() - row.started
            if len(self._rows) > MOST_ROWS and state in ("succeeded", "done"):
                del self._rows[key]
                self._ended += 1

    def overall(self, done: int, total: int | None, running: int, failed: int) -> None:
        """All tasks together."""
        self._overall = (done, total, running, failed)

    def line(self, text: str, error: bool = False) -> None:
        """A line (or lines) in the cell's output, escaped."""
        with contextlib.suppress(OSError, ValueError):
            (sys.stderr if error else sys.stdout).write(printable(text.removesuffix("\n"), keep_newlines=True) + "\n")

    # ---

    def _run(self) -> None:
        while not self._stop.wait(1 / PER_SECOND):
            self._gate.acquire()  # no task is forked off in the middle of a message
            try:
                self._paint()
            finally:
                self._gate.release()

    def _paint(self) -> None:
        data = self._render()
        if data == self._shown:
            return
        self._shown = data
        if self._handle is None:
            from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

            self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        else:
            self._handle.update(data, raw=True)

    def _render(self) -> dict[str, str]:
        with self._lock:
            rows = sorted(self._rows.values(), key=lambda row: bool(row.state))[:MOST_ROWS]
            left = len(self._rows) - len(rows)
            ended, overall = self._ended, self._overall
        lines, plain = [], []
        for row in rows:
            fraction, count, message = row.numbers()
            rest = " ".join(filter(None, [count, "" if message == row.label else message]))
            if row.state:
                took = "" if row.said else f" after {row.seconds:.1f} s"
                fraction = 1.0 if row.state in ("succeeded", "done") else fraction
                rest = f"{row.state}{took}" + (f": {row.said}" if row.said else "")
            lines.append(_line(row.label, fraction, rest, COLOURS.get(row.state, OTHER) if row.state else RUNNING))
            plain.append(" ".join(filter(None, [row.label, "" if fraction is None else f"{fraction:.0%}", rest])))
        more = [f"{left} more"] if left else []
        more += [f"{ended} succeeded"] if ended else []
        if more:
            lines.append(f'<div style="{LINE}">{escaped(", ".join(more))}</div>')
            plain.append(", ".join(more))
        if overall is not None:
            done, total, _, failed = overall
            text = summary(*overall)
            lines.append(_line("all", done / total if total else None, text, COLOURS["failed"] if failed else RUNNING))
            plain.append(text)
        return {"text/html": f"<div>{''.join(lines)}</div>", "text/plain": "\n".join(plain) or "…"}


def _line(label: str, fraction: float | None, rest: str, colour: str) -> str:
    label, rest = escaped(label), escaped(rest)
    value = "" if fraction is None else f' aria-valuenow="{fraction * 100:.0f}"'
    width, faint = (100.0, ";opacity:.3") if fraction is None else (fraction * 100, "")
    return (
        f'<div style="{LINE}"><span style="{LABEL}" title="{label}">{label}</span>'
        f'<div role="progressbar" aria-label="{label}" aria-valuemin="0" aria-valuemax="100"{value} style="{TRACK}">'
        f'<div style="width:{width:.1f}%;height:100%;border-radius:.3em;background:{colour}{faint}"></div></div>'
        f'<span style="{PERCENT}">{"" if fraction is None else f"{fraction:.0%}"}</span>'
        f'<span style="{REST}" title="{rest}">{rest}</span></div>'
    )
