"""What a worker says of itself to the queue that it takes from, for `client.workers()` and `revolve top`.

JSON, unsealed and small, so that a shell script can read it: names, numbers and ids of tasks, never arguments. Whoever
can write to the queue can write it: it is shown and decides nothing.
"""

from __future__ import annotations

import msgspec


class Running(msgspec.Struct, frozen=True):
    """A task that a worker runs: `since` is the Unix time at which it was taken."""

    id: str
    name: str
    queue: str = "default"
    attempt: int = 1
    since: float = 0.0


class About(msgspec.Struct, frozen=True):
    """One worker. Unix times in seconds; `time` is when it said so."""

    name: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""
    state: str = ""
    """`running`, `draining` or `stopping`."""
    pool: str = ""
    queues: list[str] = []
    concurrency: int = 0
    started: float = 0.0
    time: float = 0.0
    busy: dict[str, int] = {}
    """How many tasks of each queue it runs."""
    running: list[Running] = []
    """Up to 20 of them, the oldest first."""
    functions: list[str] = []
    """Names of functions that it has run, up to 200."""
    taken: int = 0
    settled: int = 0
    rate: float = 0.0
    """Tasks settled a second, in the last ten or so."""
    keys: list[str] = []
    """Fingerprints of its secrets."""
    key: str = ""
    """What the queue knows it by."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(About).decode


def write(about: About) -> bytes:
    """As bytes for `Queue.introduce`."""
    return _encode(about)


def read(key: str, data: bytes) -> About:
    """What a worker said; what is no such thing is a worker of which nothing but its key is known."""
    try:
        return msgspec.structs.replace(_decode(data), key=key)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return About(name=key, key=key)
