"""Sees to it that a taker is heard of while it has nothing to say.

A worker whose tasks take long asks nothing for a while. If its connection is cut meanwhile (by a proxy that thinks it
idle, by an operator) the others would take it for dead. So a thread sleeps on the connection until it ends, and has it
made again. It costs nothing before.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

from ...errors import ProviderError
from ...pool.threads import OurThread

_ENDED = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
PAUSE = 0.5  # seconds between attempts


class Guard:
    """Part of a Queue that takes. `mend` connects again, where nobody else does; it raises `ProviderError`."""

    def __init__(self, mend: Callable[[], None]) -> None:
        self._mend = mend
        self._bell = socket.socketpair()
        for each in self._bell:
            each.setblocking(False)
        self._line = -1
        self._closing = threading.Event()
        self._thread = OurThread(self._run, "revolve-redis-guard")
        self._thread.start()

    def watch(self, line: int) -> None:
        """Watch this descriptor from now on."""
        self._line = line
        self._ring()

    def close(self) -> None:
        self._closing.set()
        self._ring()
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)
        for each in self._bell:
            each.close()

    def _ring(self) -> None:
        try:
            self._bell[1].send(b"!")
        except OSError:  # full: it will look anyway
            pass

    def _run(self) -> None:
        bell = self._bell[0]
        while not self._closing.is_set():
            line = self._line
            poll = select.poll()
            poll.register(bell, select.POLLIN)
            if line >= 0:
                poll.register(line, _ENDED)
            ended = False
            for number, _ in poll.poll():
                if number == bell.fileno():
                    bell.recv(4096)
                else:
                    ended = True
            if ended and line == self._line and not self._closing.is_set():
                try:
                    self._mend()
                except (ProviderError, OSError):
                    pass
                if line == self._line:
                    self._closing.wait(PAUSE)
