"""Every rung of the cancel ladder, from everywhere, at every moment. (`test_timeouts` has coroutines and threads.)

`ladder=(…)` are the seconds from flag to exception to SIGTERM to SIGKILL: 0 is at once, NEVER longer than any test.

Over 600 lines: its parts share the callables and fixtures at its head.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from revolve_assistant import (
    CancelSignal,
    Client,
    Task,
    TaskCancelled,
    UsageError,
    current_task,
    emit,
    report,
)

from .cancel_tasks import (
    asking,
    catch_exceptions,
    catching,
    check,
    hear,
    hold_the_lock,
    look,
    loop,
    receiving,
    step,
    swallow,
    wait_for_a_lock,
    wait_for_a_pipe,
    wait_for_a_program,
    wait_for_a_queue,
    yielding,
)

NEVER = 1000.0
AT_ONCE = (0.0, 0.0, 0.0)
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


def started(task: Task[Any]) -> Task[Any]:
    next(iter(task.events("started")))
    return task


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


# --- the flag


@pytest.mark.parametrize("fn", [look, step, check, yielding, asking, receiving, catching])
def test_the_flag_is_enough_for_who_looks(make: Made, fn: Callable[..., Any]) -> None:
    client = make()
    pid = client.submit(os.getpid).result()
    task = running(client.submit(fn))
    assert task.cancel() is True
    assert rung_of(task) == "flag"
    assert client.submit(os.getpid).result() == pid


def test_the_flag_reaches_who_waits_for_a_slow_reader(make: Made) -> None:
    def work() -> None:
        emit("here")
        while True:
            emit("data", b"x" * 100_000)

    task = make().submit(work)
    events = task.events()
    while next(events).name != "data":
        pass
    task.cancel()
    assert rung_of(task) == "flag"
    events.close()


# --- the exception


@pytest.mark.parametrize(
    "fn", [wait_for_a_lock, wait_for_a_queue, wait_for_a_pipe, wait_for_a_program, loop, catch_exceptions]
)
def test_the_exception_interrupts(make: Made, fn: Callable[..., Any]) -> None:
    def work() -> None:
        try:
            emit("here")
            fn()
        finally:
            emit("cleaned up", os.getpid())

    client = make((0, NEVER, NEVER))
    task = running(client.submit(work))
    task.cancel()
    assert rung_of(task) == "exception"
    [pid] = [event.args[0] for event in task.events("cleaned up") if event.args and event.name == "cleaned up"]
    assert client.submit(os.getpid).result() == pid


def test_a_signal_that_was_lost_on_the_callable_is_sent_again(make: Made) -> None:
    def work() -> None:
        lost = []
        ours = signal.signal(signal.SIGINT, lambda number, _frame: lost.append(number))
        emit("here")
        while not lost:
            time.sleep(0.01)
        signal.signal(signal.SIGINT, ours)
        time.sleep(60)

    task = running(make((0, NEVER, NEVER)).submit(work))
    task.cancel()
    assert rung_of(task) == "exception"


def test_the_work_may_still_succeed_or_fail(make: Made) -> None:
    def work(how: str) -> str:
        try:
            time.sleep(60)
        except CancelSignal:
            if how == "fail":
                raise ValueError(how) from None
        return how

    def asleep(task: Task[Any]) -> Task[Any]:
        while "time.sleep(60)" not in client.stack(started(task)):
            pass
        return task

    client = make((0, NEVER, NEVER))
    task = asleep(client.submit(work, "succeed"))
    assert task.cancel()
    assert task.result() == "succeed"
    assert not task.cancelled()
    task = asleep(client.options(retries=3).submit(work, "fail"))
    assert task.cancel()
    with pytest.raises(ValueError, match="fail"):
        task.result()
    assert task.state == "failed"


# --- the signals


@pytest.mark.parametrize(
    ("fn", "ignored", "rung"),
    [
        (swallow, [], "SIGTERM"),
        (swallow, [signal.SIGINT], "SIGTERM"),
        (hold_the_lock, [], "SIGTERM"),
        (swallow, [signal.SIGTERM], "SIGKILL"),
        (hold_the_lock, [signal.SIGTERM], "SIGKILL"),
    ],
)
def test_signals_end_who_does_not_listen(make: Made, fn: Any, ignored: list[int], rung: str) -> None:
    client = make((0, 0.05, 0.05 if rung == "SIGKILL" else NEVER))
    pid = client.submit(os.getpid).result()
    task = running(client.submit(fn, *ignored))
    task.cancel()
    assert rung_of(task) == rung
    assert client.submit(os.getpid).result() != pid


def test_a_stopped_process_is_killed(make: Made) -> None:
    task = make(AT_ONCE).submit(lambda: emit("pid", os.getpid()) or os.kill(os.getpid(), signal.SIGSTOP))
    pid = next(iter(task.events("pid"))).args[0]
    assert os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    task.cancel()
    assert rung_of(task) == "SIGKILL"


def test_one_that_handles_sigterm_leaves_no_child_behind(make: Made) -> None:
    def work() -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        said = False
        while True:
            try:
                said = said or emit("here") is None
                time.sleep(60)
            except CancelSignal:
                continue

    client = make((0, 0.05, NEVER))
    task = running(client.submit(work))
    task.cancel()
    assert rung_of(task) == "SIGTERM"
    [pid] = {client.submit(os.getpid).result() for _ in range(3)}
    assert [child.pid for child in client._engine.children if not child.stopping] == [pid]


def test_signals_that_the_caller_blocks_or_ignores_reach_its_children(make: Made) -> None:
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        client = make((0, 0.05, NEVER))
        asleep = running(client.submit(lambda: emit("here") or time.sleep(60)))
        assert "test_cancel.py" in client.stack(asleep)
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
    deaf = client.submit(swallow)
    asleep.cancel()
    assert rung_of(asleep) == "exception"
    running(deaf).cancel()
    assert rung_of(deaf) == "SIGTERM"


@pytest.mark.parametrize("wrong", [(1, 2), (1, 2, 3, 4), (1, 2, -1), (1, 2, "3"), 5, "abc", (1, 2, float("nan"))])
def test_the_ladder_is_three_numbers(wrong: Any) -> None:
    with pytest.raises(UsageError, match="ladder"):
        Client(ladder=wrong)


# --- what has not begun


def test_waiting_tasks_end_at_once(make: Made) -> None:
    client = make()
    held = started(client.submit(hear))
    waiting = [client.submit(abs, i) for i in range(10)]
    waiting += [client.options(priority=5).submit(abs, 10), client.options(delay=NEVER).submit(abs, 11)]
    for task in waiting[::2]:
        assert task.state == "pending"
        assert task.cancel()
        assert rung_of(task) == "unstarted"
        assert [event.name for event in task.events()] == ["cancelled"]
    waiting[11].cancel()
    held.send("go")
    assert [task.result() for task in waiting[1:11:2]] == [1, 3, 5, 7, 9]


def test_a_thread_whose_task_is_cancelled_as_it_starts_is_counted_well() -> None:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Client("thread://", max_workers=4) as client:
            for _ in range(1000):
                task = client.submit(abs, 1)
                task.cancel()
                cf.wait([task])
            barrier = threading.Barrier(3)
            tasks = [client.submit(barrier.wait, 10) for _ in range(3)]  # as many threads, or it breaks
            assert sorted(task.result() for task in tasks) == [0, 1, 2]
    finally:
        sys.setswitchinterval(usual)


def test_what_they_held_is_let_go_at_once(make: Made) -> None:
    client = make()
    held = started(client.submit(hear))
    arrays = [numpy.zeros(1 << 16) for _ in range(10)]
    gone = [threading.Event() for _ in arrays]
    kept = [weakref.ref(array, lambda _, event=event: event.set()) for array, event in zip(arrays, gone, strict=True)]
    for _ in range(len(arrays)):
        client.submit(len, arrays.pop()).cancel()
    gc.collect()
    assert all(event.wait(10) for event in gone)
    assert not any(reference() is not None for reference in kept)
    held.send("go")


class Weighty:
    """An argument whose end one can see; `bytes` on its way."""

    def __reduce__(self) -> Any:
        return (bytes, (b"x",))


@pytest.mark.parametrize("url", ["process://", "thread://"])
def test_what_waiting_tasks_held_is_let_go_at_once(make: Made, url: str) -> None:
    client = make() if url == "process://" else Client(url, max_workers=1)
    with client:
        held = started(client.submit(hear))
        if url == "process://":
            numpy = pytest.importorskip("numpy")
            things: list[Any] = [numpy.zeros(1 << 16) for _ in range(10)]  # travels beside: the task holds it
        else:
            things = [Weighty() for _ in range(10)]
        kept = [weakref.ref(thing) for thing in things]
        for _ in range(len(things)):
            client.submit(len, things.pop()).cancel()
        gc.collect()
        assert not any(reference() is not None for reference in kept)
        held.send("go")


@pytest.mark.parametrize("url", ["process://", "thread://"])
def test_cancelled_tasks_do_not_pile_up_behind_a_long_one(make: Made, url: str) -> None:
    client = make() if url == "process://" else Client(url, max_workers=1)
    with client:
        held = started(client.submit(hear))
        lanes = client._engine.feeder.lanes["plain"] if url == "process://" else client._engine._lanes
        stay = [client.submit(abs, -number) for number in range(10)]
        stay += [client.options(priority=priority).submit(abs, -10) for priority in (5, -5)]
        for number in range(1000):
            client.options(priority=number % 3).submit(abs, number).cancel()
            assert sum(map(len, lanes._lanes.values())) <= 12 + 65
            assert lanes.count == 12
        held.send("go")
        assert [task.result() for task in stay] == [*range(10), 10, 10]
        assert lanes.count == lanes._dropped == sum(map(len, lanes._lanes.values())) == 0


def test_prefetched_tasks_are_taken_back(make: Made, tmp_path: Path) -> None:
    def work(number: int, seconds: float = 0) -> int:
        (tmp_path / str(number)).touch()
        time.sleep(seconds)
        return number

    client = make()
    for _ in range(10):
        client.submit(work, 0).result()
    held = client.submit(work, 1, 0.2)
    tasks = [client.submit(work, i) for i in range(2, 40)]
    for task in tasks[::2]:
        assert task.cancel()
    held.result()
    assert {rung_of(task) for task in tasks[::2]} == {"unstarted"}
    assert [task.result() for task in tasks[1::2]] == list(range(3, 40, 2))
    assert {int(name) for name in os.listdir(tmp_path)} == {0, 1, *range(3, 40, 2)}


def test_a_cancel_at_any_moment_is_kept_or_harmless(make: Made, tmp_path: Path) -> None:
    def work(number: int) -> int:
        with open(log, "a") as file:
            file.write(f"{number}\n")
        return number

    log = str(tmp_path / "log")
    client = make((0, 5, 5), max_workers=2)
    tasks = []
    for number in range(2000):
        tasks.append(client.submit(work, number))
        if number % 3 == 0:
            tasks[number - number % 7].cancel()
    cf.wait(tasks)
    ran = sorted(map(int, Path(log).read_text().split()))
    assert len(ran) == len(set(ran))
    for number, task in enumerate(tasks):
        if task.cancelled():
            assert number not in ran or rung_of(task) != "unstarted"
        else:
            assert task.result() == number


@pytest.mark.parametrize("fn", [swallow, hold_the_lock])
def test_innocents_behind_a_killed_task_run(make: Made, fn: Callable[..., Any], tmp_path: Path) -> None:
    def work(number: int) -> int:
        if number == 5:
            fn(signal.SIGTERM)
        with open(log, "a") as file:
            file.write(f"{number}\n")
        return number

    log = str(tmp_path / "log")
    client = make(AT_ONCE)
    client.submit(work, 0).result()  # known to be fast: the next ones are given together
    tasks = [client.submit(work, number) for number in range(20)]
    running(tasks[5]).cancel()
    assert rung_of(tasks.pop(5)) == "SIGKILL"
    assert [task.result() for task in tasks] == [i for i in range(20) if i != 5]
    assert sorted(map(int, Path(log).read_text().split())) == sorted([0, *(i for i in range(20) if i != 5)])


# --- from everywhere


def test_from_a_coroutine(make: Made) -> None:
    async def main() -> None:
        async with make() as client:
            task = client.submit(hear)
            async for _ in task.events("started"):
                break
            waiter = asyncio.create_task(_await(task))
            await asyncio.sleep(0)
            waiter.cancel()  # concerns the waiter alone
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert not task.done()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_await(task), 0.01)
            assert task.cancel()
            with pytest.raises(TaskCancelled) as raised:
                await task
            assert not isinstance(raised.value, asyncio.CancelledError)
            assert raised.value.rung == "flag"

    async def _await(task: Task[Any]) -> Any:
        return await task

    asyncio.run(main())


def test_from_a_thread_while_another_waits(make: Made) -> None:
    task = started(make().submit(hear))
    thread = threading.Thread(target=task.cancel)
    thread.start()
    assert rung_of(task) == "flag"
    thread.join()


@pytest.mark.parametrize("whose", ["its own", "another's", "a done-callback"])
def test_from_a_listener(make: Made, whose: str) -> None:
    def work() -> None:
        emit("here")
        report(0.5)
        hear()

    client = make(max_workers=2)
    task = client.submit(work)
    answers: list[bool] = []
    if whose == "its own":
        task.add_listener("progress", lambda _: answers.append(task.cancel()))
    elif whose == "another's":
        other = client.submit(work)
        other.add_listener("progress", lambda _: answers.append(task.cancel()))
        other.send("go")
    else:
        client.submit(abs, 1).add_done_callback(lambda _: answers.append(task.cancel()))
    assert rung_of(task) in ("flag", "unstarted")
    assert answers == [True]


def test_a_second_cancel_changes_nothing(make: Made) -> None:
    client = make((0, NEVER, NEVER))
    task = running(client.submit(lambda: emit("here") or time.sleep(60)))
    assert task.cancel() is True
    task.cancel()
    assert rung_of(task) == "exception"
    assert [event.name for event in task.events()] == ["started", "here", "cancelled"]
    done = client.submit(abs, 1)
    done.result()
    assert done.cancel() is False
    assert done.state == "succeeded"


# --- retries


def test_during_the_delay_of_a_retry(make: Made) -> None:
    client = make()
    task = client.options(retries=5, backoff=NEVER).submit(divmod, 1, 0)
    next(iter(task.events("retrying")))
    assert task.cancel()
    assert rung_of(task) == "unstarted"
    assert [event.name for event in task.events()] == ["started", "retrying", "cancelled"]


def test_during_a_later_attempt(make: Made) -> None:
    def work() -> None:
        emit("attempt", current_task().attempt)
        if current_task().attempt < 3:
            raise ValueError
        hear()

    client = make()
    for _ in range(10):
        task = client.options(retries=5, backoff=0).submit(work)
        for event in task.events("attempt"):
            if event.args == (3,):
                task.cancel()
        assert rung_of(task) == "flag"


def test_at_any_moment_of_the_attempts(make: Made) -> None:
    client = make((0, NEVER, NEVER))
    for moment in range(30):
        task = client.options(retries=10**6, backoff=0).submit(divmod, 1, 0)
        for number, _ in enumerate(task.events()):
            if number == moment:
                task.cancel()
        assert task.state in ("cancelled", "failed")
        cf.wait([task])


# --- live stacks


@pytest.mark.parametrize("fn", [hold_the_lock, swallow])
def test_a_stack_shows_the_callable(make: Made, fn: Callable[..., Any]) -> None:
    client = make(AT_ONCE)
    task = running(client.submit(fn))
    for asked in (task, task.id):
        text = client.stack(asked)
        assert f"in {fn.__name__}" in text
        assert "cancel_tasks.py" in text
        assert "revolve_assistant/pool" not in text
    waiting = client.submit(abs, 1)
    with pytest.raises(LookupError, match="is not running"):
        client.stack(waiting)
    task.cancel()
    assert rung_of(task) in ("SIGTERM", "SIGKILL")
    waiting.result()
    with pytest.raises(LookupError):
        client.stack(task)
