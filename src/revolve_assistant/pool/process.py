"""One child as its supervisor sees it: how it is started, spoken to, heard and buried.

start ──▶ ChildProcess(kind, begin): board, two sockets, life line; `begin` makes the process that has their ends
               begin = exec     a fresh interpreter (`start_child`)
               begin = fork     a copy of this process (`fork.py`)
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from . import board as at
from .shared import frame, keep_freed_memory
from .threads import making
from .vitals import UNKNOWN_EXIT

if TYPE_CHECKING:
    from .jobs import Job

_length = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_ORDERED = os.uname().machine in ("x86_64", "i686")  # stores become visible in their order
READ = 256 << 10  # bytes taken from a socket at once
MAX_FRAME = 1 << 31  # bytes

# so that `max_workers` children with inner thread pools do not fight for the CPUs
POOL_SIZES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def child_environment(threads: int, withheld: Collection[str] = ()) -> dict[str, str]:
    """The caller's environment without what is withheld; inner thread pools are limited to `threads` unless it says."""
    environment = {name: value for name, value in os.environ.items() if name not in withheld}
    for name in POOL_SIZES:
        environment.setdefault(name, str(threads))
    return environment


class Ends(NamedTuple):
    """What the child itself holds; closed in this process once it has been started."""

    tasks: socket.socket
    control: socket.socket
    life: int  # read end of a pipe that only the supervisor can write to


class Process(Protocol):
    """A process that was started, as `subprocess.Popen` is one. `returncode` is None until it was waited for."""

    pid: int
    returncode: Any

    def wait(self, timeout: float | None = None) -> int: ...


def start_child(kind: str, environment: Mapping[str, str], config: Mapping[str, Any]) -> ChildProcess:
    """A fresh interpreter that becomes a child. Raises `OSError`."""
    import subprocess

    def begin(child: ChildProcess, ends: Ends) -> Process:
        fds = [ends.tasks.fileno(), ends.control.fileno(), child.board_fd, ends.life]
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = [root, *(str(each) for each in sys.path if each)]  # all of it: it may have been made at run time
        code = (
            f"import sys; sys.path[:] = {path!r}; from revolve_assistant.pool.child import main; "
            f"main({fds[0]}, {fds[1]}, {fds[2]}, {fds[3]})"
        )
        return subprocess.Popen(
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code],  # type: ignore[attr-defined]
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=fds,
            start_new_session=True,
        )

    child = ChildProcess(kind, begin, memoryview(bytearray(READ)))
    child.write([dict(config)])
    return child


class ChildProcess:
    """A started child. Used by one thread at a time, under the supervisor's lock."""

    __slots__ = (
        "blocked",
        "board",
        "board_fd",
        "buffer",
        "check",
        "control",
        "control_in",
        "control_out",
        "cost",
        "dead",
        "farewell",
        "frames",
        "function_bytes",
        "functions",
        "given",
        "heard",
        "holders",
        "incoming",
        "jobs",
        "kind",
        "life",
        "name",
        "nonsense",
        "out",
        "peeked",
        "pid",
        "pidfd",
        "popen",
        "ready",
        "received",
        "received_fds",
        "retired",
        "setup_error",
        "shares",
        "stopped_ticks",
        "stopping",
        "tasks",
        "words",
    )

    def __init__(self, kind: str, begin: Callable[[ChildProcess, Ends], Process], buffer: memoryview) -> None:
        """`begin` makes the process; `buffer` (of READ bytes) may be shared by children of one supervisor."""
        self.kind = kind  # "plain" or "async"
        self.jobs: dict[int, Job] = {}  # by sequence number, in the order sent
        self.given = 0  # tasks sent so far: the last sequence number
        self.cost = 0.0  # seconds that the outstanding ones are expected to take
        self.functions: dict[int, int] = {}  # keys of the callables it has -> bytes, oldest first
        self.function_bytes = 0
        self.holders: dict[str, set[int]] = {}  # key of a shared object -> of the callables that hold it
        self.shares: set[str] = set()
        self.ready = False
        self.blocked = False  # a long task runs: nothing is queued behind it
        self.stopping = False  # gets no more tasks
        self.retired = False  # was asked to end
        self.dead = False
        self.nonsense = False
        self.setup_error: bytes | None = None
        self.frames = 0  # frames received
        self.heard = 0.0  # when the last frame came, monotonic seconds
        self.peeked = 0  # records of the next frame that were read ahead, from the board
        self.check: Any = None  # the timer of the next look at the board
        self.stopped_ticks = 0
        self.farewell: Any = None  # the timer that kills it if it does not end when it should
        self.out: deque[memoryview] = deque()
        self.control_out: deque[tuple[bytes, int]] = deque()
        self.buffer = buffer
        self.incoming = bytearray()  # of a frame that is not whole yet
        self.control_in = bytearray()
        self.received_fds: list[int] = []
        self.received: dict[int, Any] = {}

        with making:  # a fork that came in between would hold ends of ours that nobody there could close
            self._start(begin)

    def _start(self, begin: Callable[[ChildProcess, Ends], Process]) -> None:
        import fcntl

        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:  # closed if we run out of descriptors
            self.board_fd = at.create()
            ours.callback(os.close, self.board_fd)
            self.board = at.Board(self.board_fd)
            ours.callback(self.board.close)
            self.words = self.board.words
            self.words[at.LOW] = at.NEVER
            self.words[at.STOP_AT] = at.NEVER
            fcntl.fcntl(self.board_fd, fcntl.F_SETFL, fcntl.fcntl(self.board_fd, fcntl.F_GETFL) | os.O_APPEND)
            self.tasks, tasks = socket.socketpair()
            ours.callback(self.tasks.close)
            theirs.callback(tasks.close)
            self.control, control = socket.socketpair()
            ours.callback(self.control.close)
            theirs.callback(control.close)
            life, self.life = os.pipe()
            ours.callback(os.close, self.life)
            theirs.callback(os.close, life)
            with contextlib.suppress(OSError):
                self.tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self.popen = begin(self, Ends(tasks, control, life))
            self.pid = self.popen.pid
            ours.callback(self.reap)
            self.pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
            ours.pop_all()
        self.name = f"{os.uname().nodename}:{self.pid}"
        self.tasks.setblocking(False)
        self.control.setblocking(False)

    # --- speaking

    def write(self, messages: list[Any]) -> bool:
        """Send messages on the task socket; False: some are left in `out` until it can be written again."""
        body = _encode(messages)
        if len(body) > 65536:  # not copied again
            keep_freed_memory()
            parts = [memoryview(_length.pack(len(body))), memoryview(body)]
            if not self.out:
                try:
                    sent = self.tasks.sendmsg(parts)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    return True
                parts = [parts[1][sent - 4 :]] if sent >= 4 else [parts[0][sent:], parts[1]]
                if not parts[-1]:
                    return True
            self.out += parts
            return False
        data = memoryview(_length.pack(len(body)) + body)
        if self.out:
            self.out.append(data)
            return False
        try:
            sent = self.tasks.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it died; the pump hears of it
            return True
        if sent < len(data):
            self.out.append(data[sent:])
            return False
        return True

    def write_more(self) -> bool:
        """Send what was left; True: all of it."""
        while self.out:
            data = self.out[0]
            try:
                sent = self.tasks.send(data)
            except BlockingIOError:
                return False
            except OSError:
                self.out.clear()
                return True
            if sent < len(data):
                self.out[0] = data[sent:]
                return False
            self.out.popleft()
        return True

    def tell(self, message: tuple[Any, ...], fd: int = -1) -> bool:
        """Send a control message, with a descriptor that is closed afterwards; False: it waits to be written."""
        self.control_out.append((frame(message), fd))
        return self.tell_more()

    def tell_more(self) -> bool:
        while self.control_out:
            data, fd = self.control_out[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
            try:
                sent = self.control.sendmsg([data], rights)
            except BlockingIOError:
                return False
            except OSError:
                sent = len(data)
            if sent < len(data):
                self.control_out[0] = (data[sent:], -1)
            else:
                self.control_out.popleft()
            if fd >= 0:
                os.close(fd)
            if sent < len(data):
                return False
        return True

    # --- hearing

    def read(self) -> tuple[list[list[Any]], int, bool]:
        """Records that arrived, their size in bytes, and whether the other end is closed. Never blocks."""
        records: list[list[Any]] = []
        size = 0
        incoming, buffer = self.incoming, self.buffer
        while True:
            try:
                count = self.tasks.recv_into(buffer)
            except BlockingIOError:
                return records, size, False
            except OSError:
                return records, size, True
            if not count:
                return records, size, True
            whole = buffer
            start, end = 0, count
            if incoming:
                incoming += buffer[:count]
                whole = memoryview(incoming)
                end = len(incoming)
            while end - start >= 4:
                (length,) = _length.unpack_from(whole, start)
                if end - start - 4 < length:
                    break
                start += 4
                try:
                    found = _decode(whole[start : start + length])
                except msgspec.DecodeError:  # no child of ours says this: whatever it is, it is given up
                    self.nonsense = True
                    return records, size, True
                self.frames += 1
                if self.peeked:
                    del found[: self.peeked]
                    self.peeked = 0
                records = records + found if records else found
                size += length
                start += length
            if incoming:
                whole.release()
                del incoming[:start]
            elif start < end:
                incoming += buffer[start:end]
            if count < READ:
                return records, size, False

    def peek(self, dead: bool = False) -> tuple[list[list[Any]], int]:
        """Records still in the outbox that were not read yet. `board` says why this is safe."""
        words = self.words
        if words[at.FRAME] != self.frames:
            return [], 0
        out = words[at.OUT]
        count, end = out >> 32, out & 0xFFFFFFFF
        if count <= self.peeked or end > at.OUTBOX_SIZE:
            return [], 0
        if not dead and not _ORDERED:
            sleep(0.00005)  # until what was stored before OUT is surely visible here
        data = b"\xdd" + count.to_bytes(4, "big") + self.board.memory[at.OUTBOX : at.OUTBOX + end].tobytes()
        if not dead and (words[at.OUT] >> 32 < count or words[at.FRAME] != self.frames):
            return [], 0
        try:
            records: list[list[Any]] = _decode(data)
        except msgspec.DecodeError:  # stores seen out of order: the frame itself will come
            return [], 0
        fresh = records[self.peeked :]
        self.peeked = count
        return fresh, end

    def read_control(self) -> bool:
        """Take descriptors of result buffers off the control socket into `received`. Never blocks. False: closed."""
        from .child import frames
        from .shared import map_buffers

        while True:
            try:
                data, ancillary, _, _ = self.control.recvmsg(READ, socket.CMSG_SPACE(64 * 4))
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self.received_fds += memoryview(raw[: len(raw) // 4 * 4]).cast("i").tolist()
            self.control_in += data
            for _kind, seq, sizes in frames(self.control_in):
                self.received[seq] = map_buffers(self.received_fds.pop(0), sizes, writable=True)

    # --- state

    @property
    def running(self) -> Job | None:
        """The job being run now, if any (plain children)."""
        running = self.words[at.RUNNING]
        if running == self.words[at.ENDED]:
            return None
        return self.jobs.get(running)

    # --- the end

    def signal(self, number: int) -> None:
        """Signal the child alone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.popen.returncode is None:
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Signal the child and all it started. Only before it is reaped: until then its number is nobody else's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.popen.returncode is None:
                try:
                    os.killpg(self.pid, number)
                except ProcessLookupError:  # forked a moment ago, it does not lead its group yet
                    os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and all it started, if it is not dead yet."""
        if not self.dead:
            self.signal_group(signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Wait for the exit without reaping; True: it has ended."""
        if self.popen.returncode is not None:
            return True
        if self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        import subprocess

        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def reap(self) -> int:
        """Kill what is left of the process group and collect the exit status, as `Popen.returncode` has it.

        `UNKNOWN_EXIT`: the system gave it to nobody, since this process ignores SIGCHLD, or to somebody else here.
        """
        self.signal_group(signal.SIGKILL)
        popen: Any = self.popen
        lock = getattr(popen, "_waitpid_lock", None)
        if lock is None:  # a fork of ours
            return int(popen.wait())
        with lock:  # Popen itself would take such a child for one that exited with 0
            if popen.returncode is None:
                try:
                    popen.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                except ChildProcessError:
                    popen.returncode = 0
                    return UNKNOWN_EXIT
            return int(popen.returncode)

    def stacks(self) -> str:
        """What `faulthandler` wrote behind the board: the stacks at a crash, or on request."""
        size = os.fstat(self.board_fd).st_size
        return os.pread(self.board_fd, size - at.SIZE, at.SIZE).decode("utf-8", "replace") if size > at.SIZE else ""

    def close(self) -> None:
        """Close every descriptor; the board is gone after this."""
        self.dead = True
        self.tasks.close()
        self.control.close()
        for fd in (*self.received_fds, *(fd for _, fd in self.control_out), self.life, self.board_fd):
            if fd >= 0:
                os.close(fd)
        self.control_out.clear()
        self.received_fds.clear()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.board.close()
