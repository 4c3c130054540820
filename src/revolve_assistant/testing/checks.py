"""How checks are written, run and turned into tests.

A check is a function `check_…(make)`; `make()` builds a fresh, unopened object on the same carrier each time. It
returns if the promise holds, raises `AssertionError` if not, and `Skipped` where the traits say that it is not made.
Checks wait for what they expect, with a bound; nothing sleeps for a fixed time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

Check = Callable[[Any], None]
T = TypeVar("T")
C = TypeVar("C", bound=type)

PATIENCE = 10.0
"""Seconds to wait for what must come; a check that passes hardly ever uses them up."""

PROMPT = 2.0
"""Seconds within which something that ought to be immediate counts as immediate, on a busy machine too."""

GIVE_UP = 90.0
"""Seconds after which a whole check is taken to hang."""


class Skipped(Exception):
    """The check does not apply; the message is the reason."""


class _Opens(Protocol):
    def open(self) -> None: ...
    def close(self) -> None: ...


M = TypeVar("M", bound=_Opens)


def claim(holds: object, otherwise: str) -> None:
    """Fail the check unless it holds; unlike `assert`, also under `python -O`."""
    if not holds:
        raise AssertionError(otherwise)


def equal(found: object, expected: object, what: str) -> None:
    claim(found == expected, f"{what}: expected {_short(expected)}, found {_short(found)}")


def needs(trait: object, reason: str) -> None:
    """Skip the check unless the provider has the trait."""
    if not trait:
        raise Skipped(reason)


def refuses(error: type[Exception], call: Callable[[], object], what: str) -> None:
    """The call must raise this error."""
    try:
        call()
    except error:
        return
    except Exception as other:
        raise AssertionError(f"{what}: expected {error.__name__}, raised {other!r}") from other
    raise AssertionError(f"{what}: expected {error.__name__}, raised nothing")


@contextlib.contextmanager
def opened(make: Callable[[], M], count: int = 2) -> Iterator[list[M]]:
    """`count` objects on one carrier, opened; closed at the end."""
    with contextlib.ExitStack() as stack:
        members = []
        for _ in range(count):
            member = make()
            stack.callback(member.close)
            member.open()
            members.append(member)
        yield members


def fresh(word: str = "check") -> str:
    """A name that nobody else uses, at most 64 characters: checks may share a server."""
    return f"{word}.{os.urandom(8).hex()}"


class Aside(threading.Thread):
    """Runs a call in a thread of its own; `result(timeout)` waits for it, and raises what it raised."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True, name="check")
        self._call, self._given = call, args
        self._value: Any = None
        self._error: BaseException | None = None
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        try:
            self._value = self._call(*self._given)
        except BaseException as error:
            self._error = error
        self.seconds = time.monotonic() - began

    def result(self, timeout: float, what: str) -> Any:
        self.join(timeout)
        claim(not self.is_alive(), f"{what}: not within {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value


def entered(call: Callable[..., Any], *args: Any) -> Aside:
    """`Aside`, returning once its thread is about to make the call."""
    begun = threading.Event()

    def enter() -> Any:
        begun.set()
        return call(*args)

    aside = Aside(enter)
    claim(begun.wait(PATIENCE), "a thread starts")
    return aside


def eventually(look: Callable[[], T], what: str, *, within: float = PATIENCE) -> T:
    """Call `look`, which waits a moment itself, until it returns something true."""
    deadline = time.monotonic() + within
    while True:
        found = look()
        if found:
            return found
        claim(time.monotonic() < deadline, f"{what}: not within {within:g} s")


def name_of(check: Check) -> str:
    return check.__name__.removeprefix("check_")


def run(check: Check, make: Callable[..., Any], excused: Mapping[str, str] | None = None) -> None:
    """Run one check, bounded: one that hangs fails. `excused` maps names of checks to reasons not to run them."""
    reason = (excused or {}).get(name_of(check))
    if reason is not None:
        raise Skipped(reason)
    Aside(check, make).result(GIVE_UP, f"the check {name_of(check)!r} hangs")


def run_all(
    checks: Sequence[Check],
    make: Callable[..., Any],
    excused: Mapping[str, str] | None = None,
    heard: Callable[[str, str], object] | None = None,
) -> list[tuple[str, str]]:
    """Run them all; `(name, "ok" | "skipped: …" | "FAILED: …")` of each, which `heard` is told as they come.

    Never raises on a failing check.
    """
    results = []
    for check in checks:
        try:
            run(check, make, excused)
            outcome = "ok"
        except Skipped as skipped:
            outcome = f"skipped: {skipped}"
        except Exception as error:
            detail = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            outcome = f"FAILED: {detail}"
        results.append((name_of(check), outcome))
        if heard is not None:
            heard(*results[-1])
    return results


def tests_of(checks: Sequence[Check]) -> Callable[[C], C]:
    """A class decorator: one pytest method `test_…(self, make)` for each check. pytest is imported when one skips."""

    def decorate(cls: C) -> C:
        for check in checks:
            setattr(cls, f"test_{name_of(check)}", _test(check))
        return cls

    return decorate


def _test(check: Check) -> Callable[[Any, Callable[..., Any]], None]:
    def test(self: Any, make: Callable[..., Any]) -> None:
        try:
            run(check, make, self.excused)
        except Skipped as skipped:
            import pytest

            pytest.skip(str(skipped))

    test.__doc__ = check.__doc__
    test.__name__ = f"test_{name_of(check)}"
    return test


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]} … {text[-90:]}"
