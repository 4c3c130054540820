"""What the tasks of test_map_chunks do, apart so that children need not import pytest."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from revolve_assistant import current_task


class Awkward:
    """Can be pickled, but not be rebuilt."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise RuntimeError("never again")


def half(number: int) -> Any:
    if number == 3:
        raise ValueError("three has no half")
    if number == 5:
        return Awkward()
    if number == 7:
        return threading.Lock()
    if number == 9:
        raise SystemExit(9)
    return [number / 2]


def whose(number: int) -> tuple[int, str, int]:
    task = current_task()
    return number, str(task.id), os.getpid()


def die_at(number: int) -> int:
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def note(folder: str, number: int) -> int:
    Path(folder, f"{number}").touch()
    while number >= 3 and not Path(folder, "go").exists():
        threading.Event().wait(0.01)
    return number
