"""The Redis queue: the conformance kit, and what is its own."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from revolve_assistant.engine import Buried, Count, Lease, Outcome, Parcel, Plan, Queue, Rule
from revolve_assistant.errors import ProviderError, UsageError
from revolve_assistant.providers import registry
from revolve_assistant.providers.redis.queue import LARGEST
from revolve_assistant.testing import QueueConformance
from revolve_assistant.testing.checks import Aside, entered, eventually, fresh
from revolve_assistant.testing.servers import Redis

DONE = Outcome("done")


class Nobody:
    def deliver(self, reports: Sequence[Any]) -> None:
        raise AssertionError("a Queue reported")


@pytest.fixture(scope="module")
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def make(server: Redis) -> Callable[..., Any]:
    return lambda **options: registry.engine(server.url, **options)


@pytest.fixture
def some(make: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Opened queues, closed at the end, in a namespace of the test's own."""
    namespace = fresh("test")
    with ExitStack() as stack:

        def opened(**options: Any) -> Any:
            queue = make(**{"namespace": namespace, **options})
            stack.callback(queue.close)
            queue.open()
            return queue

        yield opened


class TestConformance(QueueConformance):
    pass


def submit(queue: Queue, *parcels: Parcel) -> Any:
    return queue.submit(parcels, Nobody())


def tasks(count: int, start: int = 0, **fields: Any) -> list[Parcel]:
    return [Parcel(f"t{n}", body=b"%d" % n, **fields) for n in range(start, start + count)]


def take(queue: Queue, limit: int = 100, wait: float = 0.0) -> list[str]:
    return [lease.id for lease in queue.take(["default"], limit=limit, wait=wait)]


def ids(leases: Sequence[Lease]) -> list[str]:
    return [lease.id for lease in leases]


# ---- bodies


def test_a_body_that_is_too_large_is_refused_before_anything_is_sent(some: Any) -> None:
    queue = some()
    with pytest.raises(UsageError, match=r"67,108,865 bytes.*pass its name"):
        submit(queue, Parcel("small"), Parcel("large", body=bytes(LARGEST + 1)))
    assert queue.state(["small"]) == {"small": "unknown"}


def test_the_largest_body_goes_through_to_a_waiting_taker(some: Any) -> None:
    giver, taker = some(), some()
    body = os.urandom(1 << 20) * 64
    waiting = entered(lambda: taker.take(["default"], limit=3, wait=30))
    submit(giver, Parcel("large", body=body), Parcel("other", body=body[:100]))
    (first,) = waiting.result(30, "the large one")
    assert (first.id, first.body == body) == ("large", True)
    assert take(taker) == ["other"]


def test_large_bodies_are_given_some_at_a_time(some: Any) -> None:
    queue = some()
    body = bytes(3 << 20)
    submit(queue, *[Parcel(f"t{n}", body=body) for n in range(5)])
    rounds = []
    while found := take(queue, 10):
        rounds.append(found)
    assert rounds == [["t0"], ["t1"], ["t2"], ["t3"], ["t4"]]


# ---- handing over


def test_a_waiting_taker_is_handed_as_many_as_it_wants_and_the_rest_stays(some: Any) -> None:
    giver, first, second = some(), some(), some()
    waiting = entered(lambda: ids(first.take(["other", "default"], limit=3, wait=30)))
    eventually(lambda: giver._line.call("EXISTS", giver._base + b":waiting:default"), "it waits")
    submit(giver, *tasks(5))
    assert waiting.result(5, "it is handed three") == ["t0", "t1", "t2"]
    assert take(second) == ["t3", "t4"]


def test_tasks_go_round_among_those_who_wait(some: Any) -> None:
    giver, takers = some(), [some() for _ in range(3)]
    waiting = [entered(lambda taker=taker: ids(taker.take(["default"], limit=1, wait=30))) for taker in takers]
    eventually(lambda: giver._line.call("ZCARD", giver._base + b":waiting:default") == 3, "all wait")
    submit(giver, *tasks(3))
    assert sorted(each.result(5, "one each")[0] for each in waiting) == ["t0", "t1", "t2"]


def test_who_stopped_waiting_is_handed_nothing(some: Any) -> None:
    giver, left, other = some(), some(), some()
    assert take(left, wait=0.05) == []
    waiting = entered(lambda: take(left, wait=30))
    eventually(lambda: giver._line.call("EXISTS", giver._base + b":waiting:default"), "it waits")
    left.wake()
    assert waiting.result(5, "a wake ends it") == []
    submit(giver, *tasks(2))
    assert take(other) == ["t0", "t1"]


def test_a_delay_wakes_a_taker_that_was_there_before(some: Any) -> None:
    giver, taker = some(), some()
    waiting = Aside(lambda: take(taker, wait=30))
    eventually(lambda: giver._line.call("EXISTS", giver._base + b":waiting:default"), "it waits")
    began = time.monotonic()
    submit(giver, Parcel("late", delay=60.0), Parcel("soon", delay=0.4))
    assert waiting.result(5, "the delay is over") == ["soon"]
    assert 0.39 <= time.monotonic() - began < 2


def test_the_same_id_twice_in_one_submission_is_one_task(some: Any) -> None:
    queue = some()
    submit(queue, Parcel("twice", body=b"first"), Parcel("twice", body=b"second"))
    (lease,) = queue.take(["default"], limit=5, wait=0)
    assert lease.body == b"first"


def test_a_taker_is_given_again_what_it_has_not_seen(some: Any) -> None:
    giver, taker = some(), some()
    submit(giver, *tasks(5))
    leases = taker.take(["default"], limit=3, wait=0)
    taker._hearing.seen -= 1  # as if the answer had been lost
    assert taker.take(["default"], limit=1, wait=0) == leases
    assert take(taker) == ["t3", "t4"]


# ---- unique keys


def test_a_key_is_held_until_its_task_is_over(some: Any) -> None:
    queue = some()

    def refused(id: str) -> dict[str, str]:
        return dict(submit(queue, Parcel(id, unique="key"), Parcel(f"{id}.other", unique=f"{id}.key")))

    assert refused("a") == {}
    assert refused("b") == {"b": "a"}
    assert refused("a") == {}  # it is the very one
    assert queue.state(["b"]) == {"b": "unknown"}
    (lease, *_) = queue.take(["default"], limit=9, wait=0)
    assert refused("c") == {"c": "a"}
    queue.settle([(lease, Outcome("release", 60.0))])
    assert refused("d") == {"d": "a"}
    assert queue.cancel("a")
    assert refused("e") == {}
    lease = next(each for each in queue.take(["default"], limit=9, wait=0) if each.id == "e")
    queue.settle([(lease, Outcome("bury"))])
    assert refused("f") == {}
    assert ids(queue.purge("default")) != []
    assert refused("g") == {}


# ---- looking


def test_counts(some: Any) -> None:
    queue = some()
    assert list(queue.counts()) == []
    submit(queue, *tasks(6), *[Parcel(f"d{n}", delay=60.0) for n in range(3)], Parcel("o", queue="other", priority=-9))
    a, b, *_ = queue.take(["default"], limit=2, wait=0)
    queue.settle([(a, Outcome("bury"))])
    queue.cancel("t5")
    default, other = queue.counts()
    assert default._replace(oldest=0.0) == Count("default", 3, 3, 0, 1, 1, 0.0)
    assert other._replace(oldest=0.0) == Count("other", 1)
    eventually(lambda: queue.counts()[1].oldest >= 0.05, "the oldest gets older")
    queue.settle([(b, DONE)])
    assert sorted(ids(queue.purge("default"))) == ["d0", "d1", "d2", "t2", "t3", "t4"]
    assert ids(queue.purge("default", buried=True)) == ["t0"]
    assert queue.purge("default") == queue.purge("default", buried=True) == []
    assert [each.queue for each in queue.counts()] == ["other"]


def test_buried_tasks_are_kept_up_to_a_number_and_can_be_taken_out(some: Any) -> None:
    queue = some(most_buried=3)
    submit(queue, *tasks(5, name="module:work"))
    for lease in queue.take(["default"], limit=9, wait=0):
        queue.settle([(lease, Outcome("bury", reason=f"for {lease.id}"))])
    found = queue.buried()
    assert ids(found) == ["t4", "t3", "t2"]
    assert found[0][1:6] == (b"4", "default", 1, "for t4", "module:work")
    assert abs(found[0].when - time.time()) < 60
    assert ids(queue.buried(limit=2)) == ["t4", "t3"]
    assert queue.exhume("t3") == found[1]
    assert queue.exhume("t3") is None
    assert queue.exhume("t0") is None
    submit(queue, Parcel("t4"))  # again, and so no longer buried
    assert ids(queue.buried()) == ["t2"]
    assert take(queue) == ["t4"]


def test_what_nobody_has_taken_can_be_taken_out_wherever_it_stands(some: Any) -> None:
    queue = some()
    queue.set_rule("kept", paused=True)
    submit(queue, Parcel("taken", priority=1), Parcel("kept", body=b"k", name="kept"), Parcel("u", unique="key"))
    submit(queue, Parcel("late", body=b"later", delay=60.0, name="module:work"))
    (lease,) = queue.take(["default"], limit=1, wait=0)
    assert queue.exhume("taken") is None
    assert queue.exhume("never") is None
    assert queue.exhume("late") == Buried("late", b"later", "default", 0, "", "module:work", 0.0)
    assert queue.exhume("late") is None
    assert queue.exhume("kept") == Buried("kept", b"k", "default", 0, "", "kept", 0.0)
    assert queue.exhume("u") is not None
    assert submit(queue, Parcel("v", unique="key")) == {}  # the key went with it
    assert queue.state(["taken", "kept", "u", "late", "v"]) == {
        "taken": "running", "kept": "unknown", "u": "unknown", "late": "unknown", "v": "queued",
    }  # fmt: skip
    queue.settle([(lease, DONE)])
    assert take(queue) == ["v"]


def test_a_purge_comes_in_parts(some: Any) -> None:
    queue = some()
    queue.set_rule("kept", paused=True)
    submit(queue, *tasks(1200), *tasks(300, 2000, name="kept"), *tasks(3, 5000, delay=9.0))
    held = queue.take(["default"], limit=100, wait=0)
    assert len(queue.purge("default", limit=10)) == 10
    found: list[Any] = []
    while some_more := queue.purge("default"):
        found += some_more
    assert sorted(ids(found)) == sorted([f"t{n}" for n in [*range(110, 1200), *range(2000, 2300), 5000, 5001, 5002]])
    assert {one.body for one in found if one.id == "t777"} == {b"777"}
    queue.settle([(lease, Outcome("bury", reason="why")) for lease in held])
    assert len(queue.purge("default", buried=True, limit=30)) == 30
    rest = queue.purge("default", buried=True)
    assert (len(rest), rest[0].reason) == (70, "why")
    assert list(queue.counts()) == []


def test_large_buried_tasks_are_kept_up_to_a_size(some: Any) -> None:
    queue = some()
    body = bytes(60 << 20)
    for n in range(6):
        submit(queue, Parcel(f"t{n}", body=body))
        queue.settle([(lease, Outcome("bury")) for lease in queue.take(["default"], limit=9, wait=0)])
    assert queue.counts()[0].buried == 4
    assert ids(queue.buried()) == ["t5", "t4", "t3", "t2"]
    assert [one.id for one in queue.purge("default", buried=True)] == ["t2"]
    assert [queue.exhume(id) is not None for id in ("t3", "t4", "t5")] == [True, True, True]
    assert queue._line.call("GET", queue._base + b":buried.size") in (None, b"0")


def test_buried_tasks_are_forgotten_with_time(some: Any) -> None:
    queue = some(keep_buried=1.0)
    submit(queue, *tasks(1))
    (lease,) = queue.take(["default"], limit=9, wait=0)
    queue.settle([(lease, Outcome("bury"))])
    assert ids(queue.buried()) == ["t0"]
    eventually(lambda: not queue.buried() and not queue.counts(), "it is forgotten")


def test_workers(some: Any) -> None:
    one, other, looks = some(lease=1.0), some(lease=30.0), some()
    one.introduce("one", b"1")
    other.introduce("other", b"2")
    assert looks.workers() == {"one": b"1", "other": b"2"}
    eventually(lambda: looks.workers() == {"other": b"2"}, "one has been silent for the time of a lease")
    take(one)
    assert looks.workers() == {"one": b"1", "other": b"2"}
    other.close()
    assert looks.workers() == {"one": b"1"}


# ---- rules


def test_what_is_paused_keeps_its_order_and_its_takers_hear_of_the_end(some: Any) -> None:
    giver, taker = some(), some()
    submit(giver, *[Parcel(f"t{n}", name="even" if n % 2 == 0 else "odd") for n in range(10)])
    assert giver.set_rule("even", paused=True) == Rule("even", paused=True)
    assert take(taker, 3) == ["t1", "t3", "t5"]
    assert take(taker, 9) == ["t7", "t9"]
    submit(giver, Parcel("first", name="even", priority=5), Parcel("odd", name="odd"))
    assert take(taker, 9) == ["odd"]
    assert giver.counts()[0][1:5] == (0, 0, 6, 6)
    assert giver.cancel("t4")
    assert giver.state(["t2", "t4"]) == {"t2": "queued", "t4": "unknown"}
    waiting = entered(lambda: take(taker, 2, wait=30))
    eventually(lambda: giver._line.call("EXISTS", giver._base + b":waiting:default"), "it waits")
    assert giver.set_rule("even", paused=False) == Rule("even")
    assert giver.rules() == []
    found = waiting.result(5, "a waiting taker hears that it goes on")
    while more := take(taker, 2):
        found += more
    assert found == ["first", "t0", "t2", "t6", "t8"]
    assert giver.counts()[0][1:4] == (0, 0, 0)


def test_concurrency_counts_what_is_taken_already(some: Any) -> None:
    giver, taker = some(), some()
    submit(giver, *tasks(6, name="work"))
    a, b = taker.take(["default"], limit=2, wait=0)
    giver.set_rule("work", concurrency=3)
    (c,) = taker.take(["default"], limit=9, wait=0)
    assert take(taker) == []
    waiting = entered(lambda: take(taker, 9, wait=30))
    eventually(lambda: giver._line.call("EXISTS", giver._base + b":waiting:default"), "it waits")
    giver.settle([(a, DONE), (b, Outcome("release", counted=False))])
    assert waiting.result(5, "a place is free") == ["t3", "t4"]
    giver.settle([(c, Outcome("bury"))])
    assert take(taker) == ["t5"]
    assert giver.set_rule("work", concurrency=None) == Rule("work")
    assert take(taker) == ["t1"]


def test_concurrency_counts_no_lease_that_ended(some: Any) -> None:
    giver, dead, taker = some(), some(lease=0.5), some(lease=30.0)
    giver.set_rule("work", concurrency=2)
    submit(giver, *tasks(5, name="work"))
    leases = dead.take(["default"], limit=9, wait=0)
    assert ids(leases) == ["t0", "t1"]
    assert take(taker, wait=20) == ["t0", "t1"]  # again, once their leases ended
    dead.extend(leases)
    dead.settle([(each, DONE) for each in leases])
    assert take(taker) == []


def test_a_rate_holds_over_all_takers_and_they_wake_in_time(some: Any) -> None:
    giver, takers = some(), [some(), some()]
    giver.set_rule("work", rate=4, per=0.5)
    submit(giver, *tasks(12, name="work"), *tasks(3, 20))
    taken: list[tuple[float, str]] = []

    def run(taker: Queue) -> None:
        deadline = time.monotonic() + 20
        while len(taken) < 15 and time.monotonic() < deadline:
            found = take(taker, 5, wait=0.3)
            taken.extend((time.monotonic(), id) for id in found)

    began = time.monotonic()
    for each in [Aside(run, taker) for taker in takers]:
        each.result(30, "all taken")
    times = sorted(when for when, id in taken if int(id[1:]) < 12)
    assert len(times) == 12
    assert sorted(id for _, id in taken) == sorted(f"t{n}" for n in [*range(12), 20, 21, 22])
    assert all(later - earlier >= 0.4 for earlier, later in zip(times, times[4:], strict=False))
    assert time.monotonic() - began < 10


def test_a_rule_of_nothing_that_is_one(some: Any) -> None:
    queue = some()
    assert queue.set_rule("a b", concurrency=2, rate=5, per=60) == Rule("a b", False, 2, 5, 60.0)
    assert queue.set_rule("a b", paused=True, rate=None) == Rule("a b", True, 2, None, 60.0)
    assert list(queue.rules()) == [Rule("a b", True, 2, None, 60.0)]
    for wrong in ({"concurrency": -1}, {"rate": 1.5}, {"per": 0}, {"speed": 1}):
        with pytest.raises(UsageError):
            queue.set_rule("a b", **wrong)
    queue.set_rule("a b", paused=False, concurrency=None)
    assert list(queue.rules()) == []


# ---- plans


def test_plans_fire_once_at_their_times(some: Any) -> None:
    queues = [some() for _ in range(4)]
    queue = queues[0]
    queue.plan("b", b"spec b", 2e9)
    queue.plan("a", b"spec a", 1000.5)
    assert list(queue.plans()) == [Plan("a", b"spec a", 1000.5), Plan("b", b"spec b", 2e9)]
    overdue = queue.overdue()
    assert list(overdue.plans) == [Plan("a", b"spec a", 1000.5)]
    assert abs(overdue.now - time.time()) < 60
    start = threading.Barrier(4)

    def fire(number: int) -> bool:
        start.wait(10)
        return bool(queues[number].fire(overdue.plans[0], 1.5e9, Parcel(f"fired.{number}", name="planned")))

    found = [each.result(10, "it fires") for each in [Aside(fire, number) for number in range(4)]]
    assert Counter(found) == {True: 1, False: 3}
    assert take(queue) == [f"fired.{found.index(True)}"]
    assert queue.plans()[0].due == 1.5e9
    assert queue.fire(queue.plans()[0], 3e9, None)
    assert take(queue) == []
    assert queue.unplan("a")
    assert not queue.unplan("a")
    assert not queue.fire(Plan("a", b"", 3e9), 4e9, None)
    overdue = queue.overdue()
    assert (list(overdue.plans), overdue.now < overdue.next <= overdue.now + 3600) == ([], True)


def test_a_plan_whose_key_is_held_passes_its_time_over(some: Any) -> None:
    queue = some()
    submit(queue, Parcel("held", unique="key"))
    queue.plan("p", b"", 1000.0)
    assert queue.fire(queue.plans()[0], 2000.0, Parcel("new", unique="key"))
    assert take(queue) == ["held"]
    assert queue.plans()[0].due == 2000.0


# ---- traces


def test_nothing_is_left_of_tasks_that_are_over(some: Any) -> None:
    queue = some()
    queue.set_rule("work", concurrency=50, rate=1000)
    submit(queue, *tasks(20, name="work", unique=None), Parcel("u", unique="u"), Parcel("d", delay=0.01))
    while found := queue.take(["default"], limit=9, wait=0.1):
        queue.settle([(lease, DONE) for lease in found])
    queue.set_rule("work", concurrency=None, rate=None)
    assert list(queue.counts()) == []
    queue.close()
    queue = some()
    keys = queue._line.call("KEYS", queue._base + b"*")
    lasting = [key for key in keys if queue._line.call("PTTL", key) < 0]
    assert lasting == []


def test_keys_of_another_program_are_one_clear_error(some: Any) -> None:
    queue = some()
    queue._line.call("SET", queue._base + b":heads", "theirs")
    with pytest.raises(ProviderError, match=r"another program uses our names.*namespace"):
        submit(queue, *tasks(1))


def test_queues_and_names_may_be_called_anything(some: Any) -> None:
    queue = some()
    names = ["5:hello:x", "hello", "x", "", " ", "ü\n", "a" * 300]
    for name in names:
        queue.set_rule(name, paused=True)
    submit(queue, *[Parcel(f"{q}/{n}", queue=q, name=n) for q in names for n in names])
    assert list(queue.take(names, limit=100, wait=0)) == []
    assert sum(each.blocked for each in queue.counts()) == len(names) ** 2
    for name in names:
        queue.set_rule(name, paused=False)
    assert {(each.queue, each.id) for each in queue.take(names, limit=100, wait=0)} == {
        (q, f"{q}/{n}") for q in names for n in names
    }


def test_managing_does_not_wait_for_a_take(some: Any) -> None:
    queue = some()
    waiting = entered(lambda: take(queue, wait=30))
    eventually(lambda: queue._second.call("EXISTS", queue._base + b":waiting:default"), "it waits")
    assert list(queue.counts()) == []
    queue.introduce("me", b"")
    assert queue.workers() == {"me": b""}
    queue.wake()
    assert waiting.result(5, "woken") == []
