"""The meta commands of memcached (1.6 and later), without I/O: requests as bytes, and a parser of the answers.

    mg KEY flags            get        VA size flags + data, HD flags (no value asked for), EN (none there)
    ms KEY size flags       store      HD, NS (`add`: something is there already), EX, NF
    ma KEY flags            count      VA size flags + number, NF
    md KEY flags            delete     HD, NF

Nothing is sent quietly: every command has exactly one answer, in order, so that a whole pipeline of different commands
is one round trip in which each learns its own fate. A refusal (`SERVER_ERROR`, `CLIENT_ERROR`, `ERROR`) is an answer
too. Whatever else arrives raises `ProtocolError`: the parser never guesses, and must not be used any further.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import ProtocolError

LINE = 2048  # bytes; an answer's first line is far shorter
VALUE = 128 << 20  # bytes; more than any item size that memcached can be told to allow is ever good for

_PLAIN = frozenset({b"HD", b"EN", b"NS", b"EX", b"NF", b"OK", b"MN"})
_REFUSALS = frozenset({b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR"})


class Answer(NamedTuple):
    """`code` (`VA`, `HD`, `EN`, `NS`, `NF`, `EX`, `VERSION`, `STORED`, a refusal), the rest of its line, the value."""

    code: bytes
    rest: bytes = b""
    value: bytes = b""

    @property
    def refused(self) -> bool:
        return self.code in _REFUSALS

    def flag(self, letter: bytes) -> int | None:
        """The number that follows a flag's letter; None if it was not returned."""
        for word in self.rest.split():
            if word[:1] == letter:
                try:
                    return int(word[1:])
                except ValueError:
                    return None
        return None


def get(key: bytes, flags: bytes = b" v") -> bytes:
    return b"mg %b%b\r\n" % (key, flags)


def put(key: bytes, value: bytes, *, ttl: int, flags: int = 0, add: bool = False) -> bytes:
    """Store, or with `add` only where nothing is yet. `ttl` as the server takes it; `flags` are 32 bits of ours."""
    return b"ms %b %d T%d F%d%b\r\n%b\r\n" % (key, len(value), ttl, flags, b" ME" if add else b"", value)


def count(key: bytes, delta: int) -> bytes:
    """Add to a counter that exists; the answer is its new value, or NF."""
    return b"ma %b D%d v\r\n" % (key, delta)


def touch(key: bytes, ttl: int) -> bytes:
    return b"mg %b T%d\r\n" % (key, ttl)


def delete(key: bytes) -> bytes:
    return b"md %b\r\n" % key


class Parser:
    """Bytes in, answers out; split them as you like. Not thread-safe."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._answers: list[Answer] = []
        self._missing = 0  # bytes until it is worth looking again

    def feed(self, data: bytes) -> None:
        """Take bytes in. Raises `ProtocolError` at the first that no memcached would send."""
        self._held += data
        if len(self._held) >= self._missing:
            self._parse()

    @property
    def ready(self) -> int:
        """How many answers are complete."""
        return len(self._answers)

    @property
    def wants(self) -> int:
        """Bytes that are certainly still to come for the next answer, at least 1."""
        return max(1, self._missing - len(self._held))

    @property
    def rest(self) -> int:
        """Bytes held that belong to no complete answer."""
        return len(self._held)

    def take(self, number: int) -> list[Answer]:
        """The first `number` answers."""
        taken, self._answers = self._answers[:number], self._answers[number:]
        return taken

    def _parse(self) -> None:
        held, start, size = self._held, 0, len(self._held)
        answers = self._answers
        self._missing = 0
        while start < size:
            end = held.find(b"\r\n", start, start + LINE)
            if end < 0:
                # No memcached starts so, nor ends a line so: nothing to wait for.
                if size - start >= LINE or not 65 <= held[start] <= 90 or held.find(b"\n", start) >= 0:
                    raise ProtocolError(f"an answer starts with {bytes(held[start : start + 40])!r}")
                break
            line = bytes(held[start:end])
            code, _, rest = line.partition(b" ")
            if code == b"VA":
                length, _, rest = rest.partition(b" ")
                if not length.isdigit() or len(length) > 9 or int(length) > VALUE:
                    raise ProtocolError(f"a value of {length[:40]!r} bytes")
                close = end + 2 + int(length)
                if close + 2 > size:
                    self._missing = close + 2 - start
                    break
                if held[close : close + 2] != b"\r\n":
                    raise ProtocolError(f"a value of {int(length)} bytes does not end there")
                answers.append(Answer(code, rest, bytes(held[end + 2 : close])))
                start = close + 2
            elif code in _PLAIN or code in _REFUSALS or code == b"VERSION" or line == b"STORED":
                answers.append(Answer(code, rest))
                start = end + 2
            else:
                raise ProtocolError(f"an answer reads {line[:40]!r}")
        del held[:start]
