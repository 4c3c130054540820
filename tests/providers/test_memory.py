from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from revolve_assistant.engine import Count, Outcome, Overdue, Parcel, Plan
from revolve_assistant.errors import ClientClosed, UsageError
from revolve_assistant.messenger import Batch
from revolve_assistant.providers import registry
from revolve_assistant.providers.memory import Messenger, Queue
from revolve_assistant.testing import MessengerConformance, QueueConformance

_names = (f"test{n}" for n in itertools.count())


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self) -> Callable[..., object]:
        return lambda: registry.messenger("memory://kit")


class TestQueue(QueueConformance):
    @pytest.fixture
    def make(self) -> Callable[..., object]:
        return lambda **options: registry.engine("memory://kit", **options)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def messenger(clock: Clock) -> Iterator[Messenger]:
    messenger = Messenger(next(_names), clock=clock)
    messenger.open()
    yield messenger
    messenger.close()


@pytest.fixture
def queue(clock: Clock) -> Iterator[Queue]:
    queue = Queue(next(_names), lease=30.0, clock=clock)
    queue.open()
    yield queue
    queue.close()


def frames(messenger: Messenger, channel: str = "a", cursor: bytes = b"") -> list[bytes]:
    return [message.frame for message in messenger.read({channel: cursor}, limit=1000, wait=0).messages]


def take(queue: Queue, limit: int = 10) -> list[str]:
    return [lease.id for lease in queue.take(["default"], limit=limit, wait=0)]


def parcels(*ids: str, **fields: float) -> list[Parcel]:
    return [Parcel(id, body=id.encode(), **fields) for id in ids]  # type: ignore[arg-type]


# ---- Messenger


def test_one_store_a_name() -> None:
    one, same, other = Messenger("one"), Messenger("one"), Messenger("other")
    for messenger in (one, same, other):
        messenger.open()
        messenger.open()
    one.keep(["a"], seconds=60, cap=100)
    one.write([("a", b"x")])
    assert frames(same) == [b"x"]
    assert other.read({"a": b""}, limit=1, wait=5).lost == {"a"}


def test_expiry_counts_from_the_latest_keep(messenger: Messenger, clock: Clock) -> None:
    messenger.keep(["a", "b", "c"], seconds=10, cap=100)
    messenger.write([("a", b"x")])
    clock.now += 9
    messenger.keep(["a"], seconds=10, cap=100)
    messenger.keep(["c"], seconds=0.5, cap=100)
    clock.now += 0.75
    assert messenger.read({"c": b""}, limit=1, wait=0).lost == {"c"}
    clock.now += 8.25
    assert frames(messenger) == [b"x"]
    assert messenger.read({"b": b""}, limit=1, wait=0).lost == {"b"}
    clock.now += 1
    assert messenger.read({"a": b""}, limit=1, wait=0).lost == {"a"}


def test_expired_channels_are_freed_without_being_read(messenger: Messenger, clock: Clock) -> None:
    messenger.keep([f"c{n}" for n in range(1000)], seconds=10, cap=100)
    clock.now += 10
    messenger.write([("other", b"")])
    assert messenger._store is not None
    assert not messenger._store.logs
    assert not messenger._store.ends


def test_expiry_ends_a_waiting_read() -> None:
    messenger = Messenger(next(_names))
    messenger.open()
    messenger.keep(["a"], seconds=0.1, cap=1)
    began = time.monotonic()
    assert messenger.read({"a": b""}, limit=1, wait=20).lost == {"a"}
    assert time.monotonic() - began < 5


def test_the_newest_message_outlives_the_cap(messenger: Messenger) -> None:
    messenger.keep(["a"], seconds=10, cap=10)
    messenger.write([("a", b"1" * 5), ("a", b"2" * 5)])
    assert frames(messenger) == [b"1" * 5, b"2" * 5]
    messenger.write([("a", b"3")])
    assert frames(messenger) == [b"2" * 5, b"3"]
    messenger.write([("a", b"4" * 50)])
    assert frames(messenger) == [b"4" * 50]
    messenger.write([("a", b"5")])
    assert frames(messenger) == [b"5"]


def test_channels_are_merged_in_the_order_of_writing(messenger: Messenger) -> None:
    messenger.keep(["a", "b"], seconds=10, cap=1000)
    messenger.write([(channel, b"%d" % n) for n, channel in enumerate("abbabaab")])
    batch = messenger.read({"b": b"", "a": b""}, limit=5, wait=0)
    assert [int(message.frame) for message in batch.messages] == [0, 1, 2, 3, 4]


def test_a_write_to_nobody_is_dropped(messenger: Messenger) -> None:
    messenger.write([("a", b"x")])
    assert messenger.read({"a": b""}, limit=1, wait=0).lost == {"a"}


def test_an_old_cursor_is_lost_not_skipped(messenger: Messenger) -> None:
    messenger.keep(["a"], seconds=10, cap=100)
    messenger.write([("a", b"x")])
    cursor = messenger.read({"a": b""}, limit=1, wait=0).messages[0].cursor
    messenger.forget("a")
    messenger.keep(["a"], seconds=10, cap=100)
    messenger.write([("a", b"y")])
    assert messenger.read({"a": cursor}, limit=1, wait=0) == Batch([], frozenset({"a"}))
    assert messenger.read({"a": b"no cursor of ours"}, limit=1, wait=0).lost == {"a"}


def test_close_ends_a_waiting_read() -> None:
    messenger = Messenger(next(_names))
    messenger.open()
    messenger.keep(["a"], seconds=60, cap=1)
    raised = []

    def read() -> None:
        try:
            messenger.read({"a": b""}, limit=1, wait=60)
        except ClientClosed as error:
            raised.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while messenger._store is not None and not messenger._store.logs["a"].readers and reading.is_alive():
        time.sleep(0)
    messenger.close()
    reading.join(10)
    assert raised


def test_calls_before_open_say_so() -> None:
    with pytest.raises(ClientClosed, match=r"call open\(\) first"):
        Messenger("x").write([])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_starts_afresh() -> None:
    messenger = Messenger(next(_names))
    messenger.open()
    messenger.keep(["a"], seconds=60, cap=10)
    assert messenger._store is not None
    with messenger._store.lock:  # as another thread might hold it at the fork
        child = os.fork()
        if child == 0:
            code = 1
            try:
                try:
                    messenger.write([("a", b"x")])
                except ClientClosed:
                    messenger.wake()
                    messenger.open()
                    code = 0 if messenger.read({"a": b""}, limit=1, wait=0).lost == {"a"} else 2
                    messenger.close()
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_unknown_options() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'lease'"):
        registry.engine("memory://?leas=3")
    with pytest.raises(UsageError, match=r"lease='0'"):
        registry.engine("memory://", lease=0)
    with pytest.raises(UsageError, match=r"it has none"):
        registry.messenger("memory://", x=1)


# ---- Queue


def test_delays_and_leases_follow_the_clock(queue: Queue, clock: Clock) -> None:
    queue.submit(parcels("late", delay=100), None)  # type: ignore[arg-type]
    queue.submit(parcels("now"), None)  # type: ignore[arg-type]
    assert take(queue) == ["now"]
    clock.now += 29.9
    assert take(queue) == []
    clock.now += 0.2
    assert take(queue) == ["now"]
    clock.now += 70
    assert take(queue) == ["late", "now"]


def test_a_lapsed_lease_that_nobody_took_still_counts(queue: Queue, clock: Clock) -> None:
    queue.submit(parcels("a", "b"), None)  # type: ignore[arg-type]
    first, second = queue.take(["default"], limit=2, wait=0)
    clock.now += 31
    assert queue.state(["a", "b"]) == {"a": "queued", "b": "queued"}
    queue.settle([(first, Outcome("done"))])
    queue.extend([second])
    assert queue.state(["a", "b"]) == {"a": "unknown", "b": "running"}
    assert take(queue) == []
    clock.now += 31
    assert take(queue) == ["b"]


def test_a_lapsed_lease_returns_to_its_place_and_a_released_task_to_the_end(queue: Queue, clock: Clock) -> None:
    queue.submit(parcels("a", "b", "c"), None)  # type: ignore[arg-type]
    take(queue, limit=1)
    clock.now += 31
    assert take(queue, limit=1) == ["a"]
    clock.now += 31
    (lease,) = queue.take(["default"], limit=1, wait=0)
    queue.settle([(lease, Outcome("release"))])
    assert take(queue) == ["b", "c", "a"]


def test_a_buried_id_can_be_submitted_anew(queue: Queue) -> None:
    queue.submit(parcels("a"), None)  # type: ignore[arg-type]
    (lease,) = queue.take(["default"], limit=1, wait=0)
    queue.settle([(lease, Outcome("bury", reason="killed three"))])
    assert [(one.id, one.body, one.deliveries, one.reason) for one in queue.buried()] == [
        ("a", b"a", 1, "killed three")
    ]
    assert queue.state(["a"]) == {"a": "unknown"}
    assert not queue.cancel("a")
    queue.submit(parcels("a"), None)  # type: ignore[arg-type]
    assert queue.buried() == []
    assert take(queue) == ["a"]


def test_buried_tasks_are_kept_for_a_time_and_up_to_a_number(clock: Clock) -> None:
    queue = Queue(next(_names), clock=clock, keep_buried=100.0, most_buried=3)
    queue.open()
    queue.submit(parcels(*"abcde"), None)  # type: ignore[arg-type]
    for lease in queue.take(["default"], limit=9, wait=0):
        queue.settle([(lease, Outcome("bury"))])
        clock.now += 10
    assert [one.id for one in queue.buried()] == ["e", "d", "c"]
    assert [one.id for one in queue.buried(limit=2)] == ["e", "d"]
    clock.now += 75
    assert [one.id for one in queue.buried()] == ["e", "d"]
    assert queue.exhume("c") is None
    assert queue.counts() == [Count("default", buried=2)]
    clock.now += 100
    assert (queue.buried(), queue.counts()) == ([], [])


def test_rules_follow_the_clock(queue: Queue, clock: Clock) -> None:
    queue.set_rule("work", rate=2, per=10)
    queue.submit([Parcel(name, name="work") for name in "abcdef"], None)  # type: ignore[arg-type]
    assert take(queue) == ["a", "b"]
    clock.now += 9
    assert take(queue) == []
    assert queue.counts() == [Count("default", blocked=4, leased=2)]
    clock.now += 1
    assert queue.counts() == [Count("default", pending=2, blocked=2, leased=2, oldest=10.0)]
    assert take(queue) == ["c", "d"]
    queue.set_rule("work", rate=None)
    assert take(queue) == ["e", "f"]


def test_a_pause_longer_than_a_rate_keeps_nobody_busy(queue: Queue) -> None:
    queue.set_rule("work", rate=1, per=0.001, paused=True)
    queue.submit([Parcel("a", name="work")], None)  # type: ignore[arg-type]
    began = time.process_time()
    assert list(queue.take(["default"], limit=1, wait=0.5)) == []
    assert time.process_time() - began < 0.3


def test_plans_follow_the_clock_and_who_is_dropped_is_forgotten(queue: Queue, clock: Clock) -> None:
    queue.plan("k", b"spec", 500.0)
    clock.now = 400.0
    assert queue.overdue() == Overdue(400.0, [], 500.0)
    clock.now = 500.0
    assert queue.overdue() == Overdue(500.0, [Plan("k", b"spec", 500.0)], 4100.0)
    queue.introduce("me", b"about")
    clock.now += 30
    assert queue.workers() == {"me": b"about"}
    clock.now += 1
    assert queue.workers() == {}
    assert list(queue.take(["default"], limit=1, wait=0)) == []
    assert queue.workers() == {"me": b"about"}
    clock.now += 4000
    assert queue.workers() == {}
    assert queue._store is not None
    assert queue._store.present == {}


def test_a_waiting_take_gets_what_falls_due() -> None:
    queue = Queue(next(_names), lease=0.1)
    queue.open()
    queue.submit(parcels("a", delay=0.1), None)  # type: ignore[arg-type]
    for deliveries in (1, 2):  # first the delay ends, then the lease
        (lease,) = queue.take(["default"], limit=1, wait=20)
        assert lease.deliveries == deliveries
    queue.settle([(lease, Outcome())])


def test_heaps_do_not_grow_with_what_is_gone(queue: Queue, clock: Clock) -> None:
    for n in range(200):
        queue.submit(parcels(f"done{n}", f"gone{n}"), None)  # type: ignore[arg-type]
        assert queue.cancel(f"gone{n}")
        (lease,) = queue.take(["default"], limit=1, wait=0)
        queue.settle([(lease, Outcome())])
    clock.now += 31
    assert take(queue) == []
    store = queue._store
    assert store is not None
    assert (store.tasks, store.ready, store.timers) == ({}, {}, [])
