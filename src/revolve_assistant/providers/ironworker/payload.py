"""What an IronWorker task carries: JSON with a sealed task, or with where the messenger has it.

    {"revolve": 1, "id": …, "queue": …, "namespace": …, "body": base64}
    {"revolve": 1, "id": …, "queue": …, "namespace": …, "parts": [channel, count, SHA-256 in hexadecimal]}

A payload has 64 KB at most, and its owner's dashboard shows it. The body is sealed, so that nothing else of it needs to
be: who changes the rest makes the seal not open. No field is called as what the dashboard blots out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from typing import Any

import msgspec

from ...errors import ProtocolError
from ...protocols.iron.limits import PAYLOAD

VERSION = 1
_NUMBER = struct.Struct(">I")
ROOM = (PAYLOAD - 1024) // 4 * 3  # bytes of a body that a payload holds; the rest is for the names


class Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    """One task. `parts`: channel, number and digest of its body's parts."""

    revolve: int
    id: str
    queue: str = "default"
    namespace: str = "assistant"
    body: str = ""
    parts: tuple[str, int, str] | None = None

    def whole(self) -> bytes:
        """The body, where it stands here. Raises `ProtocolError`."""
        try:
            return base64.b64decode(self.body, validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolError("the payload's body is no base64") from None


def write(id: str, queue: str, namespace: str, body: bytes) -> str:
    """A payload that holds the body."""
    return _encode(Payload(VERSION, id, queue, namespace, base64.b64encode(body).decode()))


def write_parts(id: str, queue: str, namespace: str, body: bytes, size: int) -> tuple[str, str, list[bytes]]:
    """A payload that says where the body is; the channel, and the parts of `size` bytes at most to be written there."""
    channel = f"b.{id}"[:64]
    size -= _NUMBER.size
    starts = range(0, len(body), size)
    parts = [_NUMBER.pack(number) + body[at : at + size] for number, at in enumerate(starts)]
    place = (channel, len(parts), hashlib.sha256(body).hexdigest())
    return _encode(Payload(VERSION, id, queue, namespace, parts=place)), channel, parts


def read_part(frame: bytes) -> tuple[int, bytes]:
    """The number of a part, and its bytes. Raises `ProtocolError`."""
    if len(frame) < _NUMBER.size:
        raise ProtocolError("what came for the task's body is no part of one")
    return _NUMBER.unpack_from(frame)[0], frame[_NUMBER.size :]


def fits(body: bytes, digest: str) -> bool:
    """Whether these are the bytes that a payload means."""
    return hashlib.sha256(body).hexdigest() == digest


def read(text: str) -> Payload:
    """Raises `ProtocolError` for what is none of ours, or of a newer release."""
    try:
        found = msgspec.json.decode(text, type=Payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the payload is no task of this library: {error}") from None
    if found.revolve != VERSION:
        raise ProtocolError(f"the payload is of version {found.revolve}, and this release reads {VERSION}")
    return found


def _encode(payload: Any) -> str:
    return msgspec.json.encode(payload).decode()
