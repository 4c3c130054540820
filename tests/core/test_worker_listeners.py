"""`worker.add_listener`: what becomes of every task of a Worker, told to whoever asked."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, Retry, TaskLost, UsageError, current_task, emit
from revolve_assistant.worker import Worker, WorkerEvent, lifecycle

SECRET = "a secret of these tests only"
LONG = 30.0  # seconds that nothing here takes
numbers = itertools.count()


@pytest.fixture
def place() -> str:
    return f"memory://listeners-{next(numbers)}"


class Heard:
    """What a worker told, in its order."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        self.bell = threading.Condition()

    def __call__(self, event: WorkerEvent) -> None:
        with self.bell:
            self.events.append(event)
            self.bell.notify_all()

    def until(self, name: str, count: int = 1) -> WorkerEvent:
        """The last one of that name, once there are so many."""

        def found() -> list[WorkerEvent]:
            return [event for event in self.events if event.name == name]

        with self.bell:
            assert self.bell.wait_for(lambda: len(found()) >= count, LONG), self.events
            return found()[-1]

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


def a_worker(place: Any, **options: Any) -> Worker:
    return Worker(place, **{"pool": "thread", "secret": SECRET, "concurrency": 1, "grace": 10.0, **options})


def a_client(place: str) -> Client:
    return Client(place, secret=SECRET)


def working(word: str) -> str:
    emit("word", word)
    return word


def failing(secret: str) -> None:
    raise ValueError("no such folder")


def second_time(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        raise Retry("not yet", after=0.01)
    return "now"


def until_cancelled() -> None:
    emit("up")
    while not current_task().cancel_requested:
        threading.Event().wait(0.005)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("pool", ["process", "thread", "fork", "inline"])
def test_a_listener_hears_of_every_task_and_of_no_argument(place, pool):
    heard = Heard()
    worker = a_worker(place, pool=pool)
    worker.add_listener("*", heard)
    with worker, a_client(place) as client:
        task = client.submit(working, "hunter2")
        assert task.result(LONG) == "hunter2"
        ended = heard.until("succeeded")
        with pytest.raises(ValueError, match="no such folder"):
            client.submit(failing, "hunter2").result(LONG)
        failed = heard.until("failed")
    assert heard.names == ["started", "succeeded", "started", "failed"]
    assert (ended.task_id, ended.function, ended.queue, ended.attempt) == (task.id, f"{__name__}:working", "default", 1)
    assert ended.worker == worker.name
    assert ended.seconds is not None
    assert 0 <= ended.seconds < LONG
    assert (failed.error_type, failed.message) == ("ValueError", "no such folder")
    assert failed.reason == "ValueError: no such folder"
    assert "in failing" in failed.traceback
    assert "hunter2" not in repr(heard.events)


def test_the_names_of_the_lifecycle_can_be_asked_for_alone(place, tmp_path):
    heard = {name: Heard() for name in ("started", "retrying", "cancelled")}
    with a_worker(place) as worker, a_client(place) as client:
        for name, each in heard.items():
            worker.add_listener(name, each)
        assert client.options(retries=1).submit(second_time, str(tmp_path / "mark")).result(LONG) == "now"
        retrying = heard["retrying"].until("retrying")
        assert (retrying.delay, retrying.reason, retrying.attempt) == (0.01, "Retry: not yet", 1)
        task = client.submit(until_cancelled)
        next(iter(task.events("up")))
        task.cancel()
        assert heard["cancelled"].until("cancelled").reason == "flag"
        heard["started"].until("started", 3)
        worker.remove_listener("started", heard["started"])
        worker.remove_listener("started", heard["started"])  # it is gone already
        assert client.submit(working, "x").result(LONG) == "x"
    assert heard["started"].names == ["started"] * 3
    assert [event.attempt for event in heard["started"].events] == [1, 2, 1]


def test_dead_children_are_told_with_what_they_died_of(place):
    heard = Heard()
    worker = a_worker(place, pool="process")
    worker.add_listener("*", heard)
    with worker, a_client(place) as client, pytest.raises(TaskLost):
        client.submit(killed).result(LONG)
    assert heard.names == ["started", "retrying", "started", "retrying", "started", "failed"]
    assert heard.events[1].reason.startswith("TaskLost: ")
    assert heard.events[-1].error_type.endswith("TaskLost")
    assert heard.events[-1].attempt == 3


def test_higher_priorities_hear_first_and_one_that_raises_disturbs_nobody(place, caplog):
    order: list[str] = []
    over = threading.Event()

    def bad(_event: WorkerEvent) -> None:
        order.append("bad")
        raise SystemExit("a listener's own trouble")

    def last(_event: WorkerEvent) -> None:
        order.append("last")
        over.set()

    worker = a_worker(place)
    worker.add_listener("succeeded", last, priority=-1)
    worker.add_listener("*", lambda event: order.append(event.name))
    worker.add_listener("succeeded", bad, priority=10)
    with caplog.at_level(logging.ERROR, "revolve_assistant"), worker, a_client(place) as client:
        assert client.submit(working, "x").result(LONG) == "x"
        assert over.wait(LONG)
    assert order == ["started", "bad", "succeeded", "last"]
    assert "failed at event 'succeeded'" in caplog.text


def test_a_listener_that_blocks_holds_up_no_task_and_hears_of_what_it_missed(place, monkeypatch):
    monkeypatch.setattr(lifecycle, "BEHIND", 10)
    go, up = threading.Event(), threading.Event()
    heard = Heard()

    def slow(event: WorkerEvent) -> None:
        up.set()
        go.wait(LONG)
        heard(event)

    worker = a_worker(place)
    worker.add_listener("*", slow)
    try:
        with worker, a_client(place) as client:
            assert client.submit(working, "x").result(LONG) == "x"
            assert up.wait(LONG)
            for _ in range(20):
                assert client.submit(working, "x").result(LONG) == "x"
            go.set()
            gap = heard.until("gap")
    finally:
        go.set()
    # of 42 events one was being heard and the last ten were kept
    assert gap.count + len([name for name in heard.names if name != "gap"]) == 42
    assert gap.count == 31


def test_what_was_not_heard_at_the_end_is_heard_before_the_worker_is_over(place):
    heard = Heard()
    worker = a_worker(place)
    worker.add_listener("succeeded", heard)
    with worker, a_client(place) as client:
        for _ in range(100):
            client.submit(working, "x").queued(LONG)
        for task in [client.submit(working, "x") for _ in range(10)]:
            task.result(LONG)
    assert len(heard.events) == 110


def test_a_listener_may_stop_its_worker(place):
    stopped = threading.Event()
    worker = a_worker(place)

    def stop(_event: WorkerEvent) -> None:
        worker.stop()
        stopped.set()

    worker.add_listener("succeeded", stop)
    with worker, a_client(place) as client:
        assert client.submit(working, "x").result(LONG) == "x"
        assert stopped.wait(LONG)
    assert worker.state == "ended"


@pytest.mark.parametrize("name", ["suceeded", "word", ""])
def test_what_no_worker_tells_cannot_be_listened_to(place, name):
    worker = a_worker(place)
    with pytest.raises(UsageError, match="a worker tells nothing of"):
        worker.add_listener(name, print)
    with pytest.raises(UsageError, match="must be callable"):
        worker.add_listener("started", None)
    worker.stop()


def test_nothing_runs_for_a_worker_that_nobody_listens_to(place):
    with a_worker(place) as worker, a_client(place) as client:
        assert client.submit(working, "x").result(LONG) == "x"
        assert worker.lifecycle.watchers == []
        assert worker.lifecycle.listening is None


def large() -> bytes:
    return b"R" * 1_000_000


def test_what_waits_for_a_listener_keeps_no_result(place):
    go, up = threading.Event(), threading.Event()

    def slow(_event: WorkerEvent) -> None:
        up.set()
        go.wait(LONG)

    worker = a_worker(place, pool="process")
    worker.add_listener("*", slow)
    try:
        with worker, a_client(place) as client:
            for _ in range(5):
                assert len(client.submit(large).result(LONG)) == 1_000_000
            assert up.wait(LONG)
            assert worker.lifecycle.listening is not None
            waiting = list(worker.lifecycle.listening._waiting)
            assert len(waiting) == 9
            assert len(pickle.dumps([event for event, _ in waiting])) < 10_000
            assert {traced for _, traced in waiting} == {None}
            go.set()
    finally:
        go.set()
