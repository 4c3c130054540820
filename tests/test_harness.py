"""The harness of conftest.py itself: each kind of leak turns a test red by name, a hang is dumped, tools are asked for.

Every case is a small test file run by a pytest of its own, next to a copy of conftest.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Pytest = Callable[..., str]


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")

    def run_pytest(source: str, *, harness: tuple[str, str] = ("", ""), **environment: str) -> str:
        """What pytest prints about a file with this source; `harness` replaces some text in its conftest.py."""
        (tmp_path / "test_it.py").write_text(textwrap.dedent(source))
        conftest = tmp_path / "conftest.py"
        if harness[0]:
            assert harness[0] in conftest.read_text()
            conftest.write_text(conftest.read_text().replace(*harness))
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--strict-markers", str(tmp_path)]
        usual = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_ADDOPTS"}}
        ended = subprocess.run(
            command,
            cwd=tmp_path,
            env=usual | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
            check=False,
        )
        return ended.stdout

    return run_pytest


def outcomes(printed: str) -> dict[str, set[str]]:
    """test name -> {"PASSED", "ERROR", …}, from the short summary"""
    found: dict[str, set[str]] = {}
    for word, name in re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*::(\w+)", printed, re.MULTILINE):
        found.setdefault(name, set()).add(word)
    return found


def test_each_kind_of_leak_is_an_error_that_names_it(run_pytest: Pytest) -> None:
    printed = run_pytest(
        """
        import os, subprocess, sys, tempfile, threading
        import pytest

        kept = []
        sleeper = [sys.executable, "-c", "import time; time.sleep(30)"]

        def test_thread():
            kept.append(threading.Event())
            threading.Thread(target=kept[0].wait, name="the-leaked-thread", daemon=True).start()

        def test_fd():
            kept.append(os.open("/dev/null", os.O_RDONLY))

        def test_socket():
            import socket
            kept.append(socket.socketpair())

        def test_child():
            kept.append(subprocess.Popen([*sleeper, "the-leaked-child"]))

        def test_zombie():
            kept.append(subprocess.Popen([sys.executable, "-c", ""]))
            os.waitid(os.P_PID, kept[-1].pid, os.WEXITED | os.WNOWAIT)

        def test_orphan():
            code = (  # for a moment in the midst of its exec a process has no environment to be known by
                "import subprocess, sys; started = subprocess.Popen(sys.argv[1:]); "
                "any(iter(lambda: open(f'/proc/{started.pid}/environ').read(), None))"
            )
            subprocess.run([sys.executable, "-W", "ignore", "-c", code, *sleeper, "the-leaked-orphan"], check=True)

        def test_temp_file():
            tempfile.mkstemp(prefix="the-leaked-file")
            os.close(tempfile.mkstemp(prefix="the-leaked-file")[0])

        def test_nothing():
            pass

        @pytest.mark.leaky("to show that it may")
        def test_leaky():
            kept.append(os.open("/dev/null", os.O_RDONLY))

        @pytest.mark.leaky
        def test_leaky_without_reason():
            pass
        """,
        harness=("SETTLE = 3.0", "SETTLE = 0.3"),
    )
    red = {"PASSED", "ERROR"}
    expected = dict.fromkeys(["thread", "fd", "socket", "child", "zombie", "orphan", "temp_file"], red)
    expected |= {"nothing": {"PASSED"}, "leaky": {"PASSED"}, "leaky_without_reason": {"ERROR"}}
    assert outcomes(printed) == {f"test_{name}": words for name, words in expected.items()}, printed
    for text in [
        "thread 'the-leaked-thread' (daemon), now at",
        "-> /dev/null",
        "-> socket:[",
        "the-leaked-child [",
        "[Z]",
        "the-leaked-orphan [",
        "/the-leaked-file",
        "leaky needs a reason",
    ]:
        assert text in printed


def test_what_ends_in_time_or_is_kept_on_purpose_is_no_leak(run_pytest: Pytest) -> None:
    printed = run_pytest(
        """
        import os, subprocess, sys, tempfile, threading, time
        from multiprocessing.shared_memory import SharedMemory
        import hypothesis, pytest, trio
        from hypothesis import strategies

        @pytest.fixture(scope="module")
        def server():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            with child, tempfile.NamedTemporaryFile():
                yield child
                child.kill()

        def test_slow_end():
            def end():
                time.sleep(0.2)
                os.close(fd)
                os.remove(path)
            fd, path = tempfile.mkstemp()
            threading.Thread(target=end).start()

        def test_wide_fixture(server):
            pass

        def test_wide_fixture_on_the_way(request):
            request.getfixturevalue("other")

        @pytest.fixture(scope="module")
        def other():
            with tempfile.NamedTemporaryFile() as file:
                yield file

        def test_resource_tracker():
            memory = SharedMemory(create=True, size=1)
            memory.close()
            memory.unlink()

        def test_cached_trio_thread():
            trio.run(trio.to_thread.run_sync, int)

        @hypothesis.given(strategies.integers())
        def test_hypothesis(x):
            pass

        def test_tmp_path(tmp_path):
            (tmp_path / "file").touch()

        def test_bytecode(tmp_path, monkeypatch):
            (tmp_path / "fresh.py").touch()
            monkeypatch.syspath_prepend(tmp_path)
            import fresh
        """
    )
    assert re.search(r"^=+ 8 passed in", printed, re.MULTILINE), printed


def test_a_failed_test_is_not_blamed_for_what_its_traceback_holds(run_pytest: Pytest) -> None:
    printed = run_pytest(
        """
        import socket

        def test_first():
            pair = socket.socketpair()
            try:
                assert 0
            finally:
                for one in pair:
                    one.detach()

        def test_next():
            pass
        """
    )
    assert outcomes(printed) == {"test_first": {"FAILED"}, "test_next": {"PASSED"}}, printed


def test_a_hang_fails_with_all_stacks_and_the_run_goes_on(run_pytest: Pytest) -> None:
    printed = run_pytest(
        """
        import subprocess, sys, threading
        import pytest

        def wait_in_thread(stop):
            stop.wait()

        @pytest.mark.timeout(2)
        def test_hang():
            stop = threading.Event()
            code = "def wait_in_child(): input('ready')\\nwait_in_child()"
            with subprocess.Popen([sys.executable, "-uc", code], stdin=-1, stdout=-1) as child:
                child.stdout.read(1)
                thread = threading.Thread(target=wait_in_thread, args=(stop,))
                thread.start()
                try:
                    threading.Event().wait()
                finally:
                    stop.set()

        def test_next():
            pass
        """
    )
    assert outcomes(printed) == {"test_hang": {"FAILED"}, "test_next": {"PASSED"}}, printed
    for text in ["hung: not done after 2 s", "in test_hang", "in wait_in_thread", "--- process"]:
        assert text in printed
    # py-spy needs a right that containers, and systems for other users than root, may not give
    assert "wait_in_child (" in printed or re.search("[Pp]ermi|[Rr]oot", printed.partition("--- process")[2])


def test_a_hang_that_cannot_be_interrupted_ends_the_run_with_its_stacks(run_pytest: Pytest, tmp_path: Path) -> None:
    printed = run_pytest(
        """
        import signal
        import pytest

        @pytest.mark.timeout(0.3)
        def test_stuck():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            signal.sigwait({signal.SIGUSR1})
        """,
        harness=("GRACE = 30.0", "GRACE = 0.3"),
        TMPDIR=str(tmp_path),  # a run ended like this cannot tidy up
    )
    assert "Timeout (0:00:00.6" in printed
    assert "in test_stuck" in printed
    assert "passed" not in printed


@pytest.mark.parametrize(("ci", "word"), [("", "1 skipped"), ("true", "1 failed")])
def test_a_missing_tool_skips_at_home_and_fails_in_ci(run_pytest: Pytest, ci: str, word: str) -> None:
    printed = run_pytest(
        """
        def test_it(need):
            assert need("python3")
            need("no-such-tool")
        """,
        CI=ci,
    )
    assert word in printed
    assert "no-such-tool is not installed" in printed


def test_hypothesis_is_repeatable_in_ci(run_pytest: Pytest) -> None:
    printed = run_pytest(
        """
        import hypothesis

        def test_it():
            assert hypothesis.settings().derandomize
            assert hypothesis.settings().deadline is None
        """,
        CI="true",
    )
    assert "1 passed" in printed, printed
