"""The Gearman client and worker when servers die and networks fail, or when something else answers on the port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from revolve_assistant.errors import ClientClosed, ProtocolError, Unreachable
from revolve_assistant.protocols.gearman import GearmanAdmin, GearmanClient, GearmanWorker
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Gearmand, free_port

WAIT = 20.0  # seconds that nothing here should take


def upper(job):
    return job.workload.upper()


def test_client_and_worker_reconnect_after_a_restart(server, client, working):
    with working([server.address], {"upper": upper}):
        assert client.submit("upper", b"a").result(WAIT) == b"A"
        lost = client.submit("nobody", b"")
        kept = client.submit("nobody", b"", background=True)
        server.kill()
        with pytest.raises(Unreachable, match=rf"127.0.0.1:{server.port}.*{lost.handle} of nobody"):
            lost.result(WAIT)
        with pytest.raises(Unreachable, match=f"127.0.0.1:{server.port}: connection refused"):
            client.submit("upper", b"b", timeout=0.3)
        server.start()
        assert client.submit("upper", b"c").result(WAIT) == b"C"
        assert client.status(kept).known is False


def test_the_next_server_takes_over(need):
    need("gearmand")
    with Gearmand() as one, Gearmand() as two, GearmanClient([one.address, two.address]) as client:
        assert client.server is None
        job = client.submit("f", background=True)
        assert client.server == one.address
        one.kill()
        assert client.submit("f", background=True).handle
        assert client.server == two.address
        one.start()
        client.submit("f", background=True)
        assert client.server == two.address  # until it fails
        assert client.status(job).known is False  # asked of the first
        two.kill()
        assert client.submit("f", background=True).handle
        assert client.server == one.address


def test_an_absent_server_is_named_in_time():
    port = free_port()
    start = time.monotonic()
    words = f"127.0.0.1:{port}.*refused.*localhost:{port}.*refused"
    with (
        GearmanClient([("127.0.0.1", port), ("localhost", port)], timeout=0.3) as client,
        pytest.raises(Unreachable, match=words),
    ):
        client.echo()
    with GearmanAdmin(("127.0.0.1", port)) as admin, pytest.raises(Unreachable, match=f"{port}.*refused"):
        admin.version()
    with GearmanWorker([("127.0.0.1", port)]) as worker:
        worker.register("f", upper)
        assert worker.work(timeout=0.2) == 0
    assert time.monotonic() - start < WAIT


@contextlib.contextmanager
def stranger(answer):
    """A server of something else; `answer(connection)` serves each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    with one, contextlib.suppress(OSError):
                        answer(one)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT)


def echo(one):
    while data := one.recv(1000):
        one.sendall(data)


def greet(one):
    one.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    one.recv(1000)


def silent(one):
    while one.recv(1000):
        pass


def silent_about(one):
    one.recv(1000)
    one.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (echo, ProtocolError, "echo.*is a Gearman server on this port"),
        (greet, ProtocolError, "another protocol.*SSH-2.0"),
        (silent_about, ProtocolError, "another protocol.*HTTP"),
        (silent, Unreachable, "does not answer Gearman's greeting"),
    ],
)
def test_another_protocol_on_the_port_is_recognised(answer, kind, words, caplog):
    with stranger(answer) as address:
        with GearmanClient([address], timeout=0.5) as client, pytest.raises(kind, match=words) as caught:
            client.submit("f")
        assert f"127.0.0.1:{address[1]}" in str(caught.value)
        with GearmanWorker([address], timeout=0.2) as worker:
            worker.register("f", upper)
            assert worker.work(timeout=0.5) == 0
        assert f"127.0.0.1:{address[1]}" in caplog.text
        if answer is not silent:
            with GearmanAdmin(address, timeout=1) as admin, pytest.raises(ProtocolError, match=str(address[1])):
                admin.version()


def test_a_frozen_server_costs_the_deadline_and_no_more(server):
    with (
        GearmanClient(server.address, connect_timeout=0.2) as client,
        GearmanAdmin(server.address, timeout=0.2) as admin,
    ):
        client.echo()
        server.freeze()
        start = time.monotonic()
        for call in (lambda: client.echo(timeout=0.2), lambda: client.submit("f", timeout=0.2), admin.version):
            with pytest.raises(Unreachable, match=str(server.port)):
                call()
        assert time.monotonic() - start < 5
        server.thaw()
        assert client.echo(b"x") == b"x"


def test_a_thread_stuck_in_a_large_send_holds_up_nobody(server):
    with Door(server.port) as door, GearmanClient([(door.host, door.port)], timeout=WAIT) as client:
        client.echo()
        server.freeze()
        sent = []
        thread = threading.Thread(target=lambda: sent.append(client.echo(bytes(32 << 20)) == bytes(32 << 20)))
        thread.start()
        assert door.wait_for(lambda door: door.carried("to_server") > 1 << 20, WAIT)
        start = time.monotonic()
        with pytest.raises(Unreachable, match="1 of 1 requests unanswered"):
            client.echo(timeout=0.1)
        assert time.monotonic() - start < 5
        server.thaw()
        assert client.echo(b"x") == b"x"
        thread.join(WAIT)
        assert sent == [True]
        assert door.accepted == 1


def test_a_wait_without_end_notices_a_dead_network(server):
    with Door(server.port) as door, GearmanClient([(door.host, door.port)], heartbeat=0.1, timeout=0.3) as client:
        job = client.submit("f")
        door.swallow()
        with pytest.raises(Unreachable, match="has not answered for"):
            job.result()
        door.heal()
        assert client.echo(b"x") == b"x"


def test_a_worker_notices_a_dead_network(server, client, working):
    with Door(server.port) as door:
        options = {"heartbeat": 0.1, "timeout": 0.3}
        with working([(door.host, door.port)], {"upper": upper}, **options):
            assert client.submit("upper", b"a").result(WAIT) == b"A"
            door.swallow()
            assert door.wait_for(lambda door: door.accepted > 1, WAIT)
            door.heal()
            assert client.submit("upper", b"b").result(WAIT) == b"B"


def test_single_bytes_on_the_wire_change_nothing(server, working):
    with Door(server.port) as door:
        door.slice(1, pause=0.0)
        address = (door.host, door.port)
        with working([address], {"upper": upper}), GearmanClient([address]) as client:
            job = client.submit("upper", b"slow and steady")
            assert job.result(WAIT) == b"SLOW AND STEADY"
            assert len(client.submit_many(("other", b"%d" % i) for i in range(20))) == 20
            with GearmanAdmin(address) as admin:
                assert admin.status()["other"] == (20, 0, 0)


@pytest.mark.parametrize("count", [1, 13, 30, 60])
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_a_cut_inside_a_packet_is_mended_by_asking_again(server, count, direction):
    with Door(server.port) as door, GearmanClient([(door.host, door.port)]) as client:
        client.echo()
        door.cut_after(count, direction)
        assert client.echo(bytes(100)) == bytes(100)
        assert door.accepted == 2
        door.cut_after(count, direction)
        jobs = client.submit_many(("f", b"%d" % i, f"u{i}") for i in range(100))
        assert len({job.unique for job in jobs}) == 100
        with GearmanAdmin(server.address) as admin:
            assert admin.status()["f"] == (100, 0, 0)  # the unique keeps the second sending from being a second job


def test_a_cut_while_a_job_runs_fences_its_worker(server, client, working, until):
    running, go, said = threading.Event(), threading.Event(), []

    def work(job):
        if not said:
            running.set()
            assert go.wait(WAIT)
            said.append([job.data(b"late"), job.complete(b"late")])
        return b"again"

    with Door(server.port) as door, working([(door.host, door.port)], {"f": work}):
        job = client.submit("f")
        assert running.wait(WAIT)
        door.cut()
        with GearmanAdmin(server.address) as admin:
            until(lambda: admin.status()["f"].running == 0)
        go.set()
        assert job.result(WAIT) == b"again"
    assert said == [[False, False]]


def test_a_closed_client_loses_its_jobs_and_says_so(server, client):
    job = client.submit("f")
    client.close()
    with pytest.raises(Unreachable, match="closed its connection"):
        job.result()
    with pytest.raises(ClientClosed):
        client.submit("f")
