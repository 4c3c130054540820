"""Channels as queues of IronMQ, frames as messages.

    write ─ POST, 100 at once ─▶ NAMESPACE.c.CHANNEL
    read  ─ reserve 100, waiting up to 30 s
    forget ─ DELETE, 100 at once

A channel has one reader. What it read and did not forget is reserved, and comes again when the reservation ends; what
was posted twice, since the answer to a post was lost, comes twice. Every frame has a number of its writer's, by which
both are seen, and by which the order is restored: IronMQ promises none for what comes again.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic

import msgspec

from ... import messenger as contract
from ...errors import ClientClosed, UsageError
from ...messenger import Batch
from ...protocols.iron import Denied, Missing, mq
from ...protocols.iron.caller import Caller
from ...protocols.iron.limits import LONGEST_POLL, PLANS
from ...traits import Traits
from ..url import Url
from . import wrapping
from .address import Place
from .intake import Intake
from .janitor import Janitor
from .reading import Reading

RESERVE = 30.0  # seconds of a frame's reservation
EXPIRATION = 3600.0  # seconds of a frame's life in a channel that nobody keeps
_WRITERS = 10_000  # channels that a writer remembers its place in


class _Opened:
    """What is there between `open` and `close`, in one process."""

    def __init__(self, messenger: Messenger, place: Place, reserve: float) -> None:
        self.pid = os.getpid()
        self.caller = place.caller()
        self.intake = Intake(self.caller, reserve, messenger._make)
        self.reading = Reading(place.names, reserve)
        self.janitor = Janitor(self.caller, place.names)
        self.writers: OrderedDict[str, tuple[bytes, int]] = OrderedDict()  # channel -> name, next number
        self.writing, self.reading_lock, self.keeping = threading.Lock(), threading.Lock(), threading.Lock()
        self.lives: dict[str, float] = {}  # queue -> seconds that its messages live


class Messenger(contract.Messenger):
    """Channels at IronMQ. Every method may be called from any thread; `read` waits in one thread at a time.

    Reading does not replay: what this object has read and not forgotten it gives again from memory, to another reader
    it is not there until its reservation (`reserve` seconds) ends. A channel exists by being used.
    """

    traits = Traits(
        summary="channels are queues of IronMQ, over HTTPS",
        waits=True,
        keeps=True,
        max_bytes=wrapping.frame_room(mq.room(PLANS[0])),
        max_wait=float(LONGEST_POLL),
    )

    def __init__(self, place: Place, *, reserve: float = RESERVE) -> None:
        self._place, self._reserve = place, reserve
        self._largest = wrapping.frame_room(mq.room(place.limit))
        self.traits = msgspec.structs.replace(self.traits, max_bytes=self._largest)  # type: ignore[misc]
        self._opened: _Opened | None = None

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Messenger:
        """`ironmq://project@host/namespace?limit=65536&reserve=30`; for the rest see `Place.read`. Raises
        `UsageError`."""
        place = Place.read(url, options)
        return cls(place, reserve=url.with_options(options).number("reserve", RESERVE, least=1.0, most=86400.0))

    def __repr__(self) -> str:
        return f"<ironmq.Messenger {self._place.text}>"

    # ---- open, close, wake

    def open(self) -> None:
        """Make sure that the project answers. Blocks up to `timeout`; raises `Unreachable`, and `ProviderError` for a
        token that is refused."""
        if self._opened is not None and self._opened.pid == os.getpid():
            return
        opened = _Opened(self, self._place, self._reserve)
        try:
            mq.names(opened.caller.once(mq.listing(self._place.names.prefix)))
        except BaseException:
            opened.caller.close()
            raise
        self._opened = opened

    def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None and opened.pid == os.getpid():
            opened.intake.close()
            opened.caller.close()

    def wake(self) -> None:
        if self._opened is not None:
            self._here().intake.wake()

    def _here(self) -> _Opened:
        """What was opened, made anew in a process that was forked since."""
        opened = self._opened
        if opened is None:
            raise ClientClosed(f"{self._place.text} is not open: call open() first")
        if opened.pid != os.getpid():
            opened = self._opened = _Opened(self, self._place, self._reserve)
        return opened

    # ---- writing

    def write(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """As the contract says: a request for each channel and each 100 frames. Raises `Unreachable`, `Overloaded`."""
        opened = self._here()
        for channel, frame in messages:
            if len(frame) > self._largest:
                raise UsageError(f"{len(frame):,} bytes for {channel!r} are more than {self._largest:,}")
        gathered: dict[str, list[bytes]] = {}
        for channel, frame in messages:
            gathered.setdefault(channel, []).append(frame)
        with opened.writing:
            for channel, frames in gathered.items():
                self._post(opened, channel, frames)

    def _post(self, opened: _Opened, channel: str, frames: list[bytes]) -> None:
        writers = opened.writers
        name, number = writers.pop(channel, (b"", 0))
        name = name or os.urandom(8)
        texts = [mq.Text(wrapping.frame(name, number + at, bytes(frame))) for at, frame in enumerate(frames)]
        queue = self._place.names.channel(channel)
        for some in mq.batches(texts, self._place.limit):
            mq.posted(opened.caller.call(mq.post(queue, some)))
        # Had that failed, what is written again would be another writer's, so that no reader waits for the rest.
        writers[channel] = name, number + len(frames)
        if len(writers) > _WRITERS:
            writers.popitem(last=False)

    # ---- reading

    def read(self, cursors: Mapping[str, bytes], *, limit: int, wait: float) -> Batch:
        opened = self._here()
        deadline = monotonic() + wait
        intake, reading = opened.intake, opened.reading
        with opened.reading_lock:
            asked = reading.listen(cursors)
            queues = [self._place.names.channel(name) for name in cursors]
            looked = False
            while True:
                ready = reading.ready(asked, intake.failed)
                now = monotonic()
                if self._opened is not opened:
                    raise ClientClosed(f"{self._place.text} was closed")
                if ready or (looked and now >= deadline) or (intake.woken and wait > 0) or limit <= 0:
                    if not ready:
                        intake.woken = False
                    return reading.batch(asked, limit)
                until = min(deadline, reading.until())
                doubles = reading.take(intake.draw(queues, min(limit, 100), until))
                looked = True
                if doubles:
                    self._delete(opened, doubles)

    def _make(self, queue: str) -> None:
        """It is read before anybody kept it or wrote to it, or somebody removed it."""
        opened = self._opened
        if opened is not None:
            life = opened.lives.get(queue, EXPIRATION)
            opened.caller.call(mq.create(queue, timeout=self._reserve, expiration=life))

    # ---- keeping and forgetting

    def keep(self, channels: Iterable[str], *, seconds: float, cap: int) -> None:
        """Make them, with messages that live for `seconds` (60 at least, 30 days at most). There is no `cap`: IronMQ
        has none. Now and then it removes channels that nobody keeps: see `janitor`. Four requests, or a few more."""
        opened = self._here()
        queues = [self._place.names.channel(channel) for channel in channels]
        if not queues:
            return
        with opened.keeping:
            for queue in queues:
                if opened.lives.get(queue) != seconds:
                    opened.caller.call(mq.create(queue, timeout=self._reserve, expiration=seconds))
                    opened.lives[queue] = seconds
            opened.janitor.keep(queues, seconds)
            opened.janitor.tend()

    def sweep(self) -> int:
        """Remove what nobody keeps any more, now; how many channels were removed. Blocks for two requests each."""
        opened = self._here()
        with opened.keeping:
            return opened.janitor.tend(now=True)

    def forget(self, channel: str, upto: bytes | None = None) -> None:
        """Delete what this object has read, up to a cursor of its own; or remove the whole channel."""
        opened = self._here()
        held = opened.reading.forget(channel, upto)
        if upto is not None:
            self._delete(opened, held)
            return
        queue = self._place.names.channel(channel)
        try:
            opened.caller.call(mq.drop(queue))
        except Missing:
            pass
        with opened.keeping:
            opened.lives.pop(queue, None)
            opened.janitor.forget(queue)

    def _delete(self, opened: _Opened, held: Sequence[tuple[str, str, str]]) -> None:
        """(queue, message, reservation): delete them; whose reservation has ended comes again, and is deleted then."""
        delete_all(opened.caller, held)


def delete_all(caller: Caller, held: Sequence[tuple[str, str, str]]) -> None:
    """Delete reserved messages (queue, id, reservation), 100 at once; those that are lost are passed over.

    Raises `Unreachable`, `Overloaded`.
    """
    queues: dict[str, list[tuple[str, str | None]]] = {}
    for queue, id, reservation in held:
        queues.setdefault(queue, []).append((id, reservation))
    for queue, mine in queues.items():
        for start in range(0, len(mine), 100):
            _delete(caller, queue, mine[start : start + 100])


def _delete(caller: Caller, queue: str, some: list[tuple[str, str | None]]) -> None:
    try:
        caller.call(mq.delete(queue, some))
        return
    except (Missing, Denied):
        if len(some) == 1:
            return
    for one in some:  # nobody knows which of them were deleted
        _delete(caller, queue, [one])
