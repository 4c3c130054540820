"""`Worker`: a program that takes tasks from a Queue, has them run by a local engine, reports and settles.

Threads, none of which runs a callable of the user: the taker (the queue's), the speaker (writes the messenger), the
control thread (reads it), the local engine's pump, and where the queue keeps schedules one that minds those. Leases are
extended and connections served whatever the callables do.

    run ──▶ takes ──SIGTERM──▶ drains ──grace──▶ cancels what runs and gives it back ──▶ ends
                                  └──a second signal──▶ kills what runs and gives it back ──▶ ends
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

from ..caller.engines import local_engine
from ..engine import Engine, Lease, Outcome, Queue
from ..errors import UsageError
from ..messenger import Messenger
from ..pool.vitals import usable_cpus
from ..providers.carriers import choose
from ..providers.url import Url
from ..wire.carry import Work
from ..wire.frames import new_runs
from ..wire.named import NamedMessenger
from .admission import Admission, Unknowns
from .control import Control
from .firing import Firing
from .held import Held
from .introduction import Introduction
from .lifecycle import Lifecycle, WorkerEvent
from .served import Replies, targets
from .setup import Trial
from .speaker import Speaker
from .taker import Taker
from .turn import Turn

log = logging.getLogger("revolve_assistant")

POOLS = ("process", "thread", "fork", "inline")
DEATHS = 3  # children that a task may take along before it is buried
LINGER = 5.0  # seconds that the last words have to be written


class Worker:
    """Serves a queue until it is told to stop.

    `url` names the queue, `messenger` what carries events (None: the queue's own); `concurrency` (None: the CPUs this
    process may use) children run tasks of `queues`, earlier names first, in a `pool` of `process`, `thread`, `fork` or
    `inline`, or on a local `engine` object. `initializer(*initargs)` runs once in each child. `messengers` are further
    ones that tasks name (`task.write_to`), with this worker's credentials. `secret`: one or several, the first signs,
    all verify. `expose` serves plain functions to other programs, by name: `{"reverse": "app:reverse"}`, or a callable
    that can be imported; only on queues with the trait `foreign` or `serves` (`Unsupported`). `grace`: seconds that
    running tasks have after `stop`. `unknown_after`: seconds after which a task whose function cannot be imported here
    fails. Nothing is opened before `run` or `start`. Raises `UsageError`, `UnknownProvider`.
    """

    def __init__(
        self,
        url: str | Url | Queue | None = None,
        *,
        messenger: str | Messenger | NamedMessenger | None = None,
        concurrency: int | None = None,
        pool: str = "process",
        queues: str | Iterable[str] = ("default",),
        expose: Mapping[str, Any] | None = None,
        messengers: Iterable[str | NamedMessenger] = (),
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        secret: str | bytes | Sequence[str | bytes] | None = None,
        namespace: str = "assistant",
        grace: float = 25.0,
        unknown_after: float = 600.0,
        max_tasks_per_child: int | None = None,
        memory_limit: int | str | None = None,
        engine: Engine | None = None,
    ) -> None:
        if url is None:
            url = os.environ.get("REVOLVE_URL")
            if not url:
                raise UsageError("a Worker needs the address of a queue: Worker('gearman://127.0.0.1') or REVOLVE_URL")
        if pool not in POOLS:
            raise UsageError(f"pool={pool!r} must be one of {', '.join(POOLS)}")
        if concurrency is not None and (not isinstance(concurrency, int) or concurrency < 1):
            raise UsageError(f"concurrency={concurrency!r} must be a whole number >= 1")
        names = queues.split(",") if isinstance(queues, str) else list(queues)
        self.queues = [name.strip() for name in names if name.strip()]
        if not self.queues:
            raise UsageError("queues must name at least one queue, such as 'default'")
        self.carriers = choose(url, messenger, secret, namespace)
        queue, self.messenger, self.keys, self.namespace, self.place, self.natural = self.carriers
        if not isinstance(queue, Queue):
            raise UsageError(f"{self.place} runs tasks by itself: a Worker takes them from a queue")
        self.queue = queue
        self.fingerprints = list(self.keys.fingerprints)
        self.buries = (
            self.queue.traits.manages or self.queue.traits.buries
        )  # what failed is kept there for people to see
        self.concurrency = 1 if pool == "inline" else concurrency or usable_cpus()
        self.pool = pool
        self.grace = grace
        options: dict[str, Any] = {"max_workers": self.concurrency}
        for name, value in (("max_tasks_per_child", max_tasks_per_child), ("memory_limit", memory_limit)):
            if value is not None:
                if pool != "process":
                    raise UsageError(f"{name} goes with pool='process'")
                options[name] = value
        if engine is not None:
            self.pool = type(engine).__module__.rpartition(".")[2]
            self.concurrency = int(getattr(engine, "max_workers", 1))
        self.engine: Any = engine
        if engine is None:
            self.engine = local_engine(pool, initializer, tuple(initargs), options)
        self.engine.withheld = ("REVOLVE_SECRET", "REVOLVE_SECRET_FILE")  # children never hold the secret
        self.deaths = DEATHS
        self.local: dict[str, Work] | None = None  # works that stay in this process, by the id of their task
        self.live = bool(self.engine.traits.live)
        self.name = f"{os.uname().nodename}:{os.getpid()}"
        self.runs = new_runs()
        self.channel = f"w.{os.urandom(16).hex()}"
        self._messengers = {each.name: each for each in map(_named, messengers)}
        self._opened: dict[str, Messenger] = {}  # further messengers, by address
        self.expose = targets(expose or {})
        if self.expose:
            self.queue.expose(self.expose)
        self.replies = Replies(self)
        self.unknown = Unknowns(unknown_after)
        self.admission = Admission(self)
        self.introduction = Introduction(self)
        self.lifecycle = Lifecycle(self)
        self.speaker = Speaker(self)
        self.taker = Taker(self)
        self.control = Control(self)
        self.managing = threading.Lock()  # what the trait `manages` gives is called by one thread at a time
        self.firing = Firing(self)
        self.on_ready: Callable[[], None] | None = None
        self._ready = threading.Event()
        self._signals = 0
        self.trial = Trial(self) if initializer is not None and engine is None else None
        self.failure: BaseException | None = None  # why it ends by itself
        self._turn = Turn()  # something happened that `run` or `stop` waits for
        self._over = threading.Event()
        self._state = "new"
        self._lock = threading.Lock()

    # --- life

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT (the first drains, the second stops) or `stop`; then 0, or 128 + signal.

        Returns 1 at once if the initializer fails in the first child: no task is taken then. Blocks. Handles signals
        only in the main thread.
        """
        before: dict[int, Any] = {}
        received: list[int] = []

        def heed(number: int, _frame: Any) -> None:
            received.append(number)
            self._signals += 1
            self._turn.set()

        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.start()
            while self._state == "running" and not self._signals and self.failure is None:
                self._turn.wait()
            if self.failure is not None:
                self.stop()
            elif self._begin_stopping():
                self._state = "draining"
                log.info("%s: draining, at most %g s; a second signal stops at once", self.name, self.grace)
                hard = self._drain(lambda: self._signals > 1)
                self._end(hard)
                return 128 + received[-1] if hard else 0
            self._turn.set()  # it may have been meant for who stops it
            self._over.wait()
            return 0 if self.failure is None else 1
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self) -> Worker:
        """Serve in the background; returns at once, before any connection. Raises `UsageError` when called twice."""
        with self._lock:
            if self._state != "new":
                raise UsageError(f"this Worker is {self._state}: make another one")
            self._state = "running"
        self.engine.open()
        self.lifecycle.begin()
        self.speaker.start()
        self.control.start()
        self.taker.start()
        if self.queue.traits.manages and self.local is None:
            self.firing.start()
        return self

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Block until the queue has answered; False: not within `timeout` seconds."""
        return self._ready.wait(timeout)

    def stop(self, grace: float | None = None) -> None:
        """Take no more, let what runs end within `grace` seconds (None: the worker's), give back the rest. Blocks."""
        if grace is not None:
            self.grace = grace
        if self._begin_stopping():
            self._turn.set()
            self._end(self._drain(lambda: False))
        self._over.wait()

    def add_listener(self, name: str, fn: Callable[[WorkerEvent], Any], *, priority: int = 0) -> None:
        """Call `fn(event)` at an event of every task of this worker from now on, with a `WorkerEvent`.

        `name` is one of the lifecycle (`started`, `succeeded`, `failed`, `cancelled`, `lost`, `retrying`, `waiting`,
        `gap`), or `"*"`. Listeners run one after the other on a thread of their own, higher priorities first; what one
        raises is logged and disturbs nobody. One that is more than 10,000 events behind gets a `gap`. At the end of the
        worker they have 5 seconds for the rest. Raises `UsageError`.
        """
        self.lifecycle.listen().add(name, fn, priority)

    def remove_listener(self, name: str, fn: Callable[[WorkerEvent], Any]) -> None:
        """Forget it; one that is not there is passed over."""
        self.lifecycle.listen().remove(name, fn)

    def _begin_stopping(self) -> bool:
        """True: the caller is who stops it."""
        with self._lock:
            if self._state == "new":
                self._state = "ended"
                self._over.set()
            if self._state != "running":
                return False
            self._state = "stopping"
            return True

    def fail(self, error: BaseException) -> None:
        """There is no use in going on: `run` returns 1."""
        log.error("this worker takes no tasks, since it cannot set up a child: %s: %s", type(error).__name__, error)
        self.failure = error
        self._turn.set()

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _drain(self, hurry: Callable[[], bool]) -> bool:
        """Wait until what is held is over, then cancel it. True: there was no time for that."""
        self.taker.drain()
        self._state = "draining"
        self.firing.stop()
        if self.trial is not None:
            self.trial.give_up()
        deadline = monotonic() + self.grace
        if self._wait_for_held(deadline, hurry):
            return False
        if not hurry():
            with self.speaker.lock:
                for held in list(self.taker.held.values()):
                    held.releasing = True
            for held in list(self.taker.held.values()):
                self.engine.cancel(held.id)
            if self._wait_for_held(monotonic() + sum(getattr(self.engine, "ladder_seconds", (8.0,))), hurry):
                return False
        return bool(self.taker.held)

    def _wait_for_held(self, deadline: float, hurry: Callable[[], bool]) -> bool:
        while self.taker.held and not hurry():
            left = deadline - monotonic()
            if left <= 0:
                return False
            self._turn.wait(left)
        return not self.taker.held

    def _end(self, hard: bool) -> None:
        """Give back what is still held, say the last words, let go."""
        with self.speaker.lock:
            for held in list(self.taker.held.values()):
                held.releasing = True
        self.engine.close()  # kills what runs: each is reported, and given back
        with self.speaker.lock:
            left = list(self.taker.held.values())
            for held in left:
                held.give_back("the worker shuts down")
        for held in left:
            self.speaker.say(held)
        deadline = monotonic() + LINGER
        self.speaker.stop(deadline)
        self.lifecycle.end(deadline)
        self.control.stop()
        self.taker.stop(deadline)
        try:
            self.messenger.forget(self.channel)
        except Exception as error:
            log.debug("the control channel stays until it expires: %s", error)
        self.queue.close()
        for each in (self.messenger, *self._opened.values()):
            each.close()
        self._state = "ended"
        self._over.set()

    def live_threads(self) -> bool:
        """Whether the worker can do its work as far as it is up to this process."""
        if self._state == "new":
            return True
        threads = (self.taker.thread, self.speaker.thread, self.control.thread)
        return self._state in ("running", "draining", "stopping") and all(each.is_alive() for each in threads)

    def messenger_at(self, address: str) -> Messenger:
        """What a task means by a messenger's address: this worker's own configuration of that name, if it has one.

        Opened, and kept open. Raises `Unreachable`, and as `registry.messenger`. On the speaker's thread.
        """
        known = self._opened.get(address)
        if known is None:
            name = address.partition("://")[0]
            named = self._messengers.get(name) or NamedMessenger(name, address)
            known = named.carrier()
            known.open()
            self._opened[address] = known
        return known

    # --- between the parts

    def connected(self) -> None:
        """The queue answered."""
        self._ready.set()
        self.firing.ring()
        if self.on_ready is not None:
            call, self.on_ready = self.on_ready, None
            call()

    def settle(self, lease: Lease, outcome: Outcome) -> None:
        """Have a lease settled that nothing is said about."""
        self.taker.settle(lease, outcome)

    def over(self, ended: Sequence[Held], stored: bool) -> None:
        """What tasks said last is stored (or never will be): their leases can be settled."""
        for held in ended:
            if stored and held.outcome is not None and held.outcome.kind != "release":
                self.admission.over(held.id)
                if self.local is not None:
                    self.local.pop(held.id, None)
        self.taker.over(ended, stored)
        if self._state != "running":
            self._turn.set()

    @property
    def state(self) -> str:
        """`new`, `running`, `draining`, `stopping` or `ended`."""
        return self._state

    def __repr__(self) -> str:
        return f"<Worker {self.place} {','.join(self.queues)} {self._state} {len(self.taker.held)} tasks>"


def _named(messenger: str | NamedMessenger) -> NamedMessenger:
    if isinstance(messenger, NamedMessenger):
        return messenger
    from ..caller.make import messenger_of

    return messenger_of(messenger)
