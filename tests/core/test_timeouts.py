"""Coroutines and threads are cancelled too, each in its way; time-outs and stalls climb the same ladder as `cancel`.

`ladder=(…)` are the seconds from flag to exception to SIGTERM to SIGKILL: 0 is at once, NEVER longer than any test.
"""

from __future__ import annotations

import concurrent.futures as cf
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, Task, TaskCancelled, TaskLost, TaskStalled, TaskTimeout, current_task, emit
from revolve_assistant.pool import ladder

from .timeouts_tasks import (
    NEVER,
    blocking,
    hear,
    idle,
    looking,
    loop,
    nothing,
    once_more,
    receiving_too,
    stubborn,
    swallow,
    yielding_too,
)

Made = Callable[..., Client]


@pytest.fixture
def make() -> Iterator[Made]:
    made: list[Client] = []

    def make(ladder: Any = (NEVER, NEVER, NEVER), max_workers: int = 1, **options: Any) -> Client:
        made.append(Client(max_workers=max_workers, ladder=ladder, **options))
        return made[-1]

    yield make
    for client in made:
        client._close()  # a test that failed may leave what never ends


def running(task: Task[Any]) -> Task[Any]:
    """The callable says `here` once it is where it shall be stopped."""
    next(iter(task.events("here")))
    return task


def rung_of(task: Task[Any]) -> str:
    """The rung of a task that ended as cancelled, in every way in which one can look at it."""
    with pytest.raises(TaskCancelled, match="was cancelled") as raised:
        task.result(timeout=30)
    assert isinstance(raised.value, cf.CancelledError)
    with pytest.raises(cf.CancelledError):
        task.exception()
    assert (task.state, task.cancelled(), task.done(), task.running()) == ("cancelled", True, True, False)
    *_, last = task.events()
    assert (last.name, last.args) == ("cancelled", (raised.value.rung,))
    assert task.cancel() is False
    return raised.value.rung


# --- time-outs and stalls


@pytest.mark.parametrize(
    ("fn", "ladder", "rung"),
    [(hear, (NEVER,) * 3, "flag"), (loop, (0, NEVER, NEVER), "exception"), (swallow, (0, 0, NEVER), "SIGTERM")],
)
def test_a_timeout(make: Made, fn: Callable[..., Any], ladder: Any, rung: str) -> None:
    client = make(ladder)
    client.submit(nothing).result()  # this module is imported over there, and in no hurry
    task = client.options(timeout=0.1).submit(fn)
    with pytest.raises(TaskTimeout, match=rf"{fn.__name__} ran longer than timeout=0\.1 s") as raised:
        task.result()
    assert isinstance(raised.value, TimeoutError)
    assert raised.value.__notes__ == [f"stopped by: {rung}"]
    assert task.state == "failed"
    assert not task.cancelled()


def test_a_timeout_starts_with_the_attempt(make: Made) -> None:
    def work(seconds: float) -> int:
        if current_task().attempt == 1:
            time.sleep(seconds)
        return current_task().attempt

    client = make((0, NEVER, NEVER))
    first = client.submit(time.sleep, 0.3)
    waiting = client.options(timeout=0.25).submit(work, 0)
    assert waiting.result() == 1
    first.result()
    assert client.options(timeout=0.25, retries=1, backoff=0).submit(work, 60).result() == 2
    assert client.options(timeout=NEVER).submit(work, 0).result() == 1


def test_a_stall(make: Made) -> None:
    def work(events: int) -> int:
        for number in range(events):
            emit("alive")
            time.sleep(0.02 if number < events - 1 else 60)
        return hear()

    client = make((0, NEVER, NEVER))
    first = client.submit(work, 0)
    first.send("go")
    first.result()
    task = client.options(stall=0.2).submit(work, 20)  # longer than that, but heard of
    with pytest.raises(TaskStalled, match=r"work sent no event for stall=0\.2 s, the last one was 'alive'"):
        task.result()
    assert [event.name for event in task.events("alive")].count("alive") == 20
    task = client.options(stall=0.05, retries=1, backoff=0).submit(work, 0)
    with pytest.raises(TaskStalled, match=r"stall=0\.05 s"):
        task.result()
    assert [event.attempt for event in task.events("started")][:2] == [1, 2]


# --- coroutines


@pytest.mark.parametrize(
    ("fn", "rung"), [(looking, "flag"), (receiving_too, "flag"), (yielding_too, "flag"), (idle, "exception")]
)
def test_coroutines_are_stopped_alone(make: Made, fn: Callable[..., Any], rung: str) -> None:
    client = make((0.05 if rung == "exception" else NEVER, NEVER, NEVER))
    other, task = running(client.submit(receiving_too)), running(client.submit(fn))
    assert task.cancel()
    assert rung_of(task) == rung
    assert not other.done()
    other.send("go")
    other.result()


def test_a_coroutine_that_does_not_listen_is_killed_once_it_is_alone(make: Made) -> None:
    client = make((0, 0, 0))
    other, task = running(client.submit(receiving_too)), running(client.submit(stubborn, "/nowhere"))
    task.cancel()
    next(iter(task.events("swallowed")))
    after = client.submit(receiving_too)
    for each in (other, after):
        each.send("go")
        each.result()
    assert rung_of(task) == "SIGKILL"


def test_a_coroutine_that_ends_after_all_leaves_its_child_in_use(make: Made, tmp_path: Path) -> None:
    client = make((0, 0, 0))
    other, task = running(client.submit(receiving_too)), running(client.submit(stubborn, str(tmp_path / "end")))
    task.cancel()
    next(iter(task.events("swallowed")))
    (tmp_path / "end").touch()
    assert task.result() == "ended"
    for each in (client.submit(receiving_too), other):
        each.send("go")
        each.result()


def test_a_coroutine_that_blocks_its_loop_takes_the_others_along(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "ALONE", 0.1)  # seconds that the others have
    client = make((0, 0, 0))
    others = [running(client.submit(receiving_too)) for _ in range(2)]
    task = running(client.submit(blocking))
    others[1].cancel()
    task.cancel()
    assert rung_of(task) == "SIGKILL"
    assert isinstance(others[0].exception(), TaskLost)
    assert f"{task.name} (task {task.id})" in str(others[0].exception())
    assert rung_of(others[1]) == "SIGKILL"
    after = client.submit(receiving_too)
    after.send("go")
    after.result()


def test_the_reason_of_a_retry_names_the_coroutine_at_fault(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "ALONE", 0.1)  # seconds that the others have
    client = make((0, 0, 0))
    innocent = running(client.options(retries=1, backoff=0.0).submit(once_more))
    culprit = running(client.submit(blocking))
    culprit.cancel()
    assert innocent.result() == "again"
    (reason,) = [event.args[0] for event in innocent.events("retrying") if event.name == "retrying"]
    assert f"killed to stop {culprit.name} (task {culprit.id})" in reason
    assert rung_of(culprit) == "SIGKILL"


def test_coroutines_that_wait_and_coroutines_that_take_too_long(make: Made) -> None:
    client = make((0.05, NEVER, NEVER), concurrency=1)
    held, waiting = running(client.submit(receiving_too)), client.submit(receiving_too)
    waiting.cancel()
    assert rung_of(waiting) == "unstarted"
    held.send("go")
    held.result()
    with pytest.raises(TaskTimeout):
        client.options(timeout=0.1).submit(idle).result()
    with pytest.raises(TaskStalled):
        client.options(stall=0.1).submit(idle).result()


# --- threads


def look() -> str:
    emit("here")
    while not current_task().cancel_requested:
        time.sleep(0.001)
    return "tidied up"


def test_a_thread_whose_task_is_cancelled_as_it_starts_is_counted_well(monkeypatch: pytest.MonkeyPatch) -> None:
    from revolve_assistant.providers.thread import Engine

    taken, go = threading.Semaphore(0), threading.Semaphore(0)
    run = Engine.run

    def held(self: Engine, job: Any) -> None:
        taken.release()
        go.acquire()
        run(self, job)

    with Client("thread://", max_workers=4) as client:
        monkeypatch.setattr(Engine, "run", held)
        tasks = []
        for _ in range(6):
            tasks.append(client.submit(abs, 1))
            assert taken.acquire(timeout=30)  # a thread has taken it from its lane, and has not begun
            assert tasks[-1].cancel()
            assert tasks[-1].cancel()
            assert client._engine._lanes.count == 0
            go.release()
            cf.wait(tasks)
        monkeypatch.undo()
        assert {rung_of(task) for task in tasks} == {"unstarted"}  # it never ran, so that is what the end says
        barrier = threading.Barrier(4)
        together = [client.submit(barrier.wait, 30) for _ in range(4)]  # as many threads, or it breaks
        assert sorted(task.result() for task in together) == [0, 1, 2, 3]
        assert client._engine._lanes.count == 0


def test_threads_stop_at_the_flag_and_say_so() -> None:
    gate = threading.Event()
    with Client("thread://", max_workers=1) as client:
        task = running(client.submit(look))
        waiting = client.submit(abs, 1)
        assert waiting.cancel()
        assert rung_of(waiting) == "unstarted"
        task.cancel()
        assert rung_of(task) == "flag"
        deaf = running(client.submit(lambda: emit("here") or gate.wait(30)))
        assert deaf.cancel()  # taken, and all that a thread can do about it
        assert not deaf.done()
        gate.set()
        assert deaf.result() is True
        with pytest.raises(TaskTimeout, match=r"timeout=0\.05 s"):
            client.options(timeout=0.05).submit(hear).result()
        with pytest.raises(TaskStalled):
            client.options(stall=0.05).submit(hear).result()
        assert client.submit(abs, -2).result() == 2
