"""What the tasks of test_metrics do, apart so that children need not import pytest."""

from __future__ import annotations

import os
import signal
import time

from revolve_assistant import current_task, emit


def failing() -> None:
    raise ValueError("no such folder")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def talking(count: int) -> int:
    for number in range(count):
        emit("word", number)
    return count


def held(path: str) -> None:
    emit("up")
    while not os.path.exists(path):
        time.sleep(0.005)


def deaf_until(path: str) -> None:
    emit("up")
    while not current_task().cancel_requested:
        time.sleep(0.005)
