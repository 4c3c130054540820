"""IronWorker as an Engine: the stand-in starts `revolve ironworker` as the platform would, in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, TaskCancelled, TaskLost, Worker
from revolve_assistant.caller import reckoning
from revolve_assistant.engine import Engine, Parcel
from revolve_assistant.errors import ProtocolError, ProviderError, UnknownTask, Unreachable, UsageError
from revolve_assistant.providers import registry
from revolve_assistant.providers.diagnosis import diagnose
from revolve_assistant.providers.ironworker import payload
from revolve_assistant.testing.checks import eventually
from revolve_assistant.testing.iron import IronServer

APP = """
import os, signal, time
from revolve_assistant import Retry, current_task, emit, track


def count(to):
    for number in track(range(to), "counting"):
        emit("tick", number, (number, b"\\0"))
    print("counted")
    return to

def items(to):
    yield from range(to)
    return to

async def later(to):
    emit("tick", to)
    return to

def length(data):
    return len(data)

def fails():
    raise ValueError("outer", 2)

def second_time():
    if current_task().attempt < 2:
        raise Retry("not yet", after=0.01)
    return current_task().attempt

def waits():
    emit("idle")
    task = current_task()
    while not task.cancel_requested:
        time.sleep(0.005)
    return "seen"

def hears():
    emit("listening")
    return current_task().receive(30).args

def dies():
    emit("dying")
    os.kill(os.getpid(), signal.SIGKILL)

def where():
    emit("here", os.getppid())
    return {name: os.environ.get(name) for name in ("TASK_ID", "REVOLVE_SECRET")}

def halts():
    emit("halting", os.getppid())
    time.sleep(60)
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application of the image: a module that both sides can import."""
    (tmp_path / "ironapp.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("ironapp", None)
    import ironapp

    yield ironapp
    sys.modules.pop("ironapp", None)


@pytest.fixture
def iron(app: Any, tmp_path: Path) -> Iterator[IronServer]:
    with IronServer() as server:
        command = [sys.executable, "-m", "revolve_assistant.cli", "ironworker"]
        env = {
            **server.environment(),
            "PYTHONPATH": str(tmp_path),
            "REVOLVE_SECRET": os.environ["REVOLVE_SECRET"],
            "REVOLVE_MESSENGER": "ironmq:///iw",
            "REVOLVE_IRONWORKER_GRACE": "0.3",
        }
        server.code("app", command, env=env)
        yield server


@pytest.fixture
def client(iron: IronServer) -> Iterator[Client]:
    with Client(iron.url("app", scheme="ironworker"), messenger=iron.url("iw")) as client:
        yield client


@pytest.fixture
def engine(iron: IronServer) -> Iterator[Engine]:
    engine = registry.engine(iron.url("app", scheme="ironworker"))
    engine.open()
    yield engine
    engine.close()


def ended(iron: IronServer, number: int = 0) -> Any:
    """The task of the stand-in, once its container has ended."""
    task = list(iron.tasks._tasks.values())[number]
    iron.tasks.wait(task.id, 30)
    return task


# ---------------------------------------------------------------- the story


def test_events_result_progress_and_log(client, app, iron):
    task = client.submit(app.count, 30)
    events = list(task.events())
    assert [event.args for event in events if event.name == "tick"] == [(n, (n, b"\0")) for n in range(30)]
    assert (events[0].name, events[-1].name, events[-1].args) == ("started", "succeeded", (30,))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    there = ended(iron)
    assert events[0].args == (f"ironworker:{there.id}",)
    assert (there.status, there.percent, there.msg) == ("complete", 100, "counting 30 of 30")
    assert there.label == task.id
    assert b"counted" in there.out
    assert iron.token.encode() not in there.both
    engine = client._engine.queue
    assert engine.status(task.id).status == "complete"
    assert "counted" in engine.log(task.id)
    with pytest.raises(LookupError, match="was not submitted"):
        engine.log("another")


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [("items", (5,), 5), ("later", (7,), 7), ("length", (os.urandom(200_000),), 200_000), ("second_time", (), 2)],
)
def test_kinds_of_callables_large_arguments_and_retries(client, app, iron, name, args, expected):
    task = client.options(retries=1).submit(getattr(app, name), *args)
    assert task.result(60) == expected
    if name == "items":
        assert list(task.items()) == list(range(5))
    assert ended(iron).status == "complete"
    assert not list(iron.queues.names("iw.c.b.", "", 100))  # the parts of a body are removed


def test_failure_and_death_of_its_child(client, app, iron):
    failed = client.submit(app.fails)
    with pytest.raises(ValueError, match="outer"):
        failed.result(60)
    assert ended(iron).status == "error"
    with pytest.raises(TaskLost, match="SIGKILL"):
        client.submit(app.dies).result(60)


def test_a_function_that_the_image_does_not_have(client, app, iron):
    code = iron.tasks._codes["app"]
    iron.code("app", code.command, env={name: value for name, value in code.env.items() if name != "PYTHONPATH"})
    with pytest.raises(UnknownTask, match="No module named 'ironapp'"):
        client.submit(app.count, 1).result(30)
    assert ended(iron).status == "error"


def test_cancel_and_messages(client, app, iron):
    task = client.submit(app.waits)
    next(task.events("idle"))
    assert task.cancel()
    with pytest.raises(TaskCancelled):
        task.result(60)
    assert ended(iron).status == "complete"
    heard = client.submit(app.hears)
    next(heard.events("listening"))
    heard.send("word", 1, [2])
    assert heard.result(60) == (1, [2])


def test_a_task_that_waits_is_taken_back(client, app, iron):
    task = client.options(delay=3600).submit(app.count, 1)
    task.queued()
    task.cancel()
    with pytest.raises(TaskCancelled):
        task.result(30)
    assert ended(iron).status == "cancelled"


def test_children_never_hold_the_secret(client, app, iron):
    assert client.submit(app.where).result(60) == {"TASK_ID": ended(iron).id, "REVOLVE_SECRET": None}


def test_kill_9_of_the_container_is_noticed(client, app, iron, monkeypatch):
    monkeypatch.setattr(reckoning, "QUIET", 1.0)  # else it takes 16 s
    monkeypatch.setattr(reckoning, "ANSWER", 1.0)
    monkeypatch.setattr(reckoning, "AGAIN", 0.1)
    task = client.submit(app.halts)
    (pid,) = next(task.events("halting")).args
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TaskLost, match="has it any more"):
        task.result(40)
    assert ended(iron).status == "error"


def test_a_container_that_ends_before_it_says_anything(iron, app, monkeypatch, caplog):
    monkeypatch.setattr(reckoning, "QUIET", 0.3)
    monkeypatch.setattr(reckoning, "AGAIN", 0.1)
    iron.code("app", [sys.executable, "-c", "raise SystemExit('the image is broken')"])
    with Client(iron.url("app", scheme="ironworker"), messenger=iron.url("iw")) as client:
        task = client.submit(app.count, 1)
        with caplog.at_level(logging.WARNING), pytest.raises(TaskLost, match="not in"):
            task.result(40)
    assert len(iron.tasks._tasks) == 4  # it was sent again three times
    assert "ended at IronWorker as error" in caplog.text
    assert "the image is broken" in caplog.text


def test_a_signal_from_the_platform_gives_the_task_back(client, app, iron, monkeypatch):
    """What IronWorker ends early is run again."""
    monkeypatch.setattr(reckoning, "QUIET", 0.3)
    monkeypatch.setattr(reckoning, "AGAIN", 0.1)
    task = client.submit(app.waits)
    next(task.events("idle"))
    there = next(iter(iron.tasks._tasks.values()))
    os.kill(there.process.pid, signal.SIGTERM)
    events = task.events()
    assert [next(events).name for _ in range(4)][-2:] == ["retrying", "started"]
    assert ended(iron).status == "error"
    task.cancel()
    with pytest.raises(TaskCancelled):
        task.result(40)


# ---------------------------------------------------------------- what the container is given


def run(iron: IronServer, text: str, **changed: str) -> Any:
    """A task with that payload, and its end."""
    code = iron.tasks._codes["app"]
    iron.code("other", code.command, env={**code.env, **changed})
    (id,) = iron.tasks.queue([{"code_name": "other", "payload": text}])
    iron.tasks.wait(id, 30)
    return iron.tasks.get(id)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no task of this library"),
        ('{"url": "somebody else\'s"}', "no task of this library"),
        ('{"revolve": 2, "id": "x"}', "version 2"),
        ('{"revolve": 1, "id": "x", "body": "%%%"}', "base64"),
    ],
)
def test_a_payload_that_is_not_ours_runs_nothing(iron, text, why):
    there = run(iron, text)
    assert there.status == "error"
    assert why.encode() in there.both
    assert b"Traceback" not in there.both


def test_a_task_that_is_not_signed_by_us_runs_nothing(iron, client, app):
    unsigned = payload.write("x", "default", "assistant", b"\xa5\x00" + b"pickled" * 20)
    there = run(iron, unsigned)
    assert there.status == "error"
    assert b"was refused" in there.both

    client.submit(app.count, 1).result(60)
    sealed = ended(iron, 1).payload
    there = run(iron, sealed, REVOLVE_SECRET="another secret, of 16 bytes or more")
    assert there.status == "error"
    assert b"was refused" in there.both
    moved = json.dumps({**json.loads(sealed), "queue": "other"})
    assert b"was refused" in run(iron, moved).both


def test_a_body_whose_parts_are_gone(iron):
    text, _, _ = payload.write_parts("x", "default", "assistant", os.urandom(100_000), 1 << 16)
    config = iron.tasks._codes["app"]
    iron.code("short", config.command, env={**config.env, "REVOLVE_MESSENGER": "filesystem:///nowhere-at-all"})
    (id,) = iron.tasks.queue([{"code_name": "short", "payload": text}])
    assert iron.tasks.wait(id, 30) == "error"


def test_messenger_and_secret_from_the_configuration(iron, app, tmp_path):
    """CONFIG_FILE says both, and no variable does."""
    secret = "a secret that only the configuration has"
    code = iron.tasks._codes["app"]
    env = {name: value for name, value in code.env.items() if not name.startswith("REVOLVE_")}
    iron.code("app", code.command, env=env, config={"revolve": {"messenger": f"file://{tmp_path}/m", "secret": secret}})
    url = iron.url("app", scheme="ironworker")
    with Client(url, messenger=f"file://{tmp_path}/m", secret=secret) as client:
        assert client.submit(app.count, 2).result(60) == 2


def test_the_old_way_of_naming_files(tmp_path, iron):
    from revolve_assistant.cli import main

    (tmp_path / "p").write_text("{}")
    assert main(["ironworker", "-payload", str(tmp_path / "p"), "-id", "1", "--log-level", "error"]) == 2
    assert main(["ironworker", "-payload", str(tmp_path / "none"), "--log-level", "error"]) == 2
    assert main(["ironworker", "--log-level", "error"]) == 2


# ---------------------------------------------------------------- the engine alone


def test_submit_state_cancel_and_kill(engine, iron):
    sink: Any = None
    code = iron.tasks._codes["app"]
    iron.code("app", [sys.executable, "-c", "import time; time.sleep(60)"], env=code.env)
    engine.submit([Parcel("now", body=b"x"), Parcel("later", body=b"x", delay=60, priority=9)], sink)
    eventually(lambda: engine.state(["now"])["now"] == "running", "it runs")
    assert dict(engine.state(["now", "later", "never"])) == {"now": "running", "later": "queued", "never": "unknown"}
    before = iron.counts["POST tasks"]
    engine.submit([Parcel("later", body=b"x")], sink)  # it is there already
    assert iron.counts["POST tasks"] == before
    assert [engine.cancel(id) for id in ("later", "later", "never", "now")] == [True, False, False, False]
    assert engine.kill("now")
    assert not engine.kill("now")
    assert dict(engine.state(["now", "later"])) == {"now": "unknown", "later": "unknown"}
    assert [task.priority for task in iron.tasks._tasks.values()] == [0, 2]


def test_bad_input(engine, iron):
    sink: Any = None
    with pytest.raises(UsageError, match="payload holds"):
        engine.submit([Parcel("x", body=bytes(64 << 10))], sink)
    with pytest.raises(UsageError, match="7 days"):
        engine.submit([Parcel("x", body=b"", delay=8 * 86400)], sink)
    with pytest.raises(UsageError, match="names the code package"):
        registry.engine(iron.url("", scheme="ironworker"))
    with pytest.raises(UsageError, match="takes them from a queue"):
        Worker(iron.url("app", scheme="ironworker"), messenger=iron.url("iw"))
    missing = registry.engine(iron.url("nothing", scheme="ironworker"))
    with pytest.raises(ProviderError, match="no code package 'nothing'"):
        missing.open()


@pytest.mark.parametrize("fault", [401, 503, "garbage", "cut"])
def test_faults_are_one_clear_error_without_the_token(iron, fault, caplog):
    url = iron.url("app", scheme="ironworker", timeout=2, patience=0.3)
    engine = registry.engine(url)
    engine.open()
    iron.fail(fault, times=100)
    expected: dict[Any, type[Exception]] = {401: ProviderError, "garbage": ProtocolError}
    calls: list[Callable[[], object]] = [
        lambda: engine.submit([Parcel("x", body=b"x")], None),  # type: ignore[arg-type]
        lambda: registry.engine(url).open(),
    ]
    with caplog.at_level(logging.DEBUG):
        for call in calls:
            with pytest.raises(expected.get(fault, Unreachable)) as caught:
                call()
            assert iron.token not in str(caught.value)
        found = diagnose(url)
    assert found[-1].level == "wrong"
    assert iron.token not in caplog.text + repr(engine) + str(found)
    engine.close()
    iron.heal()
    assert diagnose(url)[-1].level == "ok"
