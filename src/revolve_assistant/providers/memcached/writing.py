"""The writing side: one round trip allocates a slot for each channel of a batch, one stores a block in each.

    ma counter +1 ─▶ position ─▶ ms position (add) ─▶ HD   stored
                                                      NS   mine, stored by an attempt whose answer was lost
                                                           a tombstone: again, at a new position

A reader that waited in vain for a slot leaves a tombstone there, which nobody deletes; so a block that was stored in
time, before a tombstone could have ended, was given up by nobody.

A batch to one channel is one block as long as it is under a megabyte; more blocks go one after the other, so that the
order holds whatever a reader settles meanwhile. A block of one frame that is larger (on a slow line any above 8 KiB)
lies in pieces under keys of its own, stored before the slot that names them is allocated.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Sequence

from ...errors import Overloaded, ProviderError, Unreachable, UsageError
from . import codec
from .block import (
    FRAMES,
    MOST,
    OVERHEAD,
    SHIFT,
    Keys,
    Place,
    large_flags,
    mark,
    mark_of,
    numbers_of,
    pack,
    pack_large,
    packable,
    slot_seconds,
    tail_text,
    ttl_of,
)
from .clearing import clear, sizes_before
from .reading import GRACE
from .server import Server, refusal

DAY = 86400.0
CAP = 8 << 20  # bytes, where the terms of a channel were evicted
_FIRST = 64 << 10  # bytes of a block in a channel whose cap is not yet known
_BRIEF = 8 << 10  # bytes of a block that goes into its slot on a slow line
_ATTEMPTS = 10
_PATIENCE = 5.0  # seconds of grace that a writer asks for at most
_DOUBT = 30.0  # seconds after which a slot is not believed to be one's own; see TOMBSTONES
_KNOWN = 10_000  # channels of which a writer remembers anything


class Terms:
    """What a writer knows of a channel."""

    __slots__ = ("cap", "known", "seconds", "share", "slow", "written")

    def __init__(self) -> None:
        self.known = False
        self.seconds, self.cap = DAY, CAP
        self.share = _FIRST  # bytes between two looks at the cap, and of a block
        self.slow = False  # the network: what takes long, the bytes, goes before a slot is allocated
        self.written = 0

    def learn(self, answer: codec.Answer) -> None:
        given = numbers_of(answer.value, 2) if answer.code == b"VA" else None
        self.seconds, self.cap = given if given else (DAY, CAP)
        before, self.share, self.known = self.share, max(1024, self.cap // 8), True
        if before != self.share:
            # Anywhere in the first share, so that many writers of one channel take turns, each after what all wrote.
            self.written = random.randrange(self.share)


class _Job:
    """The frames of a batch for one channel, and how far they are."""

    def __init__(self, keys: Keys, terms: Terms, frames: Sequence[bytes]) -> None:
        self.keys, self.terms, self.frames = keys, terms, frames
        self.attempts = 0
        self.number = 0  # of frames in the block under way
        self.block = b""
        self.flags = FRAMES
        self.size = 0
        self.position = 0

    def prepare(self) -> None:
        """Make the next block; `pieces` says how it is stored if it does not go into its slot."""
        self.number = packable(self.frames, min(MOST - 64, self.terms.share))
        own = mark()
        self.block, self.flags = pack(self.frames[: self.number], own), FRAMES
        self.size = len(self.block) + OVERHEAD
        self.pieces: list[bytes] = []
        if len(self.block) > (_BRIEF if self.terms.slow else MOST):
            self.pieces = [self.block[start : start + MOST] for start in range(0, len(self.block), MOST)]
            self.size += OVERHEAD * len(self.pieces)
            self.block = pack_large(own, len(self.pieces), len(self.block))

    def store_pieces(self) -> list[bytes]:
        """Under a name that is new each time."""
        self.flags = large_flags(len(self.pieces))
        ttl = ttl_of(slot_seconds(self.terms.seconds))
        names = self.keys.pieces(self.flags)
        return [codec.put(name, piece, ttl=ttl, add=True) for name, piece in zip(names, self.pieces, strict=True)]

    def store(self) -> bytes:
        ttl = ttl_of(slot_seconds(self.terms.seconds))
        return codec.put(self.keys.slot(self.position), self.block, ttl=ttl, flags=self.flags, add=True)

    def stored(self) -> None:
        self.frames = self.frames[self.number :]
        self.number = 0
        self.attempts = 0
        self.terms.written += self.size


class Writer:
    """What one Messenger knows of the channels that it writes. One thread at a time."""

    def __init__(self) -> None:
        self._terms: OrderedDict[str, Terms] = OrderedDict()

    def write(self, server: Server, batch: Sequence[tuple[str, Keys, Sequence[bytes]]]) -> None:
        """Append frames to channels of a server, but for channels that are gone. Raises `Unreachable`, `Overloaded`."""
        failure: ProviderError | UsageError | None = None
        jobs = [_Job(keys, self._terms_of(channel), frames) for channel, keys, frames in batch]
        trimmed = [(job.keys, job.terms) for job in jobs]
        while jobs:
            ready = []
            for job in jobs:
                try:
                    if job.number or self._prepare(server, job):
                        ready.append(job)
                except (Overloaded, UsageError) as error:
                    failure = error
            jobs, refused = self._round(server, ready)
            failure = failure or refused
        for keys, terms in trimmed:
            if terms.written >= terms.share:
                terms.written = 0
                trim(server, keys, terms.cap, terms.seconds)
        if failure is not None:
            raise failure

    def _prepare(self, server: Server, job: _Job) -> bool:
        """Make the job's next block, and store it if it lies in pieces. False: the channel is gone."""
        if not job.terms.known and sum(map(len, job.frames)) > _FIRST and not self._there(server, job):
            return False
        job.prepare()
        if not job.pieces:
            return True
        if not self._there(server, job):
            return False  # before megabytes are stored for nobody
        for _ in range(_ATTEMPTS):
            answers = server.ask(job.store_pieces())
            for answer in answers:
                if answer.refused:
                    raise refusal(server, answer)
            if all(answer.code == b"HD" for answer in answers):
                job.pieces = []
                return True
            # A name that is taken, or pieces whose answer was lost: these end by themselves, another name is free.
        raise Unreachable(f"memcached at {server.name}: a large frame could not be stored in {_ATTEMPTS} attempts")

    def _there(self, server: Server, job: _Job) -> bool:
        counter, terms = server.ask([codec.get(job.keys.counter), codec.get(job.keys.terms)])
        job.terms.learn(terms)
        return counter.code == b"VA"

    def _terms_of(self, channel: str) -> Terms:
        terms = self._terms.get(channel)
        if terms is None:
            terms = self._terms[channel] = Terms()
            if len(self._terms) > _KNOWN:
                self._terms.popitem(last=False)
        else:
            self._terms.move_to_end(channel)
        return terms

    def _round(self, server: Server, jobs: list[_Job]) -> tuple[list[_Job], ProviderError | UsageError | None]:
        """Store the block under way of each job; those that have more to do."""
        failure: ProviderError | UsageError | None = None
        began = time.monotonic()
        commands = [
            command for job in jobs for command in (codec.get(job.keys.terms), codec.count(job.keys.counter, 1))
        ]
        answers = server.ask(commands)
        alive = []
        for job, terms, counted in zip(jobs, answers[::2], answers[1::2], strict=True):
            position = numbers_of(counted.value, 1) if counted.code == b"VA" else None
            if counted.refused:
                failure = refusal(server, counted)
            elif position is not None:
                job.terms.learn(terms)
                job.position = position[0]
                alive.append(job)
        answers = server.ask([job.store() for job in alive])
        took = time.monotonic() - began
        left = []
        for job, answer in zip(alive, answers, strict=True):
            if answer.refused:
                failure = refusal(server, answer)
                continue
            if took < _DOUBT and (answer.code == b"HD" or self._own(server, job)):
                job.stored()
            else:
                self._ask_for_time(server, job, took)
            if job.frames:
                left.append(job)
        return left, failure

    def _own(self, server: Server, job: _Job) -> bool:
        """Whether what lies in the slot already is this very block, stored by an attempt whose answer was lost."""
        (slot,) = server.ask([codec.get(job.keys.slot(job.position))])
        return slot.code == b"VA" and mark_of(slot.value) == mark_of(job.block)

    def _ask_for_time(self, server: Server, job: _Job, took: float) -> None:
        """This writer is slower than readers wait: have them wait longer, so that it ever gets through."""
        job.attempts += 1
        if job.attempts >= _ATTEMPTS:
            text = (
                f"memcached at {server.name}: {_ATTEMPTS} times a slot was given up before it was filled ({took:.1f} s)"
            )
            raise Unreachable(text)
        job.number = 0
        if job.attempts > 1:  # once may be a pause, twice is a slow network
            job.terms.slow = True
            grace = min(_PATIENCE, max(GRACE, took) * 2**job.attempts)
            server.ask([codec.put(job.keys.grace, b"%d" % (grace * 1000), ttl=300)])


def trim(server: Server, keys: Keys, cap: int, seconds: float) -> None:
    """Drop the oldest blocks past the cap; the newest stays, whatever its size."""
    counter, tail = server.ask([codec.get(keys.counter), codec.get(keys.tail)])
    head = numbers_of(counter.value, 1) if counter.code == b"VA" else None
    if not head:
        return
    given = numbers_of(tail.value, 2) if tail.code == b"VA" else None
    low = given[0] if given and given[0] >> SHIFT == head[0] >> SHIFT else None
    cut = sizes_before(server, keys, head[0], low, cap)
    if cut is not None:
        server.ask([codec.put(keys.tail, tail_text(Place(cut, 0)), ttl=ttl_of(slot_seconds(seconds)))])
        clear(server, keys, low, cut)
