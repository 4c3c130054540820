"""The reading side: poll the counters, fetch the slots that are new, and settle what never came.

    counters ─▶ head ≥ my place? ─▶ slots place…head ─▶ blocks ─▶ messages
                      │                    │ one is missing
                      no                   ▼
                      │        allocated, not stored: a moment ago?  wait, at most `GRACE` from when it was missed
                 sleep 1…8…250 ms          │ still missing
                                           ▼
                               behind the tail: go on there; else `add` a tombstone, and go on after it

Whoever adds to the slot first decides, for every reader: a writer that comes later finds the tombstone and writes again
at a new position. So a writer that died between allocating and storing delays the channel once by the grace and blocks
it never; a slot that memcached evicted costs the same. The reader above sees what is missing in its own numbering.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from ...errors import Unreachable
from ...messenger import Batch, Message
from . import codec
from .block import (
    LARGE,
    OVERHEAD,
    SHIFT,
    TOMBSTONE,
    Keys,
    Place,
    cursor_of,
    numbers_of,
    place_after,
    size_of,
    start_of,
    ttl_of,
    unpack,
)
from .server import Server, refusal

GRACE = 0.25  # seconds between allocating a slot and storing it, unless its writer asked for more
TOMBSTONES = 120.0  # seconds that a tombstone is kept: longer than a writer believes that its slot is still its own
_WINDOW = 128  # slots fetched at once, at most: even if each of them holds a megabyte
_FETCH = 4 << 20  # bytes that one fetch should bring
_ENOUGH = 8 << 20  # bytes that a read gives, and one message more
_STONES = 500  # tombstones set at once
_PIECES = 4  # of a large frame, at once


class Spot:
    """Where reading of one channel stands, beyond what the caller's cursor says."""

    __slots__ = ("cursor", "held", "missing", "place", "settled", "since")

    def __init__(self, cursor: bytes, place: Place) -> None:
        self.cursor = cursor  # the caller's, to which all of this belongs
        self.place = place  # where to go on: after tombstones, which no cursor counts
        self.missing = False  # the slot at `place` was, when last looked at
        self.settled = 0  # slots up to here were allocated before `since`, so one wait is enough for all of them
        self.since = 0.0
        self.held: list[bytes] = []  # frames of the block at `place`, of which the caller has taken some

    def at(self, cursor: bytes, place: Place) -> None:
        self.cursor, self.place = cursor, place


class Look:
    """One look at the channels of a read."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.messages: list[Message] = []
        self.size = 0  # bytes of them
        self.lost: set[str] = set()
        self.again = False  # something was settled: look again at once
        self.waiting = False  # a slot is missing that may still come
        self.more = False  # it was not all that there is

    @property
    def room(self) -> int:
        return self.limit - len(self.messages)

    @property
    def full(self) -> bool:
        return self.room <= 0 or self.size >= _ENOUGH

    @property
    def found(self) -> bool:
        return bool(self.messages or self.lost)

    def batch(self) -> Batch:
        return Batch(self.messages, frozenset(self.lost))


class Reader:
    """What one Messenger knows of the channels that it reads. One thread at a time."""

    def __init__(self) -> None:
        self._spots: dict[str, Spot] = {}
        self._turn = 0
        self._block_bytes = 128.0 * 1024  # of a block: the most seen lately, soon forgotten
        self._block_frames = 1.0  # on average

    def look(self, server: Server, channels: Mapping[str, tuple[Keys, bytes]], look: Look) -> None:
        """One round at a server's channels, given as `{channel: (keys, cursor)}`. Raises `Unreachable`."""
        heads = self._heads(server, channels, look)
        moved = [channel for channel, head in heads.items() if head >= self._spots[channel].place.position]
        self._turn += 1
        start = self._turn % len(moved) if moved else 0  # so that no busy channel starves another
        window = self._window(look.room, len(moved))
        wanted: list[tuple[str, int]] = []
        for channel in moved[start:] + moved[:start]:
            spot = self._spots[channel]
            number = 1 if spot.missing or spot.held else window
            last = min(heads[channel], spot.place.position + number - 1)
            wanted += [(channel, position) for position in range(spot.place.position, last + 1)]
        if wanted:
            self._deliver(server, channels, heads, wanted, look)
            look.more |= any(self._spots[channel].place.position <= heads[channel] for channel in moved)

    def prune(self, channels: Iterable[str]) -> None:
        """Forget what concerns other channels, when that is much."""
        kept = set(channels)
        if len(self._spots) > 2 * len(kept) + 256:
            self._spots = {channel: spot for channel, spot in self._spots.items() if channel in kept}

    # ---- where things stand

    def _heads(self, server: Server, channels: Mapping[str, tuple[Keys, bytes]], look: Look) -> dict[str, int]:
        """The head of each channel that is there, with a spot for each; the others are lost."""
        commands = [codec.get(keys.counter) for keys, _ in channels.values()]
        starting = [
            channel for channel, (_, cursor) in channels.items() if not cursor and self._known(channel, b"") is None
        ]
        commands += [codec.get(channels[channel][0].tail) for channel in starting]
        answers = _sound(server, server.ask(commands))
        tails = dict(zip(starting, answers[len(channels) :], strict=True))
        heads: dict[str, int] = {}
        for (channel, (_, cursor)), answer in zip(channels.items(), answers, strict=False):
            counted = numbers_of(answer.value, 1) if answer.code == b"VA" else None
            spot = self._known(channel, cursor)
            if counted is not None and spot is None:
                place = place_after(cursor) if cursor else _tail(counted[0], tails.get(channel))
                if place is not None:
                    spot = self._spots[channel] = Spot(cursor, place)
            if counted is None or spot is None or spot.place.position >> SHIFT != counted[0] >> SHIFT:
                self._spots.pop(channel, None)
                # From the start there is nothing to lose but the place in a log that is gone: the next look finds it.
                if counted is not None and not cursor:
                    look.again = True
                else:
                    look.lost.add(channel)
                continue
            heads[channel] = counted[0]
        return heads

    def _known(self, channel: str, cursor: bytes) -> Spot | None:
        spot = self._spots.get(channel)
        return spot if spot is not None and spot.cursor == cursor else None

    def _window(self, room: int, channels: int) -> int:
        """How many slots of each channel to fetch, so that about `room` frames and some megabytes come."""
        by_bytes = _FETCH / (self._block_bytes + OVERHEAD)
        by_frames = room / self._block_frames + 1
        return max(1, int(min(by_bytes, by_frames, _WINDOW) / max(1, channels)))

    # ---- what is there

    def _deliver(
        self,
        server: Server,
        channels: Mapping[str, tuple[Keys, bytes]],
        heads: Mapping[str, int],
        wanted: list[tuple[str, int]],
        look: Look,
    ) -> None:
        fetched = [(channel, position) for channel, position in wanted if not self._spots[channel].held]
        answers = server.ask([codec.get(channels[channel][0].slot(position), b" f v") for channel, position in fetched])
        found = dict(zip(fetched, _sound(server, answers), strict=True))
        done: set[str] = set()
        for channel, position in wanted:
            spot, keys = self._spots[channel], channels[channel][0]
            if channel in done or look.full:
                continue
            frames = spot.held
            if not frames:
                answer = found[channel, position]
                if answer.code != b"VA":
                    done.add(channel)
                    self._miss(server, keys, spot, heads[channel], look)
                    continue
                frames = self._frames(server, keys, answer)
            spot.missing = False
            self._hand_over(channel, spot, frames, look)
            if spot.held:
                done.add(channel)

    def _hand_over(self, channel: str, spot: Spot, frames: list[bytes], look: Look) -> None:
        position, offset = spot.place
        cursor = spot.cursor
        for frame in frames[offset : offset + look.room]:
            offset += 1
            cursor = cursor_of(position, offset, len(frames))
            look.messages.append(Message(channel, frame, cursor))
            look.size += len(frame)
        complete = offset >= len(frames)
        spot.held = [] if complete else frames
        spot.at(cursor, Place(position + 1, 0) if complete else Place(position, offset))

    def _frames(self, server: Server, keys: Keys, answer: codec.Answer) -> list[bytes]:
        """The frames in a slot; none in a tombstone, or where a piece of a large one is gone."""
        flags = answer.flag(b"f") or 0
        if flags & 3 == TOMBSTONE:
            return []
        if flags & 3 != LARGE:
            frames = unpack(answer.value) or []
            size = len(answer.value)
            self._block_bytes = max(size, self._block_bytes + (size - self._block_bytes) / 32)
            self._block_frames += (len(frames) - self._block_frames) / 8
            return frames
        whole, pieces = size_of(answer.value), []
        names = keys.pieces(flags)
        for start in range(0, len(names), _PIECES):
            for piece in _sound(server, server.ask([codec.get(name) for name in names[start : start + _PIECES]])):
                if piece.code != b"VA":
                    return []
                pieces.append(piece.value)
        block = b"".join(pieces)
        return (unpack(block) or []) if len(block) == whole else []

    # ---- what is not

    def _miss(self, server: Server, keys: Keys, spot: Spot, head: int, look: Look) -> None:
        """The slot at the spot is missing: wait for it, or settle it."""
        now = time.monotonic()
        seen_before, spot.missing = spot.missing, True
        if spot.place.position > spot.settled:
            spot.since, spot.settled = now, head
        waited = now - spot.since
        if (waited >= GRACE or not seen_before) and self._settle(server, keys, spot, waited):
            look.again = True
        else:
            look.waiting = True

    def _settle(self, server: Server, keys: Keys, spot: Spot, waited: float) -> bool:
        """Go on behind what is missing: at once if it was forgotten or trimmed, else if its time is over."""
        first = spot.place.position
        grace, tail = _sound(server, server.ask([codec.get(keys.grace), codec.get(keys.tail)]))
        place = numbers_of(tail.value, 2)
        if place and place[0] >> SHIFT == first >> SHIFT and place[0] > first:
            spot.at(spot.cursor, Place(place[0], place[1]))
            spot.missing = False
            return True
        asked = numbers_of(grace.value, 1)
        if waited < max(GRACE, asked[0] / 1000 if asked else 0.0):
            return False
        last = min(spot.settled, first + _STONES - 1)
        stone = {"ttl": ttl_of(TOMBSTONES), "flags": TOMBSTONE, "add": True}
        answers = server.ask([codec.put(keys.slot(n), b"", **stone) for n in range(first, last + 1)])  # type: ignore[arg-type]
        for answer in answers:
            if answer.code == b"NS":  # it is there by now
                break
            first += 1  # ours, or the server is too full even for that: then a writer was refused too
        spot.at(spot.cursor, Place(first, 0))
        spot.missing = False
        return True


def _tail(counter: int, answer: codec.Answer | None) -> Place:
    """Where a log starts."""
    place = numbers_of(answer.value, 2) if answer is not None and answer.code == b"VA" else None
    if place and place[0] >> SHIFT == counter >> SHIFT:
        return Place(place[0], place[1])
    return Place(start_of(counter), 0)


def _sound(server: Server, answers: list[codec.Answer]) -> list[codec.Answer]:
    for answer in answers:
        if answer.refused:
            raise Unreachable(f"memcached at {server.name} failed: {refusal(server, answer)}")
    return answers
