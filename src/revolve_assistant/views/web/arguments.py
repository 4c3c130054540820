"""What a task was called with, for who is allowed to see it: a task of this process, a running one, a buried one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ...wire.carry import unpack

if TYPE_CHECKING:
    from ...caller.client import Client

WITHIN = 3.0  # seconds that it may take to find who runs a task
Arguments = list[tuple[str, Any]]


def arguments_of(client: Client, task_id: str) -> Arguments:
    """Names and values, in their order; unpickles what a holder of the secret sent. Blocks for some seconds at most.

    Raises `LookupError`: nobody keeps them any more. Also `Unsupported`, `Unreachable`, `Untrusted`.
    """
    task = client._tasks.get(task_id)
    parcel = task._parcel if task is not None else None
    work = parcel.work if parcel is not None else None
    if work is not None and getattr(work, "live", None) is not None:
        function, args, kwargs = work.live
        return _named(function, args, kwargs)
    if work is not None and getattr(work, "payload", None):
        return _unpacked(work.payload, work.buffers)
    if client._remote and client._engine.lets_go and client._engine.traits.manages:
        from ...caller.desk import desk_of

        desk = desk_of(client)
        try:
            envelope = desk.envelope(desk.find_buried(task_id))
        except LookupError:
            return _unpacked(*client._engine.arguments(_running(client, task_id)))
        return _unpacked(envelope.payload, envelope.buffers)
    raise LookupError("they are not kept once a task has ended")


def _running(client: Client, task_id: str) -> Any:
    """The parcel of a task that runs elsewhere, once it is known where."""
    task = client.attach(task_id)
    with task.events("started") as events:
        while task._end is None and not task.running():
            if events.next(WITHIN) is None:
                break
    if task._parcel is None:
        raise LookupError("they are not kept once a task has ended")
    return task._parcel


def _unpacked(payload: bytes, buffers: Any) -> Arguments:
    try:
        args, kwargs = unpack(payload, buffers)
    except Exception as error:  # of classes that are not here
        raise LookupError(f"they cannot be rebuilt here: {type(error).__name__}: {error}") from error
    return _named(None, args, kwargs)


def _named(function: Any, args: Any, kwargs: Any) -> Arguments:
    names: list[str] = []
    if function is not None:
        try:
            names = list(inspect.signature(function).bind_partial(*args).arguments)
        except (TypeError, ValueError):
            pass
    names = names if len(names) == len(args) else [f"argument {number}" for number in range(1, len(args) + 1)]
    return [*zip(names, args, strict=True), *((str(name), value) for name, value in kwargs.items())]
