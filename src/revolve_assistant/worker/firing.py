"""Submits what schedules say, at their times: any worker does, and of several exactly one each time.

    Queue.overdue ─▶ which tick it is ─▶ the task's log is made ─▶ Queue.fire ─▶ submitted, and the plan is due later
         ▲                                                             └▶ another worker was first
         └──────────────── sleeps until the next one is due, at most 2 s ◀────────────────┘

All workers come to the same id for the task of one tick. Of ticks that passed while no worker was there the last one
alone is submitted. What cannot be opened with our secret is left to whoever can.
"""

from __future__ import annotations

import logging
import random
import threading
from time import time
from typing import TYPE_CHECKING

from ..engine import Parcel, Plan
from ..errors import AssistantError, ProviderError
from ..pool.threads import OurThread
from ..wire.frames import log_of
from ..wire.plan import Planned, unseal
from ..wire.timetable import Timetable

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("revolve_assistant")

LOOK = 2.0  # seconds after which it is looked whether there is something new, at the latest
SPREAD = 0.02  # seconds by which workers come apart, so that all but the first mostly find it done
PAUSES = (0.1, 5.0)
EXPIRY = 7 * 86400.0  # seconds after which nobody runs a task any more
HELD = 3600.0  # seconds that the log of a task is kept at first whose key may turn out to be held
KNOWN = 10_000  # schedules that are kept opened
PATIENCE = 5.0  # seconds that the messenger may take

_Opened = tuple[bytes, "Planned | None", "Timetable | None"]


class Firing:
    """Part of the Worker: one thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        self._bell = threading.Condition(self._lock)
        self._rung = False
        self._closing = False
        self._known: dict[str, _Opened] = {}
        self.fired = 0
        self.thread = OurThread(self._run, "revolve-firing")

    def start(self) -> None:
        self.thread.start()

    def ring(self) -> None:
        """Look now."""
        with self._lock:
            self._rung = True
            self._bell.notify()

    def stop(self) -> None:
        """Submit no more. Blocks until what is being submitted is."""
        with self._lock:
            self._closing = True
            self._bell.notify()
        if self.thread.is_alive():
            self.thread.join(PATIENCE + 5.0)

    # --- the thread

    def _run(self) -> None:
        pause = PAUSES[0]
        self._sleep(None)  # until the queue has answered
        while not self._closing:
            try:
                wait = self._look()
                pause = PAUSES[0]
            except (ProviderError, OSError) as error:
                log.debug("schedules wait: %s", error)
                wait, pause = pause, min(PAUSES[1], pause * 2)
            except Exception:
                log.exception("the worker's schedules failed; it goes on")
                wait = PAUSES[1]
            self._sleep(wait)

    def _sleep(self, seconds: float | None) -> None:
        with self._lock:
            if not self._closing and not self._rung:
                self._bell.wait(seconds)
            self._rung = False

    def _look(self) -> float:
        """Submit what is due; seconds until it should be looked again."""
        worker = self._worker
        with worker.managing:
            overdue = worker.queue.overdue()
        due = [found for plan in overdue.plans if (found := self._prepare(plan, overdue.now)) is not None]
        if due and not self._make_logs([parcel for _, _, parcel, logged in due if logged]):
            return PAUSES[0]
        for plan, next, parcel, _ in due:
            if self._closing:
                break
            with worker.managing:
                fired = worker.queue.fire(plan, next, parcel)
            if fired:
                self.fired += 1
                log.debug("schedule %s: task %s was submitted", plan.key, parcel.id)
        if due:
            return 0.0
        return max(0.0, min(LOOK, overdue.next - overdue.now)) + random.uniform(0.0, SPREAD)

    def _prepare(self, plan: Plan, now: float) -> tuple[Plan, float, Parcel, bool] | None:
        """The plan, its next time, the task of this time, and whether that has a log; None: it is not for us."""
        worker = self._worker
        planned, table = self._opened(plan)
        if planned is None or table is None:
            return None
        next = table.after(now)
        tick = table.before(next)
        sent = time()
        parcel = planned.parcel(worker.keys, worker.namespace, tick, sent, sent + EXPIRY + planned.delay)
        return plan, next, parcel, planned.history > 0 and worker.messenger.traits.replays

    def _opened(self, plan: Plan) -> tuple[Planned | None, Timetable | None]:
        worker = self._worker
        known = self._known.get(plan.key)
        if known is None or known[0] != plan.spec:
            planned: Planned | None = None
            table: Timetable | None = None
            try:
                planned = unseal(worker.keys, worker.namespace, plan.key, plan.spec)
                table = planned.timetable()
            except AssistantError as error:
                log.error("schedule %r is left to other workers: %s", plan.key, error)
            if len(self._known) >= KNOWN:
                self._known.clear()
            known = self._known[plan.key] = (plan.spec, planned, table)
        return known[1], known[2]

    def _make_logs(self, parcels: list[Parcel]) -> bool:
        """Before a worker can have the tasks. False: the messenger does not answer."""
        if not parcels:
            return True
        times: dict[float, list[str]] = {}
        for parcel in parcels:
            seconds = (HELD if parcel.unique is not None else EXPIRY) + parcel.delay
            times.setdefault(seconds, []).append(log_of(parcel.id))
        return self._worker.speaker.keep(times, PATIENCE)
