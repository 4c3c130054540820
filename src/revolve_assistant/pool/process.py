"""One child as its supervisor sees it: how it is started, spoken to, heard and buried."""

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
from collections.abc import Mapping
from time import sleep
from typing import TYPE_CHECKING, Any

import msgspec

from . import board as at
from .shared import frame, keep_freed_memory

if TYPE_CHECKING:
    import subprocess

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


def child_environment(threads: int) -> dict[str, str]:
    """The caller's environment, with inner thread pools limited to `threads` where it does not say itself."""
    environment = dict(os.environ)
    for name in POOL_SIZES:
        environment.setdefault(name, str(threads))
    return environment


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

    def __init__(self, kind: str, environment: Mapping[str, str], config: Mapping[str, Any]) -> None:
        import subprocess

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
        self.out: deque[memoryview] = deque()
        self.control_out: deque[tuple[bytes, int]] = deque()
        self.buffer = memoryview(bytearray(READ))
        self.incoming = bytearray()  # of a frame that is not whole yet
        self.control_in = bytearray()
        self.received_fds: list[int] = []
        self.received: dict[int, Any] = {}

        self.board_fd = at.create()
        self.board = at.Board(self.board_fd)
        self.words = self.board.words
        self.words[at.LOW] = at.NEVER
        self.words[at.STOP_AT] = at.NEVER
        import fcntl

        fcntl.fcntl(self.board_fd, fcntl.F_SETFL, fcntl.fcntl(self.board_fd, fcntl.F_GETFL) | os.O_APPEND)
        self.tasks, tasks = socket.socketpair()
        self.control, control = socket.socketpair()
        life, self.life = os.pipe()
        try:
            with contextlib.suppress(OSError):
                self.tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            fds = [tasks.fileno(), control.fileno(), self.board_fd, life]
            root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            path = [root, *(str(each) for each in sys.path if each)]  # all of it: it may have been made at run time
            code = (
                f"import sys; sys.path[:] = {path!r}; from revolve_assistant.pool.child import main; "
                f"main({fds[0]}, {fds[1]}, {fds[2]}, {fds[3]})"
            )
            self.popen: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code],  # type: ignore[attr-defined]
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=fds,
                start_new_session=True,
            )
        except BaseException:
            self.close()
            raise
        finally:
            tasks.close()
            control.close()
            os.close(life)
        self.pid = self.popen.pid
        self.name = f"{os.uname().nodename}:{self.pid}"
        self.pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
        self.tasks.setblocking(False)
        self.control.setblocking(False)
        self.write([dict(config)])

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
            if fd >= 0:
                os.close(fd)
            if sent < len(data):
                self.control_out[0] = (data[sent:], -1)
                return False
            self.control_out.popleft()
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
                os.killpg(self.pid, number)

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

    def reap(self) -> int | None:
        """Kill what is left of the process group and collect the exit status, as `Popen.returncode` has it.

        None: the system gave it to nobody, since this process ignores SIGCHLD, or to somebody else here.
        """
        self.signal_group(signal.SIGKILL)
        popen = self.popen
        with popen._waitpid_lock:  # type: ignore[attr-defined] # Popen itself would take such a child for one that exited with 0
            if popen.returncode is None:
                try:
                    popen.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                except ChildProcessError:
                    popen.returncode = 0
                    return None
            return popen.returncode

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
        if getattr(self, "pidfd", -1) >= 0:
            os.close(self.pidfd)
        self.board.close()
