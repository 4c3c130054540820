from __future__ import annotations

import contextlib
import time
from typing import ClassVar

import pytest

from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.errors import Overloaded, Unreachable, UsageError
from revolve_assistant.protocols.gearman import GearmanClient
from revolve_assistant.providers import registry
from revolve_assistant.providers.gearman.names import Names
from revolve_assistant.providers.gearman.wrapping import Wrapped, wrap
from revolve_assistant.testing import MessengerConformance, QueueConformance
from revolve_assistant.testing.checks import eventually, fresh
from revolve_assistant.testing.servers import Gearmand


@pytest.fixture(scope="module")
def servers():
    with Gearmand() as one, Gearmand() as other:
        yield one, other


def url(*servers, namespace="kit"):
    return f"gearman://{','.join(f'{server.host}:{server.port}' for server in servers)}/{namespace}"


class TestQueue(QueueConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.engine(url(servers[0]))


class TestQueueOfTwoServers(QueueConformance):
    excused: ClassVar = dict.fromkeys(
        ("order", "priority", "queues", "any_bytes", "bury", "state", "cancel", "settle_and_take"),
        "counts on an order, which holds on each server and not across them; see the tests below",
    )

    @pytest.fixture
    def make(self, servers):
        return lambda: registry.engine(url(*servers))


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(servers[0]))


class TestMessengerOfTwoServers(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(*servers))


class TestMessengerInBase64(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(servers[0], namespace="b64"), encode="base64")


class TestQueueInBase64(QueueConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.engine(url(servers[0], namespace="b64"), encode="base64")


@pytest.fixture
def opened(servers):
    """`opened(registry.engine)`: on both servers, in a namespace of its own, closed at the end."""
    namespace = fresh("own")
    with contextlib.ExitStack() as stack:

        def opened(make, count=2, **options):
            one = make(url(*servers[:count], namespace=namespace), **options)
            stack.callback(one.close)
            one.open()
            return one

        yield opened


def take(taker, count, queues=("default",), limit=10):
    leases = []
    eventually(lambda: leases.extend(taker.take(queues, limit=limit, wait=0.5)) or len(leases) >= count, "tasks")
    assert len(leases) == count
    return leases


def test_two_servers_know_together_what_waits_and_runs(opened):
    giver, taker = opened(registry.engine), opened(registry.engine)
    giver.submit([Parcel(f"t{n}") for n in range(20)], None)
    running = {lease.id: lease for lease in take(taker, 1, limit=1)}
    states = giver.state([*(f"t{n}" for n in range(20)), "never"])
    assert {id for id, state in states.items() if state == "running"} == running.keys()
    assert {id for id, state in states.items() if state == "unknown"} == {"never"}
    cancelled = [id for id, state in states.items() if state == "queued"][:5]
    assert [giver.cancel(id) for id in cancelled] == [True] * 5
    assert [giver.cancel(id) for id in (*cancelled, *running, "never")] == [False] * 7
    assert set(giver.state(cancelled).values()) == {"unknown"}
    rest = take(taker, 14)
    assert {lease.id for lease in rest} == states.keys() - running.keys() - {*cancelled, "never"}
    taker.settle([(rest[0], Outcome("bury", reason="wrong")), *((lease, Outcome()) for lease in rest[1:])])
    taker.settle([(lease, Outcome()) for lease in running.values()])
    assert set(giver.state(states).values()) == {"unknown"}
    for _ in range(3):
        assert [(one.id, one.reason, one.deliveries) for one in giver.buried()] == [(rest[0].id, "wrong", 1)]


def test_a_cancelled_task_can_be_submitted_again_before_anybody_came_by(opened):
    giver, taker = opened(registry.engine), opened(registry.engine)
    for _ in range(3):
        giver.submit([Parcel("same", body=b"old")], None)
        assert giver.cancel("same")
        assert not giver.cancel("same")
    giver.submit([Parcel("same", body=b"new")], None)
    assert giver.state(["same"]) == {"same": "queued"}
    (lease,) = take(taker, 1)
    assert (lease.id, lease.body) == ("same", b"new")
    taker.settle([(lease, Outcome())])
    assert giver.state(["same"]) == {"same": "unknown"}
    for _ in range(4):
        giver.submit([Parcel("same", body=b"old")], None)
        assert giver.cancel("same")
    with pytest.raises(Overloaded, match="cancelled 4 times"):
        giver.submit([Parcel("same")], None)
    assert not taker.take(["default"], limit=1, wait=0.1)
    giver.submit([Parcel("same", body=b"newer")], None)
    assert take(taker, 1)[0].body == b"newer"


def test_a_delayed_task_can_be_cancelled_and_keeps_its_priority(opened):
    giver, taker = opened(registry.engine, 1), opened(registry.engine, 1)
    giver.submit([Parcel("gone", delay=1.2), Parcel("high", delay=1.2, priority=5), Parcel("low", delay=0.2)], None)
    assert giver.cancel("gone")
    began = time.monotonic()
    first, second = take(taker, 1)[0], take(taker, 1)[0]
    assert (first.id, second.id) == ("low", "high")
    assert time.monotonic() - began > 0.9
    taker.settle([(second, Outcome("release")), (first, Outcome("release"))])
    assert [lease.id for lease in take(taker, 2, limit=1)] == ["high", "low"]


def test_a_task_may_be_released_ever_so_often(opened):
    giver, taker = opened(registry.engine), opened(registry.engine)
    giver.submit([Parcel("t", body=b"x")], None)
    for n in range(1, 12):
        (lease,) = take(taker, 1)
        assert (lease.deliveries, lease.body) == (n, b"x")
        taker.settle([(lease, Outcome("release", delay=0.01 if n % 4 == 0 else 0.0))])
        assert giver.state(["t"]) == {"t": "queued"}


def test_a_moment_of_delay_is_a_moment(opened):
    giver, taker = opened(registry.engine), opened(registry.engine)
    for delay in (0.05, 0.3, 0.7, 1.1):
        began = time.monotonic()
        giver.submit([Parcel("t", delay=delay)], None)
        (lease,) = take(taker, 1)
        assert delay - 0.02 <= time.monotonic() - began < delay + 0.6
        taker.settle([(lease, Outcome())])


def test_any_id_and_any_name_of_a_queue(opened):
    giver, taker = opened(registry.engine), opened(registry.engine)
    ids = ["a", "ä-ö/ü", "x" * 60, "x" * 61, "x" * 300, "with space", "tilde~1", "at@0"]
    queues = ["default", "a-b", "a b", "a:b", "Größe", "n" * 500, "tab\tline\n"]
    giver.submit([Parcel(f"{id}{n}", queue=queue) for id in ids for n, queue in enumerate(queues)], None)
    leases = take(taker, len(ids) * len(queues), queues)
    assert {(lease.id, lease.queue) for lease in leases} == {
        (f"{id}{n}", queue) for id in ids for n, queue in enumerate(queues)
    }
    assert set(giver.state([lease.id for lease in leases]).values()) == {"running"}


def test_limits_are_said_before_anything_is_sent(opened):
    queue, messenger = opened(registry.engine), opened(registry.messenger)
    with pytest.raises(UsageError, match="33,554,433 bytes for task big"):
        queue.submit([Parcel("ok"), Parcel("big", body=bytes((32 << 20) + 1))], None)
    with pytest.raises(UsageError, match="ten years"):
        queue.submit([Parcel("ok"), Parcel("late", delay=1e9)], None)
    assert queue.state(["ok"]) == {"ok": "unknown"}
    with pytest.raises(UsageError, match="33,554,433 bytes for 'c'"):
        messenger.write([("c", b"x"), ("c", bytes((32 << 20) + 1))])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gearman://me@localhost", "takes no user"),
        ("gearman://localhost?encode=hex", "one of none, base64"),
        ("gearman://localhost?timout=3", "did you mean 'timeout'"),
    ],
)
def test_a_wrong_url_is_a_usage_error(address, words):
    for make in (registry.engine, registry.messenger):
        with pytest.raises(UsageError, match=words):
            make(address)


def test_a_busy_channel_does_not_hide_the_others(opened):
    writer, reader = opened(registry.messenger, 1), opened(registry.messenger, 1)
    channels = [f"quiet{n}" for n in range(5)]
    cursors = dict.fromkeys([*channels, "busy"], b"")
    reader.read(cursors, limit=1, wait=0)
    writer.write([("busy", b"x")] * 3000 + [(channel, b"y") for channel in channels])
    read, left = 0, set(channels)
    while left:
        for message in reader.read(cursors, limit=20, wait=5).messages:
            cursors[message.channel] = message.cursor
            left.discard(message.channel)
            read += 1
    assert read < 1000


def test_tasks_that_claim_to_be_due_later_than_they_come_do_not_keep_others_waiting(opened, servers):
    """As with a gearmand whose clock is ahead, or from somebody who sends headers of his own."""
    namespace = fresh("early")
    queue = registry.engine(url(servers[0], namespace=namespace))
    with contextlib.closing(queue), GearmanClient([servers[0].address]) as client:
        queue.open()
        function = Names(namespace).delayed
        client.submit_many(
            (function, wrap(Wrapped(f"t{n}", "default", b"", due=time.time() + 3600)), f"t{n}") for n in range(250)
        )
        queue.submit([Parcel("soon", delay=0.2)], None)
        (lease,) = take(queue, 1)
        assert lease.id == "soon"
        assert set(queue.state([f"t{n}" for n in range(250)]).values()) == {"queued"}


def test_who_takes_without_waiting_hears_of_tasks_and_reconnects():
    def taken():
        try:
            return queue.take(["default"], limit=1, wait=0.0)
        except Unreachable:
            return []

    def submitted(body):
        with GearmanClient([server.address]) as client:
            client.submit("kit.q.default", body, background=True)

    with Gearmand() as server:
        queue = registry.engine(url(server) + "?timeout=1")
        queue.open()
        try:
            for body in (b"first", b"second"):
                assert taken() == []
                submitted(body)
                (lease,) = eventually(taken, "a task", within=5.0)
                assert lease.body == body
            server.restart()
            submitted(b"third")
            assert eventually(taken, "a task of the new server", within=9.0)[0].body == b"third"
        finally:
            queue.close()
