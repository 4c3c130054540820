"""What every Queue with the trait `manages` (or `buries`) must do, as checks; see `queue`, which they are part of."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..engine import Buried, Count, Lease, Outcome, Parcel, Plan, Queue, Rule
from ..errors import ClientClosed, UsageError
from .checks import PATIENCE, PROMPT, Aside, claim, entered, equal, eventually, fresh, needs, opened, refuses
from .tasks import DONE, Make, brief, none_left, some, state, submit, take, take_for

LONG_AGO = 1000.5  # Unix seconds
FAR_OFF = 4e9  # Unix seconds


@contextlib.contextmanager
def managed(make: Callable[[], Queue], count: int = 2) -> Iterator[list[Queue]]:
    needs(make().traits.manages, "cannot be looked into or steered")
    with opened(make, count) as queues:
        yield queues


@contextlib.contextmanager
def _burying(make: Callable[[], Queue], count: int = 2) -> Iterator[list[Queue]]:
    traits = make().traits
    needs(traits.manages or traits.buries, "keeps no buried tasks that could be looked at")
    with opened(make, count) as queues:
        yield queues


@contextlib.contextmanager
def _ruled(queue: Queue, name: str, **changes: Any) -> Iterator[None]:
    """A rule for as long as the block lasts: the server may be in use. Nothing where there are no rules."""
    if not queue.traits.manages:
        yield
        return
    queue.set_rule(name, **changes)
    try:
        yield
    finally:
        queue.set_rule(name, paused=False, concurrency=None, rate=None)


def _count(queue: Queue, name: str) -> Count:
    """What is counted in one queue, without the age."""
    found = [count for count in queue.counts() if count.queue == name]
    claim(len(found) <= 1, f"queue {name} is counted twice")
    return found[0]._replace(oldest=0.0) if found else Count(name)


def waits_long(taker: Queue, name: str) -> Aside:
    """One take that waits for long: it gets a task in time only if it hears of it."""
    return entered(take_for, taker, name, 1, min(PATIENCE, taker.traits.max_wait))


def _bury(taker: Queue, name: str, reason: str = "") -> Lease:
    lease = take(taker, name)[0]
    taker.settle([(lease, Outcome("bury", reason=reason))])
    return lease


def _buried(queue: Queue, name: str) -> list[str]:
    return [one.id for one in queue.buried(limit=1000) if one.queue == name]


def _sight(one: Buried | None) -> tuple[Any, ...] | None:
    """All of it but the time."""
    return None if one is None else one[:6]


# ---- to look


def check_counts(make: Make) -> None:
    """`counts` says how many tasks of each queue are where, and leaves empty queues out."""
    with _burying(make) as (giver, taker):
        name, other = fresh(), fresh()
        equal(_count(giver, name), Count(name), "counts of a queue that never was")
        submit(giver, *some(name, 5), *some(other, 1))
        buried, leased = take(taker, name, 2)
        taker.settle([(buried, Outcome("bury"))])
        equal(_count(giver, name), Count(name, pending=3, leased=1, buried=1), "counts")
        equal(_count(giver, other), Count(other, pending=1), "counts of another queue")
        if giver.traits.delays:
            submit(giver, Parcel(f"{name}.late", queue=name, delay=60.0))
            equal(_count(giver, name).delayed, 1, "delayed ones")
            giver.cancel(f"{name}.late")
        eventually(lambda: any(one.queue == name and one.oldest > 0 for one in giver.counts()), "the oldest gets older")
        taker.settle([(leased, DONE)])
        for each in (name, other):
            taker.settle([(lease, DONE) for lease in take(taker, each, 3 if each == name else 1)])
        giver.exhume(buried.id)
        equal([one for one in giver.counts() if one.queue in (name, other)], [], "counts of queues that are empty")


def check_buried(make: Make) -> None:
    """Buried tasks are listed, the latest first, with all that is known of them, until they are submitted anew."""
    with _burying(make) as (giver, taker):
        name = fresh()
        submit(giver, *some(name, 3, name=f"{name}:work"))
        for n in range(3):
            _bury(taker, name, f"reason {n}")
        found = [one for one in giver.buried(limit=1000) if one.queue == name]
        expected = [(f"{name}.{n}", b"%d" % n, name, 1, f"reason {n}", f"{name}:work") for n in (2, 1, 0)]
        equal([_sight(one) for one in found], expected, "buried tasks")
        claim(all(abs(one.when - time.time()) < 3600 for one in found), f"when: {[one.when for one in found]}")
        claim(found[0].when >= found[1].when >= found[2].when, "the latest comes first")
        equal([one.id for one in giver.buried(limit=1)], [f"{name}.2"], "the latest buried task")
        equal(state(giver, f"{name}.1"), "unknown", "state of a buried task")
        equal(giver.cancel(f"{name}.1"), False, "cancel of a buried task")
        submit(giver, Parcel(f"{name}.1", body=b"again", queue=name))
        equal(_buried(giver, name), [f"{name}.2", f"{name}.0"], "buried tasks after one was submitted anew")
        lease = take(taker, name)[0]
        equal((lease.id, lease.body, lease.deliveries), (f"{name}.1", b"again", 1), "the one submitted anew")
        taker.settle([(lease, DONE)])
        giver.purge(name, buried=True)


# ---- to take out


def check_exhume(make: Make) -> None:
    """`exhume` takes out, once, what nobody has taken or what is buried, and nothing else."""
    with _burying(make) as (giver, taker):
        name = fresh()
        work = f"{name}:work"
        submit(giver, *some(name, 4, name=work))
        equal(giver.exhume(f"{name}.never"), None, "exhume of an unknown task")
        equal(_sight(giver.exhume(f"{name}.2")), (f"{name}.2", b"2", name, 0, "", work), "exhume of a pending task")
        equal(giver.exhume(f"{name}.2"), None, "exhume, again")
        _bury(taker, name, "checking")
        leased = take(taker, name)[0]
        equal(giver.exhume(leased.id), None, "exhume of a taken task")
        equal(state(giver, leased.id), "running", "state of a taken task that somebody tried to exhume")
        equal(
            _sight(giver.exhume(f"{name}.0")), (f"{name}.0", b"0", name, 1, "checking", work), "exhume of a buried one"
        )
        equal(giver.exhume(f"{name}.0"), None, "exhume of a buried one, again")
        equal(_buried(giver, name), [], "buried tasks at the end")
        with _ruled(giver, work, paused=True):
            if giver.traits.manages:
                none_left(taker, name, "tasks of a paused function")
            equal(_sight(giver.exhume(f"{name}.3")), (f"{name}.3", b"3", name, 0, "", work), "exhume of a blocked task")
            equal(_count(giver, name), Count(name, leased=1), "counts")
        taker.settle([(leased, Outcome("release"))])
        equal(_sight(giver.exhume(leased.id)), (leased.id, b"1", name, 1, "", work), "exhume of a released task")
        if giver.traits.delays:
            submit(giver, Parcel(f"{name}.late", body=b"x", queue=name, delay=60.0))
            equal(
                _sight(giver.exhume(f"{name}.late")), (f"{name}.late", b"x", name, 0, "", ""), "exhume of a delayed one"
            )
        none_left(taker, name, "tasks at the end")
        submit(giver, Parcel(f"{name}.2", queue=name))
        taker.settle([(take(taker, name)[0], DONE)])


def check_purge(make: Make) -> None:
    """`purge` takes out, in pages, what nobody has taken of one queue, or what is buried of it."""
    with _burying(make) as (giver, taker):
        name, other = fresh(), fresh()
        work = f"{name}:work"
        submit(giver, *some(name, 9, name=work), *some(other, 1, name=work))
        _bury(taker, name)
        _bury(taker, name)
        leased = take(taker, name)[0]
        with _ruled(giver, work, paused=True):
            if giver.traits.manages:
                none_left(taker, name, "tasks of a paused function")
            submit(giver, Parcel(f"{name}.free", queue=name))
            late = giver.traits.delays
            if late:
                submit(giver, Parcel(f"{name}.late", queue=name, delay=60.0))
            pages = []
            while page := giver.purge(name, limit=3):
                pages.append([one.id for one in page])
        claim(all(len(page) <= 3 for page in pages), f"pages of at most 3: {pages}")
        expected = [f"{name}.{n}" for n in range(3, 9)] + [f"{name}.free"] + [f"{name}.late"] * late
        equal(sorted(id for page in pages for id in page), sorted(expected), "tasks purged")
        equal(_count(giver, name), Count(name, leased=1, buried=2), "counts after a purge")
        none_left(taker, name, "tasks after a purge")
        dead = [*giver.purge(name, buried=True, limit=1), *giver.purge(name, buried=True)]
        equal(sorted(_sight(one) or () for one in dead),
              [(f"{name}.{n}", b"%d" % n, name, 1, "", work) for n in (0, 1)], "buried tasks purged")  # fmt: skip
        equal(list(giver.purge(name, buried=True)), [], "buried tasks purged, again")
        taker.settle([(leased, DONE)])
        taker.settle([(take(taker, other)[0], DONE)])


# ---- unique keys


def check_unique(make: Make) -> None:
    """A key is held by one task until that is done, buried, cancelled or taken out; who comes second is told."""
    with managed(make) as (giver, taker):
        name, key = fresh(), fresh("key")

        def give(id: str, **fields: Any) -> dict[str, str]:
            aside = Parcel(f"{name}.{id}.aside", queue=f"{name}.aside")
            return dict(submit(giver, Parcel(f"{name}.{id}", queue=name, unique=key, **fields), aside))

        def holds(id: str, what: str) -> None:
            equal(give("second"), {f"{name}.second": f"{name}.{id}"}, f"answer while the holder is {what}")
            equal(state(giver, f"{name}.second"), "unknown", f"state of what was kept out while the holder is {what}")

        equal(give("a"), {}, "answer to the first")
        equal(give("a"), {}, "answer to the very same submission")
        holds("a", "pending")
        lease = take(taker, name)[0]
        holds("a", "taken")
        taker.settle([(lease, Outcome("release", 60.0 if giver.traits.delays else 0.0))])
        holds("a", "released")
        equal(submit(giver, Parcel(f"{name}.a.other", queue=f"{name}.aside", unique=fresh("key"))), {}, "another key")
        equal(submit(giver, *some(f"{name}.aside", 2, unique=None)), {}, "no key")
        equal(giver.cancel(f"{name}.a"), True, "cancel of the holder")
        equal(give("b"), {}, "answer after the holder was cancelled")
        taker.settle([(take(taker, name)[0], DONE)])
        equal(give("c"), {}, "answer after the holder was done")
        _bury(taker, name)
        equal(give("d"), {}, "answer after the holder was buried")
        giver.exhume(f"{name}.c")
        holds("d", "pending, and a former one exhumed")
        claim(giver.exhume(f"{name}.d"), "exhume of the holder")
        equal(give("e"), {}, "answer after the holder was exhumed")
        equal([one.id for one in giver.purge(name)], [f"{name}.e"], "purge of the holder")
        equal(give("f"), {}, "answer after the holder was purged")
        taker.settle([(take(taker, name)[0], DONE)])
        while giver.purge(f"{name}.aside"):
            pass


def check_unique_race(make: Make) -> None:
    """Of several that submit with one key at the same time, one is taken in, and the others are told the same one."""
    with managed(make, 4) as queues:
        name = fresh()
        for turn in range(5):
            start = threading.Barrier(len(queues))

            def give(number: int, turn: int = turn, start: threading.Barrier = start) -> dict[str, str]:
                start.wait(PATIENCE)
                parcel = Parcel(f"{name}.{turn}.{number}", queue=name, unique=f"{name}.{turn}")
                return dict(submit(queues[number], parcel))

            giving = [Aside(give, number) for number in range(len(queues))]
            answers = [one.result(PATIENCE, "a submission") for one in giving]
            leases = take(queues[0], name)
            none_left(queues[0], name, "tasks beyond the one that holds the key")
            kept_out = [f"{name}.{turn}.{n}" for n in range(len(queues)) if f"{name}.{turn}.{n}" != leases[0].id]
            told = {id: holder for answer in answers for id, holder in answer.items()}
            equal(told, dict.fromkeys(kept_out, leases[0].id), "answers")
            queues[0].settle([(leases[0], DONE)])


# ---- rules


def check_rules(make: Make) -> None:
    """A rule changes field by field, is listed while it says something, and refuses what is none."""
    with managed(make) as (queue, other):
        name = f"{fresh()}:a b"
        with _ruled(queue, name, concurrency=2, rate=5, per=60):
            equal(queue.set_rule(name, paused=True, rate=None)[:4], (name, True, 2, None), "the rule that results")
            equal([rule[:4] for rule in other.rules() if rule.name == name], [(name, True, 2, None)], "rules")
            equal(queue.set_rule(name, rate=7, per=2.5), Rule(name, True, 2, 7, 2.5), "the rule that results")
            wrong: list[dict[str, Any]] = [{"concurrency": -1}, {"rate": 1.5}, {"per": 0}, {"speed": 1}]
            for changes in wrong:
                refuses(UsageError, lambda changes=changes: queue.set_rule(name, **changes), f"set_rule({changes})")  # type: ignore[misc]
            equal([rule for rule in other.rules() if rule.name == name], [Rule(name, True, 2, 7, 2.5)], "rules")
        equal([rule for rule in other.rules() if rule.name == name], [], "rules after all was taken back")


def check_pause(make: Make) -> None:
    """Nothing of a paused function is taken, others go on; once it is resumed a waiting take gets it at once."""
    with managed(make, 3) as (giver, taker, other):
        name = fresh()
        even, odd = f"{name}:even", f"{name}:odd"
        submit(giver, *[Parcel(f"{name}.{n}", queue=name, name=odd if n % 2 else even) for n in range(8)])
        with _ruled(giver, even, paused=True):
            leases = take(taker, name, 4)
            equal([lease.id for lease in leases], [f"{name}.{n}" for n in (1, 3, 5, 7)], "what is not paused")
            none_left(taker, name, "tasks while they are paused")
            equal(_count(giver, name), Count(name, blocked=4, leased=4), "counts")
            equal(state(giver, f"{name}.2"), "queued", "state of a paused task")
            equal(giver.cancel(f"{name}.2"), True, "cancel of a paused task")
            waiting = waits_long(taker, name)
            submit(giver, Parcel(f"{name}.8", queue=name, name=odd))
            leases += waiting.result(PROMPT, "a take hears of what is not paused")
            equal(leases[-1].id, f"{name}.8", "what the waiting take got")
            waiting = waits_long(taker, name)
            none_left(other, name, "what another take finds meanwhile")
            equal(giver.set_rule(even, paused=False).paused, False, "the rule that results")
            leases += waiting.result(PROMPT, "a waiting take gets what is resumed")
            leases += take(taker, name, 2)
        equal([lease.id for lease in leases[-3:]], [f"{name}.{n}" for n in (0, 4, 6)], "order of what was resumed")
        taker.settle([(lease, DONE) for lease in leases])
        none_left(taker, name, "tasks at the end")


def check_concurrency(make: Make) -> None:
    """However many takers there are, no more tasks of a function are taken at once than its rule allows."""
    count, most = 60, 3
    with managed(make, 3) as (giver, *takers):
        name = fresh()
        work = f"{name}:work"
        lock = threading.Lock()
        active: set[str] = set()
        peaks: list[int] = [0]
        over: list[str] = []

        def run(taker: Queue, kind: int) -> None:
            deadline = time.monotonic() + 4 * PATIENCE
            while len(over) < count and time.monotonic() < deadline:
                leases = list(taker.take([name], limit=kind, wait=0.3))
                with lock:
                    active.update(lease.id for lease in leases)
                leases += taker.take([name], limit=kind, wait=0)
                with lock:
                    active.update(lease.id for lease in leases)
                    peaks.append(len(active))
                taker.extend(leases)
                outcomes = []
                with lock:
                    for n, lease in enumerate(leases):
                        if lease.deliveries == 1 and n % 2:
                            outcomes.append((lease, Outcome("release")))
                        else:
                            over.append(lease.id)
                            outcomes.append((lease, Outcome("bury") if lease.deliveries == 2 else DONE))
                        active.discard(lease.id)
                taker.settle(outcomes)

        with _ruled(giver, work, concurrency=most):
            submit(giver, *some(name, count, name=work))
            working = [Aside(run, taker, kind) for taker, kind in zip(takers, (most, 2), strict=True)]
            for one in working:
                one.result(5 * PATIENCE, "a taker ends")
            equal(sorted(over), sorted(f"{name}.{n}" for n in range(count)), "tasks that came to an end")
            claim(max(peaks) <= most, f"{max(peaks)} were taken at once, {most} are allowed")
            none_left(takers[0], name, "tasks at the end")
        while giver.purge(name, buried=True):
            pass


def check_concurrency_now(make: Make) -> None:
    """A limit counts what is taken already, holds what is above back as blocked, and each one that ends lets one in."""
    with managed(make, 4) as (giver, worker, taker, other):
        name = fresh()
        work = f"{name}:work"
        submit(giver, *some(name, 6, name=work))
        first, second, third = take(worker, name, 3)
        with _ruled(giver, work, concurrency=2):
            none_left(taker, name, "tasks while more are taken than are allowed")
            equal(_count(giver, name), Count(name, blocked=3, leased=3), "counts")
            worker.settle([(first, DONE)])
            none_left(taker, name, "tasks while as many are taken as are allowed")
            leases: list[Lease] = []
            for lease, end in ((second, Outcome("bury")), (third, DONE)):
                waiting = waits_long(taker, name)
                none_left(other, name, "what another take finds meanwhile")
                worker.settle([(lease, end)])
                leases += waiting.result(PROMPT, "a waiting take gets the place")
            waiting = waits_long(taker, name)
            none_left(other, name, "what another take finds meanwhile")
            giver.set_rule(work, concurrency=None)
            leases += waiting.result(PROMPT, "a waiting take hears that the limit is gone")
        equal([lease.id for lease in leases], [f"{name}.{n}" for n in (3, 4, 5)], "tasks taken")
        taker.settle([(lease, DONE) for lease in leases])
        giver.purge(name, buried=True)


def check_concurrency_of_the_lost(make: Make) -> None:
    """A place is free again once the lease that had it ends."""
    with managed(brief(make, 1.0), 2) as (lost, taker):
        name = fresh()
        work = f"{name}:work"
        with _ruled(taker, work, concurrency=1):
            submit(lost, *some(name, 2, name=work))
            first = take(lost, name)[0]
            again = take(taker, name)[0]
            equal(again.id, first.id, "the task whose lease ended")
            lost.settle([(first, DONE)])
            none_left(taker, name, "tasks while one is taken, and a lost one was settled")
            taker.settle([(again, DONE)])
            taker.settle([(take(taker, name)[0], DONE)])


def check_rate(make: Make) -> None:
    """No more tasks of a function are taken in any `per` seconds than its rule allows, and takers wake in time."""
    count, rate, per = 12, 4, 0.6
    with managed(make, 3) as (giver, *takers):
        name = fresh()
        work = f"{name}:work"
        lock = threading.Lock()
        taken: list[tuple[float, float]] = []  # each was taken between these

        def run(taker: Queue) -> None:
            deadline = time.monotonic() + 4 * PATIENCE
            while len(taken) < count and time.monotonic() < deadline:
                before = time.monotonic()
                leases = taker.take([name], limit=3, wait=0.01)
                after = time.monotonic()
                with lock:
                    taken.extend([(before, after)] * len(leases))
                taker.settle([(lease, DONE) for lease in leases])

        with _ruled(giver, work, rate=rate, per=per):
            submit(giver, *some(name, 2, name=work))
            began = time.monotonic()
            leases = take(takers[0], name, 2)
            taken += [(began, time.monotonic())] * 2
            takers[0].settle([(lease, DONE) for lease in leases])
            while time.monotonic() < began + 0.6 * per:  # so that a window that does not slide shows
                none_left(takers[0], name, "tasks")
            submit(giver, *[Parcel(f"{name}.{n}", queue=name, name=work) for n in range(2, count)])
            submit(giver, Parcel(f"{name}.free", queue=f"{name}.free", name=f"{name}:free"))
            free = take(takers[0], f"{name}.free")
            takers[0].settle([(free[0], DONE)])
            for one in [Aside(run, taker) for taker in takers]:
                one.result(5 * PATIENCE, "a taker ends")
            equal(len(taken), count, "number of tasks taken")
            taken.sort()
            for first in range(count - rate):
                window = taken[first : first + rate + 1]
                span = max(after for _, after in window) - min(before for before, _ in window)
                claim(span >= per, f"{rate + 1} tasks were taken within {span:.3f} s, {rate} in {per} s are allowed")
            late = 2 * PROMPT + (count / rate) * per
            claim(taken[-1][0] - taken[0][0] < late, "takers slept on when there was room")
            submit(giver, *[Parcel(f"{name}.more.{n}", queue=name, name=work) for n in range(rate + 1)])
            leases = take(takers[0], name, rate, limit=rate)
            waiting = waits_long(takers[1], name)
            leases += waiting.result(per + PROMPT, "a waiting take wakes when the window has moved")
            equal(len(leases), rate + 1, "tasks taken")
            takers[0].settle([(lease, DONE) for lease in leases[:rate]])
            takers[1].settle([(lease, DONE) for lease in leases[rate:]])
            none_left(takers[0], name, "tasks at the end")


# ---- who takes


def check_workers(make: Make) -> None:
    """Who introduced itself is seen until it closes."""
    with managed(make, 3) as (looks, one, other):
        a, b = fresh("worker"), fresh("worker")

        def seen() -> dict[str, bytes]:
            return {worker: about for worker, about in looks.workers().items() if worker in (a, b)}

        equal(seen(), {}, "workers before they say who they are")
        one.introduce(a, b"\x00about a")
        other.introduce(b, b"b")
        equal(seen(), {a: b"\x00about a", b: b"b"}, "workers")
        one.introduce(a, b"changed")
        equal(seen(), {a: b"changed", b: b"b"}, "workers after one said something else of itself")
        one.close()
        equal(seen(), {b: b"b"}, "workers after one closed")
        other.close()
        equal(seen(), {}, "workers after both closed")


def check_silent_worker(make: Make) -> None:
    """Who neither takes, extends nor settles for the time of a lease is not seen, until it does again."""
    with managed(brief(make, 0.5), 2) as (looks, worker):
        name = fresh("worker")
        worker.introduce(name, b"")
        claim(name in looks.workers(), "it is seen at first")
        began = time.monotonic()
        while time.monotonic() < began + 1.5:
            worker.take([name], limit=1, wait=0.1)
            claim(name in looks.workers(), "it takes, and is seen")
        eventually(lambda: name not in looks.workers(), "it is silent, and no longer seen")
        worker.take([name], limit=1, wait=0)
        claim(name in looks.workers(), "it takes again, and is seen")


def check_managing_aside(make: Make) -> None:
    """Looking and steering goes on from another thread while a take of the same object waits."""
    with managed(make, 1) as (queue,):
        name = fresh()
        waiting = waits_long(queue, name)

        def look() -> None:
            queue.counts()
            queue.buried(limit=1)
            queue.exhume(f"{name}.never")
            queue.purge(name)
            queue.rules()
            queue.plans()
            queue.overdue()
            queue.unplan(name)
            queue.workers()

        Aside(look).result(PROMPT, "looking while a take waits")
        queue.wake()
        equal(list(waiting.result(PROMPT, "a take that is woken")), [], "what the take got")


def check_managing_closed(make: Make) -> None:
    """After `close` every one of these calls raises ClientClosed."""
    with managed(make, 1) as (queue,):
        queue.close()
        plan = Plan("check", b"", LONG_AGO)
        calls: list[Callable[[], object]] = [
            queue.counts,
            queue.buried,
            lambda: queue.exhume("check"),
            lambda: queue.purge("check"),
            queue.rules,
            lambda: queue.set_rule("check", paused=True),
            queue.plans,
            lambda: queue.plan(*plan),
            lambda: queue.unplan("check"),
            queue.overdue,
            lambda: queue.fire(plan, FAR_OFF, None),
            lambda: queue.introduce("check", b""),
            queue.workers,
        ]
        for number, call in enumerate(calls):
            refuses(ClientClosed, call, f"call {number} after close")


MANAGING_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))
