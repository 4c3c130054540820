"""The same Client in coroutines: of asyncio and of trio, in one loop or in many, beside threads."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import functools
import gc
import itertools
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from revolve_assistant import (
    Client,
    Progress,
    TaskCancelled,
    TaskRestarted,
    UsageError,
)

from .async_tasks import blocks, count, fail, hold, speaks, yields, yields_and_fails, yields_async

URLS = ["process://", "thread://", "fork://?other_threads=allow"]


def run_trio(fn: Callable[[], Awaitable[Any]]) -> Any:
    return trio.run(fn)


def run_asyncio(fn: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(fn())  # type: ignore[arg-type]


both = pytest.mark.parametrize("run", [run_asyncio, run_trio], ids=["asyncio", "trio"])
everywhere = pytest.mark.parametrize("url", URLS)


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(max_workers=2) as client:
        yield client
        for task in list(client._tasks.values()):  # of a test that failed
            task.cancel()


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What the calls return, awaited at the same time, in either library."""
    results: list[Any] = [None] * len(calls)

    async def one(index: int, call: Callable[[], Awaitable[Any]]) -> None:
        results[index] = await call()

    if in_trio():
        async with trio.open_nursery() as nursery:
            for index, call in enumerate(calls):
                nursery.start_soon(one, index, call)
    else:
        async with asyncio.TaskGroup() as group:
            for index, call in enumerate(calls):
                group.create_task(one(index, call))
    return results


def in_trio() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def event() -> Any:
    return trio.Event() if in_trio() else asyncio.Event()


# --- awaiting


@both
@everywhere
def test_tasks_are_awaited(run: Any, url: str) -> None:
    async def main() -> None:
        async with Client(url, max_workers=2) as client:
            assert await client.submit(abs, -1) == 1
            task = client.submit(count, 3)
            assert [each.name async for each in task.events()] == ["started", "n", "n", "n", "succeeded"]
            assert [each.args async for each in task.events("n")] == [(0,), (1,), (2,), (3,)]
            assert await task == await task == 3
            assert [item async for item in client.submit(yields, 5).items()] == [0, 1, 2, 3, 4]
            with pytest.raises(ValueError, match="mine"):
                await client.submit(fail)
            tasks = [client.submit(abs, -number) for number in range(20)]
            assert await together(*[functools.partial(wait_for, task) for task in tasks]) == list(range(20))
            held = client.submit(hold, 5)
            held.send("go")
            client.submit(abs, 1)  # dropped: leaving waits for it
        assert held.result() == 5
        assert client._shut

    async def wait_for(task: Any) -> Any:
        return await task

    run(main)


@both
def test_one_of_many_waits_at_once_is_cancelled_and_the_work_goes_on(run: Any) -> None:
    async def main() -> None:
        async with Client(max_workers=1) as client:
            task = client.submit(hold, 7)
            begun, got = event(), []

            async def wait() -> None:
                begun.set()
                await task

            async def read() -> None:
                got.extend([each.name async for each in task.events()])

            for call in (wait, read):
                begun = event()
                if in_trio():
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(call)
                        await trio.testing.wait_all_tasks_blocked()
                        nursery.cancel_scope.cancel()
                else:
                    waiting = asyncio.ensure_future(call())
                    await asyncio.sleep(0)
                    waiting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
                assert not task.done()
                assert not task._stopping
            assert task._wakes in (None, [])
            task.send("go")
            assert await task == 7

    run(main)


@both
def test_a_task_that_was_cancelled_raises_its_own_error(run: Any) -> None:
    async def main() -> None:
        async with Client(max_workers=1) as client:
            task = client.submit(hold)
            async for each in task.events("holds"):
                if each.name == "holds":
                    task.cancel()
            with pytest.raises(TaskCancelled) as caught:
                await task
            assert isinstance(caught.value, cf.CancelledError)
            assert not isinstance(caught.value, asyncio.CancelledError)

    run(main)


@both
def test_two_thousand_tasks_are_awaited(run: Any) -> None:
    async def main() -> None:
        async with Client(max_workers=2) as client:
            tasks = [client.submit(abs, -number) for number in range(2000)]

            async def wait_for(task: Any) -> Any:
                return await task

            assert await together(*[functools.partial(wait_for, task) for task in tasks]) == list(range(2000))

    run(main)


@both
def test_a_generator_that_starts_anew_says_so(run: Any) -> None:
    async def main() -> None:
        async with Client(max_workers=1) as client:
            task = client.options(retries=1, backoff=0).submit(yields_and_fails)
            items = task.items()
            assert await items.__anext__() == 1
            task.send("go")
            with pytest.raises(TaskRestarted):
                await items.__anext__()
            assert [item async for item in items] == []
            task.send("go")
            assert await task == 2

    run(main)


@both
def test_queued_is_there_at_once(run: Any, client: Client) -> None:
    async def main() -> None:
        await client.submit(abs, 1).queued()
        await client.submit(abs, 1).queued(timeout=0.1)

    client.submit(abs, 1).queued()
    run(main)


# --- where listeners run, and what would block the loop


@both
@everywhere
def test_listeners_run_in_the_loops_thread_and_may_not_block_it(run: Any, url: str) -> None:
    async def main() -> None:
        threads: list[int] = []
        refused: list[str] = []
        done = event()
        async with Client(url, max_workers=1) as client:
            task = client.submit(hold)
            task.add_listener("holds", lambda: threads.append(threading.get_ident()))
            task.add_listener("succeeded", lambda result: threads.append(threading.get_ident()))
            task.add_done_callback(lambda task: (threads.append(threading.get_ident()), done.set()))
            calls: list[Callable[[], Any]] = [
                task.result,
                task.exception,
                lambda: list(task.events()),
                lambda: list(task.items()),
                lambda: list(client.map(abs, [1])),
                lambda: client.submit(abs, 1).result(),
                client.shutdown,
            ]
            async for _ in task.events("holds"):
                break
            try:
                for call in calls:
                    with pytest.raises(UsageError):
                        call()
                    refused.append("")
                assert client.submit(abs, -1)  # refused, so not shut down
            finally:
                task.send("go")
            assert await task is None
            await done.wait()
        assert len(refused) == len(calls)
        assert set(threads) == {threading.get_ident()}

    run(main)


@both
def test_a_listener_in_the_loop_does_not_disturb_it(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Client(max_workers=1) as client:
            task = client.submit(count, 5)
            heard: list[int] = []
            task.add_listener("n", lambda index: heard.append(index) or 1 / 0)
            task.add_listener("n", lambda index: (_ for _ in ()).throw(SystemExit(3)))
            assert await task == 5
            assert heard == [0, 1, 2, 3, 4]

    run(main)
    assert sum("failed at event 'n'" in record.message for record in caplog.records) == 10


@both
def test_leaving_the_block_waits_for_all_ends(run: Any) -> None:
    async def main() -> list[int]:
        async with Client(max_workers=1) as client:
            tasks = [client.submit(count, number) for number in range(20)]
        return [task.result() for task in tasks]

    assert run(main) == list(range(20))


@both
def test_after_the_block_the_results_are_there_for_anybody(run: Any) -> None:
    async def main() -> Any:
        async with Client(max_workers=1) as client:
            task = client.submit(count, 3)
            task.add_listener("n", heard.append)
        assert task.result() == 3
        return task

    heard: list[int] = []
    task = run(main)
    assert heard == [0, 1, 2]
    assert task.result() == 3
    assert [each.name for each in task.events()][-1] == "succeeded"


# --- asyncio's own bridges


def test_bridges_of_asyncio(client: Client) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.wrap_future(client.submit(abs, -2)) == 2
        with pytest.raises(ValueError, match="mine"):
            await asyncio.wrap_future(client.submit(fail))
        assert await loop.run_in_executor(client, count, 3) == 3
        assert await asyncio.gather(*[client.submit(abs, -number) for number in range(2000)]) == list(range(2000))
        done, pending = await asyncio.wait([asyncio.wrap_future(client.submit(abs, 1))])
        assert (len(done), len(pending)) == (1, 0)
        task = client.submit(hold)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.01)
        assert not task.done()
        task.send("go")
        await task
        cancelled = client.submit(hold)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):  # what wrap_future makes of it
            await asyncio.wrap_future(cancelled)

    asyncio.run(main())


def test_the_loop_may_be_gone_when_a_task_ends(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[Any]:
        tasks = [client.submit(hold, number) for number in range(2)]
        waiting = [asyncio.ensure_future(wait_for(tasks[0])), asyncio.wrap_future(tasks[1])]
        await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        return tasks

    async def wait_for(task: Any) -> Any:
        return await task

    first, second = asyncio.run(main())
    assert second._stopping  # wrap_future cancels what it wraps
    first.send("go")
    assert first.result() == 0
    with pytest.raises(TaskCancelled):
        second.result()
    assert not caplog.records


def test_a_client_whose_loop_is_gone_works_on(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    async def main() -> tuple[Client, Any]:
        client = await Client(max_workers=1).__aenter__()
        task = client.submit(hold, 3)
        task.add_listener("*", lambda each: heard.append((each.name, threading.get_ident())))
        async for _ in task.events("holds"):
            break
        return client, task

    client, task = asyncio.run(main())
    task.send("go")
    assert task.result() == 3
    assert client.submit(abs, -1).result() == 1
    client.shutdown()
    assert [name for name, _ in heard] == ["started", "holds", "succeeded"]
    assert not caplog.records


def test_no_loop_is_kept_alive(client: Client) -> None:
    loops = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        task = client.submit(count, 3)
        assert [each async for each in task.events()]
        await task

    asyncio.run(main())
    gc.collect()
    assert loops[0]() is None


def test_one_client_in_several_loops_and_threads_at_once(client: Client) -> None:
    failures: list[BaseException] = []

    async def in_loop() -> None:
        for number in range(15):
            task = client.submit(count, 4)
            names = [each.name async for each in task.events()]
            assert names == ["started", "n", "n", "n", "n", "succeeded"]
            assert await task == 4
            assert await client.submit(abs, -number) == number

    def in_thread() -> None:
        for number in range(15):
            task = client.submit(count, 4)
            assert [each.args[0] for each in task.events("n")] == [0, 1, 2, 3, 4]
            assert list(client.map(abs, [-number, number])) == [number, number]

    def guarded(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    calls = [lambda: run_asyncio(in_loop), lambda: run_trio(in_loop), in_thread] * 3
    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- callables that are coroutines


@everywhere
def test_coroutines_are_tasks_like_others(url: str) -> None:
    with Client(url, max_workers=1) as client:
        task = client.submit(speaks, 5)
        task.add_listener("before", lambda value: task.send("go"))
        task.add_listener("question", lambda number, text: task.send("answer", 2))
        assert task.result() == 7
        assert [each.name for each in task.events()] == [
            "started", "before", "progress", "after", "question", "succeeded",
        ]  # fmt: skip
        assert task.progress == Progress(0.5)
        assert ["event loop" in text for text in client.submit(blocks).result()] == [True, True]
        assert list(client.submit(yields_async, 50).items()) == list(range(50))


def test_many_coroutines_wait_in_one_child_and_each_hears_its_own(client: Client) -> None:
    tasks = [client.submit(speaks, number) for number in range(60)]
    for task, number in zip(tasks, itertools.count(1), strict=False):
        task.add_listener("question", lambda _, text, task=task, number=number: task.send("answer", number))
    for task in tasks:
        next(task.events("before"))
    for task in reversed(tasks):  # the last is answered first
        task.send("go")
        task.result()
    assert [task.result() for task in tasks] == [2 * number + 1 for number in range(60)]


@pytest.mark.parametrize("begun", [False, True])
def test_a_coroutine_gets_its_child_while_plain_tasks_hold_theirs(begun: bool) -> None:
    with Client(max_workers=2) as client:
        held = [client.submit(hold), client.submit(hold)]
        if begun:
            for task in held:
                next(task.events("holds"))
        assert list(client.submit(yields_async, 2).items()) == [0, 1]
        for task in held:
            task.send("go")


def test_show_says_that_it_would_wait_for_its_own_loop(capsys):
    async def main():
        async with Client("thread://") as client:
            task = client.submit(len, "abc")
            for _ in range(2):  # before and after its end
                with pytest.raises(UsageError, match=r"asyncio\.to_thread"):
                    task.show()
                await task
            await asyncio.to_thread(task.show)

    asyncio.run(main())
