"""What holds for every test: it leaves nothing behind, it ends, and it does not depend on the machine in silence.

* After each test that passed, new threads, file descriptors, processes (orphaned grandchildren too) and temporary
  files turn it red and are named. `@pytest.mark.leaky("why")` switches that off.
* A test that takes longer than 60 s fails with the stacks of all threads and child processes;
  `@pytest.mark.timeout(seconds)` sets another limit. If it cannot even be interrupted, the run is ended.
* The fixture `need` skips a test whose tool is missing at home, and fails it where CI=true.

tests/test_harness.py proves all of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
LIMIT = 60.0  # seconds a test may take
GRACE = 30.0  # seconds more until a test that could not be interrupted ends the run
SETTLE = 3.0  # seconds that what a test started has to end in

hypothesis.settings.register_profile("home", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if CI else "home")

failed_key = pytest.StashKey[bool]()
run_key = pytest.StashKey["Run"]()


@dataclass
class Run:
    """What one pytest process keeps: where its temporary files go, the real stderr, what wide fixtures hold."""

    folder: Path
    stderr: int
    usual: dict[str, str | None] = field(default_factory=dict)  # environment to restore
    held: Traces | None = None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaky(reason): leaves threads, descriptors, processes or files on purpose")
    config.addinivalue_line("markers", "timeout(seconds): fails after so long instead of 60 s; 0: never")
    # Short, for the sake of Unix sockets (108 bytes). `tmp_path` stays where pytest puts it, to be looked at later.
    run = Run(Path(tempfile.mkdtemp(prefix="rv-")).resolve(), os.dup(2))  # here 2 is not yet captured
    for name, value in {
        "PYTEST_DEBUG_TEMPROOT": os.environ.get("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir()),
        "TMPDIR": str(run.folder),
        "REVOLVE_SECRET": "the secret of these tests",  # so that none makes a file in the home of who runs them
    }.items():
        run.usual[name] = os.environ.get(name)
        os.environ[name] = value
    tempfile.tempdir = None  # look at TMPDIR again
    config.stash[run_key] = run


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(run_key, None)
    if run is None:
        return
    for pid in set(processes(run.folder)) - keepers_pids():  # nobody else will
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for name, value in run.usual.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None
    shutil.rmtree(run.folder, ignore_errors=True)
    os.close(run.stderr)


# --- leaks ------------------------------------------------------------------------------------------------------------


@dataclass
class Traces:
    """All that a test could leave behind."""

    threads: set[threading.Thread]
    files: set[tuple[int, str]]
    processes: dict[int, str]
    paths: set[str]

    @classmethod
    def now(cls, folder: Path) -> Traces:
        return cls(set(threading.enumerate()), open_files(), processes(folder), set(paths(folder)))

    def since(self, other: Traces) -> Traces:
        gone = other.processes.keys() | keepers_pids()
        return Traces(
            {t for t in self.threads - other.threads if not t.name.startswith("Trio thread")},  # idle ones, cached
            {f for f in self.files - other.files if not is_keeper(*f)},
            {p: text for p, text in self.processes.items() if p not in gone and parent(p) not in gone},
            self.paths - other.paths,
        )

    def add(self, other: Traces) -> None:
        self.threads |= other.threads
        self.files |= other.files
        self.processes |= other.processes
        self.paths |= other.paths

    def __bool__(self) -> bool:
        return bool(self.threads or self.files or self.processes or self.paths)

    def __str__(self) -> str:
        frames = sys._current_frames()
        lines = []
        for thread in self.threads:
            lines.append(f"thread {thread.name!r}{' (daemon)' if thread.daemon else ''}, now at")
            frame = frames.get(thread.ident or 0)
            lines += ["    " + line for entry in traceback.format_stack(frame)[-4:] for line in entry.splitlines()]
        lines += [f"file descriptor {number} -> {target}" for number, target in sorted(self.files)]
        lines += [f"process {pid}: {text}" for pid, text in self.processes.items()]
        lines += [f"temporary file {path}" for path in sorted(self.paths)]
        return "\n".join(lines)


def open_files() -> set[tuple[int, str]]:
    base = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = set()
    for name in os.listdir(base):
        try:
            target = os.readlink(f"{base}/{name}")
        except OSError:
            try:  # macOS
                status = os.fstat(int(name))
            except OSError:  # the descriptor of this very listing
                continue
            target = f"mode {status.st_mode:o}, inode {status.st_ino}"
        found.add((int(name), target))
    return found


def paths(folder: Path) -> Iterator[str]:
    for base, folders, files in os.walk(folder):
        # multiprocessing's and loky's own, until the process ends
        folders[:] = [name for name in folders if not name.startswith(("pymp-", "loky-"))]
        yield from (os.path.join(base, name) for name in [*folders, *files])


def processes(folder: Path) -> dict[int, str]:
    """Our children, and whatever else was started with our TMPDIR: a grandchild whose parent died."""
    if not os.path.isdir("/proc/self"):
        return {}
    pids = set(children(os.getpid()))
    mark = f"TMPDIR={folder}\0".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read():
                    pids.add(int(name))
    pids.discard(os.getpid())
    return {pid: text for pid in sorted(pids) if (text := describe(pid))}


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # a thread or the process ended meanwhile
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def describe(pid: int) -> str:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return f"{command or Path(f'/proc/{pid}/comm').read_text().strip()} [{state}]"
    except OSError:
        return ""


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def keepers() -> Iterator[Any]:
    """The helpers that the standard library and loky start once and keep."""
    for name, attribute in [
        ("multiprocessing.resource_tracker", "_resource_tracker"),
        ("multiprocessing.forkserver", "_forkserver"),
        ("loky.backend.resource_tracker", "_resource_tracker"),
        ("joblib.externals.loky.backend.resource_tracker", "_resource_tracker"),
    ]:
        if module := sys.modules.get(name):
            yield getattr(module, attribute)


def keepers_pids() -> set[int]:
    return {
        pid for k in keepers() for name in ("_pid", "_forkserver_pid") if (pid := getattr(k, name, None)) is not None
    }


def is_keeper(number: int, target: str) -> bool:
    held = {getattr(k, name, None) for k in keepers() for name in ("_fd", "_forkserver_alive_fd")}
    # opened by an import, once
    return number in held or target in {"/dev/urandom", "/dev/random"} or target.endswith((".so", ".py", ".pyc"))


def leaks(before: Traces, folder: Path) -> Traces:
    """What is there that was not, after its time to end; waits for ends, not for the clock."""
    deadline = time.monotonic() + SETTLE
    left = Traces.now(folder).since(before)
    while left and time.monotonic() < deadline:
        for thread in left.threads:
            if isinstance(thread, threading._DummyThread):  # cannot be joined
                continue
            thread.join(max(0.0, deadline - time.monotonic()))
        for pid in left.processes:
            wait_for_end(pid, deadline)
        gc.collect()
        left = Traces.now(folder).since(before)
        if not left.threads and not left.processes:
            break  # nobody is left who could close a descriptor or remove a file
    return left


def wait_for_end(pid: int, deadline: float) -> None:
    if not hasattr(os, "pidfd_open"):
        return
    try:
        ended = os.pidfd_open(pid)
    except OSError:
        return
    try:
        select.select([ended], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(ended)


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    marker = request.node.get_closest_marker("leaky")
    if marker is not None:
        if not marker.args:
            pytest.fail("leaky needs a reason: @pytest.mark.leaky('why')", pytrace=False)
        yield
        return
    run = request.config.stash[run_key]
    before = Traces.now(run.folder)
    run.held = before  # fixtures of a wider scope may still be set up on the way
    yield
    run.held = None
    if request.node.stash.get(failed_key, False):
        return  # the traceback keeps alive what the test held
    if left := leaks(before, run.folder):
        pytest.fail(f"left behind by this test:\n{left}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    run = request.config.stash[run_key]
    if run.held is None or fixturedef.scope == "function":
        return (yield)
    before = Traces.now(run.folder)
    try:
        return (yield)
    finally:
        run.held.add(Traces.now(run.folder).since(before))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[failed_key] = True
    return report


# --- hangs ------------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0]) if marker else LIMIT
    if not limit or item.config.option.usepdb:
        return (yield)
    run = item.config.stash[run_key]

    def hung(_signal: int, _frame: object) -> NoReturn:
        pytest.fail(f"hung: not done after {limit:g} s\n{stacks(run.folder)}", pytrace=False)

    usual = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, limit)
    # Where the main thread sits in C code or swallows the failure: dump, and end the run.
    faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=run.stderr)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
        faulthandler.cancel_dump_traceback_later()


def stacks(folder: Path) -> str:
    """The stacks of every thread here and, where py-spy may look at them, of our child processes."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        parts = [file.read().decode(errors="replace")]
    spy = shutil.which("py-spy", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    for pid, text in processes(folder).items():
        parts.append(f"--- process {pid}: {text}")
        if spy is not None and "python" in text:
            with contextlib.suppress(subprocess.TimeoutExpired):
                seen = subprocess.run([spy, "dump", "--pid", str(pid)], capture_output=True, timeout=5, check=False)
                parts.append((seen.stdout or seen.stderr).decode(errors="replace"))
    return "\n".join(parts)


# --- tools ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def need() -> Callable[..., str]:
    """`need("tmux")` is the path of a program; without it the test is skipped at home and fails in CI.

    With `having`, arguments with which the program ends well only if it has the module that the test uses, that too.
    """

    def need(tool: str, *having: str) -> str:
        path = shutil.which(tool, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
        if path is not None and having:
            done = subprocess.run([path, *having], stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if done.returncode:
                path, tool = None, f"what makes `{tool} {' '.join(having)}` succeed"
        if path is None:
            message = f"{tool} is not installed; scripts/test installs it, or says how to"
            if CI:
                pytest.fail(message, pytrace=False)
            pytest.skip(message)
        return path

    return need


class Program:
    """A `revolve` command that runs, and what it said so far on stderr."""

    def __init__(self, *words: str, cwd: Path, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "revolve_assistant.cli", *words],
            cwd=cwd,
            env={**kept, "PYTHONFAULTHANDLER": "1", "XDG_DATA_HOME": str(cwd), **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.lines: list[str] = []
        self._over = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def says(self, text: str, times: int = 1, seconds: float = 30.0) -> str:
        """The line that holds `text`, once it was said so often."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= times or self._over, seconds)
            if len(found()) < times:
                pytest.fail(f"never said {text!r} {times} times within {seconds:g} s; it said:\n{self.text}")
            return found()[-1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 45.0) -> int:
        """Its exit code."""
        code = self.process.wait(seconds)
        self._thread.join(5.0)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.wait()
        assert self.process.stderr is not None
        self._thread.join(5.0)
        self.process.stderr.close()


@pytest.fixture
def revolve(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """`revolve("worker", url, REVOLVE_SECRET=…)` starts that command in `tmp_path`, or `cwd`.

    It is killed after the test.
    """
    with contextlib.ExitStack() as stack:

        def start(*words: str, cwd: Path = tmp_path, **environment: str) -> Program:
            program = Program(*words, cwd=cwd, **environment)
            stack.callback(program.close)
            return program

        yield start


class Terminal:
    """A shell in tmux, 80 columns and 24 rows; `environment` is what it has besides ours without REVOLVE_…."""

    def __init__(self, tmux: str, folder: Path, **environment: str) -> None:
        self.socket = os.path.join(tempfile.mkdtemp(prefix="tm-"), "s")
        self.tmux = [tmux, "-S", self.socket, "-f", "/dev/null"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}
        self.environment = {**kept, **environment}
        self("new-session", "-d", "-x", "80", "-y", "24", "-c", str(folder), "env PS1='$ ' bash --norc --noprofile")

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*self.tmux, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout

    def type(self, line: str) -> None:
        self("send-keys", "-l", line)
        self("send-keys", "Enter")

    def press(self, *keys: str) -> None:
        """Keys by the names that tmux has for them."""
        self("send-keys", *keys)

    def see(self, pattern: str, seconds: float = 30.0) -> str:
        """The screen, once the pattern is on it."""
        deadline = time.monotonic() + seconds
        while True:
            screen = self("capture-pane", "-p")
            if re.search(pattern, screen):
                return screen
            assert time.monotonic() < deadline, f"{pattern!r} did not come:\n{screen}"
            time.sleep(0.02)

    def ask(self, what: str) -> str:
        """What tmux knows of the terminal: `cursor_flag`, `alternate_on` and the like."""
        return self("display-message", "-p", f"#{{{what}}}").strip()

    def close(self) -> None:
        self("kill-server")
        shutil.rmtree(os.path.dirname(self.socket))


@pytest.fixture
def open_terminal(need: Callable[..., str]) -> Iterator[Callable[..., Terminal]]:
    """`open_terminal(folder, NAME="…")` is a `Terminal` until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path, **environment: str) -> Terminal:
            terminal = Terminal(need("tmux"), folder, **environment)
            stack.callback(terminal.close)
            return terminal

        yield start
