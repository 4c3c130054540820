"""What the tasks of test_async do, apart so that children need not import pytest."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

from revolve_assistant import UsageError, current_task, emit, report


def hold(value: Any = None) -> Any:
    emit("holds")
    current_task().receive()
    return value


def count(number: int) -> int:
    for index in range(number):
        emit("n", index)
    return number


def yields(number: int) -> Iterator[int]:
    yield from range(number)
    return


def fail() -> None:
    raise ValueError("mine")


def yields_and_fails() -> Iterator[int]:
    yield current_task().attempt
    current_task().receive()
    if current_task().attempt == 1:
        raise ValueError
    return current_task().attempt


async def speaks(value: int) -> int:
    emit("before", value)
    await asyncio.sleep(0)
    report(0.5)
    name = (await current_task().receive_async()).name
    emit("after", name)
    answer = await current_task().ask_async("well?", timeout=20)
    return value + int(answer)


async def blocks() -> list[str]:
    said = []
    for call in (current_task().receive, functools.partial(current_task().ask, "?")):
        try:
            call()
        except UsageError as error:
            said.append(str(error))
    return said


async def yields_async(number: int) -> AsyncIterator[int]:
    for index in range(number):
        yield index
        await asyncio.sleep(0)
