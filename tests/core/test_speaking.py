"""What a callable says and hears: progress, questions, items, captured texts; groups, attaching, slow readers.

A task that waits for `task.send("go")` (`hold`) is the gate of these tests: nothing waits for time.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

from revolve_assistant import (
    AssistantError,
    Client,
    NotCarriable,
    Progress,
    Retry,
    Task,
    TaskCancelled,
    TaskRestarted,
    UsageError,
    ask,
    current_task,
    emit,
    report,
    track,
)

ENGINES = ["process", "thread", "fork", "inline"]


def hold() -> Any:
    return current_task().receive()


async def hold_async() -> Any:
    return await current_task().receive_async()


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Client]]:
    made = {
        "process": Client(max_workers=2),
        "thread": Client("thread://", max_workers=2),
        "fork": Client("fork://?other_threads=allow", max_workers=2),
        "inline": Client("inline://"),
    }
    for name in ("process", "thread", "fork"):  # all their children and threads are there before the first test
        tasks = []
        for each in ([hold_async] if name == "process" else []) + [hold, hold]:
            tasks.append(made[name].submit(each))
            next(tasks[-1].events("started"))
        for task in tasks:
            task.send("go")
            task.result()
    for client in made.values():  # the clock and the dispatcher, too
        heard = threading.Event()
        client.options(delay=0.0001).submit(abs, 1).add_done_callback(lambda task, heard=heard: heard.set())
        assert heard.wait(20)
    yield made
    for client in made.values():
        for task in list(client._tasks.values()):  # of a test that failed
            task.cancel()
        client.shutdown()


@pytest.fixture(params=ENGINES)
def every(
    request: pytest.FixtureRequest, clients: dict[str, Client], reaped: Callable[[Client], None]
) -> Iterator[Client]:
    yield clients[request.param]
    reaped(clients[request.param])


@pytest.fixture(params=ENGINES[:3])
def live(
    request: pytest.FixtureRequest, clients: dict[str, Client], reaped: Callable[[Client], None]
) -> Iterator[Client]:
    yield clients[request.param]
    reaped(clients[request.param])


def names(events: Any) -> list[str]:
    return [event.name for event in events]


def args(task: Task[Any], name: str) -> list[Any]:
    return [event.args if len(event.args) != 1 else event.args[0] for event in task.events(name)][:-1]


def count(number: int) -> int:
    for index in range(number):
        emit("n", index)
    return number


def fail() -> None:
    raise ValueError("mine")


class Mute:
    def __reduce__(self) -> Any:
        raise ValueError("I stay")


# --- progress


def tracked() -> list[Any]:
    seen: list[Any] = [list(track([])), list(track("abc", "letters")), list(track(iter("ab"), total=4))]
    seen.append(list(track(iter("ab"))))
    for item in track(range(10), "left early"):
        if item == 4:
            break
    del item
    outer = track(range(2), "outer", total=numpy.int64(2))
    seen.append([(a, list(track("x", "inner \udc80"))) for a in outer])
    report(0)
    report(numpy.float32(0.5), "half \udc80")
    report(1.0)
    emit("progress", "mine", 5)
    emit("progress", Progress(message="only a text"))
    for wrong in (-0.1, 1.1, math.nan, True, "0.5", None):
        with pytest.raises(UsageError):
            report(wrong)  # type: ignore[arg-type]
    return seen


def test_track_and_report(every: Client) -> None:
    task = every.submit(tracked)
    seen = task.result()
    assert seen == [[], list("abc"), list("ab"), list("ab"), [(0, ["x"]), (1, ["x"])]]
    told = args(task, "progress")
    mine = told.index(("mine", 5))
    steps = [(p.fraction, p.done, p.total, p.message) for p in told[:mine]]
    assert steps[:8] == [
        (1.0, 0, 0, None),
        (0.0, 0, 3, "letters"), (1.0, 3, 3, "letters"),
        (0.0, 0, 4, None), (0.5, 2, 4, None),
        (None, 0, None, None), (None, 2, None, None),
        (0.0, 0, 10, "left early"),
    ]  # fmt: skip
    assert steps[8][:3] == (0.4, 4, 10)  # the fifth was not done
    assert [step[0] for step in steps[-3:]] == [0.0, 0.5, 1.0]
    assert {step[3] for step in steps[9:-3]} == {"outer", "inner \\udc80"}
    assert task.progress == told[-1] == Progress(message="only a text")
    assert str(Progress(0.25, 1, 4, "m")) == "25% 1/4 m"


def test_progress_is_told_at_most_twenty_times_a_second(clients: dict[str, Client]) -> None:
    task = clients["process"].submit(lambda: sum(1 for _ in track(range(200_000))))
    began = time.monotonic()
    told = args(task, "progress")
    assert len(told) <= 20 * (time.monotonic() - began) + 3
    assert told[-1].done == task.result() == 200_000


# --- messages


def converse() -> Any:
    task, heard = current_task(), threading.Event()

    def on_ping(*values: Any) -> None:
        emit("pong", *values)
        heard.set()

    first = task.receive()
    task.on("ping", on_ping)
    task.on("bad", lambda: 1 / 0)
    emit("ready", first, first.name, first.args)
    heard.wait(20)
    answers = [ask("one?"), ask("two?"), ask("none?"), ask("early?")]
    with pytest.raises(TimeoutError, match="never"):
        ask("never?", timeout=0.01)
    assert task.receive(timeout=0) is None
    return answers


def test_messages_and_answers(live: Client) -> None:
    task = live.submit(converse)
    assert task.send("first", 1, (2,), {3: b"x"}, "\udc80", 2**70)
    said: list[Any] = []
    answers = {"one?": (1,), "two?": (1, [2]), "none?": ()}

    def answer(number: str, text: str) -> None:
        said.append((number, text))
        if text in answers:
            task.send("answer", *answers[text])
        if text == "none?":
            task.send("answer", "before it was asked")

    task.add_listener("question", answer)
    for event in task.events("ready"):
        if event.name == "ready":
            assert repr(event.args[0].args) == repr((1, (2,), {3: b"x"}, "\udc80", 2**70))
            assert event.args[1] == "first"
            task.send("bad")
            task.send("ping", "p", 1)
    assert task.result() == [1, (1, [2]), (), "before it was asked"]
    assert args(task, "pong") == [("p", 1)]
    assert said == [("1", "one?"), ("2", "two?"), ("3", "none?"), ("4", "early?"), ("5", "never?")]
    assert not task.send("late")
    for wrong in ("", "a\n", "failed"):
        with pytest.raises(UsageError):
            task.send(wrong)
    with pytest.raises(NotCarriable):
        live.submit(abs, 1).send("x", Mute())


def threads_speak() -> None:
    def speak(number: int) -> None:
        for index in range(100):
            emit("from", number, index)

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_of_a_child_speak_for_its_task_each_in_its_order(clients: dict[str, Client]) -> None:
    task = clients["process"].submit(threads_speak)
    task.result()
    said = args(task, "from")
    for number in range(5):
        assert [index for who, index in said if who == number] == list(range(100))


# --- generators


def items(number: int, end: Any = None) -> Iterator[Any]:
    yield from range(number)
    if isinstance(end, BaseException):
        raise end
    return end


async def items_async(number: int) -> Any:
    for index in range(number):
        yield index


def items_once_more(end: str) -> Iterator[Any]:
    yield current_task().attempt
    current_task().receive()
    if current_task().attempt == 1:
        raise Retry(after=0)
    return end


def test_items_of_generators(every: Client) -> None:
    task = every.submit(items, 10, "end")
    assert list(task.items()) == list(task.items()) == list(range(10))
    assert task.result() == "end"
    assert names(task.events("item")) == ["item"] * 10 + ["succeeded"]
    task = every.submit(items, 3, ValueError("mine"))
    assert list(task.items()) == [0, 1, 2]  # the failure is the result's
    with pytest.raises(ValueError, match="mine"):
        task.result()
    task = every.submit(items_async, 4)
    assert (list(task.items()), task.result()) == ([0, 1, 2, 3], None)
    task = every.submit(map, abs, [])  # returns an iterator that cannot travel, and is no generator function
    assert list(task.items()) == []
    task.exception()


def test_items_that_were_trimmed_are_no_secret(every: Client) -> None:
    task = every.submit(items, 5000, 1)
    task.result()
    with pytest.raises(AssistantError):
        list(task.items())


def test_items_of_another_attempt_are_told_apart(live: Client) -> None:
    task = live.options(retries=1).submit(items_once_more, "end")
    unread = task.items()
    restarted = task.items()
    assert next(restarted) == 1
    task.send("go")
    with pytest.raises(TaskRestarted, match="attempt 2"):
        next(restarted)
    assert list(restarted) == []
    task.send("go")
    assert task.result() == "end"
    with pytest.raises(TaskRestarted):
        list(unread)


# --- capture


def say_all_ways() -> None:
    print("printed", 1)
    logging.getLogger("mine").warning("logged %d", 2)
    warnings.warn("warned", stacklevel=1)


async def say_all_ways_async() -> None:
    say_all_ways()


@pytest.mark.parametrize("fn", [say_all_ways, say_all_ways_async])
def test_capture(every: Client, fn: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        task = every.options(capture=True).submit(fn)
        task.result()
    assert args(task, "output") == ["printed 1\n"]
    logged = args(task, "log")
    assert logged[0] == ("WARNING", "mine", "logged 2")
    assert logged[1][:2] == ("WARNING", "py.warnings")
    assert "warned" in logged[1][2]


def print_much(lines: int) -> int:
    current_task().receive()
    before = resident()
    for index in range(lines):
        print(f"{index:9}" * 1000)
    return resident() - before


def test_much_that_is_printed_arrives_whole_and_needs_no_memory(live: Client) -> None:
    task = live.options(capture=True).submit(print_much, 3000)  # 27 MB
    before, numbers, rest = resident(), [], ""
    events = task.events("output")
    task.send("go")
    for event in events:
        if event.name == "output":
            *lines, rest = (rest + event.args[0]).split("\n")
            numbers += [int(line[:9]) for line in lines]
    assert numbers == list(range(3000))
    assert resident() - before < 60 << 20
    assert task.result() < 20 << 20


def upset() -> None:
    """What a callable may do to its process."""
    os.chdir("/")
    os.umask(0o777)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout = sys.stderr = sys.stdin = None  # type: ignore[assignment]
    sys.argv[:] = sys.path[:] = []
    os.environ.clear()
    sys.setrecursionlimit(200)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    for fd in range(3):
        os.close(fd)


def test_a_callable_may_turn_its_process_upside_down() -> None:
    with Client(max_workers=1) as client:
        client.submit(upset).result()
        assert client.submit(count, 1500).result() == 1500
        task = client.submit(hold)
        assert task.send("go", numpy.arange(3))
        assert task.result().args[0].tolist() == [0, 1, 2]
        task = client.options(capture=True).submit(print, "said")
        task.result()
        assert args(task, "output") == ["said\n"]
        assert client.submit(numpy.sum, client.share(numpy.ones(100_000))).result() == 100_000


# --- groups, attaching


def test_a_group_is_a_task(live: Client) -> None:
    first, second = live.submit(hold), live.submit(count, 2)
    group = live.group([first, second])
    assert group.state == "running"
    second.result()
    for event in group.events("progress"):
        if event.name == "progress" and event.args[0].done == 1:
            break
    assert event.args == (Progress(0.5, 1, 2),)
    assert live.attach(group.id) is group
    assert group.send("go")
    assert group.result() == [first.result(), 2]
    *_, last, end = group.events()
    assert (last.args, end.name, end.args) == ((Progress(1.0, 2, 2),), "succeeded", (group.result(),))
    empty = live.group([])
    assert empty.result() == []
    same_twice = live.group([second, second])
    assert same_twice.result() == [2, 2]
    with pytest.raises(UsageError):
        live.group([1])  # type: ignore[list-item]


def test_a_group_fails_and_is_cancelled_as_a_whole(live: Client) -> None:
    group = live.group([live.submit(fail), live.submit(abs, -1), live.submit(items, 1, KeyError("k"))])
    with pytest.raises(ExceptionGroup, match="2 of 3") as caught:
        group.result()
    assert [type(error) for error in caught.value.exceptions] == [ValueError, KeyError]
    members = [live.submit(hold), live.submit(hold), live.submit(abs, 1)]
    group = live.group(members)
    assert group.cancel()
    with pytest.raises(TaskCancelled):
        group.result()
    assert group.cancelled()
    assert not group.cancel()
    assert all(member.done() for member in members)


def test_a_large_group_is_no_burden(clients: dict[str, Client]) -> None:
    inline = clients["inline"]
    group = inline.group([inline.submit(abs, number) for number in range(10_000)])
    began = time.process_time()
    assert group.result() == list(range(10_000))
    assert time.process_time() - began < 3


def test_attaching(every: Client) -> None:
    task = every.submit(count, 3)
    assert every.attach(task.id) is task
    task.result()
    assert names(every.attach(task.id).events()) == ["started", "n", "n", "n", "succeeded"]
    quiet = every.submit(abs, -1)  # never heard by anybody
    quiet.result()
    assert every.attach(quiet.id).result() == 1
    unknown = every.attach("nobody")
    assert names(unknown.events()) == ["lost"]
    with pytest.raises(LookupError, match="nobody"):
        unknown.result()


# --- slow readers, and late ones


def test_a_listener_added_to_a_task_that_is_silent_hears_its_start(clients: dict[str, Client]) -> None:
    begun, go, heard = threading.Event(), threading.Event(), threading.Event()
    task = clients["thread"].submit(lambda: (begun.set(), go.wait(20)))
    assert begun.wait(20)
    task.add_listener("started", lambda worker: heard.set())
    in_time = heard.wait(5)
    go.set()
    task.result()
    assert in_time


def flood(number: int, size: int) -> int:
    current_task().receive()
    before = resident()
    for index in range(number):
        emit("n", index, b"a" * size)
    return resident() - before


def flood_progress(number: int, size: int) -> int:
    current_task().receive()
    before = resident()
    for index in range(20):
        emit("n", index, b"")
        for step in range(number // 40):
            report(step / number, "a" * size)
    return resident() - before


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("how", ["listener", "iterator", "progress"])
def test_a_slow_reader_gets_all_and_memory_stays_flat(live: Client, how: str) -> None:
    number, before, most, seen = 200_000, resident(), [0], [0]
    text = os.urandom(2000)

    def hear(index: int, data: bytes) -> None:
        seen[0] += seen[0] == index
        hash(text + data)  # slower than the task
        if index % 1000 == 0:
            most[0] = max(most[0], resident())

    task = live.submit(flood if how != "progress" else flood_progress, number, 500)
    if how == "listener":
        task.add_listener("n", hear)
        task.send("go")
    else:
        events = task.events()
        task.send("go")
        for event in events:
            if event.name == "n":
                hear(*event.args)
            elif event.name == "progress":
                hash(text * 10)
    grown = task.result()
    assert seen == [number if how != "progress" else 20]
    assert most[0] - before < 60 << 20
    assert grown < 20 << 20


def report_between(rounds: int, reports: int) -> None:
    current_task().receive()
    for index in range(rounds):
        emit("n", index)
        for step in range(reports):
            report(step / reports)


def test_progress_that_nobody_reads_is_replaced_wherever_it_stands(clients: dict[str, Client]) -> None:
    task = clients["process"].submit(report_between, 300, 100)
    unread = task.events()
    task.send("go")
    task.result()
    events = list(unread)
    assert [event.args[0] for event in events if event.name == "n"] == list(range(300))
    assert len(events) < 1000


def test_progress_that_one_reader_takes_and_another_does_not_is_not_kept_for_ever(clients: dict[str, Client]) -> None:
    task = clients["process"].submit(report_between, 50, 400)
    unread, taken = task.events(), task.events()
    early: list[Any] = []
    task.add_listener("n", early.append)
    task.send("go")
    numbers = [event.args[0] for event in taken if event.name == "n"]
    task.result()
    assert numbers == list(range(50))
    assert len(task._log.records) <= 2200  # of 20,050
    late: list[Any] = []
    heard = threading.Event()
    task.add_listener("n", late.append)
    task.add_listener("succeeded", lambda _: heard.set())
    assert heard.wait(30)
    assert early == late == list(range(50))
    events = list(unread)
    assert [event.args[0] for event in events if event.name == "n"] == list(range(50))
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert next(event for event in reversed(events) if event.name == "progress").args[0].fraction == 399 / 400


def emit_many(number: int) -> int:
    for index in range(number):
        emit("n", index)
    return number


def test_small_events_run_ahead_of_a_slow_listener_by_their_weight_in_memory(clients: dict[str, Client]) -> None:
    go, full, seen = threading.Event(), threading.Event(), []

    def hear(index: int) -> None:
        if not seen:
            full.set()
            go.wait(30)
        seen.append(index)

    task = clients["process"].submit(emit_many, 50_000)
    task.add_listener("n", hear)
    assert full.wait(30)
    assert task._log is not None
    most = (4 << 20) // 256
    while task._log.want is None:  # it asks for more at half of its credit
        time.sleep(0.001)
    assert len(task._log.records) <= most
    go.set()
    assert task.result() == 50_000
    assert seen == list(range(50_000))


# --- outside a task


def test_outside_a_task_all_of_it_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    emit("x", object())
    report(0.5)
    assert list(track([1, 2], "bar")) == [1, 2]
    monkeypatch.setattr("builtins.input", lambda prompt: f"said {prompt}")
    assert ask("really?") == "said really? "
    task = current_task()
    assert (task.id, task.attempt, task.cancel_requested) == ("", 0, False)
    assert "outside a task" in repr(task)
    task.emit("x")
    task.check()
    task.write_to(None, "x", 1)
    assert task.receive(timeout=0) is None
