"""`Client` is an Executor: what holds for those of concurrent.futures holds here. (`test_future` has the Task's side.)

The corners are those of CPython's own test_concurrent_futures, and the numbers of its issues stand where one is named.
A gate (a FIFO that the callable reads) holds a callable until the test opens it: nothing here waits for time.
"""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import functools
import gc
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from revolve_assistant import (
    Client,
    ClientClosed,
    NotCarriable,
    RemoteError,
    TaskCancelled,
    TaskLost,
    UsageError,
    emit,
)

from .executor_tasks import (
    Answer,
    Dying,
    Gate,
    Object,
    OwnError,
    Unwelcome,
    ask_whether_initialized,
    capture,
    count,
    fail,
    hear,
    initialize,
    later,
    mul,
    surrounding,
)


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(max_workers=2) as client:
        yield client


@pytest.fixture
def one() -> Iterator[Client]:
    with Client(max_workers=1) as client:
        yield client


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


class Unwilling:
    def __reduce__(self) -> Any:
        raise ValueError("no")


def freed(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is None


# --- submit


def test_it_is_an_executor_and_a_future(client: Client) -> None:
    task = client.submit(pow, 2, 8)
    assert isinstance(client, cf.Executor)
    assert isinstance(task, cf.Future)
    assert task.result() == 256
    assert task.exception() is None
    assert (task.done(), task.running(), task.cancelled(), task.cancel()) == (True, False, False, False)
    assert task.state == "succeeded"


def test_fn_and_self_are_ordinary_keywords(client: Client) -> None:
    assert client.submit(mul, 2, y=8).result() == 16
    assert client.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        client.submit(fn=capture, arg=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        client.submit(arg=1)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="needs a callable"):
        client.submit(5)  # type: ignore[arg-type]


def test_any_callable_goes(client: Client) -> None:
    base = 40
    made = [lambda: base + 2, functools.partial(mul, 6, 7), int("42").__int__, Answer(), Answer.get]
    assert [client.submit(fn).result() for fn in made] == [42] * 5


def test_only_the_client_drives_a_task(client: Client) -> None:
    task = client.submit(abs, -1)
    for drive in (lambda: task.set_result(1), lambda: task.set_exception(OSError()), task.set_running_or_notify_cancel):
        with pytest.raises(UsageError, match="driven by its client"):
            drive()
    assert task.result() == 1


def test_result_and_exception_time_out(client: Client) -> None:
    task = client.submit(hear)
    for wait in (task.result, task.exception):
        with pytest.raises(TimeoutError):
            wait(timeout=0)
        with pytest.raises(cf.TimeoutError):
            wait(timeout=0.01)
    task.send("go")
    assert task.result(timeout=30) == "go"


@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_must_be_positive(number: int) -> None:
    with pytest.raises(ValueError, match=r"max_workers=-?[01] must be greater than 0"):
        Client(max_workers=number)


@pytest.mark.parametrize("number", [2.5, "2", True])
def test_max_workers_must_be_a_whole_number(number: Any) -> None:
    with pytest.raises(UsageError, match="must be a whole number"):
        Client(max_workers=number)


def test_no_more_children_than_max_workers(client: Client) -> None:
    tasks = [client.submit(lambda: (hear(), os.getpid())) for _ in range(30)]
    for task in tasks:
        task.send("go")
    assert len({pid for _, pid in (task.result() for task in tasks)}) <= 2


def test_an_idle_child_is_used_again() -> None:
    with Client(max_workers=4) as client:
        assert len({client.submit(os.getpid).result() for _ in range(4)}) == 1


def test_messages_reach_a_task_that_was_taken_back() -> None:
    def work(slow: float, hears: bool) -> Any:
        time.sleep(slow)
        return hears and hear()

    with Client(max_workers=2) as client:
        for _ in range(10):  # seen to be fast, so the next ones are given in advance
            client.submit(work, 0, False).result()
        first = client.submit(work, 0.05, False)
        behind = [client.submit(work, 0, True) for _ in range(4)]
        for task in behind:
            task.send("hello")
        assert [task.result() for task in behind] == ["hello"] * 4
        first.result()


def test_a_task_runs_once_however_often_it_is_taken_back(client: Client, tmp_path: Path) -> None:
    def note(number: int, slow: float) -> None:
        with open(log, "a") as file:  # O_APPEND
            file.write(f"{number}\n")
        time.sleep(slow)

    log = str(tmp_path / "log")
    tasks = [client.submit(note, i, (0.0021 + i % 3 / 5000) * (i % 23 == 0)) for i in range(4000)]
    cf.wait(tasks)
    assert sorted(map(int, Path(log).read_text().split())) == list(range(4000))


# --- map


@pytest.mark.parametrize("chunksize", [None, 1, 3, 6, 40, 50])
def test_map_is_the_builtin_map(client: Client, chunksize: int | None) -> None:
    expected = list(map(pow, range(40), range(40)))
    assert list(client.map(pow, range(40), range(40), chunksize=chunksize)) == expected
    assert list(client.map(pow, [2, 3], itertools.count(), chunksize=chunksize)) == [1, 3]
    assert list(client.map(abs, [], chunksize=chunksize)) == list(client.map(abs)) == []


@pytest.mark.parametrize("wrong", [{"chunksize": 0}, {"chunksize": -1}, {"chunksize": 1.5}, {"errors": "ignore"}])
def test_map_refuses_at_once(client: Client, wrong: Any) -> None:
    for mapper in (client, client.options(), client.options(retries=1)):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            mapper.map(abs, [1, 2], **wrong)


def test_map_raises_at_the_place_of_the_error(client: Client) -> None:
    results = client.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("options", [{}, {"retries": 0, "timeout": 60.0}])
def test_map_returns_errors_in_their_places(client: Client, options: Any) -> None:
    def work(kind: str) -> str:
        if kind == "late":
            raise TimeoutError(kind)
        return kind if kind != "exit" else sys.exit(3)

    items: list[Any] = ["a", "late", "exit", Unwilling(), "b"]
    a, late, exited, *unwilling, b = client.options(**options).map(work, items[:3] + items[4:], errors="return")
    assert (a, b, type(late), type(exited)) == ("a", "b", TimeoutError, RemoteError)
    [unwilling] = client.map(work, items[3:4], errors="return")
    assert isinstance(unwilling, NotCarriable)
    [unwelcome] = client.options(**options).map(lambda _: Unwelcome(), [1], errors="return")
    assert isinstance(unwelcome, RemoteError)
    with pytest.raises(NotCarriable):
        list(client.map(work, items[3:4]))


def test_map_times_out(one: Client, gate: Gate) -> None:
    results = one.map(lambda item: item or gate(), [1, 2, None, 3], timeout=0.2)
    with gate.holding():
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(TimeoutError):
            next(results)
    assert list(results) == []
    with pytest.raises(TimeoutError):
        next(one.map(abs, [1], timeout=0))


def test_map_works_without_being_iterated(client: Client, tmp_path: Path) -> None:  # issue 11777
    client.map(lambda name: (tmp_path / name).touch(), "abcdefghij", chunksize=3)
    client.shutdown()
    assert sorted(os.listdir(tmp_path)) == list("abcdefghij")


def test_map_keeps_the_order(client: Client, gate: Gate) -> None:
    results = client.map(lambda item: item or gate(0), range(20), chunksize=1)
    gate.open()
    assert list(results) == list(range(20))


def test_map_takes_its_items_at_once_and_raises_what_they_raise(client: Client) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OwnError

    with pytest.raises(OwnError):
        client.map(abs, items())


@pytest.mark.parametrize("ending", ["close", "shutdown"])
def test_a_map_ended_early_lets_the_running_item_end(one: Client, gate: Gate, tmp_path: Path, ending: str) -> None:
    def work(name: str) -> None:
        if name == "b":
            gate()
        (tmp_path / name).touch()

    results = one.map(work, "abcd", chunksize=2)
    next(results)
    with gate.holding():
        if ending == "close":
            results.close()
        else:
            one.shutdown(wait=False, cancel_futures=True)
    one.shutdown()
    assert sorted(name for name in os.listdir(tmp_path) if len(name) == 1) == ["a", "b"]


def test_map_of_coroutines_and_generators_and_a_bar(client: Client) -> None:
    assert list(client.map(later, range(5))) == [0, 1, 2, 3, 4]
    assert list(client.map(count, range(3))) == [0, 10, 20]
    assert list(client.map(abs, [-1, 2], show=True)) == [1, 2]


# --- shutdown


def test_nothing_is_taken_after_shutdown() -> None:
    client = Client()
    client.shutdown()
    client.shutdown()
    for call in (lambda: client.submit(pow, 2, 5), lambda: client.map(abs, [1])):
        with pytest.raises(RuntimeError, match="shut down") as raised:
            call()
        assert isinstance(raised.value, ClientClosed)


def test_shutdown_waits_for_a_map(client: Client) -> None:  # issue 12456
    results = client.map(str, [2] * 3)
    client.shutdown()
    assert list(results) == ["2"] * 3


def test_shutdown_waits_for_all_tasks(client: Client) -> None:  # issue 12364
    tasks = [client.submit(time.sleep, 0.01) for _ in range(50)]
    client.shutdown()
    assert {task.state for task in tasks} == {"succeeded"}


def test_shutdown_after_a_quick_cancel(one: Client) -> None:  # gh-94440
    one.submit(int).result()
    for _ in range(20):
        one.submit(int).cancel()
    one.shutdown()


def test_shutdown_cancels_what_has_not_started(one: Client, gate: Gate) -> None:
    tasks = [one.submit(gate, 1), *(one.submit(abs, 1) for _ in range(50)), one.options(delay=99).submit(abs, 1)]
    with gate.holding():
        one.shutdown(wait=False, cancel_futures=True)
        assert all(task.cancelled() for task in tasks[1:])
    assert tasks[0].result() == 1
    with pytest.raises(cf.CancelledError) as raised:
        tasks[1].result()
    assert isinstance(raised.value, TaskCancelled)
    assert raised.value.rung == "unstarted"


def test_shutdown_without_waiting(client: Client, gate: Gate) -> None:
    task = client.submit(gate, 1)
    with gate.holding():
        client.shutdown(wait=False)
        assert not task.done()
    client.shutdown()
    assert task.result() == 1


@pytest.mark.parametrize("times", range(3))
def test_shutdown_from_the_last_done_callback(times: int) -> None:
    client = Client(max_workers=1)
    done = threading.Event()
    client.submit(abs, 1).add_done_callback(lambda _: (client.shutdown(), done.set()))
    assert done.wait(30)
    client.shutdown()


def test_waiting_where_it_would_be_for_ever_is_refused(client: Client) -> None:
    refused: list[BaseException] = []

    def listener(*_: Any) -> None:
        for call in (task.result, client.shutdown, client.submit(abs, 1).result, lambda: next(client.map(abs, [1]))):
            try:
                call()
            except (UsageError, ClientClosed) as error:
                refused.append(error)

    task = client.submit(lambda: emit("hello") or hear())
    task.add_listener("hello", listener)
    with contextlib.suppress(UsageError):
        next(iter(task.events("hello")))
        task.send("go")
    task.result()
    assert [type(error) for error in refused][:2] == [UsageError, UsageError]


@pytest.mark.parametrize(("error", "state"), [(OwnError, "succeeded"), (KeyboardInterrupt, "cancelled")])
def test_leaving_by_an_exception_waits_and_by_an_interrupt_cancels(error: type[BaseException], state: str) -> None:
    tasks: list[Any] = []

    def leave() -> None:
        with Client(max_workers=1, ladder=(0.01, 5, 5)) as client:
            tasks.extend([client.submit(hear), client.submit(abs, 1)])
            next(iter(tasks[0].events("started")))
            if error is OwnError:
                tasks[0].send("go")
            raise error

    with pytest.raises(error):
        leave()
    assert {task.state for task in tasks} == {state}


def test_a_dropped_client_finishes_its_tasks() -> None:
    results = Client(max_workers=2).map(abs, range(-5, 5))
    task = Client(max_workers=1).submit(pow, 2, 3)
    gc.collect()
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    assert task.result() == 8
    del results, task
    gc.collect()


# --- references


def test_the_callable_is_let_go_once_it_has_run(client: Client) -> None:  # issue 16284
    thing = Object()
    gone = threading.Event()
    reference = weakref.ref(thing, lambda _: gone.set())
    client.submit(thing.method)  # the task is dropped on purpose
    del thing
    assert gone.wait(30)
    assert reference() is None


def test_map_lets_go_of_what_it_gave(client: Client) -> None:  # issue 14406
    for mapper in (client, client.options(retries=1)):
        for thing in mapper.map(lambda _: Object(), range(4)):
            reference = weakref.ref(thing)
            del thing
            assert freed(reference)


def test_tasks_and_what_they_hold_are_let_go(client: Client) -> None:
    argument = Object()
    task = client.submit(lambda argument: argument, argument)
    references = [weakref.ref(argument), weakref.ref(task), weakref.ref(task.result())]
    del argument, task
    assert [freed(each) for each in references] == [True] * 3
    task = client.submit(fail)
    error = task.exception()
    with pytest.raises(OwnError):
        task.result()
    references = [weakref.ref(task), weakref.ref(error)]
    del task, error
    assert [freed(each) for each in references] == [True] * 2


def test_a_closed_client_is_let_go() -> None:
    with Client(max_workers=1) as client:
        client.submit(abs, 1).result()
        assert list(client.map(abs, [1])) == [1]
    reference = weakref.ref(client)
    del client
    assert freed(reference)


@pytest.mark.parametrize("options", [{}, {"stall": 3600, "timeout": 3600}, {"retries": 1}])
def test_large_arguments_do_not_wait_for_the_collector(client: Client, options: Any) -> None:
    array = numpy.zeros(1 << 20)
    gone = threading.Event()
    reference = weakref.ref(array, lambda _: gone.set())
    gc.disable()
    try:
        assert client.options(**options).submit(len, array).result() == 1 << 20
        del array
        assert gone.wait(30)
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["submit", "map"])
def test_arguments_die_in_the_child_with_their_task(client: Client, gate: Gate, how: str) -> None:
    client.submit(id, Dying(gate.path)) if how == "submit" else client.map(id, [Dying(gate.path)])
    gate()  # until the argument's __del__ opens it


# --- initializer, max_tasks_per_child


def test_the_initializer_runs_in_every_child() -> None:
    with Client(max_workers=2, initializer=initialize, initargs=("a", "b")) as client:
        assert {client.submit(ask_whether_initialized).result() for _ in range(4)} == {"a b"}
        client.submit(os._exit, 1).exception()
        assert client.submit(ask_whether_initialized).result() == "a b"
        assert client.submit(later, 5).result() == 5
    assert "INITIALIZED" not in os.environ
    with pytest.raises(TypeError, match="initializer"):
        Client(initializer=5)  # type: ignore[arg-type]


def test_the_initializer_may_be_a_context_manager(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Client(max_workers=1, initializer=surrounding, initargs=(str(path),)) as client:
        assert client.submit(path.read_text).result() == "entered"
    assert path.read_text() == "left"


def test_an_initializer_that_fails_fails_the_tasks() -> None:
    with Client(max_workers=2, initializer=fail, initargs=("no start",)) as client:
        for task in [client.submit(abs, 1) for _ in range(3)] + [client.submit(later, 1)]:
            error = task.exception()
            assert type(error) is OwnError
            assert "raised by the initializer" in str(error.__notes__)


def test_an_initializer_that_dies_loses_the_tasks() -> None:
    with Client(max_workers=1, initializer=os._exit, initargs=(7,)) as client:
        for task in [client.submit(abs, 1) for _ in range(3)]:
            error = task.exception()
            assert isinstance(error, TaskLost)
            assert error.exit_code == 7
            assert "exited with code 7 before it was ready" in str(error)


def test_max_tasks_per_child() -> None:
    async def pid() -> int:
        return os.getpid()

    with Client(max_workers=1, max_tasks_per_child=3) as client:
        for fn in (os.getpid, pid):
            pids = [client.submit(fn).result() for _ in range(4)]
            assert [len(list(group)) for _, group in itertools.groupby(pids)] == [3, 1]
        assert [task.result() for task in [client.submit(later, i) for i in range(5)]] == list(range(5))
        assert list(client.map(abs, range(5), chunksize=1)) == list(range(5))
    with Client(max_workers=3, max_tasks_per_child=1) as client:
        tasks = [client.submit(mul, i, i) for i in range(6)]
        client.shutdown()  # early
        assert [task.result() for task in tasks] == [i * i for i in range(6)]
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="max_tasks_per_child"):
            Client(max_tasks_per_child=wrong)
