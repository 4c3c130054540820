"""The fork engine: what a fork has of its caller, what it has not, and when there is none.

Over 600 lines: its parts share the callables and fixtures at its head.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from revolve_assistant import (
    CancelSignal,
    Client,
    NotCarriable,
    Progress,
    RemoteError,
    Task,
    TaskCancelled,
    TaskLost,
    UsageError,
    ask,
    current_task,
    emit,
    track,
)
from revolve_assistant.pool import stacks, threads

NEVER = 1000.0
MIB = 1 << 20


@pytest.fixture
def client() -> Iterator[Client]:
    with Client("fork://", max_workers=2) as client:
        yield client
        for task in list(client._tasks.values()):  # of a test that failed
            task.cancel()


@pytest.fixture
def make() -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(url: str = "fork://", **options: Any) -> Client:
        made.append(Client(url, **{"max_workers": 1, **options}))
        return made[-1]

    yield make
    for client in made:
        client._close()  # a test that failed may leave what never ends


@pytest.fixture
def other() -> Iterator[threading.Thread]:
    """A thread that is not ours."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="busy bee")
    thread.start()
    yield thread
    stop.set()
    thread.join()


def started(task: Task[Any]) -> Task[Any]:
    next(iter(task.events("started")))
    return task


def hear() -> Any:
    message = current_task().receive()
    return message and message.args


def script(code: str, *flags: str) -> list[str]:
    """The lines that a program printed; it must end well and say nothing on stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# --- what it has


def test_arguments_are_inherited_and_never_pickled(client: Client, tmp_path: Path) -> None:
    class Unpicklable:
        def __reduce__(self) -> Any:
            raise AssertionError("pickled")

    lock, here, there = threading.Lock(), *socket.socketpair()
    numbers = (i * i for i in range(4))
    next(numbers)

    def work(lock: Any, file: Any, numbers: Any, sock: socket.socket, thing: Any, *, module: Any) -> Any:
        with lock:
            file.write("written in the fork")
            file.flush()
        sock.sendall(b"sent in the fork")
        return list(numbers), type(thing).__name__, module.__name__

    with open(tmp_path / "file", "w+") as file:
        task = client.submit(work, lock, file, numbers, there, Unpicklable(), module=sys)
        assert task.result() == ([1, 4, 9], "Unpicklable", "sys")
        file.seek(0)
        assert file.read() == "written in the fork"
    assert here.recv(100) == b"sent in the fork"
    assert list(numbers) == [1, 4, 9]  # the fork drew from a copy
    here.close()
    there.close()


def test_the_state_of_the_moment_of_submitting(client: Client) -> None:
    state = [1]
    task = client.submit(lambda: state)
    state.append(2)
    assert (task.result(), client.submit(lambda: state).result()) == ([1], [1, 2])
    client.submit(state.append, 3).result()
    assert state == [1, 2]


def test_a_large_array_is_not_copied(client: Client) -> None:
    array = numpy.ones(200 * MIB, dtype="u1")

    def work() -> tuple[int, int]:
        total = int(array.sum())
        gc.collect()
        facts = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        return total, int(facts["Private_Dirty:"]) * 1024

    total, private = client.submit(work).result()
    assert total == 200 * MIB
    assert private < 40 * MIB


def test_a_collection_in_the_fork_copies_nothing(client: Client) -> None:
    def work() -> tuple[int, int]:
        gc.collect()
        return gc.get_freeze_count(), gc.get_count()[2]

    before = gc.get_freeze_count()
    assert client.submit(work).result()[0] > before + 10_000
    assert gc.get_freeze_count() == before


def test_a_result_that_cannot_travel_is_named(client: Client) -> None:
    class Mine:
        def __reduce__(self) -> Any:
            raise ValueError("no")

    with pytest.raises(NotCarriable, match=r"result is a _thread\.lock") as raised:
        client.submit(threading.Lock).result()
    assert "the result of _thread:" in "".join(raised.value.__notes__)
    with pytest.raises(NotCarriable, match="Mine"):
        client.submit(lambda: {"deep": [Mine()]}).result()
    assert client.submit(abs, -1).result() == 1


def test_large_results_come_back(client: Client) -> None:
    array = numpy.arange(4 * MIB)
    assert (client.submit(lambda: array * 2).result() == array * 2).all()
    assert client.submit(bytes, 20 * MIB).result() == bytes(20 * MIB)
    assert client.submit(lambda: {1, 2}).result() == {1, 2}


def test_every_kind_of_callable(client: Client) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        emit("half", number)
        return number * 2

    async def count(number: int) -> Any:
        for i in range(number):
            yield i

    def steps(number: int) -> Any:
        yield from range(number)
        return "end"

    task = client.submit(double, 4)
    assert (task.result(), [e.args for e in task.events("half")][:-1]) == (8, [(4,)])
    assert list(client.submit(count, 3).items()) == [0, 1, 2]
    generator = client.submit(steps, 3)
    assert (list(generator.items()), generator.result()) == ([0, 1, 2], "end")
    assert list(client.map(lambda a, b: a + b, range(10), range(10))) == [2 * i for i in range(10)]


def test_events_come_in_order_once(client: Client) -> None:
    def work(size: int) -> int:
        hear()
        for i in range(20_000):
            emit("n", i, "x" * size)
        return size

    tasks = [client.submit(work, size) for size in (0, 100)]
    heard: list[list[int]] = [[], []]
    for task, mine in zip(tasks, heard, strict=True):
        task.add_listener("n", lambda i, _, mine=mine: mine.append(i))
        task.send("go")
    assert [task.result() for task in tasks] == [0, 100]
    assert heard == [list(range(20_000))] * 2


def test_messages_questions_and_progress(client: Client) -> None:
    def work() -> Any:
        for _ in track(range(3), "working"):
            pass
        said: list[Any] = []
        current_task().on("note", said.append)
        return ask("your name?"), said, current_task().receive(10)

    task = client.submit(work)
    task.send("note", "early")
    assert next(iter(task.events("question"))).args == ("1", "your name?")
    task.send("other", 1)
    task.send("answer", "Ada")
    assert task.result() == ("Ada", ["early"], ("other", (1,)))
    assert task.progress == Progress(1.0, 3, 3, "working")


def test_what_was_sent_to_one_that_waits_is_there_when_it_starts(make: Callable[..., Client]) -> None:
    client = make()
    first, second = client.submit(hear), client.submit(hear)
    for i in range(300):
        assert second.send("go", i, "x" * 1000)
    first.send("go")
    assert second.result()[0] == 0


def test_capture(client: Client) -> None:
    def work() -> None:
        print("printed")
        print("wrong", file=sys.stderr)
        logging.getLogger("mine").warning("logged")

    task = client.options(capture=True).submit(work)
    task.result()
    said = [(e.name, e.args[-1]) for e in task.events()][1:-1]
    assert said == [("output", "printed\n"), ("error_output", "wrong\n"), ("log", "logged")]


def test_an_initializer_runs_in_every_fork(make: Callable[..., Client], tmp_path: Path) -> None:
    class Open:
        def __init__(self, name: str) -> None:
            self.path = tmp_path / name

        def __enter__(self) -> None:
            self.path.touch()

        def __exit__(self, *_: object) -> None:
            self.path.unlink()

    with make(initializer=Open, initargs=("here",)) as client:
        assert [client.submit((tmp_path / "here").exists).result() for _ in range(2)] == [True, True]
    assert not (tmp_path / "here").exists()

    with make(initializer=lambda: 1 / 0) as client, pytest.raises(ZeroDivisionError) as raised:
        client.submit(abs, 1).result()
    assert raised.value.__notes__[0] == "raised by the initializer of the child process"


# --- what it has not


def test_a_fork_stands_alone(client: Client) -> None:
    random.seed(1)
    numpy.random.seed(1)
    signal.signal(signal.SIGUSR2, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})

    def work() -> dict[str, Any]:
        return {
            "session": os.getsid(0) == os.getpid() == os.getpgrp(),
            "handlers": [signal.getsignal(each) for each in (signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM)],
            "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "stdin": (os.read(0, 1), sys.stdin.read()),
            "thread": (threading.current_thread().name, threading.active_count()),
            "random": (random.random(), numpy.random.random()),
        }

    try:
        found = [client.submit(work).result() for _ in range(2)]
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    series = [each.pop("random") for each in found]
    alone = {
        "session": True,
        "handlers": [signal.SIG_DFL] * 3,
        "blocked": 0,
        "stdin": (b"", ""),
        "thread": ("MainThread", 1),
    }
    assert found == [alone, alone]
    assert series[0][0] != series[1][0]
    assert series[0][1] != series[1][1]


def test_the_loop_of_the_caller_is_not_the_forks(client: Client) -> None:
    async def nested() -> str:
        return "ran"

    def work() -> Any:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return asyncio.run(nested())

    async def main() -> Any:
        return await client.submit(work), await client.submit(nested)

    assert asyncio.run(main()) == ("ran", "ran")


def test_the_context_of_the_caller_is_not_the_forks(client: Client) -> None:
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("the caller's")
    assert client.submit(variable.get).result() == "default"  # as in every other engine


def test_descriptors_of_other_tasks_are_closed(make: Callable[..., Client]) -> None:
    client, process = make(max_workers=3), Client(max_workers=1)

    def descriptors() -> list[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass
        return sorted(name for name in found if name.startswith(("/memfd:revolve", "anon_inode")))

    with process:
        held = [started(client.submit(hear)), started(client.submit(hear)), started(process.submit(hear))]
        assert client.submit(descriptors).result() == ["/memfd:revolve-board (deleted)"] * 2
        for task in held:
            task.send("go")
            task.result()


def test_the_end_of_a_fork_is_its_own(tmp_path: Path) -> None:
    """Its own exit functions and threads end; the caller's exit functions, `finally` and buffers are left alone."""
    said = script(
        f"""
        import atexit, os, sys, threading
        from revolve_assistant import Client

        path = {str(tmp_path / "said")!r}
        def note(text):
            with open(path, "a") as file:
                file.write(text + "\\n")

        atexit.register(note, "the caller's exit")
        def work():
            atexit.register(note, "the fork's exit")
            threading.Thread(target=lambda: (__import__("time").sleep(0.05), note("the fork's thread"))).start()
            print("from the fork", end="")

        print("buffered in the caller")
        sys.stdout.write("half a line, ")
        try:
            with Client("fork://") as client:
                client.submit(work).result()
        finally:
            note("finally")
        print(", and the rest")
    """
    )
    assert said == ["buffered in the caller", "half a line, from the fork, and the rest"]
    assert (tmp_path / "said").read_text().splitlines() == [
        "the fork's thread",
        "the fork's exit",
        "finally",
        "the caller's exit",
    ]


def test_what_is_forked_behind_the_callers_back_drops_what_is_not_written(make: Callable[..., Client]) -> None:
    said = script("""
        import sys
        from revolve_assistant import Client, current_task

        with Client("fork://", max_workers=1) as client:
            first = client.submit(lambda: current_task().receive())
            second = client.submit(print, "from the fork", flush=True)
            sys.stdout.write("buffered, ")
            first.send("go")
            second.result()
            print("once")
    """)
    assert sorted(said) == ["buffered, once", "from the fork"]


def test_failures_of_the_caller_are_told_once() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
                from revolve_assistant import Client

                with Client("fork://") as client:
                    failed = client.submit(int, "x")
                    while not failed.done(): pass
                    client.submit(abs, 1).result()
            """),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stderr.count("and nobody asked") == 1


def test_queues_of_multiprocessing_work(client: Client) -> None:
    queue: Any = multiprocessing.get_context("fork").Queue()
    queue.put("from the caller")
    assert queue.get(timeout=10) == "from the caller"
    with Client("fork://?other_threads=allow") as free:  # the queue has a feeder thread now
        free.submit(queue.put, ["from", "the fork"]).result()
    assert queue.get(timeout=10) == ["from", "the fork"]
    queue.close()
    queue.join_thread()


# --- forks within forks


def test_a_fork_forks_with_the_same_client(client: Client) -> None:
    def outer(depth: int) -> list[int]:
        if not depth:
            return [os.getpid()]
        tasks = [client.submit(outer, depth - 1) for _ in range(3)]
        return [os.getpid(), *(pid for task in tasks for pid in task.result())]

    pids = client.submit(outer, 2).result()
    assert len(set(pids)) == len(pids) == 13


def test_every_engine_works_in_a_fork(client: Client) -> None:
    with Client(max_workers=1) as process, Client("thread://") as thread:
        for other in (process, thread):
            assert other.submit(abs, -1).result() == 1

        def work() -> Any:
            with Client("inline://") as inline:
                found = [each.submit(abs, -2).result(20) for each in (process, thread, inline)]
            return found, process.submit(os.getpid).result(20)

        found, pid = client.submit(work).result()
        assert found == [2, 2, 2]
        assert process.submit(os.getpid).result() not in (pid, os.getpid())


def test_forks_within_every_engine() -> None:
    def work() -> Any:
        with Client("fork://?other_threads=allow") as client:
            return client.submit(lambda: (emit("deep"), current_task().id)[1]).result(20)

    async def work_async() -> Any:
        async with Client("fork://") as client:
            return await client.submit(lambda: current_task().id)

    for url in ("process://", "thread://", "inline://", "fork://"):
        with Client(url) as client:
            task = client.submit(work)
            assert task.result(20) != task.id
            assert [e.name for e in task.events()] == ["started", "succeeded"]
            if url in ("process://", "fork://"):
                assert client.submit(work_async).result(20)


def test_the_callers_task_cannot_be_waited_for_in_a_fork(client: Client) -> None:
    with Client(max_workers=1) as other:
        task = started(other.submit(hear))
        for act in (task.result, task.exception, lambda: next(task.events()), task.cancel, lambda: task.send("go")):
            with pytest.raises(UsageError, match=f"task {task.id} belongs to the process that this one"):
                client.submit(act).result()
        assert client.submit(lambda: (task.done(), task.state)).result() == (False, "lost")
        assert task.state == "running"
        task.send("go")
        assert task.result() == ()
        assert client.submit(task.result).result() == ()  # once it has ended, anybody may know


@pytest.mark.parametrize("raises", [False, True])
def test_the_copy_of_a_fork_that_forks_ends_with_its_callable(client: Client, raises: bool) -> None:
    def work() -> int:
        forked = os.fork()
        if raises and not forked:
            raise ValueError("in the copy")
        return forked

    for _ in range(3):
        assert client.submit(work).result(timeout=20) > 0


# --- other threads


def test_other_threads_are_refused_by_name(client: Client, other: threading.Thread) -> None:
    with pytest.raises(UsageError, match=r"\(busy bee\).*fork://\?other_threads=allow"):
        client.submit(abs, 1)
    with pytest.raises(UsageError, match="busy bee"):
        client.map(abs, [1])
    assert not client._tasks


def test_other_threads_are_refused_by_name_with_a_messenger_too(other: threading.Thread) -> None:
    with Client("fork://", messenger=f"memory://{os.urandom(6).hex()}") as client:
        task = client.submit(abs, 1)
        with pytest.raises(UsageError, match=r"\(busy bee\).*fork://\?other_threads=allow"):
            task.result(30)
        assert [event.name for event in task.events()][-1] == "failed"


def test_a_task_that_waited_is_refused_when_it_would_start(make: Callable[..., Client]) -> None:
    client = make()
    first, second = client.submit(hear), client.submit(abs, -2)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="late bee")
    thread.start()
    first.send("go")
    with pytest.raises(UsageError, match="late bee"):
        second.result()
    stop.set()
    thread.join()
    assert client.submit(abs, -2).result() == 2


@pytest.mark.parametrize("url", ["fork://?other_threads=allow", "fork://"])
def test_other_threads_are_allowed_when_asked(make: Callable[..., Client], other: threading.Thread, url: str) -> None:
    options = {} if "?" in url else {"other_threads": "allow"}
    client = make(url, **options)
    assert [client.submit(abs, -i).result() for i in range(5)] == list(range(5))
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(client.submit(abs, -7).result()))
    thread.start()
    thread.join()
    assert box == [7]


def test_threads_of_ours_are_no_reason_but_their_tasks_are(client: Client) -> None:
    with Client("thread://", max_workers=2) as thread, Client(max_workers=1) as process:
        assert (thread.submit(abs, -1).result(), process.submit(abs, -1).result()) == (1, 1)
        client.add_listener("*", lambda _: None)
        assert client.options(delay=0.01).submit(abs, -2).result() == 2
        busy = started(thread.submit(hear))
        with pytest.raises(UsageError, match=r"revolve-\d \(runs task .*:hear\)"):
            client.submit(abs, 1)
        busy.send("go")
        busy.result()
        assert client.submit(abs, -3).result() == 3


def test_leaving_an_asynchronous_client_leaves_no_thread() -> None:
    async def main() -> list[int]:
        found = []
        for _ in range(3):
            async with Client("fork://", max_workers=1) as client:
                found.append(await client.submit(abs, -1))
        assert threads.strangers() == []
        return found

    assert asyncio.run(main()) == [1, 1, 1]


def test_wrong_options_are_refused() -> None:
    for url in ("fork://?other_threads=maybe", "fork://?threads=allow"):
        with pytest.raises(UsageError, match="other_threads"):
            Client(url)
    with pytest.raises(UsageError, match="memory_limit"):
        Client("fork://", memory_limit=1)
    with pytest.raises(UsageError, match="max_workers"):
        Client("fork://", max_workers=0)


def test_no_warning_of_threads_is_seen_or_raised() -> None:
    said = script(
        """
        import warnings
        from revolve_assistant import Client

        with Client("fork://", max_workers=1) as client:
            client.add_listener("*", lambda event: None)
            for _ in range(3):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    tasks = [client.submit(abs, -i) for i in range(4)]
                    print([task.result() for task in tasks])
    """,
        "-Werror",
    )
    assert said == ["[0, 1, 2, 3]"] * 3


def test_a_fork_waits_for_the_import_of_another_thread(make: Callable[..., Client], tmp_path: Path) -> None:
    (tmp_path / "slow_bee.py").write_text("import sys\nsys.began.set()\nsys.go_on.wait(20)\nvalue = 7\n")
    client = make("fork://?other_threads=allow")
    sys.path.insert(0, str(tmp_path))
    began, go_on = threading.Event(), threading.Event()
    sys.began, sys.go_on = began, go_on  # type: ignore[attr-defined]

    def work() -> Any:
        sys.go_on.set()  # type: ignore[attr-defined] # in the fork: whoever begins anew goes through
        import slow_bee  # type: ignore[import-not-found]

        return slow_bee.value

    try:
        for _ in range(2):
            sys.modules.pop("slow_bee", None)
            began.clear()
            go_on.clear()
            thread = threading.Thread(target=lambda: __import__("slow_bee"))
            thread.start()
            began.wait(20)
            task = client.submit(work)
            assert task.state == "pending"
            if not _:
                go_on.set()  # the first time the import ends; the second the fork is tired of waiting
            assert task.result(20) == 7
            go_on.set()
            thread.join()
    finally:
        sys.path.remove(str(tmp_path))
        del sys.began, sys.go_on  # type: ignore[attr-defined]


def test_a_fork_waits_for_a_listener(make: Callable[..., Client]) -> None:
    client = make()
    lock, entered, go_on = threading.Lock(), threading.Event(), threading.Event()

    def listener(_: Any) -> None:
        with lock:
            entered.set()
            go_on.wait(20)

    def work() -> bool:
        return lock.acquire(timeout=0.1)

    first = client.submit(hear)
    first.add_listener("started", listener)
    assert entered.wait(20)
    task = client.submit(work)
    first.send("go")
    assert task.state == "pending"
    go_on.set()
    assert task.result()


def test_output_works_whatever_thread_was_writing(make: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    full = io.TextIOWrapper(io.BufferedWriter(io.FileIO(write, "w")), write_through=True)
    client = make("fork://?other_threads=allow")
    writer = threading.Thread(target=lambda: (full.write("x" * MIB), full.flush()))
    writer.start()  # it waits for a reader, within the lock of its buffer
    assert os.read(read, 1) == b"x"
    monkeypatch.setattr(sys, "stderr", full)
    monkeypatch.setattr("revolve_assistant.pool.fork.flush_streams", lambda: None)

    def work() -> str:
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # else it would wait for the reader of the pipe, too
        print("said", file=sys.stderr, flush=True)
        return "said"

    assert client.submit(work).result(20) == "said"
    monkeypatch.undo()
    while writer.is_alive():
        os.read(read, MIB)
        writer.join(0.01)
    os.set_blocking(read, False)
    full.close()
    os.close(read)


# --- how it is stopped


def test_the_flag_stops_it_first(client: Client) -> None:
    def work() -> str:
        while not current_task().cancel_requested:
            time.sleep(0.001)
        return "cleaned up"

    for task in (client.submit(work), client.submit(hear), client.submit(lambda: list(track(iter(int, 1))))):
        started(task).cancel()
        with pytest.raises(TaskCancelled) as raised:
            task.result()
        assert raised.value.rung == "flag"


@pytest.mark.parametrize(
    ("rung", "ladder"),
    [
        ("exception", (0.0, NEVER, NEVER)),
        ("SIGTERM", (0.0, 0.0, NEVER)),
        ("SIGKILL", (0.0, 0.0, 0.0)),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_then_come_the_other_rungs(make: Callable[..., Client], kind: str, rung: str, ladder: Any) -> None:
    def deaf() -> None:
        if rung == "SIGKILL":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        said = False
        while True:
            try:
                said = said or emit("deaf") is None
                while True:
                    time.sleep(0.001)
            except CancelSignal:
                if rung == "exception":
                    raise

    async def deaf_async() -> None:
        if rung == "exception":
            emit("deaf")
            await asyncio.sleep(NEVER)
        deaf()

    task = make(ladder=ladder).submit(deaf if kind == "plain" else deaf_async)
    next(iter(task.events("deaf")))
    task.cancel()
    with pytest.raises(TaskCancelled) as raised:
        task.result()
    assert raised.value.rung == rung


def test_one_that_has_just_been_forked_can_be_stopped(make: Callable[..., Client]) -> None:
    client = make(ladder=(0.0, NEVER, NEVER), max_workers=64)
    for _ in range(30):
        task = client.submit(time.sleep, NEVER)
        task.cancel()
        with pytest.raises(TaskCancelled) as raised:
            task.result()
        assert raised.value.rung in ("flag", "exception")


def test_one_that_waits_is_never_forked(make: Callable[..., Client], tmp_path: Path) -> None:
    client = make()
    first, second, third = client.submit(hear), client.submit((tmp_path / "ran").touch), client.submit(abs, -3)
    assert second.state == "pending"
    assert second.cancel()
    with pytest.raises(TaskCancelled) as raised:
        second.result()
    assert raised.value.rung == "unstarted"
    first.send("go")
    assert third.result() == 3
    assert not (tmp_path / "ran").exists()


def test_no_more_forks_at_once_than_asked_for(make: Callable[..., Client]) -> None:
    client = make(max_workers=3)
    tasks = [client.submit(hear) for _ in range(10)]
    for _ in range(4):
        states = [task.state for task in tasks]
        assert states == ["running"] * min(3, len(tasks)) + ["pending"] * (len(tasks) - 3)
        for task in tasks[:3]:
            task.send("go")
            task.result()
        del tasks[:3]
        for task in tasks[:3]:
            started(task)


def test_what_lingers_after_its_task_is_ended(make: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revolve_assistant.pool.fork.LINGER", 0.05)
    client = make()

    def work() -> int:
        threading.Thread(target=time.sleep, args=(60,)).start()
        return os.getpid()

    pid = client.submit(work).result()
    assert client.submit(os.getpid).result() != pid  # it had to go first


# --- how it is seen


def test_its_stacks_are_its_own(client: Client) -> None:
    def innermost() -> Any:
        emit("there")
        return hear()

    task = client.submit(innermost)
    next(iter(task.events("there")))
    for look in (lambda: client.stack(task), lambda: stacks.find_and_dump(task.id)):
        while "return hear()" not in (text := look()):  # it is about to get there
            assert "in innermost" in text
        assert "in innermost" in text
        assert "test_its_stacks_are_its_own" not in text
        assert "fork.py" not in text.replace("test_fork.py", "")
    task.send("go")
    task.result()
    with pytest.raises(LookupError):
        stacks.find_and_dump(task.id)


def test_its_traceback_is_the_callables(client: Client) -> None:
    def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError) as raised:
        client.submit(work).result()
    text = str(raised.value.__cause__)
    assert 'raise KeyError("mine")' in text
    assert "client.submit" not in text
    with pytest.raises(RemoteError, match="SystemExit: 3"):
        client.submit(sys.exit, 3).result()


def test_a_death_that_the_program_itself_has_noticed(make: Callable[..., Client]) -> None:
    client = make()
    task = started(client.submit(hear))
    [child] = client._engine.children
    with client._engine.lock:  # so that the pump comes too late
        os.kill(child.pid, signal.SIGKILL)
        assert os.wait()[0] == child.pid
    with pytest.raises(TaskLost, match="something else collected its exit status") as raised:
        task.result()
    assert (raised.value.signal, raised.value.exit_code) == (None, None)


def test_without_pidfds(make: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")  # as on macOS
    client = make(max_workers=2)
    began = time.monotonic()
    assert list(client.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    assert time.monotonic() - began < 10
    assert isinstance(client.submit(os._exit, 3).exception(), TaskLost)
    task = started(client.submit(time.sleep, 60))
    os.kill(client._engine.children[-1].pid, signal.SIGKILL)
    assert isinstance(task.exception(), TaskLost)
    client.shutdown()
