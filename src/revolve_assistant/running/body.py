"""Runs one callable of any kind and tells its result from its failure; the same in a child and in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .running import Running


def run(running: Running, kind: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a plain function, or step through a generator: what it yields are events, what it returns the result."""
    value = fn(*args, **kwargs)
    if kind == "generator":
        return step(running, value)
    return value


def step(running: Running, generator: Any) -> Any:
    """Emit every value as `item`; return the generator's return value. Closes it when asked to stop."""
    try:
        while True:
            try:
                value = next(generator)
            except StopIteration as end:
                return end.value
            running.item(value)
            running.check()
    finally:
        generator.close()


async def run_async(
    running: Running, kind: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`run` for coroutine functions and asynchronous generators (whose result is None)."""
    if kind == "async":
        return await fn(*args, **kwargs)
    generator = fn(*args, **kwargs)
    try:
        async for value in generator:
            running.item(value)
            running.check()
    finally:
        await generator.aclose()
    return None
