"""The program that uses a Client ends: what it submitted still runs, nothing hangs, and stderr stays empty."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import revolve_assistant

Run = Callable[..., "subprocess.CompletedProcess[str]"]

WORK = """
from revolve_assistant import Client

class Point:
    def __init__(self, x):
        self.x = x

def double(point):
    return Point(point.x * 2)

def fail():
    raise ValueError("in the child")

client = Client(max_workers=2)
point = client.submit(double, Point(21)).result()
print(point.x, isinstance(point, Point))
task = client.submit(fail)
print(type(task.exception()).__name__)
print(list(client.map(lambda x: x * 2, range(3))))
pending = [client.submit(print, "pending") for _ in range(2)]
"""
SAID = ["42 True", "ValueError", "[0, 2, 4]", "pending", "pending"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*args: str, code: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments; `code` goes to stdin."""
        command = [sys.executable, *args]
        return subprocess.run(
            command,
            input=textwrap.dedent(code),
            capture_output=True,
            text=True,
            timeout=50,
            cwd=tmp_path,
            check=False,
            **options,
        )

    return run


@pytest.fixture
def script(run: Run, tmp_path: Path) -> Run:
    def script(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(code))
        return run(*flags, str(path))

    return script


def quiet(done: subprocess.CompletedProcess[str], code: int = 0) -> list[str]:
    """The lines of stdout, sorted: the children's are their own."""
    assert done.stderr == ""
    assert done.returncode == code
    return sorted(done.stdout.splitlines())


# --- where the callable comes from


def test_python_c(run: Run) -> None:
    assert quiet(run("-c", WORK)) == sorted(SAID)


def test_stdin(run: Run) -> None:
    assert quiet(run("-", code=WORK)) == sorted(SAID)


def test_a_script_without_a_main_guard(script: Run) -> None:
    assert quiet(script("print('once')" + WORK)) == sorted(["once", *SAID])


def test_a_module(run: Run, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "__main__.py").write_text("print('once')" + WORK)
    assert quiet(run("-m", "package")) == sorted(["once", *SAID])


def test_the_interactive_interpreter(run: Run) -> None:
    code = re.sub(r"\n\n+", "\n", WORK)  # an empty line ends a definition there, and only that
    code = re.sub(r"(\n    .*)\n(?! )", r"\1\n\n", code)
    done = run("-i", "-q", code=code, env={**os.environ, "PYTHON_BASIC_REPL": "1"})
    assert done.stderr.replace(">>> ", "").replace("... ", "").strip() == ""
    assert sorted(done.stdout.split("\n")[:-1]) == sorted(SAID)
    assert done.returncode == 0


def test_a_path_made_at_run_time(run: Run, tmp_path: Path) -> None:
    path = [each for each in sys.path if each] + [str(Path(revolve_assistant.__file__).parent.parent)]
    code = f"import sys; sys.path[:] = {path!r}\n" + WORK
    assert quiet(run("-S", "-E", "-c", code)) == sorted(SAID)


@pytest.mark.parametrize("flags", [["-Xdev", "-Werror"], ["-I"], ["-OO"]])
def test_flags_of_the_interpreter(run: Run, flags: list[str]) -> None:
    said = quiet(run(*flags, "-c", WORK + "print(client.submit(lambda: __import__('sys').flags.optimize).result())"))
    assert said == sorted([*SAID, "2" if flags == ["-OO"] else "0"])


def test_closed_standard_streams(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from revolve_assistant import Client\n"
        "with Client(max_workers=1) as client:\n"
        "    open('said', 'w').write(str(client.submit(pow, 2, 3).result()))\n"
    )
    command = f"exec {sys.executable} script.py 0<&- 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False, timeout=50).returncode == 0
    assert (tmp_path / "said").read_text() == "8"


# --- how the program ends


def test_pending_tasks_end_after_the_script(script: Run, tmp_path: Path) -> None:
    said = quiet(
        script("""
        import time
        from pathlib import Path
        from revolve_assistant import Client

        client = Client(max_workers=1)
        tasks = [client.submit(time.sleep, 0.05), client.submit(Path("done").touch)]
        results = client.map(Path.touch, [Path("mapped")])
        delayed = client.options(delay=0.1).submit(Path("delayed").touch)
        Client().submit(Path("dropped").touch)
    """)
    )
    assert said == []
    assert {"done", "mapped", "delayed", "dropped"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize(
    "last",
    [
        "client.submit(work).add_listener('succeeded', print)",
        "client.add_listener('succeeded', print); client.submit(work)",
        "client.submit(work).add_done_callback(lambda task: print(task.result()))",
        "task = client.options(retries=1, backoff=0.01).submit(retried)",
        "client.options(delay=0.1).submit(print, 'well')",
    ],
)
def test_what_still_has_to_be_done_at_the_end_is_done(script: Run, last: str) -> None:  # 3.12 starts no threads then
    said = quiet(script(f"""
        import time
        from revolve_assistant import Client, current_task

        def work():
            time.sleep(0.1)
            return "well"

        def retried():
            time.sleep(0.1)
            if current_task().attempt == 1:
                raise ValueError
            print("well")

        client = Client(max_workers=1)
        {last}
    """))  # fmt: skip
    assert said == ["well"]


def test_shutdown_without_waiting_ends_with_the_program(script: Run) -> None:  # gh-83386, issue 39205
    code = """
        import time
        from revolve_assistant import Client

        client = Client(max_workers=3)
        task = client.submit(lambda: (time.sleep(0.1), print("apple")))
        {first}
        client.shutdown(wait=False)
    """
    assert quiet(script(code.format(first=""))) == ["apple"]
    assert quiet(script(code.format(first="next(iter(task.events('started')))"))) == ["apple"]


def test_pending_tasks_may_be_cancelled_without_waiting(script: Run) -> None:
    said = quiet(
        script("""
        import time
        from revolve_assistant import Client

        client = Client(max_workers=1)
        first = client.submit(lambda: (time.sleep(0.1), print("apple")))
        next(iter(first.events("started")))
        others = [client.submit(print, "orange") for _ in range(10)]
        client.shutdown(wait=False, cancel_futures=True)
    """)
    )
    assert said == ["apple"]


def test_clients_that_do_nothing(script: Run) -> None:
    said = quiet(
        script("""
        import threading
        from revolve_assistant import Client

        unused, Client = Client(), Client
        Client()
        used = Client(max_workers=1)
        used.submit(abs, -1).result()
        thread = threading.Thread(target=lambda: Client(max_workers=1).submit(print, "from a thread"), daemon=True)
        thread.start()
        thread.join()
    """)
    )
    assert said == ["from a thread"]


def test_a_daemon_thread_that_waits(script: Run) -> None:
    said = quiet(
        script("""
        import threading, time
        from revolve_assistant import Client

        def main():
            with Client(max_workers=1) as client:
                task = client.submit(lambda: (time.sleep(0.1), print("ended")))
                running.set()
                task.result()
                for _ in client.submit(time.sleep, 60).events():
                    pass

        running = threading.Event()
        threading.Thread(target=main, daemon=True).start()
        running.wait()
    """)
    )
    assert said == ["ended"]


def test_exit_codes_are_kept(script: Run) -> None:
    code = """
        import sys
        from revolve_assistant import Client

        client = Client(max_workers=1)
        client.submit(print, "ran")
        {last}
    """
    assert quiet(script(code.format(last="sys.exit(3)")), 3) == ["ran"]
    done = script(code.format(last="raise ValueError('its own')"))
    assert (done.returncode, done.stdout, done.stderr.count("Traceback")) == (1, "ran\n", 1)
    assert "its own" in done.stderr


def test_submitting_at_exit_is_refused(script: Run) -> None:
    said = quiet(
        script("""
        import atexit

        @atexit.register
        def last():
            try:
                client.submit(id, None)
            except RuntimeError as error:
                print(type(error).__name__, error)

        from revolve_assistant import Client
        client = Client(max_workers=1)
        client.submit(id, 42).result()
    """)
    )
    assert said == ["ClientClosed cannot submit: the client was shut down"]


def test_failures_nobody_asked_for_are_said_once(script: Run) -> None:
    done = script("""
        from revolve_assistant import Client

        client = Client(max_workers=1)
        task = client.submit(int, "x")
        client.submit(int, "y")
        asked = client.submit(int, "z")
        asked.exception()
    """)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("(builtins:int) failed, and nobody asked: ValueError: " in line for line in lines)
    assert {line[-3:] for line in lines} == {"'x'", "'y'"}


def test_an_interrupt_cancels_and_says_so_once(script: Run) -> None:
    done = script("""
        import os, signal, time
        from revolve_assistant import Client

        with Client(max_workers=1, ladder=(0.01, 5, 5)) as client:
            task = client.submit(time.sleep, 60)
            next(iter(task.events("started")))
            os.kill(os.getpid(), signal.SIGINT)
            task.result()
    """)
    assert done.returncode == -2
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("asks", [True, False])
def test_signals_at_any_moment_leave_a_client_that_works(script: Run, asks: bool) -> None:
    said = quiet(script(f"""
        import random, signal
        from revolve_assistant import Client

        class Signal(BaseException):
            pass

        def handler(*_):
            if inside:
                raise Signal

        def ask():
            client.submit(abs, 1).result()

        def tell():
            client.submit(abs, 1)

        # (an `if` in the loop below would let exceptions out of the `try` on Python 3.13: its jump is not covered)
        inside, step, dice, interrupts = False, {"ask" if asks else "tell"}, random.Random({asks}), 0
        signal.signal(signal.SIGALRM, handler)
        client = Client(max_workers=1)
        client.submit(abs, 1).result()
        while interrupts < 100:
            try:
                inside = True
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0002, 0.002))
                for _ in range(1000):
                    step()
            except Signal:
                interrupts += 1
            finally:
                inside = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert client.submit(abs, -2).result(timeout=20) == 2, interrupts
            assert signal.getsignal(signal.SIGALRM) is handler, interrupts
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, interrupts
        client.shutdown()
        print("well")
    """))  # fmt: skip
    assert said == ["well"]


# --- forks


def test_a_fork_of_the_caller_harms_nobody(script: Run) -> None:
    said = quiet(
        script(
            """
        import os, sys, time
        from revolve_assistant import Client

        client = Client(max_workers=1)
        pid = client.submit(os.getpid).result()
        task = client.submit(lambda: (time.sleep(0.2), os.getpid())[1])
        next(iter(task.events("started")))
        forked = os.fork()
        if not forked:
            sys.exit(5)  # ends as a program does, with all that is registered for its end
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 5
        assert task.result() == pid
        assert client.submit(os.getpid).result() == pid
        print("well")
    """,
            "-Wignore",
        )
    )
    assert said == ["well"]


def test_a_client_works_in_a_forked_process(script: Run) -> None:
    said = quiet(
        script(
            """
        import concurrent.futures, multiprocessing, os
        from revolve_assistant import Client

        client = Client(max_workers=1)
        pid = client.submit(os.getpid).result()
        inherited = client.submit(abs, 1)

        def work(_):
            assert client.submit(abs, -2).result(20) == 2
            with Client(max_workers=1) as own:
                assert own.submit(abs, -3).result(20) == 3
            return client.submit(os.getpid).result(20) not in (pid, os.getpid())

        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            assert list(pool.map(work, range(2))) == [True, True]
        assert client.submit(os.getpid).result() == pid
        print("well")
    """,
            "-Wignore",
        )
    )
    assert said == ["well"]


def test_a_client_in_a_task(script: Run) -> None:
    said = quiet(
        script("""
        from revolve_assistant import Client

        def work(depth):
            if not depth:
                return [depth]
            with Client(max_workers=1) as client:
                return [depth, *client.submit(work, depth - 1).result()]

        print(Client(max_workers=1).submit(work, 2).result())
    """)
    )
    assert said == ["[2, 1, 0]"]
