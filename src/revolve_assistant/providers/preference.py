"""Which of several servers a key goes to."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from ..protocols.stream import named

Order = tuple[int, ...]


class Preference:
    """Which servers, by their index, a key goes to: the first choice is spread evenly, and is the same for everybody
    whose URL names the same servers, in whatever order. Without one server the others' keys stay where they are."""

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        self._keys = [named(server).encode() for server in servers]
        self._all: Order = tuple(range(len(servers)))

    def order(self, key: bytes) -> Order:
        if len(self._all) == 1:
            return self._all
        scores = [blake2b(key, digest_size=8, key=name[-64:]).digest() for name in self._keys]
        return tuple(sorted(self._all, key=lambda index: scores[index]))
