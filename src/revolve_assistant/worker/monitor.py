"""The monitor channel: what happens to tasks on all workers, for whoever looks; never arguments, results or events.

    channel "monitor", sealed( [1, worker, [[task id, function, queue, event, attempt, Unix time], …]] )
            "watch",   sealed( [1, seconds, all] )          whoever looks asks for progress, again and again

It is written on messengers where several can read one channel (the trait `fanout`), beside what goes to the callers, in
the same batch; where nobody keeps the channel the messenger drops it.

While somebody asks for it a task's newest progress is told too, as `[…, "progress", attempt, time, fraction, done,
total, message]`: of all tasks together at most 4 times a second and `ROOM` bytes each time, the longest untold first.
Its message is cut to `WORDS` characters; it is what the callable made for people to see. Who has just come asks for
that of all running tasks. Nobody asks: nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import ProtocolError
from ..pool.reports import PROGRESS
from ..wire import frames as wire
from ..wire.seal import Purpose

if TYPE_CHECKING:
    from .held import Held
    from .speaker import _Taken
    from .worker import Worker

CHANNEL: Final = "monitor"
WATCH: Final = "watch"
VERSION: Final = 1
EVERY: Final = 0.25  # seconds between two messages with progress
ROOM: Final = 32 << 10  # bytes of progress in one, about
WORDS: Final = 100  # characters of its message
LONGEST: Final = 60.0  # seconds for which one may ask at once
NAMES: Final = {
    wire.STARTED: "started",
    wire.SUCCEEDED: "succeeded",
    wire.RETURNED: "succeeded",
    wire.FAILED: "failed",
    wire.CANCELLED: "cancelled",
    wire.LOST: "lost",
    wire.RETRYING: "retrying",
    wire.WAITING: "waiting",
}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, str, list[list[Any]]]).decode
_decode_watch = msgspec.msgpack.Decoder(tuple[int, float, bool]).decode


def asking(seconds: float, all: bool) -> bytes:
    """What is sealed by who wants progress told for so long; `all`: also that which was told before."""
    return _encode((VERSION, seconds, all))


def asked(data: bytes | memoryview) -> tuple[float, bool]:
    """What `asking` says. Raises `ProtocolError`."""
    try:
        _, seconds, all = _decode_watch(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"what was sealed asks for no progress: {error}") from error
    return min(LONGEST, seconds), all


def telling(task_id: str, event: str) -> bytes:
    """What is sealed by who is no worker, and knows what became of a task, but not of which attempt (0)."""
    return _encode((VERSION, "", [(task_id, "", "", event, 0, time())]))


def decode(data: bytes | memoryview) -> tuple[str, list[list[Any]]]:
    """`(worker, entries)` of a message on the monitor channel. Raises `ProtocolError`."""
    try:
        version, worker, entries = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"what was sealed is no message of the monitor: {error}") from error
    if version != VERSION or not all(len(entry) >= 6 for entry in entries):
        raise ProtocolError(f"a message of the monitor of version {version}; this release reads {VERSION}")
    return worker, entries


class Monitor:
    """Part of the Worker; on the speaker's thread, but for `watch`."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._until = 0.0  # monotonic seconds until which progress is asked for
        self._all = False  # somebody has just come
        self._untold: dict[Held, None] = {}  # tasks whose progress was not told, the longest first
        self._told = 0.0  # when progress was told last

    def watch(self, seconds: float, all: bool) -> None:
        """Somebody wants progress for so long, and perhaps that of `all` running tasks. From any thread."""
        self._until = max(self._until, monotonic() + seconds)
        if all:
            self._all = True

    @property
    def due(self) -> float:
        """When there is progress to be told, monotonic seconds."""
        return self._told + EVERY if self._untold or self._all else float("inf")

    def message(self, taken: Iterable[_Taken]) -> tuple[str, bytes] | None:
        """What a batch means for who looks, sealed; None: nothing, or nobody can look on this messenger."""
        worker = self._worker
        if not worker.messenger.traits.fanout:
            return None
        now, clock = time(), monotonic()
        watched = clock < self._until
        entries: list[Any] = []
        for each in taken:
            held = each.held
            for record in each.records:
                kind = record[0]
                if kind == PROGRESS:
                    held.progress = record
                    if watched:
                        self._untold[held] = None
                    continue
                name = NAMES.get(kind)
                if name is not None:
                    if held in self._untold and name != "started":
                        del self._untold[held]
                        if name != "succeeded":  # how far it came
                            entries.append(_progress(held))
                    function = held.envelope.name if held.envelope is not None else ""
                    entries.append((held.id, function, held.lease.queue, name, held.lease.deliveries, now))
        if clock >= self.due:
            self._told = clock
            self._tell(entries)
        if not entries:
            return None
        data = _encode((VERSION, worker.name, entries))
        return CHANNEL, worker.keys.seal(Purpose.MONITOR, f"{worker.namespace}/{CHANNEL}", data)

    def _tell(self, entries: list[Any]) -> None:
        if self._all:
            self._all = False
            running = list(self._worker.taker.held.values())
            self._untold.update((held, None) for held in running if held.progress is not None and not held.ended)
        room = ROOM
        while self._untold and room > 0:
            held = next(iter(self._untold))
            del self._untold[held]
            entry = _progress(held)
            entries.append(entry)
            room -= 80 + len(entry[1]) + 2 * len(entry[-1] or "")


def _progress(held: Held) -> tuple[Any, ...]:
    function = held.envelope.name if held.envelope is not None else ""
    when, fraction, done, total, message = held.progress[3:8]
    words = message[:WORDS] if isinstance(message, str) else None
    return (
        held.id, function, held.lease.queue, "progress", held.lease.deliveries, when, fraction, done, total, words
    )  # fmt: skip
