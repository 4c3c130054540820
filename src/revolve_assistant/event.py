"""What a running callable says: an `Event`, and the argument of the commonest one, `Progress`."""

from __future__ import annotations

from typing import Any

import msgspec

ENDS = frozenset({"succeeded", "failed", "cancelled", "lost"})
"""Names of the events that end a task; exactly one of them is a task's last event."""

LIFECYCLE = ENDS | {"started", "retrying", "gap", "waiting"}
"""Names that only this library sends."""

MAX_NAME = 64  # characters
MAX_EVENT = 1 << 20  # bytes of one event's encoded arguments


class Progress(msgspec.Struct, frozen=True):
    """How far a task is. `fraction` is 0.0 … 1.0 or None; `done` and `total` count items or are None."""

    fraction: float | None = None
    done: float | None = None
    total: float | None = None
    message: str | None = None

    def __str__(self) -> str:
        parts = []
        if self.fraction is not None:
            parts.append(f"{self.fraction:.0%}")
        if self.done is not None:
            parts.append(f"{self.done:g}/{self.total:g}" if self.total is not None else f"{self.done:g}")
        if self.message:
            parts.append(self.message)
        return " ".join(parts)


class Event(msgspec.Struct, frozen=True):
    """One named message of a task.

    `attempt` counts from 1, `seq` from 1 within an attempt without holes; `time` is the sender's Unix time in
    seconds, for display only.
    """

    task_id: str
    attempt: int
    seq: int
    name: str
    args: tuple[Any, ...]
    time: float
