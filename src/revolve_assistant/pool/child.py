"""A child: a fresh interpreter that takes tasks from one socket, runs them, and says what happens.

    main thread     reads the task socket, runs plain callables (or the event loop of coroutines)
    control thread  reads the control socket: messages to the task, credit, descriptors of shared memory

It never imports the caller's `__main__`, and it never outlives its supervisor: the life line is a pipe whose other
end only the supervisor holds; when that closes, the kernel itself sends SIGKILL to the child's process group
(fcntl(2): F_SETOWN with a group, F_SETSIG), also while C code holds the interpreter lock.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from _pickle import PickleBuffer, loads
from _socket import CMSG_SPACE, SCM_RIGHTS, SOL_SOCKET, socket  # not socket.py: 3 ms of every child's start
from _thread import allocate_lock, get_ident, start_new_thread
from collections import deque
from time import monotonic_ns, sleep
from typing import Any

import msgspec

from ..errors import CancelSignal, NotCarriable
from ..running import api
from ..running.body import run
from ..running.outbox import Outbox
from ..running.running import ATOMS, Message, Running
from . import board as at
from . import copies
from .function import Function, again, begin
from .reports import (
    BUFFERS,
    CANCELLED,
    CREDIT,
    DROP,
    ERROR,
    FORGET,
    FUNCTION,
    INTERRUPT,
    ITEM_ERROR,
    ITEM_PLAIN,
    ITEM_RESULT,
    READY,
    RESULT,
    RETURNED,
    SEND,
    SETUP_FAILED,
    SHARE,
    SKIPPED,
    STOP,
    STOPPING,
    TASK,
)
from .shared import keep_freed_memory, map_buffers, send_buffers

_signal = sys.modules["_signal"]  # what signal.py wraps into enumerations, at ten times the cost
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_length = struct.Struct("<I")
READ = 64 << 10  # bytes taken from a socket at once; more would be mapped and unmapped by malloc at every call
SMALL = 64 << 10  # bytes or characters up to which an atom travels as it is
LARGE = 8 << 20  # bytes of a pickle from which it travels in shared memory
AGAIN = 0.005  # seconds until a signal that was not heeded is sent again

_UNBROKEN = frozenset(
    os.path.join(os.path.dirname(os.path.dirname(api.__file__)), *names)
    for names in (("running", "outbox.py"), ("running", "capture.py"), ("telemetry", "port.py"))
)  # files in whose functions no CancelSignal is raised: it would tear a frame, or lose what was printed


def frames(pending: bytearray) -> list[Any]:
    """Take the whole frames off the front of `pending` and return their messages, in order."""
    messages: list[Any] = []
    start, end = 0, len(pending)
    with memoryview(pending) as view:
        while end - start >= 4:
            (size,) = _length.unpack_from(view, start)
            if end - start - 4 < size:
                break
            messages += _decode(view[start + 4 : start + 4 + size])
            start += 4 + size
    if start:
        del pending[:start]
    return messages


def plain_record(record: tuple[Any, ...], value: Any) -> bytes | None:
    """The record, if its value is an atom of moderate size, which msgpack gives back type-exact; else None."""
    kind = type(value)
    if kind not in ATOMS or (kind is str and len(value) >= SMALL) or (kind is bytes and len(value) >= LARGE):
        return None
    try:
        return _encode(record)
    except (OverflowError, UnicodeEncodeError):  # past 64 bits, lone surrogates: pickle keeps them
        return None


class Child:
    """What the plain and the asynchronous child share. `put` and `stopping` make it a `Port`."""

    def __init__(self, tasks: socket, control: socket, board: at.Board) -> None:
        self.tasks = tasks
        self.control = control
        self.board = board
        self.words = board.words
        self.outbox = Outbox(board, tasks)
        self.put = self.outbox.put
        self.functions: dict[int, Function] = {}
        self.runnings: dict[int, Running] = {}
        self.early: dict[int, deque[Message]] = {}  # messages that overtook their task
        self.buffers: dict[int, Any] = {}
        self.shared: set[str] = set()  # keys of the shared objects that are here
        self.arrived = allocate_lock()  # held while nobody waits for buffers
        self.arrived.acquire()
        self.finish: Any = None  # the exit of an initializer that is a context manager
        self.control_lock = allocate_lock()
        self.meeting = allocate_lock()  # guards `early` against `runnings`
        self.pending = bytearray()  # read from the task socket, not yet whole
        self.control_pending = bytearray()
        self.fds: list[int] = []  # came on the control socket, their messages have not yet
        self.waiting: deque[Any] = deque()  # messages not yet heeded

    def stopping(self, running: Running) -> bool:
        return self.words[at.FLAG] == running._seq

    # --- the control thread

    def begin_listening(self) -> None:
        from .threads import serving

        serving.add(start_new_thread(self._listen, ()))

    def _listen(self) -> None:
        """Read the control socket until the supervisor is gone, then take the whole process group along."""
        if hasattr(_signal, "pthread_sigmask"):
            _signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        while self.hear_control():
            pass
        os.killpg(0, signal.SIGKILL)

    def hear_control(self) -> bool:
        """Wait for something on the control socket and heed it. False: it is closed."""
        try:
            data, ancillary, _, _ = self.control.recvmsg(READ, CMSG_SPACE(64 * 4))
        except OSError:
            return False
        if not data:
            return False
        for level, kind, raw in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                self.fds += memoryview(raw[: len(raw) // 4 * 4]).cast("i").tolist()
        self.control_pending += data
        for message in frames(self.control_pending):
            self._heed(message, self.fds)
        return True

    def _heed(self, message: list[Any], fds: list[int]) -> None:
        kind = message[0]
        if kind == SHARE:
            from ..wire.share import receive_share

            _, key, data, sizes = message
            receive_share(key, data, map_buffers(fds.pop(0), sizes, writable=False) if sizes else [])
            self.shared.add(key)
            self._arrived()
            return
        if kind == FORGET:
            from ..wire.share import forget_share

            self.shared.discard(message[1])
            forget_share(message[1])
            return
        if kind == BUFFERS:
            self.buffers[message[1]] = map_buffers(fds.pop(0), message[2], writable=True)
            self._arrived()
            return
        running = self.runnings.get(message[1])
        if kind == SEND:
            from ..wire.values import unpack_message

            said = unpack_message(message[2], message[3])
            if said is None:
                return
            with self.meeting:  # of this thread and the one that begins the task
                running = self.runnings.get(message[1])
                if running is None and self.expected(message[1]):
                    self.early.setdefault(message[1], deque(maxlen=1000)).append(said)
            if running is not None:
                running.put_message(said)
        elif running is not None:
            if kind == CREDIT:
                running.grant()
            elif kind == STOPPING:
                running.nudge()
        if kind == INTERRUPT:  # perhaps of a task that is about to begin
            self.interrupt(message[1])

    def _arrived(self) -> None:
        if self.arrived.locked():  # this thread alone releases it
            self.arrived.release()

    def expected(self, seq: int) -> bool:
        """Whether a task may still begin, or has begun and not ended."""
        return bool(seq > self.words[at.ENDED])

    def register(self, seq: int, running: Running) -> None:
        """From now on messages go to the task; first those that came before it."""
        with self.meeting:
            self.runnings[seq] = running
            early = self.early.pop(seq, ()) if self.early else ()
        for message in early:
            running.put_message(message)

    def interrupt(self, seq: int) -> None:
        """The second rung of the ladder."""

    def await_shares(self, extras: dict[str, Any] | None) -> None:
        """Wait for the shared objects that the task names; its function may hold some, so before that is loaded."""
        for key in extras.get("shares", ()) if extras is not None else ():
            while key not in self.shared:
                self.arrived.acquire()

    def take_buffers(self, seq: int) -> Any:
        """The out-of-band buffers of a task, which the control thread receives."""
        while True:
            found = self.buffers.pop(seq, None)
            if found is not None:
                return found
            self.arrived.acquire()

    # --- results

    def arguments(self, seq: int, payload: bytes, extras: dict[str, Any] | None) -> Any:
        if extras is None or "buffers" not in extras:
            return loads(payload)
        buffers = self.take_buffers(seq)
        return loads(payload or buffers.pop(0), buffers=buffers)

    def result(self, seq: int, name: str, started: int, value: Any) -> None:
        """Say the result, or that it cannot travel."""
        record = plain_record((RETURNED, seq, monotonic_ns() - started, value), value)
        if record is not None:
            self.put(record, True)
            return
        from ..wire.carry import pack

        try:
            payload, buffers = pack(value, "result")
        except NotCarriable as error:
            error.add_note(f"the result of {name}() cannot be carried back")
            self.error(seq, started, error)
            return
        if len(payload) >= LARGE:
            buffers = [PickleBuffer(payload), *(buffers or ())]
            payload = b""
        if buffers:
            with self.control_lock:
                send_buffers(self.control, (BUFFERS, seq), buffers)
        self.put(_encode((RESULT, seq, monotonic_ns() - started, payload, len(buffers or ()))), True)

    def error(self, seq: int, started: int, error: BaseException, again: float | None = None) -> None:
        from ..wire.remote import pack_error

        self.put(_encode((ERROR, seq, monotonic_ns() - started, pack_error(error), again)), True)

    def cancelled(self, seq: int, started: int, rung: str) -> None:
        self.put(_encode((CANCELLED, seq, monotonic_ns() - started, rung)), True)

    # --- start and end

    def setup(self, config: dict[str, Any]) -> bool:
        """Become like the caller's process; run the initializer. False: it failed, and that was said."""
        sys.path[:] = config["path"]
        sys.argv[:] = config["argv"]
        try:
            while not self.shared.issuperset(config["shares"]):
                if not self.hear_control():
                    return False
            if config["initializer"] is not None:
                initializer, initargs = loads(config["initializer"])
                context = initializer(*initargs)
                if hasattr(context, "__enter__") and hasattr(context, "__exit__"):
                    context.__enter__()
                    self.finish = context
        except BaseException as error:
            from ..wire.remote import pack_error

            self.put(_encode((SETUP_FAILED, pack_error(error))))
            return False
        self.put(_encode((READY,)))
        return True

    def leave(self) -> None:
        """End as an ordinary program does: the initializer's exit, then `atexit`."""
        self.outbox.flush()
        if self.finish is not None:
            self.finish.__exit__(None, None, None)


class PlainChild(Child):
    """Runs plain callables and generators, one at a time, in the main thread."""

    def __init__(self, tasks: socket, control: socket, board: at.Board) -> None:
        super().__init__(tasks, control, board)
        self.inside = False  # a callable of the user is on the stack
        self.interrupted = False
        self.deferred = False
        self.main_thread = get_ident()
        _signal.signal(signal.SIGINT, self._on_sigint)
        sys.unraisablehook = self._unraisable

    def _unraisable(self, what: Any) -> None:
        """A CancelSignal that struck in a `__del__` or weakref callback, where Python drops it: `_insist` again."""
        if what.exc_type is CancelSignal:
            self.interrupted = False
            self.deferred = True
        else:
            sys.__unraisablehook__(what)

    def _on_sigint(self, _signum: int, frame: Any) -> None:
        """The supervisor's second rung. Not in the middle of our own bookkeeping: then `interrupt` tries again."""
        words = self.words
        if not self.inside or self.interrupted or words[at.RAISE] != words[at.RUNNING]:
            return
        for _ in range(16):
            if frame is None:
                break
            if frame.f_code.co_filename in _UNBROKEN:
                self.deferred = True
                if api.in_process is not None:
                    api.in_process._mark = -1  # its emit looks up at once
                return
            frame = frame.f_back
        self.interrupted = True
        raise CancelSignal("the task was stopped")

    def interrupt(self, seq: int) -> None:
        start_new_thread(self._insist, (seq,))

    def _insist(self, seq: int) -> None:
        """Signal the main thread until it heeds one: not in our own code, nor just before a system call that waits."""
        from .threads import serving

        serving.add(get_ident())
        pause = AGAIN
        while self.words[at.ENDED] < seq:
            sleep(pause)
            if self.deferred or not self.interrupted:
                pause, self.deferred = AGAIN if self.deferred else min(2 * pause, 100 * AGAIN), False
                if _signal.getsignal(signal.SIGINT) == self._on_sigint:
                    signal.pthread_kill(self.main_thread, signal.SIGINT)
        serving.discard(get_ident())

    def serve(self) -> None:
        pending, waiting = self.pending, self.waiting
        recv = self.tasks.recv
        outbox = self.outbox
        while True:
            while waiting:
                message = waiting.popleft()
                kind = message[0]
                if kind == TASK:
                    if message[6] is not None and "chunk" in message[6]:
                        self.chunk(message)
                    else:
                        self.task(message)
                    message = None
                    outbox.settle(monotonic_ns())
                elif kind == FUNCTION:
                    self.functions[message[1]] = Function(*message[2:])
                elif kind == DROP:
                    self.functions.pop(message[1], None)
                elif kind == STOP:
                    return
            outbox.flush()
            data = recv(READ)
            if not data:
                return
            pending += data
            if len(pending) > 65536 and (length := _length.unpack_from(pending)[0] + 4) > len(pending):
                # a large frame: the rest goes straight to its place
                have = len(pending)
                pending += bytes(length - have)
                with memoryview(pending) as view:
                    while have < length:
                        count = self.tasks.recv_into(view[have:])
                        if not count:
                            return
                        have += count
            waiting.extend(frames(pending))

    def begin(self, seq: int, id: str, attempt: int) -> Running | None:
        """Publish that `seq` runs. None: it was taken back."""
        words = self.words
        raw = id.encode()
        self.board.memory[at.TASK_ID : at.TASK_ID + len(raw) + 1] = raw + b"\0"
        words[at.STARTED] = monotonic_ns()
        words[at.RUNNING] = seq
        if words[at.LOW] <= seq <= words[at.HIGH]:
            words[at.ENDED] = seq
            with self.meeting:
                self.early.pop(seq, None)
            self.buffers.pop(seq, None)
            self.put(_encode((SKIPPED, seq)), True)
            return None
        running = Running(self, seq, id, attempt)
        self.register(seq, running)
        api.in_process = running
        return running

    def end(self, seq: int) -> None:
        api.in_process = None
        self.inside = self.interrupted = self.deferred = False
        self.words[at.ENDED] = seq
        self.runnings.pop(seq, None)

    def task(self, message: list[Any]) -> None:
        _, seq, id, key, payload, attempt, extras = message
        running = self.begin(seq, id, attempt)
        if running is None:
            return
        started = self.words[at.STARTED]
        function = self.functions[key]
        fn = args = kwargs = value = trace = None
        try:
            if extras is not None and "headers" in extras:
                trace = begin(running, function.name, extras)
            try:
                self.inside = True
                self.await_shares(extras)
                fn = function.load()
                args, kwargs = self.arguments(seq, payload, extras)
                if extras is not None and extras.get("capture"):
                    from ..running.capture import capturing

                    with capturing(running.emit):
                        value = run(running, function.kind, fn, args, kwargs)
                else:
                    value = run(running, function.kind, fn, args, kwargs)
            finally:
                self.inside = False
            if copies.here:
                copies.end(False)
            if trace is not None:
                trace.returned(running)
            if running._noticed:
                self.cancelled(seq, started, "flag")
            else:
                self.result(seq, function.name, started, value)
        except CancelSignal:
            rung = "exception" if self.interrupted or self.deferred else "flag"
            if trace is not None:
                trace.cancelled(rung)
            self.cancelled(seq, started, rung)
        except BaseException as error:
            if copies.here:
                copies.end(True)
            delay = again(function, extras, attempt, error)
            if trace is not None:
                trace.failed(error, delay)
            self.error(seq, started, error, delay)
        finally:
            fn = args = kwargs = value = None
            self.end(seq)

    def chunk(self, message: list[Any]) -> None:
        """Run the items of a `map` one after the other; each ends by itself, so only the running one can die."""
        _, seq, id, key, payload, attempt, extras = message
        running = self.begin(seq, id, attempt)
        if running is None:
            return
        words, put, outbox = self.words, self.put, self.outbox
        started = now = words[at.STARTED]
        function = self.functions[key]
        trace = None
        try:
            if "headers" in extras:
                trace = begin(running, function.name, extras)
            self.await_shares(extras)
            fn = function.load()
            if "buffers" in extras:
                payload = self.take_buffers(seq)[0]
            whole = "whole" in extras  # all items in one pickle: nothing in them can fail to be rebuilt
            items = loads(payload) if whole else _decode(payload)
            plain = function.kind == "plain"
            for index, item in enumerate(items):
                words[at.STARTED] = now
                words[at.ITEM] = index
                if words[at.STOP_AT] <= index or words[at.FLAG] == seq:
                    break
                try:
                    self.inside = True
                    args = item if whole else loads(item)
                    value = fn(*args) if plain else run(running, function.kind, fn, args, {})
                    if copies.here:
                        copies.end(False)
                    record = plain_record((ITEM_PLAIN, seq, index, value), value)
                    if record is None:
                        from ..wire.carry import in_band

                        record = _encode((ITEM_RESULT, seq, index, in_band(value)))
                    self.inside = False
                except BaseException as error:
                    self.inside = False
                    if copies.here:
                        copies.end(True)
                    from ..wire.remote import pack_error

                    if isinstance(error, CancelSignal):
                        break
                    if trace is not None:
                        trace.item_failed(index, error)
                    record = _encode((ITEM_ERROR, seq, index, pack_error(error)))
                args = value = item = None
                put(record, True)
                now = monotonic_ns()
                outbox.settle(now)
            if trace is not None:
                trace.returned(running, len(items))
            put(_encode((RETURNED, seq, monotonic_ns() - started, None)), True)
        except BaseException as error:
            if trace is not None:
                trace.failed(error)
            self.error(seq, started, error)
        finally:
            words[at.STOP_AT] = at.NEVER
            self.end(seq)


def main(tasks_fd: int, control_fd: int, board_fd: int, life_fd: int) -> None:
    """Run as a child with the four descriptors that the supervisor passed."""
    keep_freed_memory()
    for fd in (tasks_fd, control_fd, board_fd, life_fd):
        os.set_inheritable(fd, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # what the caller blocks or ignores is the caller's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    bind_life(life_fd)
    write_stacks(board_fd)
    tasks = socket(fileno=tasks_fd)
    control = socket(fileno=control_fd)
    board = at.Board(board_fd)
    copies.notice()
    pending = bytearray()
    messages: list[Any] = []
    while not messages:
        data = tasks.recv(READ)
        if not data:
            return
        pending += data
        messages = frames(pending)
    config = messages.pop(0)
    from .vitals import volunteer_for_oom

    volunteer_for_oom()
    child: Any
    if config["kind"] == "async":
        from .async_child import AsyncChild

        child = AsyncChild(tasks, control, board)
    else:
        child = PlainChild(tasks, control, board)
    child.pending, child.waiting = pending, deque(messages)
    if not child.setup(config):
        return
    # Imported here, not by the control thread: whoever imports it first is its main thread. After READY, so that it
    # costs the first task nothing.
    import threading  # noqa: F401

    child.begin_listening()
    child.serve()
    child.leave()


def write_stacks(board_fd: int) -> None:
    """At a crash, and on SIGUSR1, the stacks go behind the board."""
    import faulthandler

    faulthandler.enable(board_fd, all_threads=False)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, board_fd, all_threads=True)


def bind_life(fd: int) -> None:
    """Die with the supervisor, by the kernel's hand where it has F_SETSIG (Linux); else the control thread sees it."""
    import fcntl

    set_signal = getattr(fcntl, "F_SETSIG", 10) if sys.platform == "linux" else None
    if set_signal is not None:
        fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(fd, set_signal, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
