"""What can be seen of a queue in memory and changed about it: counts, buried tasks, rules, plans, who takes."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ...engine import Buried, Count, Overdue, Parcel, Plan, Rule
from ...errors import UsageError
from .store import Member
from .tasks import Tasks

FAR = 3600.0  # seconds after which to look at the plans again, if none is due


class Managing(Member[Tasks]):
    """Part of the Queue. Every method may be called from any thread, and none waits."""

    lease: float
    _keep: tuple[float, int]

    # ---- to see

    def counts(self) -> Sequence[Count]:
        store = self._joined()
        found: dict[str, dict[str, float]] = {}
        waiting: dict[str, int] = {}  # function -> how many more of it may go
        with store.lock:
            store.tick()
            store.clear_graves(*self._keep)
            now = store.clock()
            for task in sorted(store.tasks.values(), key=lambda task: (-task.priority, task.order)):
                count = found.setdefault(task.queue, dict.fromkeys(Count._fields[1:], 0))
                if task.stage != "ready":
                    count[task.stage] += 1
                elif task.name in store.rules and waiting.setdefault(task.name, 0) >= store.room(task.name):
                    count["blocked"] += 1
                else:
                    if task.name in store.rules:
                        waiting[task.name] += 1
                    count["pending"] += 1
                    count["oldest"] = max(count["oldest"], now - task.since)
            for _, one in store.graves.values():
                found.setdefault(one.queue, dict.fromkeys(Count._fields[1:], 0))["buried"] += 1
        return [Count(queue, **count) for queue, count in sorted(found.items())]  # type: ignore[arg-type]

    def buried(self, *, limit: int = 100) -> Sequence[Buried]:
        store = self._joined()
        with store.lock:
            store.clear_graves(*self._keep)
            return [one for _, one in store.graves.values()][: -limit - 1 : -1]

    # ---- to take out

    def exhume(self, task_id: str) -> Buried | None:
        store = self._joined()
        with store.lock:
            store.tick()
            store.clear_graves(*self._keep)
            if task_id in store.graves:
                return store.graves.pop(task_id)[1]
            task = store.tasks.get(task_id)
            if task is None or task.stage == "leased":
                return None
            found = task.taken_out()
            store.remove(task)
            return found

    def purge(self, queue: str, *, buried: bool = False, limit: int = 1000) -> Sequence[Buried]:
        store = self._joined()
        with store.lock:
            store.tick()
            if buried:
                store.clear_graves(*self._keep)
                dead = [one for _, one in store.graves.values() if one.queue == queue][:limit]
                for one in dead:
                    del store.graves[one.id]
                return dead
            tasks = [task for task in store.tasks.values() if task.queue == queue and task.stage != "leased"][:limit]
            found = [task.taken_out() for task in tasks]
            for task in tasks:
                store.remove(task)
            return found

    # ---- rules

    def rules(self) -> Sequence[Rule]:
        store = self._joined()
        with store.lock:
            return sorted(store.rules.values())

    def set_rule(self, name: str, **changes: Any) -> Rule:
        """Raises `UsageError` for what is no field of a rule, or no value of it."""
        _check_rule(name, changes)
        store = self._joined()
        with store.lock:
            rule = store.rules.get(name, Rule(name))._replace(**changes)
            if rule._replace(per=1.0) == Rule(name):
                store.rules.pop(name, None)
            else:
                store.rules[name] = rule
            if rule.rate is None:
                store.started.pop(name, None)
            else:
                store.started.setdefault(name, deque())
            store.rouse()
            return rule

    # ---- plans

    def plans(self) -> Sequence[Plan]:
        store = self._joined()
        with store.lock:
            return sorted(store.plans.values())

    def plan(self, key: str, spec: bytes, due: float) -> None:
        store = self._joined()
        with store.lock:
            store.plans[key] = Plan(key, bytes(spec), float(due))

    def unplan(self, key: str) -> bool:
        store = self._joined()
        with store.lock:
            return store.plans.pop(key, None) is not None

    def overdue(self) -> Overdue:
        store = self._joined()
        with store.lock:
            now = store.unix()
            plans = sorted(plan for plan in store.plans.values() if plan.due <= now)
            later = min((plan.due for plan in store.plans.values() if plan.due > now), default=math.inf)
            return Overdue(now, plans, min(later, now + FAR))

    def fire(self, plan: Plan, next: float, parcel: Parcel | None) -> bool:
        store = self._joined()
        with store.lock:
            stored = store.plans.get(plan.key)
            if stored is None or stored.due != plan.due:
                return False
            store.plans[plan.key] = stored._replace(due=float(next))
            if parcel is not None:
                store.tick()
                store.enter(parcel)
            return True

    # ---- who takes

    def introduce(self, worker: str, about: bytes) -> None:
        store = self._joined()
        with store.lock:
            store.present[self._arrival] = (worker, bytes(about), store.clock() + self.lease)

    def workers(self) -> Mapping[str, bytes]:
        store = self._joined()
        with store.lock:
            now = store.clock()
            for taker, (_, _, until) in list(store.present.items()):
                # One that was dropped without being closed stays for good otherwise.
                if until + FAR < now and taker not in store.takers:
                    del store.present[taker]
            return {
                worker: about
                for taker, (worker, about, until) in store.present.items()
                if until >= now or taker in store.takers
            }

    def _seen(self, store: Tasks) -> None:
        """It takes, extends or settles."""
        known = store.present.get(self._arrival)
        if known is not None:
            store.present[self._arrival] = (known[0], known[1], store.clock() + self.lease)

    def _leave(self) -> None:
        store = self._store
        if store is not None and store.pid == os.getpid():
            with store.lock:
                store.present.pop(self._arrival, None)


def _check_rule(name: str, changes: Mapping[str, Any]) -> None:
    for field, value in changes.items():
        if field in ("concurrency", "rate"):
            if value is not None and (type(value) is not int or value < 0):
                raise UsageError(f"{field} of {name} must be a whole number or None, not {value!r}")
        elif field == "per":
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise UsageError(f"per of {name} must be a number of seconds, not {value!r}")
        elif field != "paused":
            raise UsageError(f"a rule has no {field!r}: {', '.join(Rule._fields[1:])}")
