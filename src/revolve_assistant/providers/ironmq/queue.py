"""Tasks as messages of IronMQ.

    submit ─ POST, 100 at once ─▶ NAMESPACE.q.QUEUE ─ reserve 100, waiting up to 30 s ─▶ take
    extend ─ touch                                          settle: done      DELETE, 100 at once
                                                                    release   release
                                                                    bury      POST to NAMESPACE.dead.QUEUE, DELETE

The reservation is the lease. Every touch makes a new one, and who names an older one is refused: that fences off
whoever lost it. IronMQ counts how often a message was reserved; what was given back without counting is noted beside
it (`counting`). A body larger than a message travels in parts (`parts`).
"""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic

import msgspec

from ... import engine as contract
from ...engine import Buried, EngineState, Lease, Outcome, Parcel, Sink
from ...errors import ClientClosed, ProviderError, UsageError
from ...protocols.iron import Denied, Missing, mq
from ...protocols.iron.asking import Asking
from ...protocols.iron.limits import LONGEST_DELAY, LONGEST_EXPIRATION, LONGEST_POLL, PLANS, whole
from ...traits import Traits
from ..url import Url
from . import parts, wrapping
from .address import Place
from .counting import Uncounted
from .intake import Drawn, Intake
from .janitor import Janitor
from .messenger import delete_all
from .names import decode

log = logging.getLogger("revolve_assistant")

LEASE = 60.0  # seconds
KNOWN = 100_000  # tasks whose messages are remembered, for `state` and `cancel`
_CLOSING = 2.0  # seconds


class Holding:
    """A lease's message. `reservation` changes with every touch; "" once it was settled or lost."""

    __slots__ = ("deliveries", "id", "parts", "queue", "reservation")

    def __init__(self, queue: str, message: mq.Reserved) -> None:
        self.queue, self.id, self.reservation = queue, message.id, message.reservation
        self.parts = ""  # the queue of its body's parts
        self.deliveries = message.times


class _Opened:
    """What is there between `open` and `close`, in one process."""

    def __init__(self, queue: Queue, place: Place) -> None:
        self.pid = os.getpid()
        self.caller = place.caller()
        self.intake = Intake(self.caller, queue.lease, queue._make, queue._give_back)
        self.janitor = Janitor(self.caller, place.names)
        self.uncounted = Uncounted(self.caller, place.names, self.janitor)
        self.held: dict[str, Holding] = {}  # by message
        self.made: set[str] = set()  # queues whose messages live as long as they can


class Queue(contract.Queue):
    """Tasks at IronMQ. One thread calls it; `wake` and `close` may come from any.

    `lease`: seconds of a reservation, whole ones of which IronMQ's documentation has 30 as the least. Delays are whole
    seconds too, rounded up. A second task with the id of one that this object submitted and IronMQ still has is that
    one. IronMQ has no priorities.
    """

    traits = Traits(
        summary="messages of IronMQ, over HTTPS",
        durable=True,
        delays=True,
        max_bytes=parts.largest(PLANS[0]),
        max_wait=float(LONGEST_POLL),
        messenger="ironmq://",
    )

    def __init__(self, place: Place, *, lease: float = LEASE) -> None:
        self._place = place
        self.lease = float(math.ceil(lease))
        self._largest = parts.largest(place.limit)
        self.traits = msgspec.structs.replace(self.traits, max_bytes=self._largest)  # type: ignore[misc]
        self._known: OrderedDict[str, tuple[str, str, str]] = OrderedDict()  # task -> queue, message, queue of parts
        self._asking = Asking()
        self._opened: _Opened | None = None

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Queue:
        """`ironmq://project@host/namespace?lease=60`; for the rest see `Place.read`. Raises `UsageError`."""
        place = Place.read(url, options)
        return cls(place, lease=url.with_options(options).number("lease", LEASE, least=0.05, most=86400.0))

    def __repr__(self) -> str:
        return f"<ironmq.Queue {self._place.text}>"

    # ---- open, close, wake

    def open(self) -> None:
        """Make sure that the project answers. Blocks up to `timeout`; raises `Unreachable`, and `ProviderError` for a
        token that is refused."""
        if self._opened is not None and self._opened.pid == os.getpid():
            return
        opened = _Opened(self, self._place)
        try:
            mq.names(opened.caller.once(mq.listing(self._place.names.prefix)))
        except BaseException:
            opened.caller.close()
            raise
        self._opened = opened

    def close(self) -> None:
        """Give back at once what was taken and not settled, as far as that goes in two seconds."""
        opened, self._opened = self._opened, None
        if opened is None or opened.pid != os.getpid():
            return
        left = opened.intake.close()
        deadline = monotonic() + _CLOSING
        held = [(each.queue, each.message.id, each.message.reservation) for each in left]
        held += [(each.queue, each.id, each.reservation) for each in opened.held.values() if each.reservation]
        try:
            for queue, id, reservation in held:
                if monotonic() > deadline:
                    break
                try:
                    opened.caller.once(mq.release(queue, id, reservation))
                except (Missing, Denied):
                    pass
        except ProviderError as error:
            log.debug("what was taken comes back when its reservations end: %s", error)
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
            opened = self._opened = _Opened(self, self._place)
        return opened

    def _make(self, queue: str) -> None:
        opened = self._opened
        if opened is not None and queue not in opened.made:
            opened.caller.call(mq.create(queue, timeout=self.lease, expiration=LONGEST_EXPIRATION))
            opened.made.add(queue)

    # ---- giving

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        """A request for each queue and each 100 tasks; one more for each 48 KB of a larger body.

        Raises `Unreachable`, `Overloaded`, and `UsageError` for what is larger than `traits.max_bytes` or later than
        7 days.
        """
        opened = self._here()
        for parcel in parcels:
            if len(parcel.body) > self._largest:
                raise UsageError(
                    f"task {parcel.id} has {len(parcel.body):,} bytes, more than the {self._largest:,} that go through "
                    "IronMQ: put the data where workers can read it and pass its name (a larger plan: limit=262144)"
                )
            if parcel.delay > LONGEST_DELAY:
                raise UsageError(f"a delay of {parcel.delay:g} s for task {parcel.id} is more than IronMQ's 7 days")
        queues: dict[str, list[tuple[Parcel, mq.Text, str]]] = {}
        for parcel in parcels:
            if parcel.id in self._known and self._look(opened, parcel.id) != "unknown":
                continue  # it was sent before, and nobody knew whether it had arrived
            wrapped, aside = self._wrap(opened, parcel)
            text = mq.Text(wrapping.task(wrapped), whole(parcel.delay, LONGEST_DELAY))
            queues.setdefault(self._place.names.queue(parcel.queue), []).append((parcel, text, aside))
        for queue, mine in queues.items():
            self._make(queue)
            start = 0
            for some in mq.batches([text for _, text, _ in mine], self._place.limit):
                ids = mq.posted(opened.caller.call(mq.post(queue, some)))
                for (parcel, _, aside), id in zip(mine[start:], ids, strict=False):
                    self._remember(parcel.id, (queue, id, aside))
                start += len(some)

    def _wrap(self, opened: _Opened, parcel: Parcel) -> tuple[wrapping.Wrapped, str]:
        if len(parcel.body) <= wrapping.task_room(mq.room(self._place.limit), parcel.id):
            return wrapping.Wrapped(parcel.id, bytes(parcel.body)), ""
        return parts.put(opened.caller, self._place, opened.janitor, parcel.id, bytes(parcel.body))

    def _remember(self, id: str, place: tuple[str, str, str]) -> None:
        self._known[id] = place
        self._known.move_to_end(id)
        self._asking.forget(id)
        if len(self._known) > KNOWN:
            self._asking.forget(self._known.popitem(last=False)[0])

    # ---- taking

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        """As the contract has it; of several queues those that are not polled just then are looked at every second."""
        opened = self._here()
        intake = opened.intake
        deadline = monotonic() + wait
        names = {self._place.names.queue(queue): queue for queue in queues}
        looked = False
        while True:
            leases = self._leases(opened, names, intake.draw(list(names), min(limit, 100), deadline))
            looked = True
            if leases or limit <= 0:
                return leases
            if self._opened is not opened:
                raise ClientClosed(f"{self._place.text} was closed")
            if (intake.woken and wait > 0) or (looked and monotonic() >= deadline):
                intake.woken = False
                opened.janitor.tend()
                return leases

    def _leases(self, opened: _Opened, names: Mapping[str, str], drawn: Sequence[Drawn]) -> list[Lease]:
        leases = []
        for queue, message, _ in drawn:
            holding = Holding(queue, message)
            task = wrapping.read_task(message.id, message.body)
            body: bytes | None = task.body
            if task.parts:
                holding.parts = self._place.names.parts(task.id, task.body)
                body = parts.get(opened.caller, holding.parts, task)
            if message.times > 1:
                holding.deliveries = max(1, message.times - opened.uncounted.times(message.id))
            if body is None and holding.deliveries <= parts.TRIES:
                self._release(opened, holding, 1.0)
                continue
            opened.held[message.id] = holding
            leases.append(Lease(task.id, body or b"", names[queue], holding.deliveries, holding))
        return leases

    def _give_back(self, drawn: Sequence[Drawn]) -> None:
        """What a poll brought that nobody came for. On the poll's thread."""
        opened = self._opened
        if opened is None:
            return
        for queue, message, _ in drawn:
            try:
                self._release_uncounted(opened, Holding(queue, message), 0.0)
            except (ProviderError, ClientClosed) as error:
                log.debug("message %s comes back when its reservation ends: %s", message.id, error)

    # ---- holding and settling

    def extend(self, leases: Sequence[Lease]) -> None:
        """A request for each lease: IronMQ touches one message at a time."""
        opened = self._here()
        for lease in leases:
            self._touch(opened, lease.token)

    def _touch(self, opened: _Opened, held: Holding) -> bool:
        """Reserve it anew. False: it is somebody else's."""
        if not held.reservation:
            return False
        try:
            answer = opened.caller.call(mq.touch(held.queue, held.id, held.reservation, self.lease))
        except (Missing, Denied):
            self._lost(opened, held)
            return False
        held.reservation = mq.touched(answer)
        return True

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        opened = self._here()
        done: list[Holding] = []
        for lease, outcome in outcomes:
            held: Holding = lease.token
            if not held.reservation or held in done:
                continue
            if outcome.kind == "done":
                done.append(held)
            elif outcome.kind == "bury":
                self._bury(opened, lease, outcome.reason)
            elif outcome.counted:
                self._release(opened, held, outcome.delay)
            else:
                self._release_uncounted(opened, held, outcome.delay)
        delete_all(opened.caller, [(held.queue, held.id, held.reservation) for held in done])
        for held in done:
            self._over(opened, held)

    def _over(self, opened: _Opened, held: Holding) -> None:
        """It is deleted, and so is what lies beside it. Nothing is lost if that stays: the janitor comes."""
        self._lost(opened, held)
        aside = [held.parts] if held.parts else []
        if opened.uncounted.has(held.id):
            aside.append(self._place.names.uncounted(held.id))
        for queue in aside:
            self._drop(opened, queue)

    def _drop(self, opened: _Opened, queue: str) -> None:
        try:
            opened.caller.call(mq.drop(queue))
        except Missing:
            pass
        opened.janitor.forget(queue)

    def _lost(self, opened: _Opened, held: Holding) -> None:
        held.reservation = ""
        opened.held.pop(held.id, None)

    def _release(self, opened: _Opened, held: Holding, delay: float) -> None:
        try:
            opened.caller.call(mq.release(held.queue, held.id, held.reservation, delay))
        except (Missing, Denied):
            pass
        self._lost(opened, held)

    def _release_uncounted(self, opened: _Opened, held: Holding, delay: float) -> None:
        if self._touch(opened, held):  # only who has it may note that
            opened.uncounted.note(held.id)
            self._release(opened, held, delay)

    def _bury(self, opened: _Opened, lease: Lease, reason: str) -> None:
        held: Holding = lease.token
        if not self._touch(opened, held):
            return
        queue = self._place.names.buried(lease.queue)
        self._make(queue)
        text = reason.encode("utf-8", "replace")[:1000].decode("utf-8", "ignore")
        cut = wrapping.task_room(mq.room(self._place.limit), lease.id) - len(text.encode()) - 8
        body = lease.body[:cut] if len(lease.body) > cut else lease.body  # to be looked at: parts are not kept
        task = wrapping.Wrapped(lease.id, body, 0, f"{held.deliveries} {text}")
        opened.caller.call(mq.post(queue, [mq.Text(wrapping.task(task))]))
        delete_all(opened.caller, [(held.queue, held.id, held.reservation)])
        self._over(opened, held)

    def buried(self, *, limit: int = 100) -> Sequence[Buried]:
        """Buried tasks, up to 100 of each queue; IronMQ keeps them for 30 days. Of one that is larger than a message
        the beginning of its body. A request for each queue that has some."""
        opened = self._here()
        found: list[Buried] = []
        prefix = self._place.names.dead
        for queue in mq.names(opened.caller.call(mq.listing(prefix))):
            name = decode(queue[len(prefix) :])
            for message in mq.reserved(opened.caller.call(mq.peek(queue))):
                task = wrapping.read_task(message.id, message.body)
                deliveries, _, reason = task.reason.partition(" ")
                times = int(deliveries) if deliveries.isdigit() else 0
                found.append(Buried(task.id, task.body, name, times, reason))
        return found[::-1][:limit]

    # ---- asking

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        """Of tasks that this object submitted: a request for each, and 20 at most; of more the others are as they were
        when they were last asked about. Others are unknown."""
        opened = self._here()
        wanted = list(ids)
        known = [id for id in wanted if id in self._known]
        states = self._asking.states(known, lambda id: self._look(opened, id))
        return {id: states.get(id, "unknown") for id in wanted}

    def _look(self, opened: _Opened, id: str) -> EngineState:
        queue, message, _ = self._known[id]
        try:
            found = mq.found(opened.caller.call(mq.find(queue, message)))
        except Missing:
            return "unknown"
        return "running" if found.reservation else "queued"

    def cancel(self, task_id: str) -> bool:
        """Remove a task that was submitted through this object and that nobody has taken; False of any other."""
        opened = self._here()
        place = self._known.get(task_id)
        if place is None:
            return False
        queue, message, aside = place
        try:
            opened.caller.call(mq.delete_one(queue, message, None))
        except (Missing, Denied):
            return False
        self._asking.forget(task_id)
        if aside:
            self._drop(opened, aside)
        return True
