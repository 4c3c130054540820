"""What the tasks of test_task_options do, apart so that children need not import pytest."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from revolve_assistant import Retry, current_task, defaults, emit, report


def hold(value: Any = None) -> Any:
    current_task().receive()
    return value


def note(path: Path, text: object) -> None:
    """One line more; whole, whoever writes at the same time."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def fail_until(last: int, kind: type[BaseException] = ValueError) -> int:
    attempt = current_task().attempt
    emit("try", attempt)
    if attempt < last:
        raise kind(f"attempt {attempt}")
    return attempt


class Own(ValueError):
    def __init__(self, *, text: str) -> None:  # pickle cannot make it again
        super().__init__(text)


def fail_own() -> int:
    if current_task().attempt == 1:
        raise Own(text="mine")
    return current_task().attempt


def ask_again(after: float | None, last: int = 2) -> int:
    if current_task().attempt < last:
        raise Retry("not yet", after=after)
    return current_task().attempt


async def fail_async() -> int:
    return fail_until(2)


def fail_yielding() -> Iterator[int]:
    yield current_task().attempt
    return fail_until(2)


def die_until(last: int) -> int:
    if current_task().attempt < last:
        emit("last words")
        os.kill(os.getpid(), signal.SIGKILL)
    return current_task().attempt


def report_and_fail() -> str:
    if current_task().attempt == 1:
        report(0.5)
        raise ValueError
    message = current_task().receive()
    return message.name if message else ""


def hear_second() -> Any:
    if current_task().attempt == 1:
        raise ValueError
    return current_task().receive(timeout=5) is not None


@defaults(retries=1, backoff=0)
def modest() -> int:
    return fail_until(2)


@defaults(capture=True)
def talkative() -> None:
    print("said", end="")


def hold_then_fail() -> int:
    current_task().receive()
    if current_task().attempt == 1:
        raise ValueError
    return current_task().attempt


def wait_first(ways: tuple[str, ...]) -> int:
    """Waits for ever in its first attempts."""
    attempt = current_task().attempt
    if attempt <= len(ways):
        emit("waits", ways[attempt - 1])
        current_task().receive()
    return attempt


def busy(rounds: int, pause: float) -> int:
    for index in range(rounds):
        emit("busy", index)
        current_task().receive(timeout=pause)
    current_task().receive()
    return rounds
