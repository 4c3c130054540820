"""Tasks as jobs of beanstalkd.

    submit ─▶ server 1 ◀┐                       ┌─ settle: done     delete
              server 2 ◀┴─ reserve ── take ─────┼─ release          release
              (by the hash of the task's id)    └─ bury             a note, then bury

A job belongs to the connection that reserved it, for its time to run, which `extend` begins anew (touch); it goes to
another taker when that is over, or at once when the connection ends. Whoever lost one is told NOT_FOUND. So there is
one connection to each server that takes, and on it a reserve that waits can be called back: see `reserving`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...engine import Answer, EngineState, Lease, Outcome, Parcel, Sink
from ...errors import UsageError
from ...traits import Traits
from ..lines import Lines, Role
from ..preference import Preference
from ..url import Url
from .address import KIND, LARGEST, Place
from .delivery import Delivery, refused
from .loads import TaskLoad
from .looking import Looking
from .managing import Managing
from .names import priority_of, whole
from .settling import Settling
from .taking import TAKE, Hold, Taking

_WORN = 13
"""Times that a job of an exposed function is handed out, before it is buried: whoever takes it dies of it."""
_SWEEP = 300.0  # seconds between sweeps, or a little more


class Queue(Managing):
    """Tasks on one or several beanstalkds. One thread calls it; `wake` and `close` may come from any, and so may what
    looks at buried tasks (`counts`, `buried`, `exhume`, `purge`).

    A second task with the id of one that this object submitted, and that the server still holds, is one with it.
    `state` and `cancel` know the tasks of this object.
    """

    traits = Traits(
        summary="jobs of one or several beanstalkds",
        durable=True,
        delays=True,
        priorities=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
        buries=True,
        serves=True,
        finds=False,
        messenger="beanstalkd://",
    )

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.lease = float(place.lease)
        self._exposed: dict[bytes, str] = {}
        self._next_sweep = 0.0

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Queue:
        """`beanstalkd://host:11300,host2/namespace?timeout=5&lease=30&keep_buried=604800&most_buried=10000`. Raises
        `UsageError`."""
        return cls(Place.read(url, options))

    # ---- connections

    def _dial(self) -> tuple[Lines, Role]:
        place = self.place
        lines = Lines(place.servers, place.timeout, KIND)
        self._delivery = Delivery(lines)
        self._preference = Preference(place.servers)
        self._taking = Taking(lines, place)
        self._settling = Settling(lines, self._delivery, self._taking, place)
        self._looking = Looking(lines, self._delivery)
        self._names: dict[bytes, str] = {}
        self._groups: list[set[bytes]] = []
        self._queues: tuple[str, ...] = ()
        self._next_sweep = time.monotonic() + _SWEEP * random.uniform(0.5, 1.5)
        return lines, self._delivery.role

    # ---- giving

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        self._check_parcels(parcels)
        with self._busy:
            looking = self._looking
            again = [parcel.id for parcel in parcels if looking.known(parcel.id)]
            held = set(looking.bury_again(again)) if again else ()
            loads: list[TaskLoad] = []
            try:
                self._delivery.deliver(self._loads(parcels, held, loads))
            finally:
                looking.submitted(loads)
            refused(loads, f"{len(loads)} tasks")

    def _loads(self, parcels: Sequence[Parcel], held: Iterable[str], made: list[TaskLoad]) -> Iterator[TaskLoad]:
        names, order, ttr = self.place.names, self._preference.order, self.place.lease
        part = names.part
        for parcel in parcels:
            if held and parcel.id in held:
                continue
            id = parcel.id
            load = TaskLoad(
                order(id.encode("utf-8", "surrogateescape")), id, parcel.name, parcel.body, names.queue(parcel.queue),
                part, priority_of(parcel.priority), whole(parcel.delay), ttr,
            )  # fmt: skip
            made.append(load)
            yield load

    # ---- taking

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        """Jobs of exposed functions come too, before or after the queues in turn."""
        return self._take(queues, limit, wait)

    def settle_and_take(
        self, outcomes: Sequence[tuple[Lease, Outcome]], queues: Sequence[str], *, limit: int, wait: float
    ) -> Sequence[Lease]:
        """The deletions go ahead of the reserves on the same connection, so that one round trip is for both."""
        with self._busy:
            self._joined()
            self._settling.settle(outcomes, send=False)
            return self._take(queues, limit, wait)

    def _take(self, queues: Sequence[str], limit: int, wait: float) -> list[Lease]:
        began = time.monotonic()
        with self._busy:
            self._joined()
            self._listen(queues)
            self._sweep_now_and_then(began)
            groups = self._groups
            if len(groups) > 1 and self._exposed:
                groups.insert(0, groups.pop())  # the exposed ones are first, and last, in turn
            leases: list[Lease] = []
            deadline = began + wait
            while True:
                holds = self._taking.take(groups, limit - len(leases), began, deadline)
                bad = [hold for hold in holds if not self._lend(hold, leases)]
                if bad:
                    self._refuse(bad)
                if leases or not bad:
                    break
            if not self._open:
                return []
            self._measure(leases)
            return leases

    def _listen(self, queues: Sequence[str]) -> None:
        if self._queues != tuple(queues) or not self._groups:
            self._queues = tuple(queues)
            names = self.place.names
            self._names = {names.queue(queue): queue for queue in queues}
            self._groups = [{tube} for tube in self._names]
            if self._exposed:
                self._groups.append(set(self._exposed))

    def _lend(self, hold: Hold, leases: list[Lease]) -> bool:
        """Make a lease of it. False: it is nothing to be run."""
        exposed = self._exposed.get(hold.tube)
        if exposed is not None:
            if hold.deliveries > _WORN:
                return False
            leases.append(Lease(os.urandom(16).hex(), hold.body, "", hold.deliveries, hold, exposed))
            return True
        if not hold.whole:
            return False
        id = hold.task.id if hold.task is not None else f"job-{hold.number}"
        leases.append(Lease(id, hold.body, self._names.get(hold.tube, "?"), hold.deliveries, hold))
        return True

    def _refuse(self, holds: Sequence[Hold]) -> None:
        """Bury what cannot be run."""
        several = []
        for hold in holds:
            if hold.tube in self._exposed:
                why = f"it was handed out {hold.deliveries - 1} times and never came to an end"
                several.append((hold, Lease(f"job-{hold.number}", b"", self._exposed[hold.tube]), why))
            else:
                id = hold.task.id if hold.task is not None else f"job-{hold.number}"
                queue = self._names.get(hold.tube, "?")
                several.append((hold, Lease(id, b"", queue), "parts of its body are not there any more"))
        self._settling.finish(self._settling.bury(several), [hold.line for hold in holds])

    def _measure(self, leases: Sequence[Lease]) -> None:
        """Let whoever extends know how often that must be: the submitter says for how long its job may be held."""
        if not leases and not self._taking.holding():
            self.lease = float(self.place.lease)
        for lease in leases:
            if lease.token.ttr < self.lease:
                self.lease = float(lease.token.ttr)

    # ---- holding and settling

    def extend(self, leases: Sequence[Lease]) -> None:
        """Touch them, and whatever else this object holds."""
        with self._busy:
            lines = self._joined()
            requests = self._taking.touch()
            up = lines.lines(TAKE)
            lines.send(up)
            self._settling.finish(requests, up)

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        """Returns once the servers have it."""
        with self._busy:
            lines = self._joined()
            self._settling.finish(self._settling.settle(outcomes), lines.lines(TAKE))

    def expose(self, names: Iterable[str]) -> None:
        """Also take jobs of these tubes of other programs, whose bytes are the arguments (see `running.exposed`)."""
        self._exposed = {self.place.names.foreign(name): name for name in names}
        with self._busy:
            if self._lines is not None:
                raise UsageError("expose functions before the queue is opened")

    def answer(self, answers: Sequence[tuple[Lease, Answer]]) -> None:
        """`complete` deletes the job, `fail` and `exception` bury it. Nobody hears of the rest."""
        with self._busy:
            lines = self._joined()
            self._settling.finish(self._settling.answer(answers), lines.lines(TAKE))

    # ---- asking

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        """Of tasks that were submitted through this object; `unknown` of all others. Raises `Unreachable` where the
        server that has one failed within the last minute."""
        self._joined()
        with self._busy:
            return self._looking.state(list(ids))

    def cancel(self, task_id: str) -> bool:
        """Remove a task that was submitted through this object and that nobody has taken; False of any other."""
        self._joined()
        with self._busy:
            return self._looking.cancel(task_id)

    def _where(self, task_id: str) -> tuple[tuple[str, int], int] | None:
        return self._looking.where(task_id) if self._lines is not None else None

    def _sweep_now_and_then(self, now: float) -> None:
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP * random.uniform(1.0, 1.5)
            self.sweep()
