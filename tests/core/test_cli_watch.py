"""`revolve watch` on a pseudo-terminal and in a pipe: tasks of other processes, on a real Redis with a real worker."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client
from revolve_assistant.testing.servers import Redis

SECRET = "a secret of these tests only"
LONG = 40.0  # seconds that nothing here takes

APP = '''
import os, time
from revolve_assistant import ask, current_task, emit, report, track

def steps(folder, n):
    """A step for each file that appears."""
    for at in track(range(n), "stepping"):
        emit("waits", at)
        while not os.path.exists(os.path.join(folder, f"go{at}")):
            time.sleep(0.01)
    return {"steps": n}

def quick(n):
    emit("one", n, "\\x1b[2J")
    return n * 2

def fail(text):
    raise ValueError(text)

def greet():
    first = ask("what is your name?", timeout=60)
    emit("heard", first)
    return [first, ask("and your age?", timeout=60)]

def chatter(name):
    """Says something all the time."""
    while not os.path.exists(name):
        report(0.5)
        time.sleep(0.01)
'''

LEAD = """
import fcntl, os, sys, termios
sys.modules.update(dict.fromkeys(os.environ.get("WITHOUT", "").split()))  # as if they were not installed
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal for it
from revolve_assistant.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def server(need: Callable[[str], str]) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "watch_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("watch_app", None)
    yield import_module("watch_app")
    sys.modules.pop("watch_app", None)


@pytest.fixture
def said(server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the environment of every program here says."""
    said = {
        "REVOLVE_URL": f"{server.url}?namespace={tmp_path.name}",
        "REVOLVE_SECRET": SECRET,
        "XDG_DATA_HOME": str(tmp_path),
        "TERM": "xterm-256color",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return said


@pytest.fixture
def client(said: dict[str, str], app: Any) -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def worker(revolve: Any, said: dict[str, str], app: Any) -> Any:
    program = revolve("worker", "-c", "4", **said)
    program.says("ready as")
    return program


class Screen:
    """A `revolve` command on a pseudo-terminal of its own."""

    def __init__(self, *words: str, cwd: Path) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.before = self.modes()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LEAD, *words], cwd=cwd, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self._raw = b""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: the other side is closed
                data = b""
            with self._news:
                self._raw += data
                self._news.notify_all()
            if not data:
                return

    @property
    def text(self) -> str:
        """What was written, without escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._raw.decode())

    def shows(self, wanted: str, times: int = 1) -> None:
        with self._news:
            found = self._news.wait_for(lambda: self.text.count(wanted) >= times, LONG)
            assert found, f"never showed {wanted!r}:\n{self.text[-2000:]}"

    def modes(self) -> list[Any]:
        """Of the terminal: whether it echoes, whether it reads lines."""
        return termios.tcgetattr(self._master)[:4]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self) -> int:
        code = self.process.wait(LONG)
        self._reader.join(LONG)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        os.close(self._master)


@pytest.fixture
def screen(said: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    made: list[Screen] = []

    def start(*words: str) -> Screen:
        made.append(Screen(*words, cwd=tmp_path))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def run(said: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    def run(*words: str, code: int = 0) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "revolve_assistant.cli", *words],
            cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONG, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def go(folder: Path, *steps: int) -> None:
    for at in steps:
        (folder / f"go{at}").touch()


# ---------------------------------------------------------------- on a terminal


def test_it_is_complete_from_the_first_event_then_live(client, app, worker, screen, tmp_path):
    task = client.submit(app.steps, str(tmp_path), 4)
    go(tmp_path, 0, 1)
    with task.events("waits") as events:
        assert [next(events).args[0] for _ in range(3)] == [0, 1, 2]
    shown = screen("watch", task.id)
    for at in range(3):
        shown.shows(f"steps: waits {at}\r\n")  # what was before
    shown.shows("/4 stepping")  # the bar
    go(tmp_path, 2)
    shown.shows("steps: waits 3\r\n")  # what is now
    go(tmp_path, 3)
    shown.shows("steps: succeeded: {'steps': 4}, after ")
    assert shown.wait() == 0
    assert [shown.text.count(f"waits {at}\r\n") for at in range(4)] == [1, 1, 1, 1]

    again = screen("watch", task.id)  # afterwards
    again.shows("steps: succeeded: {'steps': 4}, after ")
    assert again.wait() == 0
    assert [again.text.count(f"waits {at}\r\n") for at in range(4)] == [1, 1, 1, 1]


def test_it_waits_for_a_task_that_nobody_has_taken(client, app, screen, revolve, said):
    task = client.submit(app.quick, 21)
    task.queued()
    shown = screen("watch", task.id)
    shown.shows(f"{task.id} waits: nobody has begun it yet\r\n")
    program = revolve("worker", "-c", "1", **said)
    program.says("ready as")
    shown.shows("quick: succeeded: 42, after ")
    assert shown.wait() == 0
    assert r"one 21, \x1b[2J" in shown.text  # what a task says never acts on the terminal


def test_ctrl_c_detaches_and_cancels_nothing(client, app, worker, screen, tmp_path):
    task = client.submit(app.steps, str(tmp_path), 2)
    shown = screen("watch", task.id)
    shown.shows("steps: waits 0\r\n")
    shown.shows("0/2")
    shown.type("\x03")
    assert shown.wait() == 130
    assert f"revolve watch: detached, the task goes on: revolve watch {task.id}" in shown.text
    assert shown.modes() == shown.before, "the terminal is as it was"
    assert task.state == "running"
    go(tmp_path, 0, 1)
    assert task.result(LONG) == {"steps": 2}


def test_a_terminal_that_is_closed_detaches_too(client, app, worker, screen, tmp_path):
    task = client.submit(app.steps, str(tmp_path), 1)
    shown = screen("watch", task.id)
    shown.shows("steps: waits 0\r\n")
    shown.process.send_signal(signal.SIGHUP)
    assert shown.wait() == 129
    go(tmp_path, 0)
    assert task.result(LONG) == {"steps": 1}


def test_questions_are_answered_at_the_prompt_while_others_talk(client, app, worker, screen, tmp_path):
    noise = client.submit(app.chatter, str(tmp_path / "quiet"))
    asks = client.submit(app.greet)
    shown = screen("watch", asks.id, noise.id)
    name = f"greet {asks.id[:4]}…{asks.id[-4:]}"  # of several
    shown.shows(f"{name}: asks: what is your name?\r\n")
    shown.shows(f"{name}, your answer: ")
    shown.type("Ada L.\n")
    shown.shows(f"{name}: heard Ada L.\r\n")
    shown.shows(f"{name}, your answer: ", 2)
    shown.type("36\n")
    assert asks.result(LONG) == ["Ada L.", "36"]
    shown.shows(f"{name}: succeeded: ['Ada L.', '36'], after ")
    (tmp_path / "quiet").touch()
    assert shown.wait() == 0


def test_c_cancels_all_that_are_watched_and_shows_how_they_end(client, app, worker, screen, tmp_path):
    tasks = [client.submit(app.steps, str(tmp_path), 2), client.submit(app.greet)]
    shown = screen("watch", *(task.id for task in tasks))
    shown.shows("waits 0\r\n")
    shown.shows("your answer: ")
    shown.type("c\n")  # at the prompt it is an answer
    shown.shows("heard c\r\n")
    shown.shows("your answer: ", 2)
    shown.type("\x04")  # and now no prompt is there
    shown.shows("(to answer it later: ")
    shown.type("c")
    for task in tasks:
        shown.shows(f"{task.id[:4]}…{task.id[-4:]}: cancelling\r\n")
        shown.shows(f"{task.id[:4]}…{task.id[-4:]}: cancelled: ")
    assert shown.wait() == 3
    assert [task.state for task in tasks] == ["cancelled", "cancelled"]
    assert shown.modes() == shown.before, "the terminal is as it was"


def test_an_answer_from_elsewhere_closes_the_prompt(client, app, worker, screen):
    asks = client.submit(app.greet)
    shown = screen("watch", asks.id)
    shown.shows("greet, your answer: ")
    shown.type("half typ")
    assert asks.send("answer", "Grace")
    shown.shows("(it waits for that answer no more)")
    shown.shows("greet: heard Grace\r\n")
    shown.shows("greet, your answer: ", 2)
    shown.type("85\n")  # and not the rest of what was typed for the question before
    assert asks.result(LONG) == ["Grace", "85"]
    assert shown.wait() == 0


def test_questions_that_were_answered_are_history(client, app, worker, screen):
    asks = client.submit(app.greet)
    asks.send("answer", "Grace")
    with asks.events("heard") as events:
        assert next(events).args == ("Grace",)
    shown = screen("watch", asks.id)
    shown.shows("greet: asks: what is your name?\r\n")
    shown.shows("greet, your answer: ")
    shown.type("85\n")
    assert asks.result(LONG) == ["Grace", "85"]
    assert shown.wait() == 0
    assert shown.text.count("your answer") == 1


def test_whoever_does_not_want_to_answer_goes_on_watching(client, app, worker, screen):
    asks = client.submit(app.greet)
    shown = screen("watch", asks.id)
    shown.shows("greet, your answer: ")
    shown.type("\x04")
    shown.shows(f"(to answer it later: revolve send {asks.id} answer …)")
    asks.send("answer", "Grace")
    shown.shows("greet: heard Grace\r\n")
    shown.shows("greet: asks: and your age?")
    shown.type("\x03")
    assert shown.wait() == 130
    asks.cancel()


def test_ctrl_c_at_the_prompt_detaches(client, app, worker, screen):
    asks = client.submit(app.greet)
    shown = screen("watch", asks.id)
    shown.shows("greet, your answer: ")
    shown.type("\x03")
    assert shown.wait() == 130
    assert re.search(rf"[\r\n]revolve watch: detached, the task goes on: revolve watch {asks.id}", shown.text)
    assert asks.state == "running"
    asks.cancel()


def test_watching_outlives_the_server(app, said, screen, revolve, tmp_path, monkeypatch):
    with Redis("--appendonly", "yes", "--appendfsync", "always") as server:
        said = {**said, "REVOLVE_URL": server.url}
        monkeypatch.setenv("REVOLVE_URL", server.url)
        revolve("worker", "-c", "1", **said).says("ready as")
        with Client() as client:
            task = client.submit(app.steps, str(tmp_path), 2)
            shown = screen("watch", task.id)
            shown.shows("steps: waits 0\r\n")
            server.kill()
            go(tmp_path, 0)
            shown.shows("trying again")
            server.start()
            shown.shows("steps: waits 1\r\n")
            go(tmp_path, 1)
            shown.shows("steps: succeeded: {'steps': 2}, after ")
            assert shown.wait() == 0
            assert [shown.text.count(f"waits {at}\r\n") for at in range(2)] == [1, 1]
            assert task.result(LONG) == {"steps": 2}


# ---------------------------------------------------------------- in a pipe


def test_lines_in_a_pipe_and_exit_codes(client, app, worker, run):
    well, ill = client.submit(app.quick, 3), client.submit(app.fail, "no\nmore")
    assert well.result(LONG) == 6
    assert isinstance(ill.exception(LONG), ValueError)
    assert run("watch", well.id).stderr.splitlines()[-1].startswith("quick: succeeded: 6, after ")
    assert run("watch", ill.id, code=1).stderr == "fail: failed: ValueError: no\n"
    assert run("watch", well.id, ill.id, code=1).stdout == ""
    shown = run("watch", "--traceback", ill.id, code=1).stderr
    assert 'watch_app.py", line' in shown
    assert "fail: failed: ValueError: no" in shown
    cancelled = client.options(queue="nobodys").submit(app.quick, 1)
    cancelled.queued()
    cancelled.cancel()
    assert "cancelled: unstarted" in run("watch", cancelled.id, code=3).stderr


def test_a_question_in_a_pipe_says_how_to_answer(client, app, worker, revolve, said):
    asks = client.submit(app.greet)
    program = revolve("watch", asks.id, **said)
    program.says(f"greet: asks: what is your name? (revolve send {asks.id} answer …)")
    asks.send("answer", "a")
    asks.send("answer", "b")
    assert program.wait() == 0


def test_json_is_what_the_page_says(client, app, worker, run):
    task, ill = client.submit(app.quick, 3), client.submit(app.fail, "no")
    assert task.result(LONG) == 6
    assert ill.exception(LONG)
    lines = [json.loads(line) for line in run("watch", "--json", task.id).stdout.splitlines()]
    assert [line["event"] for line in lines] == ["started", "one", "succeeded"]
    assert all(
        (line["task"], line["function"], line["attempt"], line["seq"]) == (task.id, "watch_app:quick", 1, at)
        for at, line in enumerate(lines, 1)
    )
    assert lines[1]["args"] == [3, "\x1b[2J"]
    assert lines[2]["result"] == 6
    done = run("watch", "--json", ill.id, "nobody", code=4)
    ends = {line["task"]: line for line in map(json.loads, done.stdout.splitlines()) if line["event"] != "started"}
    assert ends[ill.id]["error"] == "ValueError: no"
    assert ends["nobody"]["event"] == "lost"
    assert "no task 'nobody' is known to redis://" in ends["nobody"]["error"]


# ---------------------------------------------------------------- other commands on a terminal


def test_purge_asks_and_takes_no_for_an_answer(client, app, screen):
    tasks = [client.submit(app.quick, n) for n in range(3)]
    tasks[-1].queued()
    for answer in ("n\n", "\n", "\x04"):
        shown = screen("purge", "default")
        shown.shows("Remove 3 waiting tasks of queue default? [y/N] ")
        shown.type(answer)
        assert shown.wait() == 1
        assert "revolve purge: nothing was removed" in shown.text
    assert client.counts()[0].pending == 3
    shown = screen("purge", "default")
    shown.shows("[y/N] ")
    shown.type("\x03")
    assert shown.wait() == 130
    shown = screen("purge", "default")
    shown.shows("[y/N] ")
    shown.type("y\n")
    assert shown.wait() == 0
    assert shown.text.endswith("3\r\n")
    assert client.counts() == []


def test_the_small_top_stays_on_the_screen_while_its_server_is_away(screen, said, monkeypatch):
    monkeypatch.setenv("WITHOUT", "textual")
    with Redis() as server:
        monkeypatch.setenv("REVOLVE_URL", server.url)
        shown = screen("top", "--every", "0.2")
        shown.shows("for the full screen: pip install 'revolve-assistant[top]'")
        shown.shows("no worker: start one with revolve worker", 2)
        server.stop()
        shown.shows("; trying again")
        server.start()
        before = shown.text.count("no worker: start one")
        shown.shows("no worker: start one", before + 2)
        shown.type("\x03")
        assert shown.wait() == 0
