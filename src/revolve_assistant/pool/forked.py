"""A forked child: a copy of the caller that runs one task and ends.

    fork ──▶ become a child: own session, life line, handlers, stacks ──▶ forget the parent ──▶ the task ──▶ _exit

From then on it is a plain child (`child.PlainChild`): the same body, outbox, control thread and answers to the ladder.
What differs is what it has: the callable and its arguments are the caller's own objects. And what it must not do:
return into the caller's frames, run the caller's exit functions, write what the caller has buffered, or touch the
descriptors of other tasks.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler  # noqa: F401 - here, and not anew in every fork
import gc
import io
import os
import signal
import sys
import threading
from _socket import socket
from collections.abc import Callable
from contextvars import Context
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import CancelSignal
from ..running.body import run_async
from ..wire.share import unshare
from . import board as at
from . import copies
from .child import PlainChild, bind_life, write_stacks
from .reports import TASK
from .vitals import volunteer_for_oom

if TYPE_CHECKING:
    import asyncio

    from ..engine import Parcel
    from .process import ChildProcess, Ends

_signal = import_module("_signal")  # what signal.py wraps into enumerations, at ten times the cost
SEQ = 1  # of its only task


class Inherited:
    """The callable, as `child.Function` would hold it."""

    __slots__ = ("fn", "kind", "missing", "name")

    def __init__(self, name: str, kind: str, fn: Callable[..., Any], missing: bool = False) -> None:
        self.name, self.kind, self.fn, self.missing = name, kind, fn, missing

    def load(self) -> Callable[..., Any]:
        return self.fn


class ForkedChild(PlainChild):
    """Runs one task of any kind in the main thread."""

    def __init__(self, tasks: socket, control: socket, board: at.Board, parcel: Parcel) -> None:
        super().__init__(tasks, control, board)
        self.parcel = parcel
        self.coroutine: asyncio.Task[Any] | None = None
        self.cancelling = threading.Lock()

    def run(self, initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None) -> None:
        """From the start to the result, which is sent."""
        parcel = self.parcel
        name, kind = parcel.work.function.name, parcel.work.function.kind
        missing = False
        try:
            fn = parcel.work.live[0]
        except Exception as error:  # a worker's, which unpickles it here
            missing, kind, fn = True, "plain", _raising(error)
        if initializer is not None:
            fn = self._after(initializer, fn)
        if kind not in ("plain", "generator"):
            kind, fn = "plain", self._in_loop(kind, fn)
        self.functions[0] = Inherited(name, kind, fn, missing)  # type: ignore[assignment]
        extras: dict[str, Any] = {}
        if parcel.options is not None and parcel.options.capture:
            extras["capture"] = True
        retry = getattr(parcel.options, "retry", None)
        if retry is not None:
            extras["retry"] = retry
        if parcel.headers is not None:
            extras["headers"], extras["queue"] = parcel.headers, parcel.queue
        # In a context of its own: the thread that forked may itself be in the middle of a task.
        Context().run(self.task, [TASK, SEQ, parcel.id, 0, b"", parcel.attempt, extras or None])
        self.outbox.flush()
        if parcel.headers is not None:
            from ..telemetry import flush

            flush()  # the exit functions of whoever set it up are the parent's

    def arguments(self, seq: int, payload: bytes, extras: dict[str, Any] | None) -> Any:
        if self.functions[0].missing:
            return (), {}
        _, args, kwargs = self.parcel.work.live
        return unshare(args, kwargs)

    def _after(self, initializer: tuple[Callable[..., Any], tuple[Any, ...]], fn: Callable[..., Any]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            function, initargs = initializer
            try:
                context = function(*initargs)
                if hasattr(context, "__enter__") and hasattr(context, "__exit__"):
                    context.__enter__()
                    self.finish = context
            except Exception as error:
                error.add_note("raised by the initializer of the child process")
                raise
            return fn(*args, **kwargs)

        return call

    # --- coroutines

    def _in_loop(self, kind: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            import asyncio

            running = self.runnings[SEQ]

            async def body() -> Any:
                self.coroutine = asyncio.current_task()
                return await run_async(running, kind, fn, args, kwargs)

            try:
                return asyncio.run(body())
            except asyncio.CancelledError:
                if self.stopping(running):
                    raise CancelSignal("the task was stopped") from None
                raise
            finally:
                self.coroutine = None

        return call

    def _on_sigint(self, signum: int, frame: Any) -> None:
        if self.coroutine is not None:
            self._cancel(self.coroutine)
            return
        if not self.inside and self.words[at.RAISE] == SEQ:
            self.deferred = True  # it has hardly begun
            return
        super()._on_sigint(signum, frame)

    def interrupt(self, seq: int) -> None:
        if self.coroutine is None:
            super().interrupt(seq)
        else:
            self._cancel(self.coroutine)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        """Once, by whoever is first: the signal, in the main thread, or the order, in the one that listens."""
        if self.words[at.RAISE] != SEQ or not self.cancelling.acquire(blocking=False):
            return
        self.interrupted = True
        with contextlib.suppress(RuntimeError):  # its loop is closed
            task.get_loop().call_soon_threadsafe(task.cancel)


def _raising(error: Exception) -> Callable[..., Any]:
    def fails(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return fails


def live(
    child: ChildProcess, ends: Ends, parcel: Parcel, initializer: Any, renew: Callable[[], None], flushed: bool
) -> NoReturn:
    """All that a forked process does, with every signal blocked at first.

    `renew` forgets its supervisor's state. `flushed`: nothing is buffered for output, and nobody else was writing.
    """
    status = 1
    try:
        for sock in (child.tasks, child.control):  # the supervisor's ends
            sock.close()
        os.close(child.life)
        os.setsid()
        bind_life(ends.life)
        renew()
        copies.disown()
        forget_parent()
        renew_input()
        if not flushed:
            renew_outputs()
        reset_handlers()
        write_stacks(child.board_fd)
        volunteer_for_oom()
        me = ForkedChild(ends.tasks, ends.control, child.board, parcel)
        me.words[at.PID] = os.getpid()
        me.begin_listening()
        _signal.pthread_sigmask(signal.SIG_SETMASK, ())
        me.run(initializer)
        me.leave()
        status = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            sys.excepthook(*sys.exc_info())
    finally:
        try:
            take_leave()
        finally:
            os._exit(status)


# ---------------------------------------------------------------- what is the parent's


def reset_handlers() -> None:
    """Handlers of the caller's go; what it ignores stays ignored, as it would in a program that it starts."""
    _signal.set_wakeup_fd(-1)
    for number in range(1, _signal.NSIG):
        if callable(_signal.getsignal(number)) and number != signal.SIGINT:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.signal(signal.SIGTERM, _signal.SIG_DFL)


def forget_parent() -> None:
    """Nothing that the parent has begun is ended here: its buffers, loops, exit functions, imports, random series."""
    gc.freeze()  # what was inherited is never walked through, so it stays shared
    atexit._clear()
    threading.main_thread().name = "MainThread"
    modules = sys.modules
    if (numpy_random := modules.get("numpy.random")) is not None:
        numpy_random.seed(list(memoryview(os.urandom(32)).cast("I")))  # `random` itself does that
    if (events := modules.get("asyncio.events")) is not None:
        events._set_running_loop(None)
        policy: Any = getattr(events, "_event_loop_policy", None)
        if hasattr(policy, "_local") and hasattr(policy, "_Local"):
            policy._local = policy._Local()
    if (trio := modules.get("trio._core._run")) is not None:
        trio.GLOBAL_RUN_CONTEXT.__dict__.clear()
    if (sniffio := modules.get("sniffio")) is not None:
        sniffio.thread_local.name = None
    if (futures := modules.get("concurrent.futures.process")) is not None:
        futures._threads_wakeups.clear()  # else the end of this process would wake the parent's pools
    if (util := modules.get("multiprocessing.util")) is not None:  # as multiprocessing's own forks
        modules["multiprocessing.process"]._children = set()  # type: ignore[attr-defined]
        util._finalizer_registry.clear()
        util._run_after_forkers()


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return len(data)


def renew_outputs() -> None:
    """Output, and what logging writes to, without what the parent has yet to write, and unlocked: another thread may
    have been writing. (logging itself sees to its own locks, not to those of its files.)"""
    seen: set[int] = set()
    logging = sys.modules.get("logging")
    handlers = [each() for each in logging._handlerList] if logging is not None else []
    logs = [getattr(handler, "stream", None) for handler in handlers]
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__, *logs):
        buffer = getattr(stream, "buffer", None)
        if id(buffer) in seen or not isinstance(stream, io.TextIOWrapper) or type(buffer) is not io.BufferedWriter:
            continue
        seen.add(id(buffer))
        with contextlib.suppress(ValueError, OSError):  # closed
            raw = buffer.raw
            buffer.__init__(_Nowhere())  # type: ignore[misc] # a new lock, an empty buffer
            stream.flush()
            buffer.__init__(raw)  # type: ignore[misc]


def renew_input() -> None:
    """Standard input is the parent's alone."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # none, closed, or no file
        if sys.__stdin__ is not None and sys.__stdin__.fileno() == 0:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0, inheritable=True)
            os.close(nothing)
            # a new one: the old one may be locked, and has read ahead
            sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")


def take_leave() -> None:
    """End what the callable has begun: its threads, its exit functions, what it printed."""
    util = sys.modules.get("multiprocessing.util")
    flushes = (stream.flush for stream in (sys.stdout, sys.stderr) if stream is not None)
    for end in (
        threading._shutdown,  # type: ignore[attr-defined]
        atexit._run_exitfuncs,
        *([util._exit_function] if util is not None else []),
        *flushes,
    ):
        try:
            end()
        except BaseException:
            with contextlib.suppress(BaseException):
                sys.excepthook(*sys.exc_info())
