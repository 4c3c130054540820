"""Single keys from the terminal while something else is drawn on it; signals of keys (Ctrl-C, Ctrl-Z) stay as they are.

The terminal is taken as it is left: a program in the background touches and reads it only once it is in the foreground,
since both would stop it.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import Any


class Keys:
    """Use it as a context manager around what is drawn. Where nobody types (`attended` false) there are no keys."""

    def __init__(self, attended: bool) -> None:
        self._file = sys.stdin.fileno() if attended else -1
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def get(self) -> str:
        """What was typed since, "": nothing. Does not block."""
        if self._file < 0 or not self._take() or not select.select([self._file], [], [], 0)[0]:
            return ""
        try:
            data = os.read(self._file, 1024)
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            self._file = -1
        return data.decode("utf-8", "replace")

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Lines are typed, and seen, while the block lasts."""
        self._give_back()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> bool:
        """Whether keys can be read now."""
        if self._file < 0:
            return False
        import termios

        try:
            if os.tcgetpgrp(self._file) != os.getpgrp():
                return False
            if self._before is None:
                before = termios.tcgetattr(self._file)
                now = [*before[:3], before[3] & ~(termios.ICANON | termios.ECHO), *before[4:]]
                termios.tcsetattr(self._file, termios.TCSADRAIN, now)
                self._before = before
        except (OSError, termios.error):
            self._file = -1
            return False
        return True

    def _give_back(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            import termios

            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self._file, termios.TCSADRAIN, before)
