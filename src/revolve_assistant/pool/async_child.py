"""The child of coroutines: one event loop, many tasks at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from time import monotonic_ns
from typing import Any

import msgspec

from ..errors import CancelSignal
from ..running import api
from ..running.body import run_async
from ..running.running import Running
from .child import READ, Child, frames
from .function import Function, again, begin
from .reports import DROP, FUNCTION, STARTED, STOP, TASK

_encode = msgspec.msgpack.Encoder().encode


class AsyncChild(Child):
    """Runs `async def` callables and asynchronous generators in the main thread's event loop."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.newest = 0
        self.flagged: set[int] = set()
        self.captured: set[int] = set()
        self.capture: Any = None  # the process-wide capture, once a task has asked for it
        self.interrupted: set[int] = set()
        self.running: dict[int, asyncio.Task[None]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    def expected(self, seq: int) -> bool:
        return seq > self.newest or seq in self.running

    def stopping(self, running: Running) -> bool:
        return running._seq in self.flagged

    def _heed(self, message: list[Any], fds: list[int]) -> None:
        from .reports import STOPPING

        if message[0] == STOPPING:
            self.flagged.add(message[1])
        super()._heed(message, fds)

    def interrupt(self, seq: int) -> None:
        task, loop = self.running.get(seq), self.loop
        if task is not None and loop is not None:
            self.interrupted.add(seq)
            loop.call_soon_threadsafe(task.cancel)

    def serve(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.tasks.setblocking(True)
        done = asyncio.Event()

        def readable() -> None:
            data = self.tasks.recv(READ)
            if not data:
                done.set()
                return
            self.pending.extend(data)
            heed(frames(self.pending))

        def heed(messages: Iterable[Any]) -> None:
            for message in messages:
                kind = message[0]
                if kind == TASK:
                    self.newest = message[1]
                    # the callable is taken now: it may be dropped before the task begins
                    function = self.functions[message[3]]
                    self.running[message[1]] = loop.create_task(self._task(message, function))
                elif kind == FUNCTION:
                    self.functions[message[1]] = Function(*message[2:])
                elif kind == DROP:
                    self.functions.pop(message[1], None)
                elif kind == STOP:
                    done.set()

        heed(self.waiting)
        loop.add_reader(self.tasks.fileno(), readable)
        await done.wait()
        loop.remove_reader(self.tasks.fileno())

    def _begin_capture(self, seq: int) -> None:
        """What is printed in a coroutine's context is its own; it is sent as events if that one asked for it."""
        self.captured.add(seq)
        if self.capture is None:
            from ..running.capture import capturing

            self.capture = capturing(self._said)
            self.capture.__enter__()

    def _said(self, name: str, *args: Any) -> None:
        running = api.in_context.get()
        if running is not None and running._seq in self.captured:
            running.emit(name, *args)
        else:
            stream = sys.__stdout__ if name == "output" else sys.__stderr__
            if stream is not None:
                stream.write(str(args[-1]))

    async def _task(self, message: list[Any], function: Function) -> None:
        _, seq, id, _, payload, attempt, extras = message
        running = Running(self, seq, id, attempt)
        self.register(seq, running)
        api.in_context.set(running)
        started = monotonic_ns()
        self.put(_encode((STARTED, seq, started)), True)
        self.outbox.flush()  # the clocks of time-outs start with it
        if extras is not None and extras.get("capture"):
            self._begin_capture(seq)
        fn = args = kwargs = trace = None
        try:
            if extras is not None and "headers" in extras:
                trace = begin(running, function.name, extras)
            self.await_shares(extras)
            fn = function.load()
            args, kwargs = self.arguments(seq, payload, extras)
            value = await run_async(running, function.kind, fn, args, kwargs)
            if trace is not None:
                trace.returned(running)
            if running._noticed:
                self.cancelled(seq, started, "flag")
            else:
                self.result(seq, function.name, started, value)
        except (asyncio.CancelledError, CancelSignal) as error:
            if isinstance(error, CancelSignal) or seq in self.flagged:
                rung = "exception" if seq in self.interrupted and not isinstance(error, CancelSignal) else "flag"
                if trace is not None:
                    trace.cancelled(rung)
                self.cancelled(seq, started, rung)
            else:
                if trace is not None:
                    trace.failed(error)
                self.error(seq, started, error)
        except BaseException as error:
            delay = again(function, extras, attempt, error)
            if trace is not None:
                trace.failed(error, delay)
            self.error(seq, started, error, delay)
        finally:
            fn = args = kwargs = None
            self.running.pop(seq, None)
            self.runnings.pop(seq, None)
            self.flagged.discard(seq)
            self.captured.discard(seq)
            self.interrupted.discard(seq)
            self.outbox.flush()
