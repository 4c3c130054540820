"""What the tasks of the matrix do. A module of its own, so that a child which runs them need not import pytest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from revolve_assistant import current_task, emit, track


def plain(count: int) -> int:
    for number in track(range(count), "counting"):
        emit("tick", number, {"square": number * number}, (number, b"\0"))
    return count


def generator(count: int) -> Iterator[int]:
    for number in range(count):
        emit("tick", number, {"square": number * number}, (number, b"\0"))
        yield number
    return count


async def coroutine(count: int) -> int:
    from asyncio import sleep

    for number in range(count):
        emit("tick", number, {"square": number * number}, (number, b"\0"))
        await sleep(0)
    return count


def fails() -> None:
    emit("last", "words")
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer", 2) from error


def waits() -> str:
    emit("idle")
    task = current_task()
    while not task.cancel_requested:
        time.sleep(0.005)
    return "seen"


async def waits_async() -> None:
    from asyncio import sleep

    emit("idle")
    await sleep(60)


def hears() -> Any:
    emit("listening")
    message = current_task().receive(30)
    return message.args if message is not None else None


def dies() -> None:
    emit("dying")
    os.kill(os.getpid(), signal.SIGKILL)
