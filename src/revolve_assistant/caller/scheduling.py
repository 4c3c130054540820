"""Functions that workers run again and again: what a `Client` says of them. `worker.firing` does it.

A schedule lies in the queue, under its key, until somebody takes it out: the client that made it may be gone. So every
process of a program may say at its start what it wants scheduled. What is there already in the same words stays as it
is; what has changed is replaced, and keeps its times unless those are what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta, tzinfo
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import ClientClosed, ProviderError, Unsupported, Untrusted, UsageError
from .options import PLAIN, Options, options_of

if TYPE_CHECKING:
    from ..engine import Plan, Queue
    from ..wire.plan import Planned

T = TypeVar("T")

HELD_OFF = 30.0  # seconds that a schedule which is due is put off while it is replaced
SOON = 5.0  # seconds before its time from which on a worker may be about to submit it
LONGEST = 200  # characters of a key
PLAIN_KINDS = (type(None), bool, int, float, complex, str, bytes, range)


class Schedule(NamedTuple):
    """One schedule. `next` is the Unix time in seconds of its next task, `last` the id of the one before (None: there
    was none yet), which `client.attach` takes as any other. `times` says it in words, `trouble` why it cannot be read
    here ("": it can)."""

    key: str
    name: str
    times: str
    next: float
    last: str | None
    queue: str
    every: float | None = None
    cron: str | None = None
    tz: str | None = None
    trouble: str = ""


class Scheduling:
    """The part of a `Client` that schedules. Thread-safe; each call blocks for a few round trips to the queue."""

    _engine: Any
    _carrier: Any
    _shut: bool

    def schedule(
        self,
        fn: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        every: float | timedelta | None = None,
        cron: str | None = None,
        tz: str | tzinfo | None = None,
        key: str | None = None,
    ) -> str:
        """Have workers run `fn(*args, **kwargs)` again and again, until `unschedule`; returns the key.

        Either `every` so many seconds, or when `cron` says (`"*/5 * * * *"`, `"@daily"`), in the time zone `tz` (None:
        UTC). Each time is submitted once, by whichever worker is first; of times that passed while no worker was there
        one is made up for. To schedule the same key again replaces it, and changes nothing if nothing has changed: so
        every process may do so at its start. The key follows from the function and its arguments, if it is not said.

        Needs a queue that keeps schedules, else `Unsupported`. Raises `UsageError`, `NotCarriable`, `Unreachable`,
        `ProviderMissing` (cron needs `revolve-assistant[schedules]`). Blocks for some round trips.
        """
        return schedule(self, options_of(fn) or PLAIN, fn, args, kwargs, every, cron, tz, key)

    def schedules(self) -> list[Schedule]:
        """What is scheduled, by key. Blocks for a round trip. Raises `Unsupported`, `Unreachable`."""
        return [_read(self, plan) for plan in _ask(self, lambda queue: queue.plans())]

    def unschedule(self, key: str) -> bool:
        """Schedule it no more; False: there is no such key. What was submitted already runs on. As `schedules`."""
        return _ask(self, lambda queue: queue.unplan(key))


def schedule(
    client: Any,
    options: Options,
    fn: Callable[..., Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any] | None,
    every: Any,
    cron: Any,
    tz: Any,
    key: str | None,
) -> str:
    """As `Client.schedule`, with options."""
    from ..wire.plan import seal
    from ..wire.timetable import words_of

    _need_queue(client)
    times = words_of(every, cron, tz)
    args, kwargs = _arguments(fn, args, kwargs)
    name = key_of(fn, args, kwargs) if key is None else _checked(key)
    planned = _planned(client, options, fn, args, kwargs, name, times)
    table = planned.timetable()

    def put(queue: Queue) -> str:
        while True:
            overdue = queue.overdue()
            now = overdue.now
            planned_now = _stamped(planned, now)
            due = table.after(now)
            if due == float("inf"):
                raise UsageError(f"cron={cron!r} names a time that never comes")
            old = next((plan for plan in queue.plans() if plan.key == name), None)
            before = None if old is None else _unsealed(client, old)
            if old is not None and before is not None and before.same_times(planned):
                if before.same(planned):
                    return name
                planned_now = _stamped(planned, before.since, before.seed)
                if old.due <= now + SOON:  # a worker may be about to submit it: take it away first, for a moment
                    if not queue.fire(old, now + HELD_OFF, None):
                        continue
                    due = min(due, old.due)
            queue.plan(name, seal(client._engine.keys, client._engine.namespace, planned_now), due)
            return name

    return _ask(client, put)


def key_of(fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The key of a call that has none: the same in every process. Raises `UsageError` where there is no such thing."""
    from ..wire.carry import by_reference, name_of

    name = name_of(fn)
    if not (isinstance(fn, (FunctionType, type)) or by_reference(fn)) or "<lambda>" in name:
        raise UsageError(f"{name} has no name that says which one it is: say key=, such as key='nightly report'")
    if not args and not kwargs:
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 17]}:{_digest(name)}"
    said = repr((_steady(args), _steady(dict(kwargs))))
    return f"{name[: LONGEST - 17]}:{_digest(said)}"


def _digest(text: str) -> str:
    from hashlib import blake2b  # 3 ms of each start, for those who schedule

    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _steady(value: Any) -> Any:
    """Something whose repr is the same for equal values in all processes. Raises `UsageError`."""
    from ..wire.carry import STEADY, by_reference, name_of

    kind = type(value)
    if kind in PLAIN_KINDS:
        return value
    if kind in (list, tuple):
        return (kind.__name__, [_steady(each) for each in value])
    if kind in (set, frozenset):
        return (kind.__name__, sorted(repr(_steady(each)) for each in value))
    if kind is dict:
        return ("dict", sorted((repr(_steady(name)), repr(_steady(each))) for name, each in value.items()))
    word = f"{kind.__module__}.{kind.__qualname__}"
    if word in STEADY and word not in ("logging.Logger", "re.Pattern"):  # whose repr leaves something out
        return (word, repr(value))
    if by_reference(value):
        return ("name", name_of(value))
    raise UsageError(
        f"the argument {value!r:.100} ({kind.__qualname__}) may look different in every process, so that no key "
        "follows from it: say key=, such as key='nightly report'"
    )


def _checked(key: Any) -> str:
    if isinstance(key, str) and 0 < len(key) <= LONGEST and key.isprintable():
        return key
    raise UsageError(f"key={key!r:.100} must be 1 to {LONGEST} printable characters, such as 'nightly report'")


def _arguments(fn: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not callable(fn):
        raise UsageError(f"schedule() needs a callable, got {fn!r:.100}")
    if isinstance(args, (str, bytes, Mapping)) or not isinstance(args, Iterable):
        raise UsageError(f"args={args!r:.100} must be the arguments in a tuple, such as args=({args!r:.40},)")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise UsageError(f"kwargs={kwargs!r:.100} must be a dict of arguments by their names")
    return tuple(args), dict(kwargs or {})


def _planned(
    client: Any,
    options: Options,
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: str,
    times: tuple[float, str, str],
) -> Planned:
    from ..wire.envelope import terms_of
    from ..wire.plan import VERSION, Planned

    work = client._carrier.carry(fn, args, kwargs)
    if work.shares:
        raise Unsupported("client.share() goes with worker processes of this machine: pass the value itself")
    function = work.function
    return Planned(
        VERSION,
        key,
        b"",
        0.0,
        *times,
        function.name,
        function.kind,
        function.body,
        work.payload,
        [bytes(buffer.raw()) for buffer in work.buffers or ()],
        terms_of(options),
        options.queue,
        options.priority,
        options.delay,
        options.unique,
        client._engine._history(options),
    )


def _stamped(planned: Planned, since: float, seed: bytes = b"") -> Planned:
    from msgspec.structs import replace

    from ..wire.plan import new_seed

    return replace(planned, since=since, seed=seed or new_seed())


def _unsealed(client: Any, plan: Plan) -> Planned | None:
    """None: it is of another key, or of another release."""
    from ..wire.plan import unseal

    try:
        return unseal(client._engine.keys, client._engine.namespace, plan.key, plan.spec)
    except (Untrusted, ProviderError):
        return None


def _read(client: Any, plan: Plan) -> Schedule:
    from ..wire.plan import unseal

    try:
        found = unseal(client._engine.keys, client._engine.namespace, plan.key, plan.spec)
        last = found.timetable().before(plan.due)
    except (Untrusted, ProviderError, UsageError) as error:
        return Schedule(plan.key, "", "", plan.due, None, "", trouble=str(error))
    zone = found.zone or "UTC"
    return Schedule(
        plan.key,
        found.name,
        f"{found.cron} ({zone})" if found.cron else f"every {found.every:g} s",
        plan.due,
        found.task_id(last) if last > found.since else None,
        found.queue,
        found.every or None,
        found.cron or None,
        zone if found.cron else None,
    )


def _need_queue(client: Any) -> None:
    """Raises `Unsupported`, `ClientClosed`."""
    engine = client._engine
    if client._shut:
        raise ClientClosed("cannot schedule: the client was shut down")
    if not client._remote or not engine.traits.manages:
        what = getattr(engine, "place", "") or type(engine).__module__.rpartition(".")[2]
        raise Unsupported(f"{what} keeps no schedules: redis, sqlite and memory do, with workers that serve them")


def _ask(client: Any, call: Callable[[Queue], T]) -> T:
    """What `call(queue)` returns. Raises `Unsupported`, `ClientClosed`, and as it does."""
    _need_queue(client)
    engine = client._engine
    with engine.managing:
        engine.queue.open()
        return call(engine.queue)
