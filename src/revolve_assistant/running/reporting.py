"""`reporting`: events from code that somebody else runs: a Celery task, a cron job, a script.

    with reporting(id, messenger="redis://…"):          client = Client("redis://…")
        for path in track(paths): …            ══▶      client.attach(id).events()

Whatever started the code keeps its own ways; only what is said, and what is said to it, goes over the messenger.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import threading
from collections.abc import Callable
from contextvars import Token
from functools import partial, wraps
from time import monotonic
from types import CodeType, TracebackType
from typing import Any, TypeVar

from ..caller.waiting import aside, in_loop, wait
from ..errors import CancelSignal, Retry, TaskCancelled, Unsupported, UsageError
from . import api
from .line import Line, report_on
from .report import Report, Reporting, cancelled, failed, retrying, started, succeeded

HISTORY = 86400.0  # seconds that a log is kept after its end, unless it is said

F = TypeVar("F", bound=Callable[..., Any])
_ID = re.compile(r"[A-Za-z0-9._-]{1,60}\Z")
_RETRIES = {("celery.exceptions", "Retry"), ("dramatiq.errors", "Retry"), ("huey.exceptions", "RetryTask")}


class reporting:  # noqa: N801 - used as `with reporting(…)`, as contextlib names its own
    """Report what the block does under an id, so that `client.attach(id)` anywhere hears it and can speak to it.

    Inside, `current_task()`, `emit`, `report`, `track` and `ask` work as in a task. A normal end is `succeeded`, with
    what was put into `.result` of what `with` gives; an exception is `failed`, and goes on its way. A cancel raises the
    flag: `track`, `ask`, `receive` and `check` see it, and the block ends with `TaskCancelled`. `raise Retry`, and
    Celery's `raise self.retry(…)`, is `retrying`: whoever enters with the same id next is the next attempt.

    Never blocks but at the end, up to 5 s until the last words are stored; if the messenger does not answer it goes on
    without. `async with` waits without blocking the loop. As a decorator, what the function returns is the result.

    `id`: 1 to 60 of A-Z, a-z, 0-9, ".", "_", "-". `messenger`: an address, or a Messenger for this alone; None takes
    REVOLVE_MESSENGER, else what the queue at REVOLVE_URL brings. `history`: seconds that all is kept after the end.
    `name`: what it is called; None: the function around. `capture`: what is printed and logged becomes events too, and
    goes its usual way as before. Raises `UsageError`, `Unsupported`, `ProviderMissing` at once.
    """

    def __init__(
        self,
        id: str,
        *,
        messenger: Any = None,
        secret: Any = None,
        namespace: str = "assistant",
        name: str | None = None,
        history: float = HISTORY,
        capture: bool = False,
    ) -> None:
        check_id(id)
        if isinstance(history, bool) or not isinstance(history, (int, float)) or not 0 < history < 1e9:
            raise UsageError(f"history={history!r:.100} is no positive number of seconds")
        self.id = id
        self._place = (messenger, secret, namespace)
        self._named = name
        self._name = name if name is not None else _around(sys._getframe(1))
        self._history = float(history)
        self._capture = bool(capture)
        self._capturing: Any = None
        self._report: Report | None = None
        self._token: Token[Any] | None = None
        self._outer: Any = None
        self._shared = False
        self._pid = 0

    def __repr__(self) -> str:
        return f"<reporting {self.id}{'' if self._report is None else ', under way'}>"

    def __enter__(self) -> Reporting:
        if self._report is not None:
            raise UsageError(f"{self!r} was entered already: each block takes a `reporting(…)` of its own")
        report = self._report = open_report(self.id, self._history, *self._place)
        self._pid = os.getpid()
        report.put(started(f"{os.uname().nodename if hasattr(os, 'uname') else 'host'}:{self._pid}",
                           report.line.control, self._name))  # fmt: skip
        running = report.running
        self._token = api.in_context.set(running)
        # The threads that a program or a prefork worker starts speak for it, as in a child that runs one plain task.
        outer = api.in_process
        self._shared = (
            threading.current_thread() is threading.main_thread()
            and (outer is None or isinstance(outer, Reporting))
            and not in_loop()
        )
        if self._shared:
            self._outer, api.in_process = outer, running
        if self._capture:
            from .capture import capturing

            self._capturing = capturing(running.emit, mine=lambda: api._running() is running, tee=True)
            self._capturing.__enter__()
        return running

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        report = self._leave()
        if report is None:
            return
        instead = _say_end(report, error)
        wait_stored(report)
        if instead is not None:
            raise instead from None

    async def __aenter__(self) -> Reporting:
        return self.__enter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        report = self._leave()
        if report is None:
            return
        instead = _say_end(report, error)
        if not report.stored:
            await aside(partial(wait_stored, report))
        if instead is not None:
            raise instead from None

    def __call__(self, fn: F) -> F:
        """Decorate a plain function or a coroutine function: each call is a block of its own."""
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise UsageError(f"{fn.__qualname__} is a generator function: put `with reporting(…)` into its body")
        name = self._named if self._named is not None else f"{fn.__module__}:{fn.__qualname__}"
        messenger, secret, namespace = self._place

        def block() -> reporting:
            return reporting(
                self.id, messenger=messenger, secret=secret, namespace=namespace, name=name, history=self._history,
                capture=self._capture,
            )  # fmt: skip

        if inspect.iscoroutinefunction(fn):

            @wraps(fn)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                async with block() as running:
                    running.result = await fn(*args, **kwargs)
                return running.result

            return call_async  # type: ignore[return-value]

        @wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            with block() as running:
                running.result = fn(*args, **kwargs)
            return running.result

        return call  # type: ignore[return-value]

    def _leave(self) -> Report | None:
        """Give back what `__enter__` took; None if nothing is to be said: in a fork, or as the interpreter ends."""
        report, token = self._report, self._token
        assert report is not None
        assert token is not None
        self._report = self._token = None
        capturing, self._capturing = self._capturing, None
        if capturing is not None:
            capturing.__exit__(None, None, None)
        try:
            api.in_context.reset(token)
        except ValueError:  # left in another context than entered (a generator's, say)
            if api.in_context.get() is report.running:
                api.in_context.set(None)
        if self._shared and api.in_process is report.running:
            api.in_process = self._outer
        self._outer = None
        return report if self._pid == os.getpid() and not report.ended else None


# --- beginnings


def check_id(id: Any) -> None:
    """Raise `UsageError` for what is no id of a task."""
    if not isinstance(id, str) or not _ID.match(id):
        raise UsageError(f"{id!r:.100} is no id: it takes 1 to 60 of A-Z, a-z, 0-9, '.', '_' and '-'")


def open_report(id: str, history: float, messenger: Any, secret: Any, namespace: str, *, loose: bool = False) -> Report:
    """A report on this process's line to a messenger; no I/O of the messenger. Raises as `reporting`."""
    environment = tuple(map(os.environ.get, ("REVOLVE_MESSENGER", "REVOLVE_URL", "REVOLVE_SECRET",
                                             "REVOLVE_SECRET_FILE")))  # fmt: skip
    place = messenger if isinstance(messenger, str) else None if messenger is None else Same(messenger)
    key = (place, hash(repr(secret)), namespace, hash(environment))
    return report_on(key, lambda: _line(messenger, secret, namespace), id, history, loose=loose)


class Same:
    """Equal for the same object only, which it keeps from being another one's number."""

    __slots__ = ("_it",)

    def __init__(self, it: Any) -> None:
        self._it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._it is other._it

    def __hash__(self) -> int:
        return id(self._it)


def _line(messenger: Any, secret: Any, namespace: str) -> Line:
    from ..messenger import Messenger
    from ..providers import registry
    from ..providers.url import Url
    from ..wire.named import NamedMessenger
    from ..wire.secret import keyring

    owned = not isinstance(messenger, Messenger)
    if messenger is None:
        messenger = os.environ.get("REVOLVE_MESSENGER")
    if messenger is None:
        url = os.environ.get("REVOLVE_URL")
        if not url:
            raise UsageError("reporting needs a messenger: say messenger='redis://…', or set REVOLVE_MESSENGER")
        from ..providers.carriers import choose, is_queue

        if not is_queue(url):
            raise UsageError(f"REVOLVE_URL, {Url.parse(url)}, is no queue and brings no messenger: say messenger=, or "
                             "set REVOLVE_MESSENGER")  # fmt: skip
        chosen = choose(url, None, secret, namespace)
        carrier, keys, namespace = chosen.messenger, chosen.keys, chosen.namespace
    else:
        urls = []
        if isinstance(messenger, NamedMessenger):
            carrier = messenger.fresh()
            urls.append(Url.parse(messenger.address))
        elif isinstance(messenger, Messenger):
            carrier = messenger
        else:
            urls.append(Url.parse(messenger))
            carrier = registry.messenger(urls[0])
        keys = keyring(secret, *urls)
    if not carrier.traits.replays:
        what = type(carrier).__module__.partition(".providers.")[2].partition(".")[0] or type(carrier).__name__
        raise Unsupported(f"{what} keeps no history, so nobody could attach: report through a messenger that does "
                          "(redis, sqlite, filesystem, memcached)")  # fmt: skip
    return Line(carrier, keys, namespace, owned=owned)


def _around(frame: Any) -> str:
    """The function that a frame is of, as `module:qualname`; the file's name where it is a script's own code."""
    code: CodeType = frame.f_code
    if code.co_qualname == "<module>":
        return os.path.basename(code.co_filename)
    module = frame.f_globals.get("__name__", "?")
    return f"{module}:{code.co_qualname}"


# --- ends


def wait_stored(report: Report) -> bool:
    """Block until all was written, at most 5 s, in all blocks together as long as the messenger does not answer."""
    line = report.line
    if line.patience > 0:
        began = monotonic()
        if not wait(report.when_stored, line.patience):
            line.patience -= monotonic() - began
    return report.stored


def _say_end(report: Report, error: BaseException | None) -> BaseException | None:
    """Say how the block ended; what is to be raised in place of the error, if anything is."""
    running = report.running
    instead: BaseException | None = None
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        record = cancelled("flag") if running._noticed else succeeded(running.result)
    elif isinstance(error, CancelSignal):
        rung = getattr(error, "rung", "flag")
        record = cancelled(rung)
        if report.flagged:  # asked of this block, not of a task around it: what is around goes on with an `Exception`
            instead = TaskCancelled(f"{report.id} was asked to stop")
            instead.rung = rung
    elif _is_cancelled_coroutine(error):
        record = cancelled("exception")
    elif (again := _again(error)) is not None:
        record = retrying(*again)
    else:
        record = failed(error)
    report.end(record)
    return instead


def _is_cancelled_coroutine(error: BaseException) -> bool:
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    return (asyncio is not None and isinstance(error, asyncio.CancelledError)) or (
        trio is not None and isinstance(error, trio.Cancelled)
    )


def _again(error: BaseException) -> tuple[str, float] | None:
    """(reason, delay in seconds) if the error says that whoever runs the code will run it again."""
    if isinstance(error, Retry):
        return str(error) or "Retry", error.after or 0.0
    for kind in type(error).__mro__:
        if (kind.__module__, kind.__name__) in _RETRIES:
            cause = getattr(error, "exc", None) or error.__cause__ or error.__context__
            reason = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else str(error)
            when = getattr(error, "when", 0.0)  # Celery's: seconds, or a date
            return reason[:500] or kind.__name__, float(when) if isinstance(when, (int, float)) else 0.0
    return None
