"""What things are called on the servers.

    assistant.default             tasks of the queue "default"
    assistant;dead.default        a note about each of that queue's tasks that were buried
    assistant;part                the parts of bodies that are larger than a job may be
    assistant;c.NAME              frames of the channel NAME
    assistant;bell.HEX            what wakes one connection whose reserve waits

Letters, digits, dashes, dots and underscores stand for themselves, other bytes of a name become `$XX` (hexadecimal);
so does a dot in the namespace, which ends at its first one. What would be longer than a tube's name may be becomes `$x`
and a hash. The semicolon, which a queue's name never has then, tells our own tubes from queues.

A priority is 32 bits, and 0 the most urgent: the rank of the task's own stands above the count of its releases that do
not count as attempts, since a job's bytes cannot be changed and the server counts every reservation.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Literal, NamedTuple

from ...errors import UsageError
from ...protocols.beanstalkd import MAX_TUBE, check_tube

_OTHER = re.compile(rb"[^A-Za-z0-9._\-]")
_OTHER_OR_DOT = re.compile(rb"[^A-Za-z0-9_\-]")
_CODED = re.compile(rb"\$([0-9A-F]{2})")
_PREFIX = 80  # bytes of a namespace
_BITS = 16
_SHORTEST = 0.05  # seconds
UNCOUNTED = (1 << _BITS) - 1
"""Releases that do not count that are counted, at most."""


def _encode(name: str, other: re.Pattern[bytes], room: int) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    text = other.sub(lambda found: b"$%02X" % found[0][0], raw).decode()
    return text if len(text) <= room else "$x" + hashlib.sha256(raw).hexdigest()


def decode(text: str) -> str:
    """The name that was encoded; a hash stays one."""
    raw = text.encode("utf-8", "surrogateescape")
    return _CODED.sub(lambda found: bytes([int(found[1], 16)]), raw).decode("utf-8", "surrogateescape")


def priority_of(priority: int, uncounted: int = 0) -> int:
    """beanstalkd's priority for one of -9, the last, to 9, the first; and so many releases that do not count."""
    return (9 - max(-9, min(9, priority))) << _BITS | min(uncounted, UNCOUNTED)


def whole(delay: float) -> int:
    """The seconds of a delay as beanstalkd has them, rounded up; what is shorter than anybody could tell is none."""
    return math.ceil(delay) if delay >= _SHORTEST else 0


def uncounted_of(priority: int) -> int:
    """The releases that do not count, from beanstalkd's priority of a task of ours."""
    return priority & UNCOUNTED


class Meaning(NamedTuple):
    """What a tube is to us."""

    kind: Literal["queue", "dead", "part", "channel", "bell", "foreign"]
    name: str


class Names:
    """The names of one namespace."""

    def __init__(self, namespace: str) -> None:
        prefix = _encode(namespace, _OTHER_OR_DOT, _PREFIX)
        self.prefix = "$2D" + prefix[1:] if prefix.startswith("-") else prefix
        self.part = f"{self.prefix};part".encode()
        self._room = MAX_TUBE - len(self.prefix) - len(";dead.")
        self._queues: dict[str, bytes] = {}
        self._channels: dict[str, bytes] = {}

    def queue(self, queue: str) -> bytes:
        """The tube of a queue's tasks."""
        return self._known(self._queues, queue, ".")

    def channel(self, channel: str) -> bytes:
        return self._known(self._channels, channel, ";c.")

    def dead(self, queue: str) -> bytes:
        return f"{self.prefix};dead.{_encode(queue, _OTHER, self._room)}".encode()

    def bell(self, word: str) -> bytes:
        return f"{self.prefix};bell.{word}".encode()

    def foreign(self, tube: str) -> bytes:
        """A tube of other programs. Raises `UsageError` for one of ours, and what beanstalkd cannot hold."""
        name = check_tube(tube)
        if self.meaning(tube).kind != "foreign":
            raise UsageError(
                f"the tube {tube!r} is one that the namespace {self.prefix!r} keeps for itself: choose another name, "
                "or another namespace (the path of the URL)"
            )
        return name

    def meaning(self, tube: str) -> Meaning:
        """What a tube on a server is."""
        if tube.startswith(self.prefix + "."):
            return Meaning("queue", decode(tube[len(self.prefix) + 1 :]))
        if tube.startswith(self.prefix + ";"):
            kind, _, name = tube[len(self.prefix) + 1 :].partition(".")
            if kind in _KINDS:
                return Meaning(_KINDS[kind], decode(name))
        return Meaning("foreign", tube)

    def _known(self, known: dict[str, bytes], name: str, mark: str) -> bytes:
        tube = known.get(name)
        if tube is None:
            tube = f"{self.prefix}{mark}{_encode(name, _OTHER, self._room)}".encode()
            if len(known) < 10_000:
                known[name] = tube
        return tube


_KINDS: dict[str, Literal["dead", "part", "channel", "bell"]] = {
    "dead": "dead",
    "part": "part",
    "c": "channel",
    "bell": "bell",
}
