"""`client.submit("name", …)`: calls of functions that other people's workers serve, and what may go wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
import warnings

import pytest

from revolve_assistant import Client
from revolve_assistant.caller.foreign import workload
from revolve_assistant.errors import (
    ClientClosed,
    NotCarriable,
    ProtocolError,
    TaskCancelled,
    TaskLost,
    TaskTimeout,
    Unreachable,
    Unsupported,
    UsageError,
)
from revolve_assistant.protocols.gearman import GearmanAdmin, GearmanWorker
from revolve_assistant.providers.gearman import calling
from revolve_assistant.testing import Door
from revolve_assistant.testing.servers import Gearmand

WAIT = 20.0  # seconds that nothing here should take


@pytest.fixture
def server(need):
    need("gearmand")
    with Gearmand() as server:
        yield server


@contextlib.contextmanager
def python_worker(servers, functions):
    with GearmanWorker(servers) as worker:
        for name, function in functions.items():
            worker.register(name, function)
        thread = threading.Thread(target=worker.work)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(WAIT)


def url(*servers):
    return "gearman://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)


def until(condition):
    """Wait for what only somebody else can say."""
    deadline = time.monotonic() + WAIT
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline
        pause.wait(0.01)
    return value


@pytest.mark.parametrize(
    ("args", "kwargs", "data"),
    [
        ((b"\0\xff",), {}, b"\0\xff"),
        ((bytearray(b"x"),), {}, b"x"),
        (("ä",), {}, "ä".encode()),
        ((), {}, b"[]"),
        ((1, "ä", None, True, 2.5, [1, (2,)], {"k": {}}), {}, '[1,"ä",null,true,2.5,[1,[2]],{"k":{}}]'.encode()),
        ((), {"a": 1, "b": "x"}, b'{"a":1,"b":"x"}'),
        ((1 << 70,), {}, b"[1180591620717411303424]"),
    ],
)
def test_workloads(args, kwargs, data):
    assert workload("f", args, kwargs) == data


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "part"),
    [
        ((1,), {"a": 2}, UsageError, "not both"),
        ((b"x", b"y"), {}, NotCarriable, "argument 1 of f is a bytes"),
        ((1, {"k": [object()]}), {}, NotCarriable, r"argument 2 of f\['k'\]\[0\] is a object"),
        ((), {"a": {1: 2}}, NotCarriable, "argument a of f has the key 1"),
        ((float("nan"),), {}, NotCarriable, "the number nan"),
        (("\ud800",), {}, NotCarriable, "UTF-8"),
        ((["\ud800"],), {}, NotCarriable, r"argument 1 of f\[0\]"),
        ((set(),), {}, NotCarriable, "a set"),
    ],
)
def test_what_json_cannot_hold_is_named(args, kwargs, error, part):
    with pytest.raises(error, match=part):
        workload("f", args, kwargs)


def test_a_list_that_holds_itself():
    endless = []
    endless.append(endless)
    with pytest.raises(NotCarriable, match="nested"):
        workload("f", (endless,), {})


@pytest.mark.parametrize("option", [{"retries": 1}, {"stall": 1.0}, {"delay": 1.0}, {"queue": "x"}, {"capture": True}])
def test_options_that_nobody_there_knows(option):
    with Client("gearman://127.0.0.1:1") as client, pytest.raises(UsageError, match=next(iter(option))):
        client.options(**option).submit("f", b"")


def test_many_calls_at_once(server):
    with python_worker([server.address], {"echo": lambda job: job.workload}), Client(url(server)) as client:
        calls = [client.submit("echo", b"%d" % n) for n in range(3000)]
        calls[0].queued(WAIT)
        assert [int(call.result(WAIT)) for call in calls] == list(range(3000))
        assert client._engine.calls._calls == {}
        assert client._engine.queue._calling._calls == {}


def test_calls_from_asyncio(server):
    async def main():
        async with Client(url(server)) as client:
            task = client.submit("echo", "hällo")
            await task.queued(WAIT)
            return await task, [event.name async for event in task.events()]

    with python_worker([server.address], {"echo": lambda job: job.workload}):
        assert asyncio.run(main()) == ("hällo".encode(), ["started", "succeeded"])


def test_priority_and_unique(server):
    order = []
    with Client(url(server)) as client:
        low = client.options(priority=-1).submit("note", b"low")
        low.queued(WAIT)
        high = client.options(priority=1, unique="k").submit("note", b"high")
        high.queued(WAIT)
        assert client.options(unique="k").submit("note", b"other") is high
        with python_worker([server.address], {"note": lambda job: order.append(job.workload)}):
            low.result(WAIT)
            high.result(WAIT)
    assert order == [b"high", b"low"]


def test_a_call_that_has_not_started_is_taken_back(server):
    ran = []
    with Client(url(server)) as client:
        task = client.submit("note", b"cancelled")
        task.queued(WAIT)
        assert task.cancel() is True
        with pytest.raises(TaskCancelled) as caught:
            task.result(WAIT)
        assert "unstarted" in str(caught.value)
        late = client.options(timeout=0.05).submit("note", b"too late")
        with pytest.raises(TaskTimeout, match=r"note was not done within timeout=0\.05 s; it had not started"):
            late.result(WAIT)
        with GearmanAdmin(server.address) as admin:
            until(lambda: all(job.ignored for job in admin.jobs()))
        with python_worker([server.address], {"note": lambda job: ran.append(job.workload)}):
            client.submit("note", b"last").result(WAIT)
    assert ran == [b"last"]


def test_a_call_that_runs_is_let_go(server):
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def work(job):
        begun.set()
        go.wait(WAIT)
        job.data(b"nobody hears this")
        done.set()

    with python_worker([server.address], {"work": work}), Client(url(server)) as client:
        task = client.submit("work", b"")
        assert begun.wait(WAIT)
        until(lambda: task.state == "running")  # found out by asking: it has not said a word
        assert task.cancel() is True
        with pytest.raises(TaskCancelled, match="let go"):
            task.result(WAIT)
        begun.clear()
        slow = client.options(timeout=0.5).submit("work", b"")
        go.set()
        assert done.wait(WAIT)
        slow.exception(WAIT)
        assert [event.name for event in task.events()] == ["started", "cancelled"]
        assert client.submit("work", b"").result(WAIT) == b""


def test_messages_and_stacks_are_not_for_them(server):
    begun, go = threading.Event(), threading.Event()

    def work(job):
        job.status(0, 1)
        begun.set()
        go.wait(WAIT)

    with python_worker([server.address], {"work": work}), Client(url(server)) as client:
        task = client.submit("work", b"")
        assert begun.wait(WAIT)
        until(task.running)
        with pytest.raises(Unsupported):
            task.send("word")
        with pytest.raises(Unsupported):
            client.stack(task)
        go.set()
        task.result(WAIT)


def test_a_server_that_dies_takes_its_calls_along(server):
    begun, go = threading.Event(), threading.Event()

    def work(job):
        begun.set()
        go.wait(WAIT)

    with python_worker([server.address], {"work": work}), Client(url(server) + "?timeout=1") as client:
        task = client.submit("work", b"")
        assert begun.wait(WAIT)
        server.kill()
        with pytest.raises(TaskLost, match="nobody hears work any more"):
            task.result(WAIT)
        assert task.state == "lost"
        waiting = client.submit("work", b"")
        with pytest.raises(Unreachable):
            waiting.queued(0.2)
        go.set()
        server.start()
        assert waiting.result(WAIT) == b""


def test_a_server_that_hangs_is_noticed(server, monkeypatch):
    monkeypatch.setattr("revolve_assistant.providers.lines.HEARTBEAT", 0.2)
    with Client(url(server) + "?timeout=0.5") as client:
        task = client.submit("nobody", b"")
        task.queued(WAIT)
        server.freeze()
        with pytest.raises(TaskLost, match="has not answered"):
            task.result(WAIT)
        server.thaw()


def test_another_server_takes_over(need, server):
    with (
        Gearmand() as other,
        python_worker([other.address], {"echo": lambda job: job.workload}),
        Client(url(server, other) + "?timeout=1") as client,
    ):
        task = client.submit("echo", b"first")
        task.queued(WAIT)
        server.kill()
        with pytest.raises(TaskLost):
            task.result(WAIT)
        assert client.submit("echo", b"second").result(WAIT) == b"second"


def test_what_was_not_acknowledged_goes_to_the_next_server(server):
    with (
        Gearmand() as other,
        Door(server.port) as door,
        python_worker([other.address], {"echo": lambda job: job.workload}),
        Client(url(door, other) + "?timeout=1") as client,
    ):
        task = client.submit("warm", b"")
        task.queued(WAIT)
        door.swallow("to_client")
        calls = [client.submit("echo", b"%d" % n) for n in range(5)]
        assert [call.result(WAIT) for call in calls] == [b"0", b"1", b"2", b"3", b"4"]
        with pytest.raises(TaskLost):
            task.result(WAIT)


def test_patience_ends(server, caplog):
    server.kill()
    with Client(url(server) + "?timeout=0.2", patience=0.3) as client:
        task = client.submit("echo", b"")
        with pytest.raises(Unreachable, match="nothing listens there"):
            task.result(WAIT)
        server.start()
        with python_worker([server.address], {"echo": lambda job: job.workload}):
            until(task.done)
            assert task.result(WAIT) == b""
    assert any("answers again" in record.message for record in caplog.records)


def test_a_stranger_on_the_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak():
            for _ in range(100):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        with Client(f"gearman://127.0.0.1:{listener.getsockname()[1]}") as client:
            error = client.submit("echo", b"").exception(WAIT)
        assert isinstance(error, ProtocolError)
        assert "is a Gearman server on this port" in str(error)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT)


def test_a_function_that_nobody_serves_is_said(server, caplog, monkeypatch):
    monkeypatch.setattr(calling, "_LONELY", 0.1)
    with Client(url(server)) as client, caplog.at_level(logging.WARNING):
        client.submit("nobody", b"")
        client.submit("nobody", b"")
        until(lambda: [r for r in caplog.records if "serves the function 'nobody'" in r.getMessage()])
    assert len([r for r in caplog.records if "nobody" in r.getMessage() and "serves" in r.getMessage()]) == 1


def test_leaving_lets_go(server):
    with Client(url(server)) as client:
        task = client.submit("nobody", b"")
        task.queued(WAIT)
    with pytest.raises(ClientClosed):
        task.result(WAIT)
    with GearmanAdmin(server.address) as admin:  # what waits in the foreground goes with its client
        until(lambda: all(job.ignored for job in admin.jobs()))


def test_a_forked_child_calls_by_itself(server):
    with python_worker([server.address], {"echo": lambda job: job.workload}), Client(url(server)) as client:
        assert client.submit("echo", b"parent").result(WAIT) == b"parent"
        read, write = os.pipe()
        pid = fork()
        if pid == 0:
            code = 1
            try:
                os.write(write, client.submit("echo", b"child").result(WAIT))
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        with open(read, "rb") as file:
            assert file.read() == b"child"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert client.submit("echo", b"again").result(WAIT) == b"again"


def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: this process has threads, as a server's has
        return os.fork()
