"""Gathers what a child says and sends it up in batches; kept in shared memory until it is sent.

    emit ──record──▶ outbox in the board ──frame──▶ task socket ──▶ supervisor
                            └───────── peeked at by the supervisor ──────────▶

The first record after a quiet `WINDOW` is sent at once; those that follow within the window stay in the outbox,
where the supervisor finds them about 2 ms after the last frame it received, or go with the next frame. So a lone
event costs one system call, a storm of them a copy each, and no thread of ours ever competes with the callable.
"""

from __future__ import annotations

import struct
from _socket import socket
from _thread import allocate_lock
from time import monotonic_ns

from ..pool import board as at

WINDOW = 1_000_000  # ns
_header = struct.Struct("<IB")
_count = struct.Struct(">I")
_ROOM = at.OUTBOX_SIZE
_PREFIX = 9  # length, the msgpack array-32 mark, the count


class Outbox:
    """Takes encoded records. Thread-safe. Blocks while the supervisor does not read (back-pressure)."""

    def __init__(self, board: at.Board, sock: socket) -> None:
        self._memory = board.memory
        self._words = board.words
        self._sock = sock
        self._lock = allocate_lock()
        self._end = 0
        self._count = 0
        self._flushed = 0

    def put(self, record: bytes, hold: bool = False) -> None:
        """Add a record and send it, unless something was sent within the window.

        `hold` keeps it in any case: the caller promises a `settle` or `flush` soon.
        """
        size = len(record)
        if size > _ROOM:
            self._direct(record)
            return
        with self._lock:
            end = self._end + size
            if end > _ROOM:
                self._flush()
                end = size
            start = at.OUTBOX + self._end
            self._memory[start : start + size] = record
            self._end = end
            self._count += 1
            self._words[at.OUT] = self._count << 32 | end
            if not hold:
                now = monotonic_ns()
                if now - self._flushed > WINDOW:
                    self._flush(now)

    def settle(self, now: int) -> None:
        """Send what is held if the window is over at `now` (monotonic ns)."""
        if now - self._flushed > WINDOW:
            with self._lock:
                self._flush(now)

    def flush(self) -> None:
        """Send what is held."""
        with self._lock:
            self._flush()

    def _flush(self, now: int = 0) -> None:
        end = self._end
        if not end:
            return
        self._flushed = now or monotonic_ns()
        memory = self._memory
        _header.pack_into(memory, at.OUTBOX - _PREFIX, end + 5, 0xDD)
        _count.pack_into(memory, at.OUTBOX - 4, self._count)
        self._sock.sendall(memory[at.OUTBOX - _PREFIX : at.OUTBOX + end])
        words = self._words
        words[at.OUT] = 0  # in this order: between the two nothing is taken for unsent
        words[at.FRAME] += 1
        self._end = self._count = 0

    def _direct(self, record: bytes) -> None:
        with self._lock:
            self._flush()
            self._flushed = monotonic_ns()
            self._sock.sendall(_header.pack(len(record) + 1, 0x91))
            self._sock.sendall(record)
            self._words[at.FRAME] += 1
