"""What the tasks of test_cancel do, apart so that children need not import pytest."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from revolve_assistant import ask, current_task, emit, track


def hear() -> Any:
    message = current_task().receive()
    return message and message.name


def swallow(*ignored: int) -> None:
    """Nothing but a signal that is not handled ends this."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    said = False
    while True:
        try:
            said = said or emit("here") is None  # in here, where the exception may come at once
            time.sleep(60)
        except BaseException:
            continue


def hold_the_lock(*ignored: int) -> None:
    """C code that never lets go of the interpreter, nor looks for signals."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    said = False
    while True:
        try:
            said = said or emit("here") is None
            sum(itertools.repeat(0))
        except BaseException:
            continue


def look() -> str:
    emit("here")
    while not current_task().cancel_requested:
        time.sleep(0.001)
    return "tidied up"


def step() -> None:
    emit("here")
    for _ in track(itertools.count()):
        pass


def check() -> None:
    emit("here")
    while True:
        current_task().check()


def yielding() -> Iterator[int]:
    emit("here")
    yield from itertools.count()


def asking() -> None:
    emit("here")
    ask("well?")


def receiving() -> None:
    emit("here")
    current_task().receive()


def catching() -> None:
    while True:
        try:
            emit("here")
            current_task().receive()
        except Exception:
            continue


def wait_for_a_lock() -> None:
    with (lock := threading.Lock()):
        lock.acquire()


def wait_for_a_queue() -> None:
    queue.Queue[int]().get()


def wait_for_a_pipe() -> None:
    os.read(os.pipe()[0], 1)


def wait_for_a_program() -> None:
    subprocess.run(["sleep", "60"], check=False)


def loop() -> None:
    while True:
        pass


def catch_exceptions() -> None:
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue
