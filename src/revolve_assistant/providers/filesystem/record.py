"""The bytes of a log file and of a cursor; no I/O.

    ┌───────┬────────┬────────┬──────┬──────────────┬───────────────┬─────────┐
    │ magic │ length │ number │ time │ CRC of frame │ CRC of header │ frame   │ record, record, …
    │ 4     │ 4      │ 8      │ 8    │ 4            │ 4             │ length  │
    └───────┴────────┴────────┴──────┴──────────────┴───────────────┴─────────┘

All numbers are little-endian. The header has a CRC of its own, so that its length can be trusted: what ends beyond the
end of the file is a record that is still being written, or never will be, and what fails its check is damage. That CRC
starts from a seed that belongs to the file: a frame that holds a copy of some log cannot pass for a record when a
reader looks for the next good one. `number` grows from record to record of a writer, over all its files; `time` is the
writer's clock in nanoseconds since 1970, made to never go back.

A cursor is the incarnation of the channel (8 bytes) and, for each writer of which something was read, its identity (6),
segment (2) and offset (4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Literal, NamedTuple
from zlib import crc32

from ...errors import ProtocolError

MAGIC = b"\xf5RVl"
_FIELDS = Struct("<4sIQQI")
_CHECK = Struct("<I")
_HEADER = Struct("<4sIQQII")
HEADER = _HEADER.size  # bytes
MAX_FRAME = 64 << 20  # bytes

INCARNATION = 8  # bytes
IDENTITY = 6  # bytes
_PLACE = Struct(">6sHI")
MAX_SEGMENT = 0xFFFF


Entry = tuple[int, bytes, bytes]
"""One record as read: when it was written, its writer's part of a cursor that goes on after it, and its frame."""


class Place(NamedTuple):
    """A position among the files of one writer."""

    segment: int
    offset: int


State = Literal["end", "full", "torn", "spoilt", "bad"]


class Scan(NamedTuple):
    """What was found in some bytes, and why it stopped at `at`.

    "end": nothing is left. "full": enough. "torn": the record goes on past these bytes, `need` bytes in all.
    "spoilt": the frame of a record of `need` bytes fails its check. "bad": there is no header.
    """

    entries: list[Entry]
    at: int
    number: int
    state: State
    need: int = 0


class Source(NamedTuple):
    """A log file: whose, which of its segments, and the seed of its checks."""

    identity: bytes
    segment: int
    seed: int

    @classmethod
    def of(cls, incarnation: bytes, identity: bytes, segment: int) -> Source:
        return cls(identity, segment, crc32(b"%b%b%d" % (incarnation, identity, segment)))

    @property
    def name(self) -> str:
        return f"{self.identity.hex()}.{self.segment:05d}"


def pack(frame: bytes, number: int, time: int, seed: int) -> bytes:
    """The header that goes before a frame."""
    fields = _FIELDS.pack(MAGIC, len(frame), number, time, crc32(frame))
    return fields + _CHECK.pack(crc32(fields, seed))


def scan(data: bytes, base: int, source: Source, number: int, limit: int) -> Scan:
    """Read up to `limit` records that follow record `number`; `base` is where in the file the data starts."""
    entries: list[Entry] = []
    identity, segment, seed = source
    at, size = 0, len(data)
    unpack, place, checked = _HEADER.unpack_from, _PLACE.pack, HEADER - _CHECK.size
    while at < size:
        if len(entries) >= limit:
            return Scan(entries, at, number, "full")
        start = at + HEADER
        if start > size:
            state: State = "torn" if MAGIC.startswith(data[at : at + len(MAGIC)]) else "bad"
            return Scan(entries, at, number, state, HEADER)
        magic, length, own, time, check, header_check = unpack(data, at)
        if (
            magic != MAGIC
            or crc32(data[at : at + checked], seed) != header_check
            or own <= number
            or length > MAX_FRAME
        ):
            return Scan(entries, at, number, "bad")
        end = start + length
        if end > size:
            return Scan(entries, at, number, "torn", HEADER + length)
        frame = data[start:end]
        if crc32(frame) != check:
            return Scan(entries, at, number, "spoilt", HEADER + length)
        entries.append((time, place(identity, segment, base + end), frame))
        at, number = end, own
    return Scan(entries, at, number, "end")


def next_header(data: bytes, start: int, seed: int, number: int) -> int:
    """Where the next good header after record `number` is, or -1. One that is cut off at the end is not seen."""
    at = data.find(MAGIC, start)
    while 0 <= at <= len(data) - HEADER:
        _, length, own, _, _, check = _HEADER.unpack_from(data, at)
        if crc32(data[at : at + HEADER - _CHECK.size], seed) == check and own > number and length <= MAX_FRAME:
            return at
        at = data.find(MAGIC, at + 1)
    return -1


def parts_of(places: Mapping[bytes, Place]) -> dict[bytes, bytes]:
    """Each writer's part of a cursor; the cursor is the incarnation and all the parts."""
    return {identity: _PLACE.pack(identity, *place) for identity, place in places.items()}


def places_of(cursor: bytes, incarnation: bytes) -> dict[bytes, Place] | None:
    """The positions in a cursor, or None if it is of another channel, of an earlier one of that name, or no cursor."""
    if not cursor.startswith(incarnation) or (len(cursor) - INCARNATION) % _PLACE.size:
        return None
    places = _PLACE.iter_unpack(memoryview(cursor)[INCARNATION:])
    return {identity: Place(segment, offset) for identity, segment, offset in places}


def later(one: Mapping[bytes, Place], other: Mapping[bytes, Place]) -> dict[bytes, Place]:
    """The later of both positions, writer by writer."""
    merged = dict(one)
    for identity, place in other.items():
        merged[identity] = max(place, merged.get(identity, place))
    return merged


# ---- what has been forgotten: a cursor in a file, overwritten in place by its one writer

_FLOOR = Struct("<4sII")
_FLOOR_MAGIC = b"\xf5RVf"


def pack_floor(cursor: bytes) -> bytes:
    return _FLOOR.pack(_FLOOR_MAGIC, len(cursor), crc32(cursor)) + cursor


def floor_of(data: bytes) -> bytes | None:
    """The cursor, or None if it is being written right now, or is damaged."""
    if len(data) < _FLOOR.size:
        return None
    magic, length, check = _FLOOR.unpack_from(data)
    cursor = data[_FLOOR.size : _FLOOR.size + length]
    return cursor if magic == _FLOOR_MAGIC and len(cursor) == length and crc32(cursor) == check else None


# ---- the lease of a channel; when it ends is the modification time of its file

_LEASE = Struct("<4sH8sQI")
_LEASE_MAGIC = b"\xf5RVk"
_VERSION = 1


def pack_lease(incarnation: bytes, cap: int) -> bytes:
    fields = _LEASE.pack(_LEASE_MAGIC, _VERSION, incarnation, min(max(0, cap), 2**63), 0)[: -_CHECK.size]
    return fields + _CHECK.pack(crc32(fields))


def lease_of(data: bytes) -> tuple[bytes, int] | None:
    """`(incarnation, cap)`, or None if this is no lease. Raises `ProtocolError` if it is of a later version."""
    if len(data) < _LEASE.size:
        return None
    magic, version, incarnation, cap, check = _LEASE.unpack_from(data)
    if magic != _LEASE_MAGIC or crc32(data[: _LEASE.size - _CHECK.size]) != check:
        return None
    if version != _VERSION:
        raise ProtocolError(f"the directory is of format {version}, this release reads {_VERSION}: upgrade it")
    return incarnation, cap


def numbered(names: Iterable[str]) -> dict[bytes, list[int]]:
    """The log files among these names: for each writer its segments, in order."""
    found: dict[bytes, list[int]] = {}
    for name in names:
        identity, dot, segment = name.partition(".")
        if dot and len(identity) == 2 * IDENTITY and segment.isdecimal() and int(segment) <= MAX_SEGMENT:
            try:
                found.setdefault(bytes.fromhex(identity), []).append(int(segment))
            except ValueError:
                continue
    for segments in found.values():
        segments.sort()
    return found
