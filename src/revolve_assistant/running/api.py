"""What a callable uses while it runs: `emit`, `track`, `report`, `ask`, `current_task`.

The same functions work when the callable is called outside a task: `track` draws a bar, `ask` prompts, the rest
does nothing. Importing this module loads nothing of the caller's side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from ..event import Progress

if TYPE_CHECKING:
    from .running import Running as Running

T = TypeVar("T")

TRACK_EVERY = 0.05  # seconds between two progress events of one `track`

in_context: ContextVar[Running | None] = ContextVar("revolve_assistant.running", default=None)
in_process: Running | None = None  # the one task of a child that runs plain callables: its threads emit for it


def _running() -> Running | None:
    return in_context.get() or in_process


def __getattr__(name: str) -> object:
    if name == "Running":
        from .running import Running

        return Running
    raise AttributeError(name)


def current_task() -> Running:
    """The running task, as seen by itself. Outside a task: one with an empty id that says and hears nothing."""
    running = in_context.get() or in_process
    if running is None:
        from .running import outside

        return outside()
    return running


def emit(name: str, *args: Any) -> None:
    """Send the event `name` (at most 64 printable characters) with `args` (at most 1 MiB encoded) to the caller.

    Emits of one thread keep their order. Blocks while 4 MiB of the task's events are on their way to a slow
    listener. Raises `UsageError` (bad name, too large) or `NotCarriable`. Thread-safe. Outside a task: nothing.
    """
    running = in_context.get() or in_process
    if running is not None:
        running.emit(name, *args)


def report(fraction: float, message: str | None = None) -> None:
    """Say how far the task is: `fraction` is 0.0 … 1.0. Never blocks on a slow listener: the newest wins."""
    running = in_context.get() or in_process
    if running is not None:
        running.report(fraction, message)


def ask(text: str, timeout: float | None = None) -> Any:
    """Ask the caller and wait for `task.send("answer", value)`; returns the value.

    Blocks up to `timeout` seconds (None: until an answer or a cancel). Raises `TimeoutError`; `CancelSignal` when
    the task is asked to stop. Outside a task it prompts on the terminal.
    """
    running = in_context.get() or in_process
    if running is None:
        return input(f"{text} ")
    return running.ask(text, timeout)


def track(iterable: Iterable[T], description: str | None = None, total: float | None = None) -> Iterator[T]:
    """Yield from `iterable` and tell the caller how far it is, as `progress` events, at most 20 a second.

    `total` is the number of items; None takes `len(iterable)` where there is one. Raises `CancelSignal` at the next
    step once the task is asked to stop. Outside a task it draws a bar on the terminal.
    """
    running = in_context.get() or in_process
    if total is None:
        try:
            total = len(iterable)  # type: ignore[arg-type]
        except TypeError:
            total = None
    if running is None:
        from ..views.bars import local_track

        return local_track(iterable, description, total)
    return _track(running, iterable, description, total)


def _track(running: Running, iterable: Iterable[T], description: str | None, total: float | None) -> Iterator[T]:
    done = 0

    def tell() -> None:
        fraction = min(1.0, done / total) if total else (1.0 if total == 0 else None)
        running.progress(Progress(fraction, done, total, description))

    tell()
    told, due = 0, monotonic() + TRACK_EVERY
    check: Callable[[], None] = running.check
    try:
        for item in iterable:
            check()
            yield item
            done += 1
            if (now := monotonic()) >= due:
                tell()
                told, due = done, now + TRACK_EVERY
    finally:
        if told != done:
            tell()
