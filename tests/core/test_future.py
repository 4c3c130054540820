"""`Task` is a Future: `wait`, `as_completed`, done-callbacks and exceptions are those of concurrent.futures.

The corners are those of CPython's own test_concurrent_futures, and the numbers of its issues stand where one is named.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import itertools
import logging
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, RUNNING
from typing import Any

import pytest

from revolve_assistant import Client, RemoteError, Task, TaskLost

from .future_tasks import OwnError, Unwelcome, fail, hear, mul


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(max_workers=2) as client:
        yield client


def future(state: str, exception: BaseException | None = None, result: Any = None) -> cf.Future[Any]:
    made: cf.Future[Any] = cf.Future()
    made._state, made._exception, made._result = state, exception, result
    return made


CANCELLED = future(CANCELLED_AND_NOTIFIED)
FAILED = future(FINISHED, OSError())
DONE = future(FINISHED, result=42)
BUSY = future(RUNNING)


# --- waiting for several
# --- waiting for several


def test_wait_for_the_same_task_twice(client: Client) -> None:  # issue 20369
    task = client.submit(abs, 1)
    assert cf.wait([task, task]) == ({task}, set())


def test_wait_for_the_first(client: Client) -> None:
    held, task = client.submit(hear), client.submit(mul, 21, 2)
    assert cf.wait([BUSY, task, held], return_when=cf.FIRST_COMPLETED) == ({task}, {BUSY, held})
    assert cf.wait([CANCELLED, DONE, held], return_when=cf.FIRST_COMPLETED) == ({CANCELLED, DONE}, {held})
    held.send("go")


def test_wait_for_the_first_exception(client: Client) -> None:
    fine, held = client.submit(mul, 2, 21), client.submit(hear)
    fine.result()
    failed = client.submit(fail)
    found = cf.wait([fine, failed, held, DONE, CANCELLED], return_when=cf.FIRST_EXCEPTION)
    assert found == ({fine, failed, DONE, CANCELLED}, {held})
    assert cf.wait([FAILED, held], return_when=cf.FIRST_EXCEPTION) == ({FAILED}, {held})
    unwelcome = client.submit(Unwelcome)
    assert cf.wait([unwelcome], return_when=cf.ALL_COMPLETED).done
    assert cf.wait([unwelcome, held], return_when=cf.FIRST_EXCEPTION) == ({unwelcome}, {held})
    held.send("go")


def test_wait_for_all(client: Client) -> None:
    tasks = [client.submit(divmod, 2, 0), client.submit(mul, 2, 21), client.options(delay=99).submit(abs, 1)]
    tasks[2].cancel()
    everything = {*tasks, DONE, CANCELLED, FAILED}
    assert cf.wait(everything) == (everything, set())
    assert [task.state for task in tasks] == ["failed", "succeeded", "cancelled"]


def test_wait_times_out(client: Client) -> None:
    held = client.submit(hear)
    assert cf.wait([CANCELLED, FAILED, DONE, held], timeout=0.01) == ({CANCELLED, FAILED, DONE}, {held})
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        list(cf.as_completed([held, DONE], timeout=0.01))
    held.send("go")


def test_as_completed(client: Client) -> None:
    held, tasks = client.submit(hear), [client.submit(mul, i, 1) for i in range(10)]
    found = []
    for each in cf.as_completed(itertools.chain([held, DONE, CANCELLED, FAILED], tasks, tasks)):  # issues 20367, 31641
        found.append(each)
        if len(found) == 13:
            held.send("go")
    assert found[-1] is held
    assert set(found) == {held, DONE, CANCELLED, FAILED, *tasks}
    assert len(found) == 14


def test_as_completed_lets_go_of_what_it_gave(client: Client) -> None:  # issue 14406
    tasks = [client.submit(mul, i, 1) for i in range(5)]
    for task in cf.as_completed(tasks):
        tasks.remove(task)
        reference = weakref.ref(task)
        del task
        gc.collect()
        assert reference() is None


def test_two_threads_wait_for_tasks_and_futures_mixed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*futures: cf.Future[Any]) -> None:
        for _ in range(3000):
            cf.wait(futures, timeout=0)

    low, middle, high = client.submit(hear), cf.Future[Any](), client.submit(hear)
    order = {low: 1, middle: 2, high: 3}  # futures are locked in the order of their ids
    monkeypatch.setattr(cf._base, "id", lambda each: order.get(each, 0), raising=False)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=wait, args=pair, daemon=True) for pair in [(low, middle), (middle, high)]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        sys.setswitchinterval(usual)
    low.send("go")
    high.send("go")


def wait_for_all(futures: list[cf.Future[Any]], start: threading.Barrier) -> int:
    start.wait(30)
    return len(cf.wait(futures, timeout=30).done)


def wait_for_each(futures: list[cf.Future[Any]], start: threading.Barrier) -> int:
    start.wait(30)
    left = set(futures)
    while left and (step := cf.wait(left, timeout=30, return_when=cf.FIRST_COMPLETED)).done:
        left = step.not_done
    return len(futures) - len(left)


def as_they_come(futures: list[cf.Future[Any]], start: threading.Barrier) -> int:
    start.wait(30)
    return sum(1 for _ in cf.as_completed(futures, timeout=30))


def end_all(futures: list[cf.Future[Any]], start: threading.Barrier) -> int:
    start.wait(30)
    for each in futures:
        each.set_result(0)
    return len(futures)


def cancel_all(futures: list[Task[Any]], start: threading.Barrier) -> int:
    start.wait(30)
    return len([each.cancel() for each in futures])


@pytest.mark.parametrize("url", ["process://", "thread://"])
def test_waits_for_overlapping_tasks_and_futures_race_with_their_ends(url: str) -> None:
    """In each of 200 rounds three threads wait for overlapping sets, in three ways, while three others end them all."""
    usual = sys.getswitchinterval()
    with Client(url, max_workers=2) as client, cf.ThreadPoolExecutor(6) as threads:
        sys.setswitchinterval(1e-6)
        try:
            for number in range(200):
                start = threading.Barrier(6)
                own = [cf.Future[Any]() for _ in range(4)]
                tasks = [client.submit(mul, number, index) for index in range(4)]
                mixed: list[cf.Future[Any]] = [*itertools.chain(*zip(own, tasks, strict=True))]
                ways = [(wait_for_all, mixed[:6]), (wait_for_each, mixed[2:]), (as_they_come, mixed)]
                ways += [(end_all, own[:2]), (end_all, own[2:]), (cancel_all, tasks[2:])]
                found = [threads.submit(way, futures, start) for way, futures in ways]  # type: ignore[arg-type]
                assert [each.result(50) for each in found] == [len(futures) for _, futures in ways]
                assert all(not each._waiters for each in mixed)
        finally:
            sys.setswitchinterval(usual)


def test_wait_races_with_the_ends(client: Client) -> None:  # issue 14406
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            assert not cf.wait({client.submit(int) for _ in range(50)}, timeout=30).not_done
    finally:
        sys.setswitchinterval(usual)


def test_asyncio_runs_in_it_and_wraps_it(client: Client) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(client, mul, 6, 7) == 42
        assert await asyncio.gather(asyncio.wrap_future(client.submit(abs, -1)), loop.run_in_executor(client, int)) == [
            1,
            0,
        ]
        with pytest.raises(OwnError):
            await asyncio.wrap_future(client.submit(fail))

    asyncio.run(main())


# --- done-callbacks


def test_done_callbacks_run_in_order_after_the_listeners(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    said: list[Any] = []
    done = threading.Event()

    def refuse(task: Task[Any]) -> None:
        raise OwnError("doh!")

    task = client.submit(hear)
    task.add_listener("succeeded", lambda result: said.append(("listener", result)))
    task.add_done_callback(lambda task: said.append(("first", task.result(), task.done())))
    task.add_done_callback(refuse)
    task.add_done_callback(lambda task: said.append(("second", task.exception())))
    task.add_done_callback(lambda task: done.set())
    task.send("go")
    assert done.wait(30)
    assert said == [("listener", "go"), ("first", "go", True), ("second", None)]
    assert "doh!" in caplog.text


@pytest.mark.parametrize("when", ["early", "late", "after the client is closed"])
def test_done_callbacks_of_every_end(when: str) -> None:
    said: dict[str, Any] = {}
    with Client(max_workers=2) as client:
        tasks = {
            "result": client.submit(abs, -5), "failure": client.submit(fail),
            "exit": client.submit(os._exit, 3), "cancelled": client.options(delay=99).submit(abs, 1),
        }  # fmt: skip
        tasks["cancelled"].cancel()
        if when != "early":
            cf.wait(tasks.values())
        if when.startswith("after"):
            client.shutdown()
        called = {name: threading.Event() for name in tasks}
        for name, task in tasks.items():

            def note(task: Task[Any], name: str = name) -> None:
                said[name] = task.cancelled() or task.exception() or task.result()
                called[name].set()

            task.add_done_callback(note)
        assert all(event.wait(30) for event in called.values())
    assert (said["result"], said["cancelled"]) == (5, True)
    assert (type(said["failure"]), type(said["exit"])) == (OwnError, TaskLost)


# --- exceptions


def test_an_exception_brings_its_traceback(client: Client) -> None:
    error = client.submit(fail, "123").exception()
    assert type(error) is OwnError  # the very class, although the test module may travel by value
    assert error.args == ("123",)
    assert "raise OwnError(text)" in str(error.__cause__)
    with pytest.raises(OwnError) as raised:
        client.submit(fail).result()
    text = "".join(traceback.format_exception(raised.value))
    assert "raise OwnError(text)" in text
    assert "in fail" in text
    assert "revolve_assistant/pool" not in text


def test_notes_and_chains_cross(client: Client) -> None:
    def work() -> None:
        try:
            fail("inner")
        except OwnError as error:
            error.add_note("a note")
            raise LookupError("outer") from error

    error = client.submit(work).exception()
    assert isinstance(error, LookupError)
    assert isinstance(error.__cause__, OwnError)
    assert error.__cause__.__notes__ == ["a note"]
    text = "".join(traceback.format_exception(error))
    assert text.index("OwnError: inner") < text.index("a note") < text.index("LookupError: outer")
    again = client.submit(work).exception()
    assert isinstance(again, LookupError)
    assert again is not error


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_is_no_exception_harms_neither_side(client: Client, kind: type[BaseException]) -> None:
    def work() -> None:
        raise kind("enough")

    pid = client.submit(os.getpid).result()
    with pytest.raises(RemoteError, match=f"{kind.__name__}: enough") as raised:
        client.submit(work).result()
    assert raised.value.type_name == kind.__name__
    assert "raise kind" in raised.value.remote_traceback
    assert client.submit(os.getpid).result() == pid


def test_a_failure_nobody_asked_for_is_logged_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    task = client.submit(fail, "unheard")
    asked = client.submit(fail, "heard")
    cf.wait([task, asked])
    asked.exception()
    del task, asked
    gc.collect()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "OwnError: unheard" in record.getMessage()
