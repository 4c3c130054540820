"""What a caller says to the worker that runs its task: a sealed message on the worker's control channel.

    sealed( [1, inbox, kind, task id, run, …] )

A worker heeds it only for the run that it names (or any, with an empty one), so an old message harms nobody.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..errors import ProtocolError

VERSION: Final = 1
CANCEL: Final = 1  # []
SEND: Final = 2  # [name, packed arguments]
STACK: Final = 3  # []: answered by a STACK record
ALIVE: Final = 4  # []: answered by an ALIVE record if the worker has the task
ARGUMENTS: Final = 5  # []: answered by an ARGUMENTS record

_encode = msgspec.msgpack.Encoder().encode


class Control(msgspec.Struct, array_like=True, frozen=True):
    """One message. `more` depends on the kind."""

    version: int
    inbox: str
    kind: int
    id: str
    run: bytes
    more: list[Any] = []


_decode = msgspec.msgpack.Decoder(Control).decode


def encode(inbox: str, kind: int, id: str, run: bytes, *more: Any) -> bytes:
    """A control message, to be sealed."""
    return _encode(Control(VERSION, inbox, kind, id, run, list(more)))


def decode(data: bytes | memoryview) -> Control:
    """Read one whose seal was checked. Raises `ProtocolError`."""
    try:
        found = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"what was sealed is no control message: {error}") from error
    if found.version != VERSION:
        raise ProtocolError(f"a control message of version {found.version}; this release reads {VERSION}")
    return found
