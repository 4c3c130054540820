"""`revolve run` as its users run it: real processes, real pipes, real signals, a real terminal."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

REVOLVE = [sys.executable, "-m", "revolve_assistant.cli"]

WORK = '''
import logging, os, signal, sys, time
from pathlib import Path
from revolve_assistant import ask, current_task, track
def up(text):
    return text.upper()
def double(value):
    return value * 2
def nothing(text):
    pass
def talk(text):
    print("one", text)
    print("\\ttwo  ", end="")
    print("\\x1b[31mred\\x1b[0m", flush=True)
    print("to stderr", file=sys.stderr)
    logging.getLogger("work").warning("careful")
    return "end"
def check(text):
    if text.startswith("bad"):
        raise ValueError(f"{text} is bad\\nsecond line")
    return text
def die(text):
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return text
def twice(text):
    """Fails at the first attempt."""
    flag = Path(f"{text}.tried")
    if not flag.exists():
        flag.touch()
        raise OSError("not yet")
    return text
def hold(text):
    """Says that it began, then stays until told to stop."""
    if text != "hold":
        return text
    print("holding", flush=True)
    while True:
        time.sleep(0.01)
def hold_or_fail(text):
    """`bad` fails once `hold` runs."""
    if text == "hold":
        Path("runs").touch()
        return hold(text)
    while not Path("runs").exists():
        time.sleep(0.001)
    raise ValueError(text)
def stubborn(text):
    print("holding", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
def after(text):
    """`first` ends after all others have."""
    if text == "first":
        while len(list(Path().glob("*.done"))) < 3:
            time.sleep(0.001)
    print("said by", text)
    Path(f"{text}.done").touch()
    return text
def letters(text):
    for letter in text:
        yield letter
def steps(text):
    for _ in track(range(30), "stepping"):
        time.sleep(0.02)
    return text
def barrier(text):
    """Stays until `go` is there."""
    for _ in track(range(2), "waiting"):
        while not Path("go").exists():
            time.sleep(0.01)
    print("printed by", text)
    return f"result of {text}"
def greedy(text):
    held = bytearray(400 << 20) if text == "much" else b""
    if held:
        current_task().receive()  # until it is killed: the supervisor looks now and then
    return len(held)
async def later(text):
    import asyncio
    await asyncio.sleep(0.01)
    return text
def asks(text):
    return ask("may I?", timeout=0.1)
def odd(text):
    class Odd:
        def __reduce__(self):
            return (set, ([1],))
    return Odd()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("REVOLVE_")}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(folder: Path) -> Run:
    def run(*words: str, input: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*REVOLVE, "run", *words],
            cwd=folder,
            env=environment(),
            input=input,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )

    return run


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts `revolve run …` with pipes, in a process group of its own as a shell does; it is gone in the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*REVOLVE, "run", *words],
            cwd=folder,
            env=environment(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_for(stream: IO[str] | None, text: str) -> list[str]:
    """The lines read up to and including one that is `text`."""
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line.rstrip("\n"))
        if lines[-1] == text:
            return lines
    raise AssertionError(f"no line {text!r} came, but {lines}")


# --- results and output


def test_each_item_is_one_argument_and_each_result_one_line(run: Run) -> None:
    done = run("--no-bars", "work:up", "a", "b c", "*", "")
    assert sorted(done.stdout.split("\n")) == ["", "", "*", "A", "B C"]
    assert (done.returncode, done.stderr) == (0, "")


def test_lines_of_stdin_are_items(run: Run) -> None:
    names = [f"file {number}  .txt" for number in range(300)]
    done = run("--no-bars", "-k", "work:up", input="\n".join(names))
    assert done.stdout.splitlines() == [name.upper() for name in names]


def test_file_names_that_are_no_text_come_back_whole(run: Run) -> None:
    name = os.fsdecode(b"caf\xe9")
    done = run("--no-bars", "work:hold", input=f"{name}\n")
    assert done.stdout == f"{name}\n"


def test_no_items_is_no_error(run: Run) -> None:
    done = run("work:up")
    assert (done.returncode, done.stdout) == (0, "")


def test_none_prints_nothing(run: Run) -> None:
    assert run("--no-bars", "work:nothing", "a").stdout == ""


def test_what_a_task_prints_is_untouched(run: Run) -> None:
    done = run("--no-bars", "work:talk", "x")
    assert done.stdout == "one x\n\ttwo  \x1b[31mred\x1b[0m\nend\n"
    assert done.stderr.splitlines() == ["to stderr", "WARNING:work:careful"]


def test_tag_begins_every_line_with_the_item(run: Run) -> None:
    done = run("--no-bars", "--tag", "work:talk", "x y")
    assert [line.split("\t")[0] for line in (done.stdout + done.stderr).splitlines()] == ["x y"] * 5


def test_progress_is_plain_lines_on_stderr_when_there_is_no_terminal(run: Run) -> None:
    done = run("work:steps", "item-7")
    assert done.stdout == "item-7\n"
    assert "item-7" in done.stderr
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_results_come_in_completion_order(run: Run) -> None:
    done = run("--no-bars", "-j", "2", "work:after", "first", "a", "b", "c")
    lines = done.stdout.splitlines()
    assert lines.index("a") < lines.index("b") < lines.index("first")


def test_keep_order_orders_output_and_results(run: Run) -> None:
    done = run("--no-bars", "-j", "2", "-k", "work:after", "first", "a", "b", "c")
    assert done.stdout.splitlines() == [line for item in ["first", "a", "b", "c"] for line in (f"said by {item}", item)]


def test_what_a_generator_yields_is_written_as_it_comes(run: Run) -> None:
    assert run("--no-bars", "work:letters", "abc").stdout == "a\nb\nc\n"


def test_results_come_while_stdin_is_still_open(start: Start) -> None:
    process = start("--no-bars", "work:up", stdin=subprocess.PIPE)
    assert process.stdin is not None
    for word in ("a", "b", "c"):
        process.stdin.write(f"{word}\n")
        process.stdin.flush()
        wait_for(process.stdout, word.upper())
    process.stdin.close()
    assert process.wait() == 0


def test_coroutines_run_too(run: Run) -> None:
    assert run("--no-bars", "-k", "work:later", "a", "b").stdout == "a\nb\n"


def test_json_items_pass_values(run: Run) -> None:
    done = run("--no-bars", "-k", "--json-items", "work:double", '"a"', "[1, 2]", "3")
    assert done.stdout.splitlines() == ["aa", "[1, 2, 1, 2]", "6"]
    done = run("--no-bars", "-k", "--json-items", "work:double", input='4\n{\n"b"\n')
    assert done.stdout.splitlines() == ["8", "bb"]
    assert done.returncode == 1
    assert "not JSON" in done.stderr


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_one_object_a_line_for_each_event(run: Run) -> None:
    done = run("--no-bars", "--json", "-k", "work:talk", "x")
    found = events(done.stdout)
    assert [event["event"] for event in found][:1] == ["started"]
    assert [event["event"] for event in found][-1:] == ["succeeded"]
    assert found[-1]["result"] == "end"
    assert {event["item"] for event in found} == {"x"}
    assert len({event["task"] for event in found}) == 1
    assert "".join(event["text"] for event in found if event["event"] == "output").startswith("one x\n\ttwo")
    assert done.stderr == ""


def test_json_says_failures_and_shows_what_is_not_json_as_repr(run: Run) -> None:
    last = {event["item"]: event for event in events(run("--no-bars", "--json", "work:check", "a", "bad").stdout)}
    assert last["a"]["event"] == "succeeded"
    assert last["bad"]["event"] == "failed"
    assert last["bad"]["error"].startswith("ValueError: bad is bad")
    assert events(run("--no-bars", "--json", "work:odd", "a").stdout)[-1]["result"] == "{1}"


# --- failures


def test_failures_make_code_1_and_a_table(run: Run) -> None:
    done = run("--no-bars", "work:check", "a", "bad one", "b", "bad two")
    assert done.returncode == 1
    assert sorted(done.stdout.split()) == ["a", "b"]
    table = done.stderr.splitlines()
    assert table[0] == "2 of 4 failed:"
    assert sorted(" ".join(line.split()) for line in table[2:]) == [
        "bad one raised ValueError: bad one is bad",
        "bad two raised ValueError: bad two is bad",
    ]


def test_traceback_shows_where(run: Run) -> None:
    done = run("--no-bars", "--traceback", "work:check", "bad")
    assert 'work.py", line' in done.stderr
    assert "in check" in done.stderr


def test_a_death_is_one_failure_and_the_others_go_on(run: Run) -> None:
    done = run("--no-bars", "-j", "2", "work:die", "a", "die", "b", "c")
    assert sorted(done.stdout.split()) == ["a", "b", "c"]
    assert done.returncode == 1
    assert re.search(r"die +died +TaskLost: ", done.stderr)
    assert "SIGKILL" in done.stderr


def test_retries(run: Run) -> None:
    done = run("--no-bars", "--retries", "2", "work:twice", "x")
    assert (done.returncode, done.stdout) == (0, "x\n")
    assert "attempt 1 failed" in done.stderr
    assert "not yet" in done.stderr


def test_timeout(run: Run) -> None:
    done = run("--no-bars", "--timeout", "0.2", "work:hold", "hold", "a")
    assert done.returncode == 1
    assert sorted(done.stdout.split()) == ["a", "holding"]
    assert re.search(r"hold +timed out +TaskTimeout", done.stderr)


def test_stall(run: Run) -> None:
    done = run("--no-bars", "--stall", "0.2", "work:hold", "hold")
    assert re.search(r"hold +stalled +TaskStalled", done.stderr)


def test_memory_limit(run: Run) -> None:
    done = run("--no-bars", "-j", "1", "--memory-limit", "200M", "work:greedy", "much", "little")
    assert done.stdout == "0\n"
    assert re.search(r"much +died +TaskLost: .*200 MiB", done.stderr)


def test_a_question_that_nobody_answers_is_said(run: Run) -> None:
    done = run("--no-bars", "work:asks", "item")
    assert "item asks 'may I?': nobody answers under `revolve run`" in done.stderr
    assert re.search(r"item +raised +TimeoutError", done.stderr)


def test_halt_stops_at_the_first_failure(run: Run) -> None:
    items = ["a", "bad", *map(str, range(5000))]
    done = run("--no-bars", "-j", "1", "--halt", "work:check", input="\n".join(items))
    assert done.returncode == 1
    assert "stopped at the failure of bad" in done.stderr
    not_started = re.search(r"(\d+) not started", done.stderr)
    assert not_started is not None
    assert int(not_started[1]) > 4000


def test_halt_cancels_what_runs(run: Run) -> None:
    done = run("--no-bars", "-j", "2", "--halt", "work:hold_or_fail", "hold", "bad")
    assert done.returncode == 1
    assert "0 succeeded, 1 failed, 1 cancelled, 0 not started" in done.stderr


# --- many items


def test_an_endless_stdin_takes_no_memory(start: Start) -> None:
    yes = subprocess.Popen(["yes", "x" * 100], stdout=subprocess.PIPE)
    assert yes.stdout is not None
    try:
        process = start("--no-bars", "work:up", stdin=yes.stdout.fileno())
        assert process.stdout is not None
        sizes = []
        for number, _ in enumerate(process.stdout):
            if number in (2000, 12000):
                sizes.append(resident(process.pid))
            if number == 12000:
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait() == 143
        assert sizes[1] - sizes[0] < 8 << 20
    finally:
        yes.kill()
        yes.wait()
        yes.stdout.close()


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_broken_pipe_ends_quietly(folder: Path) -> None:
    command = f"yes | {shlex.join(REVOLVE)} run --no-bars work:up | head -n 3; echo ${{PIPESTATUS[1]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("Y\nY\nY\n141\n", "")


def test_a_full_disk_is_said(folder: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*REVOLVE, "run", "--no-bars", "work:up", "a"],
            cwd=folder,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


# --- log and resume


def test_log_has_a_line_for_each_item(run: Run, folder: Path) -> None:
    run("--no-bars", "--log", "log", "work:check", "a b", "bad")
    found = {entry["item"]: entry for entry in events((folder / "log").read_text())}
    assert found["a b"]["state"] == "succeeded"
    assert found["a b"]["error"] is None
    assert found["bad"]["state"] == "failed"
    assert found["bad"]["error"].startswith("ValueError: bad is bad")
    for entry in found.values():
        assert entry["attempt"] == 1
        assert entry["seconds"] >= 0
        assert abs(entry["time"] - time.time()) < 60


def test_resume_runs_what_has_not_succeeded(run: Run) -> None:
    run("--no-bars", "--log", "log", "work:check", "a", "bad", "b")
    done = run("--no-bars", "--log", "log", "--resume", "work:check", input="a\nbad\nb\nc\n")
    assert done.stdout == "c\n"
    assert "2 skipped" in done.stderr
    assert "1 of 2 failed" in done.stderr


def test_resume_after_kill_9(start: Start, run: Run, folder: Path) -> None:
    words = ["--no-bars", "-j", "1", "--log", "log", "--resume", "work:hold"]
    process = start(*words, "a", "b", "hold", "c")
    assert wait_for(process.stdout, "holding") == ["a", "b", "holding"]
    process.kill()
    process.wait()
    with (folder / "log").open("ab") as log:
        log.write(b'{"item": "c", "state": "succee')  # a line torn by a kill
    (folder / "work.py").write_text(WORK.replace('!= "hold"', '!= "nothing"'))
    done = run(*words, "a", "b", "hold", "c")
    assert done.stdout.splitlines() == ["hold", "c"]
    assert done.returncode == 0
    again = run(*words, "a", "b", "hold", "c")
    assert (again.returncode, again.stdout) == (0, "")


# --- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_everything_and_says_what_ended_how(start: Start, number: int, code: int) -> None:
    process = start("--no-bars", "-j", "2", "work:hold", "a", "bad", *["hold"] * 2, *map(str, range(1000)))
    assert process.stdout is not None
    assert process.stderr is not None
    wait_for(process.stdout, "holding")
    wait_for(process.stdout, "holding")
    process.send_signal(number)
    assert process.wait() == code
    said = process.stderr.read()
    assert "2 succeeded, 0 failed, 2 cancelled, 1000 not started" in said
    assert "Traceback" not in said


def test_the_second_ctrl_c_stops_at_once(start: Start) -> None:
    process = start("--no-bars", "-j", "1", "work:stubborn", "a", "b")
    assert process.stderr is not None
    wait_for(process.stdout, "holding")
    process.send_signal(signal.SIGINT)
    process.stderr.readline()  # "stopping: …"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert time.monotonic() - began < 4.0


# --- another process looks at a task


def test_stack_shows_where_a_running_task_is(start: Start, folder: Path) -> None:
    process = start("--no-bars", "--json", "work:hold", "hold")
    assert process.stdout is not None
    task = ""
    for line in process.stdout:
        event = json.loads(line)
        task = event["task"]
        if event["event"] == "output":
            break
    command = [*REVOLVE, "stack", task]
    while True:  # it may still be about to return from what was heard
        seen = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        assert (seen.returncode, seen.stderr) == (0, "")
        assert "in hold" in seen.stdout
        if "time.sleep(0.01)" in seen.stdout:
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait() == 130
    gone = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert gone.returncode == 1
    assert gone.stdout == ""
    assert task in gone.stderr


# --- a terminal


@pytest.fixture
def terminal(open_terminal: Callable[[Path], Any], folder: Path) -> Any:
    return open_terminal(folder)


RUN = shlex.join([*REVOLVE, "run"])


def test_bars_stay_below_the_output(terminal: Any, folder: Path) -> None:
    terminal.type(f"clear; {RUN} -j 2 work:barrier alpha 'be ta' gamma; echo code=$?")
    screen = terminal.see(r"alpha +━(.|\n)*be ta +━|be ta +━(.|\n)*alpha +━")  # which begins first is the machine's
    assert "gamma" not in screen  # it waits: no bar yet
    (folder / "go").touch()
    screen = terminal.see(r"code=\d")
    assert "code=0" in screen
    lines = [line.rstrip() for line in screen.splitlines()]
    for item in ("alpha", "be ta", "gamma"):
        assert lines.count(f"printed by {item}") == 1
        assert lines.count(f"result of {item}") == 1
    assert "\x1b" not in screen


def test_ctrl_c_at_the_terminal(terminal: Any) -> None:
    terminal.type(f"clear; {RUN} -j 2 work:hold hold hold a b c; echo code=$?")
    terminal.see(r"holding(.|\n)*holding")
    terminal("send-keys", "C-c")
    screen = terminal.see(r"code=\d+")
    assert "code=130" in screen
    assert "0 succeeded, 0 failed, 2 cancelled, 3 not started" in screen
    assert "Traceback" not in screen


def test_ctrl_c_twice_gives_the_terminal_back(terminal: Any) -> None:
    terminal.type(f"clear; {RUN} -j 1 work:stubborn a b; echo code=$?")
    terminal.see("holding")
    terminal("send-keys", "C-c")
    terminal.see("stopping")
    terminal("send-keys", "C-c")
    assert "code=130" in terminal.see(r"code=\d+")
    assert terminal.ask("cursor_flag") == "1"
