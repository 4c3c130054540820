"""What comes back: messages of frames, each frame one to many events of one run of a task.

    message = sealed( [1, sender, fingerprints, [frame, …]] )          frame = [task id, run, first, records]

`run` is 8 random bytes of one execution, `first` the number of the frame's first event in that run, from 1 without
holes: readers drop what they have, see what is missing, and tell an older run from a newer one. Records are what a
child says (`pool.reports`: EVENT, PACKED, PROGRESS) and the lifecycle below. A message larger than the carrier takes
goes in pieces: 0xF7, 8 bytes of identity, index, count, piece.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ..errors import ProtocolError, UsageError

VERSION: Final = 1
PIECE: Final = 0xF7
_head = struct.Struct(">BQII")
MAX_PIECES = 4096
MAX_JOINING = 256 << 20  # bytes of unfinished messages that a reader keeps
MAX_RECORDS = 1_000_000

# records of the lifecycle; the numbers below 30 are `pool.reports`
STARTED: Final = 30  # (STARTED, worker, Unix time, control channel, name of the function)
SUCCEEDED: Final = 31  # (SUCCEEDED, pickle, buffers, written)
RETURNED: Final = 32  # (RETURNED, value, written)                  an atom
FAILED: Final = 33  # (FAILED, packed error, written)
CANCELLED: Final = 34  # (CANCELLED, rung, written)
LOST: Final = 35  # (LOST, packed error, written)
RETRYING: Final = 36  # (RETRYING, reason, delay)                   the run is over, another one follows
WAITING: Final = 37  # (WAITING, reason)                            likewise; nothing was started
REFUSED: Final = 38  # (REFUSED, reason)                            of a task whose seal did not open
STACK: Final = 39  # (STACK, text)                                  the answer to a control message
ALIVE: Final = 40  # (ALIVE,)                                       likewise: the worker has the task
FOLLOWS: Final = 41  # (FOLLOWS, task id)                           of a task that is another one: see its log
ARGUMENTS: Final = 42  # (ARGUMENTS, pickle, buffers)                the answer to a control message; None: too large

ENDS: Final = frozenset({SUCCEEDED, RETURNED, FAILED, CANCELLED, LOST})
ASIDE: Final = frozenset({REFUSED, STACK, ALIVE, FOLLOWS, ARGUMENTS})  # not numbered: they belong to no run

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, str, list[str], list[Any]]).decode

Frame = tuple[str, bytes, int, list[Any]]


def log_of(task_id: str) -> str:
    """The channel that holds a task's history."""
    return f"t.{task_id}"


def new_runs() -> Iterator[bytes]:
    """Identities of executions: random at their start, then counted, which costs no system call each."""
    base = os.urandom(5)
    for number in itertools.count():
        yield base + (number & 0xFFFFFF).to_bytes(3)


def encode(sender: str, fingerprints: list[str], frames: list[Any]) -> bytes:
    """A message, to be sealed."""
    return _encode((VERSION, sender, fingerprints, frames))


def decode(data: bytes | memoryview) -> tuple[str, list[str], list[Any]]:
    """`(sender, fingerprints, frames)` of a message whose seal was checked. Raises `ProtocolError`."""
    try:
        version, sender, fingerprints, frames = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"what was sealed is no message of events: {error}") from error
    if version != VERSION:
        raise ProtocolError(f"a message of version {version}; this release reads {VERSION}: update it")
    for frame in frames:
        if (
            type(frame) is not list
            or len(frame) != 4
            or type(frame[0]) is not str
            or type(frame[1]) is not bytes
            or type(frame[2]) is not int
            or type(frame[3]) is not list
        ):
            raise ProtocolError("a message of events with a frame that is none")
    return sender, fingerprints, frames


def pieces(message: bytes, limit: int) -> list[bytes]:
    """The message as what a carrier takes: itself, or pieces of at most `limit` bytes."""
    if len(message) <= limit:
        return [message]
    room = limit - _head.size
    count = -(-len(message) // room)
    if room <= 0 or count > MAX_PIECES:
        raise UsageError(f"{len(message):,} bytes are more than the messenger carries ({limit:,} at once)")
    name = int.from_bytes(os.urandom(8))
    view = memoryview(message)
    return [
        _head.pack(PIECE, name, index, count) + view[index * room : (index + 1) * room].tobytes()
        for index in range(count)
    ]


class Joiner:
    """Puts pieces together again, in whatever order they come; bounded, the oldest unfinished ones go first."""

    def __init__(self, room: int = MAX_JOINING) -> None:
        self._room = room
        self._kept = 0
        self._parts: OrderedDict[int, dict[int, bytes]] = OrderedDict()

    def join(self, data: bytes) -> bytes | None:
        """The whole message once its last piece is here, else None. Raises `ProtocolError`."""
        if not data or data[0] != PIECE:
            return data
        if len(data) < _head.size:
            raise ProtocolError("a piece of a message that is none")
        _, name, index, count = _head.unpack_from(data)
        if not 0 <= index < count <= MAX_PIECES:
            raise ProtocolError(f"piece {index} of {count}")
        parts = self._parts.setdefault(name, {})
        if index not in parts:
            parts[index] = data[_head.size :]
            self._kept += len(data)
        if len(parts) == count:
            del self._parts[name]
            self._kept -= sum(len(part) + _head.size for part in parts.values())
            return b"".join(parts[at] for at in range(count) if at in parts)
        while self._kept > self._room and len(self._parts) > 1:
            _, dropped = self._parts.popitem(last=False)
            self._kept -= sum(len(part) + _head.size for part in dropped.values())
        return None
