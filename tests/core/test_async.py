"""The same Client and Task under asyncio and trio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio

from revolve_assistant import Client, TaskCancelled, UsageError, current_task, emit


def say(number: int) -> int:
    for index in range(number):
        emit("n", index)
    return number


def pieces() -> Any:
    yield from "abc"
    return "end"


def hold() -> Any:
    message = current_task().receive(30)
    return message.args[0] if message else None


def run_asyncio(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(main())


def run_trio(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return trio.run(main)


both = pytest.mark.parametrize("run", [run_asyncio, run_trio])


@both
def test_await_events_and_items(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with Client(max_workers=1) as client:
            task = client.submit(say, 3)
            await task.queued()
            assert [event.name async for event in task.events()] == ["started", "n", "n", "n", "succeeded"]
            assert await task == 3
            stream = client.submit(pieces)
            assert [item async for item in stream.items()] == ["a", "b", "c"]
            assert await stream == "end"
            with pytest.raises(ZeroDivisionError):
                await client.submit(divmod, 1, 0)

    run(main)


@both
def test_listeners_run_in_the_loop_and_must_not_block_it(run: Callable[..., Any]) -> None:
    async def main() -> None:
        here, heard = threading.get_ident(), []
        async with Client(max_workers=1) as client:
            task = client.submit(say, 2)
            task.add_listener("n", lambda n: heard.append((n, threading.get_ident() == here)))
            assert await task == 2
            assert heard == [(0, True), (1, True)]
            waits = client.submit(hold)
            with pytest.raises(UsageError, match="await the task"):
                waits.result()
            waits.send("go", 5)
            assert await waits == 5

    run(main)


@both
def test_leaving_the_block_waits_for_the_ends(run: Callable[..., Any]) -> None:
    async def main() -> Any:
        async with Client(max_workers=1) as client:
            tasks = [client.submit(say, number) for number in range(20)]
        return [task.result() for task in tasks]

    assert run(main) == list(range(20))


def test_cancelling_who_awaits_does_not_cancel_the_work() -> None:
    async def main() -> None:
        async with Client(max_workers=1) as client:
            task = client.submit(hold)

            async def wait() -> Any:
                return await task

            waiter = asyncio.create_task(wait())
            async for event in task.events("started"):
                if event.name == "started":
                    break
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert not task.done()
            task.send("go", "still there")
            assert await task == "still there"

    asyncio.run(main())


def test_a_cancelled_task_is_not_a_cancelled_coroutine() -> None:
    async def main() -> None:
        async with Client(max_workers=1, ladder=(0.0, 5.0, 5.0)) as client:
            task = client.submit(hold)
            task.cancel()
            with pytest.raises(TaskCancelled) as caught:
                await task
            assert not isinstance(caught.value, asyncio.CancelledError)

    asyncio.run(main())


def test_trio_cancels_who_waits_and_not_the_work() -> None:
    async def main() -> None:
        async with Client(max_workers=1) as client:
            task = client.submit(hold)
            with trio.move_on_after(0.01) as scope:
                await task
            assert scope.cancelled_caught
            task.send("go", 3)
            assert await task == 3

    trio.run(main)


def test_many_are_awaited_at_once() -> None:
    async def main() -> None:
        async with Client(max_workers=2) as client:
            assert await asyncio.gather(*(client.submit(abs, -n) for n in range(2000))) == list(range(2000))

    asyncio.run(main())


def test_asyncios_own_ways_with_futures_and_executors() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Client(max_workers=1) as client:
            assert await asyncio.wrap_future(client.submit(abs, -1)) == 1
            assert await loop.run_in_executor(client, abs, -2) == 2

    asyncio.run(main())


def test_a_loop_that_is_closed_while_tasks_run_harms_nobody() -> None:
    with Client(max_workers=1) as client:
        task = client.submit(hold)

        async def main() -> None:
            async def wait() -> Any:
                return await task

            waiter = asyncio.create_task(wait())
            await asyncio.sleep(0)
            waiter.cancel()

        asyncio.run(main())
        task.send("go", 1)
        assert task.result() == 1
        assert client.submit(abs, -4).result() == 4


def test_one_client_from_several_loops_and_threads() -> None:
    with Client(max_workers=2) as client:

        async def main(base: int) -> list[int]:
            return await asyncio.gather(*(client.submit(abs, -base - n) for n in range(100)))

        found: dict[int, list[int]] = {}

        def go(base: int) -> None:
            found[base] = asyncio.run(main(base))

        threads = [threading.Thread(target=go, args=(base,)) for base in (1000, 2000, 3000)]
        for thread in threads:
            thread.start()
        mine = [client.submit(abs, -n).result() for n in range(100)]
        for thread in threads:
            thread.join()
        assert mine == list(range(100))
        assert found == {base: list(range(base, base + 100)) for base in (1000, 2000, 3000)}
