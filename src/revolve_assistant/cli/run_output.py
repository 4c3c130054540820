"""What `revolve run` writes: whole lines, at once or in the order of the items.

    task A ── "a1\\na" ─▶ begun line of A ─┐              one task's lines stay whole,
    task B ── "b1\\n"  ─▶ begun line of B ─┴▶ Turns ─▶ stdout | stderr | log

`Turns` with `ordered` lets only the task whose turn it is write; what the others write is held in a file (in memory
up to 8 MiB), so that one slow item at the head neither loses the others' output nor stops them.
"""

from __future__ import annotations

import json
import os
import select
import tempfile
from collections.abc import Callable
from typing import Any

OUT, ERR, LOG = range(3)

IN_MEMORY = 8 << 20  # bytes held before they go to disk
LONGEST = 1 << 20  # characters of a line held until its end comes


def write_all(fd: int, data: bytes) -> None:
    """Write everything, also where somebody made the descriptor non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def to_bytes(text: str) -> bytes:
    """As the terminal and the file system want it: undecodable bytes of file names come out as they went in."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def to_text(value: object) -> str:
    """`str(value)`, whatever its class does."""
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}: str raised {type(error).__name__}>"


def to_json(fields: dict[str, Any]) -> str:
    """One line of JSON; a value that is not JSON becomes its repr."""
    try:
        return json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps({name: _json_or_repr(value) for name, value in fields.items()})


def _json_or_repr(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        try:
            return repr(value)
        except Exception as error:
            return f"<{type(value).__name__}: repr raised {type(error).__name__}>"
    return value


class Turns:
    """Lets tasks write in completion order, or (`ordered`) in the order of their indexes 0, 1, 2 …

    Calls of `put` and `end` must not overlap.
    """

    def __init__(self, write: Callable[[int, bytes], None], *, ordered: bool) -> None:
        self._write = write
        self._ordered = ordered
        self._turn = 0
        self._held: dict[int, list[tuple[int, int, int]]] = {}  # index -> (stream, offset, length)
        self._ended: set[int] = set()
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) if ordered else None  # noqa: SIM115
        self._size = 0

    def put(self, index: int, stream: int, data: bytes) -> None:
        """Write now, or when it is the turn of `index`."""
        if self._file is None or index == self._turn:
            self._write(stream, data)
            return
        self._file.seek(self._size)
        self._file.write(data)
        self._held.setdefault(index, []).append((stream, self._size, len(data)))
        self._size += len(data)

    def end(self, index: int) -> None:
        """`index` writes no more: the next ones may."""
        if self._file is None:
            return
        self._ended.add(index)
        while self._turn in self._ended:
            self._ended.discard(self._turn)
            self._turn += 1
            for stream, offset, length in self._held.pop(self._turn, ()):
                self._file.seek(offset)
                self._write(stream, self._file.read(length))
        if not self._held and self._size:
            self._file.seek(0)
            self._file.truncate()
            self._size = 0

    def close(self) -> None:
        """Drop what is held."""
        if self._file is not None:
            self._file.close()


class Lines:
    """Gathers one task's text into whole lines, each begun with `prefix`."""

    __slots__ = ("_begun", "_prefix")

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._begun = ""

    def add(self, text: str) -> str:
        """The lines that `text` completed, with their newlines."""
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if len(self._begun) > LONGEST:
            return self._finish(whole + newline + self.rest())
        return self._finish(whole + newline)

    def rest(self) -> str:
        """The line that was begun, now ended."""
        begun, self._begun = self._begun, ""
        return self._finish(begun + "\n") if begun else ""

    def _finish(self, text: str) -> str:
        if not self._prefix or not text:
            return text
        return "".join(f"{self._prefix}{line}\n" for line in text[:-1].split("\n"))
