"""Walking over the slots of a log: what they take up, and deleting them."""

from __future__ import annotations

from collections.abc import Iterator

from . import codec
from .block import OVERHEAD, TOMBSTONE, Keys, start_of
from .server import Server

_STEP = 500  # slots at once


def back(low: int | None, high: int) -> Iterator[range]:
    """The positions before `high`, in steps, the newest step first; without `low` down to the start of the log."""
    first = start_of(high) if low is None else low
    while high > first:
        start = max(first, high - _STEP)
        yield range(start, high)
        high = start


def sizes_before(server: Server, keys: Keys, head: int, low: int | None, cap: int) -> int | None:
    """The first position of the newest blocks that fit into `cap` bytes, the very newest included; None: all fit."""
    total = 0
    for positions in back(low, head + 1):
        answers = server.ask([codec.get(keys.slot(position), b" s f") for position in positions])
        slots = {
            position: (answer.flag(b"s") or 0, keys.pieces(answer.flag(b"f") or 0))
            for position, answer in zip(positions, answers, strict=True)
            if answer.code == b"HD"
        }
        pieces = [piece for _, own in slots.values() for piece in own]
        sizes = dict(zip(pieces, server.ask([codec.get(piece, b" s") for piece in pieces]), strict=True))
        for position, (size, own) in reversed(slots.items()):
            total += size + OVERHEAD + sum((sizes[piece].flag(b"s") or 0) + OVERHEAD for piece in own)
            if total > cap and position < head:
                return position + 1
        if low is None and not slots:
            break
    return None


def clear(server: Server, keys: Keys, low: int | None, high: int) -> None:
    """Delete the slots from `low` up to and not including `high`; without `low`, as long as any are found.

    Tombstones stay until they end: a writer that is late must find them.
    """
    for positions in back(low, high):
        slots = [keys.slot(position) for position in positions]
        answers = server.ask([codec.get(slot, b" f") for slot in slots])
        there = [
            (slot, answer.flag(b"f") or 0) for slot, answer in zip(slots, answers, strict=True) if answer.code == b"HD"
        ]
        gone = [slot for slot, flags in there if flags & 3 != TOMBSTONE]
        gone += [piece for _, flags in there for piece in keys.pieces(flags)]
        server.ask([codec.delete(key) for key in gone])
        if low is None and not there:
            break


def renew(server: Server, keys: Keys, low: int | None, high: int, ttl: int) -> None:
    """Give the slots before `high` this time to live."""
    for positions in back(low, high):
        answers = server.ask([b"mg %b T%d f\r\n" % (keys.slot(position), ttl) for position in positions])
        there = [answer.flag(b"f") or 0 for answer in answers if answer.code == b"HD"]
        pieces = [codec.touch(name, ttl) for flags in there for name in keys.pieces(flags)]
        if pieces:
            server.ask(pieces)
        if low is None and not there:
            break
