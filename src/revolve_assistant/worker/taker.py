"""Takes tasks from the queue, as many as will be run soon, and settles those that are over. The queue's one thread.

How many are taken ahead follows from how many ended lately: nothing while durations are unknown or long, so that what
waits stays in the queue where other workers and autoscalers see it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from ..engine import Answer, Lease, Outcome, Parcel, Sink
from ..errors import Overloaded, ProviderError, Unreachable, UsageError
from ..pool.reports import REPORT_RAISED
from ..pool.threads import OurThread
from .served import Served

if TYPE_CHECKING:
    from .held import Held
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

AHEAD = 0.05  # seconds of work taken in advance
TOO_LONG = 0.5  # seconds that a task taken in advance may wait for a child before another worker may have it
MOST = 2000  # tasks held at once, beyond one for each child
COROUTINES = 100  # held at once for each child
WAIT = 10.0  # seconds that a take may wait
LOOK = 1.0  # the same, until the queue answers again
BATCH = 1000  # answers given at once
PAUSES = (0.05, 5.0)


class Taker:
    """Part of the Worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._bell = threading.Condition(self._lock)
        self._outcomes: deque[tuple[Lease, Outcome]] = deque()
        self.answers: deque[tuple[Served, Answer | None]] = deque()  # None: its child waits for credit
        self._taking = False  # the thread is inside `take`, which `Queue.wake` ends
        self._draining = False
        self._closing = False
        self._deadline = float("inf")
        self.held: dict[str, Held] = {}
        self.coroutines = 0  # of the held ones
        self.connected = False
        self.connections = 0  # times that the queue answered, at first and again
        self._look = 0.0  # seconds that a take may wait while nothing says that the queue answers
        self.taken = self.settled = 0
        self._ended = 0  # since `_measured`
        self._measured = monotonic()
        self._rate = 0.0  # ends a second
        self._extended = 0.0
        self.thread = OurThread(self._run, "revolve-taker")

    def start(self) -> None:
        self.thread.start()

    # --- from other threads

    def settle(self, lease: Lease, outcome: Outcome) -> None:
        """Have the lease settled."""
        self._outcomes.append((lease, outcome))
        self._wake()

    def answer_soon(self) -> None:
        """There are answers to give."""
        if self.answers:
            self._wake()

    def over(self, ended: Sequence[Held], stored: bool) -> None:
        """Held tasks are over. Unless what they said is stored, their leases are left to end by themselves."""
        with self._lock:
            for held in ended:
                if self.held.get(held.id) is held:
                    del self.held[held.id]
                    if held.coroutine:
                        self.coroutines -= 1
            self._ended += len(ended)
            if stored:
                self._outcomes.extend([(held.lease, held.outcome) for held in ended if held.outcome is not None])
        self._wake()

    def drain(self) -> None:
        """Take no more."""
        self._draining = True
        self._wake()

    def stop(self, deadline: float) -> None:
        """Settle what is over, until `deadline`, and end."""
        with self._lock:
            self._draining = self._closing = True
            self._deadline = deadline
        self._wake()
        self.thread.join(max(0.0, deadline - monotonic()) + 5.0)

    def _wake(self) -> None:
        with self._lock:
            taking = self._taking
            self._bell.notify()
        if taking:
            self._worker.queue.wake()

    # --- the thread

    def _run(self) -> None:
        trial = self._worker.trial
        if trial is not None and not trial.passed():
            return
        pause = PAUSES[0]
        while True:
            try:
                self._serve()
                return
            except (ProviderError, OSError) as error:
                if self.connected or pause == PAUSES[0]:
                    log.warning("%s: %s; trying again", self._worker.place, error)
                self.connected, self._look = False, LOOK
                with self._lock:
                    if self._closing and (monotonic() >= self._deadline or isinstance(error, Unreachable)):
                        return
                    self._bell.wait(pause)
                pause = PAUSES[0] if isinstance(error, Overloaded) else min(PAUSES[1], pause * 2)
            except Exception:
                log.exception("the worker's taker failed; it goes on")
                with self._lock:
                    if self._closing:
                        return
                    self._bell.wait(PAUSES[1])

    def _serve(self) -> None:
        worker = self._worker
        queue, queues = worker.queue, worker.queues
        queue.open()
        worker.introduction.again()
        while True:
            if self.answers:
                self._answer()
            now = monotonic()
            if self.held and now - self._extended > queue.lease / 3:
                queue.extend([held.lease for held in list(self.held.values())])
                self._extended = now
            said = worker.introduction.look(now)
            room = 0 if self._draining else self._room(now)
            surplus = self._surplus(now)
            if room <= 0:
                if self._outcomes:
                    self._settle()
                with self._lock:
                    if self._closing and not self._due:
                        return
                    if not self._due and (self._draining or self._room(now) <= 0):
                        self._bell.wait(min(queue.lease / 3, said, TOO_LONG if surplus else said))
                continue
            self._taking = True
            try:
                wait = min(queue.traits.max_wait, TOO_LONG if surplus else WAIT, queue.lease / 3, said)
                if not self.connected:  # a short look says whether the queue answers; it takes its time to connect
                    wait = min(wait, self._look)
                outcomes = [self._outcomes[at] for at in range(len(self._outcomes))]
                if len(self._outcomes) > len(outcomes) or self.answers or self._draining:
                    wait = 0.0
                if outcomes:
                    leases = queue.settle_and_take(outcomes, queues, limit=room, wait=wait)
                    self._settled(len(outcomes))
                else:
                    leases = queue.take(queues, limit=room, wait=wait)
            finally:
                self._taking = False
            if not self.connected:
                self.connected = True
                self.connections += 1
                self._look = LOOK
                worker.connected()
            if leases and self._draining:  # it was told to stop while it waited
                leases = self._give_back(leases)
            if leases:
                self.taken += len(leases)
                self._admit(leases)

    def _give_back(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Release tasks that came too late; those of exposed functions, which nobody can give back, stay."""
        outcome = Outcome("release", counted=False, reason="the worker stops")
        self._worker.queue.settle([(lease, outcome) for lease in leases if not lease.name])
        return [lease for lease in leases if lease.name]

    @property
    def _due(self) -> bool:
        return bool(self._outcomes or self.answers)

    def _answer(self) -> None:
        answers = [self.answers[at] for at in range(min(len(self.answers), BATCH))]
        self._worker.queue.answer([(served.lease, answer) for served, answer in answers if answer is not None])
        for _ in answers:
            self.answers.popleft()
        for served, answer in answers:
            if answer is None and served.parcel is not None:
                self._worker.engine.grant(served.parcel)

    def _settle(self) -> None:
        outcomes = [self._outcomes[at] for at in range(len(self._outcomes))]
        self._worker.queue.settle(outcomes)
        self._settled(len(outcomes))

    def _settled(self, count: int) -> None:
        for _ in range(count):
            self._outcomes.popleft()
        self.settled += count

    def _room(self, now: float) -> int:
        """How many more may be held now."""
        worker = self._worker
        passed = now - self._measured
        if passed >= AHEAD / 2:
            rate = self._ended / passed
            self._rate = rate if rate < self._rate else (self._rate + rate) / 2
            self._ended, self._measured = 0, now
        ahead = min(MOST, int(self._rate * AHEAD))
        if self.coroutines >= COROUTINES * worker.concurrency:
            return 0
        room = worker.concurrency + ahead - (len(self.held) - self.coroutines)
        return room if room > ahead // 2 else 0  # a few at a time would cost as much as many

    def _surplus(self, now: float) -> bool:
        """Give back what was taken in advance and waits behind tasks that turned out slow. True: look again soon."""
        worker = self._worker
        withdraw = getattr(worker.engine, "withdraw", None)
        beyond = len(self.held) - self.coroutines - worker.concurrency
        if withdraw is None or beyond <= 0:
            return False
        over = beyond - min(MOST, int(self._rate * AHEAD))
        if over <= 0:
            return True
        waiting = [held for held in list(self.held.values()) if not held.started and now - held.since > TOO_LONG]
        if waiting:
            taken_back = set(withdraw([held.id for held in waiting[-over:]]))
            for held in waiting:
                if held.id in taken_back:
                    with worker.speaker.lock:
                        held.give_back("it waited for a child")
                    worker.speaker.say(held)
        return True

    def _admit(self, leases: Sequence[Lease]) -> None:
        worker = self._worker
        parcels: list[Parcel] = []
        served: list[Parcel] = []
        now = monotonic()
        admitted: list[Held] = []
        for lease in leases:
            held = Served(worker, lease, worker.expose[lease.name]) if lease.name else worker.admission.admit(lease)
            if held is not None:
                admitted.append(held)
        with self._lock:
            for held in admitted:
                held.since = now
                self.held[held.id] = held
                if held.coroutine:
                    self.coroutines += 1
        for held in admitted:
            if held.parcel is None or held.ended:
                worker.speaker.say(held)
            else:
                (served if held.lease.name else parcels).append(held.parcel)
        self._hand_over(parcels, worker.speaker)
        self._hand_over(served, worker.replies)

    def _hand_over(self, parcels: list[Parcel], sink: Sink) -> None:
        if parcels:
            try:
                self._worker.engine.submit(parcels, sink)
            except UsageError as error:  # it takes none here, as a fork among other threads: each ends with that
                sink.deliver([(parcel, REPORT_RAISED, error) for parcel in parcels])
