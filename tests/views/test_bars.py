"""Bars on a real pseudo-terminal, lines everywhere else."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from revolve_assistant.event import Progress
from revolve_assistant.views import bars as module
from revolve_assistant.views.bars import Bars, PlainBars, is_live, local_track, open_bars


class Terminal:
    """A pseudo-terminal that remembers what was written to it."""

    def __init__(self, columns: int = 80, lines: int = 24, encoding: str = "utf-8") -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.file = open(slave, "w", encoding=encoding)  # noqa: SIM115 - closed in close()
        self.raw = b""
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
                self.raw += data
                self._news.notify_all()
            if not data:
                return

    @property
    def text(self) -> str:
        """What was written, without escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode(self.file.encoding))

    def wait_for(self, wanted: Callable[[str], object]) -> None:
        with self._news:
            assert self._news.wait_for(lambda: wanted(self.text), 10), self.text

    def close(self) -> None:
        self.file.close()
        self._reader.join(10)
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    made: list[Terminal] = []

    def make(*args: int, **settings: str) -> Terminal:
        made.append(Terminal(*args, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


# ---------------------------------------------------------------- a terminal


def test_bars_are_drawn_and_vanish(terminal: Callable[..., Terminal]) -> None:
    screen = terminal()
    bars = open_bars(screen.file)
    assert isinstance(bars, Bars)
    with bars:
        bars.add("a", "resizing", total=8)
        bars.add("b", "thinking")
        bars.update("a", Progress(done=2, message="cat.jpg"))
        bars.update("nobody", Progress(0.5))
        bars.overall(1, 3, 2, 1)
        screen.wait_for(lambda text: "resizing" in text and "25%" in text and "2/8 cat.jpg" in text)
        screen.wait_for(lambda text: "thinking" in text and "1/3 done" in text and "2 running, 1 failed" in text)
        bars.line("a line\n")
        bars.done("a", "succeeded")
        bars.done("b", "failed", "ValueError: no")
    screen.wait_for(lambda text: "a line\r\n" in text and "thinking: failed: ValueError: no\r\n" in text)
    screen.wait_for(lambda _: screen.raw.rfind(b"\x1b[?25h") > screen.raw.rfind(b"\x1b[?25l"))  # the cursor is back
    after = screen.text.rpartition("ValueError: no")[2]
    assert "resizing" not in after.strip().splitlines()[-1:]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_every_width_fits(terminal: Callable[..., Terminal], columns: int) -> None:
    screen = terminal(columns, 10)
    with Bars(screen.file) as bars:
        for number in range(50):
            bars.add(number, f"a label that is much too long for this terminal {number}")
            bars.update(number, Progress(0.5, 1, 2, "and a message that is far too long as well"))
        bars.overall(7, 50, 43, 0)
        screen.wait_for(lambda text: "+43 more" in text and "7/50 d" in text)
    for line in re.split(r"[\r\n]+", screen.text):
        assert len(line) <= columns, line


def test_what_tasks_say_does_not_act_on_the_terminal(terminal: Callable[..., Terminal]) -> None:
    screen = terminal()
    with Bars(screen.file) as bars:
        bars.add(1, "\x1b]0;\x07[red]label")
        bars.update(1, Progress(0.1, message="\x1b[2J :smile:"))
        bars.line("out\x1b[2Jput [bold]x[/bold]\nsecond " + "w" * 200)
        screen.wait_for(lambda text: "[red]label" in text and ":smile:" in text and "w" * 200 in text)
    assert b"\x1b]0;" not in screen.raw
    assert b"\x07" not in screen.raw
    assert "out\\x1b[2Jput [bold]x[/bold]\r\nsecond www" in screen.text


def test_no_color(terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = terminal()
    with open_bars(screen.file) as bars:
        bars.add(1, "label")
        bars.update(1, Progress(0.25))
        bars.line("bad", error=True)
        screen.wait_for(lambda text: "25%" in text and "bad" in text)
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9;]*m", screen.raw)


def test_a_terminal_without_unicode(terminal: Callable[..., Terminal]) -> None:
    screen = terminal(encoding="ascii")
    with Bars(screen.file) as bars:
        bars.add(1, "größe")
        bars.update(1, Progress(0.25, message="→"))
        bars.line("naïve")
        screen.wait_for(lambda text: "gr\\xf6\\xdfe" in text and "\\u2192" in text and "na\\xefve" in text)


def test_dumb_terminals_and_closed_files_get_lines(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal()
    assert is_live(screen.file)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_bars(screen.file), PlainBars)
    monkeypatch.setenv("TERM", "xterm")
    closed = io.StringIO()
    closed.close()
    with open_bars(closed) as bars:
        bars.line("nobody reads this")


def test_a_terminal_that_went_away_does_not_hurt(terminal: Callable[..., Terminal]) -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as file:
        with Bars(file, per_second=100) as bars:
            os.close(reader)
            bars.add(1, "label")
            bars.line("x")
            assert bars._painter is not None
            bars._painter.join(10)
            assert not bars._painter.is_alive()
        with pytest.raises(OSError, match="Broken pipe"):
            file.flush()
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), writer)  # so that closing succeeds


def test_many_threads(terminal: Callable[..., Terminal]) -> None:
    screen = terminal()
    with Bars(screen.file, per_second=50) as bars:

        def work(name: int) -> None:
            for number in range(100):
                bars.add((name, number), f"task {name}.{number}")
                bars.update((name, number), Progress(0.5))
                bars.line(f"line {name}.{number}.")
                bars.done((name, number), "succeeded")

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    screen.wait_for(lambda text: text.count("line ") >= 800)
    for name in range(8):
        found = [int(number) for number in re.findall(rf"line {name}\.(\d+)\.", screen.text)]
        assert found == list(range(100))


# ---------------------------------------------------------------- plain lines


def test_plain_lines_are_few_and_never_repeated() -> None:
    file, now = io.StringIO(), [0.0]
    with PlainBars(file, clock=lambda: now[0]) as bars:
        bars.add(1, "one", total=10)
        bars.add(2, "two")
        for step in range(100):
            now[0] = step / 20  # five seconds
            bars.update(1, Progress(done=step // 10))
            bars.update(2, Progress(message="same"))
            bars.overall(0, 2, 2, 0)
        bars.update(3, Progress(0.5))
        bars.done(1, "succeeded")
        bars.done(2, "failed", "ValueError: \x1b[31m no")
        bars.done(3, "failed")
        bars.overall(2, 2, 0, 1)
        bars.line("a \x1b[2Jline\nand another\n")
    lines = file.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("one: ")]) <= 6 + 1
    assert lines[0] == "one: 0% 0/10"
    assert lines.count("two: same") == 1
    assert lines.count("0/2 done, 2 running") == 1
    assert lines[-5:] == [
        "one: succeeded",
        "two: failed: ValueError: \\x1b[31m no",
        "2/2 done, 0 running, 1 failed",
        "a \\x1b[2Jline",
        "and another",
    ]


def test_a_quiet_success_writes_nothing() -> None:
    file = io.StringIO()
    bars = open_bars(file)
    assert isinstance(bars, PlainBars)
    bars.add(1, "one")
    bars.done(1, "succeeded")
    bars.add(2, "two")
    bars.done(2, "succeeded", "42")
    assert file.getvalue() == "two: succeeded: 42\n"


def test_the_default_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with open_bars() as bars:
        bars.line("x")
    assert capsys.readouterr() == ("", "x\n")


def test_an_encoding_that_lacks_characters() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    PlainBars(file).line("naïve")
    assert raw.getvalue() == b"na\\xefve\n"


# ---------------------------------------------------------------- track


def test_track_without_a_terminal_is_the_iterable(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(local_track([1, 2, 3], "x")) == [1, 2, 3]
    assert type(local_track([], "x", 3)) is type(iter([]))
    assert capsys.readouterr() == ("", "")


def test_track_on_a_terminal(terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal()
    monkeypatch.setattr(sys, "stderr", screen.file)
    for _ in local_track(range(3), "outer"):
        assert list(local_track((n for n in range(2)), "inner")) == [0, 1]
        screen.wait_for(lambda text: "outer" in text)
    for _ in local_track(range(3), "broken off"):
        break
    steps = local_track(range(3), "given up")
    next(steps)
    del steps
    screen.wait_for(lambda text: "outer: done: 3/3 in 0." in text and "inner: done: 2 in 0." in text)
    screen.wait_for(lambda text: "broken off: stopped: 0/3" in text)
    assert module._local is None
    assert module._loops == 0
    assert sys.stderr is screen.file


def test_track_is_quick_on_a_terminal(terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal()
    monkeypatch.setattr(sys, "stderr", screen.file)
    began = time.perf_counter()
    assert sum(1 for _ in local_track(range(300_000), "fast")) == 300_000
    assert (time.perf_counter() - began) / 300_000 < 5e-6
    assert screen.text.count("fast") < 100


def test_rich_is_imported_late(tmp_path: Path) -> None:
    code = (
        "import sys, revolve_assistant.views.bars as b; b.open_bars(); b.local_track([]); print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
