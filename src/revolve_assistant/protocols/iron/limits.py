"""What Iron.io's documentation says is the most that it takes. Seconds are whole numbers there."""

from __future__ import annotations

import math
import re

from ...errors import UsageError

BATCH = 100  # messages posted, reserved, peeked at or deleted at once
LONGEST_POLL = 30  # seconds
LONGEST_DELAY = 604_800
LONGEST_RESERVATION = 86_400
LONGEST_EXPIRATION = 2_592_000
SHORTEST_EXPIRATION = 60
PLANS = 64 << 10, 256 << 10
"""Bytes of one request with messages: the smallest plan, the largest."""
PAYLOAD = 64 << 10  # bytes of an IronWorker task's payload
LONGEST_RUN = 3600  # seconds that IronWorker lets a task run

_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,255}\Z")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def check_queue(name: str) -> str:
    """The name of a queue as it may stand in a path. Raises `UsageError`."""
    if not _QUEUE.match(name) or not name.strip("."):
        raise UsageError(f"{name!r:.100} is no name of an IronMQ queue: letters, digits, '.', '_' and '-', 1 to 255")
    return name


def check_id(id: str) -> str:
    """The id of a message or task as it may stand in a path. Raises `UsageError`.

    An empty one would turn "delete this message" into "clear the queue".
    """
    if not _ID.match(id):
        raise UsageError(f"{id!r:.100} is no id of Iron's")
    return id


def whole(seconds: float, most: int, least: int = 0) -> int:
    """Seconds as Iron takes them, rounded up: nothing comes before its time."""
    return max(least, min(most, math.ceil(seconds)))
