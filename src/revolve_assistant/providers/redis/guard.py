"""Sees to it that a taker is heard of while it has nothing to say.

A worker whose tasks take long asks nothing for a while. If its connection is cut meanwhile (by a proxy that thinks it
idle, by an operator) the others would take it for dead. So a thread sleeps on the connection until it ends, and has it
made again. It costs nothing before.

    connection ends ──▶ poll ──▶ mend ──▶ …, every half second until there is one to watch
    somebody lets go of it, or has made it anew ──ring──▶ look which one it is

The ring is needed: the number of a descriptor that was closed soon belongs to another connection, which does not end.
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
    """Part of a Queue that takes.

    `mend` connects again, where nobody else does; it raises `ProviderError`. `watched` is the descriptor of the
    connection, -1 while there is none. `ring` when that has changed, from whatever thread.
    """

    def __init__(self, mend: Callable[[], None], watched: Callable[[], int]) -> None:
        self._mend = mend
        self._watched = watched
        self._bell = socket.socketpair()
        for each in self._bell:
            each.setblocking(False)
        self._closing = threading.Event()
        self._thread = OurThread(self._run, "revolve-redis-guard")
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)
        for each in self._bell:
            each.close()

    def ring(self) -> None:
        try:
            self._bell[1].send(b"!")
        except OSError:  # full: it will look anyway; or closed
            pass

    def _run(self) -> None:
        bell = self._bell[0]
        while not self._closing.is_set():
            line = self._watched()
            poll = select.poll()
            poll.register(bell, select.POLLIN)
            if line >= 0:
                poll.register(line, _ENDED)
            found = poll.poll(None if line >= 0 else PAUSE * 1000)
            if (bell.fileno(), select.POLLIN) in found:
                bell.recv(4096)
            elif not self._closing.is_set():
                try:
                    self._mend()
                except (ProviderError, OSError):
                    pass
                if line >= 0 and self._watched() == line:  # it holds something yet that nobody has read
                    self._closing.wait(PAUSE)
