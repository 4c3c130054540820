"""Whatever becomes of a fork, only its task ends of it; of thousands nothing is left; none outlives its caller."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import resource
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import (
    Client,
    RemoteError,
    Task,
    TaskCancelled,
    TaskLost,
    Unreachable,
    current_task,
    emit,
)
from revolve_assistant.pool import watch

MIB = 1 << 20
ENDS = {"succeeded", "failed", "cancelled", "lost"}


@pytest.fixture
def client() -> Iterator[Client]:
    with Client("fork://", max_workers=2) as client:
        yield client
        for task in list(client._tasks.values()):  # of a test that failed
            task.cancel()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TICK", 0.05)  # how long a stopped child is waited for is four of these


def crash(way: str) -> None:
    """Say where we are, then go that way."""
    emit("here", way)
    if way == "exit":
        sys.exit(3)
    if way == "interrupt":
        raise KeyboardInterrupt
    if way.startswith("_exit"):
        os._exit(int(way[-1]))
    if way == "segfault":
        ctypes.string_at(0)
    if way.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, way))
    if way.startswith("exec"):
        os.execv("/bin/sh", ["sh", "-c", way[5:]])
    if way == "closes all":
        os.closerange(0, 256)
    time.sleep(60)


class AtPickling:
    def __init__(self, way: str) -> None:
        self.way = way

    def __reduce__(self) -> Any:
        crash(self.way)


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
    "closes all": ("it was killed by SIGKILL", signal.SIGKILL, None),
}


def children() -> list[int]:
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):
            found += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return found


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


@pytest.mark.parametrize("way", DEATHS)
@pytest.mark.parametrize("where", ["running", "pickling"])
def test_only_its_own_task_ends(client: Client, where: str, way: str) -> None:
    innocents = [client.submit(abs, -i) for i in range(3)]
    task: Task[Any] = client.submit(crash if where == "running" else AtPickling, way)  # type: ignore[arg-type]
    innocents += [client.submit(abs, -i) for i in range(3, 6)]
    assert [each.result() for each in innocents] == list(range(6))
    text, number, code = DEATHS[way]
    error = task.exception()
    assert isinstance(error, TaskLost)
    assert f"the process running it is gone: {text}" in str(error)
    assert (error.signal, error.exit_code, error.last_event) == (number, code, "here")
    if way in ("segfault", "SIGABRT"):
        assert "in crash" in "".join(error.__notes__)
        assert "test_only_its_own_task_ends" not in "".join(error.__notes__)  # that is the caller's stack
    assert [event.name for event in task.events()] == ["started", "here", "lost"]
    assert client.submit(abs, -7).result() == 7


@pytest.mark.parametrize("way", ["exit", "interrupt"])
def test_exits_that_are_exceptions(client: Client, way: str) -> None:
    error = client.submit(crash, way).exception()
    assert isinstance(error, RemoteError)
    assert error.type_name == ("SystemExit" if way == "exit" else "KeyboardInterrupt")


def test_a_killed_one_is_tried_again_when_asked(client: Client) -> None:
    def work() -> int:
        if current_task().attempt < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return current_task().attempt

    task = client.options(retries=3, backoff=0).submit(work)
    assert task.result() == 3
    assert [event.name for event in task.events("retrying")] == ["retrying"] * 2 + ["succeeded"]


def test_what_a_fork_has_started_goes_with_it(client: Client) -> None:
    def work(how: str) -> int:
        pid = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid
        emit("pid", pid)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "waits":
            time.sleep(60)
        return pid

    tasks = [client.submit(work, how) for how in ("returns", "dies", "waits")]
    pids = [next(iter(task.events("pid"))).args[0] for task in tasks]
    tasks[2].cancel()
    assert tasks[0].result() == pids[0]
    assert isinstance(tasks[1].exception(), TaskLost)
    with pytest.raises(TaskCancelled):
        tasks[2].result()
    assert not wait_for_end(*pids, seconds=2)


def test_thousands_leave_nothing_behind() -> None:
    """In a program of its own: to fork one as large as this takes many times as long."""
    code = """
        import os
        from pathlib import Path
        from revolve_assistant import Client

        def descriptors():
            return len(os.listdir("/proc/self/fd"))

        def children():
            tasks = Path("/proc/self/task").iterdir()
            return " ".join((task / "children").read_text() for task in tasks).split()

        with Client("fork://", max_workers=4) as client:
            assert list(client.map(abs, range(-20, 0)))  # the pump is there
            before = descriptors()
            for _ in range(10):
                tasks = [client.submit(abs, -i) for i in range(200)]
                assert [task.result() for task in tasks] == list(range(200))
                assert len(children()) <= 4
                assert descriptors() <= before + 4 * 6
        assert children() == []
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_storm_of_deaths() -> None:
    rng = random.Random(7)

    def work(number: int, way: str | None) -> int:
        emit("number", number)
        if way is not None:
            crash(way)
        return number

    with Client("fork://", max_workers=4) as client:
        tasks = []
        for i in range(300):
            way = rng.choice([None, None, "SIGKILL", "_exit 0", "segfault", "exit"])
            tasks.append((i, way, client.submit(work, i, way)))
        stop = threading.Event()

        def strike() -> None:
            """A reader of every event of a third of the tasks, so that there is something to lose."""
            for _, _, task in tasks[::3]:
                events = [event.name for event in task.events()]
                assert events[0] == "started"
                assert events[-1] in ENDS
            stop.set()

        strike()
        for i, way, task in tasks:
            if way is None:
                assert task.result() == i
            elif way == "exit":
                assert isinstance(task.exception(), RemoteError)
            else:
                assert isinstance(task.exception(), TaskLost)
            assert next(task.events("number")).args == (i,)
        assert stop.is_set()
    assert children() == []


def test_kills_at_any_moment_of_its_life() -> None:
    """Also while it is still becoming a child, and while it says its result."""
    rng = random.Random(3)
    with Client("fork://", max_workers=1) as client:
        for _ in range(60):
            task = client.submit(lambda: emit("x") or 1)
            for child in list(client._engine.children):
                if rng.random() < 0.8:
                    threads_wait(rng.random() * 0.003)
                    child.signal(signal.SIGKILL)
            error = task.exception()
            if error is None:
                assert task.result() == 1
            else:
                assert isinstance(error, TaskLost)
                assert error.signal == signal.SIGKILL
        assert client.submit(abs, -2).result() == 2


def threads_wait(seconds: float) -> None:
    """As exactly as can be: it is the moment of a kill that counts here."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


CALLER = """
    import os, re, signal, subprocess, sys, time
    from revolve_assistant import Client, emit

    def work(kind):
        emit("pids", os.getpid(), subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid)
        if kind == "holding the GIL":
            re.match(r"(a+)+$", "a" * 40 + "b")
        if kind == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if kind == "nested":
            inner = client.submit(work, "busy")
            emit("pids", *next(iter(inner.events("pids"))).args)
        time.sleep(60)

    async def asynchronous(kind):
        work(kind)

    client = Client("fork://", max_workers=2)
    tasks = [client.submit(each, sys.argv[1]) for each in (work, asynchronous)]
    count = 2 if sys.argv[1] == "nested" else 1
    pids = []
    for task in tasks:
        events = task.events("pids")
        for _ in range(count):
            pids += next(events).args
    print(*pids, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["busy", "holding the GIL", "stopped", "deaf", "nested"])
def test_none_outlives_its_caller(kind: str, number: int) -> None:
    command = [sys.executable, "-Wignore", "-c", textwrap.dedent(CALLER), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        pids = [int(pid) for pid in caller.stdout.readline().split()]
        caller.send_signal(number)
        assert caller.wait() == -number
    assert len(pids) == (8 if kind == "nested" else 4)
    assert not wait_for_end(*pids, seconds=3)


def test_locks_of_logging_and_printing_do_not_stay_locked(caplog: pytest.LogCaptureFixture) -> None:
    """Our dispatcher logs, in a listener, as fast as it can, while forks that log come and go; so does a stranger."""
    log = logging.getLogger("stress")
    log.setLevel(logging.INFO)
    stop = threading.Event()

    def say() -> None:
        while not stop.is_set():
            log.info("from the caller")
            print("from the caller")

    def work(number: int) -> int:
        log.info("from the fork %d", number)
        print("from the fork", number)
        emit("said", number)
        return number

    with Client("fork://?other_threads=allow", max_workers=3) as client:
        client.add_listener("said", lambda number: (log.info("heard %d", number), print("heard", number)))
        thread = threading.Thread(target=say)
        thread.start()
        try:
            for _ in range(4):
                tasks = [client.options(timeout=20).submit(work, i) for i in range(50)]
                assert [task.result() for task in tasks] == list(range(50))
        finally:
            stop.set()
            thread.join()
        caplog.clear()


def test_submitting_from_many_threads() -> None:
    with Client("fork://?other_threads=allow", max_workers=3) as client:
        found: list[list[int]] = []

        def submit() -> None:
            found.append([client.submit(abs, -i).result() for i in range(20)])

        threads = [threading.Thread(target=submit) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [list(range(20))] * 6


def test_without_descriptors_it_fails_and_recovers() -> None:
    code = """
        import os, resource
        from revolve_assistant import Client, Unreachable

        with Client("fork://", max_workers=2) as client:
            assert client.submit(abs, -1).result() == 1
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            for room in range(1, 16):
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + room, hard))
                try:
                    assert client.submit(abs, -2).result(20) == 2
                except Unreachable as error:
                    assert "cannot start a child process" in str(error), error
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            tasks = [client.submit(abs, -i) for i in range(20)]
            assert [task.result(20) for task in tasks] == list(range(20))
            while client._engine.children:
                pass
            print(len(os.listdir("/proc/self/fd")))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12


def test_closing_ends_what_runs_and_what_waits() -> None:
    client = Client("fork://", max_workers=1)
    running, waiting = client.submit(time.sleep, 60), client.submit(abs, -1)
    pid = client._engine.children[0].pid
    client._close()
    with pytest.raises(TaskCancelled):
        running.result()
    assert isinstance(waiting.exception(), TaskLost)
    assert not wait_for_end(pid, seconds=2)
    with pytest.raises(Unreachable):
        client._engine.submit([], None)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)


def test_ctrl_c_while_it_forks(tmp_path: Path) -> None:
    """Wherever the interrupt strikes: it is raised in the caller, once, no fork sees it, and nothing is left."""
    code = """
        import os, signal, sys, threading, time
        from revolve_assistant import Client

        me, rounds = os.getpid(), 0
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        with Client("fork://", max_workers=2) as client:
            while rounds < 60:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.00005 * rounds)
                    while True:
                        task = client.submit(os.getpid)
                        assert task.result() != me
                except KeyboardInterrupt:
                    assert os.getpid() == me
                    rounds += 1
            assert client.submit(abs, -1).result() == 1
        print(rounds)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (0, "60\n"), done.stderr
    assert done.stderr == ""
