"""beanstalkd as Queue and Messenger when servers die, networks fail, workers are killed, and strangers put jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from revolve_assistant import Client
from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.errors import Overloaded, ProtocolError, RemoteError, Unreachable
from revolve_assistant.protocols.beanstalkd import BeanstalkdClient, fields
from revolve_assistant.protocols.beanstalkd import commands as ask
from revolve_assistant.providers import registry
from revolve_assistant.testing import Door
from revolve_assistant.testing.checks import Aside, entered, eventually
from revolve_assistant.testing.servers import Beanstalkd, Memcached, free_port
from revolve_assistant.worker import Worker

WAIT = 20.0  # seconds that nothing here should take
DONE = Outcome("done")
SECRET = "a secret of these tests only"


@pytest.fixture
def server(need):
    need("beanstalkd")
    with Beanstalkd() as server:
        yield server


@pytest.fixture
def two(need):
    need("beanstalkd")
    with Beanstalkd() as one, Beanstalkd() as other:
        yield one, other


@pytest.fixture
def stored(need):
    need("beanstalkd")
    with Beanstalkd(stored=True) as server:
        yield server


@pytest.fixture
def opened():
    """`opened(registry.engine, server or port, …)`: opened, and closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(make, *places, **options):
            one = make(url(*places), **options)
            stack.callback(one.close)
            one.open()
            return one

        yield opened


def url(*places):
    ports = [place if isinstance(place, int) else place.port for place in places]
    return f"beanstalkd://{','.join(f'127.0.0.1:{port}' for port in ports)}/faults"


def parcels(count, start=0, **fields):
    return [Parcel(f"task{n}", body=b"%d" % n, **fields) for n in range(start, start + count)]


def drain(queue, count, names=("default",), *, settle=True):
    """Take so many different tasks; those that come twice count once."""
    leases = {}
    deadline = time.monotonic() + WAIT
    while len(leases) < count:
        assert time.monotonic() < deadline, f"{len(leases)} of {count}"
        with contextlib.suppress(Unreachable):
            found = queue.take(names, limit=100, wait=0.5)
            leases |= {lease.id: lease for lease in found}
            if settle:
                queue.settle([(lease, DONE) for lease in found])
    return leases


def frames(reader, channel, count, *, cursors=None):
    cursors = {channel: b""} if cursors is None else cursors
    found = []
    deadline = time.monotonic() + WAIT
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count}"
        with contextlib.suppress(Unreachable):
            batch = reader.read(cursors, limit=1000, wait=0.5)
            for message in batch.messages:
                cursors[channel] = message.cursor
                found.append(message.frame)
    return found


def write(writer, messages):
    """As the layer above does it: again until it is there."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            return writer.write(messages)
        except Unreachable:
            assert time.monotonic() < deadline


def counts(server, tube):
    with BeanstalkdClient(server.address) as client:
        return fields(client.one(ask.stats_tube(tube)).body)


# ---- servers


def test_absent_and_wrong_servers_are_one_clear_error(need):
    need("memcached")
    port = free_port()
    for make in (registry.engine, registry.messenger):
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port}: connection refused"):
            make(url(port)).open()
    with Memcached() as memcached:
        for make in (registry.engine, registry.messenger):
            opening = Aside(make(url(memcached)).open)
            with pytest.raises(ProtocolError, match="is a beanstalkd server on this port"):
                opening.result(4.0, "a clear error")


def test_a_server_killed_during_submit_loses_no_task_that_was_not_accepted(two, opened):
    with Door(two[0].port) as door:
        giver = opened(registry.engine, door.port, two[1])
        door.cut_after(2000, "to_client")  # some hundred of the answers
        door.shut()
        giver.submit(parcels(1000), None)
        assert not door.connections
    # What the first accepted is there still, perhaps a second time on the other one.
    assert len(drain(opened(registry.engine, *two), 1000)) == 1000


def test_a_dead_server_is_passed_over_and_used_again(two, opened):
    giver, taker = opened(registry.engine, *two), opened(registry.engine, *two)
    two[0].kill()
    began = time.monotonic()
    for parcel in parcels(50):
        giver.submit([parcel], None)
    assert time.monotonic() - began < 4.0
    assert len(drain(taker, 50)) == 50
    two[0].start()
    start = 100

    def back():
        nonlocal start
        giver.submit(parcels(5, start), None)
        start += 5
        with BeanstalkdClient(two[0].address) as client:
            return "faults.default" in ask.items(client.one(ask.list_tubes()).body)

    eventually(back, "it gets tasks again", within=WAIT)
    drain(taker, start - 100)


def test_a_restart_without_a_log_loses_tasks_and_takes_no_other_for_them(server, opened):
    giver, taker = opened(registry.engine, server), opened(registry.engine, server)
    giver.submit(parcels(3), None)
    lease = taker.take(["default"], limit=1, wait=5)[0]
    server.restart()
    with BeanstalkdClient(server.address) as client:
        client.put([b"of somebody else"] * 3)  # with the numbers that the lost ones had

    def states():
        with contextlib.suppress(Unreachable):
            return giver.state(["task0", "task1", "task2"])

    assert set(eventually(states, "the server is back").values()) == {"unknown"}
    taker.settle([(lease, DONE)])  # to nobody
    assert not giver.cancel("task1")
    assert giver.exhume("task1") is None
    giver.submit(parcels(3), None)
    assert set(drain(taker, 3)) == {"task0", "task1", "task2"}
    assert counts(server, "default")["current-jobs-ready"] == "3"


def test_a_restart_with_a_log_loses_nothing(stored, opened):
    giver, taker = opened(registry.engine, stored), opened(registry.engine, stored)
    writer, reader = opened(registry.messenger, stored), opened(registry.messenger, stored)
    large = os.urandom(200_000)
    giver.submit([*parcels(3), Parcel("late", delay=60), Parcel("large", body=large), Parcel("bad")], None)
    held = drain(taker, 5, settle=False)
    taker.settle([(held["bad"], Outcome("bury", reason="why")), (held["task0"], DONE)])
    writer.write([("c", b"%d" % n) for n in range(50)])
    cursors = {"c": b""}
    assert len(frames(reader, "c", 50, cursors=cursors)) == 50
    stored.restart()
    write(writer, [("c", b"%d" % n) for n in range(50, 60)])
    assert frames(reader, "c", 10, cursors=cursors) == [b"%d" % n for n in range(50, 60)]

    def states():
        with contextlib.suppress(Unreachable):
            return giver.state(["task0", "task1", "late", "large", "bad"])

    known = {"task0": "unknown", "task1": "queued", "late": "queued", "large": "queued", "bad": "unknown"}
    assert eventually(states, "the server is back") == known
    assert [(one.id, one.reason) for one in giver.buried()] == [("bad", "why")]
    assert giver.cancel("late")
    found = drain(taker, 3)  # what was held is ready again; the log does not count how often
    assert set(found) == {"task1", "task2", "large"}
    assert found["large"].body == large


def test_a_frozen_server_keeps_nobody_for_longer_than_the_time_out(server, opened):
    giver = opened(registry.engine, server, timeout=0.5)
    writer = opened(registry.messenger, server, timeout=0.5)
    giver.submit(parcels(1), None)
    server.freeze()
    try:
        for call in (lambda: giver.submit(parcels(1, 5), None), lambda: writer.write([("c", b"x")]),
                     lambda: giver.state(["task0"]), giver.counts):  # fmt: skip
            asking = Aside(call)
            with pytest.raises(Unreachable):
                asking.result(5.0, "a call to a server that hangs")
    finally:
        server.thaw()
    assert "task0" in drain(opened(registry.engine, server), 1)


# ---- drain mode, and limits


def test_a_draining_server_is_passed_over_and_what_it_holds_is_finished(two, opened):
    giver, taker = (opened(registry.engine, *two, timeout=1) for _ in range(2))
    writer, reader = (opened(registry.messenger, *two, timeout=1) for _ in range(2))
    giver.submit(parcels(40), None)
    writer.write([(f"c{n}", b"before") for n in range(10)])
    two[0].drain()
    giver.submit(parcels(40, 40), None)
    writer.write([(f"c{n}", b"after") for n in range(10)])
    held = drain(taker, 80, settle=False)
    assert all(frames(reader, f"c{n}", 2) == [b"before", b"after"] for n in range(10))
    taker.settle([(lease, Outcome("bury") if n % 2 else DONE) for n, lease in enumerate(held.values())])
    two[1].drain()
    for _ in range(2):
        with pytest.raises(Overloaded, match="draining"):
            giver.submit(parcels(4, 100), None)
        with pytest.raises(Overloaded, match="draining"):
            writer.write([("c0", b"x")])
    assert sum(count.buried for count in giver.counts()) == 40  # though there was no room for a note of each
    for _ in range(2):  # a take can still be woken, if later: a draining server takes no wake-up call either
        waiting = entered(lambda: taker.take(["default"], limit=1, wait=60))
        taker.wake()
        assert not waiting.result(5.0, "a take that is woken")
    two[0].restart()

    def back():
        with contextlib.suppress(Overloaded, Unreachable):
            giver.submit(parcels(4, 100), None)
            return True

    eventually(back, "it takes jobs again")
    assert len(drain(taker, 4)) == 4


def test_a_server_that_takes_little_gets_little_pieces(need, opened):
    need("beanstalkd")
    with Beanstalkd("-z", "300") as small:
        giver, taker = opened(registry.engine, small), opened(registry.engine, small)
        writer, reader = opened(registry.messenger, small), opened(registry.messenger, small)
        sizes = [0, 200, 260, 300, 301, 5000]
        giver.submit([Parcel(f"t{size}", body=bytes(size)) for size in sizes], None)
        assert {len(lease.body) for lease in drain(taker, 6).values()} == set(sizes)
        writer.write([("c", bytes(size)) for size in sizes])
        assert [len(frame) for frame in frames(reader, "c", 6)] == sizes
        small.kill()
        small.args = ("-z", "30000")
        small.start()
        write(writer, [("c", bytes(60_000))])
        assert len(frames(opened(registry.messenger, small), "c", 1)[0]) == 60_000


# ---- the network


def test_a_cut_connection_gives_its_tasks_to_another_one_at_once(server, opened):
    with Door(server.port) as door:
        giver, taker, other = (opened(registry.engine, place) for place in (server, door.port, server))
        giver.submit(parcels(3), None)
        held = drain(taker, 3, settle=False)
        waiting = entered(lambda: drain(other, 3))
        door.cut()
        again = waiting.result(5.0, "the tasks of a cut connection")
        assert {lease.deliveries for lease in again.values()} == {2}
        taker.extend(list(held.values()))
        taker.settle([(lease, Outcome("release")) for lease in held.values()])  # lost: nothing of it happens
        assert not other.take(["default"], limit=1, wait=0.3)
        giver.submit(parcels(1, 10), None)
        assert "task10" in drain(taker, 1)  # it has connected again


def test_a_cut_while_a_take_waits_is_mended(server, opened):
    with Door(server.port) as door:
        giver, taker = opened(registry.engine, server), opened(registry.engine, door.port)
        for n in range(3):
            waiting = entered(lambda: drain(taker, 1))
            door.wait_for(lambda door: door.connections > 1)
            door.cut()
            giver.submit(parcels(1, n), None)
            assert f"task{n}" in waiting.result(10.0, "a take over a cut")


def test_a_reader_that_is_cut_again_and_again_gets_every_frame_once_in_order(server, opened):
    with Door(server.port) as door:
        writer, reader = opened(registry.messenger, server), opened(registry.messenger, door.port)
        door.slice(700, "to_client")
        sent = [b"%d " % n + bytes(n * 37 % 3000) for n in range(1000)]
        sent[500] = bytes(200_000)
        reading = entered(lambda: frames(reader, "c", 1000))
        for start in range(0, 1000, 100):
            writer.write([("c", frame) for frame in sent[start : start + 100]])
            door.cut_after(30_000, "to_client")
        assert reading.result(WAIT, "all frames") == sent


def test_a_writer_that_is_cut_again_and_again_loses_nothing(server, opened):
    with Door(server.port) as door:
        writer, reader = opened(registry.messenger, door.port), opened(registry.messenger, server)
        sent = [b"%d" % n for n in range(600)]
        for start in range(0, 600, 50):
            door.cut_after(600, "to_client" if start % 100 else "to_server")
            write(writer, [("c", frame) for frame in sent[start : start + 50]])
        found = frames(reader, "c", 600)
        assert list(dict.fromkeys(found)) == sent  # what was written twice is there twice, for the layer above to drop


def test_bytes_that_trickle_in_are_read_all_the_same(server, opened):
    with Door(server.port) as door:
        door.slice(5)
        queue, messenger = opened(registry.engine, door.port), opened(registry.messenger, door.port)
        queue.submit(parcels(3), None)
        assert len(drain(queue, 3)) == 3
        messenger.write([("c", b"\r\nRESERVED 1 1\r\n")])
        assert frames(messenger, "c", 1) == [b"\r\nRESERVED 1 1\r\n"]


def test_garbage_from_the_server_ends_the_connection_and_nothing_else(server, opened):
    with Door(server.port) as door:
        queue = opened(registry.engine, door.port)
        door.corrupt(door.carried("to_client") + 3, "to_client")
        queue.submit(parcels(5), None)
        assert len(drain(queue, 5)) == 5


# ---- workers


TAKER = """
import sys
from revolve_assistant.providers import registry
queue = registry.engine(sys.argv[1])
queue.open()
leases = []
while len(leases) < int(sys.argv[2]):
    leases += queue.take(["default"], limit=10, wait=5)
print("has them", flush=True)
queue.take(["default"], limit=10, wait=60)
"""


def test_a_killed_taker_leaves_its_tasks_to_another_at_once(server, opened):
    giver, other = opened(registry.engine, server), opened(registry.engine, server)
    giver.submit(parcels(5), None)
    command = [sys.executable, "-c", TAKER, url(server), "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as taker:
        assert taker.stdout.readline() == "has them\n"
        waiting = entered(lambda: drain(other, 5))
        taker.kill()
        again = waiting.result(5.0, "the tasks of a killed taker")
    assert {lease.deliveries for lease in again.values()} == {2}
    other.sweep()
    with BeanstalkdClient(server.address) as client:
        left = [tube for tube in ask.items(client.one(ask.list_tubes()).body) if ";bell." in tube]
        jobs = [fields(client.one(ask.stats_tube(tube)).body)["current-jobs-ready"] for tube in left]
    assert set(jobs) <= {"0"}


def test_the_whole_story_over_a_restart_and_a_killed_worker(stored, revolve, tmp_path):
    """A worker is killed with a task, the server is restarted: each task ends once, and says what it says in order."""
    (tmp_path / "beans_app.py").write_text(
        "import os, time\n"
        "from revolve_assistant import emit\n"
        "def hold(gate, n):\n"
        "    emit('up', os.getppid())\n"
        "    while not os.path.exists(gate):\n"
        "        time.sleep(0.01)\n"
        "    for i in range(50):\n"
        "        emit('tick', i)\n"
        "    return n\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        from beans_app import hold

        gate = str(tmp_path / "gate")
        start = lambda: revolve("worker", url(stored), "-c", "2", REVOLVE_SECRET=SECRET)  # noqa: E731
        first = start()
        with Client(url(stored), secret=SECRET) as client:
            tasks = [client.submit(hold, gate, n) for n in range(6)]
            heard = tasks[0].events("up")
            assert next(heard).args[0] == first.process.pid
            os.kill(first.process.pid, signal.SIGKILL)
            second = start()
            again = next(heard)
            assert (again.args[0], again.attempt) == (second.process.pid, 2)
            stored.restart()
            open(gate, "w").close()
            assert [task.result(60) for task in tasks] == list(range(6))
            for task in tasks:
                events = list(task.events())
                assert sum(event.name == "succeeded" for event in events) == 1
                last = max(event.attempt for event in events)
                assert [event.args[0] for event in events if event.name == "tick" and event.attempt == last] == [
                    *range(50)
                ]
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("beans_app", None)


def command(*words):
    """What `revolve …` prints."""
    line = [sys.executable, "-m", "revolve_assistant.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=WAIT, check=True).stdout


def fails():
    raise ValueError("as it should")


def test_strange_jobs_are_parked_and_failed_ones_are_kept_and_tried_again(server):
    with Worker(url(server), concurrency=1) as worker, Client(url(server)) as client:
        assert worker.wait_ready(WAIT)
        with BeanstalkdClient(server.address) as stranger:
            stranger.put([b"", b"\xb5\x01", b"\xb5\x01" + bytes(20), b'{"not": "ours"}', bytes(1000)], "faults.default")
        task = client.submit(fails)
        with pytest.raises((ValueError, RemoteError), match="as it should"):
            task.result(WAIT)
        found = eventually(lambda: (dead := client.buried(), len(dead) == 6)[1] and dead, "six buried tasks")
        mine = next(each for each in found if each.id == task.id)
        assert mine.name.endswith(":fails")
        assert "as it should" in mine.reason
        again = client.retry(task.id)
        with pytest.raises((ValueError, RemoteError), match="as it should"):
            again.result(WAIT)
        eventually(lambda: {task.id, again.id} & {each.id for each in client.buried()} == {again.id}, "the new one")
        listed = command("dead", "--url", url(server), "--json").splitlines()
        assert {line["id"] for line in map(json.loads, listed)} == {each.id for each in client.buried()}
        assert "as it should" in command("dead", again.id, "--url", url(server))
        third = command("retry", again.id, "--url", url(server)).strip()
        eventually(lambda: third in {each.id for each in client.buried()}, "it fails once more")
        assert command("purge", "default", "--buried", "-y", "--url", url(server)).strip() == "6"
        assert client.counts() == []
        assert client.submit(int, "7").result(WAIT) == 7
