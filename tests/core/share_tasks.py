"""What the tasks of test_share do, apart so that children need not import pytest."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from revolve_assistant import current_task, emit


def hold(value: Any = None) -> Any:
    emit("holds")
    current_task().receive()
    return value


def look(array: Any) -> tuple[Any, ...]:
    return array.sum(), array.dtype.str, array.shape, array.flags.writeable, array.flags.c_contiguous


class Model:
    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and bool((self.weights == other.weights).all())

    __hash__ = None  # type: ignore[assignment]


def where(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def deep(items: list[Any]) -> int:
    return int(items[1]["a"][0][-1])


def nested(outer: Any) -> tuple[float, bool]:
    arrays = list(outer.values()) if isinstance(outer, dict) else [outer]
    return sum(float(array.sum()) for array in arrays), all(array is arrays[0] for array in arrays)


def remember(array: Any) -> tuple[int, int]:
    """The same object in every task of a child: unpickled once."""
    seen = sys.modules["numpy"].__dict__.setdefault("_revolve_seen", [])
    seen.append(array)
    return os.getpid(), len({id(each) for each in seen})


async def look_async(array: Any) -> float:
    return float(array[1])


def die_at_three(share: Any, number: int) -> float:
    if number == 3:
        os._exit(3)
    return float(share.sum()) + number


def keep(*values: Any) -> None:
    sys.modules["numpy"].__dict__["_revolve_kept"] = values


def kept() -> float:
    return float(sum(value.sum() for value in sys.modules["numpy"].__dict__.pop("_revolve_kept")))


def hear_one() -> Any:
    message = current_task().receive()
    return None if message is None else message.args


def touch(array: Any) -> tuple[int, float]:
    emit("touched", float(array[::512].sum()))
    current_task().receive()
    return os.getpid(), float(array[-1])


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def back(value: Any) -> Any:
    return value


def change(array: Any, other: Any) -> float:
    array += 1
    return float(array.sum() + other.sum())
