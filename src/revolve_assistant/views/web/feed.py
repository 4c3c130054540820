"""A task's events from a place on, complete and in order, for one viewer; and what they look like as JSON.

A place is `attempt.number`: the number counts the events of an attempt that last, which is all but progress. Progress
is replaced by newer progress at several points on its way, so no two readers count the same of it; it takes the place
of the event before it, and after a return the newest one is told again, which changes nothing. With the end `e` is
added: who comes back from there has all.

    log:     started  progress  output  progress  progress  output  succeeded
    place:     1.1      1.1       1.2      1.2       1.2      1.3      1.4e        Last-Event-ID: 1.2 ─▶ goes on at 1.3

On a queue each viewer reads the task's own log from its first event on, so that any web process can go on where another
one was. A viewer that is too slow for this process's memory loses its place in the buffer, not in the log: it is read
again from there. With an engine of this process there is no such log, but the buffer, whose numbers never change: there
the number is the event's `seq`, and what was trimmed is a `gap`.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from ...caller.attached import attach
from ...event import ENDS, Event, Progress

if TYPE_CHECKING:
    from ...caller.client import Client
    from ...caller.stream import Events

PLAIN = frozenset({"started", "progress", "output", "error_output", "log", "question", "retrying", "waiting", "gap"})
"""Events that are told with their arguments whoever looks."""
WITHIN = 5.0  # seconds that a task may take to get to where it is seen
_PLACE = re.compile(r"(\d{1,9})\.(\d{1,12})(e?)\Z")


class Place(NamedTuple):
    """Where a viewer is in the events of a task."""

    attempt: int = 0
    number: int = 0
    ended: bool = False

    def __str__(self) -> str:
        return f"{self.attempt}.{self.number}{'e' if self.ended else ''}"


def places(text: str, count: int) -> list[Place]:
    """The places of `count` tasks that a `Last-Event-ID` names; what is no such thing is the beginning."""
    parts = text.split("_") if len(text) < 100 * count else []
    found = [_PLACE.match(part) for part in parts]
    if len(found) != count or not all(found):
        return [Place()] * count
    return [Place(int(each[1]), int(each[2]), bool(each[3])) for each in found if each]


async def follow(client: Client, task_id: str, after: Place) -> AsyncIterator[tuple[Place, Event]]:
    """The events after a place, then live, the end last. Cancelling it never cancels the work.

    A `gap` with the place's number says that what comes next may not be what was next.
    """
    place = after
    while not place.ended:
        own = _has_log(client)
        counted = Place()
        again = False
        with _fresh(client, task_id) if own else client.attach(task_id).events() as events:
            async for event in events:
                trimmed = event.name == "gap" and event.seq == 0
                if own and trimmed:  # by this process: the log still has it
                    again = True
                    break
                counted = _count(counted, event, own)
                if event.name == "gap" and (counted > place or trimmed):
                    place = max(place, counted)
                    yield place, event
                elif counted > place:
                    place = counted
                    yield place, event
                elif event.name == "progress" and counted == place:
                    yield place, event
        if not again:
            return


def _count(counted: Place, event: Event, own: bool) -> Place:
    if event.name == "gap" and event.seq == 0:
        return Place(event.attempt, counted.number if event.attempt == counted.attempt else 0)
    number = counted.number if event.attempt == counted.attempt else 0
    if not own:
        number = event.seq
    elif event.name != "progress":
        number += 1
    return Place(event.attempt, number, event.name in ENDS)


def _has_log(client: Client) -> bool:
    return bool(client._remote and client._engine.messenger.traits.replays)


def _fresh(client: Client, task_id: str) -> Events:
    """The task's events from the first one on, whoever else reads it here."""
    known = client._known.get(task_id)
    begun: list[Events] = []
    task = attach(client, task_id, WITHIN, lambda each: begun.append(each.events()))
    if known is not None:
        client._known[task_id] = known
    elif client._known.get(task_id) is task:
        del client._known[task_id]  # who attaches hereafter wants the whole history as well
    if not task._attached:  # no task can be called that
        return task.events()
    client._known[f"{task_id} {id(task):x}"] = task  # so that it ends when the client is closed
    return begun[0]


def fields(event: Event, show: Collection[str]) -> dict[str, Any] | None:
    """An event as an object of JSON; None: this viewer is not told of it. `show`: names that are told in full."""
    name, args = event.name, event.args
    found: dict[str, Any] = {"task": event.task_id, "event": name, "attempt": event.attempt, "time": event.time}
    if name == "progress" and args and isinstance(args[0], Progress):
        at = args[0]
        parts = {"fraction": at.fraction, "done": at.done, "total": at.total, "message": at.message}
        return found | {key: plain(value) for key, value in parts.items()}
    if name in ("output", "error_output") and args:
        return found | {"text": _text(args[0])}
    if name == "log" and len(args) > 2:
        return found | {"level": plain(args[0]), "text": _text(args[2])}
    if name == "question" and len(args) > 1:
        return found | {"question": plain(args[0]), "text": _text(args[1])}
    if name == "retrying":
        reason = {"reason": _text(args[0])} if args and name in show else {}
        return found | reason | {"delay": plain(args[1]) if len(args) > 1 else 0.0}
    if name == "gap":
        return found | {"count": plain(args[0]) if args else 0}
    if name in ENDS:
        if name not in show:
            return found
        value = args[0] if args else None
        key = "result" if name == "succeeded" else "error"
        return found | {key: plain(value) if not isinstance(value, BaseException) else _error(value)}
    if name in ("started", "waiting"):
        return found
    return found | {"args": [plain(each) for each in args]} if name in show else None


def plain(value: Any, depth: int = 8) -> Any:
    """A value as JSON can hold it; what it cannot hold becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 53) < value < 1 << 53 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return str(value)
    if depth and isinstance(value, (list, tuple)):
        return [plain(each, depth - 1) for each in value]
    if depth and isinstance(value, dict):
        return {_text(key): plain(each, depth - 1) for key, each in value.items()}
    return _text(value)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}: str raised {type(error).__name__}>"


def _error(error: BaseException) -> str:
    kind = getattr(error, "type_name", "") or type(error).__name__
    return f"{kind}: {_text(error)}"
