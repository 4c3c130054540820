"""Tasks on a Redis server.

    submit ─▶ delayed ─▶ ready ─▶ leased ─▶ settled: done, buried         a sorted set for each, and for each queue
                ▲         ▲ ▲       │
                └─────────┼─┴───────┘  released, or the lease ended, or its taker is dead
                          ▼
                        parked (a rule keeps its function back)

Keys, all with the prefix `{namespace}:q` and so in one slot:

    :heads :bodies      hashes: id -> score, queue, name, unique key, size, deliveries, token; id -> body
    :ready:QUEUE        ids by priority, and within it by the moment they came (ticks of 10 µs, each given out once)
    :delayed:QUEUE :leased:QUEUE      ids by the moment the delay or lease ends (ms of the server's clock)
    :parked:N:QUEUE:NAME              ids of a name that a rule keeps back, as in ready
    :parking:QUEUE :parks:NAME        the names kept back in a queue, the queues in which a name is
    :waiting:QUEUE                    takers that wait, by since when
    :taker:TAKER :takers              what it was given last, what it waits for, who it is; all by when they last spoke
    :queues :unique                   the queues that hold something; unique key -> id
    :rules :running:NAME :started:NAME       rules; where one counts: ids by the end of the lease, takes by their moment
    :buried :buried:QUEUE :buried.heads :buried.bodies     ids by when they were buried; id -> …; the size of all
    :buried.size
    :plans :plans.specs :plans.fired         keys by their due; key -> spec; key -> the request that fired it last
    :state              the last tick, the next look for the dead
    :client:C :cancelled:ID :exhumed:N       what was answered, for an hour or a minute, in case the answer was lost
    :ear:TAKER          no key, a channel

What has no task, plan or rule in it is gone, or goes within an hour of its taker's last word; what is buried goes with
its time. Every change is one script (folder `lua`), which may be sent again after a lost answer and then changes
nothing: a submission has its number, leases have theirs, and what is settled is known by its token.

**Taking.** A take that finds nothing leaves word for whom, for how many and from which queues it waits, and listens to
its channel on the same connection (RESP3). Whoever makes a task ready (a submit, a release, a rule that changes) hands
it over then and there, in the same script: the lease is made, and the task itself comes with the message. So a task
reaches a waiting worker in one hop. A message that gets lost does no harm: a taker names the number of the last leases
it has seen, and is given again what came after. Bodies beyond 256 KB are fetched.

**The dead.** A worker that dies takes its connection along, and with it the subscription, which the server counts
(PUBSUB NUMSUB). Takers look every 2 s, one for all of them: who was subscribed at this very server, and has not been
for 3 s, is dead, and what it held is ready again. A partition is no death as long as the server holds the connection.
After a restart of the server or a fail-over everybody is gone. The first taker that comes back (`hello`) sees to it
that no lease ends for another 10 s (5 s and the time-out), since nobody could extend his; who has not come back by then
is dead too. Those who live try twice a second (`guard`), and notice within 4 s that a machine has vanished (`probe`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hiredis import ReplyError

from ... import engine as contract
from ... import messenger as contract_of_messages
from ...engine import EngineState, Lease, Outcome, Parcel, Sink
from ...errors import ProviderError, Unreachable, UsageError
from ...traits import Traits
from ..url import Url
from .address import Place
from .connection import Command
from .guard import Guard
from .hearing import Hearing
from .managing import Managing, group
from .messenger import Messenger
from .scripts import script

log = logging.getLogger("revolve_assistant")

LEASE = 30.0  # seconds
KEEP_BURIED = 7 * 86400.0  # seconds
MOST_BURIED = 10_000
LARGEST = 64 << 20  # bytes of a body
BATCH = 500  # tasks in one script
LOAD = 4 << 20  # bytes of bodies in one script
SLICE = 3.0  # seconds after which a waiting take asks again: somebody may have emptied the server
LONGEST_DELAY = 10 * 365 * 86400.0  # seconds
_STATES: tuple[EngineState, ...] = ("unknown", "queued", "running")


class Queue(Managing, contract.Queue):
    """Tasks on a Redis or Valkey server. One thread submits, takes, extends and settles; `wake` and `close` may come
    from any. Every call ends within `timeout`, twice that if the connection breaks on the way, and raises `Unreachable`
    then. `lease`: seconds until a task that was taken and not extended goes to somebody else.
    """

    traits = Traits(
        summary="tasks on a Redis or Valkey server, for many workers",
        durable=True,
        delays=True,
        priorities=True,
        manages=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
        messenger="redis://",
    )

    def __init__(
        self, place: Place, *, lease: float = LEASE, keep_buried: float = KEEP_BURIED, most_buried: int = MOST_BURIED
    ) -> None:
        super().__init__(place)
        self.lease = lease
        self._keep = (round(keep_buried * 1000), most_buried)
        self._client = os.urandom(8).hex()
        self._number = 0  # of the last submission
        self._doubt: tuple[int, list[Parcel]] | None = None  # a submission whose answer was lost
        self._first: list[Command] = []  # to be carried out before the next submission
        self._asked: dict[str, str] = {}  # the same of cancels: number of the request
        self._held: set[str] = set()
        self._hearing = Hearing(place, self._base, round(lease * 1000), self._fetch)
        self._guard: Guard | None = None

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Queue:
        """`redis://host/0?namespace=assistant&lease=30&keep_buried=604800&most_buried=10000`; for the rest see
        `address`. Raises `UsageError`."""
        place = Place.read(url, options)
        url = url.with_options(options)
        return cls(
            place,
            lease=url.number("lease", LEASE, least=0.05, most=86400.0),
            keep_buried=url.number("keep_buried", KEEP_BURIED, least=1.0, most=3650 * 86400.0),
            most_buried=url.whole("most_buried", MOST_BURIED, most=1_000_000),
        )

    # ---- open, close, wake

    def open(self) -> None:
        """Connect, unless it is. Raises `Unreachable`, `ProviderError`."""
        if self._pid != os.getpid():
            self._begin()
        with self._busy:
            self._line.connect()
        self._open = True

    def close(self) -> None:
        """Give back at once what was taken and not settled."""
        self._open = False
        if self._pid != os.getpid():
            self._part()
            return
        self._hearing.wake()
        held = self._busy.acquire(timeout=2 * self._place.timeout)
        try:
            if self._hearing.known and self._line.open:
                with contextlib.suppress(ProviderError, OSError):
                    self._run(self._line, "leave", self._hearing.taker, self._hearing.seen, int(bool(self._held)))
            self._held.clear()
            self._part()
        finally:
            if held:
                self._busy.release()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def wake(self) -> None:
        self._hearing.wake()

    def _begin(self) -> None:
        """Start anew: at first, or in a child that was forked, which is a client and taker of its own."""
        super()._begin()
        self._client = os.urandom(8).hex()
        self._number, self._doubt = 0, None
        self._held = set()
        self._guard = None  # its thread is the parent's
        self._hearing.close()
        self._hearing = Hearing(self._place, self._base, round(self.lease * 1000), self._fetch)

    def _part(self) -> None:
        super()._part()
        self._hearing.close()

    def _prepare(self) -> None:
        if self._hearing.greet(self._line):
            if self._guard is None:
                self._guard = Guard(self._mend, self._watched)
                self._line.closed = self._guard.ring
            self._guard.ring()

    def _watched(self) -> int:
        """The descriptor of our connection; -1: there is none, or the server does not know us on it."""
        with contextlib.suppress(Unreachable):
            if self._hearing.knows(self._line):
                return self._line.fileno()
        return -1

    def _mend(self) -> None:
        """Connect again, unless somebody is at it."""
        if self._busy.acquire(timeout=0.2):
            try:
                if self._open:
                    self._line.ready()
                    self._prepare()
            finally:
                self._busy.release()

    # ---- giving

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> Mapping[str, str]:
        """As the contract has it. A body may have 64 MiB: what is larger belongs into a store of its own, and its name
        into the task. Raises `UsageError`, `Unreachable`, `Overloaded` (the server's memory is full)."""
        return self._submit_after([], parcels)

    def submit_and_keep(
        self,
        parcels: Sequence[Parcel],
        sink: Sink,
        messenger: contract_of_messages.Messenger,
        channels: Sequence[str],
        *,
        seconds: float,
        cap: int,
    ) -> Mapping[str, str] | None:
        if not isinstance(messenger, Messenger) or not messenger.place.is_at(self._place):
            return super().submit_and_keep(parcels, sink, messenger, channels, seconds=seconds, cap=cap)
        return self._submit_after(messenger.keeping(channels, seconds=seconds, cap=cap), parcels)

    def _submit_after(self, first: list[Command], parcels: Sequence[Parcel]) -> Mapping[str, str]:
        """Submit, having other commands carried out before, in the same request."""
        self._joined()
        for parcel in parcels:
            if len(parcel.body) > LARGEST:
                raise UsageError(
                    f"task {parcel.id} has {len(parcel.body):,} bytes, more than the {LARGEST:,} that go through "
                    "redis: put the data where workers can read it (a file, an object store) and pass its name"
                )
            if not parcel.delay <= LONGEST_DELAY:
                raise UsageError(f"a delay of {parcel.delay:g} s for task {parcel.id} is more than ten years")
        refused: dict[str, str] = {}
        with self._busy:
            self._first = first
            rest = self._again(list(parcels), refused)
            for batch in _batches(rest):
                self._number += 1
                self._submit(self._number, batch, refused)
        return refused

    def _again(self, parcels: list[Parcel], refused: dict[str, str]) -> list[Parcel]:
        """Send again, as what it was, a submission of which nobody knows whether it arrived; what is left to send."""
        if self._doubt is None:
            return parcels
        number, doubtful = self._doubt
        ids = {parcel.id for parcel in doubtful}
        if ids <= {parcel.id for parcel in parcels}:
            self._submit(number, doubtful, refused)
            return [parcel for parcel in parcels if parcel.id not in ids]
        self._doubt = None
        return parcels

    def _submit(self, number: int, parcels: list[Parcel], refused: dict[str, str]) -> None:
        args: list[Any] = [self._client, number]
        add = args.append
        last: Any = None
        at = count = 0
        for parcel in parcels:
            kind = (parcel.queue, parcel.priority, parcel.delay, parcel.name, parcel.unique)
            if kind != last or parcel.unique is not None:
                if at:
                    args[at] = count
                last, count = kind, 0
                args += group(parcel)
                at = len(args) - 1
            add(parcel.id)
            add(parcel.body)
            count += 1
        if at:
            args[at] = count
        self._doubt = (number, parcels)
        try:
            first, self._first = self._first, []
            *others, answer = self._ask_after(first, "submit", *args)
            for other in others:
                if isinstance(other, ReplyError):  # too late to refuse
                    log.warning("tasks were submitted without a log: %s", self._line.failure(other))
        except Unreachable:
            raise
        except ProviderError:
            self._doubt = None  # the server refused it
            raise
        self._doubt = None
        for id, holder in zip(answer[::2], answer[1::2], strict=True):
            refused[id.decode()] = holder.decode()

    # ---- taking

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        self._joined()
        with self._busy:
            return self._take([], queues, limit, wait)

    def settle_and_take(
        self, outcomes: Sequence[tuple[Lease, Outcome]], queues: Sequence[str], *, limit: int, wait: float
    ) -> Sequence[Lease]:
        self._joined()
        with self._busy:
            leases = self._take(list(self._settling(outcomes)), queues, limit, wait)
            self._held.difference_update([lease.id for lease, _ in outcomes])
            self._held.update([lease.id for lease in leases])  # one that was released is perhaps ours again
            return leases

    def _take(self, first: list[Command], queues: Sequence[str], limit: int, wait: float) -> Sequence[Lease]:
        deadline = time.monotonic() + wait
        hearing = self._hearing
        while True:
            self._joined()
            left = 0.0 if hearing.woken else deadline - time.monotonic()
            leases, due = self._look(queues, limit, left > 0, first)
            first = []
            if leases or left <= 0:
                hearing.rest()
                return leases
            if due <= 0:
                continue
            leases = hearing.listen(self._line, min(left, due, SLICE))
            if leases:
                self._held.update([lease.id for lease in leases])
                hearing.rest()
                return leases
            if hearing.woken or time.monotonic() >= deadline:
                leases, _ = self._look((), 0, False)  # waits no more, and gets what came just now
                hearing.rest()
                return leases

    def _look(
        self, queues: Sequence[str], limit: int, waits: bool, first: Sequence[Command] = ()
    ) -> tuple[list[Lease], float]:
        """Leases, or seconds after which to look again."""
        hearing = self._hearing
        hearing.listens = True
        lease = round(self.lease * 1000)
        limit = min(limit, 1000)
        while True:
            args = (hearing.taker, hearing.seen, limit, lease, int(waits), hearing.run, *queues)
            *others, answer = self._ask_after(first, "take", *args)
            first = ()
            for other in others:
                if isinstance(other, ReplyError):  # what was given just now is given again
                    raise self._line.failure(other)
            if answer[0] == -1:  # the server has lost its memory
                hearing.forgotten()
                continue
            leases = hearing.leases(answer)
            if leases:
                self._held.update([lease.id for lease in leases])
            return leases, answer[1] / 1000

    def _fetch(self, id: bytes) -> bytes:
        with self._desk:
            self._second.ready()
            body: bytes | None = self._second.call("HGET", self._base + b":bodies", id)
        return body or b""

    def extend(self, leases: Sequence[Lease]) -> None:
        self._joined()
        with self._busy:
            for at in range(0, len(leases), BATCH):
                args: list[Any] = [self._hearing.taker, round(self.lease * 1000)]
                for lease in leases[at : at + BATCH]:
                    args += (lease.id, lease.token)
                self._ask("extend", *args)

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        self._joined()
        with self._busy:
            for _, _, _, *args in self._settling(outcomes):
                self._ask("settle", *args)
            self._held.difference_update([lease.id for lease, _ in outcomes])

    def _settling(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> Iterator[Command]:
        """The commands for that."""
        for at in range(0, len(outcomes), BATCH):
            done: list[Any] = []
            others: list[Any] = []
            for lease, outcome in outcomes[at : at + BATCH]:
                if outcome.kind == "done":
                    done += (lease.id, lease.token)
                else:
                    others += (lease.id, lease.token, outcome.kind, max(0.0, outcome.delay) * 1000)
                    others += (int(outcome.counted), outcome.reason)
            head = (self._hearing.taker, *self._keep, len(done) // 2)
            yield (script("settle"), 1, self._base, *head, *done, *others)

    # ---- asking

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        self._joined()
        wanted = list(ids)
        states: dict[str, EngineState] = {}
        with self._busy:
            for at in range(0, len(wanted), BATCH):
                part = wanted[at : at + BATCH]
                states.update(zip(part, map(_STATES.__getitem__, self._ask("state", *part)), strict=True))
        return states

    def cancel(self, task_id: str) -> bool:
        self._joined()
        with self._busy:
            asked = self._asked.setdefault(task_id, os.urandom(8).hex())  # the same again if the answer is lost
            found = bool(self._ask("cancel", task_id, asked))
            self._asked.pop(task_id, None)
            return found


def _batches(parcels: list[Parcel]) -> Iterator[list[Parcel]]:
    batch: list[Parcel] = []
    size = 0
    for parcel in parcels:
        if len(batch) >= BATCH or (batch and size + len(parcel.body) > LOAD):
            yield batch
            batch, size = [], 0
        batch.append(parcel)
        size += len(parcel.body)
    if batch:
        yield batch
