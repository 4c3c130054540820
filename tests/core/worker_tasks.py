"""What the tasks of test_worker do, apart so that children need not import pytest."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from revolve_assistant import Retry, ask, current_task, emit, report, track

LONG = 30.0  # seconds that nothing here takes


def double(value: Any) -> Any:
    return value * 2


def story() -> str:
    emit("chapter", 1, "one", b"\0", None, 2.5, [1, {"a": 2}])
    report(0.5, "half")
    emit("own", Own(3))
    return "end"


class Own:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


def counting(count: int) -> Iterator[int]:
    yield from range(count)
    return count


async def waiting(value: str) -> str:
    emit("awaiting", value)
    await asyncio.sleep(0)
    return value


async def talk_async() -> Any:
    running = current_task()
    emit("ready")
    return (await running.receive_async(LONG)).args[0]


def fail(text: str = "on purpose") -> None:
    raise ValueError(text)


def tracked(count: int) -> int:
    return sum(track(range(count), "adding"))


def die(folder: str) -> None:
    Path(folder, f"{time.monotonic_ns()}").touch()
    emit("dying", os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def until_stopped() -> str:
    running = current_task()
    emit("up")
    while not running.cancel_requested:
        time.sleep(0.005)
    return "stopped nicely"


def until_interrupted() -> None:
    emit("up")
    while True:
        time.sleep(0.005)


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    emit("up")
    while True:
        try:
            while True:
                time.sleep(0.005)
        except BaseException:
            emit("no")


def conversation() -> list[Any]:
    running = current_task()
    emit("up")
    found = [ask("name?", timeout=LONG)]
    while len(found) < 4:
        found.append(running.receive(LONG).args[0])
    return found


def twice(folder: str) -> int:
    """Fails at the first attempt."""
    marks = len(os.listdir(folder))
    Path(folder, str(marks)).touch()
    emit("attempt", marks)
    if not marks:
        raise OSError("not yet")
    return current_task().attempt


def twice_after(folder: str) -> int:
    if not os.listdir(folder):
        Path(folder, "tried").touch()
        raise Retry(after=0.01)
    return 2


def items_twice(folder: str) -> Iterator[int]:
    first = not os.listdir(folder)
    Path(folder, "tried").touch()
    yield 1
    if first:
        raise OSError("not yet")
    yield 2


def unpicklable() -> Any:
    return threading.Lock()


def printing() -> str:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    logging.getLogger("printing").warning("to the log")
    return "printed"


def big(size: int) -> bytes:
    emit("big", b"x" * min(size, 1 << 19))
    return b"y" * size


def waits_for(path: str) -> str:
    emit("up")
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def silent() -> None:
    emit("up")
    time.sleep(60)


class Grumpy(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("this error does not travel")


def raise_grumpy() -> None:
    raise Grumpy("grr")


def same(value: Any) -> Any:
    return value


def big_alone(size: int) -> bytes:
    emit("small")
    return b"y" * size


def hears_twice(folder: str) -> Any:
    if not os.listdir(folder):
        Path(folder, "tried").touch()
        raise OSError("not yet")
    return current_task().receive(LONG).args[0]
