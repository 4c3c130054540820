"""How a task is to be run: `Options`, the `@defaults` of a function, and when to try again.

    function's @defaults  ◀── client.options(…)          merge(options_of(fn) or PLAIN, **changes)
                                                          the later wins, value by value

Every value is checked where it is said, so that a task never fails in a worker for a typing mistake of its caller.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Protocol, TypeAlias, TypeVar, overload

import msgspec

from ..errors import CancelSignal, RemoteError, Retry, TaskCancelled, TaskLost, TaskStalled, TaskTimeout, UsageError

_F = TypeVar("_F", bound=Callable[..., Any])
_ATTRIBUTE = "__revolve_defaults__"
_log = logging.getLogger("revolve_assistant")

Backoff: TypeAlias = Callable[[int], float]
"""Seconds to wait after the given attempt (1, 2, …) failed."""


class Rng(Protocol):
    """What `next_delay` needs of a source of chance; `random` and `random.Random()` have it."""

    def uniform(self, a: float, b: float, /) -> float:
        """A number between `a` and `b`."""


class Exponential(msgspec.Struct, frozen=True):
    """A backoff that doubles with every attempt, with full jitter: uniform(0, min(cap, base * 2**(attempt - 1))).

    `base` and `cap` in seconds. Full jitter spreads tasks that failed together best (AWS, "Exponential Backoff And
    Jitter").
    """

    base: float = 1.0
    cap: float = 60.0

    def __post_init__(self) -> None:
        for name in ("base", "cap"):
            _seconds(name, getattr(self, name), 0.0, "")

    def __call__(self, attempt: int, rng: Rng | None = None) -> float:
        if rng is None:
            import random

            rng = random  # the module itself has `uniform`
        try:
            limit = min(self.cap, math.ldexp(self.base, attempt - 1))
        except OverflowError:
            limit = self.cap
        return rng.uniform(0.0, limit)


class Options(msgspec.Struct, frozen=True):
    """How a task is to be run. Seconds are floats; a wrong value raises `UsageError`.

    timeout   seconds an attempt may run, from its start; None: no limit
    retries   further attempts after the first
    retry_on  exception classes that are worth another attempt (deaths, time-outs and `Retry` always are)
    backoff   wait between attempts: seconds (constant), `f(attempt) -> seconds`, None: `Exponential()`
    stall     seconds without an event after which an attempt is stopped; None: no limit
    priority  -9 … 9, higher first
    delay     seconds before the task may start
    unique    while one task holds this key, submitting again gives that same task
    queue     name of the queue
    history   keep the events so that others can attach: True, False, seconds, None: as the messenger can
    capture   turn print, logging, warnings and tqdm into events
    """

    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    backoff: Backoff | float | None = None
    stall: float | None = None
    priority: int = 0
    delay: float = 0.0
    unique: str | None = None
    queue: str = "default"
    history: bool | float | None = None
    capture: bool = False

    def __post_init__(self) -> None:
        for name, default, check in _CHECKS:
            value = getattr(self, name)
            if value is not default:
                checked = check(name, value)
                if checked is not value:
                    msgspec.structs.force_setattr(self, name, checked)


# ---------------------------------------------------------------- checks: (name, value) -> the value to keep


def _wrong(name: str, value: object, must: str) -> UsageError:
    return UsageError(f"{name}={value!r} must be {must}")


def _seconds(name: str, value: object, least: float | None, alternative: str) -> float:
    """`value` as finite seconds; `least` None: more than 0, else at least that."""
    if isinstance(value, Real) and not isinstance(value, bool):
        seconds = float(value)
        if math.isfinite(seconds) and (seconds > 0 if least is None else seconds >= least):
            return seconds
    must = f"a number of seconds {'> 0' if least is None else f'>= {least:g}'}{alternative}"
    if hasattr(value, "total_seconds"):
        must += f" (say {name}=….total_seconds())"
    raise _wrong(name, value, must)


def _limit(name: str, value: object) -> float | None:
    return None if value is None else _seconds(name, value, None, ", or None for no limit")


def _delay(name: str, value: object) -> float:
    return _seconds(name, value, 0.0, "")


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _retries(name: str, value: object) -> int:
    number = _whole(value)
    if number is None or number < 0:
        raise _wrong(name, value, "a whole number >= 0 (further attempts after the first)")
    return number


def _priority(name: str, value: object) -> int:
    number = _whole(value)
    if number is None or not -9 <= number <= 9:
        raise _wrong(name, value, "a whole number from -9 to 9 (higher goes first)")
    return number


def _retry_on(name: str, value: object) -> tuple[type[BaseException], ...]:
    kinds = (value,) if isinstance(value, type) else value
    kinds = tuple(kinds) if isinstance(kinds, (tuple, list, set, frozenset)) else None
    if kinds is None or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise _wrong(name, value, "an exception class or a tuple of them, such as (OSError, ValueError)")
    return value if isinstance(value, tuple) else kinds


def _backoff(name: str, value: object) -> Backoff | float | None:
    if value is None or isinstance(value, Exponential) or (callable(value) and not isinstance(value, type)):
        return value
    return _seconds(name, value, 0.0, ", a function of the attempt that returns seconds, or None for exponential")


def _text(name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise _wrong(name, value, "a text that is not empty, or None")


def _queue(name: str, value: object) -> str:
    if isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable() and not set(value) & set(" ,"):
        return value
    raise _wrong(name, value, "1 to 64 printable characters without spaces and commas, such as 'default'")


def _history(name: str, value: object) -> bool | float | None:
    if value is None or isinstance(value, bool):
        return value
    return _seconds(name, value, None, ", True, False, or None for what the messenger can")


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(name, value, "True or False")


_CHECKS: tuple[tuple[str, object, Callable[[str, Any], object]], ...] = ()
_CHECKS = tuple(
    (field.name, field.default, check)
    for field, check in zip(
        msgspec.structs.fields(Options),
        (_limit, _retries, _retry_on, _backoff, _limit, _priority, _delay, _text, _queue, _history, _flag),
        strict=True,
    )
)
_NAMES = tuple(name for name, _, _ in _CHECKS)

PLAIN = Options()
"""No option said: what the hot path tests with `is`."""


def merge(base: Options, **changes: Any) -> Options:
    """`base` with the changes; `base` itself if there are none. Raises `UsageError` for a wrong name or value."""
    if not changes:
        return base
    for name in changes:
        if name not in _NAMES:
            from difflib import get_close_matches

            near = get_close_matches(name, _NAMES, 1)
            hint = f": did you mean {near[0]!r}?" if near else "."
            raise UsageError(f"unknown option {name!r}{hint} Options: {', '.join(sorted(_NAMES))}")
    return msgspec.structs.replace(base, **changes)


# ---------------------------------------------------------------- the defaults of a function


@overload
def defaults(function: _F, /) -> _F: ...
@overload
def defaults(**options: Any) -> Callable[[_F], _F]: ...
def defaults(function: Any = None, /, **options: Any) -> Any:
    """Decorate a function with the options it is to be run with; it stays the same plain function.

    `@defaults(retries=3, timeout=60)`; stacked ones merge, the upper wins. `client.options(…)` wins over all.
    Raises `UsageError` at once for a wrong option, and for what can carry no attributes (a built-in).
    """
    merge(PLAIN, **options)

    def decorate(target: Any) -> Any:
        if not callable(target) and not hasattr(target, "__func__"):  # a classmethod object is not callable
            raise UsageError(f"@defaults needs a function, not {target!r}: say @defaults(retries=3)")
        plain = getattr(target, "__func__", target)
        try:
            setattr(plain, _ATTRIBUTE, merge(options_of(plain) or PLAIN, **options))
        except (AttributeError, TypeError):
            raise UsageError(f"{target!r} cannot carry defaults: say client.options(…) at the call") from None
        return target

    return decorate if function is None else decorate(function)


def options_of(function: Callable[..., Any]) -> Options | None:
    """What `@defaults` said of it, looking through `functools.partial` and bound methods; None if nothing (0.1 µs)."""
    found = getattr(function, _ATTRIBUTE, None)
    while found is None and isinstance(function, functools.partial):
        function = function.func
        found = getattr(function, _ATTRIBUTE, None)
    return found if isinstance(found, Options) else None  # a mock or proxy has every attribute


# ---------------------------------------------------------------- another attempt?


def next_delay(options: Options, attempt: int, error: BaseException, rng: Rng | None = None) -> float | None:
    """Seconds to wait before the next attempt, or None: `attempt` (from 1) was the last. Never raises.

    Deaths, time-outs, stalls and `Retry` get another attempt whatever `retry_on` says, a cancelled task never does.
    A backoff function that fails or returns no seconds is logged and replaced by the exponential one.
    """
    if attempt > options.retries or isinstance(error, (TaskCancelled, CancelSignal)):
        return None
    if isinstance(error, Retry):
        try:
            return _delay("after", error.after)
        except UsageError:
            pass  # None, or nonsense: the task's own backoff
    elif not isinstance(error, (TaskLost, TaskTimeout, TaskStalled)) and not _worth(options.retry_on, error):
        return None
    backoff = options.backoff
    if isinstance(backoff, (float, int)):
        return float(backoff)
    if backoff is not None and not isinstance(backoff, Exponential):
        try:
            return _delay("backoff(attempt)", backoff(attempt))
        except Exception as problem:
            _log.warning("backoff of attempt %d: %s; waiting exponentially instead", attempt, problem)
    return (backoff if isinstance(backoff, Exponential) else _EXPONENTIAL)(attempt, rng)


_EXPONENTIAL = Exponential()


def delay_of(retry: list[Any], attempt: int, error: BaseException) -> float | None:
    """`next_delay` from what travelled with a task: `Terms.retry` of `wire.envelope`. Unpickles: for children only."""
    retries, base, cap, constant, pickled = retry
    options = Options(retries=retries, backoff=Exponential(base, cap) if constant is None else constant)
    if pickled is not None:
        import pickle

        retry_on, backoff = pickle.loads(pickled)
        options = merge(options, retry_on=retry_on, backoff=options.backoff if backoff is None else backoff)
    return next_delay(options, attempt, error)


def _worth(kinds: tuple[type[BaseException], ...], error: BaseException) -> bool:
    if isinstance(error, kinds):
        return True
    if isinstance(error, RemoteError):  # could not be rebuilt here, but its name is known
        return error.type_name in {
            name for kind in kinds for name in (f"{kind.__module__}.{kind.__qualname__}", kind.__qualname__)
        }
    return False
