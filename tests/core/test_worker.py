"""A Client on a queue and the Worker that serves it, over `memory://`: what a task says, hears and becomes.

Over 600 lines: its parts share the callables and fixtures at its head.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from revolve_assistant import (
    Client,
    ClientClosed,
    NotCarriable,
    Overloaded,
    RemoteError,
    Task,
    TaskCancelled,
    TaskLost,
    TaskRestarted,
    TaskStalled,
    TaskTimeout,
    Unreachable,
    UsageError,
)
from revolve_assistant.caller import reckoning
from revolve_assistant.providers.memory import Messenger, Queue
from revolve_assistant.worker import Worker

from .worker_tasks import (
    LONG,
    Own,
    big,
    big_alone,
    conversation,
    counting,
    die,
    double,
    fail,
    hears_twice,
    items_twice,
    printing,
    raise_grumpy,
    same,
    silent,
    story,
    stubborn,
    talk_async,
    tracked,
    twice,
    twice_after,
    unpicklable,
    until_interrupted,
    until_stopped,
    waiting,
    waits_for,
)

SECRET = "a secret of these tests only"
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


def note(path: str, word: str) -> None:
    with open(path, "a") as file:
        file.write(word + "\n")


# --- the story of a task


def test_a_task_tells_its_story_in_order_and_then_its_result(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        task = client.submit(story)
        events = list(task.events())
        assert [event.name for event in events] == ["started", "chapter", "progress", "own", "succeeded"]
        assert events[1].args == (1, "one", b"\0", None, 2.5, [1, {"a": 2}])
        assert events[2].args[0].fraction == 0.5
        assert events[3].args == (Own(3),)
        assert [event.seq for event in events] == [1, 2, 3, 4, 5]
        assert {event.attempt for event in events} == {1}
        assert task.result() == "end"
        assert task.state == "succeeded"


@pytest.mark.parametrize("kind", ["process", "thread", "inline"])
@pytest.mark.parametrize("value", [None, 7, "ä", b"\xff", 1.5, [1], {"a": 1}, Own(1), "\ud800", 1 << 80], ids=repr)
def test_results_come_back_as_they_are(place, kind, value):
    with a_worker(place, kind), a_client(place) as client:
        assert client.submit(double if isinstance(value, int) else same, value).result(LONG) == (
            value * 2 if isinstance(value, int) else value
        )


def test_a_lambda_and_a_closure_travel_by_value(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        outer = 20
        assert client.submit(lambda value: value + outer, 3).result(LONG) == 23


def test_a_failure_comes_back_with_its_traceback(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        task = client.submit(fail, "boom")
        with pytest.raises(ValueError, match="boom"):
            task.result(LONG)
        assert names(task) == ["started", "failed"]
        assert task.state == "failed"


def test_an_error_that_cannot_travel_is_a_remote_error(place, pool):
    with a_worker(place, pool), a_client(place) as client, pytest.raises(RemoteError, match="grr"):
        client.submit(raise_grumpy).result(LONG)


def test_a_result_that_cannot_travel_says_so(place, pool):
    with a_worker(place, pool), a_client(place) as client, pytest.raises(NotCarriable, match="lock"):
        client.submit(unpicklable).result(LONG)


def test_a_generator_streams_its_items(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        task = client.submit(counting, 100)
        assert list(task.items()) == list(range(100))
        assert task.result(LONG) == 100


def test_a_coroutine_function_runs_where_it_should(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        tasks = [client.submit(waiting, str(number)) for number in range(20)]
        assert [task.result(LONG) for task in tasks] == [str(number) for number in range(20)]
        assert names(tasks[0]) == ["started", "awaiting", "succeeded"]


def test_many_coroutines_run_at_once_in_one_child(place):
    with a_worker(place), a_client(place) as client:
        tasks = [client.submit(talk_async) for _ in range(10)]
        for task in tasks:
            next(iter(task.events("ready")))  # all of them wait at the same time
        for number, task in enumerate(tasks):
            task.send("word", number)
        assert [task.result(LONG) for task in tasks] == list(range(10))


def test_progress_of_track_ends_at_one(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        task = client.submit(tracked, 1000)
        assert task.result(LONG) == 499500
        assert task.progress is not None
        assert task.progress.fraction == 1.0


def test_a_big_result_and_event_go_in_pieces(place):
    narrow = _narrow(5000)
    with a_worker(place, messenger=narrow(place)), a_client(place, messenger=narrow(place)) as client:
        task = client.submit(big, 3_000_000)
        assert task.result(LONG) == b"y" * 3_000_000
        assert len(next(iter(task.events("big"))).args[0]) == 1 << 19


def test_a_result_too_large_for_the_messenger_fails_and_says_so(place):
    narrow = _narrow(200)  # 4,096 pieces of 200 bytes at most
    with a_worker(place, messenger=narrow(place)), a_client(place, messenger=narrow(place)) as client:
        with pytest.raises(UsageError, match="does not fit"):
            client.submit(big_alone, 3_000_000).result(LONG)
        assert client.submit(double, 4).result(LONG) == 8  # and the worker goes on


def test_an_event_too_large_for_the_messenger_is_a_gap(place):
    narrow = _narrow(100)
    with a_worker(place, messenger=narrow(place)), a_client(place, messenger=narrow(place)) as client:
        task = client.submit(big, 600_000)
        events = list(task.events())
        assert [event.name for event in events] == ["started", "gap", "failed"]
        assert events[1].args == (1,)


def test_a_messenger_that_breaks_in_an_unheard_of_way_blocks_nobody(place, monkeypatch, caplog):
    from revolve_assistant.worker import speaker

    class Odd(Messenger):
        wrong = 0

        def write(self, messages: Any) -> None:
            if Odd.wrong:
                Odd.wrong -= 1
                raise KeyError("what a library may raise")
            super().write(messages)

    monkeypatch.setattr(speaker, "AGAIN", 0.01)
    with a_worker(place, "inline", messenger=Odd(place.removeprefix("memory://"))) as worker, a_client(place) as client:
        assert client.submit(double, 1).result(LONG) == 2
        Odd.wrong = 1
        task = client.submit(double, 2)
        assert task.result(LONG) == 4  # in a second run
        assert not worker.taker.held or client.submit(double, 3).result(LONG) == 6
    assert "could not be written" in caplog.text


def _narrow(limit: int) -> Callable[[str], Messenger]:
    class Narrow(Messenger):
        traits = msgspec.structs.replace(Messenger.traits, max_bytes=limit)

    return lambda place: Narrow(place.removeprefix("memory://"))


def test_captured_output_comes_as_events(place):
    with a_worker(place), a_client(place) as client:
        task = client.options(capture=True).submit(printing)
        assert task.result(LONG) == "printed"
        found = {event.name: event.args for event in task.events()}
        assert found["output"] == ("to stdout\n",)
        assert found["error_output"] == ("to stderr\n",)
        assert found["log"][1:] == ("printing", "to the log")


# --- async callers


def test_the_same_from_asyncio(place, pool):
    async def main() -> None:
        async with a_client(place) as client:
            task = client.submit(counting, 5)
            await task.queued()
            assert [item async for item in task.items()] == [0, 1, 2, 3, 4]
            assert await task == 5
            assert [event.name async for event in task.events()][-1] == "succeeded"
            with pytest.raises(ValueError, match="on purpose"):
                await client.submit(fail)

    with a_worker(place, pool):
        asyncio.run(main())


def test_the_same_from_trio(place, pool):
    async def main() -> None:
        async with a_client(place) as client:
            task = client.submit(counting, 5)
            await task.queued()
            assert [item async for item in task.items()] == [0, 1, 2, 3, 4]
            assert await task == 5
            with pytest.raises(ValueError, match="on purpose"):
                await client.submit(fail)

    with a_worker(place, pool):
        trio.run(main)


# --- stopping


def test_the_flag_stops_who_looks_at_it(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        task = client.submit(until_stopped)
        next(iter(task.events("up")))
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(LONG)
        assert list(task.events())[-1].args == ("flag",)


def test_an_exception_stops_who_does_not_look(place):
    with a_worker(place), a_client(place) as client:
        task = client.submit(until_interrupted)
        next(iter(task.events("up")))
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(LONG)
        assert list(task.events())[-1].args == ("exception",)


def test_the_last_rung_stops_anybody_and_the_worker_goes_on(place):
    worker = a_worker(place)
    worker.engine.ladder.deadlines = (0.05, 0.1, 0.1)
    with worker, a_client(place) as client:
        task = client.submit(stubborn)
        next(iter(task.events("up")))
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(LONG)
        assert list(task.events())[-1].args == ("SIGKILL",)
        assert client.submit(double, 1).result(LONG) == 2


def test_an_untaken_task_is_taken_back(place):
    with a_client(place) as client:
        task = client.submit(double, 1)
        task.queued()
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(LONG)
        assert names(task) == ["cancelled"]
        assert not task.cancel()


def test_a_task_cancelled_at_once_is_never_sent(place):
    with a_client(place) as client:
        tasks = [client.submit(double, number) for number in range(50)]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with pytest.raises(TaskCancelled):
                task.result(LONG)


def test_a_task_that_waits_for_its_next_attempt_can_be_cancelled(place, pool, tmp_path):
    with a_worker(place, pool), a_client(place) as client:
        task = client.options(retries=1, backoff=LONG).submit(twice, str(tmp_path))
        next(iter(task.events("retrying")))
        assert task.state == "pending"
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(5.0)
        assert len(os.listdir(tmp_path)) == 1


# --- talking


def test_question_answer_and_messages(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        task = client.submit(conversation)
        task.send("word", "early")  # kept until it starts
        question = next(iter(task.events("question")))
        assert question.args[1] == "name?"
        task.send("answer", "Ada")
        task.send("word", "second")
        task.send("word", Own(3))
        assert task.result(LONG) == ["Ada", "early", "second", Own(3)]
        assert not task.send("word", "late")


def test_what_is_sent_between_two_attempts_reaches_the_second(place, pool, tmp_path):
    with a_worker(place, pool), a_client(place) as client:
        task = client.options(retries=1, backoff=0.2).submit(hears_twice, str(tmp_path))
        next(iter(task.events("retrying")))
        task.send("word", "between")
        assert task.result(LONG) == "between"


def test_the_stacks_of_a_running_task(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        task = client.submit(until_stopped)
        next(iter(task.events("up")))
        text = client._engine.stack(task._parcel)
        assert "until_stopped" in text
        task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(LONG)


# --- trying again, and limits


def test_a_failure_is_tried_again(place, pool, tmp_path):
    with a_worker(place, pool), a_client(place) as client:
        task = client.options(retries=2, backoff=0.01).submit(twice, str(tmp_path))
        assert task.result(LONG) == 2
        events = list(task.events())
        assert [event.name for event in events] == ["started", "attempt", "retrying", "started", "attempt", "succeeded"]
        assert [event.attempt for event in events] == [1, 1, 1, 2, 2, 2]
        assert "not yet" in events[2].args[0]


def test_retry_after_says_when(place, pool, tmp_path):
    with a_worker(place, pool), a_client(place) as client:
        task = client.options(retries=1, backoff=LONG).submit(twice_after, str(tmp_path))
        assert task.result(LONG) == 2
        assert next(iter(task.events("retrying"))).args[1] == 0.01


def test_retry_on_and_a_backoff_function_travel(place, pool, tmp_path):
    with a_worker(place, pool), a_client(place) as client:
        kept = client.options(retries=3, retry_on=KeyError, backoff=lambda attempt: 0.01)
        with pytest.raises(ValueError, match="on purpose"):
            kept.submit(fail).result(LONG)
        assert kept.options(retry_on=OSError).submit(twice, str(tmp_path)).result(LONG) == 2


def test_items_of_a_second_attempt_are_never_mixed_in(place, pool, tmp_path):
    with a_worker(place, pool), a_client(place) as client:
        task = client.options(retries=1, backoff=0.01).submit(items_twice, str(tmp_path))
        items = iter(task.items())
        assert next(items) == 1
        with pytest.raises(TaskRestarted):
            next(items)
        task.result(LONG)


def test_a_timeout_ends_an_attempt(place):
    with a_worker(place), a_client(place) as client:
        task = client.options(timeout=0.3).submit(until_interrupted)
        with pytest.raises(TaskTimeout, match=r"0\.3"):
            task.result(LONG)
        assert client.submit(double, 1).result(LONG) == 2


def test_a_timeout_is_worth_another_attempt(place):
    with a_worker(place), a_client(place) as client:
        task = client.options(timeout=0.2, retries=1, backoff=0.01).submit(until_interrupted)
        with pytest.raises(TaskTimeout):
            task.result(LONG)
        assert names(task).count("started") == 2


def test_a_stall_ends_an_attempt(place):
    with a_worker(place), a_client(place) as client, pytest.raises(TaskStalled, match="'up'"):
        client.options(stall=1.0).submit(silent).result(LONG)


def test_a_dead_child_is_another_attempt_and_the_third_is_buried(place, tmp_path):
    with a_worker(place), a_client(place) as client:
        task = client.submit(die, str(tmp_path))
        with pytest.raises(TaskLost, match="SIGKILL") as found:
            task.result(LONG)
        assert "3 children died" in str(found.value.__notes__)
        assert task.state == "failed"
        events = [event.name for event in task.events()]
        assert events.count("started") == 3
        assert events.count("retrying") == 2
        assert events[-1] == "failed"
        assert len(os.listdir(tmp_path)) == 3
        assert client.submit(double, 1).result(LONG) == 2  # the worker goes on
        queue = client._engine.queue
        eventually(lambda: [each.id for each in queue.buried()] == [task.id], "it is buried")


def test_a_child_that_dies_in_silence_still_started(place, tmp_path):
    with a_worker(place), a_client(place) as client:
        task = client.submit(os._exit, 3)
        with pytest.raises(TaskLost, match="3"):
            task.result(LONG)
        assert names(task).count("started") == 3


# --- where and when


def test_higher_priorities_and_earlier_queues_go_first(place, tmp_path):
    with a_client(place) as client:
        path = str(tmp_path / "order")
        tasks = [
            client.options(queue="low").submit(note, path, "low"),
            client.submit(note, path, "plain"),
            client.options(priority=5).submit(note, path, "high"),
            client.options(priority=-5).submit(note, path, "last"),
        ]
        for task in tasks:
            task.queued()
        with a_worker(place, "inline", queues="default,low"):
            for task in tasks:
                task.result(LONG)
        assert Path(path).read_text().split() == ["high", "plain", "last", "low"]


def test_a_worker_serves_its_queues_only(place):
    with a_client(place) as client:
        other = client.options(queue="other").submit(double, 1)
        other.queued()
        with a_worker(place, "thread"):
            assert client.submit(double, 2).result(LONG) == 4
            assert not other.done()
        with a_worker(place, "thread", queues=["other"]):
            assert other.result(LONG) == 2


def test_a_delayed_task_waits(place, pool):
    with a_worker(place, pool), a_client(place) as client:
        began = time.monotonic()
        task = client.options(delay=0.3).submit(double, 1)
        assert client.submit(double, 2).result(LONG) == 4
        assert task.result(LONG) == 2
        assert time.monotonic() - began >= 0.3


def test_one_task_holds_a_unique_key(place, tmp_path):
    gate = tmp_path / "gate"
    with a_worker(place, "thread"), a_client(place) as client:
        keyed = client.options(unique="the one")
        first = keyed.submit(waits_for, str(gate))
        assert keyed.submit(waits_for, str(gate)) is first
        gate.touch()
        first.result(LONG)
        assert keyed.submit(double, 1).result(LONG) == 2


def test_no_more_is_taken_than_runs_soon(place, tmp_path):
    """What waits stays in the queue, where other workers see it."""
    gate = tmp_path / "gate"
    with a_worker(place, concurrency=1) as worker, a_client(place) as client:
        tasks = [client.submit(waits_for, str(gate)) for _ in range(5)]
        next(iter(tasks[0].events("up")))
        assert len(worker.taker.held) == 1
        with a_worker(place, concurrency=4):
            for task in tasks[1:]:
                next(iter(task.events("up")))
            gate.touch()
            for task in tasks:
                task.result(LONG)


# --- the client's side


def test_queued_returns_once_the_queue_has_it(place):
    with a_client(place) as client:
        task = client.submit(double, 1)
        task.queued(5.0)
        assert client._engine.queue.state([task.id]) == {task.id: "queued"}
        task.cancel()


def test_too_many_unacknowledged_tasks_are_refused(place):
    class Slow(Queue):
        gate = threading.Event()

        def submit(self, parcels: Any, sink: Any) -> None:
            self.gate.wait(LONG)
            super().submit(parcels, sink)

    queue = Slow(place.removeprefix("memory://"))
    with a_client(queue, messenger=place, max_pending=10) as client:
        for number in range(10):
            client.submit(double, number)
        with pytest.raises(Overloaded, match="10 tasks wait"):
            [client.submit(double, number) for number in range(600)]
        queue.gate.set()


def test_leaving_the_block_lets_go_and_the_work_goes_on(place, tmp_path):
    path, gate = tmp_path / "done", tmp_path / "gate"
    with a_worker(place, "thread"):
        with a_client(place) as client:
            task = client.submit(waits_and_notes, str(gate), str(path))
        with pytest.raises(ClientClosed):
            task.result(LONG)
        gate.touch()
        eventually(path.exists, "the task went on without its client")


def waits_and_notes(gate: str, path: str) -> None:
    waits_for(gate)
    note(path, "done")


def test_letting_go_is_no_failure_that_nobody_asked_for(place, caplog):
    with a_client(place) as client:
        client.submit(double, 1)
        client.submit(double, 2).queued()
    import gc

    gc.collect()
    assert "nobody asked" not in caplog.text


def test_what_was_read_counts_although_the_server_goes_just_then(place):
    class Going(Messenger):
        wrong = 1

        def forget(self, channel: str, upto: bytes | None = None) -> None:
            if upto is not None and Going.wrong:
                Going.wrong -= 1
                raise Unreachable("gone")
            super().forget(channel, upto)

    with a_worker(place, "thread"), a_client(place, messenger=Going(place.removeprefix("memory://"))) as client:
        task = client.submit(counting, 3)
        assert list(task.items()) == [0, 1, 2]
        assert names(task) == ["started", "item", "item", "item", "succeeded"]


def test_without_a_worker_there_is_one_warning_that_says_what_to_do(place, caplog, monkeypatch):
    monkeypatch.setattr(reckoning, "LONELY", 0.1)
    with a_client(place) as client:
        client.submit(double, 1)
        eventually(lambda: "revolve worker " + place in caplog.text, "the warning")
        client.submit(double, 2)
    assert caplog.text.count("no worker has been heard of") == 1


def test_a_queue_takes_no_settings_of_local_workers(place):
    with pytest.raises(UsageError, match="revolve worker"):
        a_client(place, max_workers=3)
