"""The log of `revolve run --log FILE`: one JSON object a line, one line an ended item.

    {"item": "a b.txt", "state": "succeeded", "seconds": 1.25, "error": null, "attempt": 1,
     "time": 1767225600.0, "function": "work:resize"}

A line is one `write` to a file opened with O_APPEND, so that several runs may share a log, and `kill -9` leaves
at worst one torn last line, which reading passes over and the next one ends. The line is written
after the item's result went to stdout: what the log calls done has been printed.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from typing import Any


class Log:
    """Appends to the log. Raises OSError when the file cannot be opened or written."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        end = os.lseek(self._fd, 0, os.SEEK_END)
        self._torn = end > 0 and os.pread(self._fd, 1, end - 1) != b"\n"

    def write(self, line: bytes) -> None:
        """Append one line, whole."""
        data = b"\n" + line if self._torn else line
        self._torn = True
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full, the log holds half a line")
        self._torn = False

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def line(
    item: Any, state: str, *, seconds: float, error: str | None, attempt: int, time: float, function: str
) -> bytes:
    """One entry, newline and all."""
    entry = {
        "item": item,
        "state": state,
        "seconds": round(seconds, 3),
        "error": error,
        "attempt": attempt,
        "time": round(time, 3),
        "function": function,
    }
    return json.dumps(entry).encode() + b"\n"


class Done:
    """What a log says has succeeded, to skip each as often as it stands there."""

    def __init__(self, path: str, function: str) -> None:
        self._counts: Counter[str] = Counter()
        self.skipped = 0
        """Items passed over so far."""
        try:
            with open(path, "rb") as file:
                for text in file:
                    self._learn(text, function)
        except FileNotFoundError:
            pass

    def skip(self, item: Any) -> bool:
        """True once for each success of this item in the log."""
        if not self._counts:
            return False
        key = _key(item)
        left = self._counts.get(key, 0)
        if not left:
            return False
        if left == 1:
            del self._counts[key]
        else:
            self._counts[key] = left - 1
        self.skipped += 1
        return True

    def _learn(self, text: bytes, function: str) -> None:
        try:
            entry = json.loads(text)
        except ValueError:  # torn by a kill, or no line of ours
            return
        if (
            isinstance(entry, dict)
            and entry.get("state") == "succeeded"
            and "item" in entry
            and entry.get("function", function) == function
        ):
            self._counts[_key(entry["item"])] += 1


def _key(item: Any) -> str:
    return json.dumps(item, sort_keys=True)
