from __future__ import annotations

import contextlib
import time
from typing import ClassVar

import pytest

from revolve_assistant import Client
from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.errors import UsageError
from revolve_assistant.protocols.beanstalkd import BeanstalkdClient, check_tube, fields
from revolve_assistant.protocols.beanstalkd import commands as ask
from revolve_assistant.providers import registry
from revolve_assistant.providers.beanstalkd import Queue, excused
from revolve_assistant.providers.beanstalkd.address import LARGEST
from revolve_assistant.providers.beanstalkd.names import Names
from revolve_assistant.providers.beanstalkd.wrapping import channel_mark, frame_jobs
from revolve_assistant.providers.diagnosis import diagnose
from revolve_assistant.providers.url import Url
from revolve_assistant.testing import MessengerConformance, QueueConformance
from revolve_assistant.testing.checks import entered, eventually, fresh
from revolve_assistant.testing.servers import Beanstalkd, Memcached
from revolve_assistant.worker import Worker


@pytest.fixture(scope="module")
def servers(need):
    need("beanstalkd")
    with Beanstalkd() as one, Beanstalkd() as other:
        yield one, other


def url(*servers, namespace="kit"):
    return f"beanstalkd://{','.join(f'{server.host}:{server.port}' for server in servers)}/{namespace}"


class TestQueue(QueueConformance):
    excused: ClassVar = excused(Url.parse("beanstalkd://one"))

    @pytest.fixture
    def make(self, servers):
        return lambda lease=30.0: registry.engine(url(servers[0]), lease=lease)


class TestQueueOfTwoServers(QueueConformance):
    excused: ClassVar = excused(Url.parse("beanstalkd://one,two"))

    @pytest.fixture
    def make(self, servers):
        return lambda lease=30.0: registry.engine(url(*servers), lease=lease)


class TestMessenger(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(servers[0]))


class TestMessengerOfTwoServers(MessengerConformance):
    @pytest.fixture
    def make(self, servers):
        return lambda: registry.messenger(url(*servers))


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


def tubes(server, names):
    """What the tubes of a namespace hold, without its prefix."""
    found = {}
    with BeanstalkdClient(server.address) as client:
        for tube in ask.items(client.one(ask.list_tubes()).body):
            if names.meaning(tube).kind != "foreign":
                found[tube.removeprefix(names.prefix)] = fields(client.one(ask.stats_tube(tube)).body)
    return found


# ---- tasks


def test_two_servers_know_together_what_waits_and_runs(opened):
    giver, taker = opened(registry.engine), opened(registry.engine)
    giver.submit([Parcel(f"t{n}") for n in range(20)], None)
    assert {count.queue: count.pending for count in giver.counts()} == {"default": 20}
    running = {lease.id: lease for lease in take(taker, 1, limit=1)}
    states = giver.state([*(f"t{n}" for n in range(20)), "never"])
    assert {id for id, state in states.items() if state == "running"} == running.keys()
    assert {id for id, state in states.items() if state == "unknown"} == {"never"}
    cancelled = [id for id, state in states.items() if state == "queued"][:5]
    assert [giver.cancel(id) for id in cancelled] == [True] * 5
    assert [giver.cancel(id) for id in (*cancelled, *running, "never")] == [False] * 7
    rest = take(taker, 14)
    assert {lease.id for lease in rest} == states.keys() - running.keys() - {*cancelled, "never"}
    taker.settle([*((lease, Outcome("bury", reason="wrong")) for lease in rest[:9])])
    taker.settle([*((lease, Outcome()) for lease in (*rest[9:], *running.values()))])
    assert set(giver.state(states).values()) == {"unknown"}
    for _ in range(3):  # looking changes nothing
        assert {one.id for one in giver.buried()} == {lease.id for lease in rest[:9]}
    assert [one.reason for one in giver.buried(limit=3)] == ["wrong"] * 3
    assert giver.exhume(rest[0].id).id == rest[0].id
    assert len(giver.purge("default", buried=True)) == 8
    assert not giver.counts()


def test_tasks_are_spread_evenly(opened, servers):
    giver = opened(registry.engine)
    giver.submit([Parcel(f"t{n}") for n in range(1000)], None)
    counts = [int(tubes(server, giver.place.names)[".default"]["current-jobs-ready"]) for server in servers]
    assert sum(counts) == 1000
    assert min(counts) > 400
    assert len(giver.purge("default", limit=2000)) == 1000


def test_large_bodies_travel_in_parts_that_go_with_them(opened, servers):
    giver, taker = opened(registry.engine), opened(registry.engine)
    large = bytes(range(256)) * 1500  # of a server that takes 65,535 at once
    giver.submit([Parcel(f"t{n}", body=large + b"%d" % n) for n in range(4)], None)

    def parts():
        found = (tubes(server, giver.place.names).get(";part", {}) for server in servers)
        return sum(int(said.get("current-jobs-ready", 0)) for said in found)

    assert parts() == 24
    leases = take(taker, 4)
    assert {lease.id: lease.body for lease in leases} == {f"t{n}": large + b"%d" % n for n in range(4)}
    taker.settle([(leases[0], Outcome()), (leases[1], Outcome("release")), (leases[2], Outcome("bury"))])
    assert parts() == 18
    assert giver.buried()[0].body == leases[2].body
    assert giver.cancel(leases[1].id)
    giver.purge("default", buried=True)
    taker.settle([(leases[3], Outcome())])
    assert parts() == 0
    with pytest.raises(UsageError, match="more than"):
        giver.submit([Parcel("x", body=bytes(LARGEST + 1))], None)


def test_a_task_whose_parts_are_gone_is_buried(opened, servers):
    giver, taker = opened(registry.engine, 1), opened(registry.engine, 1)
    giver.submit([Parcel("torn", body=bytes(200_000)), Parcel("whole")], None)
    with BeanstalkdClient(servers[0].address) as client:
        client.delete(client.ask(ask.use(giver.place.names.part), ask.peek_ready())[1].number)
    (lease,) = take(taker, 1)
    assert lease.id == "whole"
    taker.settle([(lease, Outcome())])
    assert not taker.take(["default"], limit=10, wait=0.2)
    assert [(one.id, one.reason) for one in giver.buried()] == [("torn", "parts of its body are not there any more")]
    giver.purge("default", buried=True)


def test_releases_that_do_not_count_are_not_counted(opened):
    giver, taker = opened(registry.engine), opened(registry.engine)
    giver.submit([Parcel("t", priority=5)], None)
    for n in range(12):
        (lease,) = take(taker, 1)
        assert lease.deliveries == 1 + n // 3
        taker.settle([(lease, Outcome("release", counted=n % 3 == 2))])
    assert giver.exhume("t").deliveries == 4


def test_what_came_while_there_was_no_room_goes_back_uncounted(opened):
    """Two servers are waited for with room for one: the other one's task is not kept, nor counted."""
    giver, taker, other = opened(registry.engine), opened(registry.engine), opened(registry.engine)
    for round in range(10):
        waiting = entered(lambda: taker.take(["default"], limit=1, wait=30))
        giver.submit([Parcel(f"{round}.{n}") for n in range(4)], None)
        leases = [*waiting.result(10, "a take"), *take(other, 3)]
        assert {(lease.id, lease.deliveries) for lease in leases} == {(f"{round}.{n}", 1) for n in range(4)}
        taker.settle([(leases[0], Outcome())])
        other.settle([(lease, Outcome()) for lease in leases[1:]])


def test_whoever_lost_a_task_cannot_end_it(opened):
    giver, slow, quick = (opened(registry.engine, 1, lease=lease) for lease in (1, 1, 30))
    giver.submit([Parcel("t", body=b"x")], None)
    (lost,) = take(slow, 1)
    assert slow.lease == 1.0

    def look():
        # beanstalkd misses about every other end: anything that the holder's connection says has it look again.
        for line in slow._lines.lines("take"):
            line.ping(b"")
        return quick.take(["default"], limit=1, wait=0.2)

    (held,) = eventually(look, "the lost task")
    assert (held.id, held.deliveries) == ("t", 2)
    slow.extend([lost])
    for kind in ("done", "bury", "release"):
        slow.settle([(lost, Outcome(kind))])
    assert giver.state(["t"]) == {"t": "running"}
    assert not giver.buried()
    quick.settle([(held, Outcome("release"))])
    quick.settle([(held, Outcome())])
    (again,) = take(quick, 1)
    assert again.deliveries == 3
    quick.settle([(again, Outcome())])


def test_a_lease_lasts_as_long_as_whoever_submitted_says(opened):
    """A worker that looks more seldom than that is told so; and what it holds is touched while it waits for more."""
    giver, taker, other = (opened(registry.engine, 1, lease=lease) for lease in (1, 30, 30))
    giver.submit([Parcel("t")], None)
    (lease,) = take(taker, 1)
    assert (giver.lease, taker.lease) == (1.0, 1.0)
    assert not taker.take(["default"], limit=1, wait=2.5)  # over DEADLINE_SOON
    assert not other.take(["default"], limit=1, wait=0)
    taker.settle([(lease, Outcome())])
    assert not other.take(["default"], limit=1, wait=0.1)
    taker.take(["default"], limit=1, wait=0)
    assert taker.lease == 30.0


def test_no_namespace_or_queue_is_taken_for_another(opened, servers):
    names = Names("a")
    assert names.queue("b.c") != Names("a.b").queue("c")
    assert names.queue("x;dead.y") != names.dead("y")
    for name in ("ü", "a b", "-", "x" * 500, "a\r\nput", "b;c", "$41"):
        tube = names.queue(name)
        assert check_tube(tube) == tube
        assert len(name) > 100 or names.meaning(tube.decode()).name == name
    assert len({names.queue(name) for name in ("$41", "A", "a", "a ", "ü", "x" * 500, "x" * 501)}) == 7
    for wrong in ("a.default", "a;part", "ü", ""):
        with pytest.raises(UsageError):
            names.foreign(wrong)
    queue = opened(registry.engine, 1)
    odd = "odd name; with ü\r\n"
    queue.submit([Parcel("t", queue=odd)], None)
    assert [count.queue for count in queue.counts()] == [odd]
    (lease,) = take(queue, 1, [odd])
    assert lease.queue == odd
    queue.settle([(lease, Outcome())])
    with pytest.raises(UsageError, match="takes no user or password"):
        registry.engine("beanstalkd://me:pw@localhost")
    with pytest.raises(UsageError, match="did you mean 'timeout'"):
        registry.engine("beanstalkd://localhost?timeuot=3")


def test_what_is_buried_goes_after_a_time_and_beyond_a_number(opened):
    queue = opened(registry.engine, 2, most_buried=5)
    queue.submit([Parcel(f"t{n}") for n in range(40)], None)
    for lease in take(queue, 40, limit=40):
        queue.settle([(lease, Outcome("bury"))])
    assert len(queue.buried()) == 40
    queue.sweep()
    assert len(queue.buried()) == 10  # of each server
    soon = opened(registry.engine, 2, keep_buried=0)
    soon.sweep()
    assert not queue.buried()
    assert not queue.counts()


def test_a_sweep_removes_calls_for_connections_that_are_gone_and_no_others(opened, servers):
    queue = opened(registry.engine, 1)
    gone, used = queue.place.names.bell("gone"), queue.place.names.bell("used")
    with BeanstalkdClient(servers[0].address) as client:
        client.put([b"x"], gone.decode())
        client.put([b"x"], used.decode())
        client.ask(ask.watch(used))
        queue.sweep()
        assert ";bell.gone" not in tubes(servers[0], queue.place.names)
        assert client.reserve(0) is not None
        client.delete(client.put([b"x"])[0])


def test_a_task_that_waits_for_long_is_not_lost_to_whoever_attaches(servers, tmp_path, monkeypatch):
    """The queue cannot tell others that it has it; the log of the task can wait."""
    for name, seconds in (("ORPHAN", 0.2), ("QUIET", 0.1), ("AGAIN", 0.05)):
        monkeypatch.setattr(f"revolve_assistant.caller.reckoning.{name}", seconds)
    looks = []
    monkeypatch.setattr(Queue, "state", lambda self, ids, ask=Queue.state: looks.append(1) or ask(self, ids))
    place, messenger = url(servers[0], namespace=fresh("own")), f"file://{tmp_path}/events"
    with Client(place, messenger=messenger) as owner, Client(place, messenger=messenger) as other:
        task = owner.submit(int, "7")
        task.queued(10)
        attached = other.attach(task.id)
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 0.5 and len(looks) > 10, "it was asked about again and again")
        assert attached.state == "pending"
        with Worker(place, messenger=messenger, concurrency=1):
            assert attached.result(20) == 7


# ---- messages


def test_channels_go_to_both_servers_and_are_read_together(opened, servers):
    writer, reader = opened(registry.messenger), opened(registry.messenger)
    channels = [f"c{n}" for n in range(20)]
    for n in range(5):
        writer.write([(channel, b"%d" % n) for channel in channels])
    cursors = dict.fromkeys(channels, b"")
    got = {channel: [] for channel in channels}

    def look():
        for message in reader.read(cursors, limit=30, wait=0.5).messages:
            got[message.channel].append(message.frame)
            cursors[message.channel] = message.cursor
        return all(len(frames) == 5 for frames in got.values())

    eventually(look, "all of it")
    assert all(frames == [b"%d" % n for n in range(5)] for frames in got.values())
    names = writer._place.names
    assert all(any(name.startswith(";c.") for name in tubes(server, names)) for server in servers)
    for channel in channels:
        reader.forget(channel, cursors[channel])
    reader.close()
    left = [said for server in servers for name, said in tubes(server, names).items() if name.startswith(";c.")]
    assert {(said["current-jobs-ready"], said["current-jobs-reserved"]) for said in left} <= {("0", "0")}


def test_what_was_read_and_not_forgotten_comes_to_the_next_reader_in_order(opened):
    writer, first, second = (opened(registry.messenger) for _ in range(3))
    writer.write([("c", b"%d" % n) for n in range(100)])
    cursor = b""
    read = []

    def look():
        nonlocal cursor
        for message in first.read({"c": cursor}, limit=10, wait=0.5).messages:
            read.append(message.frame)
            cursor = message.cursor
        return len(read) >= 60

    eventually(look, "60 frames")
    first.forget("c", first.read({"c": b""}, limit=30, wait=0).messages[-1].cursor)
    first.close()
    writer.write([("c", b"last")])
    rest = []
    cursors = {"c": b""}

    def look_on():
        for message in second.read(cursors, limit=1000, wait=0.5).messages:
            rest.append(message.frame)
            cursors["c"] = message.cursor
        return rest[-1:] == [b"last"]

    eventually(look_on, "the rest")
    assert rest == [*(b"%d" % n for n in range(30, 100)), b"last"]
    second.forget("c")


def test_frames_of_somebody_else_are_passed_on_and_end_nothing(opened, servers):
    writer, reader = opened(registry.messenger, 1), opened(registry.messenger, 1)
    writer.write([("c", b"before")])
    tube = writer._place.names.channel("c").decode()
    mark = channel_mark("c")
    with BeanstalkdClient(servers[0].address) as client:
        client.put([b"", b"\xb5\x02", b"{}", b"\xb5\x02" + bytes(40)], tube)
        client.put(frame_jobs(mark, b"elsewise", 0, b"y" * 999, 500)[:1], tube)  # and its other piece never comes
        client.put(frame_jobs(mark, b"another1", 5, b"late", 500), tube)  # and what came before never does
    writer.write([("c", bytes(300_000)), ("c", b"after")])
    found = []
    cursors = {"c": b""}

    def look():
        for message in reader.read(cursors, limit=1000, wait=0.3).messages:
            found.append(message.frame)
            cursors["c"] = message.cursor
        return len(found) >= 8

    eventually(look, "all frames")
    garbage = {b"", b"\xb5\x02", b"{}", b"\xb5\x02" + bytes(40)}
    assert {b"before", *garbage, b"late", bytes(300_000), b"after"} == set(found)
    ours = [frame for frame in found if frame in (b"before", bytes(300_000), b"after")]
    assert ours == [b"before", bytes(300_000), b"after"]
    reader.forget("c")


def test_channels_that_nobody_reads_are_swept(opened, servers):
    writer, reader = opened(registry.messenger), opened(registry.messenger)
    writer.write([("gone", b"x" * 100_000), ("read", b"x")])
    reader.read({"read": b""}, limit=10, wait=1)
    assert writer.sweep(0.05) == 0  # it has just seen them
    eventually(lambda: not reader.read({"read": b""}, limit=1, wait=0.1).messages or writer.sweep(0.05) == 1, "a sweep")
    left = {name for server in servers for name in tubes(server, writer._place.names) if name.startswith(";c.")}
    assert left == {";c.read"}
    reader.forget("read")


# ---- doctor


def test_the_doctor_says_what_is_wrong(opened, servers):
    queue = opened(registry.engine, 1)
    queue.submit([Parcel("t1"), Parcel("t2")], None)
    lease = take(queue, 1, limit=1)[0]
    queue.settle([(lease, Outcome("bury"))])
    queue.close()
    place = queue.place.text
    found = {finding.subject: finding for finding in diagnose(place)}
    name = f"127.0.0.1:{servers[0].port}"
    assert found[name].level in ("ok", "note")
    assert found["queue default"].level == "wrong"
    assert f"revolve worker {place}" in found["queue default"].text
    assert "1 task of the queue default buried" in found["buried"].text
    text = "\n".join(finding.text for finding in diagnose(place))
    assert "beanstalkd 1.1" in text
    assert "start it with -b" in text
    assert "65,535 bytes" in text
    other = opened(registry.engine, 1)
    other.purge("default")
    other.purge("default", buried=True)


def test_the_doctor_on_servers_that_are_no_help(need):
    need("memcached")
    with Memcached() as memcached, Beanstalkd("-z", "1000", stored=True) as small:
        (wrong,) = [each for each in diagnose(f"beanstalkd://127.0.0.1:{memcached.port}") if each.level == "wrong"]
        assert "is memcached, not a beanstalkd" in wrong.text
        small.drain()
        found = eventually(
            lambda: [each for each in diagnose(small.url) if "draining" in each.text and each.level == "wrong"], "drain"
        )
        text = "\n".join(each.text for each in diagnose(small.url))
        assert "1,000 bytes" in text
        assert "it keeps a log" in text
        assert found
    (wrong,) = [each for each in diagnose(f"beanstalkd://127.0.0.1:{small.port}") if each.level == "wrong"]
    assert "start it (beanstalkd -l 127.0.0.1" in wrong.text
