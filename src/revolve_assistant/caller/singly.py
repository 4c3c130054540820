"""`map` with a task for each item."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import Overloaded
from .options import Options
from .waiting import in_loop

if TYPE_CHECKING:
    from .client import Client
    from .task import Task


def submit_all(client: Client, options: Options, fn: Callable[..., Any], items: list[Any]) -> list[Task[Any]]:
    """A task for each item; on a queue, as fast as it acknowledges them."""
    tasks: list[Task[Any]] = []
    for item in items:
        tasks.append(patiently(client, options, fn, item, tasks[-1] if tasks else None))
    return tasks


def patiently(
    client: Client, options: Options, fn: Callable[..., Any], args: tuple[Any, ...], last: Task[Any] | None
) -> Task[Any]:
    """Submit; while too many wait to be acknowledged, until the `last` one is. Raises `Overloaded` in an event loop."""
    while True:
        try:
            return client._submit(options, fn, args, {})
        except Overloaded:
            if last is None or in_loop():
                raise
            last.queued(client._patience)


def results_of(tasks: list[Task[Any]], deadline: float | None, errors: str) -> Generator[Any, None, None]:
    """The results in order, as they come; what has not started is cancelled when it is closed early."""
    tasks.reverse()
    try:
        while tasks:
            task = tasks[-1]
            await_end(task, deadline)
            tasks.pop()
            try:
                box = [task.result(0)]
            except Exception as error:
                if errors == "raise":
                    raise
                box = [error]
            del task
            yield box.pop()
    finally:
        take_back(tasks)


def await_end(task: Task[Any], deadline: float | None) -> None:
    """Block until it has ended. Raises `TimeoutError`, at the `deadline` in monotonic seconds; `Unreachable`."""
    if not task.done():
        task._wait(None if deadline is None else deadline - monotonic())


def take_back(tasks: list[Task[Any]]) -> None:
    """Cancel those that have not started."""
    for task in tasks:
        if not task._foreign and not task.running():
            task.cancel()
