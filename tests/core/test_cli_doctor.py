"""`revolve doctor`: one sentence for each thing that is wrong, and what to do about it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time

import pytest

from revolve_assistant import Client
from revolve_assistant.cli import main
from revolve_assistant.protocols.gearman import GearmanAdmin, GearmanClient, GearmanWorker
from revolve_assistant.providers import checking
from revolve_assistant.providers.diagnosis import diagnose
from revolve_assistant.testing import managing, messenger, queue
from revolve_assistant.testing.iron import IronServer
from revolve_assistant.testing.servers import Gearmand, Redis
from revolve_assistant.worker import Worker

WAIT = 20.0  # seconds that nothing here should take


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("REVOLVE_SECRET", "a secret of 32 characters or more for tests")


@pytest.fixture
def server(need):
    need("gearmand")
    with Gearmand() as server:
        yield server


def url(server, rest=""):
    return f"gearman://127.0.0.1:{server.port}{rest}"


def wrong(address):
    """(subject, text) of all that is wrong."""
    return [(each.subject, each.text) for each in diagnose(address) if each.level == "wrong"]


def texts(address, subject=""):
    return [each.text for each in diagnose(address) if each.subject.startswith(subject)]


def until(condition):
    deadline = time.monotonic() + WAIT
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline
        pause.wait(0.01)
    return value


@contextlib.contextmanager
def answering(data):
    """A program that says this to everybody; None: nothing at all. Gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def speak():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                if data is not None:
                    with contextlib.suppress(OSError):
                        connection.recv(100)
                        connection.sendall(data)

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT)
            for connection in held:
                connection.close()


# ---------------------------------------------------------------- the command


def test_a_sound_server(server, capsys):
    assert main(["doctor", url(server)]) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    assert "gearmand 1." in out
    assert "WRONG" not in out
    assert "it keeps its queue in memory" in out


def test_one_sentence_says_what_is_wrong(server, capsys):
    port = server.port
    server.kill()
    assert main(["doctor", url(server)]) == 1
    out, errors = capsys.readouterr()
    assert errors == (
        f"revolve doctor: 127.0.0.1:{port}: no connection to 127.0.0.1:{port}: connection refused, nothing listens "
        f"there; start it (gearmand -p {port}), or correct host and port\n"
    )
    assert errors.partition(": ")[2].strip().partition(": ")[2] in out


def test_json(server, capsys):
    with GearmanClient([server.address]) as client:
        client.submit(b"odd\xff\x9b", b"", background=True)
        assert main(["doctor", "--json", url(server)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {each["level"] for each in found} == {"ok", "note", "wrong"}
    (row,) = [each for each in found if each["level"] == "wrong"]
    assert row["data"] == {"server": f"127.0.0.1:{server.port}", "function": "odd\udcff\udc9b", "waiting": 1,
                           "running": 0, "workers": 0}  # fmt: skip


def test_what_strangers_call_their_functions_is_no_harm_to_a_terminal(server, capsys):
    with GearmanClient([server.address]) as client:
        client.submit("odd\x9b31m", b"", background=True)
        main(["doctor", url(server)])
    out, errors = capsys.readouterr()
    assert "odd\\x9b31m" in out
    assert "\x9b" not in out + errors


def test_the_address_may_be_in_the_environment(server, capsys, monkeypatch):
    monkeypatch.setenv("REVOLVE_URL", url(server))
    assert main(["doctor"]) == 0
    monkeypatch.delenv("REVOLVE_URL")
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 2
    assert "REVOLVE_URL" in capsys.readouterr().err


def test_check_runs_the_kit(capsys, monkeypatch):
    def run_checks(kind, make, *, excused, heard):
        made = make()
        assert type(made).__name__ == kind.capitalize()
        heard("order", "ok")
        heard("wait", "skipped: why")
        if kind == "queue":
            heard("close", "FAILED: \x1b[31mno")

    monkeypatch.setattr("revolve_assistant.testing.run_checks", run_checks)
    assert main(["doctor", "--check", "memory://"]) == 1
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "memory://: queue and messenger, under names of its own",
        "queue order ok",
        "queue wait skipped why",
        "queue close FAILED",
        " promised: `close` may be called twice, and unopened; afterwards calls raise ClientClosed; the tasks stay.",
        " found: \\x1b[31mno",
        "messenger order ok",
        "messenger wait skipped why",
        "queue: 1 ok, 1 skipped, 1 failed, in 0 s",
        "messenger: 1 ok, 1 skipped, 0 failed, in 0 s",
    ]
    assert main(["doctor", "--check", "--json", "memory://"]) == 1
    first = json.loads(capsys.readouterr().out)[0]
    assert (first["kind"], first["check"], first["outcome"]) == ("queue", "order", "ok")
    assert first["promise"] == "Tasks of one queue are taken in the order of their submission."


def test_check_says_in_a_line_that_no_server_answers(capsys):
    assert main(["doctor", "--check", "redis://127.0.0.1:1"]) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"revolve doctor: .*127\.0\.0\.1:1.*\n", errors)
    assert main(["doctor", "--check", "process://"]) == 2
    assert "there is nothing to check" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_gearman_passes_the_kit_by_command_and_keeps_nothing_of_it(server, capsys):
    assert main(["doctor", "--check", url(server, "/mine")]) == 0
    out = capsys.readouterr().out
    assert "namespace of its own, check-" in out
    assert len(re.findall(r"^(?:queue|messenger): \d+ ok, \d+ skipped, 0 failed", out, re.M)) == 2
    with GearmanAdmin(server.address) as admin:
        assert [name for name, status in admin.status().items() if status.total] == []


def test_of_redis_it_keeps_nothing_either(need, capsys, monkeypatch):
    need("redis-server")
    monkeypatch.setattr("revolve_assistant.testing.QUEUE_CHECKS", [queue.check_bury, managing.check_rules])
    monkeypatch.setattr("revolve_assistant.testing.MESSENGER_CHECKS", [messenger.check_order])
    with Redis() as redis:
        assert main(["doctor", "--check", redis.url]) == 0
        out = capsys.readouterr().out
        assert "queue: 2 ok, 0 skipped, 0 failed" in out
        namespace = re.search(r"own, (check-\w+)", out)[1]
        with Client(f"{redis.url}?namespace={namespace}") as client:
            assert (client.counts(), client.buried(), client.rules()) == ([], [], [])


def test_of_ironmq_it_keeps_no_queue(capsys, monkeypatch):
    monkeypatch.setattr("revolve_assistant.testing.QUEUE_CHECKS", [queue.check_bury])
    monkeypatch.setattr("revolve_assistant.testing.MESSENGER_CHECKS", [messenger.check_order])
    with IronServer() as iron:
        assert main(["doctor", "--check", iron.url("mine")]) == 0
        out = capsys.readouterr().out
        assert "queue: 1 ok, 0 skipped, 0 failed" in out
        namespace = re.search(r"own, (check-\w+)", out)[1]
        assert main(["doctor", iron.url(namespace)]) == 0
        assert "no queue of the namespace is there" in capsys.readouterr().out


def test_what_failing_checks_leave_is_removed_too(monkeypatch):
    """Tasks that wait or are buried, and channels, of a queue in use: the rest of it stays."""
    from revolve_assistant.engine import Outcome, Parcel
    from revolve_assistant.providers import memory
    from revolve_assistant.testing.tasks import NOBODY

    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(contextlib.closing(memory.Queue("shared")))
        theirs.open()
        theirs.submit([Parcel("theirs", queue="default")], NOBODY)
        letters = stack.enter_context(contextlib.closing(memory.Messenger("shared")))
        letters.open()

        def run_checks(kind, make, *, excused, heard):
            made = stack.enter_context(contextlib.closing(make()))
            made.open()
            if kind == "messenger":
                made.keep(["letters"], seconds=60.0, cap=1000)
                made.write([("letters", b"one")])
                raise KeyboardInterrupt
            made.submit([Parcel(f"t{n}", queue="mine") for n in range(3)], NOBODY)
            made.settle([(made.take(["mine"], limit=1, wait=1.0)[0], Outcome("bury", reason="why"))])

        monkeypatch.setattr("revolve_assistant.testing.run_checks", run_checks)
        with pytest.raises(KeyboardInterrupt):
            checking.check(checking.plan("memory://shared"))
        assert [(each.queue, each.pending, each.buried) for each in theirs.counts()] == [("default", 1, 0)]
        assert letters.read({"letters": b""}, limit=10, wait=0.0).lost == {"letters"}


def test_several_servers_are_excused_from_what_counts_on_order():
    from revolve_assistant.providers import gearman
    from revolve_assistant.providers.url import Url

    assert gearman.excused(Url.parse("gearman://a")) == {}
    assert "order" in gearman.excused(Url.parse("gearman://a,b"))


# ---------------------------------------------------------------- the address


def test_addresses_that_cannot_be():
    assert "did you mean 'gearman'" in wrong("gearmn://x")[0][1]
    assert "port" in wrong("gearman://x:port")[0][1]
    assert "timeout" in wrong("gearman://127.0.0.1?timout=3")[0][1]
    assert wrong("no address at all")


def test_a_provider_without_a_doctor_is_opened():
    assert wrong("memory://") == []
    assert texts("memory://", "queue") == ["memory:// opens"]
    assert wrong("process://") == []


def test_the_secret(monkeypatch, tmp_path):
    assert "REVOLVE_SECRET signs" in texts("memory://", "secret")[0]
    monkeypatch.delenv("REVOLVE_SECRET")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert "make itself" in texts("memory://", "secret")[0]
    assert list(tmp_path.iterdir()) == []  # it looks, and makes nothing
    found = dict(wrong("gearman://192.0.2.1?timeout=0.05"))
    assert "revolve secret new" in found["secret"]


# ---------------------------------------------------------------- gearmand


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"VERSION 1.6.18\r\n", "memcached"),
        (b"-ERR unknown command 'version'\r\n", "Redis"),
        (b"UNKNOWN_COMMAND\r\n", "beanstalkd"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH server"),
        (b"\xff\xfe something\n", "no gearmand answers there"),
    ],
)
def test_another_program_on_the_port(said, kind):
    with answering(said) as port:
        ((_, text),) = wrong(f"gearman://127.0.0.1:{port}")
    assert kind in text
    assert "correct the port" in text


def test_a_program_that_says_nothing():
    with answering(None) as port:
        ((_, text),) = wrong(f"gearman://127.0.0.1:{port}?timeout=0.2")
    assert "does not answer as gearmand does" in text


def test_a_server_that_hangs(server):
    server.freeze()
    ((subject, text),) = wrong(url(server, "?timeout=0.2"))
    assert subject == f"127.0.0.1:{server.port}"
    assert "hangs" in text
    server.thaw()


def test_each_of_several_servers(server):
    with Gearmand() as other:
        both = f"gearman://127.0.0.1:{server.port},127.0.0.1:{other.port}"
        assert wrong(both) == []
        other.kill()
        ((subject, _),) = wrong(both)
        assert subject == f"127.0.0.1:{other.port}"


def test_a_stored_queue(tmp_path, need):
    need("gearmand")
    with Gearmand("--queue-type=libsqlite3", f"--libsqlite3-db={tmp_path}/queue") as server:
        assert "it stores its queue (libsqlite3), so that tasks outlive it" in texts(url(server))


def test_tasks_without_a_worker(server):
    with Client(url(server)) as client:
        waiting = [
            client.options(queue="mails-é", priority=3).submit(len, ""),
            client.options(queue="mails-é", priority=-3).submit(len, ""),
            client.options(delay=3600).submit(len, ""),
        ]
        for task in waiting:
            task.queued(WAIT)
        found = dict(wrong(url(server)))
        assert found == {
            "queue mails-é": "2 tasks waiting, 0 running, 0 workers: nobody takes them; start one: revolve worker "
            f"{url(server)} -q mails-é",
            "delayed": "1 task waiting for their time: nobody moves them when it comes; start a worker: revolve worker "
            f"{url(server)}",
        }
        with Worker(url(server), queues="mails-é", concurrency=1) as worker:
            assert worker.wait_ready(WAIT)
            assert [task.result(WAIT) for task in waiting[:2]] == [0, 0]
            assert wrong(url(server)) == []


def test_workers_and_what_they_serve(server):
    with Worker(url(server, "/space"), concurrency=1, queues="a,b", expose={"reverse": "app:f"}) as worker:
        assert worker.wait_ready(WAIT)
        with GearmanAdmin(server.address) as admin:
            until(lambda: any(name.startswith("space.c.") for name in admin.status()))
        found = texts(url(server, "/space"), "worker")
        assert f"{worker.name} at 127.0.0.1: channels, function reverse, queue a, queue b" in found
        assert texts(url(server, "/space"), "function reverse") == ["0 jobs waiting, 0 running, 1 worker"]
        assert texts(url(server, "/space"), "channels") == ["1, of which 1 are read now; 0 messages in them"]
        assert texts(url(server), "queues")[0].startswith("no queue of the namespace assistant")
        assert texts(url(server), "namespace")[0].startswith("space is here too")


def test_buried_tasks(server):
    with GearmanClient([server.address]) as client:
        client.submit("assistant.q.default", b"nonsense", background=True)
        with Worker(url(server), concurrency=1) as worker:
            assert worker.wait_ready(WAIT)
            until(lambda: texts(url(server), "buried"))
    (text,) = texts(url(server), "buried")
    assert text.startswith("1 task of the queue default buried")
    assert wrong(url(server)) == []


def test_other_peoples_functions(server):
    with GearmanClient([server.address]) as client:
        for number in range(25):
            client.submit(f"f{number}", b"", background=True)
        assert len(wrong(url(server))) == 20
        assert texts(url(server), "functions") == ["5 more of other programs"]
        with GearmanWorker([server.address], client_id="theirs") as worker:
            for number in range(25):
                worker.register(f"f{number}", lambda job: b"")
            thread = threading.Thread(target=worker.work)
            thread.start()
            try:
                until(lambda: wrong(url(server)) == [])
                (text,) = texts(url(server), "worker")
            finally:
                worker.stop()
                thread.join(WAIT)
    assert text.startswith("theirs at 127.0.0.1: function f0, function f1,")
