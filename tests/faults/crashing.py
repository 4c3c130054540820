"""What the tasks of test_crashes do, apart so that children need not import pytest."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any

from revolve_assistant import current_task, emit


def crash(way: str) -> None:
    """Say where we are, then go that way."""
    emit("here", way)
    if way == "raise":
        raise ValueError("crash")
    if way == "exit":
        sys.exit(3)
    if way.startswith("_exit"):
        os._exit(int(way[-1]))
    if way == "segfault":
        ctypes.string_at(0)
    if way.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, way))
    if way.startswith("exec"):
        os.execv("/bin/sh", ["sh", "-c", way[5:]])
    time.sleep(60)


class AtPickling:
    def __init__(self, way: str) -> None:
        self.way = way

    def __reduce__(self) -> Any:
        crash(self.way)


class AtUnpickling:
    def __init__(self, way: str) -> None:
        self.way = way

    def __reduce__(self) -> Any:
        return crash, (self.way,)


def square(number: int) -> int:
    return number * number


def hear() -> Any:
    message = current_task().receive()
    return message and message.name


def start_a_grandchild() -> None:
    emit("pid", subprocess.Popen(["sleep", "60"]).pid)
