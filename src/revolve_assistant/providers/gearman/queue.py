"""Tasks as background jobs of gearmand.

    submit ─▶ server 1 ◀┐                     ┌─ settle: done     WORK_COMPLETE
              server 2 ◀┴─ grab ── take ──────┼─ release          a new job, then WORK_COMPLETE
              (by the hash of the task's id)  └─ bury             a new job in NAMESPACE.buried.*, then WORK_FAIL

The connection is the lease: it holds as long as the connection it was taken on, and ends with that. A job that is
reported on from another one is refused by gearmand, which fences off whoever lost it. Handles are no identity, since
gearmand counts them anew after a restart; the task's own id is the job's unique, by which `state` finds it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...engine import Answer, Buried, EngineState, Lease, Outcome, Parcel, Sink
from ...errors import UsageError
from ...protocols.gearman.client_state import Request
from ...protocols.gearman.worker_state import Assignment
from ...traits import Traits
from ..joined import Joined
from ..lines import Line, Lines, Role
from ..preference import Preference
from ..url import Url
from .address import LARGEST, MAX_BODY, Place
from .calling import Calling
from .delays import Delays
from .delivery import SUBMIT, Delivery, background, refused
from .exposing import Exposing, checked
from .looking import Looking
from .moving import Move, move
from .names import DELAYED, PRIORITIES, READY, unique
from .parked import buried
from .taking import Taking
from .wrapping import Wrapped, unwrap, wrap

_TAKE = "take"
_SETTLED = b"settled"


class Queue(Joined):
    """Tasks on one or several gearmands. One thread calls it; `wake` and `close` may come from any.

    A second task with the id, queue and priority of one that the server holds is one with it, unless that one was
    delayed or released before. `deliveries` counts releases; that a worker died with it gearmand does not tell.
    """

    traits = Traits(
        summary="background jobs of one or several gearmands",
        durable=True,
        delays=True,
        priorities=True,
        max_bytes=LARGEST,
        max_wait=3600.0,
        foreign=True,
        messenger="gearman://",
    )

    def __init__(self, place: Place) -> None:
        super().__init__(place.text)
        self._place = place
        self._calling = Calling(place)
        self._exposed: dict[bytes, str] = {}

    @classmethod
    def from_url(cls, url: Url, **options: object) -> Queue:
        """`gearman://host:4730,host2/namespace?timeout=5&encode=base64`. Raises `UsageError`."""
        return cls(Place.read(url, options))

    # ---- connections

    def _dial(self) -> tuple[Lines, Role]:
        place = self._place
        lines = Lines(place.servers, place.timeout)
        self._delivery = Delivery(lines, MAX_BODY)
        self._preference = Preference(place.servers)
        self._taking = Taking(lines, _TAKE, MAX_BODY)
        self._delays = Delays(lines, self._delivery, place)
        self._looking = Looking(lines, self._delivery, place, self._preference)
        self._exposing = Exposing(lines, place, self._exposed) if self._exposed else None
        self._turn = False
        self._names: dict[bytes, str] = {}
        self._queues: tuple[str, ...] = ()
        return lines, self._delivery.role

    def _let_go(self) -> None:
        calling, self._calling = self._calling, Calling(self._place)
        calling.close()

    # ---- giving

    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        self._check_parcels(parcels)
        with self._busy:
            self._looking.refresh(parcels)
            requests: list[Request] = []
            try:
                self._delivery.deliver(self._requests(parcels, requests))
            finally:
                self._looking.submitted(zip(parcels, requests, strict=False))
            refused(requests, f"{len(requests)} tasks")

    def _requests(self, parcels: Sequence[Parcel], made: list[Request]) -> Iterator[tuple[tuple[int, ...], Request]]:
        for parcel in parcels:
            order, request = self._request(parcel)
            made.append(request)
            yield order, request

    def _request(self, parcel: Parcel) -> tuple[tuple[int, ...], Request]:
        names = self._place.names
        own = unique(parcel.id)
        at, due = None, 0.0
        if parcel.delay > 0:
            function, form = names.delayed, self._looking.form(parcel.id, DELAYED)
            at, due = _second(parcel.delay)
        else:
            function, form = names.queue(parcel.queue, parcel.priority), self._looking.form(parcel.id, READY)
        task = Wrapped(parcel.id, parcel.queue, parcel.body, parcel.priority, 0, due)
        data = wrap(task, self._place.base64)
        request = background(function, own + form, data, 0 if due else parcel.priority, at)
        return self._preference.order(own.encode()), request

    # ---- taking

    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        began = time.monotonic()
        deadline = began + wait
        with self._busy:
            lines = self._joined()
            self._listen(lines, queues)
            if wait <= 0:
                lines.pump(began)  # who never waits hears of new tasks, and connects again, here alone
            self._turn = not self._turn
            try:
                return self._take(lines, limit, began, deadline)
            finally:
                for taking in self._takings():
                    taking.stand_down()

    def _take(self, lines: Lines, limit: int, began: float, deadline: float) -> list[Lease]:
        leases: list[Lease] = []
        if not lines.lines(_TAKE):
            lines.pump(began)  # dials again what is due, also for who only looks in now and then
        while True:
            self._delays.tend()
            self._collect(lines, leases, limit)
            busy = self._ask(limit - len(leases))
            now = time.monotonic()
            if leases and not busy:
                return leases
            if not busy and not leases:
                if not self._open or lines.hush():
                    return leases
                up = lines.lines(_TAKE)
                if now >= deadline and (up or not lines.undecided(_TAKE, hopeful=True)):
                    if not up:
                        raise lines.unreachable()
                    return leases
                if not up and (lines.hopeless() or now >= began + lines.timeout):
                    raise lines.unreachable()
            until = min(self._delays.until(), *[taking.patience() for taking in self._takings()])
            lines.pump(min(until, deadline if now < deadline else now + 0.25))
            if lines.woken and busy:
                deadline = now  # leave, once the grabs are answered

    def _listen(self, lines: Lines, queues: Sequence[str]) -> None:
        if self._queues != tuple(queues):
            self._queues = tuple(queues)
            names = self._place.names
            self._names = {names.queue(queue, priority): queue for queue in queues for priority in PRIORITIES}
            self._taking.functions(tuple(self._names))
        for taking in self._takings():
            lines.want(taking.role)
        self._delays.start()

    def _takings(self) -> list[Taking]:
        return [self._taking] if self._exposing is None else [self._taking, self._exposing.taking]

    def _ask(self, room: int) -> bool:
        """Ask for tasks, and for jobs of exposed functions, one or the other first in turn."""
        if self._exposing is None:
            return self._taking.ask(room)
        takings = self._takings()
        busy = False
        for taking in takings if self._turn else reversed(takings):
            busy = taking.ask(room) or busy
            room -= sum(line.state.grabs for line in self._lines.lines(taking.role.name)) if self._lines else 0
        return busy

    def _collect(self, lines: Lines, leases: list[Lease], limit: int) -> None:
        """Make leases of what has arrived, whose tokens are the job and the task's priority; what nobody asked for
        stays."""
        if self._exposing is not None:
            self._exposing.collect(leases, limit)
        rest = []
        void = []
        for job in self._taking.arrived:
            queue = self._names.get(job.function)
            if queue is None or len(leases) >= limit:
                rest.append(job)
                continue
            task = unwrap(job.unique, queue, job.workload)
            job.workload = b""
            if task.void:
                void.append(job)
                continue
            leases.append(Lease(task.id, task.body, queue, task.deliveries + 1, (job, task.priority)))
        self._taking.arrived = rest
        if void:
            lines.send(self._end(void))

    # ---- holding and settling

    def extend(self, leases: Sequence[Lease]) -> None:
        """Have each server that leases are from answer, so that a connection which is cut without a word is noticed."""
        with self._busy:
            lines = self._joined()
            self._delays.tend()
            self._echo(lines, {lease.token[0].owner for lease in leases if not lease.token[0].ended}, b"alive")

    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        """Returns once the servers have it. Raises `Overloaded` for what they do not store; those leases go on."""
        with self._busy:
            lines = self._joined()
            again: dict[Line, list[tuple[Lease, Outcome]]] = defaultdict(list)
            ended: list[Assignment] = []
            seen: set[int] = set()
            for lease, outcome in outcomes:
                job = lease.token[0]
                if job.ended or id(job) in seen or lease.name:
                    continue
                seen.add(id(job))
                if outcome.kind == "done":
                    ended.append(job)
                else:
                    again[job.owner].append((lease, outcome))
            error: Exception | None = None
            for line, several in again.items():
                moved, problem = self._resubmit(lines, line, several)
                ended += moved
                error = error or problem
            owners = self._end(ended, {id(lease.token[0]) for lease, outcome in outcomes if outcome.kind == "bury"})
            self._echo(lines, owners, _SETTLED)
            if error is not None:
                raise error

    def _resubmit(
        self, lines: Lines, line: Line, several: list[tuple[Lease, Outcome]]
    ) -> tuple[list[Assignment], Exception | None]:
        """Put released and buried tasks where they belong; the jobs that can be ended now, and what went wrong."""
        deadline = time.monotonic() + lines.timeout
        while (other := lines.line(SUBMIT, line.index)) is None or not other.up:
            if not line.up:
                return [], None
            if time.monotonic() >= deadline:
                return [], lines.unreachable()
            lines.pump(deadline)
        moves = [self._move(lease, outcome) for lease, outcome in several]
        moved, error = move(self._delivery, other, moves, self._place.base64)
        return [lease.token[0] for (lease, _), safe in zip(several, moved, strict=True) if safe], error

    def _move(self, lease: Lease, outcome: Outcome) -> Move:
        names = self._place.names
        job, priority = lease.token
        task = Wrapped(lease.id, lease.queue, lease.body, priority, lease.deliveries)
        if outcome.kind == "bury":
            task = task._replace(reason=outcome.reason)
            return Move(names.buried(lease.queue), task, b"", buried=True)
        if not outcome.counted:
            task = task._replace(deliveries=lease.deliveries - 1)
        if outcome.delay > 0:
            at, due = _second(outcome.delay)
            return Move(names.delayed, task._replace(due=due), job.unique, at)
        return Move(names.queue(lease.queue, priority), task, job.unique)

    def _end(self, jobs: Iterable[Assignment], failed: Iterable[int] = ()) -> set[Line]:
        """Complete the jobs, or fail those, unless they were lost meanwhile; the lines that have it to send."""
        owners = set()
        for job in jobs:
            if not job.ended:
                if id(job) in failed:
                    job.owner.state.fail(job)
                else:
                    job.owner.state.complete(job)
                owners.add(job.owner)
        return owners

    def _echo(self, lines: Lines, owners: Iterable[Line], data: bytes) -> None:
        """Wait until each server has read all that was sent on the line, or the line is lost."""
        asked = [line for line in owners if line.up]
        for line in asked:
            lines.attempt(line, line.ping, data)
        lines.send(asked)
        while any(line.up and line.state.pinged for line in asked):
            lines.pump(time.monotonic() + 0.5)

    def buried(self, *, limit: int = 100) -> list[Buried]:
        """Buried tasks, in no order; blocks for a few round trips to each server, and takes what is away as empty.

        gearmand counts each look as the death of a worker, which matters only where it has `--job-retries`.
        """
        self._joined()
        return buried(self._place)[:limit]

    # ---- functions of other programs, and for them

    def call(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        self._calling.call(parcels, sink)

    def cancel_call(self, task_id: str) -> bool:
        return self._calling.cancel(task_id)

    def expose(self, names: Iterable[str]) -> None:
        self._exposed = checked(self._place.names, names)
        with self._busy:
            if self._lines is not None:
                raise UsageError("expose functions before the queue is opened")

    def answer(self, answers: Sequence[tuple[Lease, Answer]]) -> None:
        with self._busy:
            lines = self._joined()
            if self._exposing is not None:
                self._echo(lines, self._exposing.answer(answers), _SETTLED)

    # ---- asking

    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        """Raises `Unreachable` when an id is not found, and a server that may know it failed within the last minute."""
        self._joined()
        with self._busy:
            return self._looking.state(list(ids))

    def cancel(self, task_id: str) -> bool:
        """Remove a task that was submitted through this object and that nobody has taken; False of any other.

        gearmand removes jobs by their handles, which it tells nobody but the submitter.
        """
        self._joined()
        with self._busy:
            return self._looking.cancel(task_id)


def _second(delay: float) -> tuple[int | None, float]:
    """From when on gearmand may give it out (None: at once), and when it is due, in Unix seconds."""
    now = time.time()
    due = now + delay
    return (int(due) if int(due) > int(now) else None), due
