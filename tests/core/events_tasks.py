"""What the tasks of test_events do, apart so that children need not import pytest."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import threading
import time
from typing import Any

from revolve_assistant import NotCarriable, UsageError, current_task, emit


def hold_twice(*events: tuple[Any, ...]) -> None:
    """As `hold`, but says nothing before it is told to: so nobody comes too late to hear it."""
    current_task().receive()
    hold(*events)


def hold(*events: Any) -> Any:
    """Emit, then wait to be sent something; the gate."""
    for event in events:
        emit(*event)
    return current_task().receive()


async def hold_async() -> Any:
    return await current_task().receive_async()


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


class Colour(enum.IntEnum):
    RED = 1


def say_each(values: list[Any]) -> None:
    for value in values:
        emit("value", value)
    emit("none")
    emit("many", *values)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def say_and_change() -> None:
    mine = [1]
    emit("value", mine)
    mine.append(2)
    for depth in (31, 32, 33, 34, 200):
        emit("deep", nested(depth))
    try:
        emit("deep", nested(100_000))
    except NotCarriable as error:
        emit("refused", str(error))


class Mute:
    def __reduce__(self) -> Any:
        raise ValueError("I stay")


class Odd:
    def __init__(self, text: str | None) -> None:
        self.text = text

    def __repr__(self) -> str:
        if self.text is None:
            raise RuntimeError("no repr")
        return self.text


def say_wrong() -> list[tuple[str, str]]:
    heard = []
    wrong: list[tuple[Any, ...]] = [
        ("x", b"a" * (1 << 20)), ("x", Point(1, "a" * (1 << 20))), ("x", Mute()), ("x", threading.Lock()),
        ("",), ("a\nb",), ("x" * 65,), (5,), ("a\udc80",), ("succeeded", 1), ("started",), ("gap", 1), ("retrying",),
    ]  # fmt: skip
    for event in wrong:
        try:
            emit(*event)
            heard.append(("", ""))
        except UsageError as error:
            heard.append((type(error).__name__, str(error)))
    emit("x", b"a" * ((1 << 20) - 100))
    emit("ö" * 64, Odd(None), Odd("bad \udc80"), Odd("long" * 100))
    return heard


class Unwelcome:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


def say_unwelcome() -> None:
    emit("x", Unwelcome(), 5)


def count(number: int, *more: Any) -> int:
    for index in range(number):
        emit("n", index, *more)
    return number


def tick(number: int) -> None:
    for _ in range(number):
        emit("tick", 1)


def dialogue(rounds: int) -> int:
    """Speaks in the rhythm in which an event can stay behind: after one sent, within 1 ms."""
    task, missed = current_task(), 0
    pauses = itertools.cycle([(0.0010 + 0.0001 * k, 0.0002 + 0.0001 * (k % 6)) for k in range(15)])
    for index, (long, short) in zip(range(rounds), pauses, strict=False):
        for name, seconds in (("a", long), ("b", short), ("c", 0.0)):
            emit(name, index)
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass
        if task.receive(timeout=2.0) is None:
            missed += 1
    return missed


def chatter() -> None:
    for index in itertools.count():
        emit("n", index)


def fail() -> None:
    raise ValueError("mine")
