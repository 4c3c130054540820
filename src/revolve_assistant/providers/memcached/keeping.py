"""Making channels, renewing them, and forgetting what was read.

A channel lives as long as its counter. Slots are written to live twice as long and a minute, so that a renewal seldom
has to touch them; where one that was renewed long ago would end before its channel, all of them are.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from . import codec
from .block import SHIFT, Keys, Place, birth, numbers_of, place_after, slot_seconds, tail_text, ttl_of
from .clearing import clear, renew
from .server import Server, refusal
from .writing import DAY, trim

_KNOWN = 10_000  # channels of which a keeper remembers anything


class Keeper:
    """What one Messenger knows of the channels that it keeps. One thread at a time."""

    def __init__(self) -> None:
        self._lasting: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # (generation, until when all slots live)

    def keep(self, server: Server, channels: Sequence[Keys], seconds: float, cap: int) -> None:
        """Make or renew channels of a server. Raises `Unreachable`, `Overloaded`."""
        commands = [
            command for keys in channels for command in (codec.get(keys.counter, b" v t"), codec.get(keys.terms))
        ]
        answers = server.ask(commands)
        wanted: list[bytes] = []
        touched: list[tuple[Keys, int]] = []
        trimmed: list[tuple[Keys, int]] = []
        for keys, counter, terms in zip(channels, answers[::2], answers[1::2], strict=True):
            known = numbers_of(counter.value, 1) if counter.code == b"VA" else None
            given = numbers_of(terms.value, 2) if terms.code == b"VA" else None
            longest = math.ceil(seconds)
            if known is None:
                start = birth()
                wanted.append(codec.put(keys.counter, b"%d" % start, ttl=ttl_of(seconds), add=True))
                self._remember(keys, start, slot_seconds(seconds))
            else:
                # Never less than somebody asked for before, since slots are written to outlive that.
                longest = max(longest, given[0] if given else 0)
                left = counter.flag(b"t")
                if left is not None and 0 <= left < math.ceil(seconds) + 1:
                    wanted += [
                        codec.touch(keys.counter, ttl_of(seconds)),
                        codec.touch(keys.tail, ttl_of(slot_seconds(seconds))),
                    ]
                touched.append((keys, known[0]))
                if given and cap < given[1]:
                    trimmed.append((keys, longest))
            wanted.append(codec.put(keys.terms, b"%d %d" % (longest, cap), ttl=ttl_of(longest)))
        for answer in server.ask(wanted):
            if answer.refused:
                raise refusal(server, answer)
        for keys, head in touched:
            self._renew(server, keys, head, seconds)
        for keys, longest in trimmed:
            trim(server, keys, cap, longest)

    def _renew(self, server: Server, keys: Keys, head: int, seconds: float) -> None:
        now = time.monotonic()
        generation, until = self._lasting.get(keys.stem, (0, 0.0))
        if generation == head >> SHIFT and now + seconds + 1 < until:
            # What is written from now on lasts at least this long; what there is, as long as before.
            self._remember(keys, head, min(until - now, slot_seconds(seconds)))
            return
        (tail,) = server.ask([codec.get(keys.tail)])
        renew(server, keys, _low(tail, head), head + 1, ttl_of(slot_seconds(seconds)))
        self._remember(keys, head, slot_seconds(seconds))

    def _remember(self, keys: Keys, head: int, seconds: float) -> None:
        self._lasting[keys.stem] = head >> SHIFT, time.monotonic() + seconds
        self._lasting.move_to_end(keys.stem)
        if len(self._lasting) > _KNOWN:
            self._lasting.popitem(last=False)


def forget(server: Server, keys: Keys, upto: bytes | None) -> None:
    """Drop the messages up to and including a cursor, or the whole channel. Raises `Unreachable`."""
    counter, tail, terms = server.ask([codec.get(key) for key in (keys.counter, keys.tail, keys.terms)])
    head = numbers_of(counter.value, 1) if counter.code == b"VA" else None
    if not head:
        return
    low = _low(tail, head[0])
    if upto is None:
        server.ask([codec.delete(key) for key in (keys.counter, keys.terms, keys.tail, keys.grace)])
        clear(server, keys, low, head[0] + 1)
        return
    place = place_after(upto)
    if place is None or place.position >> SHIFT != head[0] >> SHIFT or place.position > head[0] + 1:
        return  # of an earlier log
    given = numbers_of(tail.value, 2) if low is not None else None
    if given and place <= Place(given[0], given[1]):
        return
    known = numbers_of(terms.value, 2) if terms.code == b"VA" else None
    ttl = ttl_of(slot_seconds(known[0] if known else DAY))
    server.ask([codec.put(keys.tail, tail_text(place), ttl=ttl)])
    clear(server, keys, low, place.position)


def _low(tail: codec.Answer, head: int) -> int | None:
    """The first position of a log that may be there; None: nobody knows."""
    given = numbers_of(tail.value, 2) if tail.code == b"VA" else None
    return given[0] if given and given[0] >> SHIFT == head >> SHIFT else None


def each(channels: Iterable[str]) -> list[str]:
    """The names, each once."""
    return list(dict.fromkeys(channels))
