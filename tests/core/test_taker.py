"""How many tasks a worker takes, and that what it took too early does not wait behind a slow one."""

from __future__ import annotations

from typing import Any

from revolve_assistant import Client, Worker, current_task


def waits() -> Any:
    message = current_task().receive(60)
    return message.args if message is not None else None


def test_what_was_taken_in_advance_goes_back_when_a_task_turns_out_slow() -> None:
    with Client("memory://taker") as client, Client("memory://taker") as other:
        quick = [client.submit(abs, -n) for n in range(4000)]
        slow = client.submit(waits)
        behind = [other.submit(abs, -n) for n in range(200)]
        behind[-1].queued(30)
        with Worker("memory://taker", concurrency=1) as first:
            assert [task.result(60) for task in quick] == list(range(4000))
            next(slow.events("started"))
            # A second worker gets all that waits, also what the first one had taken while all was quick.
            with Worker("memory://taker", concurrency=1):
                assert [task.result(60) for task in behind] == list(range(200))
            assert slow.state == "running"
            assert [event.name for event in behind[-1].events()] == ["started", "succeeded"]
            slow.send("enough", 1)
            assert slow.result(60) == (1,)
            assert first.taker.held == {} or first.taker.held.keys() == {slow.id}


def test_slow_tasks_are_not_taken_in_advance() -> None:
    with Client("memory://taker-slow") as client, Worker("memory://taker-slow", concurrency=2) as worker:
        tasks = [client.submit(waits) for _ in range(6)]
        for task in tasks[:2]:
            next(task.events("started"))
        assert len(worker.taker.held) == 2
        assert worker.queue.state([tasks[2].id]) == {tasks[2].id: "queued"}
        for task in tasks:
            task.send("enough")
        assert [task.result(60) for task in tasks] == [()] * 6
