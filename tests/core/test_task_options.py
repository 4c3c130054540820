"""How a task is run: tried again, later, first, once, for so long."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import (
    Client,
    ClientClosed,
    RemoteError,
    Retry,
    Task,
    TaskCancelled,
    TaskLost,
    TaskStalled,
    TaskTimeout,
    UsageError,
    defaults,
)

from .task_options_tasks import (
    Own,
    ask_again,
    busy,
    die_until,
    fail_async,
    fail_own,
    fail_until,
    fail_yielding,
    hear_second,
    hold,
    hold_then_fail,
    modest,
    note,
    report_and_fail,
    talkative,
    wait_first,
)

URLS = {"process": "process://", "thread": "thread://", "inline": "inline://", "fork": "fork://?other_threads=allow"}


@pytest.fixture(params=URLS)
def every(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(URLS[request.param]) as client:
        yield client


@pytest.fixture(params=["process", "thread", "fork"])
def one(request: pytest.FixtureRequest) -> Iterator[Client]:
    """One worker: what is submitted behind a `hold` waits."""
    with Client(URLS[request.param], max_workers=1) as client:
        yield client
        for task in list(client._tasks.values()):  # of a test that failed
            task.cancel()


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(max_workers=2) as client:
        yield client


def story(task: Task[Any]) -> list[tuple[Any, ...]]:
    """(attempt, seq, name, args) of each event, without what differs from run to run."""
    return [
        (event.attempt, event.seq, event.name, event.args if event.name not in ("started", "failed") else None)
        for event in task.events()
    ]


# --- retries


def test_a_task_that_fails_is_tried_again(every: Client) -> None:
    task = every.options(retries=3, backoff=0).submit(fail_until, 3)
    assert task.result() == 3
    assert task.exception() is None
    assert story(task) == [
        (1, 1, "started", None),
        (1, 2, "try", (1,)),
        (1, 3, "retrying", ("ValueError: attempt 1", 0.0)),
        (2, 1, "started", None),
        (2, 2, "try", (2,)),
        (2, 3, "retrying", ("ValueError: attempt 2", 0.0)),
        (3, 1, "started", None),
        (3, 2, "try", (3,)),
        (3, 3, "succeeded", (3,)),
    ]


def test_listeners_hear_all_attempts_and_one_end(every: Client) -> None:
    heard: list[Any] = []
    task = every.options(retries=2, backoff=0, delay=0.001).submit(fail_until, 9)
    task.add_listener("*", lambda event: heard.append((event.attempt, event.seq, event.name)))
    with pytest.raises(ValueError, match="attempt 3"):
        task.result()
    assert task.state == "failed"
    assert heard == [entry[:3] for entry in story(task)]
    assert [name for _, _, name in heard].count("failed") == 1
    assert heard[-1] == (3, 3, "failed")


def test_retry_on_tells_what_is_worth_it(every: Client) -> None:
    for kinds in (KeyError, (KeyError, OSError), ()):
        task = every.options(retries=3, retry_on=kinds, backoff=0).submit(fail_until, 2)
        with pytest.raises(ValueError, match="attempt 1"):
            task.result()
    for kinds in (ValueError, (OSError, ValueError), Exception):
        assert every.options(retries=3, retry_on=kinds, backoff=0).submit(fail_until, 2).result() == 2
    assert every.options(retries=1, retry_on=Own, backoff=0).submit(fail_own).result() == 2


def test_retry_asks_for_another_attempt_whatever_retry_on_says(every: Client) -> None:
    options = every.options(retries=1, retry_on=(), backoff=0.002)
    for after, delay in ((0.001, 0.001), (None, 0.002), (0, 0.0)):
        task = options.submit(ask_again, after)
        assert task.result() == 2
        assert next(event.args for event in task.events("retrying")) == ("Retry: not yet", delay)
    with pytest.raises(Retry, match="not yet") as caught:
        options.submit(ask_again, 0, 9).result()
    assert caught.value.after == 0
    with pytest.raises(Retry):
        every.submit(ask_again, 5).result()


def test_every_kind_of_callable_is_tried_again(every: Client) -> None:
    again = every.options(retries=1, backoff=0)
    assert again.submit(fail_async).result() == 2
    task = again.submit(fail_yielding)
    assert task.result() == 2
    assert [event.args for event in task.events("item")][:-1] == [(1,), (2,)]
    assert list(again.map(fail_until, [1, 2, 2])) == [1, 2, 2]


def test_backoff_is_a_number_a_function_or_exponential(every: Client, caplog: pytest.LogCaptureFixture) -> None:
    def delays(**options: Any) -> list[float]:
        task = every.options(retries=2, **options).submit(fail_until, 3)
        task.result()
        return [event.args[1] for event in task.events("retrying") if event.name == "retrying"]

    asked: list[int] = []
    assert delays(backoff=0.001) == [0.001, 0.001]
    assert delays(backoff=lambda attempt: asked.append(attempt) or 0.001 * attempt) == [0.001, 0.002]
    assert asked == [1, 2]
    assert not caplog.records
    with_limits = delays(backoff=lambda attempt: 0 if attempt == 1 else (-1 if asked.clear() else 0))
    assert with_limits == [0.0, 0.0]


@pytest.mark.timeout(30)
def test_a_death_is_worth_another_attempt(client: Client) -> None:
    task = client.options(retries=1, retry_on=(), backoff=0).submit(die_until, 2)
    assert task.result() == 2
    told = story(task)
    assert [entry[:3] for entry in told] == [
        (1, 1, "started"), (1, 2, "last words"), (1, 3, "retrying"), (2, 1, "started"), (2, 2, "succeeded"),
    ]  # fmt: skip
    assert told[2][3][0].startswith("TaskLost: ")
    assert "SIGKILL" in told[2][3][0]
    with pytest.raises(TaskLost):
        client.submit(die_until, 2).result()


def test_what_belongs_to_an_attempt_ends_with_it(one: Client) -> None:
    task = one.options(retries=1, backoff=0).submit(report_and_fail)
    task.add_listener("retrying", lambda *_: task.send("between"))  # kept for the next attempt
    assert task.result() == "between"
    assert task.progress is None


def test_what_is_sent_between_two_attempts_reaches_the_next(one: Client) -> None:
    for _ in range(40):
        task = one.options(retries=1, backoff=0).submit(hear_second)
        for event in task.events("retrying"):  # at whatever moment this thread comes to it
            if event.name == "retrying":
                assert task.send("go")
        assert task.result() is True


def test_a_task_may_be_cancelled_between_two_attempts(every: Client) -> None:
    task = every.options(retries=5, backoff=1000).submit(fail_until, 9)
    assert any(event.name == "retrying" for event in task.events("retrying") if task.cancel() or True)
    with pytest.raises(TaskCancelled) as caught:
        task.result()
    assert caught.value.rung == "unstarted"
    assert [entry[:3] for entry in story(task)] == [
        (1, 1, "started"), (1, 2, "try"), (1, 3, "retrying"), (1, 4, "cancelled"),
    ]  # fmt: skip


def test_a_cancelled_attempt_is_the_last(one: Client) -> None:
    task = one.options(retries=5, backoff=0).submit(hold)
    next(task.events("started"))
    task.cancel()
    with pytest.raises(TaskCancelled):
        task.result()
    assert {event.attempt for event in task.events()} == {1}


def test_leaving_the_block_waits_for_the_last_attempt() -> None:
    with Client(max_workers=1) as client:
        task = client.options(retries=2, backoff=0.01).submit(fail_until, 3)
    assert task.result() == 3


# --- defaults


def test_defaults_of_a_function_hold_unless_the_call_says_otherwise(every: Client) -> None:
    assert every.submit(modest).result() == 2
    assert every.options(priority=1).submit(modest).result() == 2
    assert next(iter(every.map(lambda _: modest(), [1], errors="return"))).args == ("attempt 1",)  # plain when called
    with pytest.raises(ValueError, match="attempt 1"):
        every.options(retries=0).submit(modest).result()
    task = every.submit(talkative)
    task.result()
    assert next(event.args for event in task.events("output")) == ("said",)
    task = every.options(capture=False, delay=0.001).submit(talkative)
    task.result()
    assert len(list(task.events("output"))) == 1  # the end


def test_wrong_options_are_told_at_once(client: Client) -> None:
    with pytest.raises(UsageError, match="unknown option 'retrys': did you mean 'retries'"):
        client.options(retrys=1)
    with pytest.raises(UsageError, match=r"timeout=0 must be a number of seconds > 0"):
        client.options(retries=1).options(timeout=0)
    with pytest.raises(UsageError, match="'timout'"):
        defaults(timout=1)
    assert client.options(retries=1).options(retries=0)._options.retries == 0


# --- delay, priority, unique


def test_a_delayed_task_starts_later(every: Client) -> None:
    began = time.time()
    task = every.options(delay=0.05).submit(abs, -1)
    assert task.state == "pending"
    assert not task.running()
    assert task.result() == 1
    assert next(task.events("started")).time - began > 0.04


def test_what_is_delayed_can_be_cancelled_and_told(one: Client) -> None:
    task = one.options(delay=1000).submit(hold, 1)
    assert task.send("early")
    assert task.cancel()
    with pytest.raises(TaskCancelled):
        task.result(5)
    assert not task.cancel()
    assert [entry[:3] for entry in story(task)] == [(1, 1, "cancelled")]
    task = one.options(delay=0.01).submit(hold, 2)
    assert task.send("early")
    assert task.result() == 2


def test_higher_priorities_go_first_and_equals_in_order(one: Client, tmp_path: Path) -> None:
    path = tmp_path / "order"
    gate = one.submit(hold)
    next(gate.events("started"))
    priorities = [0, -9, 9, 0, 3, 9, -1, 3, 0]
    tasks = [one.options(priority=p).submit(note, path, f"{p} {n}") for n, p in enumerate(priorities)]
    dropped = one.options(priority=9).submit(note, path, "never")
    dropped.cancel()
    gate.send("go")
    for task in tasks:
        task.result()
    expected = [f"{p} {n}" for p, n in sorted(((p, n) for n, p in enumerate(priorities)), key=lambda e: (-e[0], e[1]))]
    assert path.read_text().split("\n")[:-1] == expected


def test_unique_gives_the_task_that_holds_the_key(one: Client) -> None:
    unique = one.options(unique="key", retries=1, backoff=0)
    task = unique.submit(hold_then_fail)
    assert unique.submit(hold_then_fail) is task
    assert one.options(unique="key").submit(abs, -1) is task  # whatever else is said
    assert one.options(unique="other").submit(abs, 1) is not task
    task.send("go")
    for event in task.events("retrying"):
        if event.name == "retrying":
            assert unique.submit(hold_then_fail) is task
            task.send("go")
    assert task.result() == 2
    again = unique.submit(hold_then_fail)
    assert again is not task
    again.cancel()


def test_unique_holds_against_many_threads(one: Client, tmp_path: Path) -> None:
    path, tasks = tmp_path / "runs", []
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        gate = one.submit(hold)
        barrier = threading.Barrier(8)

        def submit() -> None:
            for key in range(20):
                barrier.wait()
                tasks.append((key, one.options(unique=f"{key}").submit(note, path, key)))

        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    gate.send("go")
    for _, task in tasks:
        task.result()
    for key, group in itertools.groupby(sorted(tasks, key=lambda entry: entry[0]), key=lambda entry: entry[0]):
        assert len({id(task) for _, task in group}) == 1, key
    assert sorted(map(int, path.read_text().split())) == list(range(20))


# --- time


def test_a_timeout_is_an_attempts_own(one: Client) -> None:
    task = one.options(timeout=0.15, retries=2, backoff=0).submit(wait_first, ("a", "b"))
    assert task.result() == 3
    reasons = [event.args[0] for event in task.events("retrying")][:-1]
    assert len(reasons) == 2
    assert all(reason.startswith("TaskTimeout: ") and "timeout=0.15" in reason for reason in reasons)
    task = one.options(timeout=0.05).submit(wait_first, ("a",))
    with pytest.raises(TaskTimeout, match=r"wait_first ran longer than timeout=0\.05 s"):
        task.result()
    assert isinstance(task.exception(), TimeoutError)
    assert one.options(timeout=1000, stall=1000).submit(abs, -1).result() == 1


def test_a_task_that_says_nothing_is_stalled(one: Client) -> None:
    task = one.options(stall=0.5).submit(busy, 8, 0.1)
    with pytest.raises(TaskStalled, match=r"stall=0\.5"):
        task.result()
    said = [event for event in task.events("busy") if event.name == "busy"]
    assert len(said) == 8  # each put it off
    assert task.state == "failed"


def test_the_clock_of_a_timeout_starts_with_the_task(one: Client) -> None:
    gate = one.submit(hold)
    task = one.options(timeout=0.1).submit(abs, -1)
    with pytest.raises(TimeoutError):
        task.result(0.2)
    gate.send("go")
    assert task.result() == 1


def test_a_submitter_of_a_closed_client_says_so() -> None:
    with Client(max_workers=1) as client:
        submitter = client.options(retries=1)
        error = submitter.submit(fail_own)
    assert error.result() == 2
    with pytest.raises(ClientClosed):
        submitter.submit(abs, 1)
    assert issubclass(RemoteError, Exception)
