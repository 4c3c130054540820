"""What stands in a message's text: base64 of a small header of ours and the bytes.

    a frame    1 │ name of its writer │ number │ frame
               1            8             8
    a task     2 │ flags │ parts │ lengths of │ id │ reason │ body, or the digest of a body that is in parts
               1     1       2         4
    a part     3 │ number │ bytes
               1      2

JSON carries text and no bytes, and base64 is what it costs: a third. A text that is none of these is somebody else's.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import NamedTuple

_FRAME = struct.Struct(">B8sQ")
_TASK = struct.Struct(">BBHHH")
_PART = struct.Struct(">BH")
FRAME, TASK, PART = 1, 2, 3
DIGEST = 32  # bytes, SHA-256


class Framed(NamedTuple):
    """A frame, who wrote it, and as what number; None: it is none of ours."""

    frame: bytes
    key: tuple[bytes, int] | None


class Wrapped(NamedTuple):
    """A task as a message carries it. With `parts`, `body` is the digest of what they make."""

    id: str
    body: bytes
    parts: int = 0
    reason: str = ""


def room(characters: int) -> int:
    """Bytes that so many characters of text can hold."""
    return characters // 4 * 3


def frame_room(characters: int) -> int:
    """Bytes of the largest frame."""
    return room(characters) - _FRAME.size


def task_room(characters: int, id: str) -> int:
    """Bytes of the largest body that needs no parts."""
    return room(characters) - _TASK.size - len(_cut(id))


def part_room(characters: int) -> int:
    """Bytes of a part."""
    return room(characters) - _PART.size


def frame(writer: bytes, number: int, data: bytes) -> str:
    return _text(_FRAME.pack(FRAME, writer, number) + data)


def read_frame(text: str) -> Framed:
    data = _bytes(text)
    if data is None or len(data) < _FRAME.size or data[0] != FRAME:
        return Framed(text.encode("utf-8", "surrogatepass"), None)
    _, writer, number = _FRAME.unpack_from(data)
    return Framed(data[_FRAME.size :], (writer, number))


def task(wrapped: Wrapped) -> str:
    id, reason = _cut(wrapped.id), _cut(wrapped.reason)[:4096]
    return _text(_TASK.pack(TASK, 0, wrapped.parts, len(id), len(reason)) + id + reason + wrapped.body)


def read_task(message: str, text: str) -> Wrapped:
    """A task; one that is not ours has the message's id, and its whole text as body."""
    data = _bytes(text)
    if data is not None and len(data) >= _TASK.size and data[0] == TASK:
        _, flags, parts, id, reason = _TASK.unpack_from(data)
        start = _TASK.size + id + reason
        body = data[start:]
        if not flags and start <= len(data) and (not parts or len(body) == DIGEST):
            name = data[_TASK.size : _TASK.size + id].decode("utf-8", "surrogateescape")
            why = data[_TASK.size + id : start].decode("utf-8", "replace")
            return Wrapped(name, body, parts, why)
    return Wrapped(message, text.encode("utf-8", "surrogatepass"))


def part(number: int, data: bytes) -> str:
    return _text(_PART.pack(PART, number) + data)


def read_part(text: str) -> tuple[int, bytes] | None:
    """Its number and bytes; None: it is no part."""
    data = _bytes(text)
    if data is None or len(data) < _PART.size or data[0] != PART:
        return None
    return _PART.unpack_from(data)[1], data[_PART.size :]


def _cut(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")[:0xFFFF]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
