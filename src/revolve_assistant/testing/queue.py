"""What every Queue must do, as checks; see `checks` for how they work.

    class TestRedis(QueueConformance):
        @pytest.fixture
        def make(self, redis_server):
            return lambda **options: registry.engine(redis_server.url, **options)

`make(lease=0.3)` must give a Queue whose leases last so many seconds. A carrier without a lease time (it notices a
lost connection instead) takes no such argument, and the checks that need it are skipped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import ClassVar

from ..engine import Lease, Outcome, Parcel, Queue
from ..errors import ClientClosed
from .checks import PATIENCE, PROMPT, Aside, claim, entered, equal, eventually, fresh, needs, opened, refuses, tests_of
from .managing import MANAGING_CHECKS
from .planning import PLANNING_CHECKS
from .tasks import DONE, NOBODY, Make, brief, has_lease, none_left, some, state, submit, take, take_for


def check_order(make: Make) -> None:
    """Tasks of one queue are taken in the order of their submission."""
    with opened(make) as (giver, taker):
        name = fresh()
        parcels = some(name, 30)
        submit(giver, *parcels[:10])
        submit(giver, *parcels[10:])
        leases = take(taker, name, 30, limit=7)
        equal([lease.id for lease in leases], [parcel.id for parcel in parcels], "order")
        equal({(lease.queue, lease.deliveries) for lease in leases}, {(name, 1)}, "queue and deliveries")
        taker.settle([(lease, DONE) for lease in leases])
        none_left(taker, name, "tasks after all are done")


def check_priority(make: Make) -> None:
    """Higher priorities are taken first, equal ones in order; -9 to 9."""
    needs(make().traits.priorities, "has no priorities")
    with opened(make) as (giver, taker):
        name = fresh()
        parcels = some(name, 8)
        for parcel, priority in zip(parcels, (0, -9, 9, 0, 5, 9, -1, 1), strict=True):
            parcel.priority = priority
        submit(giver, *parcels)
        leases = take(taker, name, 8)
        expected = sorted(parcels, key=lambda parcel: -parcel.priority)
        equal([lease.id for lease in leases], [parcel.id for parcel in expected], "order by priority")
        taker.settle([(lease, DONE) for lease in leases])


def check_delay(make: Make) -> None:
    """A delayed task is queued, is not taken before its delay is over, and is taken after; others overtake it."""
    needs(make().traits.delays, "has no delays")
    with opened(make) as (giver, taker):
        name = fresh()
        began = time.monotonic()
        submit(giver, Parcel(f"{name}.late", queue=name, delay=1.0), Parcel(f"{name}.now", queue=name))
        first = take(taker, name)
        equal(first[0].id, f"{name}.now", "the task without a delay comes first")
        equal(state(giver, f"{name}.late"), "queued", "state of a delayed task")
        second = take(taker, name)
        claim(time.monotonic() - began >= 0.95, "a task with a delay of 1 s was taken before")
        equal(second[0].id, f"{name}.late", "the delayed task")
        taker.settle([(lease, DONE) for lease in first + second])


def check_limit(make: Make) -> None:
    """No take gives more than `limit` leases, and it takes what is there rather than wait for more."""
    with opened(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 5))
        leases: list[Lease] = []
        while len(leases) < 5:
            found = Aside(take_for, taker, name, 3, PATIENCE).result(PROMPT, "take returns with what is there")
            claim(1 <= len(found) <= 3, f"limit 3: take gave {len(found)} leases")
            leases += found
        taker.settle([(lease, DONE) for lease in leases])


def check_queues(make: Make) -> None:
    """Only the queues that were named are taken from, earlier names first."""
    with opened(make) as (giver, taker):
        low, high, other = fresh("low"), fresh("high"), fresh("other")
        submit(giver, *some(other, 1), *some(low, 2), *some(high, 2))
        leases = take(taker, [high, low], 4)
        equal([lease.queue for lease in leases], [high, high, low, low], "queues taken from")
        equal(list(taker.take([high, low], limit=10, wait=0)), [], "tasks left in the named queues")
        leases += take(taker, other)
        taker.settle([(lease, DONE) for lease in leases])


def check_wait(make: Make) -> None:
    """A waiting take returns promptly once a task is submitted, and empty within `wait` if none is."""
    with opened(make) as (giver, taker):
        name = fresh()
        for wait in (0.0, 0.3):
            taking = Aside(take_for, taker, name, 1, wait)
            equal(list(taking.result(wait + PROMPT, f"an empty take with wait={wait:g}")), [], "an empty take")
        for parcel in some(name, 10):
            taking = entered(take, taker, name)
            submit(giver, parcel)
            leases = taking.result(PROMPT, "a waiting take hears of a task")
            equal(leases[0].id, parcel.id, "what the waiting take got")
            taker.settle([(leases[0], DONE)])


def check_wake(make: Make) -> None:
    """`wake` ends a waiting take from another thread, or else the next one."""
    with opened(make, 1) as (taker,):
        name = fresh()
        for _ in range(5):
            taking = entered(take_for, taker, name, 1, min(2 * PATIENCE, taker.traits.max_wait))
            taker.wake()
            equal(list(taking.result(PROMPT, "a take returns after a wake")), [], "a take that was woken")


def check_lease_ends(make: Make) -> None:
    """A task whose lease ended goes to another taker, counted as one more delivery; no taker gets it before."""
    with opened(brief(make, 1.0), 3) as (giver, first, second):
        name = fresh()
        submit(giver, *some(name, 1))
        began = time.monotonic()
        lost = take(first, name)[0]
        again = take(second, name)[0]
        claim(time.monotonic() - began >= 0.9, "a task was given away before its lease of 1 s ended")
        equal((again.id, again.body), (lost.id, lost.body), "the task given out again")
        equal((lost.deliveries, again.deliveries), (1, 2), "deliveries")
        second.settle([(again, DONE)])


def check_extend(make: Make) -> None:
    """A lease that is extended in time lasts: others get the task only when the extending stops."""
    with opened(brief(make, 1.0), 3) as (giver, first, second):
        name = fresh()
        submit(giver, *some(name, 1))
        lease = take(first, name)[0]
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            first.extend([lease])
            equal(list(second.take([name], limit=1, wait=0.2)), [], "what another taker gets of an extended lease")
        first.settle([(lease, DONE)])
        equal(list(second.take([name], limit=1, wait=1.2)), [], "what another taker gets of a task that is done")


def check_fencing(make: Make) -> None:
    """Whoever lost a lease can neither settle nor extend it any more; nor can a settled one be settled twice."""
    with opened(brief(make, 0.3), 2) as (giver, slow), opened(make, 1) as (quick,):
        name = fresh()
        submit(giver, *some(name, 1))
        lost = take(slow, name)[0]
        held = take(quick, name)[0]
        slow.extend([lost])
        for outcome in (DONE, Outcome("bury"), Outcome("release")):
            slow.settle([(lost, outcome)])
        equal(state(giver, held.id), "running", "state after the loser settled")
        none_left(slow, name, "tasks after the loser released what it had lost")
        quick.settle([(held, Outcome("release"))])
        quick.settle([(held, DONE)])
        again = take(quick, name)[0]
        equal(again.id, held.id, "the released task, which a settled lease cannot end")
        quick.settle([(again, DONE)])


def check_taker_gone(make: Make) -> None:
    """What a taker held when it closed goes to another one, at once or when the lease ends."""
    with opened(brief(make, 0.3) if has_lease(make) else make, 3) as (giver, gone, taker):
        name = fresh()
        submit(giver, *some(name, 2))
        giver.close()
        held = take(gone, name, 2, limit=2)
        gone.close()
        found = take(taker, name, 2, limit=2)
        equal({lease.id for lease in found}, {lease.id for lease in held}, "tasks of a taker that is gone")
        taker.settle([(lease, DONE) for lease in found])


def check_release(make: Make) -> None:
    """A released task can be taken again, counted or not, after its delay."""
    with opened(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 1))
        lease = take(taker, name)[0]
        taker.settle([(lease, Outcome("release"))])
        lease = take(taker, name)[0]
        equal((lease.deliveries, lease.body), (2, b"0"), "deliveries and body after a release")
        taker.settle([(lease, Outcome("release", counted=False))])
        lease = take(taker, name)[0]
        equal(lease.deliveries, 2, "deliveries after a release that does not count")
        if taker.traits.delays:
            began = time.monotonic()
            taker.settle([(lease, Outcome("release", delay=1.0))])
            equal(state(giver, lease.id), "queued", "state of a released task")
            lease = take(taker, name)[0]
            claim(time.monotonic() - began >= 0.95, "a task released for 1 s was taken before")
        taker.settle([(lease, DONE)])


def check_settle_and_take(make: Make) -> None:
    """`settle_and_take` does both, and waits as `take` does."""
    with opened(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 2))
        first = take(taker, name)[0]
        second = taker.settle_and_take([(first, DONE)], [name], limit=1, wait=PATIENCE)
        both = sorted(lease.id for lease in (first, *second))  # nothing here is about their order
        equal(both, [f"{name}.0", f"{name}.1"], "the first task and the next")
        equal(state(giver, first.id), "unknown", "state of the task that was done")
        equal(list(taker.settle_and_take([(second[0], DONE)], [name], limit=1, wait=0)), [], "with nothing there")
        equal(state(giver, second[0].id), "unknown", "state of the second one")
        submit(giver, *some(f"{name}.more", 1))
        third = take(taker, f"{name}.more")[0]
        longest = min(2 * PATIENCE, taker.traits.max_wait)
        waiting = entered(lambda: taker.settle_and_take([(third, DONE)], [name], limit=1, wait=longest))
        eventually(lambda: state(giver, third.id) == "unknown", "what was settled is so before the waiting ends")
        submit(giver, Parcel(f"{name}.last", queue=name))
        last = list(waiting.result(PROMPT, "a waiting one returns with a task"))
        equal([lease.id for lease in last], [f"{name}.last"], "what it waited for")
        again = list(taker.settle_and_take([(last[0], Outcome("release"))], [name], limit=1, wait=PATIENCE))
        equal([lease.id for lease in again], [f"{name}.last"], "what was released comes again")
        taker.settle([(again[0], DONE)])


def check_submit_and_keep(make: Make) -> None:
    """`submit_and_keep` makes channels of any messenger, and submits."""
    from ..providers.memory import Messenger

    messenger = Messenger(fresh())
    with opened(make) as (giver, taker):
        name = fresh()
        messenger.open()
        try:
            parcels = some(name, 3)
            giver.submit_and_keep(parcels, NOBODY, messenger, ["a", "b"], seconds=60.0, cap=1 << 20)
            messenger.write([("a", b"1"), ("c", b"3")])
            batch = messenger.read({"a": b"", "b": b"", "c": b""}, limit=10, wait=0)
            equal([message.frame for message in batch.messages], [b"1"], "messages of the channels")
            equal(set(batch.lost), {"c"}, "channels that were not made")
        finally:
            messenger.close()
        leases = take(taker, name, 3)
        equal({lease.id for lease in leases}, {parcel.id for parcel in parcels}, "tasks")
        taker.settle([(lease, DONE) for lease in leases])


def check_bury(make: Make) -> None:
    """A buried task is not taken again; where the queue has a method `buried`, it lists it."""
    with opened(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 2))
        lease = take(taker, name)[0]
        taker.settle([(lease, Outcome("bury", reason="checking"))])
        rest = take(taker, name)
        equal(rest[0].id, f"{name}.1", "the task after the buried one")
        taker.settle([(rest[0], DONE)])
        none_left(taker, name, "tasks after one was buried and one done")
        if type(taker).buried is not Queue.buried:
            found = [(one.id, one.body, one.reason) for one in taker.buried() if one.queue == name]
            equal(found, [(lease.id, b"0", "checking")], "buried tasks")


def check_state(make: Make) -> None:
    """`state` says queued, running, and unknown of what is done or was never seen."""
    with opened(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 2))
        first, second, never = f"{name}.0", f"{name}.1", f"{name}.never"
        ids = [first, second, never]
        lease = take(taker, name)[0]
        equal(dict(giver.state(ids)), {first: "running", second: "queued", never: "unknown"}, "states")
        taker.settle([(lease, DONE)])
        equal(dict(giver.state(ids)), {first: "unknown", second: "queued", never: "unknown"}, "states")
        equal(dict(giver.state([])), {}, "states of nothing")
        taker.settle([(take(taker, name)[0], DONE)])


def check_cancel(make: Make) -> None:
    """`cancel` removes a task that nobody has taken, and says False of a taken or unknown one, which it leaves."""
    with opened(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 3))
        equal(giver.cancel(f"{name}.1"), True, "cancel of a queued task")
        equal(giver.cancel(f"{name}.1"), False, "cancel of a task that was cancelled")
        equal(giver.cancel(f"{name}.never"), False, "cancel of an unknown task")
        leases = take(taker, name, 2)
        equal([lease.id for lease in leases], [f"{name}.0", f"{name}.2"], "tasks taken after a cancel")
        equal(giver.cancel(f"{name}.0"), False, "cancel of a taken task")
        equal(state(giver, f"{name}.0"), "running", "state of a taken task that somebody tried to cancel")
        taker.settle([(lease, DONE) for lease in leases])
        none_left(taker, name, "tasks at the end")


def check_many_takers(make: Make) -> None:
    """1,000 tasks through four takers: every task once, no lease twice."""
    count = 1000
    with opened(make, 5) as (giver, *takers):
        name = fresh()
        taken: list[str] = []
        start = threading.Barrier(len(takers) + 1)

        def work(taker: Queue) -> None:
            start.wait(PATIENCE)
            deadline = time.monotonic() + 4 * PATIENCE
            while len(taken) < count and time.monotonic() < deadline:
                leases = taker.take([name], limit=10, wait=0.1)
                taken.extend(lease.id for lease in leases)
                taker.settle([(lease, DONE) for lease in leases])

        working = [Aside(work, taker) for taker in takers]
        start.wait(PATIENCE)
        parcels = some(name, count)
        for n in range(0, count, 100):
            submit(giver, *parcels[n : n + 100])
        for one in working:
            one.result(5 * PATIENCE, "a taker ends")
        equal(len(taken), count, "number of tasks taken")
        equal(set(taken), {parcel.id for parcel in parcels}, "tasks taken")
        none_left(takers[0], name, "tasks at the end")


def check_same_id(make: Make) -> None:
    """The same id submitted twice while it is held is one task; once it is done it is free again."""
    with opened(make) as (giver, taker):
        name = fresh()
        task = f"{name}.0"
        for body in (b"first", b"second"):
            submit(giver, Parcel(task, body=body, queue=name))
        lease = take(taker, name)[0]
        equal(lease.body, b"first", "the body of an id that was submitted twice")
        submit(giver, Parcel(task, body=b"third", queue=name))
        none_left(taker, name, "tasks while the only one is taken")
        taker.settle([(lease, DONE)])
        none_left(taker, name, "tasks after the only one is done")
        submit(giver, Parcel(task, body=b"fourth", queue=name))
        lease = take(taker, name)[0]
        equal(lease.body, b"fourth", "the body of an id that was done before")
        taker.settle([(lease, DONE)])


def check_any_bytes(make: Make) -> None:
    """Bodies are bytes of any value and length up to `traits.max_bytes`."""
    largest = min(make().traits.max_bytes, 1 << 20)
    bodies = [
        b"",
        b"\x00",
        bytes(range(256)),
        b"\r\n.\r\n",
        bytes(range(256)) * (largest // 256) + bytes(largest % 256),
    ]
    with opened(make) as (giver, taker):
        name = fresh()
        for n, body in enumerate(bodies):
            submit(giver, Parcel(f"{name}.{n}", body=body, queue=name))
        leases = take(taker, name, len(bodies))
        for lease, body in zip(leases, bodies, strict=True):
            claim(lease.body == body, f"a body of {len(body):,} bytes did not come back as it was")
        taker.settle([(lease, DONE) for lease in leases])


def check_close(make: Make) -> None:
    """`close` may be called twice, and unopened; afterwards calls raise ClientClosed; the tasks stay."""
    with opened(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 1))
        giver.close()
        giver.close()
        make().close()
        refuses(ClientClosed, lambda: submit(giver, *some(name, 2)), "submit after close")
        refuses(ClientClosed, lambda: giver.take([name], limit=1, wait=0), "take after close")
        refuses(ClientClosed, lambda: giver.state([name]), "state after close")
        refuses(ClientClosed, lambda: giver.cancel(name), "cancel after close")
        giver.wake()
        lease = take(taker, name)[0]
        equal(lease.id, f"{name}.0", "the task whose submitter closed")
        taker.settle([(lease, DONE)])


QUEUE_CHECKS = (
    *(check for name, check in list(globals().items()) if name.startswith("check_")),
    *MANAGING_CHECKS,
    *PLANNING_CHECKS,
)


@tests_of(QUEUE_CHECKS)
class QueueConformance:
    """The checks as pytest tests. A subclass gives the fixture `make`; `excused` maps checks to reasons to skip."""

    excused: ClassVar[Mapping[str, str]] = {}
