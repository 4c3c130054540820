"""`reporting`: what code that somebody else runs says, and what is said to it, by the same `attach` as for tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from revolve_assistant import (
    Client,
    Retry,
    TaskCancelled,
    TaskLost,
    Unsupported,
    Untrusted,
    UsageError,
    ask,
    current_task,
    emit,
    report,
    reporting,
    track,
)
from revolve_assistant.caller.task import Task
from revolve_assistant.running import line
from revolve_assistant.running.line import _lines
from revolve_assistant.testing.servers import Memcached


@pytest.fixture(autouse=True)
def line_goes_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A line stays for who reports next; here it goes soon, and with it its threads."""
    monkeypatch.setattr(line, "LINGER", 0.01)
    yield
    for each in list(_lines.values()):
        if each.thread is not None:
            each.thread.join(10)


@pytest.fixture
def place() -> str:
    return f"memory://{os.urandom(6).hex()}"


@pytest.fixture
def client(place: str) -> Iterator[Client]:
    with Client(f"{place}-queue", messenger=place) as it:
        yield it


def said(task: Task[Any]) -> list[tuple[Any, ...]]:
    """All that a task said; of `started` and `failed`, that it was said."""
    return [(each.name, *(each.args if each.name not in ("started", "failed") else ())) for each in task.events()]


def in_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


# ---------------------------------------------------------------- speaking


def test_all_is_heard_live_and_afterwards_and_the_result_is_type_exact(place: str, client: Client) -> None:
    go = threading.Event()

    def work() -> None:
        with reporting("job-1", messenger=place) as running:
            emit("first", 1, (2, {3}))
            go.wait(10)
            report(0.5, "half")
            assert current_task() is running
            running.result = {"a": (1, 2)}

    thread = in_thread(work)
    live = client.attach("job-1")
    events = live.events()
    assert [next(events).name, next(events).args] == ["started", (1, (2, {3}))]
    assert live.state == "running"
    go.set()
    assert [each.name for each in events] == ["progress", "succeeded"]
    assert live.result(10) == {"a": (1, 2)}
    assert live.name.endswith("work")
    thread.join()
    with Client(f"{place}-queue", messenger=place) as later:
        assert [name for name, *_ in said(later.attach("job-1"))] == ["started", "first", "progress", "succeeded"]


def test_track_says_how_far_it_is(place: str, client: Client) -> None:
    with reporting("tracked", messenger=place):
        assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    task = client.attach("tracked")
    task.result(10)
    assert task.progress is not None
    assert (task.progress.fraction, task.progress.done, task.progress.message) == (1.0, 3, "counting")


def test_an_exception_is_told_and_goes_on_its_way(place: str, client: Client) -> None:
    with pytest.raises(ValueError, match="no good"), reporting("bad", messenger=place):
        raise ValueError("no good")
    task = client.attach("bad")
    with pytest.raises(ValueError, match="no good"):
        task.result(10)
    assert said(task) == [("started",), ("failed",)]


@pytest.mark.parametrize(("code", "name"), [(0, "succeeded"), (None, "succeeded"), (3, "failed")])
def test_sys_exit_inside_is_an_end(place: str, client: Client, code: int | None, name: str) -> None:
    with pytest.raises(SystemExit), reporting("left", messenger=place):
        sys.exit(code)
    assert said(client.attach("left"))[-1][0] == name


def test_a_result_that_cannot_be_carried_is_a_failure_that_says_so(place: str, client: Client) -> None:
    with reporting("lock", messenger=place) as running:
        running.result = threading.Lock()
    with pytest.raises(Exception, match="lock"):
        client.attach("lock").result(10)


def test_as_a_decorator_each_call_is_a_block_and_what_it_returns_the_result(place: str, client: Client) -> None:
    @reporting("nightly", messenger=place)
    def nightly(n: int) -> int:
        emit("n", n)
        return n + 1

    @reporting("coroutine", messenger=place)
    async def coroutine(n: int) -> int:
        emit("n", n)
        return n * 2

    assert nightly(4) == 5
    assert nightly.__name__ == "nightly"
    task = client.attach("nightly")
    assert (task.result(10), task.name.endswith("nightly")) == (5, True)
    assert asyncio.run(coroutine(4)) == 8
    assert client.attach("coroutine").result(10) == 8
    with pytest.raises(UsageError, match="generator function"):

        @reporting("generator", messenger=place)
        def generator() -> Iterator[int]:
            yield 1


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_blocks_of_one_loop_do_not_hear_each_other(place: str, client: Client, run: Any) -> None:
    async def one(id: str) -> None:
        async with reporting(id, messenger=place) as running:
            for i in range(3):
                emit("mine", id, i)
                await (asyncio.sleep(0) if run is asyncio.run else trio.sleep(0))
            running.result = id

    async def both() -> None:
        if run is asyncio.run:
            await asyncio.gather(one("a"), one("b"))
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, "a")
                nursery.start_soon(one, "b")

    run(both) if run is trio.run else run(both())
    for id in "ab":
        assert said(client.attach(id)) == [("started",), *(("mine", id, i) for i in range(3)), ("succeeded", id)]


def test_a_cancelled_coroutine_is_cancelled(place: str, client: Client) -> None:
    async def main() -> None:
        async def work() -> None:
            async with reporting("coro", messenger=place):
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert said(client.attach("coro"))[-1] == ("cancelled", "exception")


def test_threads_of_a_block_on_the_main_thread_speak_for_it_and_a_server_s_threads_for_themselves(
    place: str, client: Client
) -> None:
    with reporting("whole", messenger=place):
        in_thread(lambda: emit("from a thread")).join()

    def serve(id: str) -> None:
        with reporting(id, messenger=place):
            barrier.wait(10)
            emit("mine", id)
            barrier.wait(10)

    barrier = threading.Barrier(2)
    threads = [in_thread(lambda id=id: serve(id)) for id in ("r1", "r2")]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert said(client.attach("whole"))[1] == ("from a thread",)
    for id in ("r1", "r2"):
        assert said(client.attach(id)) == [("started",), ("mine", id), ("succeeded", None)]
    emit("outside")  # of any block: nothing, and no error
    assert current_task().id == ""


def test_a_block_within_a_block_speaks_for_itself(place: str, client: Client) -> None:
    with reporting("outer", messenger=place):
        with reporting("inner", messenger=place):
            emit("in")
        emit("out")
    assert said(client.attach("outer")) == [("started",), ("out",), ("succeeded", None)]
    assert said(client.attach("inner")) == [("started",), ("in",), ("succeeded", None)]


def test_capture_turns_output_into_events_and_lets_it_through(
    place: str, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with reporting("loud", messenger=place, capture=True):
            print("printed")
            print("to stderr", file=sys.stderr)
            logging.getLogger("some").error("logged")
            warnings.warn("warned", stacklevel=1)
            in_thread(lambda: print("in a thread")).join()
            print("begun", end="")
    print(" and not heard")
    heard = said(client.attach("loud"))
    assert [each for each in heard if each[0] == "output"] == [
        ("output", "printed\n"),
        ("output", "in a thread\n"),
        ("output", "begun"),
    ]
    assert ("error_output", "to stderr\n") in heard
    assert ("log", "ERROR", "some", "logged") in heard
    assert any(each[:3] == ("log", "WARNING", "py.warnings") and "warned" in each[3] for each in heard)
    out, err = capfd.readouterr()
    assert out == "printed\nin a thread\nbegun and not heard\n"
    assert "to stderr\n" in err
    assert [str(each.message) for each in shown] == ["warned"]


# ---------------------------------------------------------------- hearing


def test_a_watcher_answers_sends_and_cancels(place: str, client: Client) -> None:
    ends: list[Any] = []

    def work() -> None:
        try:
            with reporting("talk", messenger=place) as running:
                emit("answer was", ask("how many?", timeout=20))
                emit("got", *running.receive(timeout=20))
                for _ in track(iter(int, 1)):
                    time.sleep(0.001)
        except TaskCancelled as error:
            ends.append(error)

    thread = in_thread(work)
    task = client.attach("talk")
    heard = []
    for event in task.events():
        heard.append(event.name)
        if event.name == "question":
            task.send("answer", 42)
        elif event.name == "answer was":
            assert event.args == (42,)
            task.send("more", 1, "x")
        elif event.name == "got":
            assert event.args == ("more", (1, "x"))
            assert task.cancel()
    thread.join()
    assert (heard[0], heard[-1], task.cancelled()) == ("started", "cancelled", True)
    assert len(ends) == 1, "the block that was asked to stop ends with an ordinary exception"


def test_cancel_reaches_coroutines(place: str, client: Client) -> None:
    async def work() -> None:
        async with reporting("coro", messenger=place) as running:
            await running.receive_async(timeout=20)

    def outside() -> None:
        with contextlib.suppress(TaskCancelled):
            asyncio.run(work())

    thread = in_thread(outside)
    task = client.attach("coro")
    next(task.events())
    task.cancel()
    with pytest.raises(TaskCancelled):
        task.result(10)
    thread.join()


def test_its_stack_is_shown(place: str, client: Client) -> None:
    go = threading.Event()

    def work_that_stands_here() -> None:
        with reporting("still", messenger=place):
            go.wait(20)

    thread = in_thread(work_that_stands_here)
    task = client.attach("still")
    next(task.events())
    assert "work_that_stands_here" in client.stack(task)
    go.set()
    thread.join()


# ---------------------------------------------------------------- again


def test_a_retry_is_another_attempt_to_who_watches_and_to_who_comes_later(place: str, client: Client) -> None:
    live = client.attach("again", within=10)
    for attempt in (1, 2):
        with contextlib.suppress(Retry), reporting("again", messenger=place) as running:
            emit("try", attempt)
            if attempt == 1:
                raise Retry("busy", after=0.5)
            running.result = attempt
    expected = [("started",), ("try", 1), ("retrying", "busy", 0.5), ("started",), ("try", 2), ("succeeded", 2)]
    assert said(live) == expected
    with Client(f"{place}-queue", messenger=place) as later:
        task = later.attach("again")
        assert said(task) == expected
        assert task.result(10) == 2


def test_the_same_id_the_next_night_is_another_attempt(place: str) -> None:
    for night in (1, 2):
        with contextlib.suppress(ValueError), reporting("nightly", messenger=place) as running:
            running.result = night
            if night == 1:
                raise ValueError("disk full")
    with Client(f"{place}-queue", messenger=place) as later:
        task = later.attach("nightly")
        heard = said(task)
        assert [each[0] for each in heard] == ["started", "retrying", "started", "succeeded"]
        assert "disk full" in heard[1][1]
        assert task.result(10) == 2


def test_who_holds_last_night_s_task_gets_tonight_s_from_attach(place: str, client: Client) -> None:
    for night in (1, 2):
        with reporting("nightly", messenger=place) as running:
            running.result = night
        if night == 1:
            held = client.attach("nightly")
            assert held.result(10) == 1
    assert client.attach("nightly").result(10) == 2
    assert held.result(10) == 1


def test_attach_waits_for_who_has_not_begun(place: str, client: Client) -> None:
    task = client.attach("later", within=20)
    with pytest.raises(LookupError, match="never"):
        client.attach("never", within=0.05).result(20)
    with reporting("later", messenger=place):
        pass
    assert said(task) == [("started",), ("succeeded", None)]


# ---------------------------------------------------------------- use


@pytest.mark.parametrize("id", ["", "a" * 61, "a/b", "a b", "ü", "a\n", None, 7, b"x"])
def test_an_id_that_is_none_is_refused_at_once(place: str, id: Any) -> None:
    with pytest.raises(UsageError, match="is no id: it takes 1 to 60 of"):
        reporting(id, messenger=place)


def test_the_ids_that_celery_rq_dramatiq_and_people_have_are_taken(place: str) -> None:
    for id in ("0f4cc3a0-0c4a-4a0e-8f4a-1f6e7f0f6d53", "job.2024-01-02_03", "a" * 60):
        reporting(id, messenger=place)


def test_wrong_use_is_said_at_once(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = reporting("x", messenger=place)
    with block, pytest.raises(UsageError, match="entered already"), block:
        pass
    with pytest.raises(UsageError, match="history"):
        reporting("x", messenger=place, history=0)
    with pytest.raises(UsageError, match="REVOLVE_MESSENGER"), reporting("x"):
        pass
    with pytest.raises(Unsupported, match="keeps no history"), reporting("x", messenger="gearman://127.0.0.1"):
        pass
    monkeypatch.setenv("REVOLVE_URL", "process://")
    with pytest.raises(UsageError, match="is no queue"), reporting("x"):
        pass
    with pytest.raises(LookupError, match="nosuch"), reporting("x", messenger="nosuch://"):
        pass


def test_the_environment_says_where(place: str, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVOLVE_MESSENGER", place)
    with reporting("env"):
        pass
    assert said(client.attach("env"))[-1] == ("succeeded", None)
    monkeypatch.delenv("REVOLVE_MESSENGER")
    monkeypatch.setenv("REVOLVE_URL", place)
    with reporting("url"):
        pass
    assert said(client.attach("url"))[-1] == ("succeeded", None)


def test_another_secret_hears_nothing_but_why(place: str) -> None:
    with reporting("closed", messenger=place, secret="a secret of sixteen or more"):
        pass
    with Client(f"{place}-queue", messenger=place, secret="and another one of that length") as other:
        with pytest.raises(Untrusted, match="give both the same secret"):
            other.attach("closed").result(20)
        with reporting("open", messenger=place, secret="and another one of that length"):
            pass
        assert said(other.attach("open"))[-1] == ("succeeded", None)


def test_many_blocks_in_many_threads_share_one_line(place: str, client: Client) -> None:
    """An emit costs no connection, and no thread."""
    ready, go = threading.Barrier(21), threading.Event()

    def work(id: str) -> None:
        with reporting(id, messenger=place):
            emit("x", id)
            ready.wait(20)
            go.wait(20)

    threads = [in_thread(lambda n=n: work(f"many-{n}")) for n in range(20)]  # type: ignore[misc]
    ready.wait(20)
    ours = [each.name for each in threading.enumerate() if each.name in ("revolve-reporting", "revolve-hearing")]
    assert sorted(ours) == ["revolve-hearing", "revolve-reporting"]
    assert len(_lines) == 1
    go.set()
    for thread in threads:
        thread.join()
    for n in range(20):
        assert said(client.attach(f"many-{n}")) == [("started",), ("x", f"many-{n}"), ("succeeded", None)]


def test_more_than_fits_is_a_gap_and_never_a_wait(place: str, client: Client) -> None:
    with reporting("much", messenger=place):
        for i in range(100):
            emit("block", i, "x" * 100_000)
    heard = list(client.attach("much").events())
    numbers = [each.args[0] for each in heard if each.name == "block"]
    missing = sum(each.args[0] for each in heard if each.name == "gap")
    assert numbers == sorted(set(numbers))
    assert len(numbers) + missing >= 100
    assert numbers[-1] == 99
    assert heard[-1].name == "succeeded"


# ---------------------------------------------------------------- processes

PROGRAM = """
import os, sys, threading
from revolve_assistant import emit, reporting
place = sys.argv[1]
"""


def run(tmp_path: Path, code: str, place: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM + code)
    return subprocess.run(
        [sys.executable, "-W", "error", file, place], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("carrier", ["filesystem", "memcached"])
def test_another_process_is_heard_over(carrier: str, tmp_path: Path, need: Callable[[str], str]) -> None:
    with contextlib.ExitStack() as stack:
        if carrier == "memcached":
            need("memcached")
            server = stack.enter_context(Memcached())
            place = f"memcached://{server.host}:{server.port}"
        else:
            place = f"file://{tmp_path}/messages"
        client = stack.enter_context(Client(f"memory://{tmp_path.name}", messenger=place))
        task = client.attach("far", within=20)
        code = "with reporting('far', messenger=place) as r:\n    emit('tick', 1)\n    r.result = os.getpid()"
        done = run(tmp_path, code, place)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert [name for name, *_ in said(task)] == ["started", "tick", "succeeded"]
        assert task.result(10) not in (os.getpid(), None)
        assert task.name == "program.py"


@pytest.mark.parametrize(
    "code",
    [
        "import contextlib\nstack = contextlib.ExitStack()\nstack.enter_context(reporting('open', messenger=place))",
        "def g():\n    with reporting('open', messenger=place): yield\nit = g()\nnext(it)\nsys.modules['keep'] = it",
        "def t():\n    with reporting('open', messenger=place):\n        on.set()\n        threading.Event().wait()\n"
        "on = threading.Event()\nthreading.Thread(target=t, daemon=True).start()\non.wait()",
    ],
    ids=["never left", "a generator", "a daemon thread"],
)
def test_an_exit_of_the_interpreter_without_an_end_is_told(code: str, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/messages"
    done = run(tmp_path, f"{code}\nemit('tick')", place)
    assert (done.returncode, done.stderr) == (0, "")
    with Client(f"memory://{tmp_path.name}", messenger=place) as client:
        task = client.attach("open")
        with pytest.raises(TaskLost, match="its interpreter ended, and said no end"):
            task.result(10)


def test_a_fork_says_nothing_for_its_parent(tmp_path: Path) -> None:
    place = f"file://{tmp_path}/messages"
    code = """
with reporting('parent', messenger=place):
    emit('before')
    pid = os.fork()
    if not pid:
        emit('from the fork')
        with reporting('fork', messenger=place):
            emit('mine')
        sys.exit(7)
    os.waitpid(pid, 0)
    emit('after')
"""
    done = run(tmp_path, code, place)
    assert (done.returncode, done.stderr) == (0, "")
    with Client(f"memory://{tmp_path.name}", messenger=place) as client:
        assert said(client.attach("parent")) == [("started",), ("before",), ("after",), ("succeeded", None)]
        assert said(client.attach("fork")) == [("started",), ("mine",), ("succeeded", None)]
