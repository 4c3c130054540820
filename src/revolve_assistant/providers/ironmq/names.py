"""What queues are called at IronMQ.

    assistant.q.default      tasks of the queue "default"
    assistant.dead.default   tasks that were buried
    assistant.c.NAME         frames of the channel NAME
    assistant.b.HASH         the parts of a task that is larger than a message
    assistant.u.MESSAGE      one message for each time that a task was given back without counting
    assistant.kept           notices of the janitor's

Letters, digits, dots and dashes stand for themselves, other bytes of a name become `_XX` (hexadecimal); what would be
too long becomes `_x` and a hash.
"""

from __future__ import annotations

import hashlib
import re

_OTHER = re.compile(rb"[^A-Za-z0-9.-]")
_CODED = re.compile(r"_([0-9A-F]{2})")
_ROOM = 160  # characters


def encode(name: str) -> str:
    """A name in characters that need no quoting; different for different names."""
    raw = name.encode("utf-8", "surrogateescape")
    text = _OTHER.sub(lambda found: b"_%02X" % found[0][0], raw).decode()
    return text if len(text) <= _ROOM else "_x" + hashlib.sha256(raw).hexdigest()


def decode(text: str) -> str:
    """The name that was encoded; a hash stays one."""
    coded = re.sub(_CODED, lambda found: chr(int(found[1], 16)), text)
    return coded.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


class Names:
    """The names of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"{encode(namespace)}."
        self.tasks = f"{self.prefix}q."
        self.dead = f"{self.prefix}dead."
        self.channels = f"{self.prefix}c."
        self.kept = f"{self.prefix}kept"

    def queue(self, queue: str) -> str:
        """Of a queue's tasks."""
        return self.tasks + encode(queue)

    def buried(self, queue: str) -> str:
        """Of a queue's buried tasks."""
        return self.dead + encode(queue)

    def channel(self, channel: str) -> str:
        """Of a channel's frames."""
        return self.channels + encode(channel)

    def parts(self, id: str, digest: bytes) -> str:
        """Of the parts of a task's body."""
        raw = id.encode("utf-8", "surrogateescape") + digest
        return f"{self.prefix}b.{hashlib.sha256(raw).hexdigest()[:40]}"

    def uncounted(self, message: str) -> str:
        """Of the times that a message was given back without counting."""
        return f"{self.prefix}u.{message}"
