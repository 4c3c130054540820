"""What the tasks of test_timeouts do, apart so that children need not import pytest."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from revolve_assistant import current_task, emit

NEVER = 1000.0


def hear() -> Any:
    message = current_task().receive()
    return message and message.name


def nothing() -> None:
    pass


def loop() -> None:
    while True:
        pass


def swallow() -> None:
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


async def idle() -> None:
    emit("here")
    try:
        await asyncio.sleep(60)
    finally:
        emit("cleaned up")


async def looking() -> None:
    emit("here")
    while not current_task().cancel_requested:
        await asyncio.sleep(0.001)


async def receiving_too() -> None:
    emit("here")
    await current_task().receive_async()


async def yielding_too() -> Any:
    emit("here")
    while True:
        yield 1
        await asyncio.sleep(0)


async def stubborn(path: str) -> str:
    emit("here")
    while not os.path.exists(path):
        try:
            await asyncio.sleep(0.01)
        except BaseException:
            emit("swallowed")
    return "ended"


async def blocking() -> None:
    emit("here")
    time.sleep(60)


async def once_more() -> str:
    if current_task().attempt > 1:
        return "again"
    emit("here")
    await asyncio.sleep(NEVER)
    return ""
