"""Clients and `revolve worker` processes on a Redis queue: what they do together, and when each of them is broken."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, Task, TaskCancelled, TaskLost
from revolve_assistant.engine import Count
from revolve_assistant.providers import registry
from revolve_assistant.testing.servers import Redis

SECRET = "a secret of these tests only"
LONG = 50.0  # seconds that nothing here takes

APP = '''
import os, time
from revolve_assistant import Retry, ask, current_task, emit

def double(value):
    return value * 2

def note(path, word, pause=0.0):
    time.sleep(pause)
    with open(path, "a") as file:
        file.write(word + "\\n")
    return word

def hold(gate):
    """Say where it runs, wait for the file, return where it ran."""
    emit("up", os.getpid(), os.getppid(), current_task().attempt)
    while not os.path.exists(gate):
        time.sleep(0.01)
    return os.getppid()

def fail():
    raise ValueError("as it should")

def third_time():
    if current_task().attempt < 3:
        raise Retry("not yet", after=0.05)
    return current_task().attempt

def talk():
    emit("listening")
    word = current_task().receive(30)
    return word.args, ask("and?", timeout=30)
'''


@pytest.fixture(params=[(), ("--appendonly", "yes", "--appendfsync", "always")], ids=["memory", "log"])
def any_server(need: Any, request: pytest.FixtureRequest) -> Iterator[Redis]:
    need("redis-server")
    with Redis(*request.param) as server:
        yield server


@pytest.fixture
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "redis_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("redis_app", None)
    yield import_module("redis_app")
    sys.modules.pop("redis_app", None)


@pytest.fixture
def messenger(tmp_path: Path) -> str | None:
    """None: Redis' own, once there is one."""
    return None if importlib.util.find_spec("revolve_assistant.providers.redis.messenger") else f"file://{tmp_path}/m"


@pytest.fixture
def worker(revolve: Any, app: Any, messenger: str | None) -> Callable[..., Any]:
    def start(server: Redis, *flags: str) -> Any:
        more = ("--messenger", messenger) if messenger else ()
        program = revolve("worker", server.url, "-c", "1", *more, *flags, REVOLVE_SECRET=SECRET)
        program.says("ready as")
        return program

    return start


@pytest.fixture
def a_client(messenger: str | None) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(server: Redis) -> Client:
        client = Client(server.url, messenger=messenger, secret=SECRET)
        made.append(client)
        return client

    yield make
    for client in made:
        client.shutdown()


@pytest.fixture
def look() -> Iterator[Callable[[Redis], Any]]:
    """`look(server)`: the queue, to look at and to steer."""
    made: list[Any] = []

    def opened(server: Redis) -> Any:
        queue: Any = registry.engine(server.url)
        made.append(queue)
        queue.open()
        return queue

    yield opened
    for queue in made:
        queue.close()


def first(task: Task[Any], name: str) -> tuple[Any, ...]:
    event = next(iter(task.events(name)))
    assert event.name == name, f"it ended: {event}"
    return event.args


def names(task: Task[Any]) -> list[str]:
    return [event.name for event in task.events()]


def eventually(found: Callable[[], Any], what: str, seconds: float = LONG) -> Any:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        pause.wait(0.02)
    return value


def count(queue: Any) -> Count:
    found = queue.counts()
    return found[0]._replace(oldest=0.0) if found else Count("default")


# ---- what they do together


def test_the_everyday_things(server: Redis, worker: Any, app: Any, a_client: Any, tmp_path: Path) -> None:
    worker(server)
    client = a_client(server)
    assert list(client.map(app.double, range(300))) == [2 * n for n in range(300)]
    talk = client.submit(app.talk)
    first(talk, "listening")
    talk.send("word", 1)
    first(talk, "question")
    talk.send("answer", "yes")
    assert talk.result(LONG) == ((1,), "yes")
    third = client.options(retries=5).submit(app.third_time)
    assert third.result(LONG) == 3
    assert names(third).count("retrying") == 2
    gate = tmp_path / "gate"
    holding = client.submit(app.hold, str(gate))
    first(holding, "up")
    began = time.monotonic()
    order = tmp_path / "order"
    late = client.options(delay=0.5, priority=9).submit(app.note, str(order), "late")
    others = [client.options(priority=p).submit(app.note, str(order), str(p)) for p in (0, -9, 5, 9, 0)]
    for each in others:
        each.queued()
    waiting = client.submit(app.double, 1)
    waiting.queued()
    assert waiting.cancel()
    with pytest.raises(TaskCancelled):
        waiting.result(LONG)
    gate.touch()
    assert [each.result(LONG) for each in others] == ["0", "-9", "5", "9", "0"]
    assert late.result(LONG) == "late"
    assert time.monotonic() - began >= 0.5
    assert [word for word in order.read_text().split() if word != "late"] == ["9", "5", "0", "0", "-9"]
    running = client.submit(app.hold, str(tmp_path / "never"))
    first(running, "up")
    assert running.cancel()
    with pytest.raises(TaskCancelled):
        running.result(LONG)


def test_a_key_holds_across_clients(
    server: Redis, worker: Any, app: Any, a_client: Any, look: Any, tmp_path: Path
) -> None:
    worker(server)
    queue = look(server)
    one, other = a_client(server), a_client(server)
    gate = tmp_path / "gate"
    a = one.options(unique="report").submit(app.hold, str(gate))
    first(a, "up")
    b = other.options(unique="report").submit(app.hold, str(tmp_path / "never"))
    c = one.options(unique="report").submit(app.hold, str(tmp_path / "never"))
    for each in (b, c):
        each.queued()
    gate.touch()
    assert a.result(LONG) == b.result(LONG) == c.result(LONG)
    eventually(lambda: not queue.counts(), "the queue is told too, which comes after the result")
    again = other.options(unique="report").submit(app.double, 4)
    assert again.result(LONG) == 8


def test_a_failed_task_is_buried_and_can_be_taken_out(
    server: Redis, worker: Any, app: Any, a_client: Any, look: Any
) -> None:
    worker(server)
    task = a_client(server).submit(app.fail)
    assert isinstance(task.exception(LONG), ValueError)
    queue = look(server)
    (buried,) = eventually(queue.buried, "it is buried")
    assert (buried.id, buried.deliveries) == (task.id, 1)
    assert "as it should" in buried.reason
    assert buried.name.endswith(":fail")
    assert queue.exhume(task.id) == buried
    assert list(queue.counts()) == []


def test_pause_and_limits_hold_for_all_workers(
    server: Redis, worker: Any, app: Any, a_client: Any, look: Any, tmp_path: Path
) -> None:
    for _ in range(2):
        worker(server, "-c", "2")
    client, queue = a_client(server), look(server)
    queue.set_rule("redis_app:note", paused=True)
    path = tmp_path / "notes"
    paused = [client.submit(app.note, str(path), str(n)) for n in range(5)]
    assert client.submit(app.double, 1).result(LONG) == 2
    eventually(lambda: count(queue).blocked == 5, "they are kept back")
    assert not path.exists()
    queue.set_rule("redis_app:note", paused=False)
    assert [task.result(LONG) for task in paused] == ["0", "1", "2", "3", "4"]
    queue.set_rule("redis_app:hold", concurrency=3)
    gate = tmp_path / "gate"
    held = [client.submit(app.hold, str(gate)) for _ in range(6)]
    eventually(lambda: count(queue) == Count("default", 0, 0, 3, 3), "three run, on four children")
    gate.touch()
    for each in held:
        each.result(LONG)


def test_what_waits_stays_where_others_see_it(
    server: Redis, worker: Any, app: Any, a_client: Any, look: Any, tmp_path: Path
) -> None:
    """A worker leases no more than its idle children while it does not know how long tasks take, and gives back."""
    worker(server, "-c", "2")
    client, queue = a_client(server), look(server)
    gates = [tmp_path / f"gate{n}" for n in range(3)]
    held = [client.submit(app.hold, str(gates[0])) for _ in range(20)]
    for task in held[:2]:
        first(task, "up")
    assert count(queue) == Count("default", 18, 0, 0, 2)
    gates[0].touch()
    for each in held:
        each.result(LONG)
    quick = [client.submit(app.double, n) for n in range(3000)]  # now it takes ahead
    slow = [client.submit(app.hold, str(gates[1])) for _ in range(20)]
    for each in quick:
        each.result(LONG)
    eventually(lambda: count(queue) == Count("default", 18, 0, 0, 2), "what it took ahead is back")
    other = worker(server)
    eventually(lambda: count(queue) == Count("default", 17, 0, 0, 3), "another one has some")
    gates[1].touch()
    assert {each.result(LONG) for each in slow} >= {other.pid}


# ---- when they are broken


def test_what_a_killed_worker_held_runs_elsewhere_in_seconds(
    server: Redis, worker: Any, app: Any, a_client: Any, look: Any, tmp_path: Path
) -> None:
    client, queue = a_client(server), look(server)
    victim = worker(server, "-c", "2")
    gate = tmp_path / "gate"
    held = [client.submit(app.hold, str(gate)) for _ in range(2)]
    assert {first(task, "up")[1] for task in held} == {victim.pid}
    other = worker(server, "-c", "2")
    began = time.monotonic()
    victim.signal(signal.SIGKILL)
    for task in held:
        assert next(event.args[1] for event in task.events("up") if event.args[2] == 2) == other.pid
    assert time.monotonic() - began < 8  # a lease has 30 s
    assert count(queue) == Count("default", 0, 0, 0, 2)
    gate.touch()
    for task in held:
        assert task.result(LONG) == other.pid
        assert [event.args[2] for event in task.events() if event.name == "up"] == [1, 2]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_what_a_worker_held_that_does_not_come_back_with_the_server_runs_elsewhere_in_seconds(
    need: Any, revolve: Any, app: Any, a_client: Any, look: Any, tmp_path: Path, how: signal.Signals
) -> None:
    """The lease has an hour here, so it is not that. What the living hold stays with them, and one that was stopped
    can go on: what it still says of its task is heard by nobody."""
    need("redis-server")
    with Redis("--appendonly", "yes", "--appendfsync", "always") as server:

        def start(children: str) -> Any:
            program = revolve("worker", f"{server.url}?lease=3600", "-c", children, REVOLVE_SECRET=SECRET)
            program.says("ready as")
            return program

        client, queue = a_client(server), look(server)
        victim, gate = start("1"), tmp_path / "gate"
        lost = client.submit(app.hold, str(gate))
        assert first(lost, "up")[1] == victim.pid
        other = start("3")
        kept = [client.submit(app.hold, str(gate)) for _ in range(2)]
        assert {first(task, "up")[1] for task in kept} == {other.pid}
        victim.signal(how)
        server.kill()
        server.start()
        assert next(event.args[1] for event in lost.events("up") if event.args[2] == 2) == other.pid
        if how == signal.SIGSTOP:
            victim.signal(signal.SIGCONT)
            eventually(lambda: len(queue.workers()) == 2, "it is back")
        gate.touch()
        for task in (lost, *kept):
            assert task.result(LONG) == other.pid
        for task in kept:
            assert [event.args[2] for event in task.events() if event.name == "up"] == [1]
        if how == signal.SIGSTOP:
            other.signal(signal.SIGTERM)
            assert client.submit(app.hold, str(gate)).result(LONG) == victim.pid
        eventually(lambda: not queue.counts(), "nothing is left")


def test_a_server_killed_under_load(
    any_server: Redis, worker: Any, app: Any, a_client: Any, look: Any, tmp_path: Path
) -> None:
    """With its log every task runs and ends well; without, each ends, and nobody waits or has to be started again."""
    workers = [worker(any_server, "-c", "1") for _ in range(2)]
    client = a_client(any_server)
    path = tmp_path / "notes"
    tasks = [client.submit(app.note, str(path), str(n), 0.002) for n in range(600)]
    eventually(lambda: path.exists() and path.read_text().count("\n") > 60, "they run")
    any_server.kill()
    threading.Event().wait(0.3)
    any_server.start()
    ends: dict[str, int] = {}
    for task in tasks:
        failure = task.exception(LONG)
        assert failure is None or isinstance(failure, TaskLost), failure
        ends["lost" if failure else "well"] = ends.get("lost" if failure else "well", 0) + 1
    words = path.read_text().split()
    assert set(words) == {str(n) for n in range(600)}
    if "--appendonly" in any_server.args:
        assert ends == {"well": 600}
    assert len(words) - 600 <= 40  # what ran while the server died may run again, and no more
    assert client.submit(app.double, 2).result(LONG) == 4
    assert all(each.process.poll() is None for each in workers)
    queue = look(any_server)
    eventually(lambda: not queue.counts() or count(queue)[1:5] == (0, 0, 0, 0), "nothing is left")


def test_a_running_task_of_a_server_that_lost_everything_ends(
    server: Redis, worker: Any, app: Any, a_client: Any, tmp_path: Path
) -> None:
    worker(server)
    client = a_client(server)
    gate = tmp_path / "gate"
    running = client.submit(app.hold, str(gate))
    first(running, "up")
    behind = client.submit(app.double, 5)
    behind.queued()
    server.ask("FLUSHALL")
    gate.touch()
    assert running.exception(LONG) is None or isinstance(running.exception(), TaskLost)
    assert behind.result(LONG) == 10  # it had not begun, so it is sent again
