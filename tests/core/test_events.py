"""What a callable says arrives: whole, in order, once, live; whoever listens, and however slowly.

A task that waits for `task.send("go")` (`hold`) is the gate of these tests: nothing waits for time.

Over 600 lines: its parts share the callables and fixtures at its head.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures as cf
import datetime
import decimal
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

from revolve_assistant import (
    Client,
    Event,
    Progress,
    Task,
    TaskCancelled,
    UsageError,
    emit,
)

from .events_tasks import (
    Colour,
    Odd,
    Point,
    chatter,
    count,
    dialogue,
    fail,
    hold,
    hold_async,
    hold_twice,
    nested,
    say_and_change,
    say_each,
    say_unwelcome,
    say_wrong,
    tick,
)

ENGINES = ["process", "thread", "fork", "inline"]


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
    for client in made.values():
        wait_for(client.options(delay=0.0001).submit(abs, 1).add_done_callback)  # the clock and the dispatcher, too
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


@pytest.fixture
def client(clients: dict[str, Client]) -> Client:
    return clients["process"]


def wait_for(register: Callable[[Callable[..., Any]], Any]) -> Any:
    """Give `register` a callback; return what it is called with."""
    future: cf.Future[Any] = cf.Future()
    register(lambda *args: future.set_result(args) if not future.done() else None)
    return future.result(20)


def names(events: Any) -> list[str]:
    return [event.name for event in events]


def args(task: Task[Any], name: str) -> list[Any]:
    return [event.args if len(event.args) != 1 else event.args[0] for event in task.events(name)][:-1]


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types throughout; nan is nan."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, numpy.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(a == b)


# --- arguments


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**400,
    0.0, -0.0, 1.5, math.nan, math.inf, -math.inf, 5e-324,
    "", "ä€😀\0\n", "lone \udc80 surrogate", "x" * 100_000, b"", bytes(range(256)), b"\0" * 200_000, bytearray(b"ab"),
    [], [1, [2, [None, "x"]]], (), (1,), ((1, [2, (3,)]), "t"), [(1, 2)], [2**70], ["\ud800"],
    {}, {"a": 1, "b": [True]}, {1: 2, None: 3, (1, 2): "t"}, {"a": {"b": {3: (4,)}}}, {"a": 2**70}, {True: 1.0},
    {1, 2}, frozenset("ab"), 1j, decimal.Decimal("1.10"), datetime.datetime(2026, 1, 2, 3), range(3), Colour.RED,
    Point(1, (2, 3)), [Point(1)], {"p": Point(2, Point(3))}, numpy.float64(0.1), numpy.arange(6.0).reshape(2, 3),
    Progress(0.5, 1, 2, "m"), collections.OrderedDict(b=1, a=2), KeyError, len,
]  # fmt: skip


def test_arguments_arrive_type_exact(every: Client) -> None:
    task = every.submit(say_each, VALUES)
    task.result()
    said = [event for event in task.events() if event.name in ("value", "none", "many")]
    wrong = [(sent, event.args) for sent, event in zip(VALUES, said, strict=False) if not same((sent,), event.args)]
    assert not wrong
    assert said[-2].args == ()
    assert same(said[-1].args, tuple(VALUES))


def test_what_was_emitted_does_not_change_and_may_be_deep(every: Client) -> None:
    task = every.submit(say_and_change)
    task.result()
    assert args(task, "value") == [[1]]
    assert args(task, "deep") == [nested(depth) for depth in (31, 32, 33, 34, 200)]
    assert "event 'deep'" in args(task, "refused")[0]


def test_what_cannot_be_an_event_is_refused_where_it_is_emitted_and_the_task_goes_on(every: Client) -> None:
    task = every.submit(say_wrong)
    heard = task.result()
    assert [kind for kind, _ in heard] == ["UsageError"] * 2 + ["NotCarriable"] * 2 + ["UsageError"] * 9
    for _, text in heard[:2]:
        assert "1048" in text  # the size
        assert str(1 << 20) in text  # the limit
    assert "'x'" in heard[2][1]
    assert "lock" in heard[3][1]
    *_, x, odd, _ = task.events()  # what was before is trimmed: 1 MiB are kept
    assert (x.name, len(x.args[0]), odd.name) == ("x", (1 << 20) - 100, "ö" * 64)
    assert [type(value) for value in odd.args] == [Odd] * 3


def test_what_cannot_be_rebuilt_here_arrives_as_its_description(every: Client) -> None:
    task = every.submit(say_unwelcome)
    task.result()
    (event, _) = task.events("x")
    assert "Unwelcome" in event.args[0]
    assert "ZeroDivisionError" in event.args[0]


# --- order and iterators


def test_equal_events_all_arrive(every: Client) -> None:
    events: list[Event] = []
    every.add_listener("*", events.append)
    task = every.submit(tick, 1000)
    task.result()
    every.remove_listener("*", events.append)
    assert collections.Counter(names(events)) == {"started": 1, "tick": 1000, "succeeded": 1}
    assert [event.seq for event in events] == list(range(1, 1003))
    assert {event.attempt for event in events} == {1}
    assert {event.task_id for event in events} == {task.id}
    assert all(isinstance(event, Event) and abs(event.time - time.time()) < 60 for event in events)
    assert events[-1].args == (None,)


def test_every_iterator_sees_all_in_order_and_the_end_once(every: Client) -> None:
    async def read() -> list[Event]:
        return [event async for event in task.events()]

    task = every.submit(count, 300)
    seen = list(zip(task.events(), task.events(), strict=True))
    assert [a for a, _ in seen] == [b for _, b in seen] == asyncio.run(read()) == list(task.events())
    assert [event.args for event in task.events("n", "started")][1:-1] == [(index,) for index in range(300)]
    assert names(task.events("nothing")) == ["succeeded"]
    events = task.events()
    assert list(events)
    assert list(events) == []
    with pytest.raises(UsageError, match="events"):
        task.events(5)  # type: ignore[arg-type]


def test_a_reader_that_comes_late_gets_one_gap(every: Client) -> None:
    task = every.submit(count, 5000)
    task.result()
    gap, *events = task.events()
    assert gap.name == "gap"
    assert gap.args == (5002 - len(events),)
    assert [event.seq for event in events] == list(range(gap.args[0] + 1, 5003))
    assert 900 <= len(events) <= 1001
    assert names(task.events("nothing")) == ["gap", "succeeded"]


def test_an_open_iterator_loses_nothing_before_it_is_read(live: Client) -> None:
    task = live.submit(hold)
    more = task.events("n")
    task.send("go")
    task.result()
    assert names(more) == ["succeeded"]
    task = live.submit(count, 5000)
    events = task.events("n")
    task.result()
    assert len(list(events)) in (5001, 5002)  # the child may have been quicker than events()


def test_an_iterator_that_was_left_holds_nobody(live: Client) -> None:
    task = live.submit(count, 9000, b"a" * 1000)
    for event in task.events("n"):
        if event.args[0] == 1:
            break
    assert task.result(20) == 9000


def test_a_closed_iterator_is_over_at_once(live: Client) -> None:
    task = live.submit(hold, ("x", 1))
    with task.events("x") as events:
        assert next(events).args == (1,)
        assert events.next(timeout=0.0) is None
    assert list(events) == []
    items = task.items()
    items.close()
    assert list(items) == []
    assert not task.done()
    task.send("go")
    task.result()


def test_no_event_waits_for_the_next_one(client: Client) -> None:
    task = client.submit(dialogue, 150)
    task.add_listener("c", lambda index: task.send("heard", index))
    assert task.result() == 0


@pytest.mark.timeout(120)
def test_stopping_a_task_within_an_emit_doubles_nothing() -> None:
    with Client(max_workers=1, ladder=(0.0, 30, 30)) as client:
        client.submit(abs, 1).result()
        for _ in range(16):
            task = client.submit(chatter)
            events = task.events("n")
            first = next(events)
            task.cancel()
            numbers = [first.args[0], *(event.args[0] for event in events if event.name == "n")]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            with pytest.raises(TaskCancelled):
                task.result()
        assert client.submit(dialogue, 5).result() == 5  # nobody answers; it comes to its end


# --- listeners


def test_listeners_by_priority_and_the_star(every: Client) -> None:
    heard: list[Any] = []
    every.add_listener("x", lambda *a: heard.append(("client", *a)))
    try:
        task = every.options(delay=0.0001).submit(emit, "x", 1, 2)
        task.add_listener("x", lambda *a: heard.append(("first", *a)))
        task.add_listener("x", lambda *a: heard.append(("second", *a)))
        task.add_listener("x", lambda *a: heard.append(("low", *a)), priority=-1)
        task.add_listener("*", lambda e: heard.append(("star", e.name, e.args, e.seq)))
        task.add_listener("x", lambda *a: heard.append(("high", *a)), priority=9)
        task.result()
    finally:
        every.remove_listener("x", every._listeners.get("x")[0])  # type: ignore[union-attr]
    order = ["high", "first", "second", "star", "low", "client"]
    assert [entry[0] for entry in heard if entry[1] in (1, "x")] == order
    assert {entry[1:] for entry in heard if entry[0] in order and entry[0] != "star"} == {(1, 2)}
    assert [entry[1:] for entry in heard if entry[0] == "star"] == [
        ("started", heard[0][2], 1), ("x", (1, 2), 2), ("succeeded", (None,), 3),
    ]  # fmt: skip


def test_one_time_listeners_and_removal_in_the_middle(live: Client) -> None:
    heard: list[Any] = []
    task = live.submit(hold_twice, *[("x", index) for index in range(5)])

    def until_two(index: int) -> None:
        heard.append(("until", index))
        if index == 2:
            task.remove_listener("x", until_two)
            task.remove_listener("x", other)
            task.add_listener("y", added)

    def other(index: int) -> None:
        heard.append(("other", index))

    def added(*_: Any) -> None:
        heard.append("added")

    task.add_one_time_listener("x", lambda index: heard.append(("once", index)))
    task.add_one_time_listener("*", lambda event: heard.append(("once", event.name)))
    task.add_listener("x", until_two)
    task.add_listener("x", other, priority=5)
    task.remove_listener("x", print)  # was never there
    task.send("begin")
    for event in task.events("x"):
        if event.args == (4,):
            break
    task.send("go")
    task.result()
    of = lambda who: [entry[1] for entry in heard if entry[0] == who]  # noqa: E731
    assert (of("until"), of("other"), of("once")) == ([0, 1, 2], [0, 1, 2], ["started", 0])
    assert "added" not in heard


def test_what_a_listener_does_wrong_disturbs_nobody(every: Client, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    def wrong(index: int) -> None:
        heard.append(("wrong", index))
        raise (ValueError("mine"), SystemExit(3), KeyboardInterrupt())[index]

    task = every.options(delay=0.0001).submit(count, 3)
    task.add_listener("n", wrong, priority=1)
    task.add_listener("n", lambda: None)  # takes no argument
    task.add_listener("n", heard.append)
    assert task.result() == 3
    assert heard == [("wrong", 0), 0, ("wrong", 1), 1, ("wrong", 2), 2]
    assert sum(record.exc_info is not None for record in caplog.records) == 6
    assert "'n'" in caplog.text
    assert task.id in caplog.text


def test_a_listener_may_submit_but_not_wait(live: Client, caplog: pytest.LogCaptureFixture) -> None:
    made: list[Any] = []
    over = threading.Event()

    def more(*_: Any) -> None:
        other = live.submit(hold)  # now both workers are busy
        made.append(other)
        for wait in (other.result, other.exception, lambda: list(other.events()), task.result):
            try:
                made.append(wait())
            except UsageError as error:
                made.append(str(error))
        list(live.map(abs, [1]))

    task = live.submit(hold, ("x",))
    task.add_listener("x", more, priority=1)
    task.add_listener("x", over.set)
    assert over.wait(20)
    task.send("go")
    task.result()
    made[0].send("go", 2)
    assert made[0].result().args == (2,)
    assert len(made) == 5
    assert all("for ever" in text for text in made[1:])
    assert "would wait for ever" in caplog.text  # of the map


def test_a_listener_that_blocks_holds_back_listeners_only(live: Client) -> None:
    gate, ended, heard = threading.Event(), threading.Event(), []
    task = live.submit(count, 50)
    task.add_listener("n", lambda index: heard.append(index) or gate.wait(20))
    task.add_listener("succeeded", lambda result: heard.append("end"))
    task.add_done_callback(lambda each: (heard.append(each.result()), ended.set()))
    events = task.events()
    seen = [next(events) for _ in range(52)]
    assert seen[-1].name == "succeeded" == task.state
    assert not task.done()  # the end's listeners come first
    with pytest.raises(TimeoutError):
        task.result(0)
    gate.set()
    assert task.result() == 50
    assert heard[:51] == [*range(50), "end"]
    assert ended.wait(20)
    assert heard[51:] == [50]


def test_a_late_listener_hears_first_what_is_kept(live: Client) -> None:
    early, late, star = [], [], []
    task = live.submit(hold, *[("n", index) for index in range(2000)])
    task.add_listener("n", early.append)
    wait_for(lambda set_: task.add_listener("n", lambda index: index == 1999 and set_()))
    task.add_listener("n", late.append)
    task.add_listener("*", star.append)
    task.send("go")
    task.result()
    assert late == early[-len(late) :]
    assert 900 < len(late) <= 1000
    gap, *events = star
    assert (gap.name, gap.args) == ("gap", (2002 - len(events),))
    assert [event.seq for event in events] == list(range(gap.args[0] + 1, 2003))
    once: list[Any] = []
    task.add_one_time_listener("n", once.append)
    ended = wait_for(lambda set_: task.add_listener("succeeded", set_))  # after the end, too
    assert len(ended) == 1
    assert len(once) == 1
    assert once[0] - late[0] in (0, 1)  # the end took its place


def test_listeners_of_a_task_never_run_at_once(live: Client) -> None:
    inside, wrong, heard = threading.Lock(), [], []
    task = live.submit(hold, *[("n", index) for index in range(500)])

    def listener(event: Event) -> None:
        if not inside.acquire(blocking=False):
            wrong.append(event)
        heard.append(event.name)
        inside.release()

    adders = [threading.Thread(target=lambda: task.add_listener("*", listener)) for _ in range(8)]
    for thread in adders:
        thread.start()
    for thread in adders:
        thread.join()
    task.send("go")
    task.result()
    assert not wrong
    assert collections.Counter(heard) == {"started": 8, "n": 4000, "succeeded": 8}


def test_local_dispatch(live: Client) -> None:
    heard: list[Any] = []
    gate, inside = threading.Event(), threading.Event()
    task = live.submit(hold, ("block",))
    assert not task.has_listeners()
    task.add_listener("block", lambda: (inside.set(), gate.wait(20)))
    assert inside.wait(20)  # the dispatcher is busy: what follows is of this thread
    task.add_listener("x", lambda *a: heard.append(a))
    task.add_one_time_listener("*", lambda event: heard.append((event.name, event.args)))
    assert task.has_listeners()
    assert task.has_listeners("x")
    assert not task.has_listeners("y")
    assert len(task.get_listeners("x")) == 1
    task.emit("x", 1, 2)
    task.emit_batch([("x", 3), ("y",), ("x",)])
    gate.set()
    assert heard == [(1, 2), ("x", (1, 2)), (3,), ()]
    task.remove_all_listeners("x")
    assert not task.has_listeners("x")
    assert task.has_listeners("block")
    task.remove_all_listeners()
    assert not task.has_listeners()
    assert task.get_listeners() == []
    task.send("go")
    task.result()
    for wrong in (("", print), (5, print), ("x", 5)):
        with pytest.raises(UsageError):
            task.add_listener(*wrong)  # type: ignore[arg-type]


def test_the_client_hears_all_its_tasks(every: Client) -> None:
    heard: list[Event] = []
    every.add_listener("*", heard.append)
    tasks = [every.submit(count, 2), every.submit(fail), every.submit(abs, -1)]
    ends = [task.exception() for task in tasks]
    every.remove_listener("*", heard.append)
    every.submit(abs, 1).result()
    by_task = {task.id: names(e for e in heard if e.task_id == task.id) for task in tasks}
    assert list(by_task.values()) == [
        ["started", "n", "n", "succeeded"], ["started", "failed"], ["started", "succeeded"],
    ]  # fmt: skip
    assert next(event for event in heard if event.name == "failed").args == (ends[1],)
