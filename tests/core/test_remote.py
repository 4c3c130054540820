"""Exceptions across processes: what comes back, what is printed, and that nothing an exception holds can hurt."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revolve_assistant.errors import CancelSignal, ProtocolError, RemoteError, Retry, TaskLost
from revolve_assistant.wire import remote
from revolve_assistant.wire.remote import RemoteTraceback, pack_error, remote_traceback, unpack_error


def caught(fn, *args):
    try:
        fn(*args)
    except BaseException as error:
        return error
    raise AssertionError("raised nothing")


def throw(error, cause=None):
    if cause is not None:
        raise error from cause
    raise error


def crossed(error):
    return unpack_error(pack_error(error))


def printed(error):
    return "".join(traceback.format_exception(error))


class Plain(Exception):
    pass


class Rich(Exception):
    def __init__(self, message, code=0):
        super().__init__(message)
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")


class Rewording(Exception):
    def __init__(self, code):
        super().__init__(f"failed with {code}")


class Holding(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class Frozen(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


class RudeText(Exception):
    def __str__(self):
        raise SystemExit(3)


class Blocking:
    def __repr__(self):
        raise AssertionError("repr was called")


class RudeReduce(Exception):
    def __reduce__(self):
        raise SystemExit(1)


def refuse_to_load():
    if os.environ.get("REVOLVE_TEST_REFUSES"):
        raise KeyboardInterrupt
    return RudeLoad()


class RudeLoad(Exception):
    def __reduce__(self):
        return (refuse_to_load, ())


# --- what comes back


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", 3),
        KeyError("k"),
        OSError(2, "No such file", "a.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        StopIteration(4),
        ValueError(),
        ValueError(float("nan")),
        Plain("x"),
        Rich("x", code=7),
        Retry("again", after=2.5),
        TaskLost("gone"),
    ],
)
def test_type_args_and_attributes_come_back(error):
    back = crossed(caught(throw, error))
    assert type(back) is type(error)
    assert repr(back.args) == repr(error.args)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(args=st.lists(st.none() | st.integers() | st.text(st.characters()) | st.binary(), max_size=4))
def test_any_args_come_back(args):
    back = crossed(Plain(*args))
    assert type(back) is Plain
    assert back.args == tuple(args)


def test_notes_come_back_once():
    error = ValueError("x")
    error.add_note("first")
    error.add_note("second\nline")
    assert crossed(error).__notes__ == ["first", "second\nline"]
    lost = KeywordOnly(code=1)
    lost.add_note("kept")
    assert crossed(lost).__notes__ == ["kept"]


def test_the_chain_comes_back():
    first = caught(throw, KeyError("first"))
    second = caught(throw, Rich("second", 5), first)
    back = crossed(caught(throw, ValueError("third"), second))
    assert type(back.__cause__) is Rich
    assert back.__cause__.code == 5
    assert back.__context__ is None
    assert type(back.__cause__.__cause__) is KeyError
    assert back.__suppress_context__
    assert isinstance(back.__cause__.__cause__.__cause__, RemoteTraceback)


def test_context_and_its_suppression_come_back():
    def during(hide):
        try:
            raise KeyError("inner")
        except KeyError:
            if hide:
                raise ValueError("outer") from None
            raise ValueError("outer")  # noqa: B904 - the context is meant

    for hide in (False, True):
        back = crossed(caught(during, hide))
        assert type(back.__context__) is KeyError
        assert back.__suppress_context__ is hide
        assert "During handling" in printed(back) if not hide else "KeyError" not in printed(back)
        assert "line" in remote_traceback(back)


def test_one_that_is_cause_and_context_is_one():
    def both():
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    back = crossed(caught(both))
    assert back.__cause__ is back.__context__


def test_groups_come_back():
    group = ExceptionGroup("many", [Rich("a", 1), ExceptionGroup("inner", [caught(throw, KeyError("b"))])])
    group.add_note("noted")
    back = crossed(caught(throw, group))
    assert type(back) is ExceptionGroup
    assert back.exceptions[0].code == 1
    assert type(back.exceptions[1].exceptions[0]) is KeyError
    text = remote_traceback(back)
    for part in ("ExceptionGroup: many (2 sub-exceptions)", "noted", "Rich: a", "KeyError: 'b'", "in throw"):
        assert part in text
    lost = crossed(ExceptionGroup("many", [Holding("a")]))
    assert isinstance(lost, RemoteError)
    assert "Holding: a" in lost.remote_traceback


def test_an_exception_that_guards_its_attributes_comes_back():
    assert type(crossed(Frozen("x"))) is Frozen


# --- what is printed


def test_the_text_is_what_python_prints():
    def both():
        try:
            throw(KeyError("inner"))
        except KeyError as error:
            error.add_note("a note")
            raise ValueError("outer") from error

    error = caught(both)
    assert remote_traceback(crossed(error)) == printed(error)
    assert remote_traceback(error) is None


def test_the_remote_traceback_is_printed_before_the_rest():
    error = caught(throw, ValueError("x"))
    text = printed(crossed(error))
    assert text.index("in throw") < text.index("direct cause") < text.rindex("ValueError: x")
    assert '"""\nTraceback (most recent call last):' in text


def test_frames_of_this_library_are_taken_off_the_top():
    space = {"__name__": "revolve_assistant.running.body"}
    exec("def run(fn, *args):\n    return fn(*args)", space)
    error = caught(space["run"], throw, ValueError("x"))
    error.__traceback__ = error.__traceback__.tb_next  # `caught` stands for nothing here
    text = remote_traceback(crossed(error))
    assert "in throw" in text
    assert "in run" not in text


def test_a_delivered_exception_crosses_again():
    once = crossed(caught(throw, ValueError("x")))
    twice = crossed(caught(throw, once))
    assert type(twice) is ValueError
    assert remote_traceback(twice).count("in throw") >= 1
    assert "in throw" in printed(twice)
    assert pickle.loads(pickle.dumps(RemoteTraceback("text"))).args == ("text",)


# --- what cannot be rebuilt


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (KeywordOnly(code=3), "KeywordOnly", "code 3"),
        (Rewording(3), "Rewording", "failed with 3"),
        (Holding("held"), "Holding", "held"),
        (RudeReduce("r"), "RudeReduce", "r"),
    ],
)
def test_what_cannot_be_rebuilt_is_told(error, name, message):
    error.add_note("noted")
    back = crossed(caught(throw, error))
    assert type(back) is RemoteError
    assert back.type_name == f"{__name__}.{name}"
    assert str(back) == f"{back.type_name}: {message}"
    assert back.__notes__ == ["noted"]
    assert "in throw" in back.remote_traceback
    assert "in throw" in printed(back)
    assert remote_traceback(back) == back.remote_traceback


def test_a_link_that_cannot_be_rebuilt_keeps_its_place():
    back = crossed(caught(throw, ValueError("x"), Holding("held")))
    assert type(back) is ValueError
    assert back.__cause__.type_name == f"{__name__}.Holding"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("x"), "GeneratorExit: x"),
        (CancelSignal("stop"), "revolve_assistant.errors.CancelSignal: stop"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
        (BaseExceptionGroup("g", [SystemExit(1)]), "BaseExceptionGroup: g (1 sub-exception)"),
    ],
)
def test_what_would_end_the_caller_is_only_told(error, message):
    back = crossed(caught(throw, error))
    assert type(back) is RemoteError
    assert str(back) == message
    assert back.type_name == message.partition(":")[0]
    nested = crossed(caught(throw, ValueError("x"), error))
    assert type(nested.__cause__) is RemoteError


def test_unpickling_that_raises_gives_a_remote_error(monkeypatch):
    data = pack_error(RudeLoad("x"))
    monkeypatch.setenv("REVOLVE_TEST_REFUSES", "1")
    got = []
    thread = threading.Thread(target=lambda: got.append(unpack_error(data)))
    thread.start()
    thread.join()
    assert type(got[0]) is RemoteError


def test_a_class_that_is_not_here_gives_a_remote_error():
    data = msgspec.msgpack.decode(pack_error(ValueError("x")))
    data[0][0][3] = b"\x80\x05cno_such_module\nGone\n)R."
    assert type(unpack_error(msgspec.msgpack.encode(data))) is RemoteError
    data[0][0][3] = pickle.dumps(["no exception"])
    assert type(unpack_error(msgspec.msgpack.encode(data))) is RemoteError


# --- bounds


def test_a_cyclic_chain_ends():
    one, two = caught(throw, ValueError("one")), caught(throw, KeyError("two"))
    one.__cause__, two.__cause__ = two, one
    back = crossed(one)
    assert type(back.__cause__) is KeyError
    assert "ValueError" in printed(back)
    itself = ValueError("self")
    itself.__cause__ = itself
    assert type(crossed(itself)) is ValueError


def test_a_deep_chain_is_cut():
    error = ValueError(0)
    for depth in range(1, 10_000):
        newer = ValueError(depth)
        newer.__cause__ = error
        error = newer
    began = time.monotonic()
    back = crossed(error)
    assert time.monotonic() - began < 1
    assert back.args == (9_999,)
    assert len(list(remote._walk(back, 100))) <= remote.MAX_LINKS + 1
    assert "left out" in remote_traceback(back)


def test_a_huge_message_is_cut_at_both_ends():
    began = time.monotonic()
    data = pack_error(Plain("start" + "x" * 100_000_000 + "end"))
    assert time.monotonic() - began < 2
    assert len(data) < 300_000
    back = unpack_error(data)
    assert type(back) is RemoteError
    assert "start" in str(back)
    assert str(back).endswith("end")


def test_pickles_share_the_limit():
    error = Plain("a" * 1000)
    error.__cause__ = Plain("b" * 1000)
    assert type(crossed(error).__cause__) is Plain
    back = unpack_error(pack_error(error, limit=1500))
    assert type(back) is Plain
    assert type(back.__cause__) is RemoteError
    assert type(unpack_error(pack_error(error, limit=0))) is RemoteError


def test_wide_nested_groups_are_bounded():
    group = ExceptionGroup("g", [ValueError(i) for i in range(30)])
    for _ in range(4):
        group = ExceptionGroup("g", [group] * 30)
    began = time.monotonic()
    assert len(pack_error(group)) < 400_000
    assert time.monotonic() - began < 5


def test_deep_recursion_is_cut():
    def down(n):
        return down(n + 1) if n % 2 else other(n + 1)

    def other(n):
        return down(n + 1)

    back = crossed(caught(down, 0))
    assert type(back) is RecursionError
    assert "frames left out" in remote_traceback(back)
    assert len(remote_traceback(back)) <= remote.MAX_TEXT + 100


def test_no_repr_of_a_users_class_is_called():
    for error in (
        Plain(Blocking()),
        Plain(1, Blocking()),
        Plain([Blocking()]),
        KeyError(Blocking()),
        OSError(1, Blocking()),
    ):
        error.add_note("n")
        text = remote_traceback(crossed(error))
        assert "object" in text
        assert "repr was called" not in text
    odd = Plain("x")
    odd.__notes__ = [Blocking(), 3]
    assert "3" in remote_traceback(crossed(odd))
    odd.__notes__ = Blocking()
    assert type(crossed(odd)) is Plain


def test_a_text_that_raises_is_said():
    assert "message unavailable: __str__ raised SystemExit" in remote_traceback(crossed(RudeText("t")))


def test_text_that_utf_8_cannot_hold_crosses():
    back = crossed(Holding("\ud800"))
    assert "\\ud800" in str(back)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.binary(max_size=200))
def test_garbage_is_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        unpack_error(data)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
def test_a_damaged_message_is_an_exception_or_a_protocol_error(data):
    raw = bytearray(pack_error(caught(throw, SystemExit("x"), SystemExit(2))))  # without pickles, which are trusted
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        assert isinstance(unpack_error(bytes(raw)), Exception)


def test_it_is_unpickled_once(monkeypatch):
    data = pack_error(ValueError("x"))
    count = []
    loads = pickle.loads
    monkeypatch.setattr(remote.pickle, "loads", lambda *a: count.append(1) or loads(*a))
    assert type(unpack_error(data)) is ValueError
    assert len(count) == 1


# --- another process

SCRIPT = """
import base64, subprocess, sys
from revolve_assistant.wire.carry import Carrier
from revolve_assistant.wire.remote import unpack_error, remote_traceback

class Mine(Exception):
    def __init__(self, message, code):
        super().__init__(message, code)
        self.code = code

class Other(Exception):
    pass

def work(n):
    try:
        raise Other("inside")
    except Other as error:
        raise Mine("outside", n) from error

w = Carrier().carry(work, (7,), {})
lines = [base64.b64encode(each).decode() for each in (w.function.body, w.payload)]
done = subprocess.run([sys.executable, "-c", CHILD], input=" ".join(lines), capture_output=True, text=True, check=True)
try:
    raise unpack_error(base64.b64decode(done.stdout))
except Mine as error:
    assert type(error) is Mine and error.code == 7 and type(error.__cause__) is Other, error
    assert "in work" in remote_traceback(error) and "__main__.Mine" in remote_traceback(error)
    print("same class")
"""

CHILD = """
import base64, sys
from revolve_assistant.wire.carry import unpack
from revolve_assistant.wire.remote import pack_error
body, payload = map(base64.b64decode, sys.stdin.read().split())
args, kwargs = unpack(payload)
try:
    unpack(body)(*args, **kwargs)
except Exception as error:
    print(base64.b64encode(pack_error(error)).decode())
"""


def test_a_class_of_a_script_keeps_its_identity(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"CHILD = {CHILD!r}\n" + textwrap.dedent(SCRIPT))
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "same class", done.stderr
