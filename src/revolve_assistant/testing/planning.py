"""What every Queue with the trait `manages` must do with plans, as checks; see `queue`, which they are part of."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from ..engine import Parcel, Plan, Queue
from .checks import PATIENCE, PROMPT, Aside, claim, equal, fresh
from .managing import FAR_OFF, LONG_AGO, managed, waits_long
from .tasks import DONE, Make, none_left, state, submit, take


@contextlib.contextmanager
def _planned(queue: Queue, *plans: Plan) -> Iterator[None]:
    for plan in plans:
        queue.plan(*plan)
    try:
        yield
    finally:
        for plan in plans:
            queue.unplan(plan.key)


def check_plans(make: Make) -> None:
    """Plans are set, replaced, listed by their keys and removed; `overdue` gives those that are due."""
    with managed(make) as (queue, other):
        a, b = fresh("plan.a"), fresh("plan.b")
        keys = (a, b)
        with _planned(queue, Plan(b, b"\x00b", FAR_OFF), Plan(a, b"spec a", FAR_OFF)):
            found = [plan for plan in other.plans() if plan.key in keys]
            equal(found, [Plan(a, b"spec a", FAR_OFF), Plan(b, b"\x00b", FAR_OFF)], "plans")
            equal([plan for plan in other.overdue().plans if plan.key in keys], [], "plans that are due")
            queue.plan(a, b"new", LONG_AGO)
            overdue = other.overdue()
            equal([plan for plan in overdue.plans if plan.key in keys], [Plan(a, b"new", LONG_AGO)], "what is due")
            claim(abs(overdue.now - time.time()) < 3600, f"now is {overdue.now}")
            claim(overdue.next > overdue.now, f"to look again at {overdue.next}, and now is {overdue.now}")
            soon = overdue.now + 30.25
            queue.plan(a, b"new", soon)
            overdue = other.overdue()
            equal([plan for plan in overdue.plans if plan.key in keys], [], "what is due")
            claim(overdue.next <= soon, f"to look again at {overdue.next}, and a plan is due at {soon}")
            equal(queue.unplan(a), True, "unplan")
            equal(other.unplan(a), False, "unplan, again")
            equal([plan.key for plan in other.plans() if plan.key in keys], [b], "plans that are left")


def check_fire(make: Make) -> None:
    """Of several that fire a plan at the same `due` exactly one does, and its parcel is a task from then on."""
    with managed(make, 3) as (taker, *queues):
        name = fresh()
        with _planned(taker, Plan(name, b"spec", LONG_AGO)):
            for turn in range(20):
                due = LONG_AGO + turn
                plan = Plan(name, b"spec", due)
                start = threading.Barrier(len(queues))

                def fire(number: int, plan: Plan = plan, start: threading.Barrier = start) -> bool:
                    parcel = Parcel(f"{name}.{plan.due}.{number}", body=b"fired", queue=name)
                    start.wait(PATIENCE)
                    return queues[number].fire(plan, plan.due + 1, parcel)

                firing = [Aside(fire, number) for number in range(len(queues))]
                found = [one.result(PATIENCE, "it fires") for one in firing]
                equal(sorted(found), [False, True], "answers of those that fire")
                lease = take(taker, name)[0]
                expected = (f"{name}.{due}.{found.index(True)}", b"fired", 1)
                equal((lease.id, lease.body, lease.deliveries), expected, "the task fired")
                none_left(taker, name, "tasks beyond the one fired") if turn == 0 else None
                taker.settle([(lease, DONE)])
            none_left(taker, name, "tasks at the end")
            now = next(plan for plan in taker.plans() if plan.key == name)
            equal(now, Plan(name, b"spec", LONG_AGO + 20), "the plan at last")
            equal(queues[0].fire(now, FAR_OFF, None), True, "firing nothing")
            equal(queues[1].fire(now, FAR_OFF, Parcel(f"{name}.x", queue=name)), False, "firing what somebody else has")
            gone = Plan(fresh("plan"), b"", LONG_AGO)
            equal(queues[0].fire(gone, FAR_OFF, Parcel(f"{name}.y", queue=name)), False, "firing what is no plan")
            none_left(taker, name, "tasks at the end")
            queues[0].plan(name, b"spec", LONG_AGO)
            waiting = waits_long(taker, name)
            equal(queues[0].fire(Plan(name, b"spec", LONG_AGO), FAR_OFF, Parcel(f"{name}.z", queue=name)), True, "fire")
            lease = waiting.result(PROMPT, "a waiting take gets what is fired")[0]
            taker.settle([(lease, DONE)])


def check_fire_unique(make: Make) -> None:
    """What is fired while another task holds its key is not submitted, and its time is passed over."""
    with managed(make) as (queue, taker):
        name = fresh()
        plan = Plan(name, b"", LONG_AGO)
        with _planned(queue, plan):
            submit(queue, Parcel(f"{name}.first", queue=name, unique=name))
            answer = queue.fire(plan, LONG_AGO + 1, Parcel(f"{name}.held", queue=name, unique=name))
            equal(answer, True, "firing while the key is held")
            equal([one.due for one in queue.plans() if one.key == name], [LONG_AGO + 1], "the time after that")
            equal(state(queue, f"{name}.held"), "unknown", "state of what was not submitted")
            lease = take(taker, name)[0]
            equal(lease.id, f"{name}.first", "the task that holds the key")
            none_left(taker, name, "tasks beyond that")
            taker.settle([(lease, DONE)])
            queue.fire(Plan(name, b"", LONG_AGO + 1), FAR_OFF, Parcel(f"{name}.next", queue=name, unique=name))
            answer2 = submit(queue, Parcel(f"{name}.late", queue=name, unique=name))
            equal(answer2, {f"{name}.late": f"{name}.next"}, "answer while a fired task holds the key")
            taker.settle([(take(taker, name)[0], DONE)])


PLANNING_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))
