"""The Worker's own life, over `memory://`: upgrades, what it refuses, how it sets up, stops, gives back, is fenced."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from revolve_assistant import (
    Client,
    Task,
    TaskCancelled,
    TaskLost,
    UsageError,
    current_task,
    emit,
)
from revolve_assistant.engine import Parcel
from revolve_assistant.errors import UnknownTask, Untrusted
from revolve_assistant.providers.memory import Messenger, Queue
from revolve_assistant.wire import envelope
from revolve_assistant.wire.secret import keyring
from revolve_assistant.worker import Worker

SECRET = "a secret of these tests only"
LONG = 30.0  # seconds that nothing here takes
numbers = itertools.count()


@pytest.fixture
def place() -> str:
    return f"memory://worker-{next(numbers)}"


@pytest.fixture(params=["process", "thread"])
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def a_worker(place: Any, pool: str = "process", **options: Any) -> Worker:
    return Worker(place, pool=pool, **{"secret": SECRET, "concurrency": 1, "grace": 10.0, **options})


def a_client(place: Any, **options: Any) -> Client:
    return Client(place, **{"secret": SECRET, **options})


def eventually(found: Callable[[], Any], what: str, seconds: float = LONG) -> Any:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        pause.wait(0.01)
    return value


def names(task: Task[Any]) -> list[str]:
    return [event.name for event in task.events()]


# --- what is run


def double(value: Any) -> Any:
    return value * 2


def counting(count: int) -> Iterator[int]:
    yield from range(count)
    return count


async def waiting(value: str) -> str:
    emit("awaiting", value)
    await asyncio.sleep(0)
    return value


def until_stopped() -> str:
    running = current_task()
    emit("up")
    while not running.cancel_requested:
        time.sleep(0.005)
    return "stopped nicely"


def waits_for(path: str) -> str:
    emit("up")
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def note(path: str, word: str) -> None:
    with open(path, "a") as file:
        file.write(word + "\n")


# --- upgrades


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of a newer release: `(module, where workers look for it, its text)`."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    monkeypatch.syspath_prepend(str(ours))
    text = "def fresh():\n    return 'new'\n"
    (ours / "newer_app.py").write_text(text)
    import newer_app  # type: ignore[import-not-found]

    yield newer_app, theirs / "newer_app.py", text
    sys.modules.pop("newer_app", None)


def looks_elsewhere(folder: str) -> None:
    """Initializer of a worker whose release does not have the module."""
    sys.path[:] = [folder, *(path for path in sys.path if not path.endswith("ours"))]


def test_a_function_that_is_not_there_yet_waits(place, newer):
    module, path, text = newer
    with a_worker(place, initializer=looks_elsewhere, initargs=(str(path.parent),)), a_client(place) as client:
        task = client.submit(module.fresh)
        assert "newer_app" in next(iter(task.events("waiting"))).args[0]
        assert task.state == "pending"
        path.write_text(text)
        assert task.result(LONG) == "new"
        assert names(task)[-2:] == ["started", "succeeded"]


def test_a_function_that_never_comes_is_an_unknown_task(place, newer):
    module, path, _ = newer
    options = {"initializer": looks_elsewhere, "initargs": (str(path.parent),), "unknown_after": 0.3}
    with a_worker(place, **options), a_client(place) as client:
        task = client.submit(module.fresh)
        with pytest.raises(UnknownTask, match="newer_app:fresh"):
            task.result(LONG)
        assert task.state == "failed"
        assert names(task)[0] == "waiting"


def _sealed(place: str, data: bytes, inbox: str, **fields: Any) -> bytes:
    return envelope.wrap(inbox, keyring(SECRET).seal("task", "assistant/default", data, **fields))  # type: ignore[arg-type]


def test_a_newer_envelope_waits_for_a_newer_worker(place):
    queue = Queue(place.removeprefix("memory://"))
    queue.open()
    data = msgspec.msgpack.encode([2, "something", "else"])
    queue.submit([Parcel("future", body=_sealed(place, data, "i.nobody"))], None)  # type: ignore[arg-type]
    with a_worker(place, "thread") as worker, a_client(place) as client:
        eventually(lambda: worker.taker.settled >= 1, "it was given back")
        assert client.submit(double, 1).result(LONG) == 2
        assert queue.state(["future"]) == {"future": "queued"}
        assert worker.admission.refused == 0
    queue.cancel("future")
    queue.close()


def test_a_seal_of_a_newer_release_waits_too(place):
    queue = Queue(place.removeprefix("memory://"))
    queue.open()
    body = envelope.wrap("i.nobody", b"\2" + os.urandom(100))
    queue.submit([Parcel("future", body=body)], None)  # type: ignore[arg-type]
    with a_worker(place, "thread") as worker, a_client(place) as client:
        eventually(lambda: worker.taker.settled >= 1, "it was given back")
        assert client.submit(double, 1).result(LONG) == 2
        assert queue.state(["future"]) == {"future": "queued"}
    queue.cancel("future")
    queue.close()


def test_what_takes_whole_workers_along_is_buried_in_the_end(place):
    """A queue counts each time it hands a task out, also when nobody was left to settle it."""
    clock = _Clock()
    name = place.removeprefix("memory://")
    queue = Queue(name, lease=1.0, clock=clock)
    with a_client(Queue(name, clock=clock), messenger=place) as client:
        task = client.submit(double, 1)
        task.queued()
        queue.open()
        for _ in range(13):
            assert len(queue.take(["default"], limit=1, wait=LONG)) == 1
            clock.now += 2.0  # its worker is gone
        with a_worker(Queue(name, clock=clock), "thread", messenger=place):
            with pytest.raises(TaskLost, match="13 times"):
                task.result(LONG)
            assert task.state == "failed"
            eventually(lambda: [each.id for each in queue.buried()] == [task.id], "it is buried")
        queue.close()


# --- children that cannot be set up


def set_up(folder: str) -> None:
    Path(folder, f"child-{os.getpid()}-{threading.get_ident()}").touch()
    if Path(folder, "broken").exists():
        raise OSError("the database is away")


@pytest.mark.parametrize("kind", ["process", "thread", "inline"])
def test_a_worker_whose_first_child_cannot_be_set_up_ends_and_takes_nothing(place, kind, tmp_path, caplog):
    (tmp_path / "broken").touch()
    with a_client(place) as client:
        task = client.submit(double, 1)
        task.queued()
        worker = a_worker(place, kind, initializer=set_up, initargs=(str(tmp_path),))
        assert worker.run() == 1
        assert isinstance(worker.failure, OSError)
        assert worker.state == "ended"
        assert worker.taker.taken == 0
        assert "cannot set up a child: OSError: the database is away" in caplog.text
        (tmp_path / "broken").unlink()
        with a_worker(place, kind, initializer=set_up, initargs=(str(tmp_path),)):
            assert task.result(LONG) == 2


def test_a_task_whose_child_cannot_be_set_up_later_is_given_back(place, tmp_path, monkeypatch):
    from revolve_assistant.worker import held

    monkeypatch.setattr(held, "NEXT_SETUP", 0.05)
    options = {"initializer": set_up, "initargs": (str(tmp_path),)}
    with a_worker(place, max_tasks_per_child=1, **options) as worker, a_client(place) as client:
        assert client.submit(double, 1).result(LONG) == 2
        (tmp_path / "broken").touch()
        task = client.submit(double, 2)
        waiting = next(iter(task.events("waiting")))
        assert "the database is away" in waiting.args[0]
        assert worker.failure is None
        (tmp_path / "broken").unlink()
        assert task.result(LONG) == 4


def test_a_worker_can_be_stopped_while_it_sets_up(place):
    worker = a_worker(place, "thread", initializer=time.sleep, initargs=(3.0,)).start()
    assert not worker.wait_ready(0.1)
    worker.stop()
    assert worker.failure is None


# --- what is refused


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xa5",
        b"a letter",
        b"\xa5\xff" + b"x" * 10,
        envelope.wrap("i.nobody", b"not sealed at all" * 10),
        envelope.wrap("no such/name!", b"x" * 100),
        envelope.wrap("i.nobody", keyring("another secret of sixteen").seal("task", "assistant/default", b"x")),  # type: ignore[arg-type]
        envelope.wrap("i.nobody", keyring(SECRET).seal("task", "assistant/other", b"x")),  # type: ignore[arg-type]
        envelope.wrap("i.nobody", keyring(SECRET).seal("event", "assistant/default", b"x")),  # type: ignore[arg-type]
        envelope.wrap("i.nobody", keyring(SECRET).seal("task", "assistant/default", b"no envelope")),  # type: ignore[arg-type]
        envelope.wrap("i.nobody", keyring(SECRET).seal("task", "assistant/default", b"x", expires=1.0)),  # type: ignore[arg-type]
    ],
    ids=["empty", "short", "foreign", "cut", "unsigned", "inbox", "key", "moved", "purpose", "garbage", "expired"],
)
def test_what_is_no_task_is_parked_counted_said_and_the_worker_goes_on(place, body, caplog):
    queue = Queue(place.removeprefix("memory://"))
    queue.open()
    queue.submit([Parcel("odd", body=body)], None)  # type: ignore[arg-type]
    with a_worker(place, "thread") as worker, a_client(place) as client:
        eventually(lambda: [each.id for each in queue.buried()] == ["odd"], "it is parked")
        assert queue.buried()[0].body == body
        assert client.submit(double, 1).result(LONG) == 2
        assert worker.admission.refused == 1
    assert "odd" in caplog.text
    queue.close()


def test_a_replayed_task_does_not_run_twice(place, tmp_path):
    path = tmp_path / "runs"
    bodies: list[Parcel] = []

    class Noting(Queue):
        def submit(self, parcels: Any, sink: Any) -> None:
            bodies.extend(Parcel(parcel.id, body=parcel.body) for parcel in parcels)
            super().submit(parcels, sink)

    queue = Noting(place.removeprefix("memory://"))
    with a_worker(place, "thread") as worker, a_client(queue, messenger=place) as client:
        client.submit(note, str(path), "once").result(LONG)
        eventually(lambda: worker.taker.settled == 1, "its end is acknowledged")
        again, other = bodies[0], Parcel("another-id", body=bodies[0].body)
        Queue.submit(queue, [again, other], None)  # type: ignore[arg-type]
        eventually(lambda: worker.taker.settled == 3, "both were settled")
        assert client.submit(double, 1).result(LONG) == 2
        assert [each.id for each in queue.buried()] == ["another-id"]
    assert path.read_text() == "once\n"


def test_a_client_with_another_secret_is_told(place, caplog):
    began = time.monotonic()
    with a_worker(place, "thread") as worker, a_client(place, secret="quite another secret") as client:
        with pytest.raises(Untrusted, match="REVOLVE_SECRET"):
            client.submit(double, 1).result(LONG)
        assert time.monotonic() - began < 5.0
        assert worker.admission.refused == 1
    assert "was refused and parked" in caplog.text


def test_a_control_message_of_a_stranger_is_refused(place):
    messenger = Messenger(place.removeprefix("memory://"))
    messenger.open()
    with a_worker(place, "thread") as worker, a_client(place) as client:
        task = client.submit(until_stopped)
        next(iter(task.events("up")))
        messenger.write([(worker.channel, b"stop it"), (worker.channel, os.urandom(100))])
        eventually(lambda: worker.control.refused == 2, "both are counted")
        assert not task.done()
        task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(LONG)
    messenger.close()


# --- ends of a worker


def test_a_worker_that_stops_lets_running_tasks_end(place, tmp_path):
    gate = tmp_path / "gate"
    with a_client(place) as client:
        worker = a_worker(place).start()
        task = client.submit(waits_for, str(gate))
        next(iter(task.events("up")))
        stopper = threading.Thread(target=worker.stop)
        stopper.start()
        eventually(lambda: worker.state == "draining", "it drains")
        waiting = client.submit(double, 4)
        gate.touch()
        assert task.result(LONG) == str(gate)
        stopper.join(LONG)
        assert worker.state == "ended"
        assert not waiting.done()  # it took no more
        with a_worker(place, "thread"):
            assert waiting.result(LONG) == 8


def test_what_does_not_end_within_the_grace_is_given_back_uncounted(place):
    with a_client(place) as client:
        worker = a_worker(place).start()
        task = client.submit(attempt_until_stopped)
        next(iter(task.events("up")))
        worker.stop(grace=0.05)
        assert not task.done()
        with a_worker(place) as other:
            events = iter(task.events("up"))
            assert [next(events).args for _ in range(2)] == [(1,), (1,)]  # the shutdown was no attempt
            task.cancel()
            with pytest.raises(TaskCancelled):
                task.result(LONG)
            assert other.admission.refused == 0
        assert names(task) == ["started", "up", "retrying", "started", "up", "cancelled"]


def attempt_until_stopped() -> None:
    emit("up", current_task().attempt)
    while True:
        time.sleep(0.005)


def test_a_task_that_fails_because_it_is_stopped_is_given_back(place):
    """A callable that turns the interruption into an error of its own has not failed: the worker went."""
    with a_client(place) as client:
        worker = a_worker(place).start()
        task = client.options(retries=0).submit(turns_it_into_an_error)
        next(iter(task.events("up")))
        worker.stop(grace=0.05)
        assert not task.done()
        assert names_so_far(client, task)[-1] == "retrying"
        task.cancel()


def names_so_far(client: Client, task: Task[Any]) -> list[str]:
    seen = []
    for event in task.events():
        seen.append(event.name)
        if event.name == "retrying":
            break
    return seen


def turns_it_into_an_error() -> None:
    emit("up")
    try:
        while True:
            time.sleep(0.005)
    except BaseException:
        raise ValueError("interrupted") from None


def test_stopping_twice_and_from_several_threads_is_one_stop(place):
    worker = a_worker(place, "thread").start()
    threads = [threading.Thread(target=worker.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert worker.state == "ended"
    worker.stop()
    with pytest.raises(UsageError, match="another one"):
        worker.start()


def test_a_worker_that_was_never_started_stops(place):
    worker = a_worker(place, "thread")
    worker.stop()
    assert worker.state == "ended"
    assert worker.run.__doc__


def test_run_returns_when_it_is_stopped_from_another_thread(place):
    worker = a_worker(place, "thread")
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()))
    thread.start()
    assert worker.wait_ready(LONG)
    worker.stop()
    thread.join(LONG)
    assert codes == [0]


def test_two_workers_share_the_work_and_nothing_is_mixed(place):
    with a_worker(place, concurrency=2), a_worker(place, "thread", concurrency=2), a_client(place) as client:
        tasks = [client.submit(counting, 20) for _ in range(60)]
        for task in tasks:
            assert list(task.items()) == list(range(20))
            assert task.result(LONG) == 20


def test_a_duplicate_delivery_is_fenced(tmp_path):
    """Its lease ends while it runs: another worker begins, and the first one's words count no more."""
    name = f"fence-{next(numbers)}"
    clock = _Clock()
    first_queue, second_queue = Queue(name, lease=1e6, clock=clock), Queue(name, lease=1e6, clock=clock)
    gates = [tmp_path / "first", tmp_path / "second"]
    with (
        a_client(Queue(name, clock=clock), messenger=f"memory://{name}") as client,
        a_worker(first_queue, "thread", messenger=f"memory://{name}"),
    ):
        task = client.submit(which, str(tmp_path))
        next(iter(task.events("up")))
        clock.now += 2e6  # the lease is over; nobody extended it
        with a_worker(second_queue, "thread", messenger=f"memory://{name}"):
            events = iter(task.events("up"))
            assert [next(events).args for _ in range(2)] == [(0,), (1,)]
            gates[0].touch()  # the first one ends: too late
            gates[1].touch()
            assert task.result(LONG) == 1
            assert names(task) == ["started", "up", "retrying", "started", "up", "succeeded"]


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def which(folder: str) -> int:
    number = sum(name.startswith("run") for name in os.listdir(folder))
    Path(folder, f"run{number}").touch()
    emit("up", number)
    while not Path(folder, ["first", "second"][number]).exists():
        time.sleep(0.005)
    return number


# --- wrong calls


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool": "processes"}, "process, thread, fork, inline"),
        ({"concurrency": 0}, "whole number >= 1"),
        ({"queues": " , "}, "at least one queue"),
        ({"pool": "thread", "memory_limit": "1G"}, "pool='process'"),
        ({"secret": "short"}, "at least 16"),
    ],
)
def test_a_wrong_call_is_an_error_at_once(place, options, says):
    with pytest.raises(UsageError, match=says):
        a_worker(place, **options)


def test_a_worker_needs_an_address(monkeypatch):
    monkeypatch.delenv("REVOLVE_URL", raising=False)
    with pytest.raises(UsageError, match="REVOLVE_URL"):
        Worker()
    with pytest.raises(UsageError, match="no queue"):
        Worker("thread://")
