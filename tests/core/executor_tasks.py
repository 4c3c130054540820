"""What the tasks of test_executor do, apart so that children need not import pytest."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from revolve_assistant import current_task


class Gate:
    """Holds whoever calls it until `open`."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / f"gate-{next(_numbers)}")
        os.mkfifo(self.path)

    def __call__(self, value: Any = None, *_: Any) -> Any:
        with open(self.path) as end:
            end.read()
        return value

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Wait until somebody is held; let it go in the end."""
        with open(self.path, "w"):
            yield

    def open(self) -> None:
        with self.holding():
            pass


_numbers = itertools.count(1)


def mul(x: int, y: int) -> int:
    return x * y


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def hear() -> Any:
    message = current_task().receive()
    return message and message.name


def fail(text: str = "this is an exception") -> None:
    raise OwnError(text)


class OwnError(Exception):
    pass


class Object:
    def method(self) -> None:
        pass


class Unwelcome:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)


class Answer:
    def __call__(self) -> int:
        return 42

    @classmethod
    def get(cls) -> int:
        return 42


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def count(stop: int) -> Iterator[int]:
    yield from range(stop)
    return stop * 10


class Dying:
    """Opens a gate when it dies, unless in the process that made it."""

    def __init__(self, path: str) -> None:
        self.path, self.pid = path, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.pid:
            os.close(os.open(self.path, os.O_WRONLY))


def initialize(*values: str) -> None:
    os.environ["INITIALIZED"] = " ".join(values)


@contextlib.contextmanager
def surrounding(path: str) -> Iterator[None]:
    Path(path).write_text("entered")
    yield
    Path(path).write_text("left")


def ask_whether_initialized() -> str:
    return os.environ["INITIALIZED"]
