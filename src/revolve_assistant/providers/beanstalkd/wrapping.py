"""What jobs carry besides the bytes that they are about: a small header of ours, each with a mark of its own.

    a task     mark │ lengths of │ parts │ priority │ ttr │ id │ name │ numbers of the parts │ body   the body, or parts
                 2       2 + 2       4        4        4                       8 each
    a frame    mark │ channel │ writer │ number │ part │ parts │ its bytes
                 2       8         8        8        2      2
    a note     mark │ a msgpack array: what is known of a task that was buried

A frame says which channel it is of, since the server does not say which tube a job came from. Whoever reaches the port
can write such headers: they are believed only where that does no more than such a one can do anyway. What has none is a
job of somebody else's making.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import NamedTuple

import msgspec

_TASK = b"\xb5\x01"
_FRAME = b"\xb5\x02"
_NOTE = b"\xb5\x03"
_TASK_HEAD = struct.Struct(">2sHHIII")
_FRAME_HEAD = struct.Struct(">2s8s8sQHH")
OVERHEAD = _FRAME_HEAD.size
"""Bytes that each piece of a frame has besides."""
_SHORTEST_ROOM = 64  # bytes that a server must take for anything to fit


class Task(NamedTuple):
    """A task as its job carries it. `parts` are the numbers of the jobs that hold its body, if that is large;
    `priority` is beanstalkd's and `ttr` in seconds, both as they were when it was put."""

    id: str
    name: str
    body: bytes
    parts: tuple[int, ...] = ()
    priority: int = 0
    ttr: int = 0


def task_head(id: str, name: str, priority: int, ttr: int) -> bytes:
    """All of a task without parts but the body, which follows."""
    one, other = _cut(id), _cut(name) if name else b""
    return _TASK_HEAD.pack(_TASK, len(one), len(other), 0, priority, ttr) + one + other


def task_of_parts(id: str, name: str, parts: tuple[int, ...], priority: int, ttr: int) -> bytes:
    """A task whose body is in other jobs."""
    one, other = _cut(id), _cut(name)
    head = _TASK_HEAD.pack(_TASK, len(one), len(other), len(parts), priority, ttr)
    return head + one + other + struct.pack(f">{len(parts)}Q", *parts)


def read_task(data: bytes) -> Task | None:
    """None: it is of somebody else's making."""
    if data[:2] != _TASK or len(data) < _TASK_HEAD.size:
        return None
    _, one, other, parts, priority, ttr = _TASK_HEAD.unpack_from(data)
    one += _TASK_HEAD.size  # the ends
    other += one
    end = other + 8 * parts
    if end > len(data) or (parts and end != len(data)):
        return None
    numbers = struct.unpack_from(f">{parts}Q", data, other) if parts else ()
    id, name = _text(data[_TASK_HEAD.size : one]), _text(data[one:other]) if other > one else ""
    return Task(id, name, data[end:], numbers, priority, ttr)


class Piece(NamedTuple):
    """One job of a frame: the `part`th of `parts`."""

    channel: bytes
    writer: bytes
    number: int
    part: int
    parts: int
    data: bytes


def channel_mark(channel: str) -> bytes:
    """What stands for a channel in a frame."""
    return blake2b(channel.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def frame_jobs(mark: bytes, writer: bytes, number: int, frame: bytes, most: int) -> list[bytes]:
    """The jobs of a frame, of up to `most` bytes each."""
    room = max(most - OVERHEAD, _SHORTEST_ROOM)
    if len(frame) <= room:
        return [_FRAME_HEAD.pack(_FRAME, mark, writer, number, 0, 1) + frame]
    starts = range(0, len(frame), room)
    return [
        _FRAME_HEAD.pack(_FRAME, mark, writer, number, part, len(starts)) + frame[start : start + room]
        for part, start in enumerate(starts)
    ]


def read_piece(data: bytes) -> Piece | None:
    """None: it is of somebody else's making."""
    if data[:2] != _FRAME or len(data) < OVERHEAD:
        return None
    _, channel, writer, number, part, parts = _FRAME_HEAD.unpack_from(data)
    if part >= parts:
        return None
    return Piece(channel, writer, number, part, parts, data[OVERHEAD:])


class Note(msgspec.Struct, array_like=True, frozen=True):
    """A buried task: the number of its job, and what that does not say. `when` is in Unix seconds."""

    job: int
    id: str
    queue: str
    deliveries: int
    reason: str
    when: float
    name: str = ""


_encode_note = msgspec.msgpack.Encoder().encode
_decode_note = msgspec.msgpack.Decoder(Note).decode


def write_note(note: Note) -> bytes:
    return _NOTE + _encode_note(note)


def read_note(data: bytes) -> Note | None:
    """None: it is of somebody else's making."""
    if data[:2] != _NOTE:
        return None
    try:
        return _decode_note(data[2:])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _cut(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")[:0xFFFF]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
