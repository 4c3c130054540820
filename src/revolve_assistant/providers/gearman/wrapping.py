"""What a task's job carries besides its body: a small header of ours.

    version 1 │ flags │ priority │ deliveries │ due │ lengths of │ id │ queue │ reason │ body
        1         1        1           2        8        6

`deliveries` counts those before this one, `due` is in Unix seconds (0: now). gearmand has nothing of that. Whoever
reaches the port can write such a header: it is believed only where that does no more than such a one can do anyway.
What has none is a job of somebody else's making, and all of it is the body.

With base64 the whole travels as text, for stores that end at a NUL; its first byte tells one from the other.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import NamedTuple

_HEAD = struct.Struct(">BBbHdHHH")
_VERSION = 1
_VOID = 1  # flag


class Wrapped(NamedTuple):
    """A task as a job carries it. `void`: there is nothing to run; see `Queue.cancel`."""

    id: str
    queue: str
    body: bytes
    priority: int = 0
    deliveries: int = 0
    due: float = 0.0
    reason: str = ""
    void: bool = False


def wrap(task: Wrapped, base64_encoded: bool = False) -> bytes:
    name, line, body, priority, deliveries, due, why, void = task
    id, queue, reason = _cut(name), _cut(line), _cut(why) if why else b""
    if priority:
        priority = max(-9, min(9, priority))
    flags = _VOID if void else 0
    head = _HEAD.pack(_VERSION, flags, priority, min(deliveries, 0xFFFF), due, len(id), len(queue), len(reason))
    data = b"".join((head, id, queue, reason, body))
    return base64.b64encode(data) if base64_encoded else data


def unwrap(unique: bytes, queue: str, data: bytes) -> Wrapped:
    """Read it; `unique` and `queue` are the id and queue of a job without a header of ours."""
    plain = data
    if data[:1] == b"A":  # base64 of a first byte below 4, as the version is
        try:
            plain = base64.b64decode(data, validate=True)
        except binascii.Error:
            plain = b""
    if len(plain) < _HEAD.size or plain[0] != _VERSION:
        return Wrapped(_text(unique), queue, data)
    _, flags, priority, deliveries, due, id, name, reason = _HEAD.unpack_from(plain)
    id += _HEAD.size  # the ends
    name += id
    reason += name
    if reason > len(plain) or not -9 <= priority <= 9 or not 0 <= due < 1e11:
        return Wrapped(_text(unique), queue, data)
    return Wrapped(
        _text(plain[_HEAD.size : id]),
        _text(plain[id:name]),
        plain[reason:],
        priority,
        deliveries,
        due,
        _text(plain[name:reason]) if reason > name else "",
        bool(flags & _VOID),
    )


def _cut(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")[:0xFFFF]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
