"""Options say at once what is wrong with them; a failed attempt is tried again when it should be."""

from __future__ import annotations

import asyncio
import datetime
import functools
import inspect
import random
import timeit
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.caller.options import PLAIN, Exponential, Options, defaults, merge, next_delay, options_of
from revolve_assistant.errors import (
    CancelSignal,
    RemoteError,
    Retry,
    TaskCancelled,
    TaskLost,
    TaskStalled,
    TaskTimeout,
    UsageError,
)

# ---------------------------------------------------------------- merge

GOOD: dict[str, list[Any]] = {
    "timeout": [None, 1, 0.001, Fraction(1, 2), numpy.float32(2), numpy.int64(3)],
    "retries": [0, 3, numpy.int64(2)],
    "retry_on": [OSError, (OSError, ValueError), [OSError], {KeyError}, ()],
    "backoff": [None, 0, 2.5, Exponential(0.1, 1), lambda attempt: attempt],
    "stall": [None, 30],
    "priority": [-9, 0, 9],
    "delay": [0, 1.5],
    "unique": [None, "key"],
    "queue": ["default", "high-1"],
    "history": [None, True, False, 3600],
    "capture": [True, False],
}
BAD: dict[str, list[Any]] = {
    "timeout": ["5", 0, -1, float("inf"), float("nan"), True, datetime.timedelta(seconds=5), 1j],
    "retries": [-1, 1.0, "3", None, True],
    "retry_on": ["OSError", (OSError, "x"), int, None, OSError()],
    "backoff": ["1", -1, float("nan"), Exponential],
    "stall": [0, "1"],
    "priority": [10, -10, 1.5, None, True],
    "delay": [-0.1, None, "1"],
    "unique": ["", 5],
    "queue": ["", "a b", "a,b", "a\n", None, "x" * 65],
    "history": [0, -1, "yes"],
    "capture": [1, None, "yes"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in GOOD for value in GOOD[name]])
def test_good_values(name: str, value: Any) -> None:
    options = merge(PLAIN, **{name: value})
    kept = getattr(options, name)
    assert kept == (tuple(value) if isinstance(value, (list, set)) else (value,) if value is OSError else value)
    assert not isinstance(kept, (numpy.generic, Fraction))
    assert Options(**{name: value}) == options
    hash(options)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_bad_values_name_the_option_the_value_and_the_way_out(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        merge(PLAIN, **{name: value})
    assert str(caught.value).startswith(f"{name}={value!r} must be ")
    with pytest.raises(UsageError):
        Options(**{name: value})


def test_messages() -> None:
    with pytest.raises(UsageError, match=r"^timeout='5' must be a number of seconds > 0, or None for no limit$"):
        merge(PLAIN, timeout="5")
    with pytest.raises(UsageError, match=r"total_seconds"):
        merge(PLAIN, timeout=datetime.timedelta(minutes=1))
    with pytest.raises(UsageError, match=r"^unknown option 'retires': did you mean 'retries'\? Options: backoff, "):
        merge(PLAIN, retires=3)
    with pytest.raises(UsageError, match=r"^unknown option 'xyzzy'\. Options: "):
        merge(PLAIN, xyzzy=3)


def test_the_tables_above_are_complete() -> None:
    assert list(GOOD) == list(BAD) == list(Options.__struct_fields__)


def test_merge_changes_only_what_is_said() -> None:
    base = merge(PLAIN, timeout=5, retries=2)
    assert merge(base) is base
    assert merge(base, timeout=None) == Options(retries=2)
    assert merge(base, queue="high") == Options(timeout=5.0, retries=2, queue="high")
    with pytest.raises(AttributeError):
        base.retries = 1  # type: ignore[misc]


# ---------------------------------------------------------------- defaults


def test_defaults_leave_the_plain_function() -> None:
    def work(x: int) -> int:
        return x

    assert defaults(retries=3, timeout=60)(work) is work
    assert inspect.isfunction(work)
    assert work(3) == 3
    assert options_of(work) == Options(retries=3, timeout=60.0)


def test_defaults_bare_stacked_and_async() -> None:
    @defaults
    def bare() -> None: ...

    @defaults(retries=5)
    @defaults(retries=3, timeout=60)
    async def stacked() -> int:
        return 1

    assert options_of(bare) == PLAIN
    assert options_of(stacked) == Options(retries=5, timeout=60.0)
    assert asyncio.run(stacked()) == 1


def test_defaults_on_methods() -> None:
    class Thing:
        @defaults(retries=1)
        def method(self) -> None: ...

        @defaults(retries=2)
        @classmethod
        def above(cls) -> None: ...

        @classmethod
        @defaults(retries=3)
        def below(cls) -> None: ...

        @defaults(retries=4)
        @staticmethod
        def static() -> None: ...

    found = [options_of(f) for f in (Thing().method, Thing.method, Thing.above, Thing().below, Thing.static)]
    assert [options.retries for options in found if options] == [1, 1, 2, 3, 4]


def test_options_of_looks_through_partials() -> None:
    class Thing:
        @defaults(retries=1)
        def method(self, x: int) -> None: ...

    assert options_of(functools.partial(functools.partial(Thing().method, 3))) == Options(retries=1)
    assert options_of(len) is None
    assert options_of(functools.partial(len)) is None
    assert options_of(mock.Mock()) is None


def test_wrong_defaults_fail_at_decoration() -> None:
    with pytest.raises(UsageError, match="did you mean 'retries'"):
        defaults(retires=3)
    with pytest.raises(UsageError, match=r"cannot carry defaults: say client\.options"):
        defaults(retries=3)(len)
    with pytest.raises(UsageError, match="@defaults needs a function, not 3"):
        defaults(3)  # type: ignore[call-overload]


# ---------------------------------------------------------------- next_delay

ALWAYS = [TaskLost("died"), TaskTimeout("late"), TaskStalled("silent"), Retry("again")]


@given(st.integers(0, 20), st.integers(1, 25), st.sampled_from([*ALWAYS, ValueError(), KeyboardInterrupt()]))
def test_attempts_end(retries: int, attempt: int, error: BaseException) -> None:
    delay = next_delay(Options(retries=retries), attempt, error)
    if attempt > retries or isinstance(error, KeyboardInterrupt):
        assert delay is None
    else:
        assert delay is not None
        assert 0.0 <= delay <= min(60.0, 2.0 ** (attempt - 1))


@given(
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.integers(1, 10**9),
    st.integers(),
)
def test_exponential_is_bounded_and_jittered(base: float, cap: float, attempt: int, seed: int) -> None:
    backoff = Exponential(base, cap)
    delay = backoff(attempt, random.Random(seed))
    assert 0.0 <= delay <= cap
    assert delay == backoff(attempt, random.Random(seed))
    options = Options(retries=attempt, backoff=backoff)
    assert next_delay(options, attempt, ValueError(), random.Random(seed)) == delay


def test_full_jitter_fills_the_whole_range() -> None:
    rng = random.Random(1)
    delays = [next_delay(Options(retries=9), 4, ValueError(), rng) or 0.0 for _ in range(1000)]
    assert 0 <= min(delays) < 0.1
    assert 7.9 < max(delays) <= 8.0
    assert 3.5 < sum(delays) / 1000 < 4.5


@pytest.mark.parametrize("error", ALWAYS, ids=lambda error: type(error).__name__)
def test_retried_whatever_retry_on_says(error: Exception) -> None:
    options = Options(retries=1, retry_on=(KeyError,), backoff=2)
    assert next_delay(options, 1, error) == 2.0
    assert next_delay(options, 1, ValueError()) is None
    assert next_delay(options, 1, KeyError()) == 2.0


@pytest.mark.parametrize("error", [TaskCancelled(), CancelSignal()])
def test_cancelled_never(error: BaseException) -> None:
    assert next_delay(Options(retries=5, retry_on=BaseException), 1, error) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("after", "delay"), [(5, 5.0), (0, 0.0), (None, 2.0), (-1, 2.0), ("soon", 2.0)])
def test_retry_after(after: Any, delay: float) -> None:
    assert next_delay(Options(retries=1, backoff=2), 1, Retry(after=after)) == delay
    assert next_delay(Options(retries=1, backoff=2), 2, Retry(after=after)) is None


def test_a_function_decides() -> None:
    assert next_delay(Options(retries=5, backoff=lambda attempt: attempt * 10), 3, ValueError()) == 30.0


@pytest.mark.parametrize("wrong", [lambda _: 1 / 0, lambda _: "soon", lambda _: -1, lambda _: float("nan")])
def test_a_wrong_function_is_logged_and_replaced(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    delay = next_delay(Options(retries=5, backoff=wrong), 1, ValueError())
    assert delay is not None
    assert 0.0 <= delay <= 1.0
    assert "waiting exponentially instead" in caplog.text


def test_an_error_that_could_not_be_rebuilt_is_known_by_name() -> None:
    error = RemoteError("x")
    error.type_name = "builtins.KeyError"
    assert next_delay(Options(retries=1, retry_on=(KeyError,), backoff=1), 1, error) == 1.0
    assert next_delay(Options(retries=1, retry_on=(OSError,), backoff=1), 1, error) is None
    assert next_delay(Options(retries=1, backoff=1), 1, error) == 1.0


def test_options_of_is_quick() -> None:
    def work() -> None: ...

    assert min(timeit.repeat(lambda: options_of(work), number=10_000, repeat=3)) / 10_000 < 5e-6
