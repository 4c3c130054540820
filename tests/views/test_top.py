"""`revolve top` as people see it: in a tmux of 80 x 24, on a real Redis with a real worker."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from revolve_assistant import Client, Progress
from revolve_assistant.event import ENDS
from revolve_assistant.testing.servers import Redis
from revolve_assistant.views.board import TaskState
from revolve_assistant.views.top import tables

LONG = 40.0  # seconds that nothing here takes
TOP = shlex.join([sys.executable, "-m", "revolve_assistant.cli", "top", "--every", "0.2"])

APP = '''
import os, time
from revolve_assistant import emit, report

def steps(folder, name):
    """Half done until a file appears."""
    report(0.5, f"{name} \\x1b[2J")
    print("printed by", name)
    emit("note", "\\x9b2J")
    while not os.path.exists(os.path.join(folder, f"{name}.go")):
        time.sleep(0.01)
    return f"result of {name}"

def fail(text):
    raise ValueError(text)

def quick(n):
    return n
'''


@pytest.fixture(scope="module")
def server(need: Callable[[str], str]) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "top_app.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("top_app", None)
    yield import_module("top_app")
    sys.modules.pop("top_app", None)


@pytest.fixture
def said(server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the environment of every program here says."""
    said = {
        "REVOLVE_URL": f"{server.url}?namespace={tmp_path.name}",
        "REVOLVE_SECRET": "a secret of these tests only",
        "XDG_DATA_HOME": str(tmp_path),
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    return said


@pytest.fixture
def client(said: dict[str, str], app: Any, revolve: Any) -> Iterator[Client]:
    revolve("worker", "-c", "4", **said).says("ready as")
    with Client() as client:
        yield client


@pytest.fixture
def terminal(open_terminal: Any, tmp_path: Path, said: dict[str, str]) -> Any:
    return open_terminal(tmp_path, **said)


def start(terminal: Any, before: str = "") -> None:
    """Run it; the terminal's modes are kept before and after."""
    terminal.type(
        f"clear; stty -a >before; {before}{TOP}; echo code=$?; stty -a >after; cmp before after && echo as before"
    )


def restored(terminal: Any, code: int) -> None:
    """It is gone, and the terminal is as it was."""
    terminal.see(rf"code={code}\n(.*\n)*as before")
    assert [terminal.ask(what) for what in ("cursor_flag", "alternate_on", "mouse_any_flag")] == ["1", "0", "0"]


def fits(screen: str) -> None:
    assert all(len(line) <= 80 for line in screen.splitlines())
    assert "\x1b" not in screen
    assert "\x9b" not in screen


# ---------------------------------------------------------------- what there is


def test_tasks_with_bars_then_one_with_all_it_says(client, app, terminal, tmp_path):
    one, two = (client.options(capture=True).submit(app.steps, str(tmp_path), name) for name in ("one", "two"))
    one.result, two.queued(LONG)
    start(terminal)
    screen = terminal.see(r"running +steps +━━━━━━────── +50% one \\x1b\[2J(.*\n)*.*two \\x1b\[2J(.*\n)+.*q quit")
    fits(screen)
    assert re.search(r"redis://127.0.0.1:\d+.* 1 worker  2 running  0 waiting  0\.0/s", screen)
    assert re.search(r"\[1 Tasks 2\] 2 Functions 1  3 Queues 1  4 Workers 1  5 Failures 0", screen)
    assert "q quit" in screen.rstrip("\n").splitlines()[-1]
    terminal.type("/twoo")  # a search
    terminal.see(r"\[1 Tasks 2\](.*\n)+  no task is known(.*\n)+.*search: twoo")
    terminal.press("/", "BSpace")
    terminal.see(r" /two_ ")
    terminal.press("Enter")
    terminal.see(r"\[1 Tasks 2\](.*\n)+> running +steps .* two (.*\n){2,}.*search: two")
    terminal.press("Enter")
    screen = terminal.see(r"printed by two")
    fits(screen)
    assert f"id {two.id}" in screen
    assert re.search(r"top_app:steps +running\n", screen)
    assert "━━━━━━━━━━━━━━━━━━━━──────────────────── 50%  two \\x1b[2J" in screen
    assert re.search(r"\d\d:\d\d:\d\d note \\x9b2J", screen)
    (tmp_path / "two.go").touch()
    terminal.see(r"top_app:steps +succeeded(.*\n)+.*succeeded: result of two")
    (tmp_path / "one.go").touch()
    terminal.press("Escape")
    screen = terminal.see(r"\[1 Tasks 2\](.*\n)+> succeeded steps +100%")
    assert "one " not in screen, "the search goes on"
    terminal.press("Escape")
    terminal.see(r"succeeded +steps.* one ")
    terminal.press("q")
    restored(terminal, 0)


def test_functions_queues_and_workers(client, app, terminal, tmp_path):
    held = client.submit(app.steps, str(tmp_path), "one")
    client.options(queue="mails").submit(app.quick, 1).queued(LONG)
    start(terminal)
    terminal.press("2")
    fits(terminal.see(r"\[2 Functions \d\](.*\n)+> top_app:steps +1\b"))
    terminal.press("Tab")
    screen = terminal.see(r"\[3 Queues 2\](.*\n)+> default +0 +0 +0 +1 +1 +0 +0\.0 +1\n +mails +1 +0 +0 +0 +0")
    fits(screen)
    assert screen.splitlines()[2].endswith("EACH S WORKERS"), "all columns are there"
    terminal.press("Tab")
    fits(terminal.see(r"\[4 Workers 1\](.*\n)+> [\w.-]+:\d+ +running +1 +4 "))
    terminal.press("Enter")  # its tasks
    terminal.see(r"\[1 Tasks \d\](.*\n)+> running +steps")
    terminal.press("?")
    fits(terminal.see(r"PgUp PgDn Home End"))
    terminal.press("q")  # out of the help only
    (tmp_path / "one.go").touch()
    terminal.see(r"> succeeded +steps")
    assert held.result(LONG) == "result of one"
    terminal.press("C-c")
    restored(terminal, 0)


def test_failures_with_their_traceback_and_retry(client, app, terminal):
    task = client.submit(app.fail, "no \x1b[2J way\nat all")
    assert isinstance(task.exception(LONG), ValueError)
    start(terminal)
    terminal.press("5")
    fits(terminal.see(r"\[5 Failures 1\](.*\n)+> \d\d:\d\d:\d\d +buried +fail +1 ValueError: no \\x1b\[2J way"))
    terminal.press("Enter")
    screen = terminal.see(r"raise ValueError\(text\)")
    fits(screen)
    assert "Traceback (most recent call last):" in screen
    assert "it is kept: r runs it again" in screen
    terminal.press("Escape")
    terminal.see(r"\[5 Failures 1\]")
    terminal.press("r")
    terminal.see(r"Run top_app:fail …\w{8} again\? \[y/N\]")
    terminal.press("n")
    terminal.press("r")
    terminal.see(r"Run top_app:fail …\w{8} again\? \[y/N\]")
    terminal.press("y")
    terminal.see(r"\[5 Failures 2\](.*\n)+.*queued again as \w{32}")
    assert len(client.buried()) == 1, "the old one is kept no more, and the new one failed as well"
    terminal.press("r")
    terminal.press("q")  # no, and not the end of the program
    terminal.press("q")
    restored(terminal, 0)


# ---------------------------------------------------------------- what is to be


def test_cancel_by_key(client, app, terminal, tmp_path):
    task = client.submit(app.steps, str(tmp_path), "one")
    start(terminal)
    terminal.see(r"> running +steps")
    terminal.press("c")
    terminal.see(r"Stop top_app:steps …\w{8}\? \[y/N\]")
    terminal.press("y")
    terminal.see(rf"> cancelled steps(.*\n)+.*task {task.id}: cancelled")
    assert task.cancelled()
    terminal.press("c")
    terminal.see(rf"task {task.id} has ended")
    terminal.press("q")
    restored(terminal, 0)


def test_pause_and_resume_by_key(client, app, terminal):
    assert client.submit(app.quick, 1).result(LONG) == 1
    start(terminal)
    terminal.press("2")
    terminal.see(r"> top_app:quick\b")
    terminal.press("p")
    terminal.see(r"Pause top_app:quick on all workers\? \[y/N\]")
    terminal.press("y")
    terminal.see(r"> top_app:quick\b.* paused(.*\n)+.*top_app:quick is paused: what runs goes on, nothing begins")
    assert [rule.paused for rule in client.rules()] == [True]
    held = client.submit(app.quick, 2)
    terminal.press("3")
    terminal.see(r"> default +\d +\d +1\b")  # blocked
    assert not held.done()
    terminal.press("2")
    terminal.press("p")
    terminal.see(r"Resume top_app:quick\? \[y/N\]")
    terminal.press("y")
    assert held.result(LONG) == 2
    terminal.see(r"> top_app:quick +1 +0\.1\n(.*\n)+.*top_app:quick is taken again")
    terminal.press("q")
    restored(terminal, 0)


# ---------------------------------------------------------------- terminals


def test_without_colour_it_sends_none(client, app, terminal, tmp_path):
    client.submit(app.fail, "no").exception(LONG)
    terminal("pipe-pane", "-o", f"cat >{tmp_path}/raw")
    start(terminal, "NO_COLOR=1 ")
    terminal.press("5")
    terminal.see(r"> .*buried +fail")
    terminal.press("q")
    restored(terminal, 0)
    sent = re.findall(rb"\x1b\[([0-9;]*)m", (tmp_path / "raw").read_bytes())
    numbers = {int(number or 0) for each in sent for number in each.split(b";")}
    assert 7 in numbers, "the row under the cursor is in reverse"
    assert numbers <= {0, 1, 2, 3, 4, 7, 22, 23, 24, 27, 39, 49}


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("HUP", 129), ("INT", 0)])
def test_signals_give_the_terminal_back(client, app, terminal, tmp_path, name, code):
    start(terminal, "sh -c 'echo $$ >pid; exec \"$@\"' sh ")
    terminal.see(r"\[1 Tasks 0\]")
    terminal("run-shell", f"kill -{name} $(cat {tmp_path}/pid)")
    restored(terminal, code)


def test_it_stays_while_its_server_is_away(app, said, terminal):
    with Redis() as server:
        terminal.type(f"export REVOLVE_URL={server.url}")
        start(terminal)
        terminal.press("4")
        terminal.see(r"no worker: start one with revolve worker")
        server.stop()
        fits(terminal.see(r" redis at 127\.0\.0\.1:\d+: nothing listens there"))
        terminal.press("p")
        terminal.see(r"no function is chosen")
        server.start()
        terminal.see(r" redis://127\.0\.0\.1:\d+ answers again")
        terminal.press("q")
        restored(terminal, 0)


def test_no_server_is_one_line(said, terminal):
    terminal.type("export REVOLVE_URL=redis://127.0.0.1:1")
    start(terminal)
    terminal.see(r"revolve top: .*127\.0\.0\.1:1")
    restored(terminal, 1)


# ---------------------------------------------------------------- what it is made of


def test_lines_are_as_wide_as_the_screen_whatever_stands_in_them():
    progress = Progress(0.5, message="中文" * 30)
    tasks = [TaskState("i" * 32, "m:" + "f" * 50, "q", "w" * 30, "running", 1, progress, 1.0), TaskState("")]
    for page in (tables.Tasks(), tables.Failures()):
        for width in (40, 78, 130, 200):
            sizes = tables.widths(page.columns, width)
            from rich.cells import cell_len

            for task in tasks:
                text = tables.line(page.columns, sizes, page.cells(task, 9.0))
                assert cell_len(text) == max(width, cell_len(text) if width == 40 else 0)


def test_what_is_searched_for_is_found_anywhere_in_any_case():
    page = tables.Tasks()
    tasks = [
        TaskState("1", "shop:Resize", "mails", "vm:1", "running"),
        TaskState("2", "shop:clean", "mails", "vm:2", "lost"),
    ]
    assert [task.id for task in tables.searched(page, tasks, "resize MAILS")] == ["1"]
    assert [task.id for task in tables.searched(page, tasks, "lost")] == ["2"]
    assert tables.searched(page, tasks, " ") is tasks
    assert tables.searched(page, tasks, "resize lost") == []


def test_rates_and_failures():
    now = 100.0
    tasks = [TaskState(str(n), "m:f", "q", "w", "succeeded", 1, None, 1.0, now - n) for n in range(20)]
    tasks += [TaskState("bad", "m:g", "q", "w", state, 1, None, 1.0, now) for state in sorted(ENDS)]
    assert tables.queue_rates(tasks, now)["q"] == pytest.approx(1.5)
    assert [task.state for task in tables.failures(tasks)] == ["failed", "lost"]
    found = {each.name: each for each in tables.functions(tasks, [], {}, now)}
    assert (found["m:f"].ended, found["m:f"].rate, found["m:g"].failed) == (20, pytest.approx(1.1), 2)


def test_no_name_of_ours_hides_one_of_textuals():
    """A widget's `_task` is its own: to use the name breaks the program, and nothing else says so."""
    from textual.app import App
    from textual.screen import ModalScreen, Screen
    from textual.widget import Widget

    from revolve_assistant.views.top import app, detail, rows

    meant = {"BINDINGS", "CSS", "ENABLE_COMMAND_PALETTE", "animation_level", "compose", "render_line"}
    for ours, base in [(app.Top, App), (detail.Detail, Screen), (rows.Rows, Widget), (app.Confirm, ModalScreen)]:
        source = "".join(inspect.getsource(each) for each in base.__mro__ if each.__module__.startswith("textual"))
        theirs = set(re.findall(r"self\.(\w+)", source)) | set(dir(base))
        own = set(re.findall(r"def (\w+)|self\.(\w+)(?:: [^=]+)? = ", inspect.getsource(ours)))
        names = {name for pair in own for name in pair if name and not name.startswith("__")}
        assert names & theirs <= meant, ours
