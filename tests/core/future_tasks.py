"""What the tasks of test_future do, apart so that children need not import pytest."""

from __future__ import annotations

from typing import Any

from revolve_assistant import current_task


def mul(x: int, y: int) -> int:
    return x * y


def hear() -> str | None:
    message = current_task().receive()
    return message and message.name


def fail(text: str = "this is an exception") -> None:
    raise OwnError(text)


class OwnError(Exception):
    pass


class Unwelcome:
    def __reduce__(self) -> Any:
        return divmod, (1, 0)
