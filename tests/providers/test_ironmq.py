"""IronMQ as a Queue and as a Messenger against the stand-in: the conformance kit, and what is its own.

With IRON_TOKEN and IRON_PROJECT_ID set the kit also runs against the service, in the namespace revolve-kit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from revolve_assistant import Client, Make, Worker, emit
from revolve_assistant.cli import main
from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.errors import UsageError
from revolve_assistant.providers import registry
from revolve_assistant.providers.ironmq import Messenger, Queue, janitor
from revolve_assistant.providers.ironmq.names import decode, encode
from revolve_assistant.testing import MessengerConformance, QueueConformance
from revolve_assistant.testing.checks import entered, fresh
from revolve_assistant.testing.iron import IronServer, VirtualClock
from revolve_assistant.testing.tasks import DONE, some, submit, take

WAIT = 20.0  # seconds that nothing here should take
LIVE = os.environ.get("IRON_TOKEN") and os.environ.get("IRON_PROJECT_ID")
live = pytest.mark.skipif(not LIVE, reason="IRON_TOKEN and IRON_PROJECT_ID are not set: the service is not asked")


@pytest.fixture(scope="module")
def iron() -> Iterator[IronServer]:
    with IronServer() as server:
        yield server


@pytest.fixture
def alone() -> Iterator[IronServer]:
    with IronServer(clock=VirtualClock()) as server:
        yield server


@pytest.fixture
def made() -> Iterator[Callable[..., Any]]:
    members: list[Any] = []

    def made(kind: str, url: str, **options: Any) -> Any:
        one: Any = registry.engine(url, **options) if kind == "queue" else registry.messenger(url, **options)
        members.append(one)
        one.open()
        return one

    yield made
    for one in members:
        one.close()


class TestQueue(QueueConformance):
    @pytest.fixture
    def make(self, iron: IronServer):
        return lambda **options: registry.engine(iron.url("kit"), **options)


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, iron: IronServer):
        return lambda: registry.messenger(iron.url("kit"))


@live
class TestLiveQueue(QueueConformance):
    @pytest.fixture
    def make(self):
        return lambda **options: registry.engine("ironmq:///revolve-kit", **options)


@live
class TestLiveMessenger(MessengerConformance):
    @pytest.fixture
    def make(self):
        return lambda: registry.messenger("ironmq:///revolve-kit")


# ---------------------------------------------------------------- requests


def test_one_request_for_a_hundred(alone, made):
    """Posts, reservations and deletions by the API's most; nothing else on the way."""
    queue, messenger = made("queue", alone.url("x")), made("messenger", alone.url("x"))
    messenger.keep(["c"], seconds=60, cap=1)
    submit(queue, *some("q", 1))
    before = dict(alone.counts)

    def spent(what: str) -> int:
        return alone.counts[what] - before.get(what, 0)

    submit(queue, *(Parcel(str(n), body=b"x", queue="q") for n in range(299)))
    messenger.write([("c", b"%d" % n) for n in range(300)])
    assert spent("all") == 6
    leases = [lease for _ in range(3) for lease in queue.take(["q"], limit=100, wait=0)]
    queue.settle([(lease, DONE) for lease in leases])
    cursor, count = b"", 0
    while count < 300:
        messages = messenger.read({"c": cursor}, limit=1000, wait=0).messages
        cursor, count = messages[-1].cursor, count + len(messages)
    messenger.forget("c", cursor)
    assert {what: spent(what) for what in ("POST messages", "POST reservations", "DELETE messages", "all")} == {
        "POST messages": 6,
        "POST reservations": 6,
        "DELETE messages": 6,
        "all": 18,
    }


def work(number: int) -> int:
    emit("tick", number)
    return number


def test_one_long_poll_for_all_tasks_in_flight(made):
    """However many tasks a client has, it waits in one request for the events of all of them."""
    with IronServer() as iron, Client(iron.url("x")) as client:
        tasks = [client.submit(work, number) for number in range(50)]
        for task in tasks:
            task.queued(WAIT)
        polls = f"queues/x.c.{client._engine.inbox_name}/reservations"
        with Worker(iron.url("x"), concurrency=2, grace=2.0):
            assert sorted(task.result(60) for task in tasks) == list(range(50))
        inboxes = [each for each in iron.seen if each.path == polls]
        assert len(inboxes) <= 50  # each brings what has come meanwhile, of whatever task
        assert {each.path for each in iron.seen if each.path.endswith("reservations") and ".c.i." in each.path} == {
            polls
        }


def test_several_queues_are_served_earlier_ones_first(alone, made):
    queue = made("queue", alone.url("x"))
    submit(queue, *some("low", 3), *some("high", 3))
    leases = queue.take(["high", "low"], limit=4, wait=0)
    assert [lease.queue for lease in leases] == ["high"] * 3 + ["low"]


def test_waiting_for_several_queues(made):
    with IronServer() as iron:
        taker, giver = made("queue", iron.url("x")), made("queue", iron.url("x"))
        for name in ("c", "a", "b"):
            waiting = entered(lambda: taker.take(["a", "b", "c"], limit=1, wait=WAIT))
            submit(giver, Parcel(f"{name}.1", queue=name))
            (lease,) = waiting.result(WAIT, "a task of any of them comes")
            assert lease.id == f"{name}.1"
            taker.settle([(lease, DONE)])


# ---------------------------------------------------------------- what lies beside a task


def test_a_large_body_travels_in_parts_and_leaves_nothing(alone, made):
    giver, taker = made("queue", alone.url("x")), made("queue", alone.url("x"))
    body = os.urandom(500_000)
    submit(giver, Parcel("large", body=body), Parcel("small", body=b"x"))
    assert len(alone.queues.names("x.b.", "", 100)) == 1
    first = take(taker, "default", 2, limit=2)
    assert first[0].body == body
    taker.settle([(lease, Outcome("release")) for lease in first])
    again = take(taker, "default", 2, limit=2)
    assert {lease.body for lease in again} == {body, b"x"}
    taker.settle([(lease, DONE) for lease in again])
    assert not alone.queues.names("x.b.", "", 100)
    submit(giver, Parcel("large", body=body))
    assert giver.cancel("large")
    assert not alone.queues.names("x.b.", "", 100)


def test_a_body_whose_parts_are_gone_is_given_up(alone, made):
    giver, taker = made("queue", alone.url("x")), made("queue", alone.url("x"))
    submit(giver, Parcel("large", body=os.urandom(100_000)))
    (parts,) = alone.queues.names("x.b.", "", 100)
    alone.queues.drop(parts)
    for _ in range(5):
        assert not taker.take(["default"], limit=1, wait=0)
        alone.clock.advance(2)
    (lease,) = taker.take(["default"], limit=1, wait=0)
    assert (lease.id, lease.body, lease.deliveries) == ("large", b"", 6)  # which a worker parks
    taker.settle([(lease, Outcome("bury", reason="empty"))])
    assert [(one.id, one.deliveries, one.reason) for one in taker.buried()] == [("large", 6, "empty")]


def test_what_does_not_count_is_not_counted(alone, made):
    giver, taker = made("queue", alone.url("x")), made("queue", alone.url("x"))
    submit(giver, Parcel("1", body=b"x"))
    seen = []
    for counted in (True, False, False, True, False):
        (lease,) = take(taker, "default")
        seen.append(lease.deliveries)
        taker.settle([(lease, Outcome("release", counted=counted))])
    assert seen == [1, 2, 2, 2, 3]
    assert dict(giver.state(["1"])) == {"1": "queued"}  # it is the same message all along
    (lease,) = take(taker, "default")
    assert lease.deliveries == 3
    taker.settle([(lease, DONE)])
    assert not alone.queues.names("x.u.", "", 100)


def test_the_states_of_many_cost_twenty_requests(alone, made):
    queue = made("queue", alone.url("x"))
    submit(queue, *some("q", 50))
    ids = [f"q.{n}" for n in range(50)]
    before = alone.counts["all"]
    assert set(queue.state(ids).values()) == {"queued"}
    assert alone.counts["all"] - before == 20
    queue.settle([(lease, DONE) for lease in queue.take(["q"], limit=50, wait=0)])
    for _ in range(3):
        states = queue.state(ids)
    assert set(states.values()) == {"unknown"}
    assert alone.counts["all"] - before == 80 + 2


# ---------------------------------------------------------------- the janitor


def test_queues_that_nobody_keeps_are_removed(alone, made):
    gone, stays = made("messenger", alone.url("x")), made("messenger", alone.url("x"))
    gone.keep(["a", "b"], seconds=100, cap=1)
    stays.keep(["c"], seconds=100, cap=1)
    gone.write([("a", b"unread")])
    assert alone.queues.names("x.c.", "", 100) == ["x.c.a", "x.c.b", "x.c.c"]
    alone.clock.advance(90)
    stays.keep(["c"], seconds=100, cap=1)
    alone.clock.advance(80)
    assert stays.sweep() == 2  # what waited in one of them has expired
    assert alone.queues.names("x.c.", "", 100) == ["x.c.c"]
    assert alone.queues.info("x.kept")["size"] == 1  # the notice of what is kept
    stays.forget("c")
    assert alone.queues.names("x.c.", "", 100) == []
    assert alone.queues.info("x.kept")["size"] == 0


def test_a_queue_with_something_in_it_is_left_for_later(alone, made):
    messenger = made("messenger", alone.url("x"))
    messenger.keep(["a"], seconds=100, cap=1)
    alone.clock.advance(150)
    messenger.write([("a", b"late")])  # by somebody who did not know
    alone.clock.advance(20)
    assert messenger.sweep() == 0
    assert alone.queues.info("x.c.a")["size"] == 1
    alone.clock.advance(86_400)
    assert messenger.sweep() == 1


def test_it_looks_by_itself(alone, made, monkeypatch):
    monkeypatch.setattr(janitor, "EVERY", 0.0)
    one, other = made("messenger", alone.url("x")), made("messenger", alone.url("x"))
    one.keep(["a"], seconds=10, cap=1)
    alone.clock.advance(100)
    other.keep(["b"], seconds=10, cap=1)
    assert alone.queues.names("x.c.", "", 100) == ["x.c.b"]


# ---------------------------------------------------------------- addresses, names, forks


def test_the_spellings_of_an_address(iron, monkeypatch):
    config = {"namespace": "x", "host": "127.0.0.1", "port": iron.port, "protocol": "http",
              "project_id": iron.project, "token": iron.token}  # fmt: skip
    named = Make().messenger({"provider": "ironmq", "ironmq": config})
    assert iron.token not in repr(named)
    found = named.carrier()
    assert isinstance(found, Messenger)
    found.open()
    found.close()
    for name, value in iron.environment().items():
        monkeypatch.setenv(name, value)
    queue = registry.engine("ironmq:///x")
    assert isinstance(queue, Queue)
    queue.open()
    queue.close()
    with pytest.raises(UsageError, match="did you mean 'lease'"):
        registry.engine(iron.url("x", leese=3))
    with pytest.raises(UsageError, match="limit='300000' must be a whole number"):
        registry.messenger(iron.url("x", limit=300_000))


@pytest.mark.parametrize("name", ["default", "über", "a_b", "a.b-c", "x" * 100, "_5F", "a b/c?d", "\udce4"])
def test_names_are_their_own_inverse(name):
    assert decode(encode(name)) == name
    assert encode("x" * 500) != encode("x" * 501)


def test_a_forked_child_has_connections_of_its_own(iron, made):
    queue, messenger = made("queue", iron.url("fork")), made("messenger", iron.url("fork"))
    messenger.keep(["c"], seconds=60, cap=1)
    name = fresh()
    waiting = entered(take, queue, name)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            messenger.write([("c", b"from the child")])
            submit(queue, Parcel("child", queue=name))
            queue.close()
            messenger.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert waiting.result(WAIT, "the child's task comes")[0].id == "child"
    assert messenger.read({"c": b""}, limit=1, wait=5.0).messages[0].frame == b"from the child"


def test_doctor(iron, capsys):
    queue = registry.engine(iron.url("doctor"))
    queue.open()
    submit(queue, Parcel("1", body=b"x"), Parcel("2", body=b"x"))
    queue.settle([(queue.take(["default"], limit=1, wait=0)[0], Outcome("bury", reason="checking"))])
    queue.close()
    assert main(["doctor", iron.url("doctor")]) == 0
    text = capsys.readouterr().out
    for words in ("takes the token", "queue default", "1 tasks in it, 2 so far", "1 tasks of the queue default buried"):
        assert words in text
