"""A schedule as the queue keeps it: a sealed recipe for tasks, and the times it is due.

    Client.schedule ── sealed( Planned ) ──▶ Queue.plan ──▶ Queue.overdue ── any worker: Envelope ──▶ Queue.fire

The queue sees bytes and a time. Whoever can write to the queue but does not hold the secret can remove a schedule and
change when it is due, but not what it does: a worker makes tasks only of what was sealed for this very key.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec.structs import replace

from ..engine import Parcel
from ..errors import ProtocolError
from . import envelope as wire
from .seal import Keyring, Purpose
from .timetable import Timetable

VERSION = 1


class Planned(msgspec.Struct, array_like=True, frozen=True):
    """What to submit, and when. From `name` on as in `Envelope` and `Parcel`.

    `seed` is random and has tasks of two schedules never share an id; `since` is the Unix time from which on the
    schedule is as it is.
    """

    version: int
    key: str
    seed: bytes
    since: float
    every: float  # seconds; 0.0: as cron says
    cron: str
    zone: str
    name: str
    kind: str
    body: bytes
    payload: bytes
    buffers: list[bytes]
    terms: wire.Terms
    queue: str
    priority: int = 0
    delay: float = 0.0
    unique: str | None = None
    history: float = 0.0

    def timetable(self) -> Timetable:
        """Raises `ProviderMissing`, `UsageError`."""
        return Timetable(self.key, self.every, self.cron, self.zone)

    def same_times(self, other: Planned) -> bool:
        return (self.every, self.cron, self.zone) == (other.every, other.cron, other.zone)

    def same(self, other: Planned) -> bool:
        """But for how it came about."""
        return replace(self, seed=other.seed, since=other.since) == other

    def task_id(self, tick: float) -> str:
        """The id of the task of one tick: the same for all who compute it."""
        return blake2b(b"%d %s" % (round(tick * 1000), self.seed), digest_size=16).hexdigest()

    def parcel(self, keys: Keyring, namespace: str, tick: float, sent: float, expires: float) -> Parcel:
        """The task of one tick, sealed as one that a client submits. Nobody's inbox hears of it: its log does."""
        id = self.task_id(tick)
        inside = wire.Envelope(
            wire.VERSION, id, "", self.name, self.kind, self.body, self.payload, sent, self.terms, self.buffers, [],
            self.history,
        )  # fmt: skip
        sealed = keys.seal(Purpose.TASK, f"{namespace}/{self.queue}", wire.encode(inside), expires=expires)
        return Parcel(
            id,
            body=wire.wrap("", sealed),
            queue=self.queue,
            priority=self.priority,
            delay=self.delay,
            name=self.name,
            unique=self.unique,
        )


def new_seed() -> bytes:
    return os.urandom(8)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Planned).decode


def seal(keys: Keyring, namespace: str, planned: Planned) -> bytes:
    """What the queue keeps."""
    return keys.seal(Purpose.PLAN, f"{namespace}/{planned.key}", _encode(planned))


def unseal(keys: Keyring, namespace: str, key: str, spec: bytes) -> Planned:
    """Read what the queue kept under this key. Raises `Untrusted`, `ProtocolError`."""
    data: Any = keys.open(Purpose.PLAN, f"{namespace}/{key}", spec)
    try:
        found = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"schedule {key!r} is of another release, or none: {error}") from error
    if found.version != VERSION:
        raise ProtocolError(f"schedule {key!r} is of version {found.version}; this release reads {VERSION}")
    return found
