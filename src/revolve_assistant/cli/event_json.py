"""An event as fields of one JSON object, as `revolve run --json` and `revolve watch --json` write them."""

from __future__ import annotations

from typing import Any

from ..event import Event, Progress
from .run_output import to_text
from .run_report import short


def fields_of(event: Event, error: BaseException | None) -> dict[str, Any]:
    """What is said of an event beside its name and time; `error` is that of an end other than `succeeded`."""
    args = event.args
    match event.name:
        case "succeeded":
            return {"result": args[0] if args else None}
        case "failed" | "lost" | "cancelled":
            return {"error": "" if error is None else short(error)}
        case "output" | "error_output" if args:
            return {"text": args[0]}
        case "progress" if args and isinstance(args[0], Progress):
            progress = args[0]
            return {
                "fraction": progress.fraction,
                "done": progress.done,
                "total": progress.total,
                "message": progress.message,
            }
        case _:
            return {"args": [item if _is_json(item) else to_text(item) for item in args]}


def error_of(event: Event, task: Any) -> BaseException:
    """The error of an end other than `succeeded`."""
    from ..errors import TaskCancelled, TaskLost

    value = event.args[0] if event.args else None
    if isinstance(value, BaseException):
        return value
    if task is not None and event.name != "cancelled":
        try:
            found: BaseException | None = task.exception(timeout=0)
        except BaseException:
            found = None
        if found is not None:
            return found
    return TaskLost(to_text(value)) if event.name == "lost" else TaskCancelled(f"by {to_text(value)}")


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, str, list, dict, float))
