"""A Queue on several servers, which it meets over lines: opened, woken, closed, and connected anew after a fork.

One thread at a time is within; `wake` and `close` may come from any. What is asked of the servers is the provider's.
"""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable

from .. import engine as contract
from ..engine import Parcel
from ..errors import ClientClosed, UsageError
from .lines import Lines, Role

_CLOSING = 10.0  # seconds
_LONGEST_DELAY = 10 * 365 * 86400.0  # seconds


class Joined(contract.Queue):
    """`_busy` is held by whoever uses the lines; `text` names the servers in errors."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pid = 0
        self._open = False
        self._busy = threading.RLock()
        self._lines: Lines | None = None

    # ---- what a provider says

    @abstractmethod
    def _dial(self) -> tuple[Lines, Role]:
        """New lines with all that uses them, nothing taken yet; and the role of those that tasks are given over."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close what has connections besides the lines."""

    # ---- open, close, wake

    def open(self) -> None:
        """Connect; returns once each server answered or failed, for `timeout` seconds at most. Raises `Unreachable`."""
        if self._open and self._pid == os.getpid():
            return
        lines, role = self._connect()
        try:
            lines.want(role)
            while not lines.lines(role.name) or lines.undecided(role.name, hopeful=True):
                if not lines.undecided(role.name):
                    break
                lines.pump(time.monotonic() + 0.5)
            if not lines.lines(role.name):
                raise lines.unreachable()
        except BaseException:
            lines.close()
            self._lines = None
            raise
        self._open = True

    def close(self) -> None:
        self._open = False
        self._let_go()
        lines = self._lines
        if lines is None:
            return
        if self._pid != os.getpid():
            lines.close()
            self._lines = None
            return
        lines.wake()
        held = self._busy.acquire(timeout=_CLOSING)
        try:
            self._lines = None
            lines.close()
        finally:
            if held:
                self._busy.release()

    def wake(self) -> None:
        lines = self._lines
        if lines is not None:
            lines.wake()

    def _connect(self) -> tuple[Lines, Role]:
        self._pid = os.getpid()
        self._busy = threading.RLock()
        if self._lines is not None:
            self._lines.close()
        lines, role = self._dial()
        self._lines = lines
        return lines, role

    # ---- for the provider

    def _joined(self) -> Lines:
        if self._open and self._pid != os.getpid():
            self._connect()  # in a child that was forked: the parent goes on with its own
        if not self._open or self._lines is None:
            raise ClientClosed(f"{self._text} is not open: call open() first")
        return self._lines

    def _check_parcels(self, parcels: Iterable[Parcel]) -> None:
        self._joined()
        largest = self.traits.max_bytes
        for parcel in parcels:
            if len(parcel.body) > largest:
                raise UsageError(f"{len(parcel.body):,} bytes for task {parcel.id} are more than {largest:,}")
            if parcel.delay > _LONGEST_DELAY:
                raise UsageError(f"a delay of {parcel.delay:g} s for task {parcel.id} is more than ten years")
