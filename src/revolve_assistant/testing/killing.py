"""A child that is killed right after one of its events: the initializer of such children.

    emit(…) ─▶ outbox, in memory shared with the supervisor ─▶ SIGKILL of the child by itself ─▶ TaskLost, or a retry

What a child has put into its outbox arrives although it is killed, so the event arrives and nothing that follows does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from ..event import Progress
from ..running.running import Running


def begin_killing(
    number: int,
    name: str | None,
    times: int,
    mark: str,
    initializer: Callable[..., Any] | None,
    initargs: tuple[Any, ...],
) -> Any:
    """In a child: kill it at the `number`-th event of a task, in each of its first `times` attempts.

    `name`: events of that name are counted; None: all but `progress`. Before the child is killed it adds a line to the
    file `mark`. Returns what `initializer(*initargs)` does.
    """
    seen: dict[str, int] = {}  # by task
    emit, progress = Running.emit, Running.progress

    def count(running: Running, said: str) -> None:
        if said != name and (name is not None or said == "progress"):
            return
        if running.attempt > times or running._port is None:
            return
        seen[running.id] = seen.get(running.id, 0) + 1
        if seen[running.id] == number:
            with open(mark, "a", encoding="utf-8") as file:
                file.write(f"{running.id} {running.attempt} {said}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def emit_and_count(running: Running, said: str, *args: Any) -> None:
        emit(running, said, *args)
        if not (said == "progress" and len(args) == 1 and type(args[0]) is Progress):  # else it is counted below
            count(running, said)

    def progress_and_count(running: Running, value: Progress) -> None:
        progress(running, value)
        count(running, "progress")

    running_class: Any = Running
    running_class.emit, running_class.progress = emit_and_count, progress_and_count
    return initializer(*initargs) if initializer is not None else None
