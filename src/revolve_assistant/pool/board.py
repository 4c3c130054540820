"""The page that a child and its supervisor share: who runs, what is taken back, what was said but not yet sent.

    word   written by   meaning
    RUNNING   child     sequence number of the newest task begun
    ENDED     child     sequence number of the newest task that is over; RUNNING = ENDED: none runs
    STARTED   child     when it was started, monotonic ns (one clock for all processes of a machine)
    ITEM      child     index of the running item of a chunk
    OUT       child     count << 32 | length of the records in the outbox that were not yet sent
    FRAME     child     how many frames were sent whole
    LOW, HIGH parent    tasks LOW … HIGH are taken back: the child skips them
    STOP_AT   parent    index of the first item of the running chunk that the child leaves alone
    FLAG      parent    sequence number of the task asked to stop
    RAISE     parent    sequence number of the task in which a SIGINT raises CancelSignal
    PID       child     its process id, where it was forked: it looks like its parent to others

Why shared memory: what the child has put here survives its death, and the supervisor reads it although the child
holds its interpreter lock in C code. So a finished task's result is never lost with the next one's crash, and no
child needs a thread that flushes (the supervisor peeks, see `Supervisor._peek`).

Taking back without asking. The child publishes RUNNING and *then* looks at LOW; the supervisor writes LOW, waits
`SETTLE` and *then* looks at RUNNING. A store reaches the other side long before SETTLE is over, so either the
supervisor sees the task running, or the child sees it recalled; where both happen the child says SKIPPED.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

RUNNING: Final = 0
STARTED: Final = 1
ITEM: Final = 2
OUT: Final = 3
FRAME: Final = 4
LOW: Final = 5
HIGH: Final = 6
FLAG: Final = 7
RAISE: Final = 8
ENDED: Final = 9
STOP_AT: Final = 10
PID: Final = 11

WORDS: Final = 64
TASK_ID: Final = WORDS * 8  # the running task's id, text, for `revolve stack`
TASK_ID_SIZE: Final = 128
OUTBOX: Final = 4096  # where the outbox starts; the 9 bytes before it are the frame's header
OUTBOX_SIZE: Final = 128 * 1024  # bytes
SIZE: Final = OUTBOX + OUTBOX_SIZE
NEVER: Final = (1 << 63) - 1

SETTLE: Final = 0.0002  # seconds; a store is visible on the other core within about 1 µs
NAME: Final = "revolve-board"


def create() -> int:
    """A new board's descriptor, of `SIZE` bytes, with no name in any file system where the system can do that.

    Appending to it (O_APPEND) goes behind the board: there `faulthandler` writes a child's stacks.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix=NAME)
        os.unlink(path)
    os.ftruncate(fd, SIZE)
    return fd


class Board:
    """A mapped board. `words` are the numbers above, `memory` is the whole as bytes."""

    __slots__ = ("_map", "memory", "words")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE)
        self.memory = memoryview(self._map)
        self.words = self.memory[: WORDS * 8].cast("Q")

    def close(self) -> None:
        self.words.release()
        self.memory.release()
        self._map.close()

    @property
    def running_id(self) -> str:
        raw = bytes(self.memory[TASK_ID : TASK_ID + TASK_ID_SIZE])
        return raw.rstrip(b"\0").decode("ascii", "replace")
