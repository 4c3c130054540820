"""What the events of tasks become on bars: a bar for each task that runs, lines above them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import RemoteError
from ..event import ENDS, Event, Progress

if TYPE_CHECKING:
    from .bars import AnyBars

LONGEST = 300  # characters of a value that is shown


class Telling:
    """Draws on `bars`. With `all` also what tasks say by names of their own, why they wait, what they ask, and how well
    they ended. `attended`: who reads it can answer right there. One thread."""

    def __init__(self, bars: AnyBars, *, all: bool = False, attended: bool = False) -> None:
        self._bars = bars
        self._all = all
        self._attended = attended
        self._begun: dict[str, float] = {}  # task -> Unix time of its start, from its own clock

    def take(self, event: Event, label: str) -> None:
        """Show one event of the task that is called `label`."""
        bars, name, args, key = self._bars, event.name, event.args, event.task_id
        if key not in self._begun and name in ("started", "progress"):
            self._begun[key] = event.time
            bars.add(key, label)
        if name == "progress" and args and isinstance(args[0], Progress):
            bars.update(key, args[0])
        elif name in ("output", "error_output") and args:
            bars.line(str(args[0]), error=name == "error_output")
        elif name == "retrying" and len(args) > 1:
            when = f"in {args[1]:.1f} s " if args[1] else ""
            bars.line(f"{label}: again {when}after {args[0]}", error=True)
        elif name in ENDS:
            self._ended(event, label)
        elif self._all and name != "started":
            bars.line(f"{label}: {_words(event, self._attended)}")

    def _ended(self, event: Event, label: str) -> None:
        bars, args, key = self._bars, event.args, event.task_id
        note = "" if event.name == "succeeded" or not args else _why(args[0])
        if self._all:
            if key not in self._begun:
                bars.add(key, label)
            if event.name == "succeeded":
                note = _result(args[0] if args else None, event.time - self._begun.get(key, event.time))
        bars.done(key, event.name, note)
        self._begun.pop(key, None)


def _result(value: Any, seconds: float) -> str:
    took = f"after {max(0.0, seconds):.1f} s"
    if value is None:
        return took
    if isinstance(value, RemoteError):
        return f"{took}; its result cannot be shown here: {value}"
    return f"{shown(value)}, {took}"


def _why(value: Any) -> str:
    """What is said of an end that is no success, in a line: an error's type and first line, or how it was stopped."""
    if not isinstance(value, BaseException):
        return str(value)
    kind = getattr(value, "type_name", "") or type(value).__name__
    lines = shown(str(value)).strip().splitlines()
    return f"{kind}: {lines[0]}" if lines else kind


def _words(event: Event, attended: bool) -> str:
    """An event in a line."""
    args = event.args
    match event.name:
        case "question" if len(args) > 1:
            return f"asks: {args[1]}" + ("" if attended else f" (revolve send {event.task_id} answer …)")
        case "log" if len(args) > 2:
            return f"{args[0]} {args[1]}: {args[2]}"
        case "waiting" | "gap" if args:
            return f"{event.name}: {args[0]}" if event.name == "waiting" else f"{args[0]} events were lost"
        case _:
            return f"{event.name} {', '.join(map(shown, args))}".rstrip()


def shown(value: Any) -> str:
    """A value in few characters; whatever its class does."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: repr raised {type(error).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
