"""What ends a wait: a bell that any thread may ring, and the kernel's word that a directory has changed.

inotify is only ever a hint to look sooner: it knows nothing of other hosts, its instances and watches run out, its
queue overflows. Who uses it looks from time to time anyway.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
from collections.abc import Iterator
from typing import Any

from .network import libc

_MODIFY, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW = 0x01000000, 0x02000000
_MASK = _MODIFY | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR | _DONT_FOLLOW
_EVENT = struct.Struct("iIII")


class Bell:
    """Ends waits. `ring` from any thread; the others by who waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may ring while its thread does
        self.rung = False
        self._poll: tuple[int, select.poll] | None = None  # with what else it waits for
        self._out = self._in = -1
        if hasattr(os, "eventfd"):
            self._out = self._in = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._out, self._in = os.pipe()
            os.set_blocking(self._out, False)
            os.set_blocking(self._in, False)

    def ring(self) -> None:
        with self._lock:
            self.rung = True
            if self._in >= 0:
                with contextlib.suppress(BlockingIOError):  # then it rings already
                    os.write(self._in, b"\1\0\0\0\0\0\0\0")

    def still(self) -> None:
        self.rung = False  # before the rest: a ring meanwhile must not be missed
        with contextlib.suppress(BlockingIOError):
            while os.read(self._out, 4096) and self._out != self._in:
                pass

    def wait(self, seconds: float, also: int) -> None:
        """Until it rings, the descriptor `also` (-1: none) has something to read, or the time is over."""
        if self._poll is None or self._poll[0] != also:
            self._poll = also, select.poll()
            for fd in {self._out, also} - {-1}:
                self._poll[1].register(fd, select.POLLIN)
        for fd, _ in self._poll[1].poll(min(seconds, 86400.0) * 1000):
            if fd == self._out:
                self.rung = True

    def close(self) -> None:
        with self._lock:
            self.close_copy()

    def close_copy(self) -> None:
        """Close without the lock, which after a fork may be held for ever."""
        fds, self._out, self._in = {self._out, self._in} - {-1}, -1, -1
        for fd in fds:
            os.close(fd)


class Inotify:
    """Watches on directories. One thread at a time."""

    def __init__(self, library: Any, fd: int) -> None:
        self._library = library
        self.fd = fd

    @classmethod
    def open(cls) -> Inotify | None:
        """None where there is none, or no instance is left for this user."""
        library = libc()
        if library is None or not hasattr(library, "inotify_init1"):
            return None
        fd = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        return cls(library, fd) if fd >= 0 else None

    def add(self, path: str) -> int | None:
        """Watch a directory; None if that cannot be done, for lack of watches or of the directory."""
        watch: int = self._library.inotify_add_watch(self.fd, os.fsencode(path), _MASK)
        return watch if watch >= 0 else None

    def remove(self, watch: int) -> None:
        self._library.inotify_rm_watch(self.fd, watch)

    def events(self) -> Iterator[tuple[int, str | None]]:
        """What has changed: `(watch, name of the file that was written to)`; None: anything. Watch -1: any.

        The name "" says that the directory is not where it was, so that the watch is of no use.
        """
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = data[at : at + length].rstrip(b"\0")
                at += length
                if mask & _OVERFLOW:
                    yield -1, None
                elif mask & (_MOVE_SELF | _IGNORED):
                    yield watch, ""
                else:
                    yield watch, os.fsdecode(name) if mask == _MODIFY else None
            if len(data) < 1 << 15:
                return

    def close(self) -> None:
        os.close(self.fd)
