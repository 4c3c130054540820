"""The contracts of an Engine (where tasks go to be run) and of a Queue (an Engine that holds them for Workers).

       Client ──Parcel──▶ Engine ──Report──▶ Sink            local engines: process, thread, inline, executor, fork
       Client ──Parcel──▶ Queue ──Lease──▶ Worker ──Parcel──▶ local Engine
                            ◀──Outcome──

A Queue sees `Parcel.id`, `queue`, `priority`, `delay`, `name`, `unique` and `body` (bytes), and nothing else of a task.
Local engines see the carried or live callable in `Parcel.work` and report to the sink whose object they were given.

A Queue with the trait `manages` can also be looked into and steered: counts, buried tasks, rules for one function on
the whole fleet (pause, limits), plans (tasks that are submitted at their times, once each).

A Queue with the trait `foreign` also carries plain calls, unsigned and without a pickle, from and to other programs:

       Client ──call──▶ Queue ──▶ somebody else's worker ──Report──▶ Sink
       somebody else's client ──▶ Queue ──take: Lease with a name──▶ Worker ──answer──▶ that client
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import msgspec

from .errors import Unsupported
from .traits import Traits

if TYPE_CHECKING:
    from .messenger import Messenger

EngineState = Literal["queued", "running", "unknown"]


class Parcel:
    """One task on its way to be run.

    `owner` is opaque to the engine and handed back to the sink in every report. `attempt` counts from 1. The payload
    of a `chunk` is a list of argument tuples, each of which ends by itself: 1: each pickled alone, 2: all in one.
    `headers` is the trace that the task belongs to, perhaps none yet (empty); None: its run is not traced.
    The slots below the line belong to the engine that holds the parcel, and to nobody else.
    """

    __slots__ = (
        "attempt",
        "body",
        "chunk",
        "delay",
        "headers",
        "id",
        "name",
        "options",
        "owner",
        "priority",
        "queue",
        "unique",
        "work",
        # --- the engine's own bookkeeping
        "_",
    )

    def __init__(
        self,
        id: str,
        *,
        work: Any = None,
        body: bytes = b"",
        options: Any = None,
        owner: Any = None,
        queue: str = "default",
        priority: int = 0,
        delay: float = 0.0,
        attempt: int = 1,
        chunk: int = 0,
        name: str = "",
        unique: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.id = id
        self.name = name  # of the function, as rules know it
        self.unique = unique  # the key that only one task of the queue may hold
        self.work: Any = work  # wire.carry.Work
        self.body = body
        self.options = options
        self.owner = owner
        self.queue = queue
        self.priority = priority
        self.delay = delay
        self.attempt = attempt
        self.chunk = chunk
        self.headers = headers
        self._: Any = None

    def __repr__(self) -> str:
        return f"<Parcel {self.id} attempt {self.attempt}>"


class Sink(Protocol):
    """Where a local engine reports. Called from the engine's own thread; must be quick and never raise."""

    def deliver(self, reports: Sequence[Any]) -> None:
        """Take reports in order; see `pool.reports` for their kinds."""


class Engine(ABC):
    """Where tasks go to be run."""

    traits: ClassVar[Traits]
    needs_messenger: ClassVar[bool] = False
    """What it runs elsewhere gets large bodies through the messenger: it is given every parcel by `submit_and_keep`."""

    @abstractmethod
    def open(self) -> None:
        """Get ready; may do nothing until the first `submit`. Raises `Unreachable`."""

    @abstractmethod
    def close(self) -> None:
        """Stop. Tasks of a local engine that have not ended are stopped and reported as lost. Idempotent."""

    @abstractmethod
    def wake(self) -> None:
        """End a call that waits in another thread. Callable from any thread."""

    @abstractmethod
    def submit(self, parcels: Sequence[Parcel], sink: Sink) -> Mapping[str, str] | None:
        """Take the parcels. Returns once they are safe with the engine; raises `Unreachable`, `Overloaded`.

        A Queue with the trait `manages` returns which parcels it did not take because another task holds their
        `unique` key: their ids, and that task's. A key is held until its task is done, buried or cancelled.
        """

    def submit_and_keep(
        self,
        parcels: Sequence[Parcel],
        sink: Sink,
        messenger: Messenger,
        channels: Sequence[str],
        *,
        seconds: float,
        cap: int,
    ) -> Mapping[str, str] | None:
        """`messenger.keep` these channels, then `submit`: as one request, where both are on one server."""
        messenger.keep(channels, seconds=seconds, cap=cap)
        return self.submit(parcels, sink)

    @abstractmethod
    def state(self, ids: Iterable[str]) -> Mapping[str, EngineState]:
        """What the engine knows of each id; `unknown` says: ended, lost or never seen."""

    @abstractmethod
    def cancel(self, task_id: str) -> bool:
        """Remove a task not yet taken, or start stopping it where the engine can. False: it knows no such task."""


class Lease(NamedTuple):
    """A parcel taken from a Queue by one worker, until it is settled or the lease ends.

    `deliveries` counts how often the queue handed it out (1 at first), `token` is the provider's own. `name` is that of
    an exposed function, and empty otherwise: the body is somebody else's plain bytes then, and the lease ends with a
    last `Answer`, not by being settled.
    """

    id: str
    body: bytes
    queue: str = "default"
    deliveries: int = 1
    token: Any = None
    name: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What becomes of a lease: `done`, `release` (again after `delay` seconds; `counted` as an attempt) or `bury`."""

    kind: Literal["done", "release", "bury"] = "done"
    delay: float = 0.0
    counted: bool = True
    reason: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What is said of a lease of an exposed function; `complete`, `fail` and `exception` end it.

    `done` of `total` are of a `status`: whole numbers, each as large as the provider's protocol takes.
    """

    kind: Literal["status", "data", "warning", "complete", "fail", "exception"]
    data: bytes = b""
    done: int = 0
    total: int = 0


class Count(NamedTuple):
    """How many tasks of one named queue are where.

    `pending` can be taken now, `delayed` later, `blocked` are kept back by a rule, `leased` are taken, `buried` came to
    a bad end. `oldest`: seconds that the longest waiting one of the pending has waited, 0.0: none waits.
    """

    queue: str
    pending: int = 0
    delayed: int = 0
    blocked: int = 0
    leased: int = 0
    buried: int = 0
    oldest: float = 0.0


class Buried(NamedTuple):
    """A task that was settled as `bury`: no worker gets it. `when` is the Unix time of that."""

    id: str
    body: bytes
    queue: str
    deliveries: int
    reason: str
    name: str = ""
    when: float = 0.0


class Rule(NamedTuple):
    """What holds for the tasks of one function in the whole namespace, whatever workers there are.

    `paused`: none is taken. `concurrency`: at most so many are taken at once. `rate`: at most so many are taken in any
    `per` seconds. None: no limit.
    """

    name: str
    paused: bool = False
    concurrency: int | None = None
    rate: int | None = None
    per: float = 1.0


class Plan(NamedTuple):
    """A task to be submitted again and again. `spec` is opaque to the queue, `due` the Unix time of its next one."""

    key: str
    spec: bytes
    due: float


class Overdue(NamedTuple):
    """The plans that are due, and when (Unix seconds) to look again at the latest; all by the queue's clock."""

    now: float
    plans: Sequence[Plan]
    next: float


class Queue(Engine):
    """An Engine that holds tasks for our own workers. One thread calls it."""

    lease: float = 30.0
    """Seconds after which a parcel that was taken and not extended may go to another worker."""

    @abstractmethod
    def take(self, queues: Sequence[str], *, limit: int, wait: float) -> Sequence[Lease]:
        """Up to `limit` leases, earlier names and higher priorities first; waits up to `wait` seconds for one."""

    @abstractmethod
    def extend(self, leases: Sequence[Lease]) -> None:
        """Renew the leases (a heartbeat). One that was lost meanwhile is passed over silently."""

    @abstractmethod
    def settle(self, outcomes: Sequence[tuple[Lease, Outcome]]) -> None:
        """Settle the leases. One that was lost meanwhile (fenced) is passed over silently."""

    def settle_and_take(
        self, outcomes: Sequence[tuple[Lease, Outcome]], queues: Sequence[str], *, limit: int, wait: float
    ) -> Sequence[Lease]:
        """`settle`, then `take`: as one request, where that can be. When it raises, any of that may have been done."""
        self.settle(outcomes)
        return self.take(queues, limit=limit, wait=wait)

    # --- with the trait `manages` (the first four also with `buries`): from any thread of the same process, one at a
    #     time; `open` first

    def counts(self) -> Sequence[Count]:
        """What every named queue of the namespace holds, empty ones left out."""
        raise _no_managing(self)

    def buried(self, *, limit: int = 100) -> Sequence[Buried]:
        """Buried tasks, the latest first. They are kept for a time and up to a number that the provider says."""
        raise _no_managing(self)

    def exhume(self, task_id: str) -> Buried | None:
        """Take out of the queue a task that nobody has taken (pending, delayed, blocked), or a buried one.

        None: it is not there, or a worker has it. `reason` is empty of one that is not buried. Nobody is told: the
        caller is to.
        """
        raise _no_managing(self)

    def purge(self, queue: str, *, buried: bool = False, limit: int = 1000) -> Sequence[Buried]:
        """Take out the tasks of a queue that nobody has taken, or its buried ones: up to `limit`; none: there are none.

        As `exhume`: nobody is told.
        """
        raise _no_managing(self)

    def rules(self) -> Sequence[Rule]:
        """The rules that are set."""
        raise _no_managing(self)

    def set_rule(self, name: str, **changes: Any) -> Rule:
        """Change what holds for a function (fields of `Rule`) at once for all takers; what results."""
        raise _no_managing(self)

    def plans(self) -> Sequence[Plan]:
        """All plans, by their keys."""
        raise _no_managing(self)

    def plan(self, key: str, spec: bytes, due: float) -> None:
        """Set or replace a plan."""
        raise _no_managing(self)

    def unplan(self, key: str) -> bool:
        """Remove a plan; False: there was none."""
        raise _no_managing(self)

    def overdue(self) -> Overdue:
        """The plans that are due now."""
        raise _no_managing(self)

    def fire(self, plan: Plan, next: float, parcel: Parcel | None) -> bool:
        """Submit the parcel (None: nothing) and set the plan's next time, as one step; False: somebody else has.

        Exactly one of several that fire the same plan at the same `due` does it. A parcel whose `unique` key is held is
        not submitted, and its time is passed over.
        """
        raise _no_managing(self)

    def introduce(self, worker: str, about: bytes) -> None:
        """Say who takes here, for `workers`. It is known from then on until this object is closed, or for the time of a
        lease after it last took, extended or settled."""
        raise _no_managing(self)

    def workers(self) -> Mapping[str, bytes]:
        """Who takes here now, and what each says of itself."""
        raise _no_managing(self)

    # --- with the trait `foreign` (with `serves` the last two)

    def call(self, parcels: Sequence[Parcel], sink: Sink) -> None:
        """Call functions of other people's workers: `work.function.name` is the function, `body` its plain bytes.

        From any thread, without `open`; returns at once. The sink hears from a thread of the provider's own:
        REPORT_AWAY while no server answers, REPORT_ACCEPTED, REPORT_STARTED once it is known, REPORT_EVENTS (`data` and
        `warning` with bytes, PROGRESS), and one end: REPORT_RETURNED (bytes), REPORT_RAISED (`RemoteError`), or
        REPORT_LOST when the connection ended first. Raises `UsageError` for a name that cannot be, and sends nothing.
        """
        raise _no_foreign(self)

    def cancel_call(self, task_id: str) -> bool:
        """Listen no more to a call, and keep it from starting where that can be; what runs may go on. From any thread.

        False: it knows no such call. Nothing is reported of it from then on.
        """
        raise _no_foreign(self)

    def expose(self, names: Iterable[str]) -> None:
        """`take` also gives what other programs ask of these functions; to be said before `open`. Raises `UsageError`
        for a name that cannot be."""
        raise _no_foreign(self)

    def answer(self, answers: Sequence[tuple[Lease, Answer]]) -> None:
        """Send them, in their order; returns once the servers have the last ones of each lease. What concerns a lease
        that was lost meanwhile is passed over silently."""
        raise _no_foreign(self)


def _no_managing(queue: Queue) -> Unsupported:
    name = type(queue).__module__.removeprefix("revolve_assistant.providers.").partition(".")[0]
    return Unsupported(f"{name} cannot be looked into or steered like that: redis and sqlite can")


def _no_foreign(queue: Queue) -> Unsupported:
    name = type(queue).__module__.removeprefix("revolve_assistant.providers.").partition(".")[0]
    return Unsupported(
        f"{name} neither calls functions of other programs nor serves them: gearman does both, beanstalkd serves"
    )
