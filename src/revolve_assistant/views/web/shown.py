"""What a dashboard is told of tasks and events, as JSON; and what it is not told unless it was allowed.

Hidden are arguments, results, errors' texts and what events of the callable's own say (`HIDDEN`); their names are not.
Output, log lines, progress and questions are what a callable makes for people to see, and are told. Whatever is told
has its control characters shown as such.
"""

from __future__ import annotations

import pprint
from collections.abc import Collection
from typing import Any

import msgspec

from ...errors import UsageError
from ...event import ENDS, Event, Progress
from ..board import QueueState, TaskState
from ..escape import printable
from ..feed import View

HIDDEN = ("arguments", "results", "errors", "events")
"""What has to be allowed to be shown."""
LONGEST = 20_000  # characters of a value or an error
LINE = 4000  # characters of a line of output
encode = msgspec.json.Encoder().encode


def allowed(show: Collection[str] | str) -> frozenset[str]:
    """The names in `show`, checked. Raises `UsageError`."""
    names = {name.strip() for name in (show.split(",") if isinstance(show, str) else show)} - {""}
    if "all" in names:
        return frozenset(HIDDEN)
    for name in names:
        if name not in HIDDEN:
            raise UsageError(f"show={name!r}: there are {', '.join(HIDDEN)}, and all")
    return frozenset(names)


def row(task: TaskState, show: frozenset[str]) -> bytes:
    """A task as a line of the list: a JSON array, whose places `page/store.js` knows."""
    return encode(
        (
            task.id,
            printable(task.name),
            printable(task.queue),
            printable(task.worker),
            task.state,
            task.attempt,
            _progress(task.progress) if task.progress is not None else None,
            round(task.started, 3),
            round(task.ended, 3),
            task.buried,
            printable(task.reason) if "errors" in show else "",
        )
    )


def _progress(at: Progress) -> tuple[Any, ...]:
    return at.fraction, at.done, at.total, printable(at.message[:500]) if at.message else ""


def places(view: View) -> dict[str, Any]:
    """What there is beside the tasks; but for `time` it is the same as long as nothing happens."""
    return {
        "workers": [
            {
                "name": printable(each.name),
                "host": printable(each.host),
                "pid": each.pid,
                "version": printable(each.version),
                "state": printable(each.state),
                "pool": printable(each.pool),
                "queues": [printable(name) for name in each.queues],
                "concurrency": each.concurrency,
                "running": sum(each.busy.values()),
                "tasks": [[one.id, printable(one.name), one.since] for one in each.running],
                "settled": each.settled,
                "rate": each.rate,
                "started": each.started,
                "seen": each.time,
            }
            for each in view.workers
        ],
        "queues": [_queue(each) for each in view.queues],
        "ends": view.ends,
        "dropped": view.dropped,
        "trouble": printable(view.trouble),
    }


def _queue(each: QueueState) -> dict[str, Any]:
    return {**msgspec.structs.asdict(each), "queue": printable(each.queue)}


def told(event: Event, show: frozenset[str]) -> dict[str, Any]:
    """An event of a task as an object."""
    name, args = event.name, event.args
    found: dict[str, Any] = {"event": printable(name), "attempt": event.attempt, "time": round(event.time, 3)}
    if name == "progress" and args and isinstance(args[0], Progress):
        found["progress"] = _progress(args[0])
    elif name in ("output", "error_output") and args:
        found["text"] = _line(args[0])
    elif name == "log" and len(args) > 2:
        found |= {"level": _line(args[0]), "text": _line(args[2])}
    elif name == "question" and len(args) > 1:
        found |= {"question": str(args[0]), "text": _line(args[1])}
    elif name == "gap" and args:
        found["count"] = int(args[0])
    elif name == "started" and args:
        found["worker"] = printable(str(args[0]))
    elif name == "retrying" or name == "waiting":
        if len(args) > 1:
            found["delay"] = float(args[1])
        if args and "errors" in show:
            found["reason"] = _line(args[0])
    elif name == "succeeded":
        if args and "results" in show:
            found["result"] = text_of(args[0])
    elif name == "cancelled":
        found["rung"] = _line(args[0]) if args else ""
    elif name in ENDS:
        if args and "errors" in show:
            found["error"] = error_of(args[0])
    elif name == "item" and args:
        found["text"] = _line(text_of(args[0])) if "results" in show else None
    elif "events" in show:
        found["args"] = [_line(text_of(each)) for each in args]
    return found


def _line(value: Any) -> str:
    text = value if isinstance(value, str) else text_of(value)
    text = text if len(text) <= LINE else f"{text[:LINE]}… ({len(text):,} characters)"
    return printable(text, keep_newlines=True)


def text_of(value: Any) -> str:
    """A value as people read it, whatever its class does."""
    try:
        text = value if isinstance(value, str) else pprint.pformat(value, width=100, sort_dicts=False, compact=True)
    except Exception as error:
        text = f"<{type(value).__name__}: repr raised {type(error).__name__}>"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"
    return printable(text, keep_newlines=True)


def error_of(error: Any) -> dict[str, str]:
    """An error's headline and, where there is one, the traceback of the process that raised it."""
    if not isinstance(error, BaseException):
        return {"headline": text_of(error), "traceback": ""}
    from ...wire.remote import remote_traceback

    kind = getattr(error, "type_name", "") or type(error).__name__
    try:
        words = str(error)
    except Exception as problem:
        words = f"<str raised {type(problem).__name__}>"
    return {"headline": text_of(f"{kind}: {words}"), "traceback": text_of(remote_traceback(error) or "")}
