"""IronMQ when it is away, answers nonsense, loses answers, hands things out again; and a token that nobody prints."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, Worker
from revolve_assistant.caller import reckoning
from revolve_assistant.cli import main
from revolve_assistant.engine import Outcome, Parcel, Queue
from revolve_assistant.errors import Overloaded, ProtocolError, ProviderError, Unreachable, UsageError
from revolve_assistant.messenger import Messenger
from revolve_assistant.protocols.iron import mq, read
from revolve_assistant.protocols.iron.caller import Caller
from revolve_assistant.providers import registry
from revolve_assistant.providers.diagnosis import diagnose
from revolve_assistant.testing import Door
from revolve_assistant.testing.checks import Aside, entered, eventually
from revolve_assistant.testing.iron import IronServer, VirtualClock
from revolve_assistant.testing.tasks import DONE, NOBODY, submit, take

TOKEN = "a-token-that-nobody-must-see"
WAIT = 20.0  # seconds that nothing here should take
QUICK = {"timeout": 2, "patience": 0.5}
Made = Callable[..., Any]


@pytest.fixture
def iron() -> Iterator[IronServer]:
    with IronServer(token=TOKEN) as server:
        yield server


@pytest.fixture
def made() -> Iterator[Made]:
    """`made(kind, url)`: a queue or messenger, opened, and closed at the end."""
    with contextlib.ExitStack() as stack:

        def made(kind: str, url: str, **options: Any) -> Any:
            one: Any = registry.engine(url, **options) if kind == "queue" else registry.messenger(url, **options)
            stack.callback(one.close)
            one.open()
            return one

        yield made


def frames(messenger: Messenger, channel: str, count: int) -> list[bytes]:
    found: list[bytes] = []
    cursor = b""

    def look() -> bool:
        nonlocal cursor
        with contextlib.suppress(Unreachable):
            for message in messenger.read({channel: cursor}, limit=100, wait=1.0).messages:
                found.append(message.frame)
                cursor = message.cursor
        return len(found) >= count

    eventually(look, f"{count} frames", within=WAIT)
    return found


# ---------------------------------------------------------------- nothing answers, or something else


def test_absent_is_one_error_that_says_where(made):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"ironmq://p:{TOKEN}@127.0.0.1:{held.getsockname()[1]}/x?protocol=http"
        for kind in ("queue", "messenger"):
            with pytest.raises(Unreachable, match=r"no connection to IronMQ at http://127\.0\.0\.1:\d+") as caught:
                made(kind, url)
            assert TOKEN not in str(caught.value)
    with pytest.raises(Unreachable, match="no connection"):
        made("queue", f"ironmq://p:{TOKEN}@no-such-host.invalid/x")


GREETINGS: list[tuple[bytes, type[Exception]]] = [
    (b"\x00RES\x00\x00\x00\x08\x00\x00\x00\x00\r\n\r\n", ProtocolError),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>hi</html>", ProtocolError),
    (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", ProtocolError),
    (b"220 mail.example ESMTP\r\n", Unreachable),  # so far it could still become an answer
]


@pytest.mark.parametrize(("greeting", "error"), GREETINGS)
def test_another_protocol_is_named_as_such(made, greeting, error):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = server.accept()
                    one.recv(1000)
                    one.sendall(greeting)
                    one.close()

        threading.Thread(target=serve, daemon=True).start()
        url = f"ironmq://p:{TOKEN}@127.0.0.1:{server.getsockname()[1]}/x?protocol=http"
        with pytest.raises(error, match=r"is no IronMQ|failed"):
            made("messenger", url)
        with pytest.raises(Unreachable):  # TLS to what speaks none
            made("messenger", url.replace("protocol=http", "protocol=https"), timeout=2)
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        (401, ProviderError, "refuses the token for project .*check IRON_TOKEN"),
        (403, ProviderError, "does not allow"),
        (404, ProviderError, "has no"),
        (429, Overloaded, "fewer requests"),
        (503, Unreachable, "answers 503"),
        (504, Unreachable, "answers 504"),
        ("garbage", ProtocolError, "is no IronMQ: its answer to .* is no JSON"),
        ("truncated", Unreachable, "connection .* failed|is no IronMQ"),
        ("cut", Unreachable, "connection .* failed"),
        ("slow", Unreachable, "does not answer within 0.3 s"),
    ],
)
def test_every_bad_answer_is_one_clear_error_without_the_token(iron, made, fault, error, match, caplog):
    url = iron.url("x", timeout=0.3 if fault == "slow" else 2, patience=0.3)
    queue: Queue = made("queue", url)
    messenger: Messenger = made("messenger", url)
    iron.fail(fault, times=1000)
    calls: list[Callable[[], object]] = [
        lambda: queue.submit([Parcel("1", body=b"x")], NOBODY),
        lambda: queue.take(["default"], limit=1, wait=0),
        lambda: messenger.write([("c", b"x")]),
        lambda: messenger.keep(["c"], seconds=60, cap=1),
        lambda: registry.messenger(url).open(),
    ]
    if fault != 404:  # a queue that is not there is an empty one
        calls.append(lambda: messenger.read({"c": b""}, limit=1, wait=0))
    else:
        del calls[1]
    with caplog.at_level(logging.DEBUG):
        for call in calls:
            with pytest.raises(error, match=match) as caught:
                call()
            assert TOKEN not in str(caught.value)
            assert caught.value.__context__ is None or caught.value.__suppress_context__
        found = diagnose(url)
    assert found[-1].level == "wrong"
    said = caplog.text + repr(queue) + repr(messenger) + str(found) + repr(vars(queue)) + repr(vars(messenger))
    assert TOKEN not in said
    if fault == 401:
        assert sum(each.status == 401 for each in iron.seen) == len(calls) + 1  # nothing is tried again
    iron.heal()
    assert all(each.level != "wrong" for each in diagnose(url))


def test_what_passes_is_waited_for(iron, made):
    """503 and 429 for a moment, a cut connection, a server that is restarted: nobody above hears of it."""
    queue, messenger = made("queue", iron.url("x")), made("messenger", iron.url("x"))
    for fault in (503, 429, "cut", 500):
        iron.fail(fault, times=2, match="POST")
        submit(queue, Parcel(f"t.{fault}", body=b"x"))
    assert {lease.id for lease in take(queue, "default", 4, limit=4)} == {"t.503", "t.429", "t.cut", "t.500"}
    messenger.keep(["c"], seconds=60, cap=1)
    reading = entered(frames, messenger, "c", 2)
    messenger.write([("c", b"1")])
    iron.restart()
    messenger.write([("c", b"2")])
    assert reading.result(WAIT, "reading goes on") == [b"1", b"2"]


def test_a_server_that_comes_back_empty(iron, made):
    queue, messenger = made("queue", iron.url("x")), made("messenger", iron.url("x"))
    submit(queue, Parcel("gone", body=b"x"))
    messenger.keep(["c"], seconds=60, cap=1)
    iron.restart(wipe=True)
    assert dict(queue.state(["gone"])) == {"gone": "unknown"}
    waiting = entered(take, queue, "default")
    submit(queue, Parcel("new", body=b"x"))
    assert waiting.result(WAIT, "a task comes")[0].id == "new"
    reading = entered(frames, messenger, "c", 1)
    messenger.write([("c", b"new")])
    assert reading.result(WAIT, "a frame comes") == [b"new"]


def test_lines_that_are_cut_stalled_sliced_and_shut(iron, made):
    with Door(iron.port) as door:
        url = iron.url("x", port=door.port, timeout=1.0, patience=5.0)
        messenger: Messenger = made("messenger", url)
        messenger.keep(["c"], seconds=60, cap=1)
        sent = [b"%d" % n for n in range(60)]
        reading = entered(frames, messenger, "c", len(sent))
        for number, frame in enumerate(sent):
            if number % 20 == 5:
                door.cut()
            if number % 20 == 10:
                door.slice(7, pause=0.0)
            if number % 20 == 15:
                door.heal()
            with contextlib.suppress(Unreachable):
                messenger.write([("c", frame)])
        assert reading.result(WAIT, "all frames come") == sent
        door.swallow()
        with pytest.raises(Unreachable, match="does not answer within 1 s"):
            made("messenger", url)
        door.heal()
        door.shut()
        with pytest.raises(Unreachable, match="no connection"):
            made("queue", url)


# ---------------------------------------------------------------- answers that are lost, things that come again


def test_what_was_posted_twice_is_read_once_and_in_order(iron, made):
    writer, reader = made("messenger", iron.url("x")), made("messenger", iron.url("x"))
    reader.keep(["c"], seconds=60, cap=1)
    iron.fail("cut after", times=2, match="messages")
    writer.write([("c", b"%d" % n) for n in range(150)])
    writer.write([("c", b"last")])
    assert iron.queues.info("x.c.c")["total_messages"] > 151
    assert frames(reader, "c", 151) == [*(b"%d" % n for n in range(150)), b"last"]
    assert not reader.read({"c": b""}, limit=1, wait=0.0).messages[1:]
    eventually(lambda: reader.forget("c", reader.read({"c": b""}, limit=999, wait=0.1).messages[-1].cursor) is None, "")
    assert iron.queues.info("x.c.c")["size"] == 0  # the doubles are deleted too


def test_a_reservation_whose_answer_was_lost_is_waited_for(iron, made):
    """The frames in it come last, when it has ended; whoever reads gets them first, as they were written."""
    writer, reader = made("messenger", iron.url("x")), made("messenger", iron.url("x", reserve=1))
    reader.keep(["c"], seconds=60, cap=1)
    writer.write([("c", b"1"), ("c", b"2")])
    iron.fail("cut after", times=1, match="reservations")
    reading = entered(frames, reader, "c", 4)
    eventually(lambda: any(not each.status for each in iron.seen), "the answer was lost")
    writer.write([("c", b"3"), ("c", b"4")])
    assert reading.result(WAIT, "all frames come") == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("again", ["front", "back"])
def test_frames_that_come_again_are_in_order(iron, made, again):
    iron.queues.again = again
    writer, first = made("messenger", iron.url("x")), made("messenger", iron.url("x", reserve=1))
    first.keep(["c"], seconds=60, cap=1)
    writer.write([("c", b"%d" % n) for n in range(5)])
    assert len(frames(first, "c", 5)) == 5  # and dies with them
    writer.write([("c", b"%d" % n) for n in range(5, 9)])
    second = made("messenger", iron.url("x", reserve=1))
    found = frames(second, "c", 9)
    assert found[-5:] == sorted(found[-5:])
    assert sorted(found) == [b"%d" % n for n in range(9)]


def test_an_expired_lease_is_fenced(made):
    clock = VirtualClock()
    with IronServer(token=TOKEN, clock=clock) as iron:
        slow, quick = made("queue", iron.url("x")), made("queue", iron.url("x"))
        submit(slow, Parcel("1", body=b"x"))
        (lost,) = take(slow, "default")
        clock.advance(61)
        (held,) = quick.take(["default"], limit=1, wait=0)
        assert held.deliveries == 2
        slow.extend([lost])
        for outcome in (DONE, Outcome("bury", reason="no"), Outcome("release"), Outcome("release", counted=False)):
            slow.settle([(lost, outcome)])
        assert dict(slow.state(["1"])) == {"1": "running"}
        assert not quick.buried()
        quick.settle([(held, DONE)])
        assert dict(slow.state(["1"])) == {"1": "unknown"}


def test_several_are_settled_though_one_of_them_is_lost(made):
    clock = VirtualClock()
    with IronServer(token=TOKEN, clock=clock) as iron:
        queue, other = made("queue", iron.url("x")), made("queue", iron.url("x"))
        submit(queue, *(Parcel(str(n), body=b"x") for n in range(3)))
        leases = list(queue.take(["default"], limit=3, wait=0))
        clock.advance(50)
        queue.extend(leases[:2])
        clock.advance(20)
        (again,) = other.take(["default"], limit=3, wait=0)
        queue.settle([(lease, DONE) for lease in leases])
        assert dict(queue.state(["0", "1", "2"])) == {"0": "unknown", "1": "unknown", "2": "running"}
        other.settle([(again, DONE)])


# ---------------------------------------------------------------- what is too large, what is not ours


def test_too_large_is_said_before_anything_is_sent(iron, made):
    queue, messenger = made("queue", iron.url("x")), made("messenger", iron.url("x"))
    before = len(iron.seen)
    with pytest.raises(UsageError, match="more than the 4,4"):
        queue.submit([Parcel("1", body=b"fits"), Parcel("2", body=bytes(queue.traits.max_bytes + 1))], NOBODY)
    with pytest.raises(UsageError, match="7 days"):
        queue.submit([Parcel("1", body=b"", delay=8 * 86400.0)], NOBODY)
    with pytest.raises(UsageError, match="more than 49,"):
        messenger.write([("c", b"fits"), ("c", bytes(messenger.traits.max_bytes + 1))])
    assert len(iron.seen) == before
    larger = made("messenger", iron.url("x", limit=256 << 10))  # more than the stand-in's plan has
    assert larger.traits.max_bytes > 4 * messenger.traits.max_bytes - 1000
    with pytest.raises(ProviderError, match="over the plan's limit"):
        larger.write([("c", bytes(100_000))])


def test_nothing_clears_a_queue(iron):
    """IronMQ takes "delete these" with nothing in it for "clear the queue": it cannot be said."""
    with pytest.raises(UsageError, match="0 messages"):
        mq.delete("jobs", [])
    for id in ("", "..", "a/b", "?", "x" * 65):
        with pytest.raises(UsageError, match="no id of Iron's"):
            mq.delete_one("jobs", id, "r")
        with pytest.raises(UsageError, match="no id of Iron's"):
            mq.delete("jobs", [(id, "r")])
        with pytest.raises(UsageError, match="no id of Iron's"):
            mq.delete("jobs", [("1", id)])
    for name in ("", ".", "..", "a/b", "a?b", "jobs/messages"):
        with pytest.raises(UsageError, match="no name of an IronMQ queue"):
            mq.drop(name)
    caller = Caller(read("iron_mq", environment={}, folder="/", **iron.settings()))
    caller.call(mq.post("jobs", [mq.Text("eA==")]))
    for body in (None, b"", b"{}", b'{"ids": []}', b"garbage", b"[]"):
        with pytest.raises(UsageError, match="clear the whole queue"):
            caller.call(mq.Request("DELETE", "queues/jobs/messages", body))
    assert iron.queues.info("jobs")["size"] == 1
    caller.close()


NOT_OURS = [
    "",
    "plain text of somebody else's",
    json.dumps({"job": 1}),
    base64.b64encode(b"\x02" + bytes(3)).decode(),  # cut short
    base64.b64encode(b"\x02\x00\xff\xff\x00\x01\x00\x00xshort").decode(),  # says it is in parts
    base64.b64encode(b"\x01" + bytes(40)).decode(),  # a frame of ours, and no seal
    base64.b64encode(os.urandom(200)).decode(),
    "\ud800 \x00 é",
]


def test_what_is_not_ours_is_parked_and_disturbs_nobody(iron, made, caplog):
    url = iron.url("x")
    for text in NOT_OURS:
        iron.queues.post("x.q.default", [{"body": text}])
    with caplog.at_level(logging.ERROR), Worker(url, concurrency=1, grace=1.0) as worker, Client(url) as client:
        task = client.submit(len, "abc")
        for text in NOT_OURS:
            iron.queues.post(f"x.c.{client._engine.inbox_name}", [{"body": text}])
            iron.queues.post(f"x.c.{worker.channel}", [{"body": text}])
        assert task.result(WAIT) == 3
        assert client.submit(len, "abcd").result(WAIT) == 4
        eventually(lambda: worker.admission.refused == len(NOT_OURS), "all were refused", within=WAIT)
        queue = made("queue", url)
        eventually(lambda: len(queue.buried()) == len(NOT_OURS), "all are parked")
    assert "was refused and parked" in caplog.text


# ---------------------------------------------------------------- the token


def test_the_token_is_never_printed(iron, capfd, caplog, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRON_TOKEN", TOKEN)
    monkeypatch.setenv("IRON_PROJECT_ID", iron.project)
    address = f"ironmq://127.0.0.1:{iron.port}/x?protocol=http"
    monkeypatch.setattr(reckoning, "LONELY", 0.1)
    with caplog.at_level(logging.DEBUG):
        for url in (address, iron.url("x"), f"{address}&token={TOKEN}"):
            assert main(["doctor", url]) == 0
            with Client(url) as client, Worker(url, concurrency=1, grace=1.0) as worker:
                assert client.submit(len, "abc").result(WAIT) == 3
                shown = repr(client) + repr(worker) + repr(client._engine.queue) + client._engine.place
                assert TOKEN not in shown
    settings = read("iron_mq")
    with pytest.raises(UsageError, match="stays in its process"):
        pickle.dumps(settings)
    (tmp_path / "iron.json").write_text(json.dumps({"token": TOKEN, "port": "many"}))
    for words in ({"port": "many"}, {"host": "a b"}, {"project_id": "../.."}, {"protocol": "ftp"}):
        (tmp_path / "iron.json").write_text(json.dumps({"token": TOKEN, **words}))
        assert main(["doctor", "ironmq:///x"]) == 1
    (tmp_path / "iron.json").write_text(f'{{"token": "{TOKEN}')
    assert main(["doctor", "ironmq:///x"]) == 1
    for bad in (f"{TOKEN}\n", f"{TOKEN} x", 7):
        (tmp_path / "iron.json").write_text(json.dumps({"token": bad}))
        assert main(["doctor", "ironmq:///x"]) == 1
    out, err = capfd.readouterr()
    text = repr(settings) + str(settings) + out + err + caplog.text
    assert "IronMQ answers" in text
    assert TOKEN not in text


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("IRON_")]:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="IronMQ has no project_id: set IRON_PROJECT_ID or IRON_MQ_PROJECT_ID"):
        registry.messenger("ironmq:///x")
    with pytest.raises(UsageError, match="IronMQ has no token: set IRON_TOKEN"):
        registry.engine("ironmq://project@localhost/x")
    with pytest.raises(UsageError, match="no file"):
        registry.engine("ironmq:///x?config=nowhere.json")
    with pytest.raises(UsageError, match="several hosts"):
        registry.engine("ironmq://p:t@a,b/x")
    (tmp_path / "iron.json").write_text(json.dumps({"project_id": "p", "keystone": {"password": "x"}}))
    with pytest.raises(UsageError, match="keystone"):
        registry.engine("ironmq:///x")


# ---------------------------------------------------------------- workers that die

APP = """
import os
from revolve_assistant import emit

def halts(path):
    emit("began", os.getpid(), os.getppid())
    if os.path.exists(path):
        return "again"
    open(path, "w").close()
    import time
    time.sleep(60)
"""


def test_kill_9_of_a_worker(iron, revolve, tmp_path, monkeypatch):
    """Its lease ends, and the task runs again at another worker, from the start."""
    (tmp_path / "iron_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    app = import_module("iron_app")
    url = iron.url("x", lease=2)
    mark = str(tmp_path / "mark")
    secret = {"REVOLVE_SECRET": os.environ["REVOLVE_SECRET"]}
    program = revolve("worker", url, "-c", "1", **secret)
    program.says("ready as")
    with Client(url) as client:
        task = client.submit(app.halts, mark)
        events = task.events()
        assert next(events).name == "started"
        _, supervisor = next(events).args
        eventually(lambda: Path(mark).exists(), "it has begun")
        os.kill(supervisor, signal.SIGKILL)
        other = revolve("worker", url, "-c", "1", **secret)
        assert task.result(WAIT) == "again"
        names = [event.name for event in task.events()]
        assert names == ["started", "began", "retrying", "started", "began", "succeeded"]
        other.process.terminate()
    sys.modules.pop("iron_app", None)


def test_a_woken_poll_loses_nothing(iron, made):
    """What a long poll brings after its taker was woken is there for the next take; nobody counts that as a death."""
    taker, giver = made("queue", iron.url("x")), made("queue", iron.url("x"))
    for number in range(10):
        waiting = entered(lambda: taker.take(["default"], limit=1, wait=10.0))
        taker.wake()
        early = waiting.result(WAIT, "a woken take returns")
        submit(giver, Parcel(str(number), body=b"x"))
        (lease,) = early or Aside(take, taker, "default").result(WAIT, "the task comes")
        assert (lease.id, lease.deliveries) == (str(number), 1)
        taker.settle([(lease, DONE)])


def test_what_a_poll_brings_and_nobody_wants_is_given_back_uncounted(iron, made):
    left, other, giver = (made("queue", iron.url("x")) for _ in range(3))
    waiting = entered(lambda: left.take(["default"], limit=1, wait=10.0))
    eventually(lambda: iron.counts["PUT x.q.default"], "the poll begins")
    left.wake()
    waiting.result(WAIT, "a woken take returns")
    submit(giver, Parcel("1", body=b"x"))
    (lease,) = take(other, "default")
    assert (lease.id, lease.deliveries) == ("1", 1)
    other.settle([(lease, DONE)])
