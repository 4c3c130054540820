"""What a callable says in its own ways becomes events, and nothing of that stays behind."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.event import Progress
from revolve_assistant.running import capture as module
from revolve_assistant.running.capture import EVENT_BYTES, PARTIAL, capturing

Events = list[tuple[Any, ...]]


def collect(work: Callable[[], object], **settings: Any) -> Events:
    events: Events = []
    with capturing(lambda *args: events.append(args), **settings):
        work()
    return events


def in_threads(*works: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def texts(events: Events, name: str = "output") -> list[str]:
    return [event[1] for event in events if event[0] == name]


@contextlib.contextmanager
def plain_root() -> Iterator[logging.Logger]:
    """The root logger as a fresh interpreter has it (pytest adds handlers of its own, after fixtures)."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def state() -> tuple[object, ...]:
    root = logging.getLogger()
    hooks = warnings.showwarning, logging.basicConfig, logging.StreamHandler.emit, *sys.meta_path
    return sys.stdout, sys.stderr, hooks, root.level, *root.handlers


def test_one_print_is_one_event() -> None:
    def work() -> None:
        print("a", "b", 3)
        print("to err", file=sys.stderr)
        sys.stdout.write("two\nlines\n")

    assert collect(work) == [("output", "a b 3\n"), ("error_output", "to err\n"), ("output", "two\nlines\n")]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=50)))
def test_the_texts_joined_are_what_was_written(written: list[str]) -> None:
    events = collect(lambda: [sys.stdout.write(text) for text in written])
    assert "".join(texts(events)) == "".join(written)
    assert all(text.endswith("\n") for text in texts(events)[:-1])
    assert "" not in texts(events)


def test_an_unfinished_line_is_sent_when_long_and_at_the_end() -> None:
    events = collect(lambda: [sys.stdout.write("x") for _ in range(PARTIAL + 10)])
    assert [len(text) for text in texts(events)] == [PARTIAL + 1, 9]


def test_flush_makes_an_unfinished_line_live_but_not_each_one() -> None:
    events: Events = []
    with capturing(lambda *args: events.append(args)):
        print("token", end="", flush=True)
        assert events == [("output", "token")]
        for _ in range(20):
            print(".", end="", flush=True)
        assert len(events) < 15
    assert "".join(texts(events)) == "token" + "." * 20


@pytest.mark.parametrize("unit", ["x", "line of text\n", "é", "🙂"])
def test_a_huge_write_is_split(unit: str) -> None:
    text = unit * (5_000_000 // len(unit))
    sent = texts(collect(lambda: sys.stdout.write(text)))
    assert "".join(sent) == text
    assert max(len(piece.encode()) for piece in sent) <= EVENT_BYTES
    if unit.endswith("\n"):
        assert all(piece.endswith("\n") for piece in sent)


def test_what_cannot_be_encoded_is_escaped() -> None:
    assert texts(collect(lambda: print("bad \udcff name"))) == ["bad \\udcff name\n"]
    for piece in texts(collect(lambda: sys.stdout.write("\udcff" * 300_000))):
        assert len(piece.encode()) <= EVENT_BYTES


def test_bytes_are_decoded_across_writes() -> None:
    def work() -> None:
        euro = "€\n".encode()
        sys.stdout.buffer.write(euro[:1])
        sys.stdout.buffer.write(memoryview(euro)[1:])
        sys.stdout.buffer.write(b"\xff\n")
        sys.stdout.buffer.write(b"\xe2")

    assert "".join(texts(collect(work))) == "€\n\ufffd\n\ufffd"


def test_it_is_a_text_stream() -> None:
    def work() -> None:
        assert sys.stdout.encoding == "utf-8"
        assert not sys.stdout.isatty()
        assert sys.stdout.writable()
        assert not sys.stdout.readable()
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        sys.stdout.writelines(["a\n", "b\n"])
        wrapped = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        wrapped.write("wrapped\n")
        wrapped.flush()
        del wrapped  # closes what it wraps: must not hurt
        with pytest.raises(TypeError):
            sys.stdout.write(b"bytes")  # type: ignore[arg-type]
        sys.stdout.close()
        print("still here")

    with open(os.devnull, "w") as real, contextlib.redirect_stdout(real), capturing(lambda *_: None):
        assert sys.stdout.fileno() == real.fileno()
    assert "".join(texts(collect(work))) == "a\nb\nwrapped\nstill here\n"


def test_without_a_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert texts(collect(lambda: print("x"))) == ["x\n"]
    assert sys.stdout is None


def test_writes_of_other_threads_count() -> None:
    events = collect(lambda: in_threads(*[lambda: [print("line", n) for n in range(50)]] * 4))
    assert "".join(texts(events)).count("line") == 200


def test_only_one_thread_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    def other() -> None:
        print("not mine")
        logging.getLogger("other").error("not mine either")

    def work() -> None:
        in_threads(other)
        print("mine")

    assert collect(work, thread_ident=threading.get_ident()) == [("output", "mine\n")]
    assert capsys.readouterr().out == "not mine\n"


def test_captures_of_two_threads_end_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    entered, second_entered, first_left = threading.Event(), threading.Event(), threading.Event()
    events: dict[str, Events] = {"first": [], "second": []}

    def first() -> None:
        with capturing(lambda *args: events["first"].append(args), thread_ident=threading.get_ident()):
            print("one")
            entered.set()
            second_entered.wait(10)
        first_left.set()

    def second() -> None:
        entered.wait(10)
        with capturing(lambda *args: events["second"].append(args), thread_ident=threading.get_ident()):
            second_entered.set()
            first_left.wait(10)
            print("two")
            logging.getLogger("second").warning("two")

    in_threads(first, second)
    assert events == {
        "first": [("output", "one\n")],
        "second": [("output", "two\n"), ("log", "WARNING", "second", "two")],
    }
    assert state() == before
    print("usual")
    assert capsys.readouterr().out == "usual\n"


def test_an_unconfigured_root_is_opened_to_info() -> None:
    def work() -> None:
        logging.getLogger("lib").info("hello %s", "you")
        logging.getLogger("lib").debug("no")

    with plain_root() as root:
        assert collect(work) == [("log", "INFO", "lib", "hello you")]
        assert root.level == logging.WARNING


def test_a_configured_root_keeps_its_level() -> None:
    stream = io.StringIO()
    with plain_root() as root:
        root.addHandler(logging.StreamHandler(stream))
        events = collect(lambda: logging.log(20, "no") or logging.log(40, "yes"))  # type: ignore[func-returns-value]
        assert events == [("log", "ERROR", "root", "yes")]
    assert stream.getvalue() == "yes\n"  # the handler of before hears it as well


def test_basic_config_in_the_callable_works_and_doubles_nothing() -> None:
    def work() -> None:
        logging.basicConfig(level=logging.DEBUG)
        logging.debug("once")

    with plain_root() as root:
        assert collect(work) == [("log", "DEBUG", "root", "once")]
        assert root.level == logging.DEBUG  # what the callable sets stays
        assert len(root.handlers) == 1


def test_a_logger_that_does_not_propagate_is_heard() -> None:
    logger = logging.getLogger("closed")
    logger.propagate = False

    def work() -> None:
        logger.addHandler(logging.StreamHandler())
        logger.warning("heard")

    try:
        with plain_root():
            assert collect(work) == [("log", "WARNING", "closed", "heard")]
    finally:
        logger.handlers.clear()
        logger.propagate = True


def test_tracebacks_and_bad_records() -> None:
    def work() -> None:
        try:
            raise ValueError("inside")
        except ValueError:
            logging.exception("it failed")
        logging.error("%d", "no number")

    with plain_root():
        ((*_, cut),) = collect(lambda: logging.error("x" * 10_000_000))
        log, *rest = collect(work)
    assert len(cut) < EVENT_BYTES
    assert log[:3] == ("log", "ERROR", "root")
    assert log[3].startswith("it failed\nTraceback")
    assert log[3].endswith("ValueError: inside")
    assert "Logging error" in "".join(texts(rest, "error_output"))


def test_warnings_become_log() -> None:
    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)

    ((name, level, logger, text),) = collect(work)
    assert (name, level, logger) == ("log", "WARNING", "py.warnings")
    assert "DeprecationWarning: old" in text
    assert not text.endswith("\n")


def test_an_emit_that_prints_and_logs_does_not_loop(capsys: pytest.CaptureFixture[str]) -> None:
    events: Events = []

    def emit(*args: Any) -> None:
        events.append(args)
        print("emitting", args[0])
        logging.getLogger("emit").error("emitting")
        warnings.warn("emitting", stacklevel=1)

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with capturing(emit):
            print("x")
            logging.error("y")
    assert events == [("output", "x\n"), ("log", "ERROR", "root", "y")]
    assert "emitting output" in capsys.readouterr().out


def test_everything_is_restored_whatever_happens() -> None:
    before = state()
    collect(lambda: setattr(sys, "stdout", io.StringIO()))  # left behind
    assert state() == before
    with pytest.raises(ZeroDivisionError):
        collect(lambda: 1 / 0)
    assert state() == before
    for text in ("what emit raises, print raises\n", "and so does leaving, for the rest of a line"):
        with pytest.raises(OSError, match="no pipe"), capturing(broken):
            sys.stdout.write(text)
        assert state() == before
    assert (module._active, module._undo) == ([], [])


def broken(*_: object) -> None:
    raise OSError("no pipe")


def test_what_was_left_behind_writes_to_the_real_stream(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[Any] = []
    assert collect(lambda: kept.append((sys.stdout, logging.StreamHandler(sys.stderr)))) == []
    stream, handler = kept[0]
    print("late", file=stream)
    handler.emit(logging.LogRecord("n", logging.ERROR, "f", 1, "late too", (), None))
    assert capsys.readouterr() == ("late\n", "late too\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_not_the_task() -> None:
    script = """
import os
from revolve_assistant.running.capture import capturing
events = []
with capturing(lambda *args: events.append(args)):
    if not (pid := os.fork()):
        print('from the fork', flush=True)
        os._exit(1 if events else 0)
    assert os.waitpid(pid, 0)[1] == 0
    print('from the task')
assert events == [('output', 'from the task\\n')], events
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("from the fork\n", "")


def test_works_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.std", types.ModuleType("tqdm.std"))  # half imported
    assert texts(collect(lambda: print("x"))) == ["x\n"]


@pytest.mark.parametrize("early", [True, False], ids=["imported before", "imported within"])
def test_tqdm_bars_become_progress(early: bool) -> None:
    pytest.importorskip("tqdm")
    if early:
        sys.modules["tqdm"].tqdm.monitor_interval = 0
    else:
        for name in [name for name in sys.modules if name.split(".")[0] == "tqdm"]:
            del sys.modules[name]

    def work() -> None:
        tqdm = importlib.import_module("tqdm").tqdm
        tqdm.monitor_interval = 0  # no thread
        for _ in tqdm(range(4), desc="steps", mininterval=0, miniters=1):
            pass
        tqdm.write("a line")

    events = collect(work)
    progress = [event[1] for event in events if event[0] == "progress"]
    assert progress[0] == Progress(0.0, 0.0, 4.0, "steps")
    assert progress[-1] == Progress(1.0, 4.0, 4.0, "steps")
    assert len(progress) >= 5
    assert texts(events, "error_output") == []
    assert texts(events) == ["a line\n"]
    stream = io.StringIO()
    for _ in importlib.import_module("tqdm").tqdm(range(3), file=stream):
        pass
    assert "3/3" in stream.getvalue()  # as ever, afterwards


def test_nested_closed_and_odd_bars() -> None:
    std = pytest.importorskip("tqdm.std")
    std.tqdm.monitor_interval = 0  # no thread

    def work() -> None:
        for _ in std.trange(2, desc="outer", leave=False, disable=None):
            for _ in std.tqdm(range(3), "inner", 3, False, None, mininterval=0, miniters=1):
                pass
        bar = std.tqdm(unit="B")  # no total
        bar.update(7)
        bar.close()
        other = io.StringIO()
        for _ in std.tqdm(range(2), file=other):
            pass
        assert "2/2" in other.getvalue()  # a file of its own stays its own

    events = collect(work)
    progress = [event[1] for event in events]
    assert {event[0] for event in events} == {"progress"}
    assert Progress(0.0, 0.0, 2.0, "outer · inner 2/3") in progress
    assert Progress(1.0, 2.0, 2.0, "outer") in progress
    assert progress[-1] == Progress(None, 7.0, None, None)
