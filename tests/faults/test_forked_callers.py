"""A program that has a Client forks: in the fork the Client works afresh, and the program goes on undisturbed.

`multiprocessing` and gunicorn with `--preload` do that; so does the fork engine itself.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

URLS = ["process://", "thread://", "fork://?other_threads=allow"]

PROGRAM = """
    import asyncio, concurrent.futures as cf, os, sys, threading, time, traceback
    from revolve_assistant import Client, UsageError, current_task, emit

    def hear():
        emit("there")
        message = current_task().receive()
        return message and message.name

    def in_fork(check):
        "Run it in a fork that ends as a program does; its exit code is the truth."
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            try:
                check()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.exit(5) if os.getppid() == top else os._exit(5)  # through the frames of the caller, once
        deadline = time.monotonic() + 30
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, "the fork hangs"
            time.sleep(0.005)
        assert os.waitstatus_to_exitcode(done[1]) == 5

    url, top = sys.argv[1], os.getpid()
    client = Client(url, max_workers=2)
    assert client.submit(abs, -1).result() == 1
"""


def run(code: str, url: str) -> None:
    program = textwrap.dedent(PROGRAM) + textwrap.dedent(code) + "\nprint('well')\n"
    done = subprocess.run(
        [sys.executable, "-Wignore", "-c", program, url], capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("well\n", "")


every = pytest.mark.parametrize("url", URLS)


@every
def test_the_client_works_afresh_in_the_fork_and_on_in_the_caller(url: str) -> None:
    run(
        """
        running = client.submit(hear)
        next(running.events("there"))

        def check():
            assert [client.submit(abs, -i).result(20) for i in range(5)] == list(range(5))
            assert list(client.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
            task = client.options(retries=1, timeout=20, delay=0.01).submit(hear)
            heard = threading.Event()
            task.add_listener("there", heard.set)
            assert heard.wait(20)
            task.send("in the fork")
            assert task.result(20) == "in the fork"
            in_fork(lambda: client.submit(abs, -9).result(20))  # and so on
            client.shutdown()

        for _ in range(3):
            in_fork(check)
        running.send("in the caller")
        assert running.result(20) == "in the caller"
        assert client.submit(abs, -3).result(20) == 3
        client.shutdown()
        """,
        url,
    )


@every
def test_tasks_of_the_caller_are_refused_not_waited_for(url: str) -> None:
    run(
        """
        running, waiting, delayed = client.submit(hear), client.submit(hear), client.options(delay=60).submit(abs, 1)
        behind, group = client.submit(hear), client.group([running])
        seen = running.events()
        next(running.events("there"))
        done = client.submit
        mapped = client.map(abs, [1, 2]) if url == "process://" else None
        async def wait_for(task):
            return await task

        def check():
            began = time.monotonic()
            for task in (running, waiting, delayed, behind, group):
                for act in (
                    task.result,
                    lambda: task.result(timeout=10),
                    task.exception,
                    lambda: list(task.events()),
                    lambda: list(task.items()),
                    lambda: asyncio.run(wait_for(task)),
                    lambda: cf.wait([task]),
                    lambda: list(cf.as_completed([task])),
                    lambda: task.add_done_callback(print),
                    lambda: task.add_listener("there", print),
                    lambda: task.send("x"),
                    task.cancel,
                    lambda: client.attach(task.id).result(),
                ):
                    if act == task.cancel and task is group:
                        continue
                    try:
                        found = act()
                    except UsageError as error:
                        assert task.id in str(error) or group.id in str(error) or running.id in str(error), error
                    else:
                        raise AssertionError(f"{task!r} gave {found!r}")
                assert (task.done(), task.state) == (False, "lost")
            try:
                for event in seen:
                    pass
            except UsageError:
                pass
            else:
                raise AssertionError("the reader of the caller goes on")
            if mapped is not None:
                try:
                    list(mapped)
                except UsageError as error:
                    assert "map()" in str(error)
            assert time.monotonic() - began < 10
            assert client.submit(abs, -2).result(20) == 2

        in_fork(check)
        for task in (running, waiting, behind):
            task.send("go")
            assert task.result(20) == "go"
        assert group.result(20) == ["go"]
        if mapped is not None:
            assert list(mapped) == [1, 2]
        delayed.cancel()
        client.shutdown()
        """,
        url,
    )


@every
def test_a_fork_at_any_moment(url: str) -> None:
    """The caller is busy in all its threads: whatever they have locked, the fork goes on."""
    run(
        """
        client.add_listener("*", lambda event: None)
        stop = threading.Event()

        def work(n):
            for i in range(20):
                emit("n", i)
            return n

        def busy():
            while not stop.is_set():
                tasks = [client.submit(work, i) for i in range(5)]
                assert [task.result(20) for task in tasks] == list(range(5))

        threads = [threading.Thread(target=busy) for _ in range(3)]
        for thread in threads:
            thread.start()

        def check():
            assert client.submit(work, 3).result(20) == 3
            client.shutdown()
            os._exit(5)  # those threads' frames are no business of the fork's

        for _ in range(30):
            in_fork(check)
        stop.set()
        for thread in threads:
            thread.join()
        client.shutdown()
        """,
        url,
    )


@pytest.mark.parametrize("url", ["process://", "fork://?other_threads=allow"])
def test_a_fork_closes_what_leads_to_the_callers_children_and_nothing_else(url: str) -> None:
    """While children come and go: what is half made or half closed at the fork is no exception."""
    run(
        """
        options = {"max_tasks_per_child": 1} if url == "process://" else {}
        churning = Client(url, max_workers=3, **options)
        stop = threading.Event()

        def churn():
            while not stop.is_set():
                assert [task.result(20) for task in [churning.submit(abs, -i) for i in range(9)]] == list(range(9))

        thread = threading.Thread(target=churn)
        thread.start()

        def check():
            os.fstat(read), os.fstat(write)  # the caller's own: numbers that were a child's a moment ago, perhaps
            names = []
            for fd in os.listdir("/proc/self/fd"):
                try:
                    names.append(os.readlink(f"/proc/self/fd/{fd}"))
                except OSError:
                    pass  # of this listing
            assert not [each for each in names if "pidfd" in each or "epoll" in each or "socket" in each], names
            os._exit(5)

        for _ in range(200):
            read, write = os.pipe()
            in_fork(check)
            os.close(read)
            os.close(write)
        stop.set()
        thread.join()
        """,
        url,
    )


@every
def test_an_engine_given_as_an_object_starts_afresh_too(url: str) -> None:
    run(
        """
        from revolve_assistant.providers import registry

        engine = registry.engine(url)
        own = Client(engine)
        assert own.submit(abs, -1).result() == 1
        in_fork(lambda: own.submit(abs, -2).result(20))
        assert own.submit(abs, -1).result() == 1
        """,
        url,
    )


def test_a_client_that_was_closed_stays_closed() -> None:
    run(
        """
        from revolve_assistant import ClientClosed

        client.shutdown()

        def check():
            try:
                client.submit(abs, 1)
            except ClientClosed:
                pass

        in_fork(check)
        """,
        "process://",
    )


def test_executors_belong_to_the_process_that_made_them() -> None:
    """And the end of a fork does not remove the folder where the caller's tasks speak."""
    run(
        """
        for pool in (cf.ThreadPoolExecutor(1), cf.ProcessPoolExecutor(1)):
            own = Client(pool)
            task = own.submit(hear)
            next(task.events("there"))

            def check():
                try:
                    own.submit(abs, 1)
                except UsageError as error:
                    assert "its workers are there" in str(error), error
                else:
                    raise AssertionError("taken")
                own.shutdown()
                os._exit(5)  # the pool itself would wait for ever

            in_fork(check)
            task.send("go")
            assert task.result(20) == "go"
            later = own.submit(hear)
            later.send("go")
            assert later.result(20) == "go"
            assert [event.name for event in later.events()] == ["started", "there", "succeeded"]
            own.shutdown()
            pool.shutdown()
        client.shutdown()
        """,
        "process://",
    )


def test_children_end_with_the_caller_although_a_fork_of_it_lives(tmp_path: Path) -> None:
    program = """
        import os, sys, time
        from revolve_assistant import Client, emit

        client = Client(max_workers=1)
        task = client.submit(lambda: (emit("pid", os.getpid()), time.sleep(60)))
        [pid] = next(task.events("pid")).args
        forked = os.fork()
        if not forked:
            time.sleep(60)
            os._exit(0)
        print(pid, forked, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-Wignore", "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        pid, forked = map(int, caller.stdout.readline().split())
        child = os.pidfd_open(pid)
        caller.kill()
        caller.wait()
        try:
            os.kill(forked, 0)  # it lives, and has nothing of the child's
            assert ended(child, 3.0)
        finally:
            os.kill(forked, signal.SIGKILL)
            os.close(child)


def ended(pidfd: int, seconds: float) -> bool:
    import select

    return bool(select.select([pidfd], [], [], seconds)[0])


# --- gunicorn

APP = """
import os
from revolve_assistant import Client, emit

clients = {url: Client(url, max_workers=1) for url in ("process://", "thread://", "fork://?other_threads=allow")}
for each in clients.values():  # used before the fork
    assert each.submit(abs, -1).result() == 1
MASTER = os.getpid()

def work(n):
    emit("working", n)
    return n * 2

def app(environ, start_response):
    client = clients[environ["QUERY_STRING"]]
    task = client.submit(work, 21)
    text = f"{task.result(20)} {[e.name for e in task.events()]} {os.getpid() != MASTER}"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""


@contextmanager
def gunicorn(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "shop.py").write_text(APP)
    command = [
        *(sys.executable, "-Wignore", "-m", "gunicorn", "--preload", "--workers", "2"),
        *("--bind", f"127.0.0.1:{port}", "--graceful-timeout", "5", "--chdir", str(folder), "shop:app"),
    ]
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as server:
        try:
            yield server
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


def get(port: int, query: str, *, until: float) -> str:
    while True:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=25)) as connection:
                connection.request("GET", f"/?{query}")
                return connection.getresponse().read().decode()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def test_gunicorn_with_preload(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with gunicorn(tmp_path, port) as server:
        until = time.monotonic() + 20
        for _ in range(6):  # both workers, more than once
            for url in URLS:
                assert get(port, url, until=until) == "42 ['started', 'working', 'succeeded'] True"
        server.terminate()
        assert server.wait(20) == 0
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "ERROR" not in said
