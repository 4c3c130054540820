"""What a task said, as a test expects it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import TaskCancelled, UsageError
from ..event import ENDS, LIFECYCLE, Event

if TYPE_CHECKING:
    from ..caller.task import Task

SHOWN = 30  # lines of a difference


def assert_events(task: Task[Any], expected: Iterable[Any], *, timeout: float = 10.0) -> list[Event]:
    """Wait for the task's end and compare what it said, in order; the events that were compared.

    Each of `expected` is a name, whatever the event's arguments are; a tuple of a name and its arguments; or `...`,
    which stands for any number of events, also none. The events of the lifecycle and `progress` are left out, except
    for those whose names are expected. The task's failure is none of this. Blocks up to `timeout` seconds. Raises
    `AssertionError` with both lists side by side, `UsageError` for an expectation that is none of these.
    """
    __tracebackhide__ = True
    wanted = [_check(each) for each in expected]
    try:
        with contextlib.suppress(TaskCancelled):
            task.exception(timeout)
    except TimeoutError:
        raise AssertionError(f"{_title(task)} has not ended within {timeout:g} s: it is {task.state}") from None
    named = {_name(each) for each in wanted if each is not ...}
    left_out = (LIFECYCLE | {"progress"}) - {"gap"} - named
    every = list(task.events())
    events = [event for event in every if event.name not in left_out]
    if not _match(events, wanted):
        end = next((event for event in reversed(every) if event.name in ENDS), None)
        raise AssertionError(_difference(task, events, wanted, end))
    return events


def _check(each: Any) -> Any:
    if each is ... or isinstance(each, str):
        return each
    if isinstance(each, tuple) and each and isinstance(each[0], str):
        return each
    raise UsageError(f"an expected event is 'name', ('name', *args) or ..., not {each!r:.100}")


def _name(each: Any) -> str:
    return each if isinstance(each, str) else str(each[0])


def _fits(event: Event, each: Any) -> bool:
    return event.name == _name(each) and (isinstance(each, str) or bool(event.args == each[1:]))


def _match(events: Sequence[Event], wanted: Sequence[Any]) -> bool:
    """As a shell matches `*`: what follows a `...` is found as early as possible."""
    at = place = 0
    again: tuple[int, int] | None = None  # where to go on when the last `...` has to stand for one more
    while at < len(events) or place < len(wanted):
        if place < len(wanted) and wanted[place] is ...:
            again = (at, place)
            place += 1
        elif place < len(wanted) and at < len(events) and _fits(events[at], wanted[place]):
            at += 1
            place += 1
        elif again is not None and again[0] < len(events):
            again = (again[0] + 1, again[1])
            at, place = again[0], again[1] + 1
        else:
            return False
    return True


def _difference(task: Task[Any], events: Sequence[Event], wanted: Sequence[Any], end: Event | None) -> str:
    left = [_short("..." if each is ... else repr(each) if isinstance(each, str) else _call(each)) for each in wanted]
    right = [_short(_call((event.name, *event.args))) for event in events]
    first = 0
    while first < min(len(wanted), len(events)) and wanted[first] is not ... and _fits(events[first], wanted[first]):
        first += 1
    width = max((len(each) for each in left), default=0)
    lines = []
    for number in range(max(len(left), len(right))):
        mark = ">" if number == first and ... not in wanted[:first] else " "
        one = left[number] if number < len(left) else "(no more)" if number == len(left) else ""
        two = right[number] if number < len(right) else "(no more)" if number == len(right) else ""
        lines.append(f"{mark} {one:{max(width, 9)}}   {two}".rstrip())
    begin = max(0, first - SHOWN // 2)
    shown = lines[begin : begin + SHOWN]
    if begin:
        shown.insert(0, f"  … {begin} that are as expected")
    if len(lines) > begin + SHOWN:
        shown.append(f"  … {len(lines) - begin - SHOWN} more")
    head = f"  {'expected':{max(width, 9)}}   said"
    said = f"{len(events)} event{'s' * (len(events) != 1)}"
    ended = "" if end is None else f"\nit ended as {_short(_call((end.name, *end.args)))}"
    return "\n".join([f"{_title(task)} said {said}, not as expected:", head, *shown]) + ended


def _title(task: Task[Any]) -> str:
    return f"task {task.name} ({task.id})"


def _call(parts: tuple[Any, ...]) -> str:
    return f"({', '.join(map(_shown, parts))}{',' * (len(parts) == 1)})"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: repr raised {type(error).__name__}>"


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
