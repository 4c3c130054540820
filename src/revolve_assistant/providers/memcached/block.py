"""What lies in memcached: the keys of a channel, the blocks in its slots, and cursors. No I/O.

A channel is kept on one server under keys that start with a hash of namespace and channel:

    …:c           the counter: birth certificate, allocator and head of the log in one
    …:m           its terms: "SECONDS CAP", how long and how much to keep
    …:t           its tail: "POSITION OFFSET" of the first frame that was not forgotten; none: the log's start
    …:g           the grace that slow writers ask for, in seconds
    …:POSITION    a slot: a block of frames, or a tombstone

    counter = generation (26 random bits, set when the channel is made) · 2³⁶ + number of slots allocated so far

Adding 1 to the counter allocates the slot named by the new value: a position names generation and number in one.
A counter that is gone or has another generation is another log: whoever holds a cursor into the old one is told.
Its value always has 19 digits, so that counting never makes memcached move the item (which may fail when it is full).

A block is what one writer writes to one channel at once, and it is stored by one command: it is there as a whole or not
at all, so neither a reader nor a tombstone ever parts a batch.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
import time
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import NamedTuple

SHIFT = 36
MOST = 1_000_000  # bytes of a value: under the default limit of 1 MiB with memcached's own header and our keys
OVERHEAD = 100  # bytes that an item costs beside its value
DAY = 86400.0
LONGEST = 3650 * DAY  # seconds; memcached counts until 2038

_HEAD = struct.Struct("<B8sI")  # format, the writer's mark, number of frames
_FORMAT = 1
_LARGE = struct.Struct("<B8sIQ")  # format, mark, number of pieces, bytes of them
_LARGE_FORMAT = 2

# The kind of a slot is in its client flags, so that one can look without fetching values.
FRAMES, TOMBSTONE, LARGE = 0, 1, 2


class Keys:
    """The keys of one channel."""

    __slots__ = ("counter", "grace", "stem", "tail", "terms")

    def __init__(self, stem: bytes) -> None:
        self.stem = stem
        self.counter, self.terms, self.tail, self.grace = stem + b"c", stem + b"m", stem + b"t", stem + b"g"

    def slot(self, position: int) -> bytes:
        return b"%b%d" % (self.stem, position)

    def pieces(self, flags: int) -> list[bytes]:
        """The keys of the pieces of a block, from the flags of its slot; none where it lies in the slot itself."""
        if flags & 3 != LARGE:
            return []
        name, number = flags >> 9, flags >> 2 & 127
        return [b"%bx%d.%d" % (self.stem, name, n) for n in range(number)]


def digest(*texts: str) -> bytes:
    """A hash of texts in this order; no two lists of texts are alike to it."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return hashlib.blake2b(b"".join(b"%d:%b" % (len(part), part) for part in parts), digest_size=16).digest()


def keys_of(namespace: str, channel: str) -> Keys:
    """Hashed, so that names of any length and alphabet fit memcached's 250 bytes without spaces."""
    return Keys(b"rv:" + urlsafe_b64encode(digest(namespace, channel))[:22] + b":")


def birth() -> int:
    """The first value of a counter: a new generation, nothing allocated."""
    return (1 << 26 | secrets.randbits(26)) << SHIFT


def start_of(position: int) -> int:
    """The first slot of the generation of a position."""
    return (position >> SHIFT << SHIFT) + 1


# ---- blocks


def mark() -> bytes:
    """Tells a block from every other, so that a writer knows its own after a lost answer."""
    return secrets.token_bytes(8)


def pack(frames: Sequence[bytes], own: bytes) -> bytes:
    lengths = struct.pack(f"<{len(frames)}I", *map(len, frames))
    return b"".join((_HEAD.pack(_FORMAT, own, len(frames)), lengths, *frames))


def pack_large(own: bytes, pieces: int, size: int) -> bytes:
    """What lies in the slot of a block that lies in pieces."""
    return _LARGE.pack(_LARGE_FORMAT, own, pieces, size)


def large_flags(pieces: int) -> int:
    """Client flags of the slot of such a block: kind, number of pieces, and a random name of 23 bits for them."""
    return secrets.randbits(23) << 9 | pieces << 2 | LARGE


def mark_of(value: bytes) -> bytes:
    return value[1:9]


def unpack(value: bytes) -> list[bytes] | None:
    """The frames of a block; None if it is none of ours."""
    if len(value) < _HEAD.size or value[0] != _FORMAT:
        return None
    number = _HEAD.unpack_from(value)[2]
    at = _HEAD.size + 4 * number
    if at > len(value):
        return None
    frames = []
    for length in struct.unpack_from(f"<{number}I", value, _HEAD.size):
        frames.append(value[at : at + length])
        at += length
    return frames if frames and at == len(value) else None


def size_of(value: bytes) -> int | None:
    """The size in bytes of a block that lies in pieces, from what lies in its slot; None if that is none of ours."""
    if len(value) != _LARGE.size or value[0] != _LARGE_FORMAT:
        return None
    return int(_LARGE.unpack(value)[3])


def packable(frames: Sequence[bytes], most: int) -> int:
    """How many of the first frames go into one block of about `most` bytes; at least 1."""
    size = 0
    for number, frame in enumerate(frames):
        size += len(frame) + 4
        if size > most and number:
            return number
    return len(frames)


# ---- places in the log


class Place(NamedTuple):
    """A frame: its slot, and how many frames precede it in the block there."""

    position: int
    offset: int


def cursor_of(position: int, taken: int, number: int) -> bytes:
    """The cursor after the first `taken` of `number` frames of a block."""
    return b"%d.%d.%d" % (position, taken, number)


def place_after(cursor: bytes) -> Place | None:
    """Where reading goes on; None if it is no cursor of ours."""
    parts = cursor.split(b".")
    if len(parts) != 3 or not all(part.isdigit() and len(part) < 20 for part in parts):
        return None
    position, taken, number = map(int, parts)
    return Place(position + 1, 0) if taken >= number else Place(position, taken)


def tail_text(place: Place) -> bytes:
    return b"%d %d" % place


def numbers_of(value: bytes, count: int) -> list[int] | None:
    """The numbers in a record; None if it is no such record."""
    words = value.split()
    return [int(word) for word in words] if len(words) == count and all(word.isdigit() for word in words) else None


# ---- time


def ttl_of(seconds: float) -> int:
    """Seconds as memcached takes them: whole, 1 more since it may be up to a second early, absolute past 30 days."""
    whole = math.ceil(min(seconds, LONGEST)) + 1
    return whole if whole <= 30 * DAY else min(int(time.time()) + whole, (1 << 31) - 1)


def slot_seconds(seconds: float) -> float:
    """How long a slot lives in a channel kept for `seconds`: so long that most renewals need not touch it."""
    return 2 * seconds + 60.0
