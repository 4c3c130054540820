"""Gearman as Queue and Messenger when servers die, networks fail, readers are killed, and strangers answer.

Over 600 lines: its parts share the callables and fixtures at its head.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.errors import AssistantError, Overloaded, ProtocolError, Unreachable
from revolve_assistant.protocols.gearman import GearmanAdmin
from revolve_assistant.providers import holding, registry
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Gearmand, free_port

WAIT = 20.0  # seconds that nothing here should take
DONE = Outcome("done")


@pytest.fixture
def server(need):
    need("gearmand")
    with Gearmand() as server:
        yield server


@pytest.fixture
def two(need):
    need("gearmand")
    with Gearmand() as one, Gearmand() as other:
        yield one, other


@pytest.fixture
def stored(need, tmp_path):
    need("gearmand")
    with Gearmand("--queue-type=libsqlite3", f"--libsqlite3-db={tmp_path}/queue.db") as server:
        yield server


@pytest.fixture
def opened():
    """`opened(registry.engine, server or port, …)`: opened, and closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(make, *places, **options):
            ports = [place if isinstance(place, int) else place.port for place in places]
            one = make(f"gearman://{','.join(f'127.0.0.1:{port}' for port in ports)}/faults", **options)
            stack.callback(one.close)
            one.open()
            return one

        yield opened


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


# ---- tasks


def test_a_server_killed_during_submit_loses_no_task_that_was_not_accepted(two, opened):
    giver = opened(registry.engine, *two)
    with Door(two[0].port) as door:
        giver = opened(registry.engine, door.port, two[1])
        door.cut_after(2000, "to_client")  # some 60 of the answers
        door.shut()
        giver.submit(parcels(1000), None)
        assert not door.connections
    # What the first accepted is there still, perhaps a second time on the other one.
    taker = opened(registry.engine, *two)
    assert len(drain(taker, 1000)) == 1000


def test_a_dead_server_is_passed_over_at_once(two, opened):
    giver = opened(registry.engine, *two)
    two[0].kill()
    began = time.monotonic()
    for parcel in parcels(50):
        giver.submit([parcel], None)
    assert time.monotonic() - began < 4.0
    taker = opened(registry.engine, *two)
    assert len(drain(taker, 50)) == 50
    two[0].start()
    deadline = time.monotonic() + WAIT
    admin = GearmanAdmin(two[0].address)
    with admin:
        start = 100
        while not admin.status().get("faults.q.default", (0,))[0]:  # it gets tasks again, once it is back
            assert time.monotonic() < deadline
            giver.submit(parcels(5, start), None)
            start += 5
    drain(taker, start - 100)


def test_tasks_are_spread_evenly(two, opened):
    giver = opened(registry.engine, *two)
    giver.submit(parcels(1000), None)
    counts = []
    for server in two:
        with GearmanAdmin(server.address) as admin:
            counts.append(admin.status()["faults.q.default"].total)
    assert sum(counts) == 1000
    assert min(counts) > 400


def test_all_servers_down_names_all(opened):
    ports = [free_port(), free_port()]
    queue = registry.engine(f"gearman://127.0.0.1:{ports[0]},localhost:{ports[1]}/faults", timeout=0.5)
    with pytest.raises(Unreachable, match=rf"127.0.0.1:{ports[0]}.*refused.*localhost:{ports[1]}.*refused"):
        queue.open()
    messenger = registry.messenger(f"gearman://127.0.0.1:{ports[0]}", timeout=0.5)
    with pytest.raises(Unreachable, match=rf"127.0.0.1:{ports[0]}.*refused"):
        messenger.open()


def test_a_server_that_goes_away_is_unreachable_and_comes_back(server, opened):
    queue = opened(registry.engine, server, timeout=0.5)
    messenger = opened(registry.messenger, server, timeout=0.5)
    assert not queue.take(["default"], limit=1, wait=0)
    server.kill()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}"):
        queue.submit(parcels(1), None)
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}"):
        queue.take(["default"], limit=1, wait=5)
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}"):
        messenger.write([("a", b"x")])
    with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}"):
        messenger.read({"a": b""}, limit=1, wait=5)
    server.start()
    deadline = time.monotonic() + WAIT
    while True:
        with contextlib.suppress(Unreachable):
            queue.submit(parcels(1), None)
            messenger.write([("a", b"y")])
            break
        assert time.monotonic() < deadline
    drain(queue, 1)
    assert frames(messenger, "a", 1) == [b"y"]


def test_a_connection_cut_inside_a_job_gives_the_job_to_the_next_take(server, opened):
    with Door(server.port) as door:
        giver = opened(registry.engine, server)
        taker = opened(registry.engine, door.port)
        assert not taker.take(["default"], limit=1, wait=0)
        door.cut_after(300, "to_client")  # in the middle of the body
        giver.submit([Parcel("big", body=bytes(100_000))], None)
        lease = drain(taker, 1)["big"]
        assert lease.body == bytes(100_000)
        assert giver.state(["big"]) == {"big": "unknown"}


def test_leases_of_a_lost_connection_are_passed_over(server, opened):
    with Door(server.port) as door:
        giver = opened(registry.engine, server)
        taker = opened(registry.engine, door.port)
        giver.submit(parcels(4), None)
        lost = list(drain(taker, 4, settle=False).values())
        door.cut()
        taker.extend(lost)
        taker.settle(list(zip(lost, [DONE, Outcome("release"), Outcome("bury"), Outcome("release", 5.0)], strict=True)))
        other = opened(registry.engine, server)
        assert drain(other, 4).keys() == {lease.id for lease in lost}
        assert set(giver.state([lease.id for lease in lost]).values()) == {"unknown"}


def test_a_server_killed_before_settle_gives_nothing_to_settle(server, opened):
    queue = opened(registry.engine, server, timeout=0.5)
    queue.submit(parcels(2), None)
    first, second = drain(queue, 2, settle=False).values()
    server.kill()
    queue.settle([(first, DONE), (second, Outcome("release"))])
    queue.extend([first, second])


def test_a_half_open_connection_is_noticed_by_extend(server, opened):
    with Door(server.port) as door:
        taker = opened(registry.engine, door.port, timeout=0.5)
        giver = opened(registry.engine, server)
        giver.submit(parcels(1), None)
        (lease,) = drain(taker, 1, settle=False).values()
        taker.extend([lease])
        door.swallow()
        began = time.monotonic()
        taker.extend([lease])
        assert 0.3 < time.monotonic() - began < 5.0
        door.heal()
        door.cut()  # what the server's keepalive does
        assert drain(taker, 1).keys() == {"task0"}


def test_a_frozen_server_does_not_keep_the_others_from_working(two, opened):
    queue = opened(registry.engine, *two, timeout=1.0)
    queue.submit(parcels(20), None)
    drain(queue, 20)
    two[0].freeze()
    try:
        queue.submit(parcels(20, 100), None)  # those of the frozen one move on after the time-out
        taker = opened(registry.engine, two[1])
        assert drain(taker, 20).keys() == {f"task{n}" for n in range(100, 120)}
        taker.submit(parcels(10, 200), None)
        began = time.monotonic()
        assert len(drain(queue, 10)) == 10
        assert time.monotonic() - began < 5.0
    finally:
        two[0].thaw()


def test_an_assignment_that_comes_late_is_kept_for_the_next_take(server, opened):
    with Door(server.port) as door:
        giver = opened(registry.engine, server)
        taker = opened(registry.engine, door.port)
        assert not taker.take(["default"], limit=1, wait=0)
        door.delay(0.6, "to_client")
        giver.submit(parcels(1), None)
        found = list(taker.take(["default"], limit=1, wait=0.7))
        door.heal()
        found += taker.take(["default"], limit=1, wait=WAIT)
        assert [lease.id for lease in found] == ["task0"]
        assert giver.state(["task0"]) == {"task0": "running"}
        taker.settle([(found[0], DONE)])


def test_a_restart_with_a_store_keeps_the_tasks(stored, opened):
    giver = opened(registry.engine, stored)
    giver.submit([*parcels(3), Parcel("late", delay=1.5), Parcel("gone")], None)
    assert giver.cancel("gone")
    taker = opened(registry.engine, stored)
    (lease,) = taker.take(["default"], limit=1, wait=5)
    taker.settle([(lease, Outcome("release"))])
    leases = drain(taker, 3, settle=False)
    stored.restart()
    taker.settle([(each, DONE) for each in leases.values()])  # lost with the connection
    again = drain(taker, 4)
    assert again.keys() == {"task0", "task1", "task2", "late"}
    assert {again[id].deliveries for id in ("task1", "task2", "late")} == {1}
    assert again[lease.id].deliveries == 2
    assert not taker.take(["default"], limit=1, wait=0.2)


def test_a_restart_without_a_store_is_told_as_unknown(server, opened):
    queue = opened(registry.engine, server)
    queue.submit(parcels(3), None)
    server.restart()
    assert queue.state(["task0", "task2"]) == {"task0": "unknown", "task2": "unknown"}
    assert not queue.cancel("task1")
    queue.submit(parcels(3), None)  # whose handles are those of before
    assert queue.cancel("task1")
    assert drain(queue, 2).keys() == {"task0", "task2"}


def test_what_may_be_on_a_server_that_is_away_is_not_called_lost(two, opened):
    queue = opened(registry.engine, *two)
    queue.submit(parcels(20), None)
    two[0].kill()
    with pytest.raises(Unreachable, match=f"cannot say what is lost: .*{two[0].port}"):
        queue.state([f"task{n}" for n in range(20)])
    two[0].start()
    deadline = time.monotonic() + WAIT
    while True:
        with contextlib.suppress(Unreachable):
            states = queue.state([f"task{n}" for n in range(20)])
            break
        assert time.monotonic() < deadline
    assert set(states.values()) == {"queued", "unknown"}


def test_a_full_queue_is_said_so(server, opened):
    queue = opened(registry.engine, server)
    queue.submit(parcels(1), None)
    with GearmanAdmin(server.address) as admin:
        admin.max_queue("faults.q.default", 3)
        with pytest.raises(Overloaded, match=r"Job queue is full"):
            queue.submit(parcels(5, 1), None)
        leases = drain(queue, 3, settle=False)
        first = leases.pop("task0")
        with pytest.raises(Overloaded):  # those that are taken count too
            queue.settle([(first, Outcome("release")), *((lease, DONE) for lease in leases.values())])
        assert queue.state(["task0"]) == {"task0": "running"}  # the lease goes on
        admin.max_queue("faults.q.default")
        queue.settle([(first, Outcome("release"))])
    drain(queue, 1)


def test_after_a_refusal_a_writer_begins_anew_so_that_its_reader_waits_for_nothing(server, opened, monkeypatch):
    for name in ("GRACE", "_LONGEST"):  # seconds that a reader waits for a number that is missing
        monkeypatch.setattr(holding, name, 10 * WAIT)
    writer, reader = opened(registry.messenger, server), opened(registry.messenger, server)
    writer.keep(["c"], seconds=60, cap=1 << 20)
    writer.write([("c", b"first")])
    with GearmanAdmin(server.address) as admin:
        admin.max_queue("faults.c.c", 2)
        with pytest.raises(Overloaded, match=r"2 frames \(1 of 2 accepted\)"):
            writer.write([("c", b"taken"), ("c", b"refused")])
        admin.max_queue("faults.c.c", 100)
    writer.write([("c", b"taken"), ("c", b"refused")])  # as who writes does: all of it once more
    assert frames(reader, "c", 4) == [b"first", b"taken", b"taken", b"refused"]


@contextlib.contextmanager
def stranger(answer):
    """A server of something else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    with one, contextlib.suppress(OSError):
                        one.sendall(answer)
                        while one.recv(1000):
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT)


@pytest.mark.parametrize("make", [registry.engine, registry.messenger])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "another protocol.*SSH-2.0.*is a Gearman server on this port"),
        (b"\0RES\0\0\0\x0b\xff\xff\xff\xff", "4294967295 bytes, the limit is"),
        (b"\0RES\0\0\x07\x0b\0\0\0\0", "packet type 1803"),
    ],
)
def test_a_stranger_on_the_port_is_named(opened, make, answer, words):
    with stranger(answer) as port:
        began = time.monotonic()
        with pytest.raises(ProtocolError, match=rf"127.0.0.1:{port}.*{words}"):
            opened(make, port)
        assert time.monotonic() - began < 4.0


def test_a_stranger_among_the_servers_does_not_disturb(server, opened):
    with stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        queue = opened(registry.engine, port, server)
        queue.submit(parcels(20), None)
        assert len(drain(queue, 20)) == 20


def test_jobs_of_others_making_are_leases_too(server, opened):
    queue = opened(registry.engine, server)
    from revolve_assistant.protocols.gearman import GearmanClient

    bodies = [b"", b"\x01", b"A", b"A===", b"\x01" + bytes(30), b"\x01\0\0\0\0" + b"\xff" * 30, b"AAAAA" * 10]
    with GearmanClient([server.address]) as client:
        for n, body in enumerate(bodies):
            client.submit("faults.q.default", body, unique=f"odd{n}", background=True)
    leases = drain(queue, len(bodies) - 1)  # one of them is, by chance, a header with an empty id and nothing behind
    assert all(isinstance(lease.body, bytes) for lease in leases.values())


# ---- messages

READER = """
import sys
from revolve_assistant.providers import registry
reader = registry.messenger(sys.argv[1]); reader.open()
cursors, count = {"inbox": b""}, 0
while count < int(sys.argv[2]):
    for message in reader.read(cursors, limit=1000, wait=10).messages:
        cursors["inbox"] = message.cursor
        count += 1
    if count and len(sys.argv) > 3:
        reader.forget("inbox", cursors["inbox"])
print(count, flush=True)
sys.stdin.read()
"""


def test_a_killed_reader_leaves_its_frames_to_the_next_in_order(server, opened):
    writers = [opened(registry.messenger, server), opened(registry.messenger, server)]
    sent = [[b"%d %d" % (own, n) for n in range(350)] for own in range(2)]
    for n in range(0, 250, 10):
        for own, writer in enumerate(writers):
            writer.write([("inbox", frame) for frame in sent[own][n : n + 10]])
    command = [sys.executable, "-c", READER, f"gearman://127.0.0.1:{server.port}/faults", "500"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "500\n"  # read, and not forgotten
        for own, writer in enumerate(writers):
            writer.write([("inbox", frame) for frame in sent[own][250:]])
        reader.send_signal(signal.SIGKILL)
    found = frames(opened(registry.messenger, server), "inbox", 700)
    assert len(found) == 700
    for own in range(2):
        assert [frame for frame in found if frame.startswith(b"%d " % own)] == sent[own]


def test_what_was_forgotten_does_not_come_again(server, opened):
    writer, first = opened(registry.messenger, server), opened(registry.messenger, server)
    sent = [b"%d" % n for n in range(20)]
    writer.write([("inbox", frame) for frame in sent])
    cursors = {"inbox": b""}
    found = []
    while len(found) < 20:
        found += first.read(cursors, limit=7, wait=5).messages
        cursors["inbox"] = found[-1].cursor
    first.forget("inbox", found[11].cursor)
    first.close()
    assert frames(opened(registry.messenger, server), "inbox", 8) == sent[12:]


def test_a_reader_whose_connection_is_cut_gets_nothing_twice_and_forgets_all(server, opened):
    with Door(server.port) as door:
        writer, reader = opened(registry.messenger, server), opened(registry.messenger, door.port)
        cursors = {"inbox": b""}
        sent = [b"%d" % n for n in range(60)]
        found = []
        for n in range(0, 60, 20):
            writer.write([("inbox", frame) for frame in sent[n : n + 20]])
            found += frames(reader, "inbox", 20, cursors=cursors)
            door.cut()
        assert not reader.read(cursors, limit=10, wait=0.5).messages
        assert found == sent
        reader.forget("inbox", cursors["inbox"])
        reader.close()
        last = opened(registry.messenger, server)
        assert not last.read({"inbox": b""}, limit=10, wait=0.5).messages


def test_a_write_cut_half_way_comes_whole_once_it_is_written_again(server, opened):
    with Door(server.port) as door:
        writer, reader = opened(registry.messenger, door.port, timeout=0.5), opened(registry.messenger, server)
        door.cut_after(5000, "to_server")
        batch = [("inbox", b"%d " % n + bytes(100)) for n in range(100)]
        with contextlib.suppress(Unreachable):
            writer.write(batch)
        found = dict.fromkeys(frames(reader, "inbox", 100))
        assert list(found) == [frame for _, frame in batch]


def test_frames_go_to_the_next_server_and_are_read_from_all(two, opened):
    writer, reader = opened(registry.messenger, *two), opened(registry.messenger, *two)
    channels = [f"inbox{n}" for n in range(8)]
    cursors = dict.fromkeys(channels, b"")
    found = {channel: [] for channel in channels}

    def write(start):
        writer.write([(channel, b"%d" % n) for n in range(start, start + 10) for channel in channels])

    def gather(upto):
        deadline = time.monotonic() + WAIT
        while any(len(frames) < upto for frames in found.values()):
            assert time.monotonic() < deadline
            for message in reader.read(cursors, limit=100, wait=1).messages:
                cursors[message.channel] = message.cursor
                found[message.channel].append(message.frame)

    write(0)
    gather(10)
    two[0].kill()
    write(10)
    gather(20)
    two[0].start()
    write(20)
    two[1].kill()
    write(30)  # what the second had and nobody read is gone: a hole
    two[1].start()
    write(40)
    deadline = time.monotonic() + WAIT
    while not all(frames[-1:] == [b"49"] for frames in found.values()):
        assert time.monotonic() < deadline
        with contextlib.suppress(Unreachable):
            for message in reader.read(cursors, limit=100, wait=1).messages:
                cursors[message.channel] = message.cursor
                found[message.channel].append(message.frame)
    for frames_ in found.values():
        numbers = [int(frame) for frame in frames_]
        assert numbers[:20] == list(range(20))
        assert numbers == sorted(set(numbers))


def test_a_frozen_server_delays_a_writer_once(two, opened):
    writer = opened(registry.messenger, *two, timeout=2.0)
    two[0].freeze()
    try:
        writer.write([(f"channel{n}", b"x") for n in range(10)])
        began = time.monotonic()
        writer.write([(f"channel{n}", b"y") for n in range(10)])
        assert time.monotonic() - began < 1.9
    finally:
        two[0].thaw()


def test_a_channel_that_nobody_reads_is_swept(server, opened):
    writer, reader = opened(registry.messenger, server), opened(registry.messenger, server)
    reader.read({"live": b""}, limit=1, wait=0)
    writer.write([("dead", bytes(1000))] * 300 + [("live", b"a")])
    opened(registry.engine, server).submit(parcels(1), None)
    assert writer.sweep(3600) == 0
    assert writer.sweep(0) == 1
    with GearmanAdmin(server.address) as admin:
        assert sorted(admin.status()) == ["faults.c.live", "faults.q.default"]
    assert frames(reader, "live", 1) == [b"a"]


def test_a_forgotten_channel_is_gone_from_the_server(server, opened):
    writer, reader = opened(registry.messenger, server), opened(registry.messenger, server)
    writer.write([("inbox", b"%d" % n) for n in range(20)])
    assert len(reader.read({"inbox": b""}, limit=5, wait=5).messages) == 5
    reader.forget("inbox")
    with GearmanAdmin(server.address) as admin:
        deadline = time.monotonic() + WAIT
        while "faults.c.inbox" in admin.status():
            assert time.monotonic() < deadline
            reader.forget("inbox")
    writer.write([("inbox", b"new")])
    assert frames(reader, "inbox", 1) == [b"new"]


def test_forgetting_while_another_thread_reads(server, opened):
    writer, reader = opened(registry.messenger, server), opened(registry.messenger, server)
    writer.write([("inbox", b"a")])
    (message,) = reader.read({"inbox": b""}, limit=1, wait=5).messages
    thread = threading.Thread(target=lambda: reader.read({"inbox": message.cursor}, limit=1, wait=WAIT))
    thread.start()
    with GearmanAdmin(server.address) as admin:
        reader.forget("inbox", message.cursor)
        deadline = time.monotonic() + WAIT
        while admin.status()["faults.c.inbox"].total:
            assert time.monotonic() < deadline
        assert thread.is_alive()
    reader.wake()
    thread.join(WAIT)
    assert not thread.is_alive()


def test_a_reader_that_never_forgets_holds_no_more_than_its_window(server, opened):
    writer, reader = opened(registry.messenger, server), opened(registry.messenger, server)
    cursors = {"inbox": b""}
    found = []
    for start in range(0, 3000, 500):
        writer.write([("inbox", b"%d" % n) for n in range(start, start + 500)])
        found += frames(reader, "inbox", 500, cursors=cursors)
    assert found == [b"%d" % n for n in range(3000)]
    with GearmanAdmin(server.address) as admin:
        assert admin.status()["faults.c.inbox"].running <= 1000


def test_a_child_that_is_forked_has_connections_of_its_own(server, opened):
    queue, messenger = opened(registry.engine, server), opened(registry.messenger, server)
    queue.submit(parcels(1), None)
    (lease,) = queue.take(["default"], limit=1, wait=5)
    child = os.fork()
    if not child:
        code = 1
        try:
            queue.settle([(lease, DONE)])  # not the child's
            queue.submit(parcels(1, 1), None)
            messenger.write([("inbox", b"child")])
            queue.close()
            messenger.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert queue.state(["task0", "task1"]) == {"task0": "running", "task1": "queued"}
    messenger.write([("inbox", b"parent")])
    assert frames(messenger, "inbox", 2) == [b"child", b"parent"]
    queue.settle([(lease, DONE)])
    drain(queue, 1)


def test_every_error_is_one_of_ours(server, opened):
    """A door that garbles one byte after the other: no call hangs, or fails with anything else."""
    with Door(server.port) as door:
        queue = registry.engine(f"gearman://127.0.0.1:{door.port}/faults", timeout=0.2)
        messenger = registry.messenger(f"gearman://127.0.0.1:{door.port}/faults", timeout=0.2)
        for index in range(0, 60, 4):
            door.corrupt(index, "to_client" if index % 8 else "to_server")
            for call in (
                queue.open,
                lambda n=index: queue.submit(parcels(1, n), None),
                lambda: queue.settle([(lease, DONE) for lease in queue.take(["default"], limit=5, wait=0.05)]),
                messenger.open,
                lambda: messenger.write([("inbox", b"x")]),
                lambda: messenger.read({"inbox": b""}, limit=5, wait=0.05),
            ):
                with contextlib.suppress(AssistantError):
                    call()
        queue.close()
        messenger.close()
