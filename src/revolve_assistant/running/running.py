"""`Running`: what a callable sees of its own task, and the door through which it speaks and hears."""

from __future__ import annotations

import os
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from ..errors import CancelSignal, NotCarriable, UsageError
from ..event import LIFECYCLE, MAX_EVENT, MAX_NAME, Progress
from ..pool.reports import EVENT, PACKED, PROGRESS, WANT

if TYPE_CHECKING:
    import threading

CREDIT = 4 << 20  # bytes of events on their way before `emit` blocks; at half of it more is asked for
OBJECT = 256  # bytes that an event counts beside those on the wire: so much it takes in its reader's memory
MAX_MESSAGES = 1000  # sent to a task and not yet received by it

ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_MAX_DEPTH = 32
_names: set[str] = set()
_encode = msgspec.msgpack.Encoder().encode
_time = time.time


class Message(NamedTuple):
    """What `task.send(name, *args)` sent."""

    name: str
    args: tuple[Any, ...]


class Port(Protocol):
    """Where a running task's records go: a child's outbox, or the sink of an engine in this process."""

    def put(self, record: bytes) -> None: ...
    def stopping(self, running: Running) -> bool: ...


def check_name(name: str) -> None:
    """Refuse what is no event name: raises `UsageError`."""
    if name in _names:
        return
    if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(f"event name {name!r:.100} must be 1 to {MAX_NAME} printable characters")
    if name in LIFECYCLE:
        raise UsageError(f"event name {name!r} is sent by the library itself: choose another")
    if len(_names) < 10_000:
        _names.add(name)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether msgpack gives `value` back type-exact: atoms, lists and str-keyed dicts of them."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if depth > _MAX_DEPTH:
        return False
    if kind is list:
        return all(is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return all(type(key) is str and is_plain(item, depth + 1) for key, item in value.items())
    return False


def encode_event(seq: int, name: str, args: tuple[Any, ...]) -> bytes:
    """One event's record. Raises `NotCarriable`, or `UsageError` past the size limit."""
    for value in args:
        if type(value) not in ATOMS and not is_plain(value):
            break
    else:
        try:
            data = _encode((EVENT, seq, name, _time(), args))
        except (OverflowError, UnicodeEncodeError):  # past 64 bits, lone surrogates: pickle keeps them
            pass
        else:
            if len(data) > MAX_EVENT:
                raise _too_large(name, len(data))
            return data
    from ..wire.carry import pack

    try:
        payload, buffers = pack(args)
        if buffers:
            import pickle

            payload = pickle.dumps(args, 5)
    except NotCarriable as error:
        raise NotCarriable(f"event {name!r}: {error}") from error.__cause__
    if len(payload) > MAX_EVENT:
        raise _too_large(name, len(payload))
    return _encode((PACKED, seq, name, _time(), payload, [_short(value) for value in args]))


def _too_large(name: str, size: int) -> UsageError:
    return UsageError(
        f"event {name!r} takes {size} bytes, the limit is {MAX_EVENT}: emit it in parts, "
        "or return large values as the result"
    )


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # a user's __repr__ must not end the task
        return f"<{type(value).__name__}: repr raised {type(error).__name__}>"
    text = text if len(text) <= 200 else text[:197] + "..."
    return _sound(text) or ""


class Running:
    """The running task, as seen by itself. Thread-safe.

    `id` is the task's id, `attempt` counts from 1.
    """

    __slots__ = (
        "_answers",
        "_credit",
        "_handlers",
        "_inbox",
        "_mark",
        "_noticed",
        "_port",
        "_questions",
        "_sent",
        "_seq",
        "_sleepers",
        "_wake",
        "_wanted",
        "attempt",
        "id",
    )

    def __init__(self, port: Port | None, seq: int, id: str, attempt: int) -> None:
        self._port = port
        self._seq = seq
        self.id = id
        self.attempt = attempt
        self._noticed = False
        self._sent = 0
        self._credit = CREDIT
        self._mark = CREDIT // 2  # where to ask for more
        self._wanted = 0  # what had been sent when more was asked for; 0: nothing is asked
        self._wake: threading.Condition | None = None
        self._inbox: deque[Message] | None = None
        self._handlers: dict[str, Callable[..., Any]] | None = None
        self._questions = 0
        self._sleepers: tuple[Any, ...] = ()  # (loop, future) of coroutines that wait

    def __repr__(self) -> str:
        return f"<Running {self.id or '(outside a task)'} attempt {self.attempt}>"

    # --- speaking

    def emit(self, name: str, *args: Any) -> None:
        """As the function `emit`."""
        if name not in _names:
            check_name(name)
        port = self._port
        if port is None:
            return
        if name == "progress" and len(args) == 1 and type(args[0]) is Progress:
            self.progress(args[0])
            return
        record = encode_event(self._seq, name, args)
        port.put(record)
        self._sent += len(record) + OBJECT
        if self._sent >= self._mark:
            self._want_credit()

    def item(self, value: Any) -> None:
        """What a generator yielded, as event `item`."""
        self.emit("item", value)

    def report(self, fraction: float, message: str | None = None) -> None:
        """As the function `report`."""
        number = None if isinstance(fraction, bool) else _number(fraction)
        if number is None or not 0 <= number <= 1:
            raise UsageError(f"report(fraction) takes a number from 0.0 to 1.0, got {fraction!r:.100}")
        self.progress(Progress(float(number), None, None, message))

    def progress(self, progress: Progress) -> None:
        """Send an event `progress`. Takes no credit: readers keep the newest."""
        if self._port is not None:
            self._port.put(
                _encode(
                    (
                        PROGRESS,
                        self._seq,
                        "progress",
                        _time(),
                        _number(progress.fraction),
                        _number(progress.done),
                        _number(progress.total),
                        _sound(progress.message),
                    )
                )
            )

    def ask(self, text: str, timeout: float | None = None) -> Any:
        """As the function `ask`."""
        self._refuse_in_loop("ask", "ask_async")
        self._question(text)
        message = self._wait(timeout, "answer")
        if message is None:
            raise TimeoutError(f"no answer to {text!r} within {timeout} s")
        return message.args[0] if len(message.args) == 1 else message.args

    async def ask_async(self, text: str, timeout: float | None = None) -> Any:
        """`ask` for coroutines."""
        self._question(text)
        message = await self._wait_async(timeout, "answer")
        if message is None:
            raise TimeoutError(f"no answer to {text!r} within {timeout} s")
        return message.args[0] if len(message.args) == 1 else message.args

    def _question(self, text: str) -> None:
        self._questions += 1
        self.emit("question", f"{self._questions}", text)

    # --- hearing

    @property
    def cancel_requested(self) -> bool:
        """True once the task is asked to stop. A callable that saw it ends as cancelled when it returns."""
        if self._port is not None and self._port.stopping(self):
            self._noticed = True
            return True
        return False

    def check(self) -> None:
        """Raise `CancelSignal` once the task is asked to stop."""
        if self._port is not None and self._port.stopping(self):
            self._noticed = True
            raise CancelSignal("the task was asked to stop")

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message that `task.send(name, *args)` sent, as `(name, args)`; None after `timeout` seconds.

        Blocks; None waits until one comes. Raises `CancelSignal` when the task is asked to stop.
        """
        self._refuse_in_loop("receive", "receive_async")
        return self._wait(timeout, None)

    async def receive_async(self, timeout: float | None = None) -> Message | None:
        """`receive` for coroutines."""
        return await self._wait_async(timeout, None)

    def on(self, name: str, handler: Callable[..., Any]) -> None:
        """Call `handler(*args)` for every message `name`, on the thread that reads them, from now on."""
        with self._condition():
            if self._handlers is None:
                self._handlers = {}
            self._handlers[name] = handler
            early = [message for message in self._inbox or () if message.name == name]
            for message in early:
                self._inbox.remove(message)  # type: ignore[union-attr]
        for message in early:
            handler(*message.args)

    def write_to(self, messenger: object, name: str, *args: Any) -> None:
        """Send an event through a messenger of the original's form; one of this process's own pipe is `emit`."""
        write = getattr(messenger, "write_event", None)
        if write is None:
            self.emit(name, *args)
        else:
            check_name(name)
            write(self, name, args)

    def _write_elsewhere(self, address: str, name: str, args: tuple[Any, ...]) -> None:
        """Send an event to the messenger at an address: what `write_to` comes to."""
        port = self._port
        if port is None:
            return
        from ..wire.named import elsewhere

        record = elsewhere(self._seq, address, encode_event(self._seq, name, args))
        port.put(record)
        self._sent += len(record) + OBJECT
        if self._sent >= self._mark:
            self._want_credit()

    # --- the engine's side

    def put_message(self, message: Message) -> None:
        """Hand over what was sent to the task; called by the thread that reads."""
        condition = self._condition()
        with condition:
            handler = self._handlers.get(message.name) if self._handlers else None
            if handler is None:
                if self._inbox is None:
                    self._inbox = deque(maxlen=MAX_MESSAGES)
                self._inbox.append(message)
                self._rouse()
        if handler is not None:
            try:
                handler(*message.args)
            except Exception as error:  # as a listener's: logged, disturbs nobody
                import logging

                logging.getLogger("revolve_assistant").exception(
                    "handler of message %r of task %s raised %s", message.name, self.id, type(error).__name__
                )

    def grant(self) -> None:
        """All that was sent before more credit was asked for has been taken."""
        condition = self._condition()
        with condition:
            self._credit = self._wanted + CREDIT
            self._mark = self._wanted + CREDIT // 2
            self._wanted = 0
            self._rouse()

    def nudge(self) -> None:
        """Let a waiting `receive`, `ask` or `emit` look at the cancel flag."""
        condition = self._condition()
        with condition:
            self._rouse()

    def _condition(self) -> threading.Condition:
        condition = self._wake
        if condition is None:
            with _making:
                condition = self._wake
                if condition is None:
                    import threading  # at first use: most tasks never wait

                    condition = self._wake = threading.Condition()
        return condition

    def _want_credit(self) -> None:
        if self._mark < 0:  # a signal came in the middle of our own code: this is the place to heed it
            self._mark = self._credit if self._wanted else self._credit - CREDIT // 2
            self.check()
            if self._sent < self._mark:
                return
        condition = self._condition()
        with condition:
            if not self._wanted:
                self._wanted = self._sent
                self._mark = self._credit
                if self._port is not None:
                    self._port.put(_encode((WANT, self._seq)))
            while self._sent >= self._credit and self._wanted:
                self.check()
                condition.wait()

    def _take(self, name: str | None) -> Message | None:
        inbox = self._inbox
        if inbox:
            if name is None:
                return inbox.popleft()
            for message in inbox:
                if message.name == name:
                    inbox.remove(message)
                    return message
        return None

    def _wait(self, timeout: float | None, name: str | None) -> Message | None:
        if self._port is None:
            return None
        deadline = None if timeout is None else time.monotonic() + timeout
        condition = self._condition()
        with condition:
            while True:
                message = self._take(name)
                if message is not None:
                    return message
                self.check()
                rest = None if deadline is None else deadline - time.monotonic()
                if rest is not None and rest <= 0:
                    return None
                condition.wait(rest)

    async def _wait_async(self, timeout: float | None, name: str | None) -> Message | None:
        if self._port is None:
            return None
        import asyncio

        loop = asyncio.get_running_loop()
        condition = self._condition()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            woken = loop.create_future()
            with condition:
                message = self._take(name)
                if message is not None:
                    return message
                self.check()
                self._sleepers = (*self._sleepers, (loop, woken))
            rest = None if deadline is None else deadline - loop.time()
            try:
                await asyncio.wait_for(woken, None if rest is None else max(0.0, rest))
            except TimeoutError:
                with condition:
                    return self._take(name)

    def _rouse(self) -> None:
        """Under the condition: wake threads and coroutines that wait."""
        self._wake.notify_all()  # type: ignore[union-attr]
        sleepers, self._sleepers = self._sleepers, ()
        for loop, woken in sleepers:
            try:
                loop.call_soon_threadsafe(_wake_future, woken)
            except RuntimeError:  # its loop is closed
                pass

    def _refuse_in_loop(self, name: str, instead: str) -> None:
        asyncio = _asyncio()
        if asyncio is not None and asyncio._get_running_loop() is not None:
            raise UsageError(f"{name}() would block the event loop: use `await current_task().{instead}(…)`")


def _wake_future(woken: Any) -> None:
    if not woken.done():
        woken.set_result(None)


def _sound(text: str | None) -> str | None:
    """The text without lone surrogates, which no wire carries (file names may have them)."""
    return text if text is None or text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _number(value: Any) -> float | None:
    """A plain number of whatever counts as one (numpy's, Fraction …); integers stay integers."""
    if value is None or type(value) is float:
        return value
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"progress takes numbers, got {value!r:.100}") from None


def _asyncio() -> Any:
    import sys

    return sys.modules.get("asyncio.events")


_making = allocate_lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_making._at_fork_reinit)  # type: ignore[attr-defined] # another thread may hold it
_outside: Running | None = None


def outside() -> Running:
    """The Running of code that no task runs."""
    global _outside  # noqa: PLW0603 - made once
    if _outside is None:
        _outside = Running(None, 0, "", 0)
    return _outside
