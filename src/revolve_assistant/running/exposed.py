"""What a child does for an exposed function: plain bytes in, a call, plain bytes out. Nothing is unpickled of a caller.

workload ──▶ a JSON array: positional arguments │ an object: keywords │ anything else: one bytes argument
result   ◀── bytes and str as they are, all else as JSON
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import msgspec

from ..errors import NotCarriable, UnknownTask
from ..wire.carry import kind_of
from .api import current_task
from .body import run, run_async


def serve(name: str, target: str, workload: bytes) -> bytes:
    """Call the function at `module:qualname`, step through it if it is a generator, run it if it is a coroutine.

    Raises `UnknownTask` when it cannot be imported, `NotCarriable` when JSON cannot hold the result, and what the call
    raises.
    """
    fn = _load(name, target)
    args, kwargs = arguments(workload)
    kind = kind_of(fn)
    running = current_task()
    if kind in ("plain", "generator"):
        value = run(running, kind, fn, args, kwargs)
    else:
        import asyncio

        value = asyncio.run(run_async(running, kind, fn, args, kwargs))
    return result(name, value)


def _load(name: str, target: str) -> Any:
    module, _, path = target.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UnknownTask(f"{name} is exposed as {target}, which this worker cannot import: {error}") from error
    if not callable(found):
        raise UnknownTask(f"{name} is exposed as {target}, which is no callable but {type(found).__name__}")
    return found


def arguments(workload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call."""
    if workload.lstrip()[:1] in (b"[", b"{"):
        try:
            value = msgspec.json.decode(workload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        else:
            return (tuple(value), {}) if isinstance(value, list) else ((), value)
    return (workload,), {}


def result(name: str, value: Any) -> bytes:
    """What the caller gets."""
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise NotCarriable(f"the result of {name} is no text that UTF-8 can hold: {error}") from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotCarriable(f"the result of {name} is no bytes, no text, and nothing for JSON: {error}") from None
