"""Whatever a callable does to its process, only its own task ends of it, by name; the next task runs; nothing is left.

The crash table: where (an argument's pickling in the caller, its unpickling, the call, the result's pickling, its
unpickling in the caller) by how (an exception, an exit, a signal, a stop, another program). The harness sees to it that
no child, thread or descriptor stays behind.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import (
    CancelSignal,
    Client,
    NotCarriable,
    RemoteError,
    Task,
    TaskCancelled,
    TaskLost,
    Unreachable,
    current_task,
    emit,
)
from revolve_assistant.pool import watch

from .crashing import AtPickling, AtUnpickling, crash, hear, square, start_a_grandchild

MIB = 1 << 20
ENDS = {"succeeded", "failed", "cancelled", "lost"}


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(max_workers=2) as client:
        yield client


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TICK", 0.05)  # how long a stopped child is waited for is four of these


@contextmanager
def closing(client: Client) -> Iterator[Client]:
    """Do not wait for what runs for ever when the test fails."""
    try:
        yield client
    finally:
        client._close()


def wait_for_end(*pids: int, seconds: float) -> list[int]:
    """The processes that have not ended after so long; they need not be children of ours."""
    deadline = time.monotonic() + seconds
    left = []
    for pid in pids:
        with suppress(ProcessLookupError):
            ended = os.pidfd_open(pid)
            try:
                if not select.select([ended], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    left.append(pid)
            finally:
                os.close(ended)
    return left


def children() -> list[int]:
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):
            found += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return found


# --- the crash table

DEATHS: dict[str, tuple[str, int | None, int | None]] = {  # way: text, signal, exit code
    "_exit 0": ("it exited with code 0", None, 0),
    "_exit 3": ("it exited with code 3", None, 3),
    "segfault": ("it was killed by SIGSEGV", signal.SIGSEGV, None),
    "SIGKILL": ("it was killed by SIGKILL", signal.SIGKILL, None),
    "SIGTERM": ("it was killed by SIGTERM", signal.SIGTERM, None),
    "SIGABRT": ("it was killed by SIGABRT", signal.SIGABRT, None),
    "SIGSTOP": ("it was stopped by a signal (SIGSTOP)", signal.SIGKILL, None),
    "exec true": ("it exited with code 0", None, 0),
    "exec sleep 60": ("it was killed by SIGKILL", signal.SIGKILL, None),
}


def check(error: BaseException | None, way: str, where: str, name: str) -> None:
    if way == "raise" and where != "pickling":
        assert type(error) is ValueError
        assert error.args == ("crash",)
    elif way == "raise":
        assert isinstance(error, NotCarriable)
        assert "AtPickling (ValueError: crash)" in str(error)
        assert re.search(rf"the result of .*{name}\(\) cannot be carried back", "".join(error.__notes__))
    elif way == "exit":
        assert isinstance(error, RemoteError)
        assert (error.type_name, str(error)) == ("SystemExit", "SystemExit: 3")
    else:
        text, number, code = DEATHS[way]
        assert isinstance(error, TaskLost)
        assert (error.signal, error.exit_code, error.last_event) == (number, code, "here")
        assert f"{name}: the process running it is gone: {text}" in str(error)
        assert str(error).endswith("its last event was 'here'")
        least = 0 if way.startswith("exec") else MIB  # the other program may be all that was looked at
        assert error.peak_memory is None or error.peak_memory > least
        if way in ("segfault", "SIGABRT"):
            assert "in crash" in "".join(error.__notes__)


@pytest.mark.parametrize("way", ["raise", "exit", *DEATHS])
@pytest.mark.parametrize("where", ["unpickling", "running", "pickling"])
def test_only_its_own_task_ends(client: Client, where: str, way: str) -> None:
    innocents = [client.submit(square, i) for i in range(10)]
    if where == "unpickling":
        task, name = client.submit(len, AtUnpickling(way)), "len"  # type: ignore[arg-type]
    elif where == "running":
        task, name = client.submit(crash, way), "crash"  # type: ignore[arg-type]
    else:
        task, name = client.submit(AtPickling, way), "AtPickling"  # type: ignore[arg-type]
    innocents += [client.submit(square, i) for i in range(10, 20)]
    assert [each.result() for each in innocents] == [i * i for i in range(20)]
    check(task.exception(), way, where, name)
    assert task.state == ("lost" if way in DEATHS else "failed")
    names = [event.name for event in task.events()]
    assert (names[:2], names[-1], {*names[2:-1]} <= {"here"}) == (["started", "here"], task.state, True)
    assert client.submit(square, 20).result() == 400


@pytest.mark.parametrize("way", ["raise", "exit"])
def test_pickling_in_the_caller(client: Client, way: str) -> None:
    innocent = client.submit(square, 2)
    with pytest.raises(NotCarriable if way == "raise" else SystemExit, match="crash" if way == "raise" else "3"):
        client.submit(len, AtPickling(way))  # type: ignore[arg-type]
    assert innocent.result() == client.submit(square, 2).result() == 4


@pytest.mark.parametrize("way", ["raise", "exit"])
def test_unpickling_in_the_caller(client: Client, way: str) -> None:
    tasks = [client.submit(AtUnpickling, way), client.submit(AtUnpickling, way)]
    heard: list[Any] = []
    tasks[1].add_listener("succeeded", heard.append)
    for task in tasks:
        for _ in range(2):
            with pytest.raises(RemoteError, match=r"the result of .*AtUnpickling\(\) cannot be rebuilt here"):
                task.result()
        assert isinstance(task.exception(), RemoteError)
    assert client.submit(square, 2).result() == 4
    assert [type(each) for each in heard] == [RemoteError]


@pytest.mark.parametrize("way", ["raise", "exit", "_exit 3", "segfault", "SIGKILL", "SIGSTOP", "exec true"])
@pytest.mark.parametrize("where", ["unpickling", "running", "pickling"])
def test_only_its_own_item_of_a_map_ends(client: Client, where: str, way: str) -> None:
    def work(item: Any) -> Any:
        if item == 7 and where != "unpickling":
            return AtPickling(way) if where == "pickling" else crash(way)
        return item

    items: list[Any] = list(range(20))
    if where == "unpickling":
        items[7] = AtUnpickling(way)
    found = list(client.map(work, items, errors="return", chunksize=5))
    error = found.pop(7)
    assert found == [i for i in range(20) if i != 7]
    if way == "raise":
        assert isinstance(error, ValueError)  # NotCarriable is one, too
    else:
        assert type(error) is (RemoteError if way == "exit" else TaskLost)


def test_the_crash_of_many_items_with_much_data(client: Client) -> None:  # gh-94777
    def work(data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    found = list(client.map(work, [bytes(4 * MIB)] * 6, errors="return"))
    assert [type(each) for each in found] == [TaskLost] * 6
    with pytest.raises(TaskLost):
        next(client.map(work, [bytes(4 * MIB)] * 6))


# --- more ways to die


def test_a_result_is_not_lost_with_the_next_death(client: Client) -> None:
    def work(dies: bool) -> int:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1

    client.submit(work, False).result()  # known to be fast: the next ones go together
    for _ in range(10):
        tasks = [client.submit(work, i == 5) for i in range(8)]
        assert [task.exception() is None for task in tasks] == [i != 5 for i in range(8)]


def test_an_idle_child_that_dies_costs_nobody(client: Client) -> None:
    for _ in range(3):
        os.kill(client.submit(os.getpid).result(), signal.SIGKILL)
        assert client.submit(square, 3).result() == 9


def test_a_child_that_goes_on_after_a_stop_is_not_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STOPPED_TICKS", 10**9)
    task = client.submit(lambda: emit("pid", os.getpid()) or hear())
    pid = next(iter(task.events("pid"))).args[0]
    os.kill(pid, signal.SIGSTOP)
    assert client.submit(square, 3).result() == 9
    os.kill(pid, signal.SIGCONT)
    task.send("go")
    assert task.result() == "go"


def test_a_callable_that_closes_every_descriptor(client: Client) -> None:
    def work() -> None:
        os.closerange(0, 256)
        time.sleep(60)

    error = client.submit(work).exception()
    assert isinstance(error, TaskLost)
    assert client.submit(square, 3).result() == 9


@pytest.mark.parametrize("raises", [False, True])
def test_the_copy_of_a_child_that_forks_ends_with_its_callable(raises: bool) -> None:
    def work() -> int:
        forked = os.fork()
        if raises and not forked:
            raise ValueError("in the copy")
        return forked

    with Client(max_workers=1) as client:
        for _ in range(5):
            assert client.submit(work).result(timeout=20) > 0
            assert client.submit(square, 3).result(timeout=20) == 9
            assert min(client.map(lambda _: work(), range(3), timeout=20)) > 0


def test_a_child_that_talks_nonsense_is_ended() -> None:
    def work() -> None:
        for number in range(3, 64):  # whichever is the socket
            with suppress(OSError):
                socket.socket(fileno=os.dup(number)).send(b"\x05\0\0\0nonsense" * 9)
        time.sleep(60)

    with closing(Client(max_workers=2)) as client:
        error = client.submit(work).exception(timeout=20)
        assert isinstance(error, TaskLost)
        assert client.submit(square, 3).result() == 9


def test_a_thread_left_by_a_task_does_not_stop_its_child_from_ending() -> None:
    def work() -> int:
        threading.Thread(target=time.sleep, args=(0.2,)).start()
        return os.getpid()

    with Client(max_workers=1) as client:
        pid = client.submit(work).result()
    assert not wait_for_end(pid, seconds=0)


def test_coroutines_die_with_their_child_and_the_others_wait_for_a_new_one() -> None:
    async def work(way: str) -> str:
        if way:
            crash(way)
        await asyncio.sleep(60)
        return way

    async def fine() -> int:
        return 1

    with closing(Client(max_workers=1, concurrency=3)) as client:
        first = [client.submit(work, "") for _ in range(2)]
        for task in first:
            next(iter(task.events("started")))
        dying = client.submit(work, "SIGKILL")
        after = [client.submit(fine) for _ in range(5)]
        check(dying.exception(), "SIGKILL", "running", "work")
        assert [type(task.exception()) for task in first] == [TaskLost] * 2
        assert [task.result() for task in after] == [1] * 5


def test_what_a_generator_yielded_before_its_death_is_kept(client: Client) -> None:
    def work() -> Iterator[int]:
        yield from range(100)
        os.kill(os.getpid(), signal.SIGKILL)

    task = client.submit(work)
    assert list(task.items()) == list(range(100))
    error = task.exception()
    assert isinstance(error, TaskLost)
    assert error.last_event == "item"


def test_a_death_is_worth_another_attempt(client: Client) -> None:
    def work(times: int) -> int:
        if current_task().attempt <= times:
            crash("SIGKILL")
        return current_task().attempt

    assert client.options(retries=2, backoff=0).submit(work, 2).result() == 3
    error = client.options(retries=1, backoff=0).submit(work, 9).exception()
    check(error, "SIGKILL", "running", "work")


def test_memory_limit() -> None:
    def work(steps: int) -> int:
        kept = []
        for step in range(steps):
            kept.append(bytearray(b"x") * (10 * MIB))
            emit("step", step)
            time.sleep(0.01)
        return len(kept)

    with Client(max_workers=1, memory_limit="150MiB") as client:
        innocents = [client.submit(work, 1) for _ in range(3)]
        greedy = client.submit(work, 400)
        error = greedy.exception()
        assert isinstance(error, TaskLost)
        assert error.memory_limit == 150 * MIB
        assert error.peak_memory
        assert 150 * MIB < error.peak_memory < 1500 * MIB
        assert (error.signal, error.exit_code, error.last_event) == (signal.SIGKILL, None, "step")
        assert re.search(
            r"work: the process running it is gone: it used \d+ MiB of memory, more than memory_limit=150 MiB; "
            r"its last event was 'step'$",
            str(error),
        )
        assert [task.result() for task in innocents] == [1] * 3
        assert client.submit(work, 3).result() == 3
        [fine, greedy_item] = client.map(work, [1, 400], errors="return")
        assert (fine, type(greedy_item)) == (1, TaskLost)


# --- families


@pytest.mark.parametrize("end", ["_exit 3", "SIGKILL", "cancel", "close"])
def test_grandchildren_die_with_a_killed_task(end: str) -> None:
    def work() -> None:
        start_a_grandchild()
        while True:
            try:
                if message := current_task().receive():
                    crash(message.name)
                time.sleep(60)
            except CancelSignal:
                continue

    client = Client(max_workers=1, ladder=(0, 0, 0))
    task = client.submit(work)
    grandchild = next(iter(task.events("pid"))).args[0]
    if end == "cancel":
        task.cancel()
    elif end == "close":
        client._close()  # as a second Ctrl-C does
    else:
        task.send(end)
    assert isinstance(task.exception() if end not in ("cancel", "close") else rung_of(task), (TaskLost, str))
    assert not wait_for_end(grandchild, seconds=2)
    client.shutdown()


def rung_of(task: Task[Any]) -> str:
    with pytest.raises(TaskCancelled) as raised:
        task.result()
    return raised.value.rung


CALLER = """
    import os, re, signal, subprocess, sys, time
    from revolve_assistant import Client, emit

    def work(kind):
        if kind == "idle":
            return emit("pids", os.getpid())
        emit("pids", os.getpid(), subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid)
        if kind == "holding the GIL":
            re.match(r"(a+)+$", "a" * 40 + "b")
        if kind == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    async def asynchronous(kind):
        work(kind)

    client = Client(max_workers=2)
    tasks = [client.submit(each, sys.argv[1]) for each in (work, asynchronous)]
    pids = [pid for task in tasks for pid in next(iter(task.events("pids"))).args]
    print(*pids, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["idle", "busy", "holding the GIL", "stopped", "deaf"])
def test_no_child_outlives_its_caller(kind: str, number: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CALLER), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        pids = [int(pid) for pid in caller.stdout.readline().split()]
        caller.send_signal(number)
        assert caller.wait() == -number
    assert len(pids) == (2 if kind == "idle" else 4)
    assert not wait_for_end(*pids, seconds=2)


# --- all at once


@pytest.mark.parametrize("retries", [0, 50])
@pytest.mark.parametrize("size", [0, MIB])
def test_a_storm_of_deaths(retries: int, size: int) -> None:
    def work(number: int) -> tuple[int, bytes]:
        emit("here")
        return number, bytes(size)

    dice = random.Random(retries + size)
    ends: Counter[str] = Counter()
    kills = 0

    def listener(event: Any) -> None:
        nonlocal kills
        if event.name in ENDS:
            ends[event.task_id] += 1
        if event.name in {"here", *ENDS} and dice.random() < 0.1 and (pids := children()):
            kills += 1
            with suppress(ProcessLookupError):
                os.kill(dice.choice(pids), signal.SIGKILL)

    with Client(max_workers=3) as client:
        client.add_listener("*", listener)
        submit = client.options(retries=retries, backoff=0).submit
        tasks = [submit(work, i) for i in range(150)]
        found = [task.exception() for task in tasks]
        client.remove_listener("*", listener)
        assert client.submit(square, 3).result() == 9
    assert kills > 10
    assert ends == Counter(dict.fromkeys((task.id for task in tasks), 1))
    lost = [error for error in found if error is not None]
    assert {type(error) for error in lost} <= {TaskLost}
    assert len(lost) <= (0 if retries else kills)
    assert all(task.result() == (i, bytes(size)) for i, task in enumerate(tasks) if found[i] is None)


def test_clients_opened_and_closed() -> None:
    for number in range(14):  # each kind with one child and with two
        with Client(max_workers=1 + number % 2) as client:
            kind = number % 7
            if kind == 1:
                client.submit(abs, 1).result()
            elif kind == 2:
                tasks = [client.submit(abs, i) for i in range(20)]
            elif kind == 3:
                next(client.map(abs, range(100)))
            elif kind == 4:
                tasks = [client.submit(abs, i) for i in range(20)]
                client.shutdown(wait=False, cancel_futures=True)
            elif kind == 5:
                tasks = [client.submit(time.sleep, 60)]
                client._close()
                assert tasks[0].done()
            elif kind == 6:
                client.submit(crash, "SIGKILL")
        if kind in (2, 4):
            assert all(task.done() for task in tasks)


def test_no_descriptors_left_is_an_error_that_passes() -> None:
    code = """
        import os, resource
        from revolve_assistant import Client, Unreachable

        client = Client(max_workers=1)
        first = Client(max_workers=1)
        first.submit(abs, 1).result()  # all is imported
        usual = resource.getrlimit(resource.RLIMIT_NOFILE)
        for room in range(12):
            used = len(os.listdir("/proc/self/fd")) - 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, usual[1]))
            try:
                error = client.submit(abs, -2).exception(timeout=30)
            except OSError as problem:
                error = problem
            resource.setrlimit(resource.RLIMIT_NOFILE, usual)
            print(type(error).__name__)
            if error is None:
                break
            assert len(os.listdir("/proc/self/fd")) - 1 <= used + 3, (room, used, os.listdir("/proc/self/fd"))
        assert client.submit(abs, -2).result() == 2
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, Unreachable.__name__), done.stderr


# --- whose exit status nobody has


@contextmanager
def sigchld(handler: Any) -> Iterator[None]:
    usual = signal.signal(signal.SIGCHLD, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, usual)


@pytest.mark.parametrize("way", ["_exit3", "_exit0", "SIGKILL", "segfault"])
def test_where_sigchld_is_ignored_no_exit_status_is_made_up(way: str) -> None:
    with sigchld(signal.SIG_IGN), Client(max_workers=1) as client:
        task = client.submit(crash, way)
        with pytest.raises(TaskLost, match="how is not known, because SIGCHLD is ignored") as raised:
            task.result()
        assert (raised.value.signal, raised.value.exit_code) == (None, None)
        assert ("string_at" in "".join(getattr(raised.value, "__notes__", ()))) == (way == "segfault")
        assert client.submit(abs, -1).result() == 1
        cancelled = client.submit(crash, "stay")
        next(cancelled.events("here"))
        cancelled.cancel()
        with pytest.raises(TaskCancelled):
            cancelled.result()


def test_where_somebody_else_collects_the_exit_status_none_is_made_up() -> None:
    def collect(*_: Any) -> None:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    with sigchld(collect), Client(max_workers=1) as client:
        for _ in range(5):  # either may be first
            with pytest.raises(TaskLost, match=r"not known|exited with code 3") as raised:
                client.submit(crash, "_exit3").result()
            assert raised.value.exit_code in (None, 3)
            assert client.submit(abs, -1).result() == 1
