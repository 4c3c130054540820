"""What things are called on the servers.

    assistant.q.default           tasks of the queue "default" with priority 0, as jobs of the class "normal"
    assistant.q.default:p9        … with priority 9, class "high";  :m9 with priority -9, class "low"
    assistant.delayed             tasks of every queue that are not due yet
    assistant.buried.default      tasks that were buried
    assistant.c.NAME              frames of the channel NAME

Letters, digits, dots and underscores stand for themselves, other bytes of a name become `:XX` (hexadecimal); what would
be longer than gearmand keeps becomes `:x` and a hash. The dash is among those others because gearmand's Redis store,
before August 2026, takes a name apart at its dashes.

A function of its own for each priority, because gearmand has three classes and tasks have 19 priorities. Before 2.0 it
takes jobs in the order of functions, so that the order is exact; later ones take by class over all functions, and
within a class in turn.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal, NamedTuple

from ...errors import UsageError
from ...protocols.gearman.limits import check_function

_OTHER = re.compile(rb"[^A-Za-z0-9._]")
_ROOM = 200  # characters of a queue's or channel's name; gearmand keeps 512 of the whole
_CODED = re.compile(rb":([0-9A-F]{2})")
_PRIORITY = re.compile(r":([pm])([1-9])\Z")
_UNIQUE = re.compile(r"[A-Za-z0-9._-]{1,60}\Z")

PRIORITIES = range(9, -10, -1)
"""Highest first."""


def encode(name: str) -> str:
    """A name in the characters that all of gearmand's lists and stores can hold; different for different names."""
    raw = name.encode("utf-8", "surrogateescape")
    text = _OTHER.sub(lambda found: b":%02X" % found[0][0], raw).decode()
    return text if len(text) <= _ROOM else ":x" + hashlib.sha256(raw).hexdigest()


def decode(text: str) -> str:
    """The name that was encoded; a hash stays one."""
    raw = text.encode("utf-8", "surrogateescape")
    return _CODED.sub(lambda found: bytes([int(found[1], 16)]), raw).decode("utf-8", "surrogateescape")


class Meaning(NamedTuple):
    """What a function is to us. `priority` is of tasks of a queue."""

    kind: Literal["queue", "delayed", "buried", "channel", "foreign"]
    name: str
    priority: int = 0


class Names:
    """The names of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.prefix = encode(namespace)
        self.delayed = f"{self.prefix}.delayed".encode()
        self.channels = f"{self.prefix}.c.".encode()
        self.parked = f"{self.prefix}.buried.".encode()
        self._queues: dict[tuple[str, int], bytes] = {}

    def queue(self, queue: str, priority: int) -> bytes:
        """The function of a queue's tasks of that priority."""
        name = self._queues.get((queue, priority))
        if name is None:
            priority = max(-9, min(9, priority))
            tail = "" if not priority else f":{'p' if priority > 0 else 'm'}{abs(priority)}"
            name = f"{self.prefix}.q.{encode(queue)}{tail}".encode()
            if len(self._queues) < 10_000:
                self._queues[queue, priority] = name
        return name

    def buried(self, queue: str) -> bytes:
        return self.parked + encode(queue).encode()

    def channel(self, channel: str) -> bytes:
        return self.channels + encode(channel).encode()

    def foreign(self, function: str) -> bytes:
        """A plain function of other programs. Raises `UsageError` for one of ours, and what gearmand cannot hold."""
        name = check_function(function)
        if self.meaning(function).kind != "foreign":
            raise UsageError(
                f"the function {function!r} is one that the namespace {self.prefix!r} keeps for itself: choose another "
                "name, or another namespace (the path of the URL)"
            )
        return name

    def meaning(self, function: str) -> Meaning:
        """What a function on a server is."""
        if function == self.delayed.decode():
            return Meaning("delayed", "")
        for part, kind in _PARTS.items():
            head = f"{self.prefix}.{part}."
            if function.startswith(head):
                name = function[len(head) :]
                found = _PRIORITY.search(name) if kind == "queue" else None
                if found is None:
                    return Meaning(kind, decode(name))
                number = int(found[2]) if found[1] == "p" else -int(found[2])
                return Meaning(kind, decode(name[: found.start()]), number)
        return Meaning("foreign", function)


_PARTS: dict[str, Literal["queue", "buried", "channel"]] = {"q": "queue", "buried": "buried", "c": "channel"}


def unique(task_id: str) -> str:
    """What identifies a task on the servers: its id, or a hash of it where that is too long or has odd characters."""
    if _UNIQUE.match(task_id):
        return task_id
    return ":" + hashlib.sha256(task_id.encode("utf-8", "surrogateescape")).hexdigest()[:59]


READY = ("", "~1", "~2", "~3")
"""What may follow the unique of a task in a queue's function."""
DELAYED = ("@0", "@1")
"""… and while it is delayed."""


def suffix(unique: bytes) -> str:
    """What follows the task's own unique in that of a job."""
    tail = unique[-2:].decode("latin-1")
    return tail if tail in READY or tail in DELAYED else ""
